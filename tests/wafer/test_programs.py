"""Programs from source to result, against numpy."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from openwafer.wafer.runtime.debug import debug_util
from openwafer.wafer.runtime.sdk_runtime import RuntimeFailure
from openwafer.wafer.sim.engine import SimulationError
from tests.wafer.programs import build, get, put, start

ARCHITECTURES = pytest.mark.parametrize("arch", ["wse2", "wse3"])
ARRAYS = "var a = @zeros([N]f32); var b = @zeros([N]f32); const a_ptr: [*]f32 = &a; var b_ptr: [*]f32 = &b;"
EXPORTS = '@export_name("a", [*]f32, true); @export_name("b", [*]f32, true); @export_name("run", fn()void);'
COMPTIME = 'comptime { @export_symbol(a_ptr, "a"); @export_symbol(b_ptr, "b"); @export_symbol(run); }'


@ARCHITECTURES
def test_scalar_code(tmp_path, arch):
    body = f"""
    const N: i16 = 12;
    {ARRAYS}
    fn collatz(start: u32) u32 {{
      var n = start;
      var steps: u32 = 0;
      while (n != 1) : (steps += 1) {{
        if (n % 2 == 0) {{ n = n / 2; }} else {{ n = 3 * n + 1; }}
      }}
      return steps;
    }}
    fn run() void {{
      for (@range(i16, N)) |i| {{
        const whole = @as(u32, a[i]);
        b[i] = @as(f32, collatz(whole)) + (if (whole > 5 and whole < 9) @as(f32, 0.5) else -1.0);
      }}
      sys.unblock_cmd_stream();
    }}
    {COMPTIME}
    """
    build(tmp_path, body, EXPORTS, arch=arch)
    runtime = start(tmp_path)
    values = np.arange(1, 13, dtype=np.float32)
    put(runtime, "a", values)
    runtime.launch("run")
    assert get(runtime, "b", 12).tolist() == [_collatz(int(v)) + (0.5 if 5 < v < 9 else -1) for v in values]


def _collatz(n: int) -> int:
    steps = 0
    while n != 1:
        n = n // 2 if n % 2 == 0 else 3 * n + 1
        steps += 1
    return steps


@ARCHITECTURES
@pytest.mark.parametrize(
    ("operation", "expected"),
    [
        ("@fadds(y, y, x1);", lambda a, b: a + b),
        ("@fsubs(y, x1, y);", lambda a, b: a - b),
        ("@fmuls(y, y, 3.0);", lambda a, b: b * np.float32(3)),
        ("@fmaxs(y, y, x1);", np.maximum),
        ("@fnegs(y, x1);", lambda a, b: -a),
        ("@fabss(y, x1);", lambda a, b: np.abs(a)),
        ("@fmovs(y, x1);", lambda a, b: a),
        ("@fadds(y, y, @increment_dsd_offset(rev, -2, f32));", lambda a, b: b + np.roll(a[::-1], -2)),
    ],
)
def test_vector_operations(tmp_path, arch, operation, expected):
    body = f"""
    const N: i16 = 9;
    {ARRAYS}
    const x1 = @get_dsd(mem1d_dsd, .{{ .tensor_access = |i|{{N}} -> a[i] }});
    const rev = @get_dsd(mem1d_dsd, .{{ .tensor_access = |i|{{N - 2}} -> a[N - 1 - i] }});
    const y = @get_dsd(mem1d_dsd, .{{ .base_address = &b, .extent = N }});
    fn run() void {{ {operation} sys.unblock_cmd_stream(); }}
    {COMPTIME}
    """
    build(tmp_path, body, EXPORTS, arch=arch)
    runtime = start(tmp_path)
    rng = np.random.default_rng(3)
    a, b = rng.standard_normal((2, 9)).astype(np.float32)
    put(runtime, "a", a)
    put(runtime, "b", b)
    runtime.launch("run")
    count = 7 if "rev" in operation else 9
    np.testing.assert_array_equal(get(runtime, "b", 9)[:count], expected(a, b)[:count])


def test_multiply_add_rounds_product_and_sum(tmp_path):
    body = f"""
    const N: i16 = 64;
    {ARRAYS}
    const x1 = @get_dsd(mem1d_dsd, .{{ .tensor_access = |i|{{N}} -> a[i] }});
    const y = @get_dsd(mem1d_dsd, .{{ .tensor_access = |i|{{N}} -> b[i] }});
    fn run() void {{ @fmacs(y, y, x1, 1.1); sys.unblock_cmd_stream(); }}
    {COMPTIME}
    """
    build(tmp_path, body, EXPORTS)
    runtime = start(tmp_path)
    a, b = np.random.default_rng(4).standard_normal((2, 64)).astype(np.float32)
    put(runtime, "a", a)
    put(runtime, "b", b)
    runtime.launch("run")
    np.testing.assert_array_equal(get(runtime, "b", 64), b + a * np.float32(1.1))


@ARCHITECTURES
def test_a_row_hands_sums_on(tmp_path, arch):
    """Every PE adds its vector to what comes from the west and sends it east: a chained reduce."""
    body = f"""
    const N: i16 = 20;
    param width: i16 = 4;
    {ARRAYS}
    const east: color = if (x % 2 == 0) @get_color(2) else @get_color(3);
    const west: color = if (x % 2 == 0) @get_color(3) else @get_color(2);
    const iq = @get_input_queue(2);
    const oq = @get_output_queue(3);
    const mine = @get_dsd(mem1d_dsd, .{{ .tensor_access = |i|{{N}} -> a[i] }});
    const sum = @get_dsd(mem1d_dsd, .{{ .tensor_access = |i|{{N}} -> b[i] }});
    const in = @get_dsd(fabin_dsd, .{{ .extent = N, .fabric_color = west, .input_queue = iq }});
    const out = @get_dsd(fabout_dsd, .{{ .extent = N, .fabric_color = east, .output_queue = oq }});
    const done_id = @get_local_task_id(9);
    task done() void {{ sys.unblock_cmd_stream(); }}
    fn run() void {{
      if (x == 0) {{
        @fmovs(out, mine, .{{ .async = true, .activate = done }});
      }} else if (x == 3) {{
        @fadds(sum, mine, in, .{{ .async = true, .activate = done_id }});
      }} else {{
        @fadds(out, mine, in, .{{ .async = true, .activate = done }});
      }}
    }}
    comptime {{
      @bind_local_task(done, done_id);
      if (@is_arch("wse3")) {{
        @initialize_queue(iq, .{{ .color = west }});
        @initialize_queue(oq, .{{ .color = east }});
      }}
      if (x < 3) @set_local_color_config(east, .{{ .routes = .{{ .rx = .{{RAMP}}, .tx = .{{EAST}} }} }});
      if (x > 0) @set_local_color_config(west, .{{ .routes = .{{ .rx = .{{WEST}}, .tx = .{{RAMP}} }} }});
    }}
    {COMPTIME}
    """
    build(tmp_path, body, EXPORTS, width=4, arch=arch)
    runtime = start(tmp_path)
    parts = np.random.default_rng(5).standard_normal((4, 20)).astype(np.float32)
    for x in range(4):
        put(runtime, "a", parts[x], x)
    runtime.launch("run")
    expected = parts[3] + (parts[2] + (parts[1] + parts[0]))
    np.testing.assert_array_equal(get(runtime, "b", 20, x=3), expected)


def test_fifo_and_data_task(tmp_path):
    """Wavelets to oneself: a data task doubles them into a FIFO that an asynchronous move empties."""
    body = f"""
    const N: i16 = 16;
    {ARRAYS}
    const loop = @get_color(5);
    const oq = @get_output_queue(2);
    const out = @get_dsd(fabout_dsd, .{{ .extent = N, .fabric_color = loop, .output_queue = oq }});
    const mine = @get_dsd(mem1d_dsd, .{{ .tensor_access = |i|{{N}} -> a[i] }});
    const theirs = @get_dsd(mem1d_dsd, .{{ .tensor_access = |i|{{N}} -> b[i] }});
    var buffer = @zeros([3]f32);
    const fifo = @allocate_fifo(buffer);
    const done_id = @get_local_task_id(9);
    const take_id = @get_data_task_id(loop);
    var received: i16 = 0;
    task take(value: f32) void {{
      b[received] = value + value;
      received += 1;
      if (received == N) sys.unblock_cmd_stream();
    }}
    fn run() void {{ @fmovs(fifo, mine, .{{ .async = true }}); @fmovs(out, fifo, .{{ .async = true }}); }}
    comptime {{
      @bind_data_task(take, take_id);
      @set_local_color_config(loop, .{{ .routes = .{{ .rx = .{{RAMP}}, .tx = .{{RAMP}} }} }});
    }}
    {COMPTIME}
    """
    build(tmp_path, body, EXPORTS)
    runtime = start(tmp_path)
    a = np.arange(16, dtype=np.float32)
    put(runtime, "a", a)
    runtime.launch("run")
    np.testing.assert_array_equal(get(runtime, "b", 16), 2 * a)


def test_printing_goes_to_the_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = """
    const print = @import_module("<simprint>");
    fn run(n: u16) void { print.print_string("n = "); print.print_u16_decimal(n); print.print_string("\\n");
      sys.unblock_cmd_stream(); }
    comptime { @export_symbol(run); }
    """
    build(tmp_path, body, '@export_name("run", fn(u16)void);')
    runtime = start(tmp_path)
    runtime.launch("run", np.uint16(41))
    runtime.stop()
    assert (tmp_path / "sim.log").read_text().strip().endswith("P0.0: n = 41")


def test_a_deadlock_names_who_waits(tmp_path):
    body = f"""
    const N: i16 = 4;
    {ARRAYS}
    const never = @get_color(7);
    const in = @get_dsd(fabin_dsd, .{{ .extent = N, .fabric_color = never, .input_queue = @get_input_queue(1) }});
    const theirs = @get_dsd(mem1d_dsd, .{{ .tensor_access = |i|{{N}} -> b[i] }});
    fn run() void {{ @fmovs(theirs, in); sys.unblock_cmd_stream(); }}
    {COMPTIME}
    """
    build(tmp_path, body, EXPORTS)
    runtime = start(tmp_path)
    waits = r"deadlock.*\n.*PE \(0, 0\) main waits for a data wavelet of color 7.*pe\.csl:"
    with pytest.raises(RuntimeFailure, match=waits):
        runtime.launch("run")


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("b[0] = @as(f32, 7 / n);", "DivideByZero"),
        ("b_ptr[@bitcast(u16, n) + 20000] = 1.0;", "BadAddress"),
        ('@assert(n > 0, "n is positive");', "Assertion.*n is positive"),
    ],
)
def test_errors_at_run_time_name_the_line(tmp_path, statement, kind):
    body = f"""
    const N: i16 = 4;
    {ARRAYS}
    var n: i16 = 0;
    fn run() void {{ {statement} sys.unblock_cmd_stream(); }}
    {COMPTIME}
    """
    build(tmp_path, body, EXPORTS)
    runtime = start(tmp_path)
    with pytest.raises(SimulationError, match=rf"pe\.csl:\d+:\d+: {kind}"):
        runtime.launch("run")


@ARCHITECTURES
def test_a_control_wavelet_turns_a_switch(tmp_path, arch):
    """PE 0 sends a word, a SWITCH_ADV, a word: the switch of PE 1 keeps the first and passes the second on."""
    body = """
    const N: i16 = 1;
    const control = @import_module("<control>");
    var got = @zeros([1]u32);
    const got_ptr: [*]u32 = &got;
    const line = @get_color(4);
    const iq = @get_input_queue(2);
    const oq = @get_output_queue(2);
    const out = @get_dsd(fabout_dsd, .{ .extent = 1, .fabric_color = line, .output_queue = oq });
    const turn = @get_dsd(fabout_dsd, .{ .extent = 1, .fabric_color = line, .output_queue = oq, .control = true });
    const take_id: data_task_id = if (@is_arch("wse3")) @get_data_task_id(iq) else @get_data_task_id(line);
    task take(word: u32) void { got[0] += word; }
    fn run() void {
      if (x == 0) {
        @mov32(out, 41);
        @mov32(turn, control.encode_single_payload(control.opcode.SWITCH_ADV, true, {}, 0));
        @mov32(out, 42);
      }
      sys.unblock_cmd_stream();
    }
    comptime {
      @bind_data_task(take, take_id);
      if (@is_arch("wse3")) { @initialize_queue(iq, .{ .color = line }); @initialize_queue(oq, .{ .color = line }); }
      @export_symbol(got_ptr, "got");
      @export_symbol(run);
    }
    """
    routes = """
    const line = @get_color(4);
    @set_color_config(0, 0, line, .{ .routes = .{ .rx = .{RAMP}, .tx = .{EAST} } });
    const turned = .{ .pos1 = .{ .tx = EAST } };
    @set_color_config(1, 0, line, .{ .routes = .{ .rx = .{WEST}, .tx = .{RAMP} }, .switches = turned });
    @set_color_config(2, 0, line, .{ .routes = .{ .rx = .{WEST}, .tx = .{RAMP} } });
    """
    exports = '@export_name("got", [*]u32, true); @export_name("run", fn()void);'
    build(tmp_path, body, exports, width=3, routes=routes, arch=arch)
    runtime = start(tmp_path)
    runtime.launch("run")
    assert [int(get(runtime, "got", 1, np.uint32, x)[0]) for x in range(3)] == [0, 41, 42]


def test_a_trace_is_read_after_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    body = """
    const trace = @import_module("<debug>", .{ .key = "mine", .buffer_size = 40 });
    fn run() void {
      trace.trace_string("hello"); trace.trace_i16(-3); trace.trace_u32(70000); trace.trace_f32(1.5);
      sys.unblock_cmd_stream();
    }
    comptime { @export_symbol(run); }
    """
    build(tmp_path, body, '@export_name("run", fn()void);')
    runtime = start(tmp_path)
    runtime.launch("run")
    runtime.stop()
    assert debug_util(str(tmp_path / "out")).read_trace(0, 0, "mine") == ["hello", -3, 70000, 1.5]


def test_cslc_and_cs_python(tmp_path):
    """The two commands, as a user calls them."""
    body = "fn run() void { sys.unblock_cmd_stream(); }\ncomptime { @export_symbol(run); }"
    build(tmp_path, body, '@export_name("run", fn()void);')
    script = tmp_path / "host.py"
    script.write_text(
        "from cerebras.sdk.runtime.sdkruntimepybind import SdkRuntime\n"
        "runner = SdkRuntime('made'); runner.load(); runner.run(); runner.launch('run'); runner.stop()\n"
        "print('SUCCESS')\n"
    )
    compiler = [sys.executable, "-m", "openwafer.wafer.cli_cslc", "layout.csl", "-o=made", "--arch", "wse3", "--memcpy"]
    subprocess.run([*compiler, "--fabric-dims=8,3", "--fabric-offsets=4,1"], cwd=tmp_path, check=True)
    small = subprocess.run([*compiler, "--fabric-dims=7,3"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert small.returncode == 1
    assert "--fabric-dims=7,3 is too small" in small.stderr
    host = [sys.executable, "-m", "openwafer.wafer.cli_cs_python", "host.py"]
    done = subprocess.run(host, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "SUCCESS\n"


@ARCHITECTURES
def test_pairs_of_halves_in_a_wavelet(tmp_path, arch):
    """simd_32: eight halves leave in four wavelets, and arrive as the memory they came from."""
    body = """
    const c = @get_color(3);
    const iq = @get_input_queue(3);
    const oq = @get_output_queue(3);
    const to = @get_dsd(fabout_dsd, .{
      .extent = 8, .fabric_color = c, .output_queue = oq, .simd_mode = .{ .simd_32 = true },
    });
    const from = @get_dsd(fabin_dsd, .{ .extent = 4, .fabric_color = c, .input_queue = iq });
    var a = @zeros([4]u32);
    var b = @zeros([4]u32);
    var a_ptr: [*]u32 = &a;
    var b_ptr: [*]u32 = &b;
    var halves: [*]u16 = @ptrcast([*]u16, &a);
    const words = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{4} -> b[i] });
    var plain = @zeros([8]u16);
    const of_halves = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{8} -> plain[i] });
    fn run() void {
      if (x == 0) {
        @mov16(to, @set_dsd_base_addr(of_halves, halves));
      } else {
        @mov32(words, from);
      }
      sys.unblock_cmd_stream();
    }
    comptime {
      @initialize_queue(iq, .{ .color = c });
      if (@is_arch("wse3")) @initialize_queue(oq, .{ .color = c });
      @export_symbol(a_ptr, "a");
      @export_symbol(b_ptr, "b");
      @export_symbol(run);
    }
    """
    routes = """
    @set_color_config(0, 0, @get_color(3), .{ .routes = .{ .rx = .{RAMP}, .tx = .{EAST} } });
    @set_color_config(1, 0, @get_color(3), .{ .routes = .{ .rx = .{WEST}, .tx = .{RAMP} } });
    """
    exports = EXPORTS.replace("f32", "u32")
    build(tmp_path, body, exports, width=2, routes=routes, arch=arch)
    runtime = start(tmp_path)
    values = np.array([0x00010002, 0xFFFF8000, 7, 0x12345678], np.uint32)
    put(runtime, "a", values)
    runtime.launch("run")
    assert get(runtime, "b", 4, np.uint32, x=1).tolist() == values.tolist()
    runtime.stop()
