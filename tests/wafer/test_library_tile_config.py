"""<tile_config>: what a PE changes in its router while it runs, seen in where its wavelets go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openwafer.wafer.csl.diagnostics import CompileFailed
from tests.wafer.programs import build, get, start

EXPORTS = '@export_name("v", [*]u32, true); @export_name("main", fn() void);'
ROUTES = "@set_color_config(0, 0, @get_color(3), .{ .routes = .{ .rx = .{RAMP}, .tx = .{EAST} } });"
BODY = """
const tile = @import_module("<tile_config>");
const switches = tile.switch_config;
const colors = tile.color_config;
const control = @import_module("<control>");
const c = @get_color(3);
const iq = @get_input_queue(3);
const oq = @get_output_queue(4);
const to = @get_dsd(fabout_dsd, .{ .extent = 1, .fabric_color = c, .output_queue = oq });
const command = @get_dsd(fabout_dsd, .{ .extent = 1, .fabric_color = c, .output_queue = oq, .control = true });
const from = @get_dsd(fabin_dsd, .{ .extent = 1, .fabric_color = c, .input_queue = iq });
var v = @zeros([8]u32);
var v_ptr: [*]u32 = &v;
const here = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{1} -> v[i] });
DECLARATIONS
fn main() void {
  if (x != 0) { sys.unblock_cmd_stream(); return; }
  MAIN
}
comptime {
  @initialize_queue(iq, .{ .color = c });
  if (@is_arch("wse3")) @initialize_queue(oq, .{ .color = c });
  @export_symbol(v_ptr, "v");
  @export_symbol(main);
}
"""
ECHO = "@mov32(to, 42); @mov32(here, from); sys.unblock_cmd_stream();"


def run(folder: Path, main: str, arch: str, declarations: str = "") -> list[int]:
    """v of the first of two PEs, whose color 3 goes from its ramp to the east."""
    body = BODY.replace("MAIN", main).replace("DECLARATIONS", declarations)
    build(folder, body, EXPORTS, width=2, routes=ROUTES, arch=arch)
    runtime = start(folder)
    runtime.launch("main")
    found = get(runtime, "v", 8, np.uint32).tolist()
    runtime.stop()
    return found


ANY = [
    "colors.reset_routes(c, .{ .rx = RAMP, .tx = RAMP });",
    "colors.reset_routes(colors.get_color_config_addr(c), .{ .rx = [1]direction{RAMP}, .tx = [1]direction{RAMP} });",
    "switches.set_tx_switch_pos1(c, RAMP); switches.set_current_switch_position(c, 1);",
    "switches.set_switch_pos(switches.switch_pos.POS3, c, RAMP, switches.switch_select.OUTPUT); "
    "switches.set_current_switch_position(switches.get_switch_config_addr(c, switches.switch_pos), 3);",
    "switches.set_current_switch_position(c, 2); switches.clear_current_position(c); "
    "switches.set_invalid_for_all_switch_positions(c); colors.reset_routes(c, .{ .rx = RAMP, .tx = RAMP });",
]
WSE2 = [
    "colors.clear_io_direction(c, colors.fabric_io.TX_EAST); colors.set_io_direction(c, colors.fabric_io.TX_RAMP);",
    "colors.toggle_io_direction(c, colors.fabric_io.TX_EAST); colors.toggle_io_direction(c, colors.fabric_io.TX_RAMP);",
]
WSE3 = [
    "switches.set_rxtx_switch_pos2(c, RAMP, RAMP); switches.set_current_switch_position(c, 2);",
    "switches.set_rxtx_switch_pos(switches.switch_pos.POS1, c, RAMP, RAMP); "
    "switches.set_current_switch_position(c, 1);",
]


@pytest.mark.parametrize(
    ("arch", "change"),
    [*(("wse2", c) for c in ANY + WSE2), *(("wse3", c) for c in ANY + WSE3)],
)
def test_a_color_that_turns_round(tmp_path: Path, arch: str, change: str) -> None:
    """After the change what is sent comes back to the ramp."""
    assert run(tmp_path, change + ECHO, arch)[0] == 42


@pytest.mark.parametrize("arch", ["wse2", "wse3"])
def test_what_is_pending(tmp_path: Path, arch: str) -> None:
    declarations = """
    fn torn_down() void {
      const pending = tile.teardown.get_pending();
      v[0] = pending;
      v[1] = @as(u32, tile.teardown.is_pending(pending, c)) + 2 * @as(u32, tile.teardown.is_pending(pending, iq_color));
      tile.teardown.exit(c);
      v[2] = tile.teardown.get_pending();
      v[3] = @as(u32, @get_int(tile.teardown.get_task_id()));
      sys.unblock_cmd_stream();
    }
    const iq_color = @get_color(5);
    comptime { @set_teardown_handler(torn_down, c); }
    """
    main = """
    colors.reset_routes(c, .{ .rx = RAMP, .tx = RAMP });
    @mov32(command, control.encode_single_payload(control.opcode.TEARDOWN, true, {}, 0));
    """
    assert run(tmp_path, main, arch, declarations)[:4] == [8, 1, 0, 29]


def test_a_flushed_queue(tmp_path: Path) -> None:
    declarations = """
    fn flushed() void {
      const status = tile.queue_flush.oq_status();
      v[0] = @as(u32, status);
      v[1] = @as(u32, tile.queue_flush.is_flushed(status, oq));
      tile.queue_flush.exit(oq);
      v[2] = @as(u32, tile.queue_flush.oq_status());
      sys.unblock_cmd_stream();
    }
    comptime { @set_empty_queue_handler(flushed, oq); }
    """
    main = "colors.reset_routes(c, .{ .rx = RAMP, .tx = RAMP }); @queue_flush(oq);"
    assert run(tmp_path, main, "wse3", declarations)[:3] == [16, 1, 0]


def test_where_the_pe_lies(tmp_path: Path) -> None:
    main = """
    v[0] = @as(u32, tile.get_fabric_coord(tile.fabric_coord.X));
    v[1] = @as(u32, tile.get_fabric_coord(tile.fabric_coord.Y));
    @comptime_assert(@is_same_type(tile.reg_type, u16) and @is_same_type(tile.double_reg_type, u32));
    @comptime_assert(tile.word_size == 2 and @is_arch(tile.target_name));
    sys.unblock_cmd_stream();
    """
    assert run(tmp_path, main, "wse3")[:2] == [0, 0]


@pytest.mark.parametrize(
    ("arch", "call", "text"),
    [
        ("wse2", "switches.set_rxtx_switch_pos1(c, RAMP, EAST);", "changes rx or tx, not both"),
        ("wse3", "colors.set_io_direction(c, colors.fabric_io.TX_RAMP);", "not supported yet: directions one by one"),
        ("wse3", "switches.set_pop_mode(c, switches.pop_mode.NO_POP);", "not supported yet: another pop mode"),
    ],
)
def test_what_is_refused(tmp_path: Path, arch: str, call: str, text: str) -> None:
    with pytest.raises(CompileFailed, match=text):
        run(tmp_path, call, arch)
