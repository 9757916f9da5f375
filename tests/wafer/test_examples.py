"""The examples, as a reader runs them: in plain Python, and with cslc and cs_python."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from openwafer.wafer import image_file
from openwafer.wafer.lint import lint

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "wafer"
SIZES = [
    ("gemv", ["--width=1", "--height=1", "--M=4", "--N=3"]),
    ("gemv", ["--width=3", "--height=2", "--M=4", "--N=3"]),
    ("stencil", ["--width=3", "--height=2", "--W=4", "--H=3", "--steps=3"]),
    ("summa", ["--P=3", "--M=4", "--K=4", "--N=2"]),
]


def run(folder: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("arch", ["wse2", "wse3"])
@pytest.mark.parametrize(("name", "sizes"), SIZES, ids=lambda value: value if isinstance(value, str) else "")
def test_an_example_in_plain_python(tmp_path, name, sizes, arch):
    out = run(tmp_path, str(EXAMPLES / name / "run.py"), f"--arch={arch}", *sizes)
    assert "SUCCESS" in out
    assert [str(finding) for finding in lint(image_file.load(tmp_path / "out"))] == []


@pytest.mark.parametrize("arch", ["wse2", "wse3"])
def test_an_example_with_the_two_commands(tmp_path, arch):
    folder = EXAMPLES / "gemv"
    made = f"--arch={arch} --fabric-dims=9,4 --fabric-offsets=4,1 --params=width:2,height:2,M:3,N:2 -o made --memcpy"
    run(tmp_path, "-m", "openwafer.wafer.cli_cslc", str(folder / "layout.csl"), *made.split(), "--channels=1")
    assert "SUCCESS" in run(tmp_path, "-m", "openwafer.wafer.cli_cs_python", str(folder / "run.py"), "--name", "made")


@pytest.mark.parametrize("name", ["gemv", "stencil", "summa"])
def test_an_example_fits_on_a_page(name):
    for path in sorted((EXAMPLES / name).iterdir()):
        assert len(path.read_text().splitlines()) < 100, path


def test_the_tutorial_quotes_the_examples():
    page = (ROOT / "docs" / "wafer.md").read_text()
    source = "\n".join(path.read_text() for path in EXAMPLES.rglob("*.csl"))
    one_line = " ".join(source.split())
    for block in re.findall(r"```csl\n(.*?)```", page, re.S):
        for line in block.splitlines():
            plain = " ".join(line.partition(" //")[0].split())
            assert plain in one_line, line
    for link in re.findall(r"\]\(([^)]+)\)", page):
        assert link.startswith("http") or (ROOT / "docs" / link).exists(), link
