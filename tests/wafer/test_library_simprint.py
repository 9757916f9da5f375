"""<simprint>: what each function leaves in sim.log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openwafer.wafer.csl.diagnostics import CompileFailed
from tests.wafer.programs import build, start

EXPORTS = '@export_name("run", fn(u16, f32) void);'


def printed(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str, params: str = "") -> list[str]:
    """Lines of the log of a program of two PEs, without what stands before the text."""
    monkeypatch.chdir(folder)
    text = f"""
    const p = @import_module("<simprint>"{params});
    fn run(n: u16, x: f32) void {{ {body} sys.unblock_cmd_stream(); }}
    comptime {{ @export_symbol(run); }}
    """
    build(folder, text, EXPORTS, width=2)
    runtime = start(folder)
    runtime.launch("run", np.uint16(42), np.float32(0.1))
    runtime.stop()
    log = folder / "sim.log"
    return [line.split(": ", 1)[1] for line in log.read_text().splitlines()] if log.exists() else []


@pytest.mark.parametrize(
    ("call", "text"),
    [
        ("p.print_u16_decimal(n)", "42"),
        ("p.print_u16_hex(n)", "002A"),
        ("p.print_u16_binary(n)", "0000000000101010"),
        ("p.print_u32_decimal(4294967295)", "4294967295"),
        ("p.print_u32_hex(@as(u32, n) << 24)", "2A000000"),
        ("p.print_u32_binary(@as(u32, n))", "0" * 26 + "101010"),
        ("p.print_i16_decimal(-7)", "-7"),
        ("p.print_i32_decimal(-70000)", "-70000"),
        ("p.print_f32(x)", "0.1"),
        ("p.print_f32(@as(f32, n))", "42.0"),
        ("p.print_f16(@as(f16, x))", "0.1"),
    ],
)
def test_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, text: str) -> None:
    assert printed(tmp_path, monkeypatch, f'p.print_string("<"); {call}; p.print_string(">\\n");') == [f"<{text}>"] * 2


def test_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = """
    p.fmt("{d} {X} {b} {f}", .{ @as(u16, 42), @as(u16, 42), @as(u16, 42), @as(f16, 42.0) });
    p.fmt_no_nl("{{{d}", .{ @as(u32, 70000) });
    p.fmt("", .{});
    """
    assert sorted(printed(tmp_path, monkeypatch, body)) == ["42 002A 0000000000101010 42.0"] * 2 + ["{70000"] * 2


def test_coordinates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = printed(tmp_path, monkeypatch, 'p.fmt_with_coords("{f}", .{ @as(f32, 1.5) });')
    assert sorted(lines) == ["PE(0,0): 1.5", "PE(1,0): 1.5"]


def test_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = 'p.print_string("a\\n"); p.print_u16_decimal(n); p.fmt("{d}", .{ @as(u16, 1) });'
    assert printed(tmp_path, monkeypatch, body, ", .{ .enable = false }") == []


@pytest.mark.parametrize(
    ("call", "text"),
    [('p.fmt("{x}", .{ @as(u16, 1) })', "fields of a format"), ('p.fmt("{d", .{ @as(u16, 1) })', "not closed")],
)
def test_wrong_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, text: str) -> None:
    with pytest.raises(CompileFailed, match=text):
        printed(tmp_path, monkeypatch, call + ";")
