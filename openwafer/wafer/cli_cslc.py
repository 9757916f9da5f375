"""The `cslc` command: a layout and its programs to a folder that SdkRuntime loads."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from openwafer.base.errors import OpenwaferError
from openwafer.wafer import image_file
from openwafer.wafer.arch import ARCHITECTURES
from openwafer.wafer.csl.driver import Options, compile_file

EPILOG = """example:
  cslc layout.csl --arch=wse3 --fabric-dims=11,3 --fabric-offsets=4,1 --params=M:4,N:6 -o out --memcpy --channels=1
  cs_python run.py --name out
"""


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0, or 1 with diagnostics on standard error."""
    args = parser().parse_args(arguments)
    try:
        started = time.perf_counter()
        image = compile_file(Path(args.file), options(args), report=lambda text: print(text, file=sys.stderr))
        image_file.save(image, Path(args.output))
    except OpenwaferError as error:
        print(error, file=sys.stderr)
        return 1
    if args.verbose:
        seconds = time.perf_counter() - started
        print(f"{args.file}: {len(image.programs)} programs, {image.size[0]} x {image.size[1]} PEs, {seconds:.2f} s")
    return 0


def options(args: argparse.Namespace) -> Options:
    """What the command line says, for the compiler."""
    return Options(
        arch=args.arch, fabric=_pair(args.fabric_dims, "--fabric-dims"),
        offset=_pair(args.fabric_offsets, "--fabric-offsets") or (0, 0), params=_named(args.params, "--params"),
        colors={name: _number(value, "--colors") for name, value in _named(args.colors, "--colors").items()},
        import_paths=tuple(Path(p) for p in args.import_path), memcpy=args.memcpy,
        max_iterations=args.max_inlined_iterations,
    )  # fmt: skip


def parser() -> argparse.ArgumentParser:
    """The options of the vendor's compiler that have a meaning here, and those that are accepted without one."""
    made = argparse.ArgumentParser(
        prog="cslc", description="Compile a CSL program for WSE-2 or WSE-3.", epilog=EPILOG, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.add_argument("file", help="the root file, with the layout block")
    made.add_argument("-o", "--output", default="out", help="folder for the result (default: out)")
    made.add_argument("--arch", default="wse2", choices=sorted(ARCHITECTURES), help="default: wse2")
    made.add_argument("--fabric-dims", metavar="W,H", help="tiles of the fabric, halo included")
    made.add_argument("--fabric-offsets", metavar="X,Y", help="where the rectangle begins")
    made.add_argument("--params", action="append", default=[], metavar="NAME:VALUE,...", help="of the root file")
    made.add_argument("--colors", action="append", default=[], metavar="NAME:COLOR,...", help="of the root file")
    made.add_argument("--import-path", action="append", default=[], metavar="DIR", help="where imports are sought too")
    made.add_argument("--memcpy", action="store_true", help="the host copies and launches; the fabric must have room")
    made.add_argument("--max-inlined-iterations", type=int, default=1_000_000, metavar="N", help="of a comptime loop")
    made.add_argument("--verbose", action="store_true", help="say what was made")
    for name in ("channels", "width-west-buf", "width-east-buf", "max-parallelism"):
        made.add_argument(f"--{name}", type=int, default=0, metavar="N", help="accepted; links to the host are ideal")
    return made


def _pair(text: str | None, option: str) -> tuple[int, int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 2:
        raise OpenwaferError(f'{option}={text}: expected two numbers like "8,3"')
    return _number(parts[0], option), _number(parts[1], option)


def _number(text: str, option: str) -> int:
    try:
        return int(text, 0)
    except ValueError:
        raise OpenwaferError(f'{option}: "{text}" is no integer') from None


def _named(texts: list[str], option: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for item in ",".join(texts).split(","):
        if not item.strip():
            continue
        name, colon, value = item.partition(":")
        if not colon or not name.strip() or not value.strip():
            raise OpenwaferError(f'{option}: "{item}" is not NAME:VALUE')
        found[name.strip()] = value.strip()
    return found


if __name__ == "__main__":
    sys.exit(main())
