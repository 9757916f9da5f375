"""A small tokenizer and a small prepared data set, made once."""

import pytest

from openwafer.data import prepare, train_tokenizer

TEXTS = [
    f"Document {n}: the quick brown fox jumps over {n * 37 % 101} lazy dogs — ünïcödé.\n" * (n + 1) for n in range(30)
]


@pytest.fixture(scope="session")
def texts():
    return TEXTS


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(TEXTS, 400)


@pytest.fixture(scope="session")
def tokenizer_file(tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def shards(tokenizer, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, text in enumerate(TEXTS):
        (folder / f"{number:03d}.txt").write_text(text)
    return prepare([folder], tmp_path / "shards", tokenizer, shard_bytes=2000)
