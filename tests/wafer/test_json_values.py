"""@import_comptime_value, @get_string_from_byte and @has_exported_tensors."""

from __future__ import annotations

import json

import numpy as np
import pytest

from openwafer.wafer.csl.diagnostics import CompileFailed
from tests.wafer.programs import build, get, start

EXPORTS = '@export_name("out", [*]i32, true); @export_name("run", fn()void);'
TAIL = 'comptime { @export_symbol(out_ptr, "out"); @export_symbol(run); }'
HEAD = "var out = @zeros([8]i32); const out_ptr: [*]i32 = &out;"


def test_a_file_becomes_a_value(tmp_path):
    (tmp_path / "v.json").write_text(
        json.dumps({"n:u16": 7, "on:bool": True, "name:comptime_string": "ab", "a:[2, 2]i32": [1, 2, 3, 4]})
    )
    (tmp_path / "array.json").write_text("[5, 6, 7]")
    text = f"""{HEAD}
    const v = @import_comptime_value(comptime_struct, "v.json");
    const array = @import_comptime_value([3]i16, "array.json");
    fn run() void {{
      out[0] = v.n;
      out[1] = if (v.on) 1 else 0;
      out[2] = @strlen(v.name);
      out[3] = v.a[1, 0];
      for (@range(i16, 3)) |i| {{ out[4 + i] = @as(i32, array[i]); }}
      out[7] = if (@has_exported_tensors()) @strlen(@strcat(v.name, @get_string_from_byte('c'))) else 0;
      sys.unblock_cmd_stream();
    }}
    {TAIL}"""
    build(tmp_path, text, EXPORTS)
    runtime = start(tmp_path)
    runtime.launch("run")
    assert get(runtime, "out", 8, np.int32).tolist() == [7, 1, 2, 3, 5, 6, 7, 3]


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("[1, 2]", "[3]i16", "v.json has 2 elements"),
        ("[1, null]", "[2]i16", r"v.json\[1\] is null, which is no value of type i16"),
        ("{", "comptime_struct", "v.json is not JSON"),
        ('{"n": 1}', "comptime_struct", 'labelled "name:type"'),
        ("70000", "i16", "70000"),
        ('"x"', "u16", "v.json is a string"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path, content, kind, message):
    (tmp_path / "v.json").write_text(content)
    with pytest.raises(CompileFailed, match=message):
        build(
            tmp_path,
            f'{HEAD} const v = @import_comptime_value({kind}, "v.json"); fn run() void {{ out[0] = 1; _ = v; }} {TAIL}',
            EXPORTS,
        )


def test_a_missing_file(tmp_path):
    with pytest.raises(CompileFailed, match=r"nowhere\.json: no such file"):
        build(
            tmp_path,
            f'{HEAD} const v = @import_comptime_value(u16, "nowhere.json"); fn run() void {{ out[0] = v; }} {TAIL}',
            EXPORTS,
        )
