"""Rotating tasks, control-task tables, and the registers behind DSDs."""

from __future__ import annotations

import re

import numpy as np
import pytest

from openwafer.wafer.csl.diagnostics import CompileFailed
from tests.wafer.programs import build, get, start
from tests.wafer.test_language import ARCHITECTURES, refused, results

ROTATING = """
var seen = @zeros([16]u32);
var seen_ptr: [*]u32 = &seen;
var at: u16 = 0;
task main(data: u32) void { seen[at] = data; at += 1; }
task alt(low: u16) void { seen[at] = 1000 + @as(u32, low); at += 1; }
fn send() void { if (x == 0) { @mov32(out, words_dsd); } sys.unblock_cmd_stream(); }
const words = [9]u32{ 1, 2, 3, 4, 5, 6, 7, 8, 9 };
const words_dsd = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{9} -> words[i] });
const c = @get_color(4);
const iq = @get_input_queue(3);
const oq = @get_output_queue(3);
const out = @get_dsd(fabout_dsd, .{ .extent = 9, .output_queue = oq });
comptime {
  @export_symbol(seen_ptr, "seen");
  @export_symbol(send);
  if (x == 0) {
    @initialize_queue(oq, .{ .color = c });
    @set_local_color_config(c, .{ .routes = .{ .rx = .{ RAMP }, .tx = .{ EAST } } });
  } else {
    @initialize_queue(iq, .{ .color = c, .ctrl_table_id = 0 });
    @set_local_color_config(c, .{ .routes = .{ .rx = .{ WEST }, .tx = .{ RAMP } } });
    @set_control_task_table(.{ .instructions = 8, .stride = 2 });
    @bind_rotating_tasks(main, alt, @get_data_task_id(iq), CONFIG);
  }
}
"""
EXPORTS = '@export_name("seen", [*]u32, true); @export_name("send", fn()void);'


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (".{ .limit = 3 }", [1, 2, 3, 1004, 5, 6, 7, 1008, 9]),
        (".{ .init = 2, .limit = 3 }", [1, 1002, 3, 4, 5, 1006, 7, 8, 9]),
        (".{ .limit = 0 }", [1001, 1002, 1003, 1004, 1005, 1006, 1007, 1008, 1009]),
    ],
)
def test_every_nth_start_is_of_the_other_task(tmp_path, config, expected):
    build(tmp_path, ROTATING.replace("CONFIG", config), EXPORTS, width=2, arch="wse3")
    runtime = start(tmp_path)
    runtime.launch("send")
    assert get(runtime, "seen", 9, np.uint32, x=1).tolist() == expected


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("CONFIG", ".{ .init = 4, .limit = 3 }", r".init = 4 is out of range (0 to 3)"),
        ("CONFIG", ".{}", "@bind_rotating_tasks needs .limit"),
        (".instructions = 8", ".instructions = 3", ".instructions of a control-task table is 2, 4 or 8"),
        (".stride = 2", ".stride = 8", ".stride = 8 is out of range (1 to 7)"),
        ("@get_data_task_id(iq)", "@get_control_task_id(3)", "needs a data_task_id, found control_task_id"),
        ("ctrl_table_id = 0", "ctrl_table_id = 1", "not supported yet: .ctrl_table_id other than 0"),
        ("@set_control_task_table(", "@set_control_task_table(); @set_control_task_table(", "is called twice"),
    ],
)
def test_mistakes_with_rotation(tmp_path, old, new, message):
    body = ROTATING.replace(old, new).replace("CONFIG", ".{ .limit = 3 }")
    with pytest.raises(CompileFailed, match=re.escape(message)):
        build(tmp_path, body, EXPORTS, width=2, arch="wse3")


def test_only_wse3_rotates(tmp_path):
    refused(tmp_path, "", "wse2 has no @set_control_task_table", "comptime { @set_control_task_table(); }")


REGISTERS = """
const dest = @get_dsr(dsr_dest, 1);
const src = @get_dsr(dsr_src1, 2);
const xd = @get_xdsr(1);
const xs = @get_xdsr(2);
const s1 = @get_sr(0);
const s2 = @get_sr(1);
const s3 = @get_sr(2);
var grid = @zeros([4, 4]u32);
const column = @get_dsd(mem4d_dsd, .{ .tensor_access = |i, j|{2, 3} -> grid[j, 2 * i] });
const first = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{6} -> a[i] });
const result = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{6} -> b[i] });
comptime {
  @load_to_dsr_xdsr_sr(dest, xd, .{ s1 }, column);
  @comptime_assert(xd != xs and xd == @get_xdsr(1) and dest == @get_dsr(dsr_dest, 1) and s1 != s2);
  @comptime_assert(@get_int(xs) == 2 and @get_int(src) == 2 and @get_int(s3) == 2);
}
"""


@ARCHITECTURES
def test_registers_of_many_dimensions(tmp_path, arch):
    code = """
    @mov32(dest, first);
    var moving = column;
    @load_to_dsr_xdsr_sr(src, xs, .{ s1, s2, s3 }, moving, .{ .save_address = true });
    @mov32(result, src);
    b[6] = grid[1, 2];
    """
    values = (5, 6, 7, 8, 9, 10)
    # Innermost first: j runs down a column, i over columns 0 and 2; grid[1, 2] is the fifth of them.
    assert results(tmp_path, code, REGISTERS, values, arch)[:7] == [
        *values, 9,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("@load_to_dsr_xdsr_sr(src, xs, .{}, column);", "this DSD needs 1 stride registers, 0 are given"),
        ("@load_to_dsr_xdsr_sr(src, xs, .{ s1 }, first);", "takes a mem4d_dsd, found mem1d_dsd"),
        ("@load_to_dsr_xdsr_sr(src, s1, .{ s1 }, column);", "needs an XDSR from @get_xdsr, found sr"),
        ("_ = @get_xdsr(16);", r"xdsr 16 does not exist \(0 to 15\)"),
        ("b[0] = if (xd < xs) 1 else 0;", "< is not defined for xdsr"),
    ],
)
def test_mistakes_with_registers(tmp_path, statement, message):
    refused(tmp_path, statement, message, REGISTERS)
