"""The command `openwafer data prepare INPUT... --out DIR`: arguments, a progress bar, a summary."""

from __future__ import annotations

import argparse
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from openwafer.base.errors import ConfigError
from openwafer.data.chat import TEMPLATES, load_template
from openwafer.data.hdf5_writer import FORMS, Hdf5Record
from openwafer.data.prepare import VOCAB_SIZE, Progress, prepare, prepare_hdf5
from openwafer.data.shards import TokenShards


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `openwafer data prepare`."""
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="text, .jsonl or .parquet files (.gz, .bz2, .xz too), or folders of them",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder to make; must not exist")
    parser.add_argument("--tokenizer", metavar="FILE", help="a Hugging Face tokenizer.json; without, one is trained")
    parser.add_argument(
        "--vocab-size", type=int, default=VOCAB_SIZE, metavar="N", help="of a trained tokenizer (default %(default)s)"
    )
    parser.add_argument(
        "--field",
        default="text",
        metavar="NAME",
        help="JSON field or parquet column with the text (default %(default)s)",
    )
    parser.add_argument("--eot-token", metavar="TOKEN", help="the tokenizer's end-of-text token, if not a usual one")
    parser.add_argument(
        "--form",
        choices=("shards", *FORMS),
        default="shards",
        help="token shards, or ModelZoo's HDF5: a stream of tokens (corpus), samples, or samples of several documents "
        "(packed) (default %(default)s)",
    )
    parser.add_argument("--sequence-length", type=int, metavar="T", help="of samples, in tokens")
    parser.add_argument(
        "--template",
        metavar="NAME",
        help=f"inputs are conversations, written by this template: {', '.join(TEMPLATES)} or a JSON file; "
        "only the assistant's turns are learned",
    )
    parser.add_argument("--no-eot", action="store_true", help="put nothing between documents")


def run(args: argparse.Namespace, console: Console | None = None) -> TokenShards | Hdf5Record:
    """Prepare the data as the arguments say, with a progress bar on the console (standard error by default).

    Raises:
        DataError, ConfigError: as `prepare`, or options that do not go together.
    """
    _check(args)
    console = console or Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Bar(*columns, TextColumn("{task.fields[tokens]}"), console=console, transient=True) as bar:
        task = bar.add_task("read", total=None, tokens="")

        def show(progress: Progress) -> None:
            tokens = f"{progress.num_tokens / 1e6:.1f} M tokens" if progress.num_tokens else ""
            bar.update(
                task,
                description=progress.phase,
                completed=progress.done_bytes,
                total=progress.total_bytes,
                tokens=tokens,
            )

        options: dict[str, Any] = dict(
            tokenizer=args.tokenizer,
            vocab_size=args.vocab_size,
            text_field=args.field,
            append_eot=not args.no_eot,
            eot_token=args.eot_token,
            progress=show,
        )
        if args.form == "shards":
            made = prepare(args.inputs, args.out, **options)
        else:
            template = None if args.template is None else load_template(args.template)
            made = prepare_hdf5(args.inputs, args.out, args.form, args.sequence_length, template=template, **options)
    text = summary(made) if isinstance(made, TokenShards) else hdf5_summary(made, args.out)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    return made


def _check(args: argparse.Namespace) -> None:
    needs_length = args.form in ("sample", "packed")
    if needs_length != (args.sequence_length is not None) or (needs_length and args.sequence_length < 1):
        what = "needs --sequence-length, at least 1" if needs_length else "has no --sequence-length: it is cut later"
        raise ConfigError(f"--form {args.form} {what}")
    if args.template is not None and not needs_length:
        raise ConfigError("--template needs a loss mask: add --form packed or --form sample, and --sequence-length")


def hdf5_summary(record: Hdf5Record, out: str) -> str:
    """What was made, in a few lines."""
    samples = "" if record.form == "corpus" else f", {record.num_samples:,} samples of {record.sequence_length:,}"
    lines = [
        f"{record.num_tokens:,} tokens of {record.num_documents:,} documents{samples}",
        f"vocabulary {record.vocab_size:,}, form {record.form}, {record.num_files:,} HDF5 files in {out}",
    ]
    if record.num_replaced_characters:
        lines.append(f"{record.num_replaced_characters:,} undecodable characters became U+FFFD")
    if record.num_skipped_files:
        lines.append(f"{record.num_skipped_files:,} binary files in folders were left out")
    return "\n".join(lines)


def summary(shards: TokenShards) -> str:
    """What was made, in a few lines; what was replaced or left out is named."""
    index = shards.index
    lines = [
        f"{index.num_tokens:,} tokens of {index.num_documents:,} documents from {len(index.sources):,} files",
        f"vocabulary {index.vocab_size:,}, {index.dtype}, {len(index.shards):,} shards in {shards.path}",
    ]
    if index.num_replaced_characters:
        lines.append(f"{index.num_replaced_characters:,} undecodable characters became U+FFFD")
    if index.num_skipped_files:
        lines.append(f"{index.num_skipped_files:,} binary files in folders were left out")
    return "\n".join(lines)
