"""Input files to documents."""

import bz2
import gzip
import json
import lzma
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openwafer.base.errors import DataError
from openwafer.data import sources as module
from openwafer.data.sources import Counts, Source, find_sources, read_pieces


def documents(path, field="text", counts=None):
    """Texts of the documents of one file, put together again."""
    result, open_text = [], ""
    for piece in read_pieces(Source(path, path.stat().st_size), field, counts or Counts()):
        open_text += piece.text
        if piece.last:
            result.append(open_text)
            open_text = ""
    assert open_text == ""
    return result


def test_text_file_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("line one\r\nzwei — drei".encode())
    assert documents(path) == ["line one\r\nzwei — drei"]


def test_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfabc")
    assert documents(path) == ["abc"]


@pytest.mark.parametrize("line", ["short — line\n", "x" * 999 + "\n", "ohne Ende 𝄞 "])
def test_long_documents_come_in_bounded_pieces_and_whole(tmp_path, monkeypatch, line):
    monkeypatch.setattr(module, "PIECE_BYTES", 1000)
    path = tmp_path / "a.txt"
    text = line * 700
    path.write_text(text, newline="")
    pieces = list(read_pieces(Source(path, path.stat().st_size), "text", Counts()))
    assert "".join(piece.text for piece in pieces) == text
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert max(len(piece.text) for piece in pieces) <= 2004
    assert pieces[-1].read_bytes == path.stat().st_size

    lines = tmp_path / "a.jsonl"
    lines.write_text(json.dumps({"text": text}))
    assert documents(lines) == [text]


@given(st.binary(max_size=300))
def test_any_bytes_decode_as_in_one_go(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("bytes") / "a.txt"
    path.write_bytes(data)
    counts = Counts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE_BYTES", 7)
        got = documents(path, counts=counts)
    want = data.decode(errors="replace").removeprefix("\ufeff")
    assert "".join(got) == want
    assert counts.replaced_characters == want.count("\ufffd") - data.count(b"\xef\xbf\xbd")


def test_json_lines(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "one", "n": 1}\n\n  \n{"text": ""}\n{"text": "two\\nlines"}')
    assert documents(path) == ["one", "two\nlines"]


def test_other_field(tmp_path):
    path = tmp_path / "a.ndjson"
    path.write_text('{"content": "yes", "text": "no"}')
    assert documents(path, "content") == ["yes"]


def test_half_a_surrogate_pair_is_replaced_and_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a\\ud83db \\ud83d\\ude00"}')
    counts = Counts()
    assert documents(path, counts=counts) == ["a\ufffdb 😀"]
    assert counts.replaced_characters == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "{nonsense",
            r"a.jsonl:2: not valid JSON \(Expecting property name.*\): '\{nonsense'; one JSON object per line",
        ),
        ("[1]", r"a.jsonl:2: a list, not an object"),
        ('{"body": "x", "id": 1}', r"a.jsonl:2: field 'text' is missing; fields here: body, id; see --field"),
        ('{"text": 5}', r"a.jsonl:2: field 'text' is a int, not a string"),
        ("[" * 100_000, r"a.jsonl:2: not valid JSON"),
    ],
    ids=range(5),
)
def test_bad_json_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        documents(path)


def test_endless_json_line_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "' + "x" * (1 << 20) + '"}')
    with pytest.raises(DataError, match=r"a.jsonl:1: the line is longer than 1 MiB"):
        documents(path)


@pytest.mark.parametrize(("suffix", "packer"), [(".gz", gzip), (".bz2", bz2), (".xz", lzma)])
def test_packed_files(tmp_path, suffix, packer):
    text, lines = tmp_path / f"a.txt{suffix}", tmp_path / f"a.jsonl{suffix}"
    text.write_bytes(packer.compress("ganz — ".encode() * 100_000))
    lines.write_bytes(packer.compress(b'{"text": "one"}\n{"text": "two"}\n'))
    assert documents(text) == ["ganz — " * 100_000]
    assert documents(lines) == ["one", "two"]

    text.write_bytes(text.read_bytes()[:-20])
    with pytest.raises(DataError, match=f"cannot read .*a.txt{suffix}"):
        documents(text)


def test_parquet(tmp_path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    texts = [f"row {n}" for n in range(200)]
    table = arrow.table({"text": [*texts, None, ""], "n": list(range(202))})
    parquet.write_table(table, path, row_group_size=50)
    assert documents(path) == texts

    with pytest.raises(DataError, match="column 'body' is missing; columns here: text, n; see --field"):
        documents(path, "body")
    with pytest.raises(DataError, match="column 'n' has type int64, not string"):
        documents(path, "n")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match="cannot read"):
        documents(path)


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"pip install 'openwafer\[parquet\]'"):
        documents(path)


def test_folder_is_recursive_sorted_and_leaves_out_hidden_and_binary(tmp_path):
    for name in ("b.txt", "a/z.txt", "a/b/c.py", ".hidden", ".git/config", "a/.secret.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "program.bin").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "pack.zip").write_bytes(b"PK")
    os.mkfifo(tmp_path / "pipe")
    counts = Counts()
    found = [str(source.path.relative_to(tmp_path)) for source in find_sources([tmp_path], counts)]
    assert found == ["a/b/c.py", "a/z.txt", "b.txt"]
    assert [os.path.basename(name) for name in counts.skipped_files] == ["pack.zip", "program.bin"]


def test_named_files_keep_their_order(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
    found = find_sources([tmp_path / "b", str(tmp_path / "a")], Counts())
    assert [source.path.name for source in found] == ["b", "a"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("missing.txt", None, "missing.txt does not exist; check the name"),
        ("empty.txt", b"", "all 1 input files are empty"),
        ("image.png", b"\x89PNG\0", "image.png is not text: it has a NUL byte"),
        ("data.zst", b"x", "is a .zst archive, which is not read here; unpack it first"),
    ],
)
def test_unusable_input(tmp_path, name, data, message):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        find_sources([path], Counts())


def test_no_input_and_empty_folder(tmp_path):
    with pytest.raises(DataError, match="no input was named"):
        find_sources([], Counts())
    with pytest.raises(DataError, match="no usable file in"):
        find_sources([tmp_path], Counts())


def test_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        find_sources([tmp_path / "pipe"], Counts())


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(DataError, match=r"cannot read .*a\.txt"):
        find_sources([path], Counts())
