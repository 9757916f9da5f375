import io

import pytest
from rich.console import Console

from openwafer.base.events import StepRecord
from openwafer.train.forecast import print_forecast
from openwafer.train.progress import LineProgress, LiveProgress, Tally, make_progress


def record(step: int, **changes) -> StepRecord:
    fields = dict(
        step=step,
        loss=2.5,
        grad_norm=1.25,
        tokens=1000,
        seconds=2.0,
        bytes_read=1 << 20,
        bytes_written=2 << 20,
        stall_s={"forward": 0.5, "gradients": 0.1},
        skipped=False,
        learning_rate=1e-3,
        peak_rss_bytes=1 << 30,
        schedule="layer-major",
        durable_step=step - 1,
    )
    return StepRecord(**{**fields, **changes})


def console(terminal: bool = False) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def test_a_terminal_gets_a_table_and_anything_else_lines():
    assert isinstance(make_progress(console(terminal=True), Tally(3)), LiveProgress)
    assert isinstance(make_progress(console(), Tally(3)), LineProgress)


def test_a_line_says_it_all():
    out = console()
    with LineProgress(out, Tally(10)) as progress:
        progress.step(record(4))
    assert out.file.getvalue() == (
        "step 4/10  loss 2.5000  500 tokens/s  stall 30.0%  read 1.00 MiB  written 2.00 MiB  peak RSS 1.00 GiB  "
        "ETA 12.0 s\n"
    )


def test_lines_come_at_most_once_in_the_interval_but_skips_notes_and_the_end_always():
    out = console()
    with LineProgress(out, Tally(5), interval_s=1000) as progress:
        progress.step(record(1))
        progress.step(record(2))
        progress.step(record(3, skipped=True, loss=float("nan"), notes=("something",)))
        progress.step(record(4))
        progress.step(record(5))
    lines = out.file.getvalue().splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 1/5", "note: something", "step 3/5", "step 5/5"]
    assert "skipped: NaN or Inf in the gradient" in lines[2]


@pytest.mark.parametrize("skipped", [False, True])
def test_the_table_shows_what_the_issue_asks_for(skipped):
    out = console(terminal=True)
    with LiveProgress(out, Tally(10, written_before_bytes=8 << 20)) as progress:
        progress.step(record(4, skipped=skipped, notes=("something [happened]",)))
        progress.say("hello")
    text = out.file.getvalue()
    loss = "skipped (NaN or Inf)" if skipped else "2.5000"
    for part in (
        "step 4/10",
        loss,
        "ETA 12.0 s",
        "500",
        "forward 25.0%, gradients 5.0%",
        "1.00 MiB",
        "10.0 MiB",
        "1.00 GiB",
        "hello",
        "something [happened]",
    ):
        assert part in text


def test_an_eta_survives_one_slow_step():
    tally = Tally(10)
    for step, seconds in ((1, 2.0), (2, 60.0), (3, 2.0)):
        tally.add(record(step, seconds=seconds))
    assert tally.remaining_s == 14.0
    assert tally.tokens_per_s == 500.0
    assert tally.bytes_written == 6 << 20


class FakeForecast:
    def rows(self):
        return [("state", "1.7 GiB on disk"), ("seconds a step", "4.2 s")]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_forecast_is_printed_row_by_row(terminal):
    out = console(terminal)
    print_forecast(FakeForecast(), out)
    text = out.file.getvalue()
    assert "What this run will take" in text
    assert "1.7 GiB on disk" in text
    assert "seconds a step" in text
