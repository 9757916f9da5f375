"""The training loop: `fit` begins a run, `resume` goes on with one; both end in the same few lines.

The position in the data, the learning rate and the random state are functions of the number of steps done or part of
the store, so the loop itself has no state to save. What it computes is the engine's; what it shows is `progress`'s.
"""

import contextlib
import dataclasses
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from openwafer.base.errors import OpenwaferError, RunError
from openwafer.base.events import EventWriter, StepRecord, read_steps
from openwafer.base.machine import peak_rss_bytes
from openwafer.base.units import parse_bytes
from openwafer.models import Decoder
from openwafer.pytorch import Job, compile, init
from openwafer.pytorch.construct import DEFAULT_MEMORY
from openwafer.train.build import decoder_config, make_optimizer, make_scheduler
from openwafer.train.config import RunConfig
from openwafer.train.dataset import Dataset, open_dataset
from openwafer.train.dry_run import print_notes, print_plan, scratch_run
from openwafer.train.folder import RunFolder, resolved
from openwafer.train.forecast import print_forecast
from openwafer.train.interrupt import Interrupt
from openwafer.train.loss import StepLoss
from openwafer.train.phases import Phase, phases
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


def fit(
    config: RunConfig, *, dry_run: bool = False, notes: Sequence[str] = (), console: Console | None = None
) -> Outcome:
    """Begin the run that ``config`` describes and train to its last step.

    Args:
        dry_run: only say what the run would take; nothing is left behind.
        notes: what reading the configuration had to say; printed once.

    Raises:
        RunError: there is a run in the folder already.
        OpenwaferError: anything else that the user can mend.
    """
    console = console or Console()
    if dry_run:
        _dry_run(config, notes, console)
        return Outcome(config.run, 0, config.last_step)
    config = resolved(config)
    folder = RunFolder(config.run)
    folder.require_new()
    datasets = [open_dataset(part) for part in config.parts]
    print_notes(notes, console)
    folder.begin(config, datasets[0].tokenizer_file)
    run = _Run(config, folder, console, "start")
    try:
        run.open()
    except BaseException:
        folder.forget()
        raise
    return run.go()


def resume(run_dir: Path | str, overrides: Sequence[str] = (), *, console: Console | None = None) -> Outcome:
    """Go on with the run in ``run_dir`` from its last commit; ``overrides`` as `folder.MAY_CHANGE` lists.

    Raises:
        RunError: there is no run there, its data changed, or all its steps are done.
    """
    console = console or Console()
    folder = RunFolder(Path(run_dir))
    config = folder.load(overrides)
    for part in config.parts:
        open_dataset(part)
    run = _Run(config, folder, console, "resume")
    job = run.open()
    if job.step_count >= config.last_step:
        done = job.step_count
        job.abandon()
        key = f"phases.{len(config.phases) - 1}.train.steps" if config.phases else "train.steps"
        raise RunError(
            f"{folder.path} has done all its {done} steps. For more: {folder.resume_command} {key}={2 * done}"
        )
    if overrides:
        folder.save(config)
    return run.go()


def open_job(config: RunConfig, loss: StepLoss | None = None) -> Job:
    """The job of the phase that the store's last commit stands in; of a new store, the first."""
    parts = list(phases(config))
    job = _open(parts[0].config, loss)
    if len(parts) == 1 or job.step_count < parts[0].end:
        return job
    step = job.step_count
    job.abandon()
    return _open(next((part for part in parts if step < part.end), parts[-1]).config, loss)


def _open(config: RunConfig, loss: StepLoss | None) -> Job:
    """Build the model in its store and compile it; a store with a committed state goes on from there."""
    torch.manual_seed(config.train.seed)
    with init(config.store_dir, memory=_building_bytes(config)) as store:
        try:
            decoder = decoder_config(config.model)
            model = Decoder(decoder)
            optimizer = make_optimizer(model, config.optimizer, decoder)
            return compile(
                model,
                optimizer=optimizer,
                scheduler=make_scheduler(optimizer, config.schedule, config.total_steps, config.schedulers),
                memory=config.memory,
                device=config.device,
                device_memory=config.device_memory,
                store=store,
                precision=config.train.precision,
                clip_norm=config.train.clip_norm,
                loss=loss,
                commit_every=config.train.commit_every,
                moments=config.optimizer.moments,
            )
        except BaseException:
            store.close()
            raise


def _dry_run(config: RunConfig, notes: Sequence[str], console: Console) -> None:
    if not print_plan(config, notes, console):
        return
    phase = next(phases(config))
    batch = open_dataset(phase.config).train().batch(0)
    with scratch_run(config) as scratch:
        job = open_job(scratch)
        try:
            print_forecast(job.forecast(batch, micro_batches=phase.config.micro_batches), console)
        finally:
            job.abandon()


def _building_bytes(config: RunConfig) -> int:
    """Memory for parameters while the model is built: a share that leaves room for the largest of them."""
    most = parse_bytes(DEFAULT_MEMORY)
    return most if config.memory is None else min(most, parse_bytes(config.memory) // 4)


@dataclasses.dataclass
class _Output:
    """Where a run's numbers go."""

    events: EventWriter
    scalars: ScalarLog
    progress: Progress
    interrupt: Interrupt


class _Run:
    """A run from where its store stands to its last step, phase by phase."""

    def __init__(self, config: RunConfig, folder: RunFolder, console: Console, event: str) -> None:
        self._config, self._folder, self._console, self._event = config, folder, console, event
        self._loss = StepLoss()

    def open(self) -> Job:
        """Open the job where the store stands."""
        self._job = open_job(self._config, self._loss)
        return self._job

    def go(self) -> Outcome:
        """Train to the last step, or until a signal asks to stop; the job is closed in any case."""
        try:
            with contextlib.ExitStack() as closing:
                closing.push(lambda *error: self._job.__exit__(*error))  # whichever is open by then
                return self._phases()
        except OpenwaferError as error:
            if self._job.step_count == 0 and self._event == "start":
                self._folder.forget()
            else:
                error.add_note(
                    f"Every step up to {self._job.durable_step} is safe. To go on: {self._folder.resume_command}"
                )
            raise

    def _phases(self) -> Outcome:
        config, folder = self._config, self._folder
        ahead = [phase for phase in phases(config) if self._job.step_count < phase.end]
        dataset = open_dataset(ahead[0].config)
        _check_data(self._job, ahead[0], dataset)
        self._forecast(ahead[0], dataset)
        tally = Tally(config.last_step, _written_before_bytes(folder, self._job.step_count))
        progress = make_progress(self._console, tally)

        def say_stopping(name: str) -> None:
            progress.say(
                f"{name}: finishing step {self._job.step_count + 1}, then stopping. Once more to stop at once."
            )

        with contextlib.ExitStack() as stack:
            events = stack.enter_context(EventWriter(folder.events_file))
            scalars = make_scalar_log(config.log.tensorboard, folder.tensorboard_dir, self._job.step_count)
            stack.enter_context(scalars)
            stack.enter_context(progress)
            interrupt = stack.enter_context(Interrupt(say_stopping))
            out = _Output(events, scalars, progress, interrupt)
            events.mark(self._event, step=self._job.step_count, memory=config.memory, **_facts(self._job))
            for phase in ahead:
                if phase is not ahead[0]:
                    dataset = self._turn_to(phase, out)
                self._steps(phase, dataset, out)
                if interrupt.requested is not None:
                    break
            self._job.commit()
            reason = "done" if interrupt.requested is None else interrupt.requested.name
            events.mark("stop", step=self._job.step_count, reason=reason, peak_rss_bytes=peak_rss_bytes())
        return self._outcome(interrupt)

    def _turn_to(self, phase: Phase, out: _Output) -> Dataset:
        """Close the job of the phase before, open that of this one on the same store."""
        self._job.close()
        self._job = _open(phase.config, self._loss)
        dataset = open_dataset(phase.config)
        _check_data(self._job, phase, dataset)
        out.events.mark("phase", step=self._job.step_count, number=phase.number)
        out.progress.say(
            f"phase {phase.number} from step {phase.begin + 1}: {phase.config.sequences} sequences of "
            f"{phase.config.sequence_length} tokens a step"
        )
        return dataset

    def _forecast(self, phase: Phase, dataset: Dataset) -> None:
        batch = dataset.train(phase.begin, phase.first_sample).batch(self._job.step_count)
        print_forecast(self._job.forecast(batch, micro_batches=phase.config.micro_batches), self._console)

    def _steps(self, phase: Phase, dataset: Dataset, out: _Output) -> None:
        for record in self._train(phase, dataset, out.interrupt):
            out.events.write(record)
            out.scalars.step(record)
            out.progress.step(record)
            if _is_validation_due(phase, record.step):
                _validate(self._job, dataset, out)

    def _train(self, phase: Phase, dataset: Dataset, interrupt: Interrupt) -> Iterator[StepRecord]:
        batches = dataset.train(phase.begin, phase.first_sample)
        while self._job.step_count < phase.end and interrupt.requested is None:
            batch = batches.batch(self._job.step_count)
            self._loss.begin(phase.config.train.loss, batch)
            yield self._job.step(batch, micro_batches=phase.config.micro_batches)

    def _outcome(self, interrupt: Interrupt) -> Outcome:
        step, last = self._job.step_count, self._config.last_step
        if step < last:
            self._console.print(
                f"Stopped after step {step} of {last}; nothing is lost. To go on: {self._folder.resume_command}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        return Outcome(self._folder.path, step, last, None if step >= last else interrupt.requested)


def _is_validation_due(phase: Phase, step: int) -> bool:
    if not phase.config.data.validates:
        return False
    every = phase.config.train.validate_every
    return step == phase.end or (every is not None and step % every == 0)


def _validate(job: Job, dataset: Dataset, out: _Output) -> None:
    batches, count = dataset.validation(), dataset.num_validation()
    job.eval()
    try:
        with torch.no_grad():
            losses = [float(job(**batches.batch(number))) for number in range(count)]
    finally:
        job.train()
    loss = sum(losses) / len(losses)
    out.events.mark("validation", step=job.step_count, loss=loss)
    out.scalars.validation(job.step_count, loss)
    out.progress.say(f"step {job.step_count}: validation loss {loss:.4f}")


def _check_data(job: Job, phase: Phase, dataset: Dataset) -> None:
    """The same positions must name the same tokens after a resume."""
    key = "data" if phase.number == 1 else f"data of phase {phase.number}"
    before = job.extra.get(key)
    if before is not None and before != dataset.fingerprint:
        folders = ", ".join(map(str, phase.config.data.folders))
        raise RunError(
            f"the tokens in {folders} are not those this run began with (fingerprint {dataset.fingerprint}, "
            f"was {before}): bring the old ones back, or begin another run."
        )
    job.set_extra({**job.extra, key: dataset.fingerprint})


def _written_before_bytes(folder: RunFolder, step_count: int) -> int:
    if step_count == 0 or not folder.events_file.exists():
        return 0
    return sum(record.bytes_written for record in read_steps(folder.events_file))


def _facts(job: Job) -> dict[str, int]:
    """What a reader of the events may want to hold the records against."""
    return {"num_parameters": sum(param.numel() for param in job.model.parameters())}
