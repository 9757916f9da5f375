"""Exported symbols seen from the PE, and ids of filters."""

from __future__ import annotations

import pytest

from tests.wafer.test_language import ARCHITECTURES, refused, results


@ARCHITECTURES
def test_symbols_have_the_ids_of_the_host(tmp_path, arch):
    code = """
    b[0] = @get_symbol_id(a_ptr);
    b[1] = @get_symbol_id(b_ptr);
    b[2] = @get_symbol_id(run);
    const p = @ptrcast(*u32, @get_tensor_ptr(@as(u16, a[0])));
    b[3] = p.*;
    b[4] = if (@has_exported_tensors()) 1 else 2;
    const q = @get_symbol_value([*]u32, @as(u16, a[1]));
    q[5] = 77;
    """
    assert results(tmp_path, code, "", (0, 1), arch)[:6] == [0, 1, 2, 0, 1, 77]


def test_an_id_without_a_symbol_is_an_error(tmp_path):
    with pytest.raises(Exception, match="@get_tensor_ptr: no such symbol is exported with this id"):
        results(tmp_path, "_ = @get_tensor_ptr(@as(u16, a[0]));", "", (2,))


def test_mistakes_with_symbols(tmp_path):
    refused(tmp_path, "b[0] = @get_symbol_id(other);", "this symbol is not exported", "var other: u32 = 0;")
    refused(tmp_path, "b[0] = @get_symbol_value(u32, 0);", "no symbol of type u32 is exported")


FILTERED = """
@set_local_color_config(@get_color(%d), .{
  .routes = .{ .rx = .{ WEST }, .tx = .{ RAMP } },
  .filter = .{ .kind = .{ .counter = true }, .count_data = true, .limit1 = 3, .max_counter = 1 },
});
"""


def test_filters_are_numbered(tmp_path):
    declarations = f"comptime {{ {FILTERED % 3} {FILTERED % 9} }}"
    assert results(tmp_path, "b[0] = @get_filter_id(@get_color(9));", declarations)[0] == 9
    refused(tmp_path, "b[0] = @get_filter_id(@get_color(4));", r"color 4 of PE \(0, 0\) has no filter", declarations)
