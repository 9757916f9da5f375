"""<dsd_ops>: each function against the builtin it stands for, on every type and kind of operand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openwafer.wafer.csl.diagnostics import CompileFailed
from tests.wafer.programs import build, get, put, start

EXPORTS = '@export_name("v", [*]u32, true); @export_name("w", [*]u32, true); @export_name("main", fn() void);'
BODY = """
const ops = @import_module("<dsd_ops>");
const N: u16 = 8;
var v = @zeros([3 * N]u32); // two operands and a result of at most 32 bits each
var w = @zeros([3 * N]u32);
var v_ptr: [*]u32 = &v;
var w_ptr: [*]u32 = &w;
fn view(at: [*]u32) mem1d_dsd {
  return @set_dsd_base_addr(@get_dsd(mem1d_dsd, .{ .tensor_access = |i|{N} -> v[i] }), at);
}
fn main() void {
  const a = view(&v[0]);
  const b = view(&v[N]);
  const c = view(&v[2 * N]);
  OURS
  {
    const a = view(&w[0]);
    const b = view(&w[N]);
    const c = view(&w[2 * N]);
    THEIRS
  }
  sys.unblock_cmd_stream();
}
comptime {
  @export_symbol(v_ptr, "v");
  @export_symbol(w_ptr, "w");
  @export_symbol(main);
}
"""
CASES = [
    ("ops.mov(f16, c, a, .{})", "@fmovh(c, a)"),
    ("ops.mov(f32, c, a, .{})", "@fmovs(c, a)"),
    ("ops.mov(i16, c, a, .{})", "@mov16(c, a)"),
    ("ops.mov(u32, c, 7, .{})", "@mov32(c, 7)"),
    ("ops.convert(f16, f32, c, a, .{})", "@fs2h(c, a)"),
    ("ops.convert(f16, i16, c, a, .{})", "@xp162fh(c, a)"),
    ("ops.convert(f32, f16, c, a, .{})", "@fh2s(c, a)"),
    ("ops.convert(f32, i16, c, a, .{})", "@xp162fs(c, a)"),
    ("ops.convert(i16, f16, c, a, .{})", "@fh2xp16(c, a)"),
    ("ops.convert(i16, f32, c, a, .{})", "@fs2xp16(c, a)"),
    ("ops.convert(i16, i16, c, a, .{})", "@mov16(c, a)"),
    ("ops.add(f16, f16, c, a, b, .{})", "@faddh(c, a, b)"),
    ("ops.add(f32, f16, c, a, b, .{})", "@faddhs(c, a, b)"),
    ("ops.add(f32, f32, c, a, b, .{})", "@fadds(c, a, b)"),
    ("ops.add(u16, u16, c, a, b, .{})", "@add16(c, a, b)"),
    ("ops.sub(f16, c, a, b, .{})", "@fsubh(c, a, b)"),
    ("ops.sub(f32, c, 1.5, b, .{})", "@fsubs(c, 1.5, b)"),
    ("ops.sub(i16, c, a, b, .{})", "@sub16(c, a, b)"),
    ("ops.mul(f16, c, a, b, .{})", "@fmulh(c, a, b)"),
    ("ops.mul(f32, c, a, b, .{})", "@fmuls(c, a, b)"),
    ("ops.fmac(f16, f16, c, a, b, 2.0, .{})", "@fmach(c, a, b, 2.0)"),
    ("ops.fmac(f32, f16, c, a, b, @as(f16, 2.0), .{})", "@fmachs(c, a, b, @as(f16, 2.0))"),
    ("ops.fmac(f32, f32, c, a, b, @bitcast(f32, v[1]), .{})", "@fmacs(c, a, b, @bitcast(f32, w[1]))"),
    ("ops.neg(f16, c, a, .{})", "@fnegh(c, a)"),
    ("ops.neg(f32, c, a, .{})", "@fnegs(c, a)"),
    ("ops.abs(f16, c, a, .{})", "@fabsh(c, a)"),
    ("ops.abs(f32, c, a, .{})", "@fabss(c, a)"),
    ("ops.norm(f16, c, a, .{})", "@fnormh(c, a)"),
    ("ops.norm(f32, c, a, .{})", "@fnorms(c, a)"),
    ("ops.scale(f16, c, a, 2, .{})", "@fscaleh(c, a, 2)"),
    ("ops.scale(f32, c, a, -3, .{})", "@fscales(c, a, -3)"),
    ("ops.max(f16, c, a, b, .{})", "@fmaxh(c, a, b)"),
    ("ops.max(f32, c, a, b, .{})", "@fmaxs(c, a, b)"),
    (
        "ops.add(f32, f32, @ptrcast(*f32, &v[2 * N]), @as(f32, 1.0), a, .{})",
        "@fadds(@ptrcast(*f32, &w[2 * N]), @as(f32, 1.0), a)",
    ),
]


@pytest.mark.parametrize("arch", ["wse2", "wse3"])
def test_against_the_builtins(tmp_path: Path, arch: str) -> None:
    given = np.random.default_rng(1).normal(0, 4, 24).astype(np.float32).view(np.uint32)
    for number, (ours, theirs) in enumerate(CASES):
        folder = tmp_path / str(number)
        folder.mkdir()
        build(folder, BODY.replace("OURS", ours + ";").replace("THEIRS", theirs + ";"), EXPORTS, arch=arch)
        runtime = start(folder)
        put(runtime, "v", given)
        put(runtime, "w", given)
        runtime.launch("main")
        found, wanted = (get(runtime, name, 24, np.uint32) for name in ("v", "w"))
        runtime.stop()
        assert found.tolist() == wanted.tolist(), ours
        assert not np.array_equal(found, given), ours


def test_with_a_queue_and_a_configuration(tmp_path: Path) -> None:
    """An asynchronous move from the fabric that starts a task, with DSDs and a DSR."""
    body = """
    const ops = @import_module("<dsd_ops>");
    const c = @get_color(2);
    const iq = @get_input_queue(2);
    const oq = @get_output_queue(3);
    const N: u16 = 5;
    var v = @zeros([N]f32);
    var w = [N]f32{ 1.0, 2.0, 3.0, 4.0, 5.0 };
    var v_ptr: [*]f32 = &v;
    var w_ptr: [*]f32 = &w;
    const from = @get_dsd(fabin_dsd, .{ .extent = N, .fabric_color = c, .input_queue = iq });
    const to = @get_dsd(fabout_dsd, .{ .extent = N, .fabric_color = c, .output_queue = oq });
    const there = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{N} -> v[i] });
    const here = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{N} -> w[i] });
    const register = @get_dsr(dsr_src1, 1);
    const done_id = @get_local_task_id(20);
    fn main() void {
      @load_to_dsr(register, here);
      ops.mov(f32, there, from, .{ .async = true, .activate = done });
      ops.mul(f32, to, here, register, .{ .async = true });
    }
    task done() void {
      ops.neg(f32, here, there, .{});
      sys.unblock_cmd_stream();
    }
    comptime {
      @bind_local_task(done, done_id);
      @initialize_queue(iq, .{ .color = c });
      if (@is_arch("wse3")) @initialize_queue(oq, .{ .color = c });
      @export_symbol(v_ptr, "v");
      @export_symbol(w_ptr, "w");
      @export_symbol(main);
    }
    """
    routes = "@set_color_config(0, 0, @get_color(2), .{ .routes = .{ .rx = .{RAMP}, .tx = .{RAMP} } });"
    exports = '@export_name("v", [*]f32, true); @export_name("w", [*]f32, true); @export_name("main", fn() void);'
    for arch in ("wse2", "wse3"):
        folder = tmp_path / arch
        folder.mkdir()
        build(folder, body, exports, routes=routes, arch=arch)
        runtime = start(folder)
        runtime.launch("main")
        assert get(runtime, "w", 5).tolist() == [-1, -4, -9, -16, -25]
        runtime.stop()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("ops.mov(u64, c, a, .{})", "mov takes elements"),
        ("ops.sub(u16, c, a, b, .{})", "sub takes elements"),
        ("ops.mul(i16, c, a, b, .{})", "takes elements of f16 and f32"),
        ("ops.convert(i16, u16, c, a, .{})", "convert is between"),
        ("ops.add(f16, f32, c, a, b, .{})", "add is of one type"),
    ],
)
def test_types_without_an_operation(tmp_path: Path, call: str, text: str) -> None:
    with pytest.raises(CompileFailed, match=text):
        build(tmp_path, BODY.replace("OURS", call + ";").replace("THEIRS", ""), EXPORTS)
