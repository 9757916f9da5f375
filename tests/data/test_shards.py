"""Opening token shards: nothing in the folder is taken on trust."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openwafer.base.errors import DataError
from openwafer.data import TokenShards


def edit(opened, **changes):
    path = opened.path / "index.json"
    index = json.loads(path.read_text())
    for key, value in changes.items():
        if key == "shard":
            index["shards"][0] |= value
        else:
            index[key] = value
    path.write_text(json.dumps(index))
    return opened.path


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_read_across_files_equals_numpy(shards, data):
    whole = np.concatenate([np.fromfile(shards.path / s.file, "<u2") for s in shards.index.shards])
    assert len(shards.index.shards) > 3
    start = data.draw(st.integers(0, len(shards)))
    count = data.draw(st.integers(0, len(shards) - start))
    got = shards.read(start, count)
    assert got.dtype == np.int64
    assert np.array_equal(got, whole[start : start + count])


def test_outside_is_refused(shards):
    for start, count in ((-1, 1), (0, len(shards) + 1), (len(shards), 1), (0, -1)):
        with pytest.raises(IndexError, match="outside the"):
            shards.read(start, count)


def test_not_a_folder_of_shards(tmp_path):
    with pytest.raises(DataError, match=r"cannot open the token shards .*No such file.*openwafer data prepare"):
        TokenShards(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format"),
        ({"version": 2}, "version"),
        ({"dtype": "float64"}, "dtype"),
        ({"num_tokens": 10**12}, "num_tokens says 1000000000000"),
        ({"num_tokens": "5"}, "num_tokens"),
        ({"shards": []}, "shards"),
        ({"surprise": 1}, "surprise"),
        ({"shard": {"file": "../../etc/passwd"}}, "shards.0.file"),
        ({"shard": {"file": "/etc/passwd"}}, "shards.0.file"),
        ({"shard": {"file": "tokens-00000.bin\n"}}, "shards.0.file"),
        ({"shard": {"file": "tokens-00001.bin"}}, "a shard is named twice"),
        ({"shard": {"num_tokens": -5}}, "shards.0.num_tokens"),
        ({"shard": {"xxh3_64": "x"}}, "shards.0.xxh3_64"),
    ],
    ids=str,
)
def test_hostile_index_is_refused(shards, changes, message):
    with pytest.raises(DataError, match=message):
        TokenShards(edit(shards, **changes))


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", "[" * 100_000, '{"version": ' + "9" * 5000 + "}", "\xff\0"], ids=range(7)
)
def test_nonsense_index_is_refused(shards, text):
    (shards.path / "index.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=r"index\.json is no valid index of token shards"):
        TokenShards(shards.path)


def test_truncated_lengthened_or_missing_shard(shards):
    path = shards.path / shards.index.shards[1].file
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole + b"x", b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=rf"has {len(damaged)} bytes, the index says {len(whole)}"):
            TokenShards(shards.path)
    path.unlink()
    with pytest.raises(DataError, match=f"{path.name}: No such file"):
        TokenShards(shards.path)


def test_shard_cut_off_after_opening(shards):
    path = shards.path / shards.index.shards[0].file
    path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(DataError, match="ends at byte 10; it was longer"):
        shards.read(0, 100)


def test_verify_finds_a_flipped_bit_in_any_file(shards):
    shards.verify()
    for shard in shards.index.shards:
        path = shards.path / shard.file
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(DataError, match=f"{shard.file} is damaged: checksum"):
            shards.verify()
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    shards.verify()


def test_verify_finds_ids_outside_the_vocabulary(shards):
    opened = TokenShards(edit(shards, vocab_size=3))
    with pytest.raises(DataError, match="the vocabulary has 3"):
        opened.verify()


def test_exchanged_tokenizer_is_refused(shards):
    path = shards.path / "tokenizer.json"
    path.write_text(path.read_text().replace('"normalized":false', '"normalized":true'))
    with pytest.raises(DataError, match="is not the tokenizer these tokens were made with"):
        shards.tokenizer()


def test_fingerprint_depends_on_tokens_not_on_the_place(shards, tmp_path):
    shards.path.rename(tmp_path / "moved")
    assert TokenShards(tmp_path / "moved").fingerprint == shards.fingerprint
