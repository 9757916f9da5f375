"""Every mistake the compiler knows, one small program each: what is reported, where, and that nothing else is.

A file in diagnostics/ says `// error: REGEX`, `// warning: REGEX` or `// note: REGEX` on the line where it is reported
(`// ^ error: REGEX`: on the line before; `// nowhere error: REGEX`: without a line; `// in FILE error: REGEX`: in a
file of the library). It is the program of a single PE, or a root file if it has `// layout`; `// options: ...` are
cslc's. Files in diagnostics/parts are what others import.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from openwafer.wafer import cli_cslc
from openwafer.wafer.csl import diagnostics as module
from openwafer.wafer.csl.comptime import ComptimeError
from openwafer.wafer.csl.diagnostics import CompileFailed, CslError, Diagnostic
from openwafer.wafer.csl.driver import compile_file
from openwafer.wafer.csl.source import SourceError

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


# --- every place in the compiler that reports is reached -----------------------------------------------------------

_RAISING = ("CslError", "Diagnostic", "ComptimeError", "SourceError", "unexpected", "expect", "name", "report")
UNREACHED = {
    "cannot be read: ": "needs a file that its owner may not read",
    "too large for a CSL file": "needs a file of 16 MiB",
    "has no size: it has no values": "a library asks for the size of a type that it has checked",
    "has no bits of its own": "types without bits are refused before",
    "a value of type {kind} does not exist at run time": "such a value is refused before it is encoded",
    "a variable of type {kind} does not exist at run time": "such a variable is refused where it is declared",
    "str(error)": "the same, passed on",
    "has a route without": "a region of an SdkLayout, which has no CSL for its routes",
}
"""Messages that no program here brings about, and why."""


def sites() -> Iterator[tuple[str, int, int, str]]:
    """(file, first line, last line, text) of all calls that make a message."""
    for path in sorted(COMPILER.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and _called(node.func) in _RAISING:
                says = _called(node.func)[0].isupper() or any(
                    isinstance(n, ast.Constant | ast.JoinedStr) for n in [*node.args, *(k.value for k in node.keywords)]
                )
                if says and (path.name in ("parser.py", "lexer.py") or _called(node.func) != "name"):
                    yield str(path), node.lineno, node.end_lineno or node.lineno, ast.unparse(node)


def _called(function: ast.expr) -> str:
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


@functools.cache
def places() -> set[tuple[str, int]]:
    """Lines of the compiler that were at work whenever a message was made, over all programs."""
    found: set[tuple[str, int]] = set()

    def watch(kind: type) -> None:
        original = kind.__init__

        def made(self: object, *args: object, **kwargs: object) -> None:
            frame = sys._getframe(1)
            while frame is not None:
                if frame.f_code.co_filename.startswith(str(COMPILER)):
                    found.add((frame.f_code.co_filename, frame.f_lineno))
                frame = frame.f_back
            original(self, *args, **kwargs)  # pyright: ignore[reportCallIssue]

        patch.setattr(kind, "__init__", made)

    with pytest.MonkeyPatch.context() as patch, pytest.MonkeyPatch.context() as here:
        for kind in (CslError, Diagnostic, ComptimeError, SourceError):
            watch(kind)
        with tempfile.TemporaryDirectory() as folder:
            here.chdir(folder)
            for path in CASES:
                reported(path, Path(folder))
    return found


def test_every_message_is_brought_about():
    known = places()
    missing = [
        f"{Path(file).name}:{first}: {text}"
        for file, first, last, text in sites()
        if not any((file, line) in known for line in range(first, last + 1))
        and not any(words in text for words in UNREACHED)
    ]
    assert not missing, "no program in tests/wafer/diagnostics shows:\n" + "\n".join(missing)
