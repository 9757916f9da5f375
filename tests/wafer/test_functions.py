"""inline functions."""

from __future__ import annotations

import pytest

from openwafer.wafer.csl.diagnostics import CompileFailed
from tests.wafer.test_aggregates import result


def test_inline_functions_know_what_their_arguments_do(tmp_path):
    text = """
    inline fn add(a: i32, b: i32) i32 { return a + b; }
    inline fn power(base: i32, n: i16) i32 {
      var made: i32 = 1;
      inline for (@range(i16, n)) |_| { made *= base; }
      return made;
    }
    inline fn put(i: i16, value: i32) void { out[i] = value; }
    fn run(n: i32) void {
      if (add(1200, 34) != 1234) { @comptime_assert(false); }
      const size = comptime power(2, 2);
      var buffer = @zeros([size]i32);
      buffer[3] = add(n, 1);
      put(0, buffer[3]);
      put(1, power(n, 3));
      sys.unblock_cmd_stream();
    }
    """
    assert result(tmp_path, "wse2", text, 2) == [6, 125]


def test_a_mistake_in_an_inline_function_is_reported_once(tmp_path):
    text = """
    inline fn add(a: i32) i32 { return a + nothing; }
    fn run(n: i32) void { out[0] = add(1); sys.unblock_cmd_stream(); }
    """
    with pytest.raises(CompileFailed, match="nothing") as found:
        result(tmp_path, "wse2", text, 1)
    assert str(found.value).count("error:") == 1
