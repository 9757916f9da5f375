"""<tile_config>: what a PE changes in its router while it runs, seen in where its wavelets go."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openwafer.wafer.csl.diagnostics import CompileFailed
from openwafer.wafer.sim.engine import SimulationError
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


def run(folder: Path, main: str, arch: str, declarations: str = "", routes: str = ROUTES) -> list[int]:
    """v of the first of two PEs, whose color 3 goes from its ramp to the east."""
    body = BODY.replace("MAIN", main).replace("DECLARATIONS", declarations)
    build(folder, body, EXPORTS, width=2, routes=routes, arch=arch)
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
ANY += [
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
    [*(("wse2", c) for c in ANY), *(("wse3", c) for c in ANY + WSE3)],
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
        ("wse2", "tile.filters.set_state(3, tile.filters.counter_filter_state.PASS);", "is WSE-3's"),
    ],
)
def test_what_is_refused(tmp_path: Path, arch: str, call: str, text: str) -> None:
    with pytest.raises(CompileFailed, match=text):
        run(tmp_path, call, arch)


BACK = "colors.reset_routes(c, .{ .rx = RAMP, .tx = RAMP });"


@pytest.mark.parametrize("arch", ["wse2", "wse3"])
def test_modes_of_switches(tmp_path: Path, arch: str) -> None:
    """Two commands to advance: with ring mode the switch is back, without it stays at the second position."""
    main = f"""
    {BACK}
    switches.set_tx_switch_pos1(c, NORTH);
    switches.set_ring_mode(c, switches.ring_mode.RING_MODE);
    switches.set_pop_mode(c, switches.pop_mode.ALWAYS_POP);
    @mov32(command, control.encode_single_payload(control.opcode.SWITCH_ADV, true, {{}}, 0));
    @mov32(command, control.encode_single_payload(control.opcode.SWITCH_ADV, true, {{}}, 0));
    """
    assert run(tmp_path, main + ECHO, arch)[0] == 42


@pytest.mark.parametrize("arch", ["wse2", "wse3"])
def test_the_state_of_queues(tmp_path: Path, arch: str) -> None:
    main = f"""
    {BACK}
    const before = tile.input_queue_status.get();
    v[0] = @as(u32, tile.input_queue_status.is_empty(before, iq));
    const full_queue = @get_dsd(fabout_dsd, .{{ .extent = 30, .fabric_color = c, .output_queue = oq }});
    @mov32(full_queue, 7, .{{ .async = true }});
    var i: u16 = 0;
    while (i < 100) : (i += 1) {{}}
    const now = tile.input_queue_status.get();
    v[1] = @as(u32, tile.input_queue_status.is_full(now, iq)) + 2 * @as(u32, tile.input_queue_status.none_full(now));
    v[2] = @as(u32, tile.input_queue_status.is_empty(now, iq)) + 2 * @as(u32, tile.input_queue_status.all_empty(now));
    v[3] = @as(u32, tile.output_queue_status.is_full(tile.output_queue_status.get(), oq));
    v[4] = @as(u32, tile.output_queue_status.is_empty(tile.output_queue_status.get(), @get_output_queue(2)));
    v[5] = @as(u32, tile.output_queue_status.get_raw() & 0xFF);
    v[6] = @as(u32, tile.input_queue_status.get_raw() >> 8);
    sys.unblock_cmd_stream();
    """
    everywhere = 0xFF if arch == "wse3" else 0x3F
    assert run(tmp_path, main, arch)[:7] == [1, 1, 0, 1, 1, everywhere & ~16, 8]


TURNS = """
var at: u16 = 0;
task first() void { v[at] = 1; at += 1; if (at == 3) sys.unblock_cmd_stream(); }
task second() void { v[at] = 2; at += 1; if (at == 3) sys.unblock_cmd_stream(); }
task third() void { v[at] = 3; at += 1; if (at == 3) sys.unblock_cmd_stream(); }
comptime {
  @bind_local_task(first, @get_local_task_id(8));
  @bind_local_task(second, @get_local_task_id(9));
  @bind_local_task(third, @get_local_task_id(10));
  SETUP
}
"""
ALL_THREE = "@activate(@get_local_task_id(8)); @activate(@get_local_task_id(9)); @activate(@get_local_task_id(10));"


@pytest.mark.parametrize(
    ("setup", "main", "order"),
    [
        ("", "", [1, 2, 3]),
        ("tile.task_priority.set_task_priority(@get_local_task_id(10));", "", [3, 1, 2]),
        ("", "tile.task_priority.set_task_priority(@get_local_task_id(9));", [2, 3, 1]),
        (
            "tile.task_priority.set_task_priority(@get_local_task_id(10));",
            "tile.task_priority.clear_task_priority(@get_local_task_id(10));",
            [1, 2, 3],
        ),
        (
            "",
            "tile.task_priority.update_task_priority(@get_local_task_id(10), tile.task_priority.level.HIGH);",
            [3, 1, 2],
        ),
    ],
)
def test_priorities_of_tasks(tmp_path: Path, setup: str, main: str, order: list[int]) -> None:
    assert run(tmp_path, main + ALL_THREE, "wse2", TURNS.replace("SETUP", setup))[:3] == order


@pytest.mark.parametrize(("level", "is_ahead"), [("HIGH", True), ("MEDIUM_HIGH", True), ("MEDIUM_LOW", False)])
@pytest.mark.parametrize("arch", ["wse2", "wse3"])
def test_the_priority_of_the_main_thread(tmp_path: Path, arch: str, level: str, is_ahead: bool) -> None:
    """A microthread that could issue every cycle, of medium priority, beside the main thread."""
    declarations = f"""
    const time = @import_module("<time>");
    var stamps = @zeros([3]u16);
    var many = @zeros([500]u32);
    const block = @get_dsd(mem1d_dsd, .{{ .tensor_access = |i|{{500}} -> many[i] }});
    task done() void {{ sys.unblock_cmd_stream(); }}
    comptime {{
      @bind_local_task(done, @get_local_task_id(9));
      tile.main_thread_priority.update_main_thread_priority(tile.main_thread_priority.level.{level});
    }}
    """
    thread = ", .ut_id = @get_ut_id(5)" if arch == "wse3" else ""
    main = f"""
    {BACK}
    const source = @get_dsd(fabout_dsd, .{{ .extent = 500, .fabric_color = c, .output_queue = oq }});
    const target = @get_dsd(fabin_dsd, .{{ .extent = 500, .fabric_color = c, .input_queue = iq }});
    time.get_timestamp(&stamps);
    const start = stamps[0];
    TRAFFIC
    var i: u16 = 0;
    while (i < 100) : (i += 1) {{}}
    time.get_timestamp(&stamps);
    v[0] = @as(u32, stamps[0] - start);
    """
    traffic = f"""
    @mov32(source, block, .{{ .async = true }});
    @mov32(block, target, .{{ .async = true{thread}, .activate = @get_local_task_id(9) }});
    """
    cycles = run(tmp_path, main.replace("TRAFFIC", traffic), arch, declarations)[0]
    alone = run(tmp_path, main.replace("TRAFFIC", "") + "sys.unblock_cmd_stream();", arch, declarations)[0]
    assert cycles < 1.5 * alone if is_ahead else cycles > 2 * alone  # what starts the two takes some cycles


@pytest.mark.parametrize("arch", ["wse2", "wse3"])
def test_control_wavelets_through_memory(tmp_path: Path, arch: str) -> None:
    """A control wavelet goes through memory as an element and starts a control task, with another entry point."""
    declarations = """
    comptime {
      tile.control_transform.set_mask(0xFFC5);
      @bind_control_task(arrived, @get_control_task_id(7 ^ 5));
    }
    task arrived(data: u16) void {
      v[3] = @as(u32, data);
      sys.unblock_cmd_stream();
    }
    const both_out = @get_dsd(fabout_dsd, .{
      .extent = 3, .fabric_color = c, .output_queue = oq, .control_transform = true
    });
    const both_in = @get_dsd(fabin_dsd, .{
      .extent = 3, .fabric_color = c, .input_queue = iq, .control_transform = true
    });
    const three = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{3} -> v[i] });
    const rest = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{2} -> v[4 + i] });
    const from2 = @get_dsd(fabin_dsd, .{ .extent = 2, .fabric_color = c, .input_queue = iq });
    """
    main = f"""
    {BACK}
    @mov32(to, 0x1234);
    @mov32(to, 0x5678);
    @mov32(command, control.encode_single_payload(control.opcode.NOP, false, @get_control_task_id(7), 42));
    @mov32(three, both_in);
    @mov32(both_out, three);
    @mov32(rest, from2);
    """
    payload = 7 << 16 | 42
    found = run(tmp_path, main, arch, declarations)
    assert found[:2] == found[4:6] == [0x1234, 0x5678]
    assert found[2] & 0x003FFFFF == payload and found[2] >> 30 == 3
    assert found[3] == 42


FILTERED = """
@set_color_config(0, 0, @get_color(3), .{
  .routes = .{ .rx = .{RAMP}, .tx = .{RAMP} },
  .filter = .{ .kind = .{ .counter = true }, .count_data = true, .init_counter = 0, .max_counter = 0, .limit1 = 3 },
});
"""
SENT = """
fn count_up() void { var i: u32 = 0; for (@range(u16, 12)) |k| { source[k] = i; i += 1; } }
var source = @zeros([12]u32);
const twelve = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{12} -> source[i] });
const out = @get_dsd(fabout_dsd, .{ .extent = 12, .fabric_color = c, .output_queue = oq });
"""


@pytest.mark.parametrize(
    ("arch", "change", "passed"),
    [
        ("wse2", "", [0, 4, 8]),
        ("wse2", "tile.filters.set_max_counter(3, 1);", [0, 1, 4]),
        ("wse2", "tile.filters.set_counter(3, 2);", [2, 6, 10]),
        ("wse2", "tile.filters.set_active_limit(3, 1);", [0, 2, 4]),
        ("wse3", "tile.filters.set_pass_count(3, 4);", [0, 1, 5]),
        ("wse3", "tile.filters.set_drop_count(3, 4);", [0, 3, 6]),
        ("wse3", "tile.filters.set_state(3, tile.filters.counter_filter_state.DROP);", [3, 7, 11]),
        ("wse3", "tile.filters.set_counter_and_state(3, 4, tile.filters.counter_filter_state.DROP);", [1, 5, 9]),
        (
            "wse3",
            "v[3] = tile.filters.get_pass_count(3); v[4] = tile.filters.get_drop_count(3); "
            "v[5] = tile.filters.get_counter_value(3); v[6] = @as(u32, tile.filters.get_state(3));",
            [0, 4, 8, 2, 6, 0, 0],
        ),
    ],
)
def test_filters(tmp_path: Path, arch: str, change: str, passed: list[int]) -> None:
    """Which of twelve wavelets come back; one passes and three are dropped before anything is changed."""
    main = f"""
    count_up();
    {change}
    @mov32(out, twelve, .{{ .async = true }});
    const three = @get_dsd(fabin_dsd, .{{ .extent = 3, .fabric_color = c, .input_queue = iq }});
    const v3 = @get_dsd(mem1d_dsd, .{{ .tensor_access = |i|{{3}} -> v[i] }});
    @mov32(v3, three);
    sys.unblock_cmd_stream();
    """
    assert run(tmp_path, main, arch, SENT, FILTERED)[: len(passed)] == passed


def test_a_color_without_filter(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="filter 3: the color has no counter filter"):
        run(tmp_path, "tile.filters.set_counter(3, 1);", "wse2")


def test_what_belongs_to_run_time(tmp_path: Path) -> None:
    with pytest.raises(CompileFailed, match="this is done at run time"):
        run(tmp_path, "", "wse2", "comptime { tile.filters.set_counter(3, 1); }")
