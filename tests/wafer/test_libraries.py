"""The standard library: our own programs against numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from openwafer.wafer import image_file
from openwafer.wafer.csl.driver import Options, compile_file
from tests.wafer.programs import build, get, put, start

COLLECTIVES_LAYOUT = """
param width: u16;
param height: u16;
const c2d = @import_module("<collectives_2d/params>");
const memcpy = @import_module("<memcpy/get_params>", .{ .width = width, .height = height });
layout {
  @set_rectangle(width, height);
  for (@range(u16, width)) |x| {
    for (@range(u16, height)) |y| {
      @set_tile_code(x, y, "pe.csl", .{
        .memcpy_params = memcpy.get_params(x),
        .c2d_params = c2d.get_params(x, y, .{
          .x_colors = .{ @get_color(0), @get_color(1) },
          .x_entrypoints = .{ @get_local_task_id(10), @get_local_task_id(11) },
          .y_colors = .{ @get_color(4), @get_color(5) },
          .y_entrypoints = .{ @get_local_task_id(12), @get_local_task_id(13) },
        }),
      });
    }
  }
  @export_name("data", [*]f32, true);
  @export_name("result", [*]f32, true);
  @export_name("main", fn(u16) void);
}
"""
COLLECTIVES_PE = """
param memcpy_params: comptime_struct;
param c2d_params: comptime_struct;
const sys = @import_module("<memcpy/memcpy>", memcpy_params);
const along = @import_module("<collectives_2d/pe>", .{ .dim_params = c2d_params.DIM });
const P: u16 = if (c2d_params.DIM.is_x) @get_rectangle().width else @get_rectangle().height;
const N: u16 = 3;
var data = @zeros([P * N]f32);      // what this PE brings
var result = @zeros([4 * P * N]f32); // broadcast, scatter, gather, sum
var data_ptr: [*]f32 = &data;
var result_ptr: [*]f32 = &result;
const next_id = @get_local_task_id(15);
var root: u16 = 0;
var step: u16 = 0;

fn words(p: [*]f32) [*]u32 { return @ptrcast([*]u32, p); }

fn main(r: u16) void {
  root = r;
  step = 0;
  along.init();
  @activate(next_id);
}

// Four operations at once, one behind the other, each started as soon as this PE is done with the one before.
task next() void {
  step += 1;
  if (step == 1) {
    if (along.pe_id == root) { for (@range(u16, P * N)) |i| { result[i] = data[i]; } }
    along.broadcast(root, words(&result[0]), P * N, next_id);
  } else if (step == 2) {
    along.scatter(root, words(data_ptr), words(&result[P * N]), N, next_id);
  } else if (step == 3) {
    along.gather(root, words(data_ptr), words(&result[2 * P * N]), N, next_id);
  } else if (step == 4) {
    along.reduce_fadds(root, data_ptr, @ptrcast([*]f32, &result[3 * P * N]), P * N, next_id);
  } else {
    sys.unblock_cmd_stream();
  }
}

comptime {
  @bind_local_task(next, next_id);
  @export_symbol(data_ptr, "data");
  @export_symbol(result_ptr, "result");
  @export_symbol(main);
}
"""


@pytest.mark.parametrize("arch", ["wse2", "wse3"])
@pytest.mark.parametrize(("dim", "size"), [("x", 5), ("x", 2), ("y", 4), ("x", 1)])
def test_collectives(tmp_path: Path, arch: str, dim: str, size: int) -> None:
    """All four operations from every root, several times over."""
    width, height = (size, 1) if dim == "x" else (1, size)
    (tmp_path / "layout.csl").write_text(COLLECTIVES_LAYOUT)
    (tmp_path / "pe.csl").write_text(COLLECTIVES_PE.replace("DIM", dim))
    options = Options(arch=arch, params={"width": str(width), "height": str(height)})
    image_file.save(compile_file(tmp_path / "layout.csl", options), tmp_path / "out")
    runtime = start(tmp_path)
    n, generator = 3, np.random.default_rng(size)
    data = generator.integers(-99, 99, (size, size * n)).astype(np.float32)
    where = [(k, 0) if dim == "x" else (0, k) for k in range(size)]
    for (x, y), values in zip(where, data, strict=True):
        put(runtime, "data", values, x, y)
    for root in range(size):
        runtime.launch("main", np.uint16(root))
        results = [get(runtime, "result", 4 * size * n, x=x, y=y).reshape(4, -1) for x, y in where]
        for k, (broadcast, scatter, _, _) in enumerate(results):
            np.testing.assert_array_equal(broadcast, data[root])
            np.testing.assert_array_equal(scatter[:n], data[root, k * n : (k + 1) * n])
        np.testing.assert_array_equal(results[root][2], data[:, :n].ravel())
        np.testing.assert_array_equal(results[root][3], data.sum(0))
    runtime.stop()


MATH_PE = """
const math = @import_module("<math>");
const N: u16 = 160;
var v = @zeros([N]f32);
var y = @zeros([N]f32);
var v_ptr: [*]f32 = &v;
var y_ptr: [*]f32 = &y;
fn main() void {
  for (@range(u16, N)) |i| { y[i] = CALL; }
  sys.unblock_cmd_stream();
}
comptime {
  @export_symbol(v_ptr, "v");
  @export_symbol(y_ptr, "y");
  @export_symbol(main);
}
"""
EXPORTS = '@export_name("v", [*]f32, true); @export_name("y", [*]f32, true); @export_name("main", fn() void);'
NEAR = np.concatenate([np.linspace(-10, 10, 121), np.linspace(-300, 300, 39)])
POSITIVE = np.concatenate([np.geomspace(1e-40, 1e38, 120), np.linspace(0.5, 2, 40)])
WIDE = np.concatenate([np.linspace(-103, 88, 120), np.linspace(-1, 1, 40)])


@pytest.mark.parametrize(
    ("call", "values", "expected", "ulps"),
    [
        ("math.exp(v[i])", WIDE, np.exp, 2),
        ("math.log(v[i])", POSITIVE, np.log, 2),
        ("math.sqrt(v[i])", POSITIVE, np.sqrt, 1),
        ("math.invsqrt(v[i])", POSITIVE, lambda v: 1 / np.sqrt(v), 2),
        ("math.floor(v[i])", NEAR, np.floor, 0),
        ("math.ceil(v[i])", NEAR, np.ceil, 0),
        ("math.tanh(v[i])", NEAR, np.tanh, 2),
        ("math.sig(v[i])", WIDE, lambda v: 1 / (1 + np.exp(-v)), 3),
        ("math.fscale(v[i], -20)", POSITIVE, lambda v: np.ldexp(v, -20).astype(np.float32).astype(float), 0),
        ("math.fscale(math.fscale(v[i], -110), 90)", NEAR, lambda v: np.ldexp(v, -20), 0),
        ("math.fscale(v[i], -140)", NEAR, lambda v: np.ldexp(v, -140).astype(np.float32).astype(float), 0),
        ("@as(f32, math.fscale(@as(f16, v[i]), 2))", NEAR, lambda v: 4 * v.astype(np.float16).astype(float), 0),
        ("math.subsat(v[i], 1.5)", NEAR, lambda v: (v.astype(np.float32) - np.float32(1.5)).astype(float), 0),
        ("math.pow(v[i], 7.0)", NEAR, lambda v: v**7, 4),
        ("math.pow(v[i], -0.5)", POSITIVE, lambda v: v**-0.5, 90),
        ("@as(f32, math.sin(@as(f16, v[i])))", NEAR, None, 0),
    ],
)
def test_math(tmp_path: Path, call: str, values: np.ndarray, expected: Any, ulps: float) -> None:
    """Against numpy in f64, in units of the last place of the f32 result."""
    given = values.astype(np.float32)
    build(tmp_path, MATH_PE.replace("CALL", call), EXPORTS)
    runtime = start(tmp_path)
    put(runtime, "v", given)
    runtime.launch("main")
    found = get(runtime, "y", given.size)
    runtime.stop()
    if expected is None:
        want = np.sin(given.astype(np.float16).astype(np.float64)).astype(np.float16)
        np.testing.assert_allclose(found, want.astype(np.float32), atol=1e-3)
        return
    exact = expected(given.astype(np.float64))
    unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    assert np.max(np.abs(found - exact) / unit) <= ulps + 0.5


@pytest.mark.parametrize(("call", "expected"), [("math.sin(v[i])", np.sin), ("math.cos(v[i])", np.cos)])
def test_circle_functions(tmp_path: Path, call: str, expected: Any) -> None:
    """Within 2 ulp of 1 up to 8,192."""
    given = NEAR.astype(np.float32)
    given[-40:] = np.linspace(-8192, 8192, 40)
    build(tmp_path, MATH_PE.replace("CALL", call), EXPORTS)
    runtime = start(tmp_path)
    put(runtime, "v", given)
    runtime.launch("main")
    found = get(runtime, "y", given.size)
    runtime.stop()
    np.testing.assert_allclose(found, expected(given.astype(np.float64)), atol=2.4e-7, rtol=0)


def test_math_of_special_values(tmp_path: Path) -> None:
    special = np.full(160, 1, np.float32)
    special[:6] = [np.inf, -np.inf, np.nan, 0.0, -1.0, 1e30]
    with np.errstate(all="ignore"):
        for name, wanted in (("exp", np.exp), ("log", np.log), ("floor", np.floor)):
            folder = tmp_path / name
            folder.mkdir()
            build(folder, MATH_PE.replace("CALL", f"math.{name}(v[i])"), EXPORTS)
            runtime = start(folder)
            put(runtime, "v", special)
            runtime.launch("main")
            np.testing.assert_allclose(get(runtime, "y", 160)[:6], wanted(special[:6]), rtol=1e-6)
            runtime.stop()


TALLY_LAYOUT = """
param width: i16;
param height: i16;
const tally = @import_module("<kernels/tally/layout>", .{
  .kernel_width = width, .kernel_height = height, .phase2_tally = 7 * @as(u32, width) * @as(u32, height),
  .colors = [3]color{ @get_color(12), @get_color(13), @get_color(14) },
});
const memcpy = @import_module("<memcpy/get_params>", .{ .width = width, .height = height });
layout {
  @set_rectangle(width, height);
  for (@range(i16, width)) |x| {
    for (@range(i16, height)) |y| {
      @set_tile_code(x, y, "pe.csl", .{
        .memcpy_params = memcpy.get_params(x), .tally_params = tally.get_params(x, y),
      });
    }
  }
  @export_name("sum", [*]u32, true);
  @export_name("main", fn() void);
}
"""
TALLY_PE = """
param memcpy_params: comptime_struct;
param tally_params: comptime_struct;
const sys = @import_module("<memcpy/memcpy>", memcpy_params);
const done_id = @get_local_task_id(20);
const tally = @import_module("<kernels/tally/pe>", @concat_structs(tally_params, .{
  .output_queues = [2]u16{ 4, 5 }, .input_queues = [2]u16{ 6, 7 }, .callback = done_id,
}));
var sum = @zeros([1]u32);
var sum_ptr: [*]u32 = &sum;
fn main() void {
  tally.bump_tally(3);
  tally.signal_completion();
  tally.bump_tally(4);
  sys.unblock_cmd_stream();
}
task done() void { sum[0] = tally.local_tally; }
comptime {
  @bind_local_task(done, done_id);
  @export_symbol(sum_ptr, "sum");
  @export_symbol(main);
}
"""


@pytest.mark.parametrize("arch", ["wse2", "wse3"])
@pytest.mark.parametrize("dialect", ["1.4", "2.10"])
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 2), (2, 3), (4, 4)])
def test_tally(tmp_path: Path, arch: str, width: int, height: int, dialect: str) -> None:
    """All counts arrive on the last PE of the first row, and there alone the callback runs."""
    in_one = TALLY_PE.replace("@concat_structs(tally_params, .{", ".{ .tally_params = tally_params,")
    in_one = in_one.replace("}));", "});")
    (tmp_path / "layout.csl").write_text(TALLY_LAYOUT)
    (tmp_path / "pe.csl").write_text(TALLY_PE if dialect == "1.4" else in_one)
    options = Options(arch=arch, params={"width": str(width), "height": str(height)})
    image_file.save(compile_file(tmp_path / "layout.csl", options), tmp_path / "out")
    runtime = start(tmp_path)
    runtime.launch("main")
    sums = {(x, y): int(get(runtime, "sum", 1, np.uint32, x, y)[0]) for x in range(width) for y in range(height)}
    runtime.stop()
    assert sums.pop((width - 1, 0)) == 7 * width * height
    assert not any(sums.values())


def test_routes_as_registers(tmp_path: Path) -> None:
    """A program of WSE-2 that turns its own color round through the memory-mapped register."""
    body = """
    const c = @get_color(3);
    const iq = @get_input_queue(3);
    const oq = @get_output_queue(3);
    const to = @get_dsd(fabout_dsd, .{ .extent = 1, .fabric_color = c, .output_queue = oq });
    const from = @get_dsd(fabin_dsd, .{ .extent = 1, .fabric_color = c, .input_queue = iq });
    var v = @zeros([1]u32);
    var v_ptr: [*]u32 = &v;
    const here = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{1} -> v[i] });
    fn main() void {
      if (x != 0) { sys.unblock_cmd_stream(); return; }
      const address: u16 = 2 * (0x7f20 + 3);
      var word: u16 = @bitcast(*u16, address).*;
      @assert(word == 0x0202); // from the ramp to the east
      @bitcast(*u16, address).* = 0x0210; // from the ramp to the ramp
      @mov32(to, 42);
      @mov32(here, from);
      sys.unblock_cmd_stream();
    }
    comptime {
      @initialize_queue(iq, .{ .color = c });
      @export_symbol(v_ptr, "v");
      @export_symbol(main);
    }
    """
    routes = "@set_color_config(0, 0, @get_color(3), .{ .routes = .{ .rx = .{RAMP}, .tx = .{EAST} } });"
    exports = '@export_name("v", [*]u32, true); @export_name("main", fn() void);'
    build(tmp_path, body, exports, width=2, routes=routes)
    runtime = start(tmp_path)
    runtime.launch("main")
    assert [int(get(runtime, "v", 1, np.uint32, x=0)[0])] == [42]
    runtime.stop()
