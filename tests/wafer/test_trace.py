"""Traces: slices add up to the engine's own counts, events are where the program says, tracing changes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from openwafer.view.wafer_trace import read_trace
from openwafer.wafer.runtime.sdk_runtime import RuntimeFailure, SdkRuntime
from openwafer.wafer.sim import trace as trace_module
from openwafer.wafer.sim.trace import TraceError, TracingEngine, a_few, parse_pes
from tests.wafer.programs import build, get, put

# PE 0 sends its vector east, PE 1 adds it to its own; both end.
BODY = """
const N: i16 = 40;
var a = @zeros([N]f32); const a_ptr: [*]f32 = &a;
const line = @get_color(3);
const iq = @get_input_queue(2);
const oq = @get_output_queue(3);
const in = @get_dsd(fabin_dsd, .{ .extent = N, .fabric_color = line, .input_queue = iq });
const out = @get_dsd(fabout_dsd, .{ .extent = N, .fabric_color = line, .output_queue = oq });
const mine = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{N} -> a[i] });
const done_id = @get_local_task_id(9);
task done() void { sys.unblock_cmd_stream(); }
fn run() void {
  var i: i16 = 0;
  while (x == 0 and i < 20) { i += 1; } // PE 1 has to wait
  if (x == 0) { @fmovs(out, mine, .{ .async = true, .activate = done_id }); }
  else { @fadds(mine, mine, in, .{ .async = true, .activate = done_id }); }
}
comptime {
  @bind_local_task(done, done_id);
  if (@is_arch("wse3")) { @initialize_queue(iq, .{ .color = line }); @initialize_queue(oq, .{ .color = line }); }
  @export_symbol(a_ptr, "a"); @export_symbol(run);
}
"""
ROUTES = """
const line = @get_color(3);
@set_color_config(0, 0, line, .{ .routes = .{ .rx = .{RAMP}, .tx = .{EAST} } });
@set_color_config(1, 0, line, .{ .routes = .{ .rx = .{WEST}, .tx = .{RAMP} } });
"""
EXPORTS = '@export_name("a", [*]f32, true); @export_name("run", fn()void);'


def traced_run(folder, launches=1, **options):
    build(folder, BODY, EXPORTS, width=2, routes=ROUTES, **options)
    runtime = SdkRuntime(folder / "out")
    runtime.load(folder / "trace.npz")
    runtime.run()
    put(runtime, "a", np.ones(40, np.float32))
    for _ in range(launches):
        runtime.launch("run")
    runtime.save_trace()
    return runtime, read_trace(folder / "trace.npz")


@pytest.mark.parametrize("arch", ["wse2", "wse3"])
def test_slices_add_up(tmp_path, arch):
    runtime, trace = traced_run(tmp_path, arch=arch)
    stats = runtime._engine.stats()
    np.testing.assert_array_equal(trace.busy.sum(0), stats.busy_cycles)
    np.testing.assert_array_equal(trace.links.sum(0), stats.link_wavelets)
    assert trace.links.sum() == trace.links[:, 0, 0, 2].sum() == 40
    assert trace.cycles[0] == 0
    assert trace.cycles[-1] == runtime.cycle
    assert (trace.busy <= trace.lengths[:, None, None]).all()


def test_a_trace_changes_nothing(tmp_path):
    runtime, _ = traced_run(tmp_path)
    plain = SdkRuntime(tmp_path / "out")
    plain.load()
    plain.run()
    put(plain, "a", np.ones(40, np.float32))
    plain.launch("run")
    assert plain.cycle == runtime.cycle
    np.testing.assert_array_equal(get(plain, "a", 40, x=1), get(runtime, "a", 40, x=1))


def test_slices_are_joined_when_there_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_module, "MAX_SLICES", 16)
    runtime, trace = traced_run(tmp_path, launches=12)
    assert len(trace.busy) <= 32
    np.testing.assert_array_equal(trace.busy.sum(0), runtime._engine.stats().busy_cycles)
    assert len(set(trace.lengths[:-1].tolist())) == 1


def test_events_tell_what_threads_did(tmp_path, monkeypatch):
    _, trace = traced_run(tmp_path)
    assert trace.watched == [(0, 0), (1, 0)]
    rows = [(*row, trace.names[name]) for row, name in zip(trace.events.tolist(), trace.event_names, strict=True)]
    tasks = [(row[0], row[-1].split()[0]) for row in rows if row[3] == 0]
    assert sorted(tasks) == [(0, "done"), (0, "run"), (1, "done"), (1, "run")]
    (adding,) = [row for row in rows if row[0] == 1 and row[3] == 1]
    assert adding[2] == 2  # the microthread of input queue 2
    assert adding[-1].startswith("fadds pe.csl:")
    assert adding[5] - adding[4] > 40
    stalls = [row for row in rows if row[0] == 1 and row[3] == 2]
    assert stalls[0][-1] == "a data wavelet of color 3 in input queue 2"
    assert all(adding[4] <= row[4] < row[5] <= adding[5] for row in stalls)


def test_a_deadlock_leaves_a_trace(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENWAFER_TRACE", str(tmp_path / "trace.npz"))
    monkeypatch.setenv("OPENWAFER_TRACE_PES", "1,0")
    build(tmp_path, BODY, EXPORTS, width=2, routes=ROUTES.replace("tx = .{EAST}", "tx = .{RAMP}"))
    runtime = SdkRuntime(tmp_path / "out")
    runtime.load()
    runtime.run()
    with pytest.raises(RuntimeFailure, match="deadlock"):
        runtime.launch("run")
    engine = runtime._engine
    assert isinstance(engine, TracingEngine)
    engine._finish()  # what the end of the process does
    trace = read_trace(tmp_path / "trace.npz")
    assert trace.watched == [(1, 0)]
    assert trace.events[:, 5].max() == trace.cycles[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [("1", "names no PE; expected x,y"), ("0,5", "x is 0 to 1, y is 0 to 0"), ("a,b", "names no PE")],
)
def test_pes_of_a_trace(text, message):
    with pytest.raises(TraceError, match=message):
        parse_pes(text, (2, 1))


def test_which_pes_are_watched():
    assert parse_pes("all", (2, 1)) == [(0, 0), (1, 0)]
    assert parse_pes(" ", (2, 1)) is None
    assert a_few((9, 5)) == [(0, 0), (8, 0), (4, 2), (0, 4), (8, 4)]
    assert a_few((8, 1)) == [(0, 0), (7, 0), (4, 0)]
