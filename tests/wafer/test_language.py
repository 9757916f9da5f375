"""Constructs of CSL from source to result, each against what Python computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openwafer.wafer.csl.diagnostics import CompileFailed
from tests.wafer.programs import build, get, put, start

EXPORTS = '@export_name("a", [*]u32, true); @export_name("b", [*]u32, true); @export_name("run", fn()void);'
SYMBOLS = 'comptime { @export_symbol(a_ptr, "a"); @export_symbol(b_ptr, "b"); @export_symbol(run); }'
ARRAYS = "var a = @zeros([8]u32); var b = @zeros([8]u32); const a_ptr: [*]u32 = &a; var b_ptr: [*]u32 = &b;"
ARCHITECTURES = pytest.mark.parametrize("arch", ["wse2", "wse3"])


def results(
    folder: Path, statements: str, declarations: str = "", values: tuple[int, ...] = (), arch: str = "wse2",
    dtype: type = np.uint32,
) -> list:  # fmt: skip
    """What `run` puts into b, given a."""
    body = f"{ARRAYS}\n{declarations}\nfn run() void {{ {statements}\n sys.unblock_cmd_stream(); }}\n{SYMBOLS}"
    build(folder, body, EXPORTS, arch=arch)
    runtime = start(folder)
    put(runtime, "a", np.array((*values, *[0] * 8)[:8], np.uint32))
    runtime.launch("run")
    return get(runtime, "b", 8, dtype).tolist()


def refused(folder: Path, statements: str, message: str, declarations: str = "", arch: str = "wse2") -> None:
    with pytest.raises(CompileFailed, match=message):
        results(folder, statements, declarations, arch=arch)


BLOCKS = """
fn classify(n: u32) u32 {
  return found: {
    if (n < 2) break :found 0;
    if (n % 2 == 0) { break :found n / 2; }
    var i: u32 = 3;
    while (true) : (i += 2) {
      if (i * i > n) break :found 1;
      if (n % i == 0) break :found n / i;
    }
  };
}
"""


@ARCHITECTURES
def test_a_labelled_block_has_a_value(tmp_path, arch):
    values = (0, 1, 2, 7, 9, 35, 49, 97)
    code = "for (@range(u16, 8)) |i| { b[i] = classify(a[i]); }"
    assert results(tmp_path, code, BLOCKS, values, arch) == [0, 0, 1, 1, 3, 7, 7, 1]


def test_break_leaves_the_block_that_it_names(tmp_path):
    code = """
    for (@range(u16, 8)) |i| {
      outer: {
        if (a[i] == 1) break :outer;
        b[i] += 1;
        inner: {
          if (a[i] == 2) break :outer;
          if (a[i] == 3) break :inner;
          if (a[i] == 4) break;
          b[i] += 10;
        }
        b[i] += 100;
      }
      b[i] += 1000;
    }
    """
    assert results(tmp_path, code, values=(1, 2, 3, 0, 4)) == [1000, 1001, 1101, 1111, 1, 0, 0, 0]


def test_a_block_may_be_known_at_compile_time(tmp_path):
    code = """
    var n: u32 = 4;
    const x1 = blk: { n += 1; break :blk 1; } + 42;
    @comptime_assert(x1 == 43);
    const y = if (a[0] == 0) one: { n += 10; break :one n; } else two: { n += 100; break :two n; };
    b[0] = n; b[1] = x1; b[2] = y;
    const z = comptime all: { var i: u16 = 0; while (true) { i += 1; if (i == 7) break :all i; } };
    b[3] = z;
    """
    assert results(tmp_path, code)[:4] == [15, 43, 15, 7]


def test_unrolled_loops_are_left_at_run_time(tmp_path):
    code = """
    inline for (@range(u16, 8)) |i| {
      if (a[i] == 5) continue;
      if (a[i] == 6) break;
      b[i] = a[i] + @as(u32, i);
      if (i == 6) break;
    }
    """
    assert results(tmp_path, code, values=(1, 5, 2, 6, 1)) == [1, 0, 4, 0, 0, 0, 0, 0]
    assert results(tmp_path, code, values=(1, 5, 2, 1, 1, 1, 1, 1)) == [1, 0, 4, 4, 5, 6, 7, 0]


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ("blk: { if (a[0] == 0) break :blk 3; }", "this block may end without a value"),
        ("blk: { blk: { } }", 'the label "blk" is in use here'),
        ("blk: { continue :blk; }", 'no loop "blk" here'),
        ("blk: { break; }", "break outside of a loop"),
        ("while (true) { break :other; }", 'no loop or block "other" here'),
        ("l: while (true) { break :l 3; }", "is a loop, which has no value"),
        ("const c = blk: { if (a[0] == 0) break :blk 1; break :blk 2; };", "need a sized type"),
    ],
)
def test_mistakes_with_blocks(tmp_path, statements, message):
    refused(tmp_path, statements, message)


POINTS = """
const Point = struct { x: u32, y: u16, tag: u8 };
const Pair = struct { first: Point, second: Point };
fn point(n: u32) Point { return Point{ .x = n, .y = @as(u16, n + 1), .tag = 7 }; }
fn sum(p: Point) u32 { return p.x + @as(u32, p.y) + @as(u32, p.tag); }
fn moved(p: Point, by: u32) Point {
  var q = p;
  q.x += by;
  return q;
}
fn pair(p: Point, q: Point) Pair { return Pair{ .first = q, .second = p }; }
var shared = Point{ .x = 100, .y = 5, .tag = 1 };
fn clobber(p: Point) u32 { shared.x = 1; return p.x; }
fn either(c: bool) Point { if (c) { return shared; } return .{ .x = 9, .y = 8, .tag = 3 }; }
"""


@ARCHITECTURES
def test_structs_go_by_value(tmp_path, arch):
    code = """
    const p = point(a[0]);
    b[0] = sum(p);
    b[1] = sum(moved(moved(p, 1), a[1]));
    const both = pair(p, point(50));
    b[2] = both.first.x * 1000 + both.second.x;
    b[3] = clobber(shared);
    b[4] = shared.x;
    b[5] = sum(either(a[0] == 3)) + sum(either(a[0] == 4));
    const v = blk: { if (a[0] == 3) break :blk [3]u32{ a[0], a[1], 6 }; break :blk [3]u32{ 1, 2, 3 }; };
    b[6] = v[0] * 100 + v[1] * 10 + v[2];
    b[7] = sum(.{ .x = a[0], .y = 1, .tag = 1 });
    """
    assert results(tmp_path, code, POINTS, (3, 5), arch) == [14, 20, 50003, 100, 1, 27, 356, 5]


def test_generic_structs_go_by_value(tmp_path):
    declarations = """
    fn Pair(comptime A: type, comptime B: type) type { return struct { a: A, b: B }; }
    fn swapped(p: anytype) Pair(u32, u16) { return Pair(u32, u16){ .a = @as(u32, p.b), .b = @as(u16, p.a) }; }
    """
    code = """
    var p = Pair(u16, u32){ .a = 3, .b = 4 };
    p.a = @as(u16, a[0]);
    const q = swapped(p);
    b[0] = q.a; b[1] = q.b;
    const known = comptime swapped(Pair(u16, u32){ .a = 1, .b = 2 });
    b[2] = known.a * 10 + @as(u32, known.b);
    """
    assert results(tmp_path, code, declarations, (9,))[:3] == [4, 9, 21]


@pytest.mark.parametrize(
    ("statements", "declarations", "message"),
    [
        ("b[0] = f(S{ .x = 1 });", "const S = struct { x: u32 }; fn f(s: S) u32 { s.x = 2; return s.x; }",
         "this is constant"),
        ("_ = f(S{ .x = a[0] });",
         "const S = struct { x: u32 }; fn f(s: S) S { if (s.x == 0) { return s; } return f(S{ .x = s.x - 1 }); }",
         r"f calls itself and has variables in memory \(f.literal, f.result\)"),
    ],
)  # fmt: skip
def test_mistakes_with_structs(tmp_path, statements, declarations, message):
    refused(tmp_path, statements, message, declarations)


MODULE = """
param name: comptime_string = "counter";
extern var total: u32;
extern fn weigh(n: u32) u32;
export var counter: u32 linkname(name) = 5;
export const table = [3]u32{ 7, 8, 9 };
export fn bump(by: u32) u32 { counter += weigh(by); total += by; return counter; }
"""
LINKED = """
extern fn bump(u: u32) u32;
const m = @import_module("module.csl", .{ .name = "shared" });
export var total: u32 = 100;
extern var also: u32 linkname("total");
extern var shared: u32;
extern const table: [3]u32;
export fn twice(n: u32) u32 linkname("weigh") { return 2 * n; }
"""


@ARCHITECTURES
def test_symbols_are_shared_by_name(tmp_path, arch):
    (tmp_path / "module.csl").write_text(MODULE)
    code = """
    b[0] = bump(a[0]);
    shared += 1;
    b[1] = m.bump(a[1]);
    also += 1000;
    b[2] = total;
    b[3] = table[a[0]];
    """
    assert results(tmp_path, code, LINKED, (1, 10), arch)[:4] == [7, 28, 1111, 8]


@pytest.mark.parametrize(
    ("declarations", "message"),
    [
        ("extern var x1: u32; fn f() u32 { return x1; }", 'no module of this program exports "x1"'),
        ("extern var x1: u32; export var x1a: u16 linkname(\"x1\") = 1; fn f() u32 { return x1; }",
         'the symbol "x1" is declared elsewhere as var of type u16'),
        ("export var x1: u32 = 0; export var x2: u32 linkname(\"x1\") = 0; fn f() u32 { return x1; }",
         'the symbol "x1" is exported twice'),
        ("extern var x1: u32 = 3; fn f() u32 { return x1; }", "an extern variable has a type and no value"),
        ("export var x1: mem1d_dsd; fn f() u32 { return 1; }", "a value of type mem1d_dsd cannot be export"),
        ("extern fn g() u32; fn f() u32 { return comptime g(); }", "g is extern; it cannot be called at compile time"),
    ],
)  # fmt: skip
def test_mistakes_with_shared_symbols(tmp_path, declarations, message):
    refused(tmp_path, "b[0] = f();", message, declarations)


@ARCHITECTURES
def test_an_access_is_a_struct(tmp_path, arch):
    declarations = """
    var grid = @zeros([12, 12]u32);
    const whole = |i, j, k, l|{5, 5, 5, 5} -> grid[i + j, k + l + 2];
    const line: comptime_struct = |i|{3} -> grid[i, 2 * i + 1];
    comptime {
      @comptime_assert(whole.offset == 2 and whole.stride[0] == 1 and whole.stride[1] == -3);
      @comptime_assert(whole.stride[2] == 4 and whole.stride[3] == -44 and whole.extent[3] == 5);
      @comptime_assert(line.stride[0] == 14 and line.extent[0] == 3 and line.offset == 1);
    }
    const square = |i, j|{2, 3} -> grid[i + 1, j];
    const one = @get_dsd(mem1d_dsd, .{ .tensor_access = line });
    const same = @get_dsd(mem1d_dsd, .{
      .base_address = line.base_address, .offset = line.offset, .stride = line.stride, .extent = line.extent
    });
    const tail = .{ .base_address = &grid, .offset = 26, .stride = 12, .extent = 1 };
    const third = @get_dsd(mem1d_dsd, .{ .tensor_access = tail });
    const last = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{1} -> b[i + 7] });
    const four = @get_dsd(mem4d_dsd, .{
      .base_address = square.base_address, .offset = square.offset, .stride = square.stride, .extent = square.extent
    });
    const out = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{6} -> b[i] });
    """
    code = """
    for (@range(u16, 4)) |i| { for (@range(u16, 5)) |j| { grid[i, j] = @as(u32, 10 * i + j); } }
    @mov32(out, four);
    const sixth = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{1} -> b[6] });
    @mov32(sixth, @set_dsd_length(@increment_dsd_offset(same, 12, u32), 1));
    @mov32(last, third);
    """
    found = results(tmp_path, code, declarations, arch=arch)
    assert found == [10, 11, 12, 20, 21, 22, 11, 22]


FIFO = """
var buffer = @zeros([4]u32);
const fifo = @allocate_fifo(buffer);
var source = [6]u32{ 1, 2, 3, 4, 5, 6 };
var sink = @zeros([6]u32);
const six = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{6} -> source[i] });
const into = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{6} -> sink[i] });
const two = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{2} -> source[i] });
const into_two = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{2} -> sink[i] });
"""


@ARCHITECTURES
def test_an_operation_says_whether_it_completed(tmp_path, arch):
    code = """
    b[0] = if (@mov32(fifo, two)) 1 else 2;
    b[1] = if (@mov32(fifo, six)) 1 else 2;
    const read = @mov32(into, fifo);
    b[2] = @as(u32, read);
    b[3] = sink[3];
    @mov32(fifo, two);
    b[4] = @as(u32, @mov32(into_two, fifo));
    var total: u32 = 7;
    b[5] = @as(u32, @mov32(&total, fifo));
    b[6] = total;
    b[7] = if (ops.mov(u32, into_two, two, .{})) 1 else 2;
    """
    declarations = FIFO + 'const ops = @import_module("<dsd_ops>");'
    assert results(tmp_path, code, declarations, arch=arch) == [1, 2, 0, 2, 1, 1, 7, 1]


@ARCHITECTURES
def test_lengths_of_fifos(tmp_path, arch):
    code = """
    @set_fifo_write_length(fifo, 3);
    b[0] = @as(u32, @mov32(fifo, 9));
    @set_fifo_read_length(fifo, 2);
    var last: u32 = 0;
    b[1] = @as(u32, @mov32(&last, fifo));
    b[2] = last;
    b[3] = @as(u32, @mov32(&last, fifo));
    """
    assert results(tmp_path, code, FIFO, arch=arch)[:4] == [1, 1, 9, 0]
    refused(tmp_path, "@set_fifo_read_length(two, 2);", "@set_fifo_read_length needs a FIFO, found mem1d_dsd", FIFO)


@ARCHITECTURES
@pytest.mark.parametrize("action", ["terminate", "activate", "unblock"])
def test_a_control_wavelet_ends_an_operation(tmp_path, arch, action):
    """Three words and a control wavelet for an operation that would take ten; then three words more for another."""
    given = {"terminate": "true", "activate": "@get_local_task_id(12)", "unblock": "@get_local_task_id(12)"}[action]
    declarations = f"""
    const c = @get_color(3);
    const iq = @get_input_queue(3);
    const oq = @get_output_queue(4);
    const control = @import_module("<control>");
    var words = [3]u32{{ 5, 6, 7 }};
    const three = @get_dsd(mem1d_dsd, .{{ .tensor_access = |i|{{3}} -> words[i] }});
    const ten = @get_dsd(mem1d_dsd, .{{ .tensor_access = |i|{{10}} -> taken[i] }});
    var taken = @zeros([10]u32);
    const rest = @get_dsd(mem1d_dsd, .{{ .tensor_access = |i|{{3}} -> b[3 + i] }});
    const to = @get_dsd(fabout_dsd, .{{ .extent = 3, .fabric_color = c, .output_queue = oq }});
    const command = @get_dsd(fabout_dsd, .{{ .extent = 1, .fabric_color = c, .output_queue = oq, .control = true }});
    const from = @get_dsd(fabin_dsd, .{{ .extent = 10, .fabric_color = c, .input_queue = iq }});
    const from3 = @get_dsd(fabin_dsd, .{{ .extent = 3, .fabric_color = c, .input_queue = iq }});
    task ended() void {{ b[6] = 1; finish(); }}
    task never() void {{ b[7] = 1; }}
    fn finish() void {{
      @mov32(to, three);
      @mov32(rest, from3);
      for (@range(u16, 3)) |i| {{ b[i] = taken[i]; }}
      sys.unblock_cmd_stream();
    }}
    comptime {{
      @set_local_color_config(c, .{{ .routes = .{{ .rx = .{{ RAMP }}, .tx = .{{ RAMP }} }} }});
      @initialize_queue(iq, .{{ .color = c }});
      if (@is_arch("wse3")) @initialize_queue(oq, .{{ .color = c }});
      @bind_local_task(ended, @get_local_task_id(12));
      @bind_local_task(never, @get_local_task_id(13));
      {"@block(@get_local_task_id(12)); @activate(@get_local_task_id(12));" if action == "unblock" else ""}
    }}
    """
    waits = "if (true) { var n: u16 = 0; while (n < 60) : (n += 1) {} finish(); return; }"
    code = f"""
    @mov32(ten, from, .{{
      .async = true, .activate = @get_local_task_id(13), .on_control = .{{ .{action} = {given} }}
    }});
    @mov32(to, three);
    @mov32(command, control.encode_single_payload(control.opcode.NOP, false, @get_control_task_id(5), 0));
    {waits if action == "terminate" else "if (true) return;"}
    """
    found = results(tmp_path, code, declarations, arch=arch)
    assert found == [5, 6, 7, 5, 6, 7, int(action != "terminate"), 0]
