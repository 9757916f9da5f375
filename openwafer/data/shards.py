"""Token shards opened for reading.

Reads are plain preads, not a memory map: mapped pages count into the process's resident memory, which has a budget.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import numpy as np
import xxhash
from tokenizers import Tokenizer

from openwafer.base.errors import DataError
from openwafer.data.index import TOKENIZER_FILE, Index, read_index
from openwafer.data.tokenizer import fingerprint, load_tokenizer

_BLOCK_BYTES = 8 << 20


class TokenShards:
    """All tokens of a prepared data set as one sequence. Holds no file open; any thread may read.

    Raises:
        DataError: the folder is not a complete set of shards.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.index: Index = read_index(self.path)
        self._ends = list(accumulate(shard.num_tokens for shard in self.index.shards))

    def __len__(self) -> int:
        """Number of tokens."""
        return self.index.num_tokens

    def __repr__(self) -> str:
        return f"TokenShards({str(self.path)!r}, num_tokens={len(self)}, vocab_size={self.vocab_size})"

    @property
    def vocab_size(self) -> int:
        """Every token id is below it."""
        return self.index.vocab_size

    @property
    def fingerprint(self) -> str:
        """XXH3-128 over the checksums of shards and tokenizer: equal for equal tokens, wherever they lie."""
        parts = [self.index.dtype, self.index.tokenizer_xxh3_128]
        parts += [f"{shard.num_tokens}:{shard.xxh3_64}" for shard in self.index.shards]
        return xxhash.xxh3_128_hexdigest("\n".join(parts).encode())

    def read(self, start: int, count: int) -> np.ndarray:
        """Tokens [start, start + count) as int64 [count].

        Raises:
            IndexError: outside the tokens there are.
            DataError: a file cannot be read, or has become shorter.
        """
        if start < 0 or count < 0 or start + count > len(self):
            raise IndexError(f"tokens {start} to {start + count} are outside the {len(self)} there are")
        out = np.empty(count, dtype=np.int64)
        done = 0
        shard = bisect_right(self._ends, start)
        while done < count:
            within = start + done - (self._ends[shard] - self.index.shards[shard].num_tokens)
            take = min(count - done, self.index.shards[shard].num_tokens - within)
            out[done : done + take] = self._read_shard(shard, within, take)
            done += take
            shard += 1
        return out

    def _read_shard(self, shard: int, start: int, count: int) -> np.ndarray:
        path, dtype = self.path / self.index.shards[shard].file, self.index.numpy_dtype
        want, offset = count * dtype.itemsize, start * dtype.itemsize
        data = bytearray()
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                while len(data) < want and (block := os.pread(file, want - len(data), offset + len(data))):
                    data += block
            finally:
                os.close(file)
        except OSError as error:
            raise DataError(f"cannot read token shard {path}: {error.strerror}") from error
        if len(data) != want:
            raise DataError(f"token shard {path} ends at byte {offset + len(data)}; it was longer when it was opened")
        return np.frombuffer(data, dtype)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the tokens.

        Raises:
            DataError: it is missing, damaged, or another one than the index names.
        """
        path = self.path / TOKENIZER_FILE
        tokenizer = load_tokenizer(path)
        if fingerprint(path.read_text(encoding="utf-8")) != self.index.tokenizer_xxh3_128:
            raise DataError(
                f"{path} is not the tokenizer these tokens were made with; prepare the data anew or restore the file"
            )
        return tokenizer

    def verify(self) -> None:
        """Read everything once: checksums, token ids, tokenizer.

        Raises:
            DataError: naming the first file that does not hold.
        """
        self.tokenizer()
        for number, shard in enumerate(self.index.shards):
            path, step = self.path / shard.file, _BLOCK_BYTES // self.index.numpy_dtype.itemsize
            digest, largest = xxhash.xxh3_64(), 0
            for start in range(0, shard.num_tokens, step):
                block = self._read_shard(number, start, min(step, shard.num_tokens - start))
                digest.update(block.tobytes())
                largest = max(largest, int(block.max()))
            if digest.hexdigest() != shard.xxh3_64:
                raise DataError(
                    f"token shard {path} is damaged: checksum {digest.hexdigest()}, the index says {shard.xxh3_64}; "
                    "prepare the data anew or restore the file"
                )
            if largest >= self.vocab_size:
                raise DataError(f"token shard {path} holds id {largest}; the vocabulary has {self.vocab_size}")
