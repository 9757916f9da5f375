"""Tries published trainer files unmodified: a dry run, a step at their true shape without memory, a small real step.

Run: make modelzoo FILES=path/to/modelzoo/src/cerebras/modelzoo/models/nlp

Files of other models are left out. The step at true shape runs module, loss, optimizer and schedules on torch's `meta`
device, with one micro-batch of one sequence; the real one is `openwafer fit` of the same file at reduced width on
random tokens, in the form of data that the file asks for.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import io
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from rich.console import Console

from openwafer.base.errors import OpenwaferError
from openwafer.base.events import read_steps
from openwafer.data.hdf5_writer import Hdf5Writer
from openwafer.models import Decoder
from openwafer.models.interchange.modelzoo_section import ModelSection
from openwafer.train.build import decoder_config, make_optimizer, make_scheduler
from openwafer.train.config import RunConfig
from openwafer.train.dry_run import print_plan
from openwafer.train.loop import fit
from openwafer.train.modelzoo.translate import is_trainer_file
from openwafer.train.read_config import read_config, read_with_notes

FAMILIES = ("gpt2", "gpt3", "btlm", "jais", "llama", "mistral", "mixtral")
LENGTH = 32
"""Tokens of a sample at reduced width."""
_HEADS, _HEAD_DIM, _VOCABULARY = 4, 16, 512


@dataclasses.dataclass(frozen=True)
class Result:
    """One file: its family, and what went wrong in which of the three trials."""

    file: Path
    family: str
    seconds: float
    faults: dict[str, str]


def main() -> int:
    """Exit status: 1 if a file fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", help="trainer files, or folders of them")
    args = parser.parse_args()
    results = []
    for file, family in trainer_files(args.files):
        results.append(try_file(file, family))
        print(_line(results[-1]), flush=True)
    if not results:
        parser.error(f"no trainer file of {', '.join(FAMILIES)} in {', '.join(map(str, args.files))}")
    whole = Counter(result.family for result in results)
    good = Counter(result.family for result in results if not result.faults)
    print(", ".join(f"{family} {good[family]} of {whole[family]}" for family in sorted(whole)))
    return int(any(result.faults for result in results))


def trainer_files(places: list[Path]) -> Iterator[tuple[Path, str]]:
    """Every trainer file of our families, with its family."""
    for place in places:
        for file in sorted(place.rglob("*.y*ml")) if place.is_dir() else [place]:
            with contextlib.suppress(yaml.YAMLError, UnicodeDecodeError):
                tree = yaml.safe_load(file.read_text(encoding="utf-8"))
                if is_trainer_file(tree) and (family := _family(tree)):
                    yield file, family


def _family(tree: Any) -> str | None:
    """Of the first trainer, if it trains one of our models."""
    while tree and (isinstance(tree, list) or "trainer" in tree):
        tree = tree[0] if isinstance(tree, list) else tree["trainer"]
    model = tree.get("init", {}).get("model", {}) if isinstance(tree, dict) and "fit" in tree else {}
    return model.get("name") if model.get("name") in FAMILIES else None


def try_file(file: Path, family: str) -> Result:
    """All three trials, each whatever became of the one before."""
    began, faults = time.monotonic(), {}
    trials: dict[str, Callable[[Path], None]] = {"dry run": dry_run, "true shape": true_shape, "small": small_run}
    for name, trial in trials.items():
        try:
            trial(file)
        except OpenwaferError as error:
            faults[name] = str(error)
    return Result(file, family, time.monotonic() - began, faults)


def _line(result: Result) -> str:
    state = "FAIL" if result.faults else "pass"
    said = "; ".join(f"{name}: {text}" for name, text in result.faults.items())
    return f"{state}  {result.family:8} {result.file.name}  {result.seconds:.1f} s  {said}".rstrip()


def dry_run(file: Path) -> None:
    """What `openwafer fit FILE --dry-run` does where the data is not there."""
    config, notes = read_with_notes(file)
    print_plan(config, notes, Console(file=io.StringIO()))


def true_shape(file: Path) -> None:
    """One step of every phase on the `meta` device: shapes and dtypes as in the run, no memory."""
    for config in read_config(file).parts:
        decoder = decoder_config(config.model)
        with torch.device("meta"):
            model = Decoder(decoder)
            ids = torch.zeros(1, config.sequence_length, dtype=torch.long)
        optimizer = make_optimizer(model, config.optimizer, decoder)
        scheduler = make_scheduler(optimizer, config.schedule, config.total_steps, config.schedulers)
        # torch has no autocast for `meta`: what bf16 rounds has the same shape.
        model(ids, ids).backward()
        missing = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert not missing, missing
        optimizer.step()
        scheduler.step()


def small_run(file: Path) -> None:
    """`openwafer fit` of the file for one step, its model made small in every direction."""
    with tempfile.TemporaryDirectory(prefix="openwafer-published-") as folder:
        whole = read_config(file)
        assert not whole.phases, "a file of several phases is tried by its parts"
        data = _samples(Path(folder) / "data", whole)
        config = read_config(file, [*_small(whole), *_places(whole, Path(folder), data)])
        fit(config, console=Console(file=io.StringIO()))
        losses = [record.loss for record in read_steps(config.run / "events.jsonl")]
        assert len(losses) == 1
        assert np.isfinite(losses[0])


def _samples(folder: Path, config: RunConfig) -> Path:
    """Random documents in the form that the file's dataloader reads."""
    folder.mkdir()
    writer = Hdf5Writer(folder, "packed" if config.data.packed else "sample", LENGTH)
    draw = np.random.default_rng(0)
    for _ in range(32):
        writer.append(draw.integers(0, _VOCABULARY, size=LENGTH // 2 + 1))
    writer.close()
    return folder


def _places(config: RunConfig, folder: Path, data: Path) -> list[str]:
    """Where the run and its data are, and how little of both is needed."""
    places = [f"run={folder / 'run'}", f"data.path={data}", f"data.sequence_length={LENGTH}", "data.subset=null"]
    places += ["train.steps=1", "train.sequences=4", "train.micro_batch_sequences=2"]
    if config.data.sink_tokens is not None:
        places += ["data.sink_tokens.token_id=1", "data.sink_tokens.count=4"]
    if config.data.validates:
        places += [f"data.validation_path={data}", "train.validation_batches=1"]
    return places


def _small(config: RunConfig) -> list[str]:
    """The model's sizes divided, its proportions of heads, widths and rotated dimensions kept."""
    section = config.model.modelzoo
    assert section is not None
    sizes = _sizes(section)
    return [f"model.modelzoo.{key}={value}" for key, value in sizes.items()]


def _sizes(section: ModelSection) -> dict[str, object]:
    groups = section.num_heads // section.num_kv_heads
    heads = max(_HEADS, groups)
    inner = heads * _HEAD_DIM
    share = inner / section.inner_size
    hidden = round(section.hidden_size * share)
    sizes: dict[str, object] = {
        "num_hidden_layers": 2,
        "num_heads": heads,
        "hidden_size": hidden,
        "filter_size": round(section.filter_size * share),
        "vocab_size": _VOCABULARY,
        "max_position_embeddings": 2 * LENGTH,
    }
    if section.attention_inner_dim is not None:
        sizes["attention_inner_dim"] = inner
    if groups > 1:
        sizes["extra_attention_params.num_kv_groups"] = heads // groups
    if section.rotary_dim is not None:
        sizes["rotary_dim"] = 2 * round(section.rotary_dim * _HEAD_DIM / section.head_dim / 2)
    if section.attention_sliding_window_length is not None:
        sizes["attention_sliding_window_length"] = LENGTH // 4
    if section.attention_sink_tokens:
        sizes["attention_sink_tokens"] = 4
    for key in ("mup_base_hidden_size", "mup_base_filter_size"):
        if getattr(section, key) is not None:
            sizes[key] = getattr(section, key) * share
    return sizes


if __name__ == "__main__":
    raise SystemExit(main())
