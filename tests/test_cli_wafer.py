"""`openwafer wafer`, as a user calls it: what it does, and how it says no."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openwafer import cli
from openwafer.wafer import compile

EXAMPLE = Path(__file__).parents[1] / "examples" / "wafer" / "gemv"
SIZES = {"width": 2, "height": 3, "M": 4, "N": 5}
COMMANDS = ["run", "info", "trace", "lint"]


@pytest.fixture
def out(tmp_path, monkeypatch):
    """The GEMV example, compiled; the working folder is empty but for it and three arrays."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(1)
    np.save("A.npy", rng.standard_normal((3, 2, 4, 5)).astype(np.float32))
    np.save("x.npy", rng.standard_normal((1, 2, 5)).astype(np.float32))
    np.save("b.npy", rng.standard_normal(4).astype(np.float32))
    return compile(EXAMPLE / "layout.csl", tmp_path / "out", arch="wse3", params=SIZES)


def wafer(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["wafer", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_run_takes_arrays_and_gives_them(out, capsys):
    steps = "--set A=A.npy --set x@0,0,2x1=x.npy --set b=b.npy --launch compute --get y@1,0,1x3=y.npy --get x=xs.npy:5"
    code, text, _ = wafer(capsys, "run", "out", *steps.split())
    assert code == 0
    assert "compute: " in text
    assert "cycles in " in text
    a, x, b = np.load("A.npy"), np.load("x.npy"), np.load("b.npy")
    y = np.load("y.npy")
    assert y.shape == (3, 1, 4)
    np.testing.assert_allclose(y[:, 0], np.einsum("ywmn,wn->ym", a, x[0]) + b, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(np.load("xs.npy"), np.repeat(x, 3, axis=0))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--set q=A.npy --launch compute", 'no variable of this name; it exports A, x, b, y'),
        ("--set A=none.npy --launch compute", "none.npy does not exist"),
        ("--set x=A.npy --launch compute", "x has room for 5 elements a PE, 20 are asked for"),
        ("--set A=x.npy --launch compute", r"has shape (1, 2, 5); expected (3, 2, n), a block for each PE"),
        ("--set x@0,0,3x1=x.npy", "the program has 2 x 3 PEs"),
        ("--set x@1=x.npy", "PEs are given as NAME@X,Y,WxH"),
        ("--set wide=wide.npy", "no variable of this name"),
        ("--set x=wide.npy", "holds float64, the program wants f32: save it with array.astype(np.float32)"),
        ("--launch nothing", 'exports no such function; it exports compute'),
        ("--launch compute:3", "compute takes 0 arguments (none), 1 are given"),
        ("--get y=y.npy:0", "is no shape"),
        ("--get y=y.npy:5", "y has room for 4 elements a PE, 5 are asked for"),
        ("--get y", "expected NAME=FILE.npy"),
        ("", "nothing to do: give --launch NAME"),
    ],
)  # fmt: skip
def test_run_says_what_is_wrong(out, capsys, arguments, message):
    np.save("wide.npy", np.zeros(5))
    code, _, error = wafer(capsys, "run", "out", *arguments.split())
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1


def test_info(out, capsys):
    code, text, _ = wafer(capsys, "info", "out", "--png", "routes.png", "--html", "page.html")
    assert code == 0
    assert "2 x 3 PEs" in text
    assert "  NORTH → SOUTH RAMP   x 0-1, y 1" in text
    assert "A: f32  exported" in text
    assert Path("routes.png").read_bytes()[:4] == b"\x89PNG"
    page = Path("page.html").read_text()
    assert "http" not in page.replace("http://www.w3.org", "")
    code, text, _ = wafer(capsys, "info", "out", "--pe", "1,2")
    assert "color 0: NORTH → RAMP" in text
    assert wafer(capsys, "info", "out", "--pe", "2,2")[2] == "openwafer: --pe=2,2: x is 0 to 1, y is 0 to 2\n"


def test_trace_of_a_script_and_of_a_file(out, capfd, monkeypatch):
    code = cli.main(["wafer", "trace", str(EXAMPLE / "run.py"), "--name", "out"])
    text = capfd.readouterr().out
    assert code == 0
    assert "SUCCESS" in text
    assert text.endswith("trace.png\ntrace.html\n")
    assert Path("trace.png").read_bytes()[:4] == b"\x89PNG"
    assert (
        cli.main(["wafer", "trace", "trace.npz", "--from", "100", "--to", "200", "--pes", "1,1", "--html", "p.html"])
        == 0
    )
    assert Path("p.html").is_file()
    assert not Path("p.png").exists()
    capfd.readouterr()
    assert cli.main(["wafer", "trace", "trace.npz", "--from", "100000"]) == 2
    assert "the trace goes from cycle 0 to" in capfd.readouterr().err
    assert cli.main(["wafer", "trace", "nothing.py"]) == 2
    assert "nothing.py: expected a host script" in capfd.readouterr().err


def test_lint_of_a_folder_and_of_a_source(out, capsys):
    assert wafer(capsys, "lint", "out")[:2] == (0, "no findings\n")
    source = (EXAMPLE / "layout.csl").read_text()
    bottom = ".rx = .{ NORTH }, .tx = .{ RAMP"
    Path("layout.csl").write_text(source.replace(f"{bottom} }}", f"{bottom}, SOUTH }}"))
    Path("pe.csl").write_text((EXAMPLE / "pe.csl").read_text())
    sizes = "--params=" + ",".join(f"{name}:{value}" for name, value in SIZES.items())
    code, text, _ = wafer(capsys, "lint", "layout.csl", "--arch=wse3", sizes)
    assert code == 1
    assert "dead-route: color 0 is sent SOUTH over the edge of the rectangle" in text
    code, text, _ = wafer(capsys, "lint", "layout.csl", "--arch=wse3", sizes, "--ignore", "dead-route")
    assert (code, text) == (0, "no findings\n")
    assert 'there is no finding "dead"' in wafer(capsys, "lint", "out", "--ignore", "dead")[2]
    Path("layout.csl").write_text(source.replace(".tx = .{ RAMP, SOUTH }", ".tx = .{ RAMP, EAST }"))
    code, _, error = wafer(capsys, "lint", "layout.csl", "--arch=wse3", sizes)
    assert code == 2 and "color 0 leads nowhere: PE (0, 1) sends it EAST to PE (1, 1)" in error


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_with_examples(capsys, command):
    with pytest.raises(SystemExit):
        cli.main(["wafer", command, "--help"])
    assert f"openwafer wafer {command}" in capsys.readouterr().out.partition("example")[2]
