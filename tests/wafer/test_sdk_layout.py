"""SdkLayout: regions, wires and streams of our own, against numpy; and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openwafer.base.errors import OpenwaferError
from openwafer.wafer.runtime.geometry import IntRectangle, IntVector
from openwafer.wafer.runtime.sdk_layout import (
    CodeRegion,
    Color,
    Edge,
    Route,
    RoutingPosition,
    SdkLayout,
    SdkTarget,
    get_edge_routing,
    get_platform,
)  # fmt: skip
from openwafer.wafer.runtime.sdk_runtime import SdkRuntime

STAGE = """
param a: u16; param b: u16; param add: i16; param n: u16;
const iq = @get_input_queue(2); const oq = @get_output_queue(2);
const from = @get_dsd(fabin_dsd, .{ .extent = n, .fabric_color = @get_color(a), .input_queue = iq });
const to = @get_dsd(fabout_dsd, .{ .extent = n, .fabric_color = @get_color(b), .output_queue = oq });
export var weight: [2]f32;
const id = @get_local_task_id(9);
task main() void { @fadds(to, from, @as(f32, add) + weight[1], .{ .async = true }); }
comptime {
  @bind_local_task(main, id);
  @activate(id);
  @initialize_queue(iq, .{ .color = @get_color(a) });
  if (@is_arch("wse3")) @initialize_queue(oq, .{ .color = @get_color(b) });
}
"""
IN, OUT = RoutingPosition().set_output([Route.RAMP]), RoutingPosition().set_input([Route.RAMP])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stage.csl").write_text(STAGE)


def new_layout(arch: str = "wse3") -> SdkLayout:
    return SdkLayout(get_platform(None, None, SdkTarget(arch)))


def stage(layout: SdkLayout, name: str, add: int, n: int, sides: tuple[Edge, Edge], height: int = 1) -> Any:
    """A region that adds a number to what enters at one side and leaves at the other: (region, in port, out port)."""
    region = layout.create_code_region("stage.csl", name, 1, height)
    region.set_param_all("add", add)
    region.set_param_all("n", n)
    a, b = region.color("a"), region.color("b")
    region.set_param_all(a)
    region.set_param_all(b)
    size = n * height
    return (
        region, region.create_input_port(a, sides[0], [IN], size), region.create_output_port(b, sides[1], [OUT], size),
    )  # fmt: skip


@pytest.mark.parametrize("arch", ["wse2", "wse3"])
def test_chain_with_streams_and_a_crossing(arch: str) -> None:
    """Two chains whose wires cross, two tiles high, from the host and back."""
    layout = new_layout(arch)
    n, height = 5, 2
    ends = []
    for number, (x0, y0, x1, y1) in enumerate(((1, 1, 8, 6), (1, 6, 8, 1))):
        first, enter, leave = stage(layout, f"first{number}", 10 + number, n, (Edge.LEFT, Edge.RIGHT), height)
        last, take, end = stage(layout, f"last{number}", 100, n, (Edge.LEFT, Edge.RIGHT), height)
        first.place(x0, y0)
        last.place(x1, y1)
        first.set_symbol_all("weight", np.array([[0, 1], [0, 2]], np.float32), 2, 2)
        layout.connect(leave, take)
        ends.append((layout.create_input_stream(enter), layout.create_output_stream(end)))
    runtime = SdkRuntime(layout.compile(out_prefix="out"), memcpy_required=False)
    runtime.load()
    runtime.run()
    data = np.arange(2 * n * height, dtype=np.float32).reshape(2, height, n)
    results = np.zeros_like(data)
    for number, (enter, end) in enumerate(ends):
        runtime.send(enter, data[number].ravel(), nonblock=True)
        runtime.receive(end, results[number], n * height, nonblock=True)
    runtime.stop()
    weight = np.array([1, 2], np.float32)[None, :, None]
    np.testing.assert_array_equal(results, data + np.array([110, 111], np.float32)[:, None, None] + weight)


def test_painted_ranges() -> None:
    """A multicast along a row of one region: its ends have routes of their own."""
    Path("row.csl").write_text(
        """
        param c: u16; param first: bool;
        export var got: [1]u32;
        const iq = @get_input_queue(2); const oq = @get_output_queue(2);
        const id = @get_local_task_id(9);
        const from = @get_dsd(fabin_dsd, .{ .extent = 1, .fabric_color = @get_color(c), .input_queue = iq });
        const to = @get_dsd(fabout_dsd, .{ .extent = 1, .fabric_color = @get_color(c), .output_queue = oq });
        const here = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{1} -> got[i] });
        task main() void {
          if (first) { @mov32(to, 77, .{ .async = true }); } else { @mov32(here, from, .{ .async = true }); }
        }
        comptime {
          @bind_local_task(main, id);
          @activate(id);
          @initialize_queue(iq, .{ .color = @get_color(c) });
          if (@is_arch("wse3")) @initialize_queue(oq, .{ .color = @get_color(c) });
        }
        """
    )
    layout = new_layout()
    region = layout.create_code_region("row.csl", "row", 4, 1)
    color = Color("c")
    middle = RoutingPosition().set_input([Route.WEST]).set_output([Route.RAMP, Route.EAST])
    last = RoutingPosition().set_input([Route.WEST]).set_output([Route.RAMP])
    region.paint_all(color, [middle], [get_edge_routing(Edge.RIGHT, [last])])
    region.paint(IntVector(0, 0), color, [RoutingPosition().set_input([Route.RAMP]).set_output([Route.EAST])])
    region.set_param_all(color)
    region.set_param_all("first", False)
    region.set_param_range(IntRectangle(IntVector(0, 0), IntVector(1, 1)), "first", True)
    runtime = SdkRuntime(layout.compile(), memcpy_required=False)
    runtime.load()
    runtime.run()
    runtime.stop()
    assert [int(runtime.read_symbol(x, 0, "got", np.uint32)[0]) for x in range(4)] == [0, 77, 77, 77]


def refused(pattern: str, make: Any) -> None:
    with pytest.raises(OpenwaferError, match=pattern):
        make()


def test_refusals() -> None:
    layout = new_layout()
    refused("does not exist", lambda: layout.create_code_region("none.csl", "x", 1, 1))
    refused("at least one tile", lambda: layout.create_code_region("stage.csl", "x", 0, 1))
    refused("no region", lambda: new_layout().compile())
    a, _, leave = stage(layout, "a", 1, 4, (Edge.LEFT, Edge.RIGHT))
    b, take, end = stage(layout, "b", 1, 3, (Edge.LEFT, Edge.RIGHT))
    refused('region "a" already', lambda: layout.create_code_region("stage.csl", "a", 1, 1))
    refused("is not placed", layout.compile)
    refused("first an output port", lambda: layout.connect(take, leave))
    refused("sends 4 wavelets, b.a takes 3", lambda: layout.connect(leave, take))
    refused("use the other stream", lambda: layout.create_input_stream(end))
    layout.create_output_stream(end)
    refused("connected already", lambda: layout.create_output_stream(end))
    a.place(2, 2)
    b.place(2, 2)
    refused("overlap on tile", layout.compile)
    refused("a number or a Color|give a number", lambda: a.set_param_all("n", "four"))
    refused("outside of region", lambda: a.set_param(IntVector(1, 0), "n", 4))
    refused("cannot be dealt", lambda: a.set_symbol_all("weight", np.zeros(3), 2, 2))
    b.place(1_000, 2)
    refused("beyond the fabric", layout.compile)
    refused("cmaddr", lambda: get_platform("1.2.3.4:9000"))


def test_no_way() -> None:
    """A port that a neighbour covers cannot be left."""
    layout = new_layout()
    a, _, leave = stage(layout, "a", 1, 4, (Edge.LEFT, Edge.RIGHT))
    b, take, _ = stage(layout, "b", 1, 4, (Edge.LEFT, Edge.RIGHT))
    wall: CodeRegion = layout.create_code_region("stage.csl", "wall", 1, 3)
    a.place(0, 1)
    wall.place(1, 0)
    b.place(3, 1)
    layout.connect(leave, take)
    refused("no way for a.b to b.a", layout.compile)


def test_fixed_colors_collide() -> None:
    layout = new_layout()
    region = layout.create_code_region("stage.csl", "a", 1, 1)
    for name in ("a", "b"):
        region.create_output_port(region.color(name, 5), Edge.RIGHT, [OUT], 1)
    refused("both have the value 5", layout.compile)
