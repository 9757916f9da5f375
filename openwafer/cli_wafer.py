"""The `openwafer wafer` commands: run, info, trace, lint. What they do is in openwafer.wafer, pictures in view."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

EPILOG = """\
from a CSL program to its result and its pictures:
  cslc layout.csl --arch=wse3 --params=M:4,N:6 -o out          compile
  openwafer wafer info out --png routes.png                    what is in it
  openwafer wafer lint out                                     what is odd about it
  openwafer wafer run out --set A=a.npy --launch compute --get y=y.npy
  openwafer wafer trace run.py --name out                      run a host script, draw what happened

docs/wafer.md teaches CSL with three examples.
"""

RUN_EPILOG = """\
--set, --launch and --get may be given many times and are done in the order in which they stand.

arrays (.npy), for a rectangle of h rows of w PEs:
  (h, w, n)       a block of n elements for each PE, rows of PEs first; more dimensions are fine: (h, w, 4, 6)
  (n,)            the same n elements for all PEs
  the type is the program's: float32 for f32, uint16 for u16, ...

PEs: NAME@X,Y,WxH takes a part of the rectangle: b@0,0,1x3 is the first column of three rows.

examples:
  openwafer wafer run out --set A=a.npy --set x@0,0,4x1=x.npy --launch compute --get y@3,0,1x3=y.npy
  openwafer wafer run out --set u=u.npy --launch compute:10,0.2 --get u=u.npy:10x10     arguments; shape a PE
  openwafer wafer run out --launch compute --trace trace.npz
"""

INFO_EPILOG = """\
examples:
  openwafer wafer info out                      PE types, memory of the fullest PE, routes color by color
  openwafer wafer info out --pe 2,1             one PE in full
  openwafer wafer info out --png routes.png --html program.html

in the maps: o the core sends, an arrow the router passes on, • the core receives, H the host.
"""

TRACE_EPILOG = """\
examples:
  openwafer wafer trace run.py --name out       run a host script, write trace.npz, trace.png and trace.html
  openwafer wafer trace trace.npz --from 500 --to 900 --png part.png
  OPENWAFER_TRACE=trace.npz cs_python run.py --name out         record only; a failing run leaves a trace too

options stand before the script; what follows it goes to the script.
OPENWAFER_TRACE_PES="0,0 3,1" and OPENWAFER_TRACE_INTERVAL=100 are as --pes and --interval.
"""

LINT_EPILOG = """\
examples:
  openwafer wafer lint out
  openwafer wafer lint layout.csl --arch=wse3 --params=M:4,N:6         compiles first, with the options of cslc
  openwafer wafer lint out --ignore dead-route

exit status: 0 nothing found, 1 findings. The findings:
"""


def main(arguments: Sequence[str]) -> int:
    """Run `openwafer wafer ...`; the exit code."""
    parser = argparse.ArgumentParser(
        prog="openwafer wafer", description="Look at, run and trace compiled CSL programs.", epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")
    _add_run(commands)
    _add_info(commands)
    _add_trace(commands)
    _add_lint(commands)
    options, rest = parser.parse_known_args(arguments)
    if options.command == "trace" and options.source.suffix == ".npz" and options.arguments:
        # What follows a trace is ours, unlike what follows a script.
        at = list(arguments).index(str(options.source))
        options, rest = parser.parse_known_args([*arguments[:at], *arguments[at + 1 :], arguments[at]])
    if options.command is None:
        parser.print_help()
        return 0
    if rest and options.command != "lint":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    return options.handler(options)


def _command(commands, name: str, summary: str, epilog: str, handler) -> argparse.ArgumentParser:
    made = commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".", epilog=epilog, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    made.set_defaults(handler=handler)
    return made


class _Step(argparse.Action):
    """Keeps options in the order in which they stand."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        namespace.steps = [*(namespace.steps or []), (self.dest, values)]


def _add_run(commands) -> None:
    run = _command(commands, "run", "copy arrays in, launch functions, copy results out", RUN_EPILOG, _run)
    run.add_argument("out", type=Path, metavar="OUT", help="folder that cslc wrote")
    run.add_argument("--set", action=_Step, metavar="NAME=FILE.npy", help="an array to an exported symbol")
    run.add_argument("--launch", action=_Step, metavar="NAME[:ARG,...]", help="an exported function, on all PEs")
    run.add_argument("--get", action=_Step, metavar="NAME=FILE.npy[:SHAPE]", help="an exported symbol to an array")
    run.add_argument("--trace", type=Path, metavar="FILE.npz", help="record a trace; `openwafer wafer trace` draws it")
    run.set_defaults(steps=None)


def _run(options: argparse.Namespace) -> int:
    from openwafer.base.errors import OpenwaferError
    from openwafer.wafer.cli_run import run

    if not options.steps:
        raise OpenwaferError("nothing to do: give --launch NAME; `openwafer wafer info OUT` lists what can be launched")
    started = time.perf_counter()
    runtime = run(options.out, options.steps, print, options.trace)
    print(f"{runtime.cycle:,} cycles in {time.perf_counter() - started:.2f} s")
    return 0


def _add_info(commands) -> None:
    info = _command(commands, "info", "memory, tasks, queues and routes of a compiled program", INFO_EPILOG, _info)
    info.add_argument("out", type=Path, metavar="OUT", help="folder that cslc wrote")
    info.add_argument("--pe", metavar="X,Y", help="one PE in full")
    info.add_argument("--png", type=Path, metavar="FILE", help="draw the routes")
    info.add_argument("--html", type=Path, metavar="FILE", help="a page with the routes and what lies in each PE")
    info.add_argument("--title", metavar="TEXT", help="of the pictures (default: name of the folder)")


def _info(options: argparse.Namespace) -> int:
    from openwafer.wafer.cli_info import read, report

    content = read(options.out)
    print(report(content, options.out, options.pe))
    title = options.title or options.out.resolve().name
    if options.png is not None:
        from openwafer.view.fabric import draw_fabric

        draw_fabric(content, options.png, title)
    if options.html is not None:
        from openwafer.view.page import fabric_page

        fabric_page(content, options.html, title)
    return 0


def _add_trace(commands) -> None:
    trace = _command(commands, "trace", "activity and traffic over time, as a PNG and a page", TRACE_EPILOG, _trace)
    trace.add_argument("source", type=Path, metavar="SCRIPT.py|TRACE.npz", help="what to run, or what to draw")
    trace.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="of the script")
    trace.add_argument("--save", type=Path, default=Path("trace.npz"), metavar="FILE", help="default: %(default)s")
    trace.add_argument("--pes", default="", metavar='"X,Y ..."', help="PEs whose threads are shown, or all")
    trace.add_argument("--interval", type=int, metavar="CYCLES", help="of a slice (default: some hundred slices)")
    trace.add_argument("--from", type=int, dest="first", metavar="CYCLE", help="draw from here")
    trace.add_argument("--to", type=int, dest="last", metavar="CYCLE", help="draw up to here")
    trace.add_argument("--png", type=Path, metavar="FILE", help="default: both, beside the trace")
    trace.add_argument("--html", type=Path, metavar="FILE", help="a page that needs no network")
    trace.add_argument("--title", metavar="TEXT", help="default: name of the script or trace")


def _trace(options: argparse.Namespace) -> int:
    status, path = 0, options.source
    if path.suffix != ".npz":
        from openwafer.wafer.cli_trace import record

        path = options.save
        status = record(options.source, options.arguments, path, options.pes, options.interval)
    from openwafer.view.page import trace_page
    from openwafer.view.wafer_picture import chosen_pes, draw_trace
    from openwafer.view.wafer_trace import read_trace

    trace = read_trace(path).between(options.first, options.last)
    both = options.png is None and options.html is None
    png, html = options.png or path.with_suffix(".png"), options.html or path.with_suffix(".html")
    title = options.title or options.source.resolve().stem
    if both or options.png is not None:
        draw_trace(trace, png, title, chosen_pes(trace, options.pes))
        print(png)
    if both or options.html is not None:
        trace_page(trace, html, title)
        print(html)
    return status


def _add_lint(commands) -> None:
    from openwafer.wafer.lint import KINDS

    listed = "".join(f"  {kind:15} {meaning}\n" for kind, meaning in KINDS.items())
    lint = _command(commands, "lint", "what is odd in a program that compiles", LINT_EPILOG + listed, _lint)
    lint.add_argument("target", type=Path, metavar="OUT|layout.csl", help="folder that cslc wrote, or a root file")
    lint.add_argument("--ignore", action="append", default=[], metavar="FINDING", help="leave these out")


def _lint(options: argparse.Namespace) -> int:
    from openwafer.wafer.cli_lint import findings

    found = findings(options.target, options.rest, options.ignore)
    for finding in found:
        print(finding)
    print(f"{len(found)} finding{'s' * (len(found) != 1)}" if found else "no findings")
    return 1 if found else 0
