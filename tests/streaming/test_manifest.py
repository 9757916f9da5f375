"""The manifest is believed only when it is whole and ours; whatever else it is, the answer is StoreCorrupt."""

import copy
import json
import random

import numpy as np
import pytest

from openwafer.base.errors import StoreCorrupt, StoreError, StoreIOError
from openwafer.streaming import manifest as manifests
from openwafer.streaming.files import FileLayer, checksum
from openwafer.streaming.manifest import decode_sums, encode_sums, read_manifest, write_manifest
from tests.faults import EIO, FaultyFiles, Rule, fail

BODY = {
    "pages": [
        {"name": "first", "layout": "w[4]", "slot": "a", "file": "00000.a", "sums": {"param": "AAAAAAAAAAA="}},
        {"name": "second", "layout": "w[4]", "slot": "b", "file": "00001.b", "sums": {}},
    ],
    "buffers": {"file": "buffers-1.bin", "bytes": 3, "checksum": 7},
    "state": {"step": 3, "nested": {"2": [1.5, None], "10": float("inf")}},
}


def put(path, body, **header) -> None:
    """Write a manifest that is whole, whatever is in it."""
    line = json.dumps(body).encode()
    path.write_bytes(json.dumps({"format": 1, "checksum": checksum(line), **header}).encode() + b"\n" + line)


def changed(*keys, value):
    """The body with one thing in it replaced, or removed."""
    body = copy.deepcopy(BODY)
    place = body
    for key in keys[:-1]:
        place = place[key]
    if value is ...:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return body


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "manifest.json"
    assert read_manifest(FileLayer(), path) is None
    write_manifest(FileLayer(), path, BODY)
    assert read_manifest(FileLayer(), path) == BODY
    assert json.loads(path.read_bytes().split(b"\n")[0]).keys() == {"format", "checksum"}


def test_keys_that_json_turns_into_strings_do_not_break_the_checksum(tmp_path):
    write_manifest(FileLayer(), tmp_path / "m", changed("state", value={2: "two", 10: "ten"}))
    assert read_manifest(FileLayer(), tmp_path / "m")["state"] == {"2": "two", "10": "ten"}


@pytest.mark.parametrize("state", [{"x": object()}, {"x": {1, 2}}, {(1, 2): 3}])
def test_what_is_not_json_is_refused_before_anything_is_replaced(tmp_path, state):
    write_manifest(FileLayer(), tmp_path / "m", BODY)
    with pytest.raises(StoreError, match="the state to commit is not JSON"):
        write_manifest(FileLayer(), tmp_path / "m", changed("state", value=state))
    assert read_manifest(FileLayer(), tmp_path / "m") == BODY


def test_a_state_too_large_to_be_read_again_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(manifests, "MOST_BYTES", 5000)
    with pytest.raises(StoreError, match="the state to commit takes 10,282 bytes as JSON, at most 904 may be"):
        write_manifest(FileLayer(), tmp_path / "m", changed("state", value={"x": "y" * 10_000}))
    (tmp_path / "m").write_bytes(bytes(5001))
    with pytest.raises(StoreCorrupt, match="has 5001 bytes, at most 5000 are expected"):
        read_manifest(FileLayer(), tmp_path / "m")


@pytest.mark.parametrize("seed", range(40))
def test_any_flipped_bit_or_cut_is_found(tmp_path, seed):
    path = tmp_path / "m"
    write_manifest(FileLayer(), path, BODY)
    choice, data = random.Random(seed), bytearray(path.read_bytes())
    if seed % 2:
        data[choice.randrange(len(data))] ^= 1 << choice.randrange(8)
    else:
        data = data[: choice.randrange(len(data))]
    path.write_bytes(data)
    with pytest.raises(StoreCorrupt, match=r"restore it|use the version that wrote it"):
        read_manifest(FileLayer(), path)


def test_the_format_of_another_version_is_named(tmp_path):
    put(tmp_path / "m", {"who": "knows"}, format=2)
    with pytest.raises(StoreCorrupt, match=r"has format 2, this version reads 1: use the version that wrote it"):
        read_manifest(FileLayer(), tmp_path / "m")


HOSTILE = {
    "path trick in a page": (("pages", 0, "file"), "../../x", r"page 0: file '../../x' should be '00000.a'"),
    "absolute path": (("pages", 1, "file"), "/etc/passwd", r"page 1: file '/etc/passwd' should be '00001.b'"),
    "another page's file": (("pages", 1, "file"), "00000.a", r"should be '00001.b'"),
    "path trick in buffers": (("buffers", "file"), "../buffers-0.bin", "buffers in '../buffers-0.bin', which should"),
    "no file": (("pages", 0, "file"), ..., "file None should be"),
    "slot c": (("pages", 0, "slot"), "c", "slot 'c' is neither 'a' nor 'b'"),
    "slot of lists": (("pages", 0, "slot"), [["a"]], "is neither"),
    "pages as a table": (("pages",), {"0": {}}, "'pages' is not a list"),
    "page as a number": (("pages", 0), 7, "page 0: not an object"),
    "name as a number": (("pages", 0, "name"), 7, "page 0: 'name' is not a string"),
    "no layout": (("pages", 0, "layout"), ..., "'layout' is not a string"),
    "sums as a list": (("pages", 0, "sums"), ["x"], "'sums' is not a table of strings"),
    "sums of numbers": (("pages", 0, "sums"), {"param": 7}, "'sums' is not a table of strings"),
    "buffers as text": (("buffers",), "x", "'buffers' is not an object"),
    "size as text": (("buffers", "bytes"), "3", "are not counts"),
    "negative size": (("buffers", "bytes"), -1, "are not counts"),
    "size true": (("buffers", "bytes"), True, "are not counts"),
    "checksum as text": (("buffers", "checksum"), "7", "are not counts"),
    "state as a list": (("state",), [], "'state' is not an object"),
    "no state": (("state",), ..., "'state' is not an object"),
    "no pages": (("pages",), ..., "'pages' is not a list"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_manifest_is_refused_in_words(tmp_path, case):
    keys, value, message = HOSTILE[case]
    put(tmp_path / "m", changed(*keys, value=value))
    with pytest.raises(StoreCorrupt, match=r"is not a manifest that openwafer wrote: .*" + message):
        read_manifest(FileLayer(), tmp_path / "m")


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"[]", b"7", b'"x"', b"null", b"{}", b"\xff\xfe", b"[" * 100_000, b'{"format": 1', b'{"a": 1}\n{}'],
)
def test_what_is_no_manifest_is_refused(tmp_path, data):
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(StoreCorrupt, match=r"is not a manifest|damaged"):
        read_manifest(FileLayer(), tmp_path / "m")


@pytest.mark.parametrize("body", [[], 7, None, "x"])
def test_a_body_that_is_no_object_is_refused(tmp_path, body):
    put(tmp_path / "m", body)
    with pytest.raises(StoreCorrupt, match="its body is not an object"):
        read_manifest(FileLayer(), tmp_path / "m")


def test_a_body_nested_without_end_is_refused(tmp_path):
    line = b'{"state": ' + b"[" * 100_000
    (tmp_path / "m").write_bytes(json.dumps({"format": 1, "checksum": checksum(line)}).encode() + b"\n" + line)
    with pytest.raises(StoreCorrupt, match="is not a manifest"):
        read_manifest(FileLayer(), tmp_path / "m")


def test_a_disk_that_does_not_answer_is_not_a_damaged_manifest(tmp_path):
    write_manifest(FileLayer(), tmp_path / "m", BODY)
    with pytest.raises(StoreIOError, match=f"reading {tmp_path}/m failed: Input/output error"):
        read_manifest(FaultyFiles(Rule("read", "*", fail(EIO))), tmp_path / "m")


def test_checksums_travel_as_text():
    sums = np.array([0, 1, 2**64 - 1], dtype=np.uint64)
    assert np.array_equal(decode_sums(encode_sums(sums), 3), sums)
    for text, count in ((encode_sums(sums), 2), ("?", 0), ("AAAA", 1), ("", 1)):
        with pytest.raises(ValueError, match=r"checksums|base64|padding|discontinuous|only"):
            decode_sums(text, count)
