"""The short form of tests/wafer/fuzz.py."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from openwafer.wafer.csl.diagnostics import CompileFailed
from openwafer.wafer.csl.driver import Options, compile_file
from tests.wafer.fuzz import attempt, cases


def test_damaged_programs(tmp_path: Path) -> None:
    for layout, program, arch in itertools.islice(cases(seed=11), 1500):
        attempt(tmp_path, layout, program, arch)


@pytest.mark.parametrize("text", ["const deep = " + "(" * 20_000, "const deep = " + "-" * 20_000 + "1;"])
def test_deep_nesting_is_a_diagnostic(tmp_path: Path, text: str) -> None:
    (tmp_path / "layout.csl").write_text(text)
    with pytest.raises(CompileFailed, match="nest"):
        compile_file(tmp_path / "layout.csl", Options())
