"""CSL programs of the tests, and what compiles and runs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from openwafer.wafer import image_file
from openwafer.wafer.csl.driver import Options, compile_file
from openwafer.wafer.image import Image
from openwafer.wafer.runtime.sdk_runtime import MemcpyDataType, MemcpyOrder, SdkRuntime

LAYOUT = """
const memcpy = @import_module("<memcpy/get_params>", .{ .width = WIDTH, .height = 1 });
layout {
  @set_rectangle(WIDTH, 1);
  for (@range(i16, WIDTH)) |x| {
    @set_tile_code(x, 0, "pe.csl", .{ .memcpy_params = memcpy.get_params(x), .x = x });
  }
  ROUTES
  EXPORTS
}
"""
HEAD = """
param memcpy_params: comptime_struct;
param x: i16;
const sys = @import_module("<memcpy/memcpy>", memcpy_params);
"""


def build(folder: Path, body: str, exports: str, width: int = 1, routes: str = "", arch: str = "wse2") -> Image:
    """A row of PEs with one program; `x` is its column."""
    text = LAYOUT.replace("WIDTH", str(width)).replace("ROUTES", routes).replace("EXPORTS", exports)
    (folder / "layout.csl").write_text(text)
    (folder / "pe.csl").write_text(HEAD + body)
    image = compile_file(folder / "layout.csl", Options(arch=arch))
    image_file.save(image, folder / "out")
    return image


def start(folder: Path) -> SdkRuntime:
    """The program, running."""
    runtime = SdkRuntime(folder / "out")
    runtime.load()
    runtime.run()
    return runtime


def put(runtime: SdkRuntime, name: str, values: np.ndarray, x: int = 0, y: int = 0) -> None:
    """32-bit values into a symbol of one PE."""
    runtime.memcpy_h2d(
        runtime.get_id(name), values, x, y, 1, 1, values.size, streaming=False,
        data_type=MemcpyDataType.MEMCPY_32BIT, order=MemcpyOrder.ROW_MAJOR, nonblock=False,
    )  # fmt: skip


def get(runtime: SdkRuntime, name: str, count: int, dtype: type = np.float32, x: int = 0, y: int = 0) -> np.ndarray:
    """32-bit values of a symbol of one PE."""
    result = np.zeros(count, dtype)
    runtime.memcpy_d2h(
        result, runtime.get_id(name), x, y, 1, 1, count, streaming=False,
        data_type=MemcpyDataType.MEMCPY_32BIT, order=MemcpyOrder.ROW_MAJOR, nonblock=False,
    )  # fmt: skip
    return result
