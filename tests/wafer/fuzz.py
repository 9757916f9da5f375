"""Damages our own CSL programs and compiles them: nothing but diagnostics may come out, and soon.

Run: python -m tests.wafer.fuzz --seconds 600 --seed 1
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from openwafer.wafer.csl.diagnostics import CompileFailed
from openwafer.wafer.csl.driver import Options, compile_file

ROOT = Path(__file__).parents[2]
SECONDS_EACH = 10
MAX_ITERATIONS = 20_000
TOKEN = re.compile(r'\s+|//[^\n]*|"[^"\n]*"|@?\w+|[^\w\s]')
SPICE = (
    "0xFFFFFFFFFFFFFFFFFF", "1e400", "-1", "99999999999999999999", "0", "''", '"', "{", "}", "((((((((((", "@",
    "@get_color", "@as(u16, 70000)", "while (true) {}", "comptime", "const", "var", "fn", "task", "param",
    "layout {", "return", "break", "x", ".*", "&", ".{", "..", "|i|{4} -> a[i]", "[0]u16", "[1000000]f32", "struct",
    "enum(u16)", "anytype", "undefined", "if (true) 1 else 2", "switch (1) { else => 2 }",
    "for (@range(i16, 5)) |i| {}", "@import_module", "u7", "i4096", "\0", "é", "@zeros([4]f32)",
    "@set_rectangle(1, 1);", "@get_dsd", "@bind_local_task", "/ 0", "<< 100", "null",
)  # fmt: skip


def corpus() -> list[tuple[str, str]]:
    """(layout, program) texts of our own; a program alone comes with a plain layout."""
    plain = 'layout { @set_rectangle(1, 1); @set_tile_code(0, 0, "pe.csl", .{}); }'
    found = []
    for layout in sorted(
        [*ROOT.glob("examples/wafer/*/layout.csl"), *ROOT.glob("benchmarks/wafer_timing/*_layout.csl")]
    ):
        name = "pe.csl" if layout.name == "layout.csl" else layout.name.replace("_layout", "_pe")
        found.append((layout.read_text().replace(name, "pe.csl"), (layout.parent / name).read_text()))
    for text in re.findall(r'"""(.*?)"""', (ROOT / "tests/wafer/test_programs.py").read_text(), re.S):
        if "fn " in text or "task " in text:
            found.append((plain, text))
    for library in sorted((ROOT / "openwafer/wafer/lib").rglob("*.csl")):
        found.append((plain, library.read_text()))
    return found


def mutated(text: str, r: random.Random) -> str:
    """One to five changes of tokens, or something worse."""
    how = r.random()
    if how < 0.03:
        return r.randbytes(r.randint(0, 300)).decode("latin-1")
    if how < 0.05:
        return "".join(r.choice(SPICE) + " " for _ in range(r.randint(1, 60)))
    if how < 0.07:
        nest = r.choice(("(", "{", "[", "-", "!", ".{", "@as(u16, ", "if (true) ", "&", "*", "comptime "))
        return text + "\nconst deep = " + nest * r.choice((50, 500, 5000)) + "1;"
    tokens = TOKEN.findall(text)
    if not tokens:
        return r.choice(SPICE)
    for _ in range(r.randint(1, 5)):
        at = r.randrange(len(tokens))
        change = r.randrange(6)
        if change == 0:
            del tokens[at]
        elif change == 1:
            tokens.insert(at, tokens[r.randrange(len(tokens))])
        elif change == 2:
            other = r.randrange(len(tokens))
            tokens[at], tokens[other] = tokens[other], tokens[at]
        elif change == 3:
            tokens[at] = " " + r.choice(SPICE) + " "
        elif change == 4:
            tokens[at] = tokens[r.randrange(len(tokens))]
        else:
            end = min(len(tokens), at + r.randint(1, 12))
            tokens[at:at] = tokens[at:end]
        if not tokens:
            break
    return "".join(tokens)


class TooLong(BaseException):
    """The compiler did not come back."""


def _alarm(number: int, frame: FrameType | None) -> None:
    raise TooLong


def attempt(folder: Path, layout: str, program: str, arch: str) -> None:
    """Raises what must not come out of the compiler."""
    (folder / "layout.csl").write_text(layout, errors="surrogateescape")
    (folder / "pe.csl").write_text(program, errors="surrogateescape")
    signal.signal(signal.SIGALRM, _alarm)
    signal.alarm(SECONDS_EACH)
    try:
        compile_file(folder / "layout.csl", Options(arch=arch, max_iterations=MAX_ITERATIONS))
    except CompileFailed as error:
        if not str(error):
            raise ValueError("a failure without a diagnostic") from error
    finally:
        signal.alarm(0)


def cases(seed: int) -> Iterator[tuple[str, str, str]]:
    """Without end: layout, program, architecture."""
    r, texts = random.Random(seed), corpus()
    while True:
        layout, program = r.choice(texts)
        if r.random() < 0.3:
            layout = mutated(layout, r)
        else:
            program = mutated(program, r)
        yield layout, program, r.choice(("wse2", "wse3"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, default=Path("fuzz-findings"), help="folder for inputs that fail")
    args = parser.parse_args()
    end, tried, kinds = time.monotonic() + args.seconds, 0, {}
    with tempfile.TemporaryDirectory() as scratch:
        for layout, program, arch in cases(args.seed):
            if time.monotonic() > end:
                break
            tried += 1
            try:
                attempt(Path(scratch), layout, program, arch)
            except (Exception, TooLong) as error:  # noqa: BLE001 (that is what it looks for)
                last = traceback.extract_tb(error.__traceback__)[-1]
                kind = f"{type(error).__name__} {Path(last.filename).name}:{last.lineno} {str(error)[:100]}"
                if kind not in kinds:
                    args.keep.mkdir(exist_ok=True)
                    number = len(kinds)
                    (args.keep / f"{number}_layout.csl").write_text(layout, errors="surrogateescape")
                    (args.keep / f"{number}_pe.csl").write_text(program, errors="surrogateescape")
                    print(f"{number} {arch}: {kind}", flush=True)
                kinds[kind] = kinds.get(kind, 0) + 1
    print(f"{tried} programs, {len(kinds)} kinds of failure")
    return 1 if kinds else 0


if __name__ == "__main__":
    sys.exit(main())
