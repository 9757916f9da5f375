"""Structs at run time: anonymous ones as arguments, named ones by value."""

from __future__ import annotations

import numpy as np
import pytest

from openwafer.wafer.csl.diagnostics import CompileFailed
from tests.wafer.programs import build, get, start

ARCHITECTURES = pytest.mark.parametrize("arch", ["wse2", "wse3"])
EXPORTS = '@export_name("out", [*]i32, true); @export_name("run", fn(i32)void);'
HEAD = "var out = @zeros([8]i32); const out_ptr: [*]i32 = &out;"
TAIL = 'comptime { @export_symbol(out_ptr, "out"); @export_symbol(run); }'


def result(tmp_path, arch, text, count, argument=5):
    build(tmp_path, f"{HEAD} {text} {TAIL}", EXPORTS, arch=arch)
    runtime = start(tmp_path)
    runtime.launch("run", np.int32(argument))
    return get(runtime, "out", count, np.int32).tolist()


@ARCHITECTURES
def test_anonymous_struct_as_an_argument(tmp_path, arch):
    """Fields known only at run time keep the values they had when the struct was made."""
    text = """
    fn total(parts: anytype) i32 {
      return 100 * parts.high + parts.low + parts.inner.low;
    }
    fn twice(parts: anytype) i32 { return 2 * total(parts); }
    fn run(n: i32) void {
      var x = n;
      const parts = .{ .high = x, .low = 3, .inner = .{ .low = x + 1 } };
      x = 1000;
      out[0] = total(parts);
      out[1] = twice(parts);
      out[2] = total(.{ .high = x, .low = n, .inner = .{ .low = 0 } });
      sys.unblock_cmd_stream();
    }
    """
    assert result(tmp_path, arch, text, 3) == [509, 1018, 100005]


@ARCHITECTURES
def test_tuple_as_an_argument(tmp_path, arch):
    text = """
    fn sum(comptime n: i16, parts: anytype) i32 {
      var made: i32 = 0;
      inline for (@range(i16, n)) |i| { made += @as(i32, parts[i]); }
      return made;
    }
    fn run(n: i32) void {
      out[0] = sum(3, .{ n, @as(i32, 7), n * n });
      out[1] = sum(2, .{ n, @as(i16, -1) });
      sys.unblock_cmd_stream();
    }
    """
    assert result(tmp_path, arch, text, 2) == [37, 4]


@ARCHITECTURES
def test_structs_by_value(tmp_path, arch):
    """A callee's struct is the caller's at the call; two results do not share memory."""
    text = """
    const Pair = struct { a: i32, b: i32 };
    fn swap(p: Pair) Pair { return Pair{ .a = p.b, .b = p.a }; }
    fn add(p: Pair, q: Pair) Pair { return Pair{ .a = p.a + q.a, .b = p.b + q.b }; }
    fn larger(p: Pair) Pair {
      if (p.a > p.b) { return p; }
      return swap(p);
    }
    var kept = Pair{ .a = 0, .b = 0 };
    fn run(n: i32) void {
      var p = Pair{ .a = n, .b = 20 };
      kept = add(swap(p), larger(p));
      out[0] = kept.a;
      out[1] = kept.b;
      const q = swap(Pair{ .a = 1, .b = 2 });
      p.a = 7;
      const r = add(add(q, p), add(p, p));
      out[2] = r.a;
      out[3] = r.b;
      out[4] = swap(p).a;
      sys.unblock_cmd_stream();
    }
    """
    assert result(tmp_path, arch, text, 5) == [40, 10, 23, 61, 20]


def test_recursive_structs_are_refused(tmp_path):
    text = """
    const Pair = struct { a: i32, b: i32 };
    fn down(p: Pair) Pair {
      if (p.a == 0) { return p; }
      return down(Pair{ .a = p.a - 1, .b = p.b });
    }
    fn run(n: i32) void { out[0] = down(Pair{ .a = n, .b = 1 }).b; sys.unblock_cmd_stream(); }
    """
    with pytest.raises(
        CompileFailed, match=r"down calls itself and has variables in memory \(down.literal, down.result\)"
    ):
        result(tmp_path, "wse2", text, 1)


@ARCHITECTURES
def test_unions(tmp_path, arch):
    """One field at a time; in memory they lie over one another."""
    text = """
    const Word = union { whole: u32, number: f32, half: u16 };
    const start = Word{ .number = 2.0 };
    var kept = Word{ .whole = 0x40490fdb };
    fn bits(w: Word) u32 { return w.whole; }
    fn run(n: i32) void {
      @comptime_assert(start.number == 2.0);
      out[0] = @as(i32, kept.number * 100.0);
      out[1] = @as(i32, kept.half);
      kept = Word{ .number = @as(f32, n) };
      out[2] = @bitcast(i32, bits(kept));
      kept.half = 1;
      out[3] = @bitcast(i32, kept.whole);
      out[4] = @bitcast(i32, bits(start));
      sys.unblock_cmd_stream();
    }
    """
    five = int(np.float32(5).view(np.int32))
    assert result(tmp_path, arch, text, 5) == [314, 0x0FDB, five, five + 1, 0x40000000]


@pytest.mark.parametrize(
    ("literal", "message"),
    [("Word{ .a = 1, .b = 2.0 }", "takes one field, 2 are given"), ("Word{ .c = 1 }", 'has no field "c"')],
)
def test_unions_that_do_not_fit(tmp_path, literal, message):
    text = f"const Word = union {{ a: u32, b: f32 }}; var w = {literal}; fn run(n: i32) void {{ out[0] = w.a; }}"
    with pytest.raises(CompileFailed, match=message):
        result(tmp_path, "wse2", text, 1)


def test_values_of_enums(tmp_path):
    """Members without a value take the least numbers that no other has."""
    text = """
    const A = enum(u16) { red, white = 1, blue };
    const B = enum(u16) { red, white = 4, blue };
    fn run(n: i32) void {
      out[0] = @as(i32, A.blue);
      out[1] = @as(i32, B.blue);
      sys.unblock_cmd_stream();
    }
    """
    assert result(tmp_path, "wse2", text, 2) == [2, 1]
