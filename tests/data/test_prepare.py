"""Preparation: what comes out is what the tokenizer gives for the input, whole or not at all."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from openwafer.base.errors import ConfigError, DataError
from openwafer.data import TokenShards, prepare
from openwafer.data import sources as sources_module
from openwafer.data import writer as writer_module


def write_texts(folder, texts):
    folder.mkdir()
    for number, text in enumerate(texts):
        (folder / f"{number:03d}.txt").write_text(text)
    return folder


def expected(texts, tokenizer, eot=True):
    return [token for text in texts for token in [*tokenizer.encode(text).ids, *([0] if eot else [])]]


def leftovers(folder):
    return [name for name in os.listdir(folder) if "partial" in name]


@pytest.mark.parametrize("shard_bytes", [50, 1000, 1 << 20])
@pytest.mark.parametrize("append_eot", [True, False])
def test_tokens_are_those_of_the_tokenizer(tmp_path, texts, tokenizer, shard_bytes, append_eot):
    folder = write_texts(tmp_path / "in", texts[:6])
    shards = prepare([folder], tmp_path / "out", tokenizer, append_eot=append_eot, shard_bytes=shard_bytes)
    want = expected(texts[:6], tokenizer, append_eot)
    assert shards.read(0, len(shards)).tolist() == want
    assert shards.index.num_documents == 6
    assert max(os.path.getsize(shards.path / shard.file) for shard in shards.index.shards) <= shard_bytes
    shards.verify()
    assert leftovers(tmp_path) == []


def test_every_format_gives_the_same_tokens(tmp_path, texts, tokenizer):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = write_texts(tmp_path / "in", texts)
    lines, table = tmp_path / "a.jsonl", tmp_path / "a.parquet"
    lines.write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    parquet.write_table(arrow.table({"body": texts}), table)
    made = [
        prepare([source], tmp_path / f"out{n}", tokenizer, text_field="body")
        for n, source in enumerate((folder, lines, table))
    ]
    assert len({shards.fingerprint for shards in made}) == 1


def test_raw_file_is_little_endian_and_index_names_everything(tmp_path, texts, tokenizer):
    source = tmp_path / "a.txt"
    source.write_text(texts[4])
    out = tmp_path / "deep" / "out"
    prepare([source], out, tokenizer)
    assert sorted(os.listdir(out)) == ["index.json", "tokenizer.json", "tokens-00000.bin"]
    assert np.fromfile(out / "tokens-00000.bin", "<u2").tolist() == expected([texts[4]], tokenizer)
    index = json.loads((out / "index.json").read_text())
    assert index["format"] == "openwafer-tokens"
    assert index["version"] == 1
    assert index["dtype"] == "uint16"
    assert index["sources"] == [{"path": str(source), "size_bytes": source.stat().st_size}]


def test_large_vocabulary_is_uint32(tmp_path, tokenizer):
    from tokenizers import Tokenizer

    large = Tokenizer.from_str(tokenizer.to_str())
    large.add_tokens([f"word{n}" for n in range(66_000)])
    source = tmp_path / "a.txt"
    source.write_text("word65999word3")
    shards = prepare([source], tmp_path / "out", large)
    assert shards.index.dtype == "uint32"
    assert shards.read(0, 2).tolist() == [large.token_to_id("word65999"), large.token_to_id("word3")]
    assert large.token_to_id("word65999") > 1 << 16


def test_trains_a_tokenizer_when_none_is_given(tmp_path, texts):
    folder = write_texts(tmp_path / "in", texts)
    shards = prepare([folder], tmp_path / "out", vocab_size=300)
    assert shards.vocab_size == 300
    tokens = shards.read(0, len(shards)).tolist()
    assert shards.tokenizer().decode(tokens, skip_special_tokens=True) == "".join(texts)


def test_same_input_same_bits(tmp_path, texts):
    folder = write_texts(tmp_path / "in", texts)
    first = prepare([folder], tmp_path / "one", vocab_size=300)
    assert prepare([folder], tmp_path / "two", vocab_size=300).fingerprint == first.fingerprint


def test_long_document_is_one_document(tmp_path, tokenizer, texts, monkeypatch):
    monkeypatch.setattr(sources_module, "PIECE_BYTES", 500)
    source = tmp_path / "a.txt"
    source.write_text(texts[29])
    shards = prepare([source], tmp_path / "out", tokenizer)
    tokens = shards.read(0, len(shards)).tolist()
    assert shards.index.num_documents == 1
    assert tokens.count(0) == 1
    assert tokenizer.decode(tokens, skip_special_tokens=True) == texts[29]


def test_progress_rises_to_the_end(tmp_path, texts):
    folder = write_texts(tmp_path / "in", texts)
    seen = []
    shards = prepare([folder], tmp_path / "out", vocab_size=300, progress=seen.append)
    total = sum(len(text.encode()) for text in texts)
    assert list(dict.fromkeys(p.phase for p in seen)) == ["train tokenizer", "tokenise"]
    assert (seen[-1].done_bytes, seen[-1].total_bytes) == (total, total)
    assert (seen[-1].num_documents, seen[-1].num_tokens) == (30, len(shards))
    for phase in ("train tokenizer", "tokenise"):
        done = [p.done_bytes for p in seen if p.phase == phase]
        assert done == sorted(done)


def test_replaced_characters_and_binary_files_are_counted(tmp_path, tokenizer):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"caf\xe9 latin")
    (folder / "b.bin").write_bytes(b"\0\0")
    index = prepare([folder], tmp_path / "out", tokenizer).index
    assert index.num_replaced_characters == 1
    assert index.num_skipped_files == 1


def test_existing_out_is_left_alone(tmp_path, texts, tokenizer):
    source = tmp_path / "a.txt"
    source.write_text(texts[0])
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("precious")
    with pytest.raises(DataError, match="out exists already; nothing was changed: name another --out"):
        prepare([source], out, tokenizer)
    assert os.listdir(out) == ["mine"]


@pytest.mark.parametrize(
    ("content", "message"),
    [('{"text": "fine"}\nbroken\n', r"a\.jsonl:2: not valid JSON"), ('{"text": ""}\n', "hold no text")],
)
def test_nothing_stays_after_a_bad_input(tmp_path, tokenizer, content, message):
    source = tmp_path / "a.jsonl"
    source.write_text(content)
    with pytest.raises(DataError, match=message):
        prepare([source], tmp_path / "out", tokenizer)
    assert os.listdir(tmp_path) == ["a.jsonl"]


def test_bad_vocab_size_and_no_end_of_text(tmp_path, texts, tokenizer):
    source = tmp_path / "a.txt"
    source.write_text(texts[0])
    with pytest.raises(ConfigError, match="vocab_size is 10"):
        prepare([source], tmp_path / "out", vocab_size=10)
    with pytest.raises(DataError, match="--eot-token"):
        prepare([source], tmp_path / "out", tokenizer, eot_token="<none>")
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_full_disk_or_broken_disk(tmp_path, texts, tokenizer, monkeypatch, number):
    source = tmp_path / "a.txt"
    source.write_text(texts[20])
    real, calls = os.fsync, []

    def failing(handle):
        calls.append(handle)
        if len(calls) == 3:
            raise OSError(number, os.strerror(number))
        real(handle)

    monkeypatch.setattr(writer_module.os, "fsync", failing)
    with pytest.raises(DataError, match=f"cannot write .*out: {os.strerror(number)}; "):
        prepare([source], tmp_path / "out", tokenizer, shard_bytes=200)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_truly_full_disk(tmp_path, texts, tokenizer, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    source = tmp_path / "a.txt"
    source.write_text(texts[20])
    monkeypatch.setattr(writer_module, "open", lambda path, mode: open("/dev/full", mode), raising=False)  # noqa: SIM115
    with pytest.raises(DataError, match="No space left on device; free some space, or name an --out on another disk"):
        prepare([source], tmp_path / "out", tokenizer)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_interrupt_leaves_nothing(tmp_path, texts, tokenizer):
    folder = write_texts(tmp_path / "in", texts)

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare([folder], tmp_path / "out", tokenizer, progress=interrupt)
    assert os.listdir(tmp_path) == ["in"]


ENDLESS = """
import sys
from openwafer.data import prepare
def show(progress):
    print(progress.num_tokens, flush=True)
    sys.stdin.readline()
prepare([sys.argv[1]], sys.argv[2], sys.argv[3], shard_bytes=1000, progress=show)
"""


def test_killed_run_leaves_no_out_and_the_next_run_clears_up(tmp_path, texts, tokenizer, tokenizer_file):
    folder = write_texts(tmp_path / "in", texts)
    command = [sys.executable, "-c", ENDLESS, str(folder), str(tmp_path / "out"), str(tokenizer_file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert int(process.stdout.readline()) > 0
        assert len(leftovers(tmp_path)) == 1
        # One in use is left alone.
        writer_module._remove_stale(tmp_path / "out")
        assert len(leftovers(tmp_path)) == 1
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "out").exists()
    assert len(leftovers(tmp_path)) == 1
    shards = prepare([folder], tmp_path / "out", tokenizer)
    shards.verify()
    assert leftovers(tmp_path) == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_killed_at_any_instant_out_is_whole_or_absent(tmp_path, texts, tokenizer, tokenizer_file):
    folder = write_texts(tmp_path / "in", texts[:10])
    want = prepare([folder], tmp_path / "want", tokenizer, shard_bytes=1000).fingerprint
    for attempt in range(24):
        out = tmp_path / f"out{attempt}"
        if (child := os.fork()) == 0:
            try:
                _write_as_prepare_does(tmp_path / "want", out)
            finally:
                os._exit(0)
        time.sleep(attempt * 0.0015)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if out.exists():
            shards = TokenShards(out)
            shards.verify()
            assert shards.fingerprint == want


def _write_as_prepare_does(source, out):
    """The writing part alone, which needs no threads and so may run in a forked child."""
    index = json.loads((source / "index.json").read_text())
    with writer_module.atomic_folder(out) as partial:
        writer = writer_module.ShardWriter(partial, np.dtype("<u2"), 1000)
        for shard in index["shards"]:
            writer.append(np.fromfile(source / shard["file"], "<u2"))
        writer.close()
        for name in ("tokenizer.json", "index.json"):
            writer_module.write_synced(partial / name, (source / name).read_text())
