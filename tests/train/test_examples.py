"""Every example in examples/train runs in its small form and is as short as promised; they check themselves."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples" / "train").glob("*.py"))
NEEDS = {"hugging_face": ("transformers",), "lora": ("transformers", "peft"), "keras_model": ("keras",)}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_an_example_does_what_it_says(example, tmp_path):
    missing = [package for package in NEEDS.get(example.stem, ()) if find_spec(package) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    assert len(example.read_text().splitlines()) < 100
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, str(example), "--small", "--run", str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_example_is_in_the_readme():
    said = (ROOT / "examples" / "train" / "README.md").read_text()
    assert all(f"`{example.stem}." in said for example in EXAMPLES)
