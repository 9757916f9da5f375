"""The training loop: `fit` begins a run, `resume` goes on with one; both end in the same few lines.

The position in the data, the learning rate and the random state are functions of the number of steps done or part of
the store, so the loop itself has no state to save. What it computes is the engine's; what it shows is `progress`'s.
"""

import contextlib
import dataclasses
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from openwafer.base.errors import ConfigError, OpenwaferError, RunError
from openwafer.base.events import EventWriter, StepRecord, read_steps
from openwafer.base.machine import peak_rss_bytes
from openwafer.base.units import parse_bytes
from openwafer.data import Loader, TokenShards
from openwafer.models import Decoder
from openwafer.pytorch import Job, compile, init
from openwafer.pytorch.construct import DEFAULT_MEMORY
from openwafer.train.build import decoder_config, make_optimizer, make_scheduler
from openwafer.train.config import RunConfig
from openwafer.train.folder import RunFolder, resolved
from openwafer.train.forecast import print_forecast
from openwafer.train.interrupt import Interrupt
from openwafer.train.progress import Progress, Tally, make_progress
from openwafer.train.tensorboard import ScalarLog, make_scalar_log


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a call of `fit` or `resume` ended."""

    run: Path
    steps_done: int
    steps: int
    stopped_by: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """0 when every step is done; 128 + the signal's number when a signal stopped the run, as shells count."""
        return 0 if self.stopped_by is None else 128 + self.stopped_by


def fit(config: RunConfig, *, dry_run: bool = False, console: Console | None = None) -> Outcome:
    """Begin the run that ``config`` describes and train to its last step.

    Args:
        dry_run: only say what the run would take; nothing is left behind.

    Raises:
        RunError: there is a run in the folder already.
        OpenwaferError: anything else that the user can mend.
    """
    console = console or Console()
    if dry_run:
        return _dry_run(config, console)
    config = resolved(config)
    folder = RunFolder(config.run)
    folder.require_new()
    shards = TokenShards(config.data.path)
    _check_vocabulary(config, shards)
    folder.begin(config, shards.path / "tokenizer.json")
    try:
        job = open_job(config)
    except BaseException:
        folder.forget()
        raise
    return _run(job, config, folder, shards, console, event="start")


def resume(run_dir: Path | str, overrides: Sequence[str] = (), *, console: Console | None = None) -> Outcome:
    """Go on with the run in ``run_dir`` from its last commit; ``overrides`` as `folder.MAY_CHANGE` lists.

    Raises:
        RunError: there is no run there, its data changed, or all its steps are done.
    """
    console = console or Console()
    folder = RunFolder(Path(run_dir))
    config = folder.load(overrides)
    shards = TokenShards(config.data.path)
    _check_vocabulary(config, shards)
    job = open_job(config)
    if job.step_count >= config.train.steps:
        done = job.step_count
        job.abandon()
        raise RunError(
            f"{folder.path} has done all its {done} steps. For more: {folder.resume_command} train.steps={2 * done}"
        )
    if overrides:
        folder.save(config)
    return _run(job, config, folder, shards, console, event="resume")


def open_job(config: RunConfig) -> Job:
    """Build the model in its store and compile it; a store with a committed state goes on from there."""
    torch.manual_seed(config.train.seed)
    with init(config.store_dir, memory=_building_bytes(config)) as store:
        try:
            model = Decoder(decoder_config(config.model))
            optimizer = make_optimizer(model, config.optimizer)
            return compile(
                model,
                optimizer=optimizer,
                scheduler=make_scheduler(optimizer, config.schedule, config.total_steps),
                memory=config.memory,
                device=config.device,
                device_memory=config.device_memory,
                store=store,
                precision=config.train.precision,
                clip_norm=config.train.clip_norm,
                commit_every=config.train.commit_every,
                moments=config.optimizer.moments,
            )
        except BaseException:
            store.close()
            raise


def _building_bytes(config: RunConfig) -> int:
    """Memory for parameters while the model is built: a share that leaves room for the largest of them."""
    most = parse_bytes(DEFAULT_MEMORY)
    return most if config.memory is None else min(most, parse_bytes(config.memory) // 4)


def _dry_run(config: RunConfig, console: Console) -> Outcome:
    shards = TokenShards(config.data.path)
    _check_vocabulary(config, shards)
    loader = _loader(config, shards, "train")
    # The disk that the run would use is the one to be probed.
    parent = next(folder for folder in config.store_dir.absolute().parents if folder.is_dir())
    with tempfile.TemporaryDirectory(prefix=".openwafer-dry-run-", dir=parent) as scratch:
        job = open_job(config.model_copy(update={"store": Path(scratch) / "store"}))
        try:
            print_forecast(job.forecast(loader.batch(0), micro_batches=config.train.micro_batches), console)
        finally:
            job.abandon()
    return Outcome(config.run, 0, config.train.steps)


def _run(job: Job, config: RunConfig, folder: RunFolder, shards: TokenShards, console: Console, event: str) -> Outcome:
    try:
        with job:
            _check_data(job, shards)
            return _steps(job, config, folder, shards, console, event)
    except OpenwaferError as error:
        if job.step_count == 0 and event == "start":
            folder.forget()
        else:
            error.add_note(f"Every step up to {job.durable_step} is safe. To go on: {folder.resume_command}")
        raise


def _steps(
    job: Job, config: RunConfig, folder: RunFolder, shards: TokenShards, console: Console, event: str
) -> Outcome:
    loader = _loader(config, shards, "train")
    print_forecast(job.forecast(loader.batch(job.step_count), micro_batches=config.train.micro_batches), console)
    tally = Tally(config.train.steps, _written_before_bytes(folder, job.step_count))
    progress = make_progress(console, tally)

    def say_stopping(name: str) -> None:
        progress.say(f"{name}: finishing step {job.step_count + 1}, then stopping. Once more to stop at once.")

    with contextlib.ExitStack() as stack:
        events = stack.enter_context(EventWriter(folder.events_file))
        scalars = stack.enter_context(make_scalar_log(config.log.tensorboard, folder.tensorboard_dir, job.step_count))
        stack.enter_context(progress)
        interrupt = stack.enter_context(Interrupt(say_stopping))
        events.mark(event, step=job.step_count, memory=config.memory, **_facts(job))
        for record in _train(job, config, loader, interrupt):
            events.write(record)
            scalars.step(record)
            progress.step(record)
            if _is_validation_due(config, record.step):
                _validate(job, config, shards, events, scalars, progress)
        job.commit()
        reason = "done" if interrupt.requested is None else interrupt.requested.name
        events.mark("stop", step=job.step_count, reason=reason, peak_rss_bytes=peak_rss_bytes())
    done = job.step_count >= config.train.steps
    if not done:
        console.print(
            f"Stopped after step {job.step_count} of {config.train.steps}; nothing is lost. "
            f"To go on: {folder.resume_command}",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    return Outcome(folder.path, job.step_count, config.train.steps, None if done else interrupt.requested)


def _train(job: Job, config: RunConfig, loader: Loader, interrupt: Interrupt) -> Iterator[StepRecord]:
    while job.step_count < config.train.steps and interrupt.requested is None:
        yield job.step(loader.batch(job.step_count), micro_batches=config.train.micro_batches)


def _loader(config: RunConfig, shards: TokenShards, split: Any) -> Loader:
    return Loader(
        shards,
        config.data.sequence_length,
        config.sequences,
        config.train.seed,
        split=split,
        validation_share=config.data.validation,
    )


def _is_validation_due(config: RunConfig, step: int) -> bool:
    if not config.data.validation:
        return False
    every = config.train.validate_every
    return step == config.train.steps or (every is not None and step % every == 0)


def _validate(
    job: Job, config: RunConfig, shards: TokenShards, events: EventWriter, scalars: ScalarLog, progress: Progress
) -> None:
    loader = _loader(config, shards, "validation")
    losses = []
    job.eval()
    try:
        with torch.no_grad():
            for number in range(config.train.validation_batches):
                losses.append(float(job(**loader.batch(number))))
    finally:
        job.train()
    loss = sum(losses) / len(losses)
    events.mark("validation", step=job.step_count, loss=loss)
    scalars.validation(job.step_count, loss)
    progress.say(f"step {job.step_count}: validation loss {loss:.4f}")


def _check_vocabulary(config: RunConfig, shards: TokenShards) -> None:
    vocab_size = decoder_config(config.model).vocab_size
    if shards.vocab_size > vocab_size:
        raise ConfigError(
            f"the tokens of {shards.path} have a vocabulary of {shards.vocab_size}, the model has {vocab_size} rows: "
            f"set model.vocab_size={shards.vocab_size} or more, or prepare the data with a smaller vocabulary."
        )


def _check_data(job: Job, shards: TokenShards) -> None:
    """The same positions must name the same tokens after a resume."""
    before = job.extra.get("data")
    if before is not None and before != shards.fingerprint:
        raise RunError(
            f"the tokens in {shards.path} are not those this run began with (fingerprint {shards.fingerprint}, "
            f"was {before}): bring the old ones back, or begin another run."
        )
    job.set_extra({**job.extra, "data": shards.fingerprint})


def _written_before_bytes(folder: RunFolder, step_count: int) -> int:
    if step_count == 0 or not folder.events_file.exists():
        return 0
    return sum(record.bytes_written for record in read_steps(folder.events_file))


def _facts(job: Job) -> dict[str, int]:
    """What a reader of the events may want to hold the records against."""
    return {"num_parameters": sum(param.numel() for param in job.model.parameters())}
