import struct
import subprocess
import sys

import pytest

from openwafer.base.errors import RunError
from openwafer.base.events import EventWriter, StepRecord
from openwafer.view import run_view
from openwafer.view.curves import _smoothed


def record(step: int, **changes) -> StepRecord:
    fields = dict(
        step=step,
        loss=9.0 - 0.01 * step,
        grad_norm=1.0,
        tokens=1024,
        seconds=4.0 + 0.1 * (step % 3),
        bytes_read=1 << 30,
        bytes_written=1 << 30,
        stall_s={"forward": 0.25, "commit": 0.0},
        skipped=False,
        learning_rate=1e-3,
        peak_rss_bytes=1 << 30,
        schedule="layer-major",
        durable_step=step - 1,
    )
    return StepRecord(**{**fields, **changes})


def write(run, records, resumed_after=()):
    with EventWriter(run / "events.jsonl") as events:
        events.mark("start", step=0)
        for one in records:
            if one.step - 1 in resumed_after:
                events.mark("resume", step=one.step - 1)
            events.write(one)
            events.mark("validation", step=one.step, loss=one.loss)


def size_of(png) -> tuple[int, int]:
    data = png.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    return struct.unpack(">II", data[16:24])


@pytest.mark.parametrize(
    ("records", "resumed_after"),
    [
        ([record(1)], ()),
        ([record(step) for step in range(1, 41)], (17,)),
        ([record(step, skipped=step == 9, loss=float("nan") if step == 9 else 5.0) for step in range(1, 30)], ()),
        ([record(1, skipped=True, loss=float("nan"))], ()),
        ([record(1, seconds=0.0, stall_s={})], ()),
        (
            [record(step, stall_s=dict.fromkeys("abcdefgh", 0.1)) for step in range(1, 400)],
            (10, 20, 30, 40, 50, 60, 70, 80),
        ),
    ],
)
def test_any_run_gives_a_picture(tmp_path, records, resumed_after):
    write(tmp_path, records, resumed_after)
    png = run_view(tmp_path)
    assert png == tmp_path / "curves.png"
    width, height = size_of(png)
    assert (width, height) == (1200, 1128)


def test_the_picture_goes_where_it_is_wanted(tmp_path):
    write(tmp_path, [record(1), record(2)])
    out = tmp_path / "elsewhere" / "picture.png"
    assert run_view(tmp_path, out) == out
    assert out.exists()
    assert not (tmp_path / "curves.png").exists()


def test_a_run_without_a_step_is_told_to_wait(tmp_path):
    write(tmp_path, [])
    with pytest.raises(RunError, match="holds no step yet"):
        run_view(tmp_path)


def test_drawing_needs_no_pyplot_and_no_torch():
    code = "import sys, openwafer.view; print({'torch', 'matplotlib.pyplot'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"


def test_smoothing_neither_lags_nor_changes_a_line():
    line = [float(number) for number in range(200)]
    assert _smoothed(line) == pytest.approx(line)
    assert _smoothed([3.0]) == [3.0]
