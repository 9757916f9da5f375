"""Pictures of traces and fabrics: from files made here, with no simulator."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from openwafer.base.errors import RunError
from openwafer.view.fabric import draw_fabric
from openwafer.view.page import fabric_page, trace_page
from openwafer.view.wafer_picture import chosen_pes, draw_trace
from openwafer.view.wafer_trace import read_trace

FABRIC = {
    "version": 1, "arch": "wse2", "size": [2, 1], "fabric": [2, 1], "offset": [0, 0], "params": {},
    "programs": [{"name": "pe.csl</script>", "pes": 2, "code_bytes": 4, "data_bytes": 4, "free_bytes": 49144,
                  "variables": [], "functions": [], "tasks": [], "input_queues": [], "output_queues": []}],
    "program_of": [[0, 0]],
    "colors": [{"color": 3, "routes": [[0, 0, 0], [1, 0, 1]], "shapes": [
        {"positions": [[["RAMP"], ["EAST"]], None], "start": 0, "notes": ["ring"]},
        {"positions": [[["WEST"], ["RAMP"]]], "start": 0, "notes": []},
    ]}],
}  # fmt: skip


def write(path, size=(3, 2), slices=5, **changes):
    """A trace in which everything is half busy and one link is full."""
    width, height = size
    meta = {"version": 1, "arch": "wse2", "width": width, "height": height, "programs": ["pe.csl"], "names": ["f", "q"],
            "watched": [[0, 0]]}  # fmt: skip
    meta.update(changes)
    links = np.zeros((slices, height, width, 4), np.uint32)
    links[:, 0, 0, 2] = 100
    np.savez_compressed(
        path, meta=np.frombuffer(json.dumps(meta).encode(), np.uint8), cycles=100 * np.arange(slices + 1),
        busy=np.full((slices, height, width), 50, np.uint32), links=links, program=np.zeros((height, width), np.int32),
        events=np.array([[0, 0, 8, 0, 10, 90], [0, 0, 8, 2, 20, 30]]), event_names=np.array([0, 1], np.int32),
    )  # fmt: skip
    return path


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (70, 2)])
def test_a_trace_is_drawn(tmp_path, size):
    trace = read_trace(write(tmp_path / "t.npz", size))
    draw_trace(trace, tmp_path / "t.png", "a trace")
    trace_page(trace, tmp_path / "t.html", "a <trace>")
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "t.html").read_text()
    assert "a &lt;trace>" in page
    assert "{{" not in page
    assert "src=" not in page


def test_shares_and_joined_slices(tmp_path):
    trace = read_trace(write(tmp_path / "t.npz"))
    assert trace.activity().mean() == 0.5
    assert trace.traffic().max() == 1.0
    joined = trace.joined(2)
    assert joined.cycles.tolist() == [0, 300, 500]
    assert joined.activity().mean() == 0.5
    part = trace.between(150, 210)
    assert part.cycles.tolist() == [100, 200, 300]
    assert len(part.events) == 0
    assert len(replace(part, events=trace.events).events) == 2


def test_pes_are_chosen_by_name(tmp_path):
    trace = read_trace(write(tmp_path / "t.npz"))
    assert chosen_pes(trace, "0,0") == [(0, 0)]
    assert chosen_pes(trace, "") is None
    with pytest.raises(RunError, match="no events of PE 2,1; it has those of 0,0"):
        chosen_pes(trace, "2,1")


def test_what_is_no_trace_is_refused(tmp_path):
    with pytest.raises(RunError, match="does not exist; record it with OPENWAFER_TRACE="):
        read_trace(tmp_path / "none.npz")
    (tmp_path / "bad.npz").write_bytes(b"PK nothing")
    with pytest.raises(RunError, match=r"is no trace, or a damaged one"):
        read_trace(tmp_path / "bad.npz")
    with pytest.raises(RunError, match="has version 7, this program reads 1"):
        read_trace(write(tmp_path / "t.npz", version=7))
    with pytest.raises(RunError, match="is empty: the program was loaded and never ran"):
        read_trace(write(tmp_path / "t.npz", slices=0))


def test_a_fabric_is_drawn(tmp_path):
    draw_fabric(FABRIC, tmp_path / "f.png", "a program")
    fabric_page(FABRIC, tmp_path / "f.html", "a program")
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"
    page = (tmp_path / "f.html").read_text()
    data = page.partition('id="data">')[2].partition("</script>")[0]
    assert json.loads(data) == FABRIC
