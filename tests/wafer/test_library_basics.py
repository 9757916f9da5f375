"""Small libraries: types, data_utils, string, malloc, timer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openwafer.wafer.csl.diagnostics import CompileFailed
from openwafer.wafer.runtime.debug import debug_util
from openwafer.wafer.sim.engine import SimulationError
from tests.wafer.programs import build, get, put, start

EXPORTS = '@export_name("v", [*]u32, true); @export_name("main", fn() void);'


def run(folder: Path, declarations: str, main: str, given: list[int] | None = None, arch: str = "wse2") -> list[int]:
    """What a program of one PE leaves in v, 16 words."""
    body = f"""
    {declarations}
    var v = @zeros([16]u32);
    var v_ptr: [*]u32 = &v;
    fn main() void {{
      {main}
      sys.unblock_cmd_stream();
    }}
    comptime {{
      @export_symbol(v_ptr, "v");
      @export_symbol(main);
    }}
    """
    build(folder, body, EXPORTS, arch=arch)
    runtime = start(folder)
    if given is not None:
        put(runtime, "v", np.array([*given, *[0] * (16 - len(given))], np.uint32))
    runtime.launch("main")
    result = get(runtime, "v", 16, np.uint32)
    runtime.stop()
    return result.tolist()


def holds(folder: Path, declarations: str, *facts: str) -> None:
    """Each fact is true at compile time."""
    asserts = "\n".join(f'@comptime_assert({fact}, "fact {number}");' for number, fact in enumerate(facts))
    run(folder, declarations + "\ncomptime {\n" + asserts + "\n}", "")


def test_types(tmp_path: Path) -> None:
    holds(
        tmp_path, 'const types = @import_module("<types>"); const S = struct { a: u16, b: f32, c: [3]i16 };',
        "types.is_unsigned_int(u8) and types.is_unsigned_int(u64) and !types.is_unsigned_int(i16)",
        "types.is_signed_int(i32) and !types.is_signed_int(u32) and !types.is_signed_int(f32)",
        "types.is_float(f32) and types.is_float(f16) and !types.is_float(i16)",
        "types.is_float16(f16) and !types.is_float16(f32) and !types.is_float16(u16)",
        "types.is_enabled_float(f16) and types.is_enabled_float(f32) and !types.is_enabled_float(u32)",
        "types.is_signed(i8) and types.is_signed(f16) and !types.is_signed(u8) and !types.is_signed(bool)",
        "types.is_numeric(u16) and types.is_numeric(f32) and types.is_numeric(comptime_int)",
        "!types.is_numeric(bool) and !types.is_numeric(color) and !types.is_numeric(*u16)",
        "types.is_dsd(mem1d_dsd) and types.is_dsd(fabout_dsd) and !types.is_dsd(dsr_src0)",
        "types.is_dsr(dsr_dest) and !types.is_dsr(mem4d_dsd)",
        "types.has_dsr_type(@get_dsr(dsr_dest, 1)) and !types.has_dsr_type(@as(u16, 1)) and !types.has_dsd_type(1)",
        "types.byte_size_of(u8) == 1 and types.byte_size_of(bool) == 1 and types.byte_size_of([5]f32) == 20",
        "types.byte_size_of(S) == 12 and types.word_size_of(S) == 6 and types.bit_size_of(S) == 96",
        "types.word_size_of(u8) == 1 and types.word_size_of(color) == 1 and types.word_size_of(f32) == 2",
        "types.min_byte_align_of(u8) == 1 and types.min_byte_align_of(f32) == 2 and types.min_word_align_of(f32) == 1",
        "@is_same_type(types.bits_type_of(f32), u32) and @is_same_type(types.bits_type_of(f16), u16)",
        "@is_same_type(types.bits_type_of(i64), u64) and @is_same_type(types.bits_type_of(bool), u8)",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ("types.byte_size_of(comptime_int)", "comptime_int has no size"),
        ("types.bits_type_of([3]u16)", "no integer has"),
    ],
)
def test_types_without_an_answer(tmp_path: Path, wrong: str, text: str) -> None:
    with pytest.raises(CompileFailed, match=text):
        run(
            tmp_path,
            f'const types = @import_module("<types>"); comptime {{ _ = {wrong}; }}'.replace("_ =", "const k ="),
            "",
        )


def test_data_utils(tmp_path: Path) -> None:
    main = """
    v[0] = @as(u32, data.lo16(v[8]));
    v[1] = @as(u32, data.hi16(v[8]));
    const wide: u64 = @as(u64, v[8]) << 32 | @as(u64, v[9]);
    v[2] = data.lo32(wide);
    v[3] = data.hi32(wide);
    """
    found = run(tmp_path, 'const data = @import_module("<data_utils>");', main, [0] * 8 + [0xDEADBEEF, 0x12345678])
    assert found[:4] == [0xBEEF, 0xDEAD, 0x12345678, 0xDEADBEEF]


def test_string(tmp_path: Path) -> None:
    holds(
        tmp_path, 'const string = @import_module("<string>");',
        'string.comptime_int_to_string(0) == "0"',
        'string.comptime_int_to_string(-1203) == "-1203"',
        'string.fmt("row {d} of {d}: {s}, {{{d}}", .{ 3, -7, "north", 1 }) == "row 3 of -7: north, {1}"',
        'string.fmt("", .{}) == ""',
    )  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"), [("{x}", "fields of this format"), ("{d", "not closed"), ("{dd}", "one letter")]
)
def test_string_formats_that_are_wrong(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CompileFailed, match=message):
        run(tmp_path, f'const s = @import_module("<string>"); comptime {{ const t = s.fmt("{text}", .{{ 1 }}); }}', "")


def test_malloc(tmp_path: Path) -> None:
    """Three arrays behind one another, one in the place of the first after a free."""
    declarations = 'const mem = @import_module("<malloc>", .{ .buffer_num_words = 12 });'
    main = """
    const small = mem.malloc_i16(3);
    const wide = mem.malloc(f32, 2);
    const last = mem.malloc_u32(2);
    v[0] = @as(u32, mem.has_enough_words(1)) + 2 * @as(u32, mem.has_enough_double_words(1));
    v[1] = @as(u32, mem.has_enough_space(f16, 2));
    for (@range(u16, 3)) |i| { small[i] = -@as(i16, i); }
    for (@range(u16, 2)) |i| { wide[i] = 0.5; last[i] = 7; }
    v[2] = @bitcast(u32, wide[0] + wide[1]) + @as(u32, small[2] + 2) + last[1];
    mem.free();
    const again = mem.malloc_u16(12);
    for (@range(u16, 12)) |i| { again[i] = i; }
    v[3] = last[1];
    v[4] = @as(u32, @bitcast(u16, small[2]));
    v[5] = @as(u32, mem.has_enough_words(0)) + 2 * @as(u32, mem.has_enough_words(1));
    mem.free();
    v[6] = @as(u32, mem.has_enough_double_words(6)) + 2 * @as(u32, mem.has_enough_double_words(7));
    v[7] = @as(u32, mem.has_enough_space(u32, 40000));
    """
    found = run(tmp_path, declarations, main)
    assert found[:8] == [1, 0, 0x3F800000 + 7, 9 | 10 << 16, 2, 1, 1, 0]


def test_malloc_asserts(tmp_path: Path) -> None:
    declarations = 'const mem = @import_module("<malloc>", .{ .buffer_num_words = 4, .asserts_enabled = true });'
    with pytest.raises(SimulationError, match="malloc: the buffer"):
        run(tmp_path, declarations, "v[0] = mem.malloc_u32(2)[0]; v[1] = mem.malloc_u32(1)[0];")


def test_timer(tmp_path: Path) -> None:
    """Two timers that overlap; a longer stretch counts more, and 48 bits borrow across words."""
    declarations = """
    const timer = @import_module("<timer>", .{ .timerCount = 2 });
    var t = @zeros(timer.timerType);
    fn wait(n: u32) void { for (@range(u32, n)) |i| { v[15] += i; } }
    fn keep(at: u16) void { for (@range(u16, 3)) |i| { v[at + i] = @as(u32, t[i]); } }
    """
    main = """
    timer.start(0);
    wait(10);
    timer.start(1);
    wait(10000);
    timer.stop(0);
    timer.stop(1);
    timer.elapsed(0, &t);
    keep(0);
    timer.elapsed(1, &t);
    keep(3);
    """
    found = run(tmp_path, declarations, main)
    first, second = (sum(word << 16 * i for i, word in enumerate(found[at : at + 3])) for at in (0, 3))
    assert all(word < 0x10000 for word in found[:6]) and 0x10000 < second < first < second + 200


def test_control(tmp_path: Path) -> None:
    """Commands in their fields of three bits; those not given are NOP."""
    holds(
        tmp_path, 'const c = @import_module("<control>"); const o = c.opcode;',
        "c.encode_payload(1, [1]o{ o.SWITCH_ADV }, [1]bool{ true }, false, {}) "
        "== c.encode_single_payload(o.SWITCH_ADV, true, {}, 0)",
        "c.encode_payload(3, [3]o{ o.TEARDOWN, o.NOP, o.SWITCH_RST }, [3]bool{ false, true, true }, false, "
        "@get_control_task_id(5)) == (3 << 22 | 1 << 27 | 1 << 29 | 1 | 5 << 16)",
        "c.encode_payload(7, @constants([7]o, o.NOP), @constants([7]bool, false), true, {}) == (31 << 16 | 1 << 15)",
        "c.encode_control_task_payload(@get_control_task_id(40)) == 40 << 16",
    )  # fmt: skip
    call = "c.encode_payload(9, @constants([9]c.opcode, c.opcode.NOP), @constants([9]bool, true), true, {})"
    with pytest.raises(CompileFailed, match="at most 8 commands"):
        run(tmp_path, f'const c = @import_module("<control>"); comptime {{ const p = {call}; }}', "")


def test_directions(tmp_path: Path) -> None:
    holds(
        tmp_path, 'const d = @import_module("<directions>");',
        "d.rotate_clockwise(NORTH) == EAST and d.rotate_clockwise(EAST) == SOUTH and d.rotate_clockwise(WEST) == NORTH",
        "d.rotate_counterclockwise(NORTH) == WEST and d.rotate_counterclockwise(EAST) == NORTH",
        "d.rotate_clockwise(RAMP) == RAMP and d.rotate_counterclockwise(RAMP) == RAMP and d.flip(RAMP) == RAMP",
        "d.flip_vertical(NORTH) == SOUTH and d.flip_vertical(EAST) == EAST",
        "d.flip_horizontal(WEST) == EAST and d.flip_horizontal(SOUTH) == SOUTH",
    )  # fmt: skip


def test_math_of_types_and_bits(tmp_path: Path) -> None:
    holds(
        tmp_path, 'const m = @import_module("<math>");',
        "m.isInf(m.POSITIVE_INF(f16)) and m.NEGATIVE_INF(f32) < 0.0 and m.isNaN(m.NaN(f16)) and m.isNaN_f16(m.NaN_f16)",
        "m.signbit(@as(f16, -0.5)) and !m.signbit(@as(f32, 1.0)) and m.signbit_f32(m.NEGATIVE_INF_f32)",
        "m.isSignaling(@bitcast(f16, @as(u16, 0xFC01))) and !m.isSignaling(m.NaN_f16) and !m.isSignaling_f16(1.0)",
        "!m.isSignaling(m.POSITIVE_INF_f16) and !m.isSignaling(m.NaN_f32) and !m.isSignaling(m.NEGATIVE_INF_f32)",
        "m.max_f16(1.0, 2.0) == 2.0 and m.min_f32(1.0, 2.0) == 1.0 and m.sign_f16(-3.0) == -1.0",
        "m.max(@as(u64, 3), 4) == 4 and m.sign(@as(u8, 3)) == 1 and m.abs(@as(i8, -3)) == 3",
        "m.subsat(m.NEGATIVE_INF(f16), 1.0) == -65504.0 and m.subsat_f32(3.0e38, -3.0e38) == 3.40282347e38",
        "m.fscale(@as(f32, 3.0), 300) == m.POSITIVE_INF_f32 and m.fscale_f16(1.0, -300) == 0.0",
        "m.tanh(@as(f16, 0.0)) == 0.0 and m.sig_f32(0.0) == 0.5 and m.tanh_f32(m.NEGATIVE_INF_f32) == -1.0",
    )  # fmt: skip
    main = "v[0] = @as(u32, m.isSignaling(@bitcast(f32, v[8]))) + 2 * @as(u32, m.isSignaling(@bitcast(f32, v[9])));"
    assert run(tmp_path, 'const m = @import_module("<math>");', main, [0] * 8 + [0x7F800001, 0x7FC00001])[0] == 1


def test_random(tmp_path: Path) -> None:
    """Ranges and moments of 600 numbers of each kind."""
    declarations = """
    const random = @import_module("<random>");
    var outside: u32 = 0;
    var sum: f32 = 0.0;
    var squares: f32 = 0.0;
    """
    main = """
    for (@range(u16, 600)) |i| {
      const one = random.random_pow_u32(5);
      if (one >= 32) outside += 1;
      v[0] += one;
      if (random.random_pow_u32(0) != 0) outside += 1;
      v[1] |= random.random_pow_u32(32);
      const x = random.random_normal_f32();
      sum += x;
      squares += x * x;
    }
    v[2] = outside;
    v[3] = @bitcast(u32, sum / 600.0);
    v[4] = @bitcast(u32, squares / 600.0);
    """
    found = run(tmp_path, declarations, main)
    mean, variance = np.array(found[3:5], np.uint32).view(np.float32)
    assert found[2] == 0 and found[1] == 0xFFFFFFFF and abs(found[0] / 600 - 15.5) < 1.5
    assert abs(mean) < 0.15 and abs(variance - 1) < 0.2


def test_a_seed(tmp_path: Path) -> None:
    """A seed gives the same numbers again; the one that PEs begin with those of a fresh PE."""
    main = """
    for (@range(u16, 4)) |i| { v[i] = @as(u32, @random16()); }
    random.set_global_prng_seed(0xdeadbeef);
    for (@range(u16, 4)) |i| { v[4 + i] = @as(u32, @random16()); }
    random.set_global_prng_seed(7);
    v[8] = @as(u32, @random16());
    """
    found = run(tmp_path, 'const random = @import_module("<random>");', main)
    assert found[:4] == found[4:8] and len(set(found[:4])) == 4 and found[8] != found[0]


def test_a_counter_that_starts_again(tmp_path: Path) -> None:
    declarations = """
    const time = @import_module("<time>");
    var t = @zeros([3]u16);
    """
    main = """
    for (@range(u32, 20000)) |i| { v[15] += i; }
    time.get_timestamp(&t);
    v[0] = @as(u32, t[1]);
    time.reset_tsc_counter();
    time.get_timestamp(&t);
    v[1] = @as(u32, t[0]);
    v[2] = @as(u32, t[1]) + @as(u32, t[2]);
    """
    found = run(tmp_path, declarations, main)
    assert found[0] > 0 and 0 < found[1] < 20 and found[2] == 0


def test_traces_of_any_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main = """
    t.trace("hello"); t.trace(v[8] == 0); t.trace(@as(u8, 200)); t.trace(@as(i8, -2)); t.trace(@as(i16, -3));
    t.trace(@as(u16, 40000)); t.trace(@as(i32, -70000)); t.trace(v[8]); t.trace(@as(f16, 0.5)); t.trace(@as(f32, 1.25));
    """
    run(tmp_path, 'const t = @import_module("<debug>", .{ .key = "any", .buffer_size = 60 });', main)
    expected = ["hello", 1, 200, -2, -3, 40000, -70000, 0, 0.5, 1.25]
    assert debug_util(str(tmp_path / "out")).read_trace(0, 0, "any") == expected


def test_complex_constants(tmp_path: Path) -> None:
    holds(
        tmp_path,
        """const cx = @import_module("<complex>");
        const a = cx.get_complex(@as(f32, 1.0), 2.0);
        const b = cx.get_complex_64(3.0, -4.0);
        const h = cx.get_complex_32(0.5, 1.5);""",
        "@is_same_type(@type_of(a), cx.complex_64) and @is_same_type(@type_of(h), cx.complex(f16))",
        "cx.add_complex(a, b).real == 4.0 and cx.add_complex_64(a, b).imag == -2.0",
        "cx.subtract_complex(a, b).real == -2.0 and cx.subtract_complex_64(a, b).imag == 6.0",
        "cx.multiply_complex(a, b).real == 11.0 and cx.multiply_complex_64(a, b).imag == 2.0",
        "cx.multiply_complex_32(h, h).real == -2.0 and cx.add_complex_32(h, h).imag == 3.0",
        "cx.subtract_complex_32(h, h).real == 0.0",
    )  # fmt: skip
    assert run(tmp_path, 'const cx = @import_module("<complex>"); var z = cx.get_complex_64(1.0, 2.0);',
               "z.real += 0.5; v[0] = @as(u32, 4.0 * z.real * z.imag);")[0] == 12  # fmt: skip
