"""`openwafer fit FILE --dry-run`: what a run will do, as its configuration tells it."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from openwafer.base.units import format_bytes, format_count
from openwafer.models import Decoder, DecoderConfig, num_parameters
from openwafer.train.build import decoder_config, learning_rate_factor
from openwafer.train.config import OPTIMIZER_OPTIONS, RunConfig
from openwafer.train.phases import Phase, phases

_MOMENTS = {"adamw": 2, "adam": 2, "lion": 1, "sgd": 1, "adafactor": 0}


def print_notes(notes: Sequence[str], console: Console) -> None:
    """One line each."""
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def print_plan(config: RunConfig, notes: Sequence[str], console: Console) -> bool:
    """Say what the run will do; data that is missing is a warning. Returns whether all of it is there."""
    print_notes(notes, console)
    lines = ["What this run will do", *_rows(_whole(config))]
    for phase in phases(config):
        title = f"phase {phase.number}" if config.phases else "training"
        lines += [f"  {title}: steps {phase.begin + 1:,} to {phase.end:,}", *_rows(_of_phase(phase), indent=4)]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    missing = list(_missing(config))
    for text in missing:
        console.print(f"warning: {text}", highlight=False, markup=False, soft_wrap=True)
    return not missing


def _rows(rows: Iterator[tuple[str, str]], indent: int = 2) -> list[str]:
    return [f"{' ' * indent}{label:<18}{text}" for label, text in rows]


def _whole(config: RunConfig) -> Iterator[tuple[str, str]]:
    decoder = decoder_config(config.model)
    count = num_parameters(decoder)
    _check_shape(decoder, count)
    tokens = sum(phase.tokens for phase in phases(config))
    yield "model", _shape(config, decoder)
    yield "parameters", f"{format_count(count)} ({count:,})"
    yield "steps", f"{config.last_step:,}"
    yield "tokens", f"{format_count(tokens)} ({tokens / count:.1f} a parameter)"
    yield "optimizer", _optimizer(config)
    yield from _memory(config, decoder, count)
    yield "run folder", str(config.run)


def _shape(config: RunConfig, decoder: DecoderConfig) -> str:
    zoo = config.model.modelzoo
    name = zoo.name if zoo else config.model.preset or "decoder"
    kind = type(decoder.positions).__name__.lower()
    experts = f", {decoder.experts.num_experts} experts" if decoder.experts else ""
    return (
        f"{name}: {decoder.num_layers} layers, width {decoder.hidden_size:,}, {decoder.num_heads} heads, "
        f"{decoder.activation} {decoder.ffn_size:,}, {kind} positions{experts}{', muP' if decoder.mup else ''}"
    )


def _check_shape(decoder: DecoderConfig, count: int) -> None:
    """The module itself, without memory, must have the parameters that the formula says."""
    with torch.device("meta"):
        model = Decoder(decoder)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def _optimizer(config: RunConfig) -> str:
    options = config.optimizer.options()
    shown = ", ".join(f"{name} {options[name]}" for name in OPTIMIZER_OPTIONS[config.optimizer.name])
    clip = config.train.clip_norm
    clipped = "no clipping" if clip is None else f"gradients clipped to a norm of {clip:g}"
    return f"{config.optimizer.name} ({shown}), {clipped}, {config.train.precision}"


def _memory(config: RunConfig, decoder: DecoderConfig, count: int) -> Iterator[tuple[str, str]]:
    moment_bytes = 2 if config.optimizer.moments == "bf16" else 4
    kept = count * (4 + _MOMENTS[config.optimizer.name] * moment_bytes)
    layer = (count - decoder.vocab_size * decoder.hidden_size) // decoder.num_layers
    largest = max(layer, decoder.vocab_size * decoder.hidden_size)
    yield "training state", f"{format_bytes(kept + 4 * count)} (weights, gradients, moments)"
    yield "disk", f"{format_bytes(2 * kept)} for both slots of every page"
    yield "largest page", f"{format_bytes(largest * kept // count)} of weights and moments"
    yield "memory", f"at most {config.memory}" if config.memory is not None else "no limit; memory=8GiB sets one"


def _of_phase(phase: Phase) -> Iterator[tuple[str, str]]:
    config = phase.config
    length = config.sequence_length
    yield "tokens", f"{format_count(phase.tokens)} in {phase.steps:,} steps of {config.tokens:,}"
    most = -(-config.sequences // config.micro_batches)
    yield (
        "batch",
        f"{config.sequences:,} sequences of {length:,}, in {config.micro_batches:,} micro-batches of at most {most}",
    )
    yield "learning rate", _rates(phase)
    loss = config.train.loss
    if loss.scaling == "batch_size":
        yield "loss", f"sum over tokens x {loss.weight:g} / sequences"
    yield "data", ", ".join(map(str, config.data.folders[:2])) + (" ..." if len(config.data.folders) > 2 else "")
    if config.data.validates:
        every, batches = config.train.validate_every, config.train.validation_batches
        often = f"every {every:,} steps" if every else "at the end"
        yield "validation", f"{often}, {batches or 'all'} batches"


def _rates(phase: Phase) -> str:
    """The curve at the phase's begin, middle and end, and at its highest."""
    at = _rate(phase.config)
    steps = sorted({phase.begin, phase.begin + phase.steps // 2, phase.end - 1})
    grid = range(phase.begin, phase.end, max(1, phase.steps // 1000))
    # A corner of the curve is a step too: warm-ups are short.
    peak = max((*grid, *_corners(phase.config, phase)), key=at)
    text = ", ".join(f"{at(step):.4g} at step {step + 1:,}" for step in steps)
    return f"{text}; highest {at(peak):.4g} at step {peak + 1:,}"


def _rate(config: RunConfig) -> Callable[[int], float]:
    if config.schedulers is None:
        factor = learning_rate_factor(config.schedule, config.total_steps)
        return lambda step: config.optimizer.lr * factor(step)
    driven = [item.schedule for item in config.schedulers if item.option == "lr"]
    return driven[0].at if driven else lambda step: config.optimizer.lr


def _corners(config: RunConfig, phase: Phase) -> list[int]:
    corners = [config.schedule.warmup_steps]
    for item in config.schedulers or ():
        inner = getattr(item.schedule, "scheduler", item.schedule)
        corners += getattr(inner, "milestones", [])
    return [step for step in corners if phase.begin <= step < phase.end]


def _missing(config: RunConfig) -> Iterator[str]:
    for phase in phases(config):
        data = phase.config.data
        absent = [folder for folder in (*data.folders, *data.validation_folders) if not folder.exists()]
        if absent:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            yield f"phase {phase.number}: data folder {absent[0]}{more} is not there; the run would not start"


@contextlib.contextmanager
def scratch_run(config: RunConfig) -> Iterator[RunConfig]:
    """The configuration with a store that is gone afterwards, on the disk that the run would use."""
    parent = next(folder for folder in config.store_dir.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".openwafer-dry-run-", dir=parent) as folder:
        store = Path(folder) / "store"
        phases = [phase.model_copy(update={"store": store}) for phase in config.phases]
        yield config.model_copy(update={"store": store, "phases": phases})
