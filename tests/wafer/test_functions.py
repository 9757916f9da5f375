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


def test_labelled_blocks(tmp_path):
    text = """
    fn kind(n: i32) i32 {
      const made = blk: {
        if (n > 4) { break :blk 10; }
        if (n > 2) { break :blk n; }
        break :blk @as(i32, 20);
      };
      return made;
    }
    fn run(n: i32) void {
      out[0] = kind(n);
      out[1] = kind(n - 2);
      out[2] = kind(0);
      var y: i32 = 1;
      outer: {
        if (n == 5) { break :outer; }
        y = 7;
      }
      out[3] = y;
      const known = b: { y += 1; break :b 41; } + 1;
      @comptime_assert(known == 42);
      for (@range(i16, 5)) |i| {
        blk: {
          if (i == 1) { break :blk; }
          if (i == 3) { break; }
          y += 10;
        }
      }
      out[4] = y;
      out[5] = comptime size: { if (true) { break :size @as(i32, 6); } break :size 7; };
      sys.unblock_cmd_stream();
    }
    """
    assert result(tmp_path, "wse2", text, 6) == [10, 3, 20, 1, 22, 6]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("const z = b: { if (n > 1) { break :b 1; } }; out[0] = z;", "may end without a value"),
        ("for (@range(i16, 2)) |i| { break :nowhere; }", 'no loop or block "nowhere"'),
        ("b: { continue :b; }", 'no loop "b" here'),
        ("b: for (@range(i16, 2)) |i| { break :b 3; }", "is a loop, which has no value"),
        ("b: { b: { out[0] = 1; } }", 'the label "b" is in use'),
    ],
)
def test_labels_that_do_not_fit(tmp_path, body, message):
    text = f"fn run(n: i32) void {{ {body} sys.unblock_cmd_stream(); }}"
    with pytest.raises(CompileFailed, match=message):
        result(tmp_path, "wse2", text, 1)
