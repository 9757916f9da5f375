import subprocess
import sys

import pytest

from openwafer.base.errors import RunError
from openwafer.base.events import EventWriter, StepRecord
from openwafer.models import num_parameters
from openwafer.train import demo
from openwafer.train.build import decoder_config
from openwafer.train.config import ModelConfig
from openwafer.train.read_config import parse_config


def record(step: int, **changes) -> StepRecord:
    fields = dict(
        step=step,
        loss=9.0 - step,
        grad_norm=1.0,
        tokens=1024,
        seconds=4.0,
        bytes_read=1 << 30,
        bytes_written=1 << 30,
        stall_s={"forward": 0.25},
        skipped=False,
        learning_rate=1e-3,
        peak_rss_bytes=1 << 30,
        schedule="layer-major",
        durable_step=step - 1,
    )
    return StepRecord(**{**fields, **changes})


def test_the_model_has_the_parameters_of_cerebras_gpt_111m():
    config = decoder_config(ModelConfig.model_validate(demo.FULL.model))
    assert num_parameters(config) >= 111_000_000
    assert demo.parse_bytes(demo.FULL.memory) < num_parameters(config) * demo.STATE_BYTES_PER_PARAMETER


@pytest.mark.parametrize("plan", [demo.FULL, demo.QUICK])
def test_the_configurations_are_valid(plan, tmp_path):
    text = demo.yaml.safe_dump(demo._config(plan, tmp_path / "shards", tmp_path / "run"))
    assert parse_config(text).tokens == 1024


def test_the_text_is_the_standard_librarys_own():
    files = demo.standard_library(300_000)
    assert len(files) > 3
    assert sum(path.stat().st_size for path in files) <= 300_000
    assert all(path.suffix == ".py" and "site-packages" not in path.parts for path in files)


def test_steps_fill_the_time_that_is_left():
    before = [record(1, seconds=9.0), record(2), record(3)]
    assert demo._steps_in_time(before, 42.0) == 3 + 10
    assert demo._steps_in_time(before, -1.0) == 3 + 4


def test_io_that_was_not_waited_for_is_hidden():
    assert demo.hidden_share([record(1, io_s=2.5), record(2, io_s=2.5)]) == (
        "90% of 5 s of disk work (4.00 GiB); waited 6.2% of the time for it"
    )
    assert demo.hidden_share([record(1)]) == "2.00 GiB moved; waited 6.2% of the time for it"


@pytest.mark.parametrize(
    ("again", "words"), [(5.0, "with the same loss to the last bit"), (5.5, "WITH ANOTHER LOSS"), (None, "no finished")]
)
def test_steps_done_twice_are_compared(tmp_path, again, words):
    path = tmp_path / "events.jsonl"
    before = [record(1), record(2), record(3), record(4)]
    with EventWriter(path) as events:
        for one in before:
            events.write(one)
        events.mark("resume", step=4 if again is None else 3)
        if again is not None:
            events.write(record(4, loss=again))
    assert words in demo._compare_repeated(before, path)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(RunError, match=r"holds 'thesis\.txt', which no demo made"):
        demo.run_demo(tmp_path)
    (tmp_path / "thesis.txt").unlink()
    (tmp_path / "run").mkdir()
    with pytest.raises(RunError, match="was not made by a demo"):
        demo.run_demo(tmp_path)
    assert (tmp_path / "run").is_dir()


@pytest.mark.slow
def test_the_quick_demo_runs(tmp_path):
    command = [sys.executable, "-m", "openwafer.cli", "demo", "--quick", "--dir", str(tmp_path / "demo")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    for part in ("kill -9 in the middle of step", "peak RSS", "curves.png"):
        assert part in done.stdout
    assert "WITH ANOTHER LOSS" not in done.stdout
    assert (tmp_path / "demo" / "run" / "curves.png").stat().st_size > 10_000
