"""The loop over the real engine, on a model small enough to take a second."""

import io
import os
import signal
from pathlib import Path

import pytest
from rich.console import Console

from openwafer.base.errors import BudgetError, ConfigError, RunError, StoreFull
from openwafer.base.events import Mark, read_events, read_steps
from openwafer.data import prepare
from openwafer.pytorch import Job
from openwafer.train.generate import Sampling, generate_text
from openwafer.train.loop import fit, resume
from openwafer.train.read_config import parse_config

TEXT = """
run: {run}
model: {{vocab_size: 512, hidden_size: 32, num_layers: 2, num_heads: 2, max_positions: 64, dropout: 0.1}}
data: {{path: {shards}, sequence_length: 32, validation: 0.1}}
optimizer: {{lr: 3e-3}}
schedule: {{warmup_steps: 2}}
train: {{steps: 6, sequences: 4, micro_batches: 2}}
"""


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    source = root / "text.txt"
    source.write_text("".join(f"def f{number}(x):\n    return x + {number}\n\n\n" for number in range(400)))
    prepare([source], root / "shards", vocab_size=400)
    return root / "shards"


@pytest.fixture
def config(tmp_path, shards):
    def make(*overrides, run="run"):
        return parse_config(TEXT.format(run=tmp_path / run, shards=shards), overrides)

    return make


def quiet() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=100)


def losses(run: Path) -> list[float]:
    return [record.loss for record in read_steps(run / "events.jsonl")]


def marks(run: Path) -> list[str]:
    return [event.event for event in read_events(run / "events.jsonl") if isinstance(event, Mark)]


def test_a_run_from_its_first_step_to_its_text(config):
    console = quiet()
    run = config().run
    outcome = fit(config(), console=console)
    assert (outcome.steps_done, outcome.exit_code) == (6, 0)
    assert marks(run) == ["start", "validation", "stop"]
    steps = read_steps(run / "events.jsonl")
    assert [record.step for record in steps] == [1, 2, 3, 4, 5, 6]
    assert steps[-1].loss < steps[0].loss
    assert steps[0].learning_rate == pytest.approx(1.5e-3)
    assert "What this run will take" in console.file.getvalue()
    assert "step 6/6" in console.file.getvalue()

    with pytest.raises(RunError, match="already holds a run"):
        fit(config(), console=quiet())
    with pytest.raises(RunError, match=r"has done all its 6 steps.*train\.steps=12"):
        resume(run, console=quiet())

    pieces = []
    text = generate_text(run, "def f1(", Sampling(max_new_tokens=8, temperature=0.0), on_text=pieces.append)
    assert text.startswith("def f1(")
    assert "".join(pieces) == text
    assert losses(run) == [record.loss for record in steps], "generation leaves the run as it is"

    assert resume(run, ["train.steps=8"], console=quiet()).steps_done == 8
    assert marks(run)[-3:] == ["resume", "validation", "stop"]


def test_a_run_stopped_by_ctrl_c_ends_with_the_bits_of_one_that_was_not(config, monkeypatch):
    fit(config(run="whole"), console=quiet())
    step = Job.step

    def step_and_interrupt(job, *args, **kwargs):
        record = step(job, *args, **kwargs)
        if record.step == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return record

    monkeypatch.setattr(Job, "step", step_and_interrupt)
    console, run = quiet(), config().run
    outcome = fit(config(), console=console)
    assert (outcome.steps_done, outcome.exit_code, outcome.stopped_by) == (3, 130, signal.SIGINT)
    assert f"To go on: openwafer resume {run}" in console.file.getvalue()
    monkeypatch.undo()
    assert resume(run, console=quiet()).exit_code == 0
    assert losses(run) == losses(config(run="whole").run)


def test_an_error_of_the_store_says_what_is_safe_and_how_to_go_on(config, monkeypatch):
    step = Job.step

    def step_or_full(job, *args, **kwargs):
        if job.step_count == 3:
            raise StoreFull("no space left")
        return step(job, *args, **kwargs)

    monkeypatch.setattr(Job, "step", step_or_full)
    with pytest.raises(StoreFull) as caught:
        fit(config(), console=quiet())
    (note,) = caught.value.__notes__
    assert f"To go on: openwafer resume {config().run}" in note
    monkeypatch.undo()
    assert resume(config().run, console=quiet()).steps_done == 6


def test_a_dry_run_leaves_nothing_behind(config, tmp_path):
    console = quiet()
    fit(config(), dry_run=True, console=console)
    assert "What this run will take" in console.file.getvalue()
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_could_not_start_is_not_in_the_way(config, monkeypatch):
    def refuse(*args, **kwargs):
        raise ConfigError("too small")

    monkeypatch.setattr("openwafer.train.loop.compile", refuse)
    with pytest.raises(ConfigError, match="too small"):
        fit(config(), console=quiet())
    monkeypatch.undo()
    assert fit(config("train.steps=1"), console=quiet()).steps_done == 1


def test_a_run_refused_at_its_first_step_is_not_in_the_way_either(config, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise BudgetError("too small")

    monkeypatch.setattr(Job, "step", refuse)
    with pytest.raises(BudgetError, match="too small") as caught:
        fit(config(), console=quiet())
    assert not hasattr(caught.value, "__notes__")
    assert list(tmp_path.iterdir()) == []


def test_a_vocabulary_that_does_not_fit_is_refused_before_anything_is_made(config, tmp_path):
    with pytest.raises(ConfigError, match=r"set model\.vocab_size=\d+ or more"):
        fit(config("model.vocab_size=16"), console=quiet())
    assert list(tmp_path.iterdir()) == []


def test_other_data_under_the_same_name_is_refused(config, tmp_path):
    for number, text in enumerate(("one two three four five " * 200, "six seven eight nine ten " * 200)):
        (tmp_path / f"{number}.txt").write_text(text)
        prepare([tmp_path / f"{number}.txt"], tmp_path / f"shards{number}", vocab_size=300)
    data = f"data.path={tmp_path / 'shards'}"
    (tmp_path / "shards0").rename(tmp_path / "shards")
    fit(config(data, "train.steps=2"), console=quiet())
    (tmp_path / "shards").rename(tmp_path / "old")
    (tmp_path / "shards1").rename(tmp_path / "shards")
    with pytest.raises(RunError, match="are not those this run began with"):
        resume(config().run, ["train.steps=4"], console=quiet())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # protobuf's and tensorboard's own, at import
def test_tensorboard_is_written_on_request(config):
    pytest.importorskip("tensorboard")
    fit(config("log.tensorboard=true", "train.steps=1"), console=quiet())
    assert list((config().run / "tensorboard").glob("events.out.*"))
