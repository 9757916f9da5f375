"""Integers of any width, unions, packed structs: bits as documented, at compile time and at run time."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.wafer.test_language import ARCHITECTURES, refused, results

PACKED = """
const Kind = enum(u3) { none, some = 5, all = 6 };
const Flags = packed struct { low: u3, mid: i5, on: bool, kind: Kind, wide: u20 };
const Word = packed union { bits: u32, f: f32, flags: Flags, halves: packed struct { low: u16, high: i16 } };
"""


def flags(low: int, mid: int, on: int, kind: int, wide: int) -> int:
    return low | (mid & 31) << 3 | on << 8 | kind << 9 | wide << 12


@ARCHITECTURES
def test_packed_fields_are_bits_from_the_lowest(tmp_path, arch):
    code = """
    var w = Flags{ .low = 5, .mid = -3, .on = true, .kind = Kind.some, .wide = 0xabcde };
    b[0] = @bitcast(u32, w);
    w.low = @as(u3, a[0]);
    w.mid -= 14;
    w.on = a[0] == 0;
    w.kind = @as(Kind, a[1]);
    w.wide += 1;
    b[1] = @bitcast(u32, w);
    b[2] = @as(u32, w.low);
    b[3] = @as(u32, @as(i32, w.mid));
    b[4] = if (w.on) 1 else 2;
    b[5] = if (w.kind == Kind.all) 1 else 2;
    const r = @bitcast(Flags, a[2]);
    b[6] = @as(u32, @as(i32, r.mid));
    b[7] = Flags{ .low = 7, .mid = @as(i5, a[0]), .on = a[0] != 1, .kind = Kind.none, .wide = 2 }.wide;
    """
    given = flags(1, -16, 1, 0, 3)
    found = results(tmp_path, code, PACKED, (11, 6, given), arch)
    first = flags(5, -3, 1, 5, 0xABCDE)
    assert found == [first, flags(3, 15, 0, 6, 0xABCDF), 3, 15, 2, 1, 2**32 - 16, 2]


@ARCHITECTURES
def test_packed_unions_see_the_same_bits(tmp_path, arch):
    code = """
    var w = Word{ .f = 1.5 };
    b[0] = w.bits;
    w.halves.high = @as(i16, a[0]);
    b[1] = w.bits;
    w.flags.on = true;
    b[2] = w.bits;
    words[a[1]].f = -2.0;
    words[a[1]].halves.low += 7;
    b[3] = words[2].bits;
    b[4] = top(words[a[1]]);
    const p = &words[1];
    p.flags.kind = Kind.some;
    b[5] = words[1].bits;
    b[6] = made(6).bits;
    b[7] = words[0].bits;
    """
    declarations = (
        PACKED
        + """
    var words = [3]Word{ .{ .bits = 9 }, .{ .halves = .{ .low = 1, .high = -1 } }, .{ .bits = 0 } };
    fn top(w: Word) u32 { return @as(u32, @bitcast(u16, w.halves.high)); }
    fn made(n: u32) Word { return Word{ .bits = n }; }
    """
    )
    found = results(tmp_path, code, declarations, (0xFFFE, 2), arch)
    bits = struct.unpack("<I", struct.pack("<f", -2.0))[0] + 7
    start, low = 0x3FC00000, 0xFFFE0000
    assert found == [start, low, low | 1 << 8, bits, bits >> 16, 0xFFFF0001 & ~(7 << 9) | 5 << 9, 6, 9]


def test_packed_values_at_compile_time(tmp_path):
    declarations = (
        PACKED
        + """
    const known = Flags{ .low = 1, .mid = -1, .on = false, .kind = Kind.all, .wide = 1 };
    fn tweaked(f: Flags) Flags { var g = f; g.mid += 1; g.kind = Kind.some; return g; }
    const Wide = packed struct { a: u70, b: u10 };
    comptime {
      @comptime_assert(known.mid == -1 and known.kind == Kind.all);
      @comptime_assert(tweaked(known).mid == 0);
      @comptime_assert(@bitcast(u32, tweaked(known)) == 1 + 5 * 512 + 4096);
      @comptime_assert(@bitcast(Flags, @as(u32, 0x100)).on);
      @comptime_assert(@field(known, "wide") == 1 and @has_field(known, "low"));
      @comptime_assert((Wide{ .a = 1, .b = 3 }).b == 3);
      @comptime_assert((Word{ .f = 1.0 }).bits == 0x3f800000);
      @comptime_assert(@type_of(known) == Flags and Flags != Word);
      @comptime_assert('a' == 97 and '\\n' == 10 and '\\x0a' == 10);
    }
    var stored = tweaked(known);
    """
    )
    assert results(tmp_path, "b[0] = @bitcast(u32, stored);", declarations)[0] == 1 + 5 * 512 + 4096


def test_a_packed_struct_may_hold_a_pointer(tmp_path):
    declarations = "const Link = packed struct { tag: u4, to: *u32, rest: u12 }; var target: u32 = 77;"
    code = """
    var l = Link{ .tag = 3, .to = &target, .rest = @as(u12, a[0]) };
    b[0] = l.to.*;
    b[1] = l.rest;
    l.to.* = 5;
    b[2] = target;
    """
    assert results(tmp_path, code, declarations, (100,))[:3] == [77, 100, 5]


@ARCHITECTURES
@pytest.mark.parametrize(("kind", "bits", "signed"), [("u3", 3, False), ("i5", 5, True), ("u20", 20, False),
                                                       ("i33", 33, True)])  # fmt: skip
def test_integers_wrap_at_their_width(tmp_path, arch, kind, bits, signed):
    code = f"""
    const x1 = @as({kind}, a[0]);
    const y = @as({kind}, a[1]);
    b[0] = @as(u32, x1 + y);
    b[1] = @as(u32, x1 - y);
    b[2] = @as(u32, x1 * y);
    b[3] = @as(u32, ~x1);
    b[4] = @as(u32, x1 << @as(u16, 1));
    b[5] = @as(u32, x1 >> @as(u16, 1));
    b[6] = if (x1 < y) 1 else 0;
    var stored = x1;
    stored += y;
    b[7] = @as(u32, @as(i64, stored));
    """

    def wrap(n: int) -> int:
        n &= (1 << bits) - 1
        return n - (1 << bits) if signed and n >> bits - 1 else n

    x, y = wrap(0x2F6A9), wrap(0x1D35B)
    expected = [x + y, x - y, x * y, ~x, x << 1, x >> 1, x < y, x + y]
    found = results(tmp_path, code, "", (0x2F6A9, 0x1D35B), arch)
    assert found == [int(wrap(n) if not isinstance(n, bool) else n) & 0xFFFFFFFF for n in expected]


UNIONS = """
const Number = union { i: i32, f: f32, pair: [2]u16 };
const Shape = extern struct { which: u16, n: Number };
fn made(c: bool) Number { if (c) { return Number{ .f = 2.5 }; } return .{ .i = -7 }; }
fn total(s: Shape) f32 { return if (s.which == 0) s.n.f else @as(f32, s.n.i); }
var shapes = [2]Shape{ .{ .which = 1, .n = .{ .i = 40 } }, .{ .which = 0, .n = .{ .f = 0.5 } } };
"""


@ARCHITECTURES
def test_unions_lie_in_one_place(tmp_path, arch):
    code = """
    var n = made(a[0] == 0);
    b[0] = @bitcast(u32, n.f);
    n = made(a[0] == 1);
    b[1] = @bitcast(u32, n.i);
    n = Number{ .pair = [2]u16{ 1, @as(u16, a[1]) } };
    b[2] = @bitcast(u32, n.i);
    b[3] = @bitcast(u32, total(shapes[0]) + total(shapes[a[2]]));
    b[4] = @bitcast(u32, total(Shape{ .which = 0, .n = Number{ .f = @as(f32, a[1]) } }));
    """
    found = results(tmp_path, code, UNIONS, (0, 3, 1), arch, np.float32)
    assert found[0] == 2.5 and found[3] == 40.5 and found[4] == 3.0
    assert np.array(found[1:3], np.float32).view(np.int32).tolist() == [-7, 1 + 3 * 65536]


def test_a_union_at_compile_time_has_one_active_field(tmp_path):
    declarations = (
        UNIONS
        + """
    fn changed() f32 { var n = Number{ .i = 1 }; n.i = 5; n = Number{ .f = @as(f32, n.i) }; n.f += 0.5; return n.f; }
    comptime { @comptime_assert(changed() == 5.5); }
    """
    )
    assert results(tmp_path, "", declarations)[0] == 0
    refused(tmp_path, "const n = comptime made(true).i;", 'this union holds "f", not "i"', UNIONS)


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ("var w = Flags{ .low = 8, .mid = 0, .on = true, .kind = Kind.some, .wide = 0 };",
         r"value 8 does not fit u3 \(0 to 7\)"),
        ("var w = Flags{ .low = 1 };", 'the field "mid" of packed struct has no value'),
        ("var w = Word{ .bits = 1, .f = 1.0 };", "a packed union takes one field, 2 are given"),
        ("var w = Word{ .bits = 1 }; const p = &w.f;", "a field of a packed union has no address"),
        ("var w = Word{ .bits = 1 }; b[0] = w.bit;", 'packed union has no field "bit"; did you mean "bits"'),
        ("var w = packed struct { a: [2]u8 }{ .a = .{ 1, 2 } };", "which has no fixed number of bits"),
        ("var w = packed union { a: u8, b: u16 }{ .a = 1 };", "the same number of bits, found a 8, b 16"),
        ("var w = struct { a: u8 = 1 }{ .a = 1 };", "not supported yet: values of their own for fields"),
        ("var w: u128 = 1;", "a variable of type u128 does not exist at run time"),
        ("if (Word{ .bits = a[0] } == Word{ .bits = 2 }) {}", "== is not defined for packed union"),
        ("b[0] = @bitcast(u32, @as(u20, a[0]));", "found u20 of 20 bits and u32 of 32 bits"),
    ],
)  # fmt: skip
def test_mistakes_with_packed_types(tmp_path, statements, message):
    refused(tmp_path, statements, message, PACKED)


def test_values_widen_by_themselves(tmp_path):
    declarations = (
        "fn first(v: *[1]u32) u32 { return v.*[0]; } fn erased(p: *anyopaque) u32 { return @ptrcast(*u32, p).*; }"
    )
    code = """
    const h: f16 = @as(f16, a[0]);
    const s: f32 = h;
    b[0] = @bitcast(u32, s);
    const small = @as(u5, a[0]);
    const wide: i16 = small;
    b[1] = @as(u32, wide);
    var n: u32 = 6;
    b[2] = first(&n) + erased(&n);
    """
    assert results(tmp_path, code, declarations, (35,))[:3] == [0x420C0000, 3, 12]
