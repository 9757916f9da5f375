"""<complex> at run time; for tests/wafer once structs are passed by value."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.wafer.programs import build, get, put, start

EXPORTS = '@export_name("a", [*]f32, true); @export_name("b", [*]f32, true); @export_name("main", fn() void);'
BODY = """
const cx = @import_module("<complex>");
const N: u16 = 6;
var a = @zeros([2 * N]f32);
var b = @zeros([6 * N]f32);
var a_ptr: [*]f32 = &a;
var b_ptr: [*]f32 = &b;
fn keep(at: u16, z: cx.complex_64) void {
  b[2 * at] = z.real;
  b[2 * at + 1] = z.imag;
}
fn main() void {
  for (@range(u16, N)) |i| {
    const x = cx.get_complex(a[2 * i], a[2 * i + 1]);
    const y = cx.get_complex_64(a[0], a[1]);
    keep(i, cx.add_complex(x, y));
    keep(N + i, cx.subtract_complex_64(x, y));
    keep(2 * N + i, cx.multiply_complex(x, y));
  }
  sys.unblock_cmd_stream();
}
comptime {
  @export_symbol(a_ptr, "a");
  @export_symbol(b_ptr, "b");
  @export_symbol(main);
}
"""


def test_complex_at_run_time(tmp_path: Path) -> None:
    build(tmp_path, BODY, EXPORTS)
    runtime = start(tmp_path)
    given = np.random.default_rng(1).integers(-9, 9, 12).astype(np.float32)
    put(runtime, "a", given)
    runtime.launch("main")
    found = get(runtime, "b", 36).view(np.complex64).reshape(3, 6)
    runtime.stop()
    z = given.view(np.complex64)
    np.testing.assert_array_equal(found, [z + z[0], z - z[0], z * z[0]])
