"""The command's arguments and what it says."""

import argparse
import io

import pytest
from rich.console import Console

from openwafer.base.errors import DataError
from openwafer.data.cli import add_arguments, run


def call(*words):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    out = io.StringIO()
    return run(parser.parse_args(list(map(str, words))), Console(file=out, width=200)), out.getvalue()


def test_prepares_and_says_what_it_made(tmp_path, texts, tokenizer_file):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"body": "one two"}\n{"body": "three"}\n')
    (folder / "b.bin").write_bytes(b"\0")
    shards, said = call(folder, "--out", tmp_path / "out", "--tokenizer", tokenizer_file, "--field", "body")
    assert f"{len(shards)} tokens of 2 documents from 1 files" in said
    assert f"uint16, 1 shards in {tmp_path / 'out'}" in said
    assert "1 binary files in folders were left out" in said
    assert shards.read(0, len(shards)).tolist().count(0) == 2


def test_no_eot_and_vocab_size(tmp_path, texts):
    source = tmp_path / "a.txt"
    source.write_text("".join(texts))
    shards, _ = call(source, "--out", tmp_path / "out", "--vocab-size", 280, "--no-eot")
    assert shards.vocab_size == 280
    assert 0 not in shards.read(0, len(shards))


def test_errors_pass_through(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        call(tmp_path / "nothing", "--out", tmp_path / "out")
