"""The index of a folder of token shards: what index.json holds, and its reading with nothing taken on trust.

A folder: `index.json`, `tokenizer.json`, and `tokens-00000.bin`, `tokens-00001.bin`, ...: raw little-endian unsigned
integers, one document after another, each followed by the end-of-text token if it was asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from openwafer.base.errors import DataError

INDEX_FILE = "index.json"
TOKENIZER_FILE = "tokenizer.json"
VERSION = 1
_MAX_INDEX_BYTES = 1 << 30
_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ShardRecord(_Record):
    """One file of tokens. The pattern keeps a name from leading out of the folder."""

    file: str = Field(pattern=r"^tokens-\d{5,9}\.bin$")
    num_tokens: int = Field(ge=1)
    xxh3_64: str = Field(pattern=r"^[0-9a-f]{16}$")


class SourceRecord(_Record):
    """One input file, as it was when it was read."""

    path: str
    size_bytes: int = Field(ge=0)


class Index(_Record):
    """Contents of index.json."""

    format: Literal["openwafer-tokens"] = "openwafer-tokens"
    version: Literal[1] = VERSION
    dtype: Literal["uint16", "uint32"]
    vocab_size: int = Field(ge=1, le=1 << 32)
    eot_token_id: int | None
    num_tokens: int = Field(ge=1)
    num_documents: int = Field(ge=1)
    num_replaced_characters: int = Field(ge=0)
    num_skipped_files: int = Field(ge=0)
    tokenizer_xxh3_128: str = Field(pattern=r"^[0-9a-f]{32}$")
    shards: list[ShardRecord] = Field(min_length=1)
    sources: list[SourceRecord]

    @property
    def numpy_dtype(self) -> np.dtype:
        return _DTYPES[self.dtype]


def dtype_for(vocab_size: int) -> Literal["uint16", "uint32"]:
    """The smallest dtype that holds every id below vocab_size."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def read_index(folder: Path) -> Index:
    """Read and check index.json; the sizes of all shards are compared with it.

    Raises:
        DataError: missing, not ours, of another version, inconsistent, or a shard is missing, cut off or too long.
    """
    path = folder / INDEX_FILE
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise DataError(f"{path} is larger than {_MAX_INDEX_BYTES >> 20} MiB; it is no index of token shards")
        text = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"cannot open the token shards {folder}: {path.name}: {error.strerror}; "
            "name a folder made by `openwafer data prepare`"
        ) from error
    try:
        index = Index.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path} is no valid index of token shards: {where}: {first['msg']}; prepare the data anew"
        ) from error
    _check(index, folder)
    return index


def _check(index: Index, folder: Path) -> None:
    total = sum(shard.num_tokens for shard in index.shards)
    if total != index.num_tokens:
        raise DataError(f"{folder / INDEX_FILE}: the shards hold {total} tokens, num_tokens says {index.num_tokens}")
    if len({shard.file for shard in index.shards}) != len(index.shards):
        raise DataError(f"{folder / INDEX_FILE}: a shard is named twice")
    for shard in index.shards:
        path = folder / shard.file
        want = shard.num_tokens * index.numpy_dtype.itemsize
        try:
            size = path.stat().st_size
        except OSError as error:
            raise DataError(
                f"token shard {path}: {error.strerror}; prepare the data anew or restore the file"
            ) from error
        if size != want or not path.is_file():
            raise DataError(
                f"token shard {path} has {size} bytes, the index says {want}; "
                "it is damaged: prepare the data anew or restore the file"
            )
