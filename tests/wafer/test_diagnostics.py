"""Every mistake the compiler knows, one small program each: what is reported, where, and that nothing else is.

A file in diagnostics/ says `// error: REGEX`, `// warning: REGEX` or `// note: REGEX` on the line where it is reported
(`// ^ error: REGEX`: on the line before; `// nowhere error: REGEX`: without a line; `// in FILE error: REGEX`: in a
file of the library). It is the program of a single PE, or a root file if it has `// layout`; `// options: ...` are
cslc's. Files in diagnostics/parts are what others import.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from openwafer.wafer import cli_cslc
from openwafer.wafer.csl import diagnostics as module
from openwafer.wafer.csl.diagnostics import CompileFailed
from openwafer.wafer.csl.driver import compile_file

FOLDER = Path(__file__).parent / "diagnostics"
COMPILER = Path(module.__file__).parent
CASES = sorted(FOLDER.glob("*.csl"))
LAYOUT = 'layout {{ @set_rectangle(1, 1); @set_tile_code(0, 0, "{}"); }}'
_WORD = re.compile(r"//\s*(\^ |nowhere |in \S+ )?(error|warning|note): (.*?)(?=\s+// |$)")
_REPORT = re.compile(r"(?:(.+?):(\d+):(\d+): )?(error|warning|note): (.*)")


class Said(NamedTuple):
    """One message: file and line, "" and 0 without them, 0 in the library; a note without a place is at its error."""

    file: str
    line: int
    kind: str
    text: str


def expected(path: Path) -> list[Said]:
    """What the file wants to be said, of itself and of the parts it uses."""
    text = path.read_text()
    found = list(_wanted(path.name, text))
    for part in re.findall(r"// with (\S+)", text):
        found += _wanted(part, (FOLDER / part).read_text())
    return found


def _wanted(name: str, text: str) -> Iterator[Said]:
    for number, line in enumerate(text.splitlines(), 1):
        for where, kind, regex in _WORD.findall(line):
            if where.startswith("in "):
                yield Said(where[3:-1], 0, kind, regex)
            elif where == "nowhere ":
                yield Said("", 0, kind, regex)
            else:
                yield Said(name, number - (where == "^ "), kind, regex)


def reported(path: Path, folder: Path) -> list[Said]:
    """What the compiler says about a file."""
    text = path.read_text()
    root = path
    if "// layout\n" not in text:
        root = folder / "layout.csl"
        root.write_text(LAYOUT.format(path))
    options = " ".join(re.findall(r"// options: (.*)", text)).split()
    args = cli_cslc.parser().parse_args([str(root), *options])
    said: list[str] = []
    try:
        compile_file(root, cli_cslc.options(args), report=said.append)
    except CompileFailed as failed:
        said.append(str(failed))
    return list(_parsed("\n".join(said)))


def _parsed(text: str) -> Iterator[Said]:
    file, line = "", 0
    for shown in text.splitlines():
        match = None if shown.startswith("  ") else _REPORT.fullmatch(shown)
        if match is None:
            continue
        path, number, _, kind, message = match.groups()
        place = (_relative(path), 0 if path.startswith("<") else int(number)) if path else ("", 0)
        if kind != "note":
            file, line = place
        yield Said(*(place if path or kind != "note" else (file, line)), kind, message)


def _relative(path: str) -> str:
    found = Path(path).resolve()
    return found.relative_to(FOLDER).as_posix() if found.is_relative_to(FOLDER) else path


def _fits(said: Said, wanted: Said) -> bool:
    return said[:3] == wanted[:3] and re.search(wanted.text, said.text) is not None


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_what_is_said(path, tmp_path):
    said, wanted = reported(path, tmp_path), expected(path)
    assert any(item.kind != "note" for item in wanted), f"{path.name} expects nothing"
    missing = [item for item in wanted if not any(_fits(own, item) for own in said)]
    assert not missing, f"not said: {missing}; said: {said}"
    rest = list(wanted)
    for item in said:
        if item.kind == "note":
            continue
        fitting = next((own for own in rest if _fits(item, own)), None)
        assert fitting is not None, f"not expected: {item}"
        rest.remove(fitting)
