"""The command `openwafer data prepare INPUT... --out DIR`: arguments, a progress bar, a summary."""

from __future__ import annotations

import argparse

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from openwafer.data.prepare import VOCAB_SIZE, Progress, prepare
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
    parser.add_argument("--no-eot", action="store_true", help="put nothing between documents")


def run(args: argparse.Namespace, console: Console | None = None) -> TokenShards:
    """Prepare the data as the arguments say, with a progress bar on the console (standard error by default).

    Raises:
        DataError, ConfigError: as `prepare`.
    """
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

        shards = prepare(
            args.inputs,
            args.out,
            tokenizer=args.tokenizer,
            vocab_size=args.vocab_size,
            text_field=args.field,
            append_eot=not args.no_eot,
            eot_token=args.eot_token,
            progress=show,
        )
    console.print(summary(shards), highlight=False, markup=False, soft_wrap=True)
    return shards


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
