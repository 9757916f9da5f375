"""The standard library: our own programs against numpy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openwafer.wafer import image_file
from openwafer.wafer.csl.driver import Options, compile_file
from tests.wafer.programs import get, put, start

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
