import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openwafer.base.errors import RunError
from openwafer.base.events import EventWriter, Mark, StepRecord, read_events, read_steps


def record(step: int = 1, **changes) -> StepRecord:
    fields = {
        "step": step,
        "loss": 2.5,
        "grad_norm": 1.25,
        "tokens": 1024,
        "seconds": 4.0,
        "bytes_read": 10,
        "bytes_written": 20,
        "stall_s": {"forward": 0.5, "commit": 0.25},
        "skipped": False,
        "learning_rate": 1e-3,
        "peak_rss_bytes": 1 << 30,
        "schedule": "layer-major",
        "durable_step": step - 1,
        "notes": ("a note",),
        "io_s": 1.5,
    }
    return StepRecord(**{**fields, **changes})


def write(path, *records):
    with EventWriter(path) as events:
        for one in records:
            events.write(one)


def test_what_is_written_is_read_back_equal(tmp_path):
    path = tmp_path / "run" / "events.jsonl"
    records = [record(1), record(2, grad_norm=None, learning_rate=None, io_s=None, notes=())]
    write(path, *records)
    assert read_events(path) == records


@given(loss=st.floats(allow_nan=False), norm=st.none() | st.floats(allow_nan=False))
def test_every_float_survives_to_the_bit(tmp_path_factory, loss, norm):
    path = tmp_path_factory.mktemp("events") / "events.jsonl"
    write(path, record(loss=loss, grad_norm=norm))
    (back,) = read_steps(path)
    assert (back.loss, back.grad_norm) == (loss, norm)


def test_nan_is_still_json(tmp_path):
    path = tmp_path / "events.jsonl"
    write(path, record(loss=math.nan, grad_norm=math.inf, skipped=True))
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    (back,) = read_steps(path)
    assert math.isnan(back.loss)
    assert back.grad_norm == math.inf


def test_a_line_is_in_the_file_as_soon_as_it_is_written(tmp_path):
    path = tmp_path / "events.jsonl"
    events = EventWriter(path)
    events.write(record())
    assert len(read_steps(path)) == 1
    events.close()
    events.close()


@pytest.mark.parametrize("keep", [1, 10, 100])
def test_a_torn_last_line_is_left_out_and_cut_on_reopening(tmp_path, keep):
    path = tmp_path / "events.jsonl"
    write(path, record(1), record(2))
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:keep])
    assert [one.step for one in read_steps(path)] == [1, 2]
    write(path, record(3))
    assert path.read_bytes().startswith(whole)
    assert [one.step for one in read_steps(path)] == [1, 2, 3]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"x" * 200_000)
    assert read_events(path) == []
    EventWriter(path).close()
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("garbage", "Expecting value"),
        ("[1, 2]", "a list, not an object"),
        ('{"step": 1}', "without bytes_read"),
        (json.dumps({**record().to_json(), "loss": None}), "float"),
        (json.dumps({**record().to_json(), "stall_s": 3}), "items"),
    ],
)
def test_other_garbage_is_an_error_with_its_line(tmp_path, line, reason):
    path = tmp_path / "events.jsonl"
    write(path, record())
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RunError, match=rf"events\.jsonl:2: not an event \(.*{reason}"):
        read_events(path)


def test_no_file_is_an_error_that_says_where_it_comes_from(tmp_path):
    with pytest.raises(RunError, match=r"cannot read the events .*No such file.*RUN/events\.jsonl"):
        read_events(tmp_path / "events.jsonl")


def test_of_a_step_done_twice_the_later_counts(tmp_path):
    path = tmp_path / "events.jsonl"
    with EventWriter(path) as events:
        events.write(record(1))
        events.write(record(2, loss=9.0))
        events.mark("resume", step=1)
        events.write(record(2, loss=2.0))
    assert [(one.step, one.loss) for one in read_steps(path)] == [(1, 2.5), (2, 2.0)]
    assert read_events(path)[2] == Mark("resume", {"step": 1})


def test_fields_of_a_newer_writer_are_left_out(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(json.dumps({**record().to_json(), "invented": 1}) + "\n")
    assert read_steps(path) == [record()]


def test_a_record_does_not_change_with_what_it_was_made_from():
    stalls = {"forward": 1.0}
    one = record(stall_s=stalls)
    stalls["forward"] = 2.0
    assert one.stall_s == {"forward": 1.0}
    assert one.stalled_s == 1.0
    assert one.tokens_per_s == 256.0
