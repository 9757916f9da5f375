"""Tokenizers: a Hugging Face tokenizer.json read, or a byte-level BPE trained.

Only the `tokenizers` library's own JSON format; no pickles, no code from a model folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import xxhash
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from openwafer.base.errors import ConfigError, DataError

END_OF_TEXT = "<|endoftext|>"
"""GPT-2's name for the token between documents."""

_KNOWN_END_OF_TEXT = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|eot_id|>", "[EOS]")
_MIN_VOCAB = 257  # 256 bytes and END_OF_TEXT


def load_tokenizer(path: str | os.PathLike) -> Tokenizer:
    """Read a tokenizer.json, or the one in a folder, set to encode text as it is.

    No truncation, no padding; a special token spelled out in the text is text, so data cannot forge a document's end.

    Raises:
        DataError: not there, or not a tokenizer.
    """
    path = Path(path)
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the tokenizer {file}: {error}; name a Hugging Face tokenizer.json") from error
    return _parse(text, str(file))


def plain_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """A copy of a tokenizer in memory, set as `load_tokenizer` sets one."""
    return _parse(tokenizer.to_str(), "the tokenizer")


def _parse(text: str, name: str) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # the library raises nothing narrower
        raise DataError(f"{name} is not a Hugging Face tokenizer.json: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE as in GPT-2, with END_OF_TEXT as id 0; any text can be encoded and comes back equal.

    Args:
        texts: what to learn the merges from; read once.
        vocab_size: at least 257; little text gives fewer.

    Raises:
        ConfigError: vocab_size is too small.
    """
    if vocab_size < _MIN_VOCAB:
        raise ConfigError(f"vocab_size is {vocab_size}; a byte-level BPE needs at least {_MIN_VOCAB}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer=trainer)
    return plain_tokenizer(tokenizer)


def end_of_text_id(tokenizer: Tokenizer, token: str | None = None) -> int:
    """Id of the token that ends a document: `token`, or the first well-known one the tokenizer has.

    Raises:
        DataError: it has none of them.
    """
    for candidate in _KNOWN_END_OF_TEXT if token is None else (token,):
        found = tokenizer.token_to_id(candidate)
        if found is not None:
            return found
    looked_for = repr(token) if token is not None else "any of " + ", ".join(_KNOWN_END_OF_TEXT)
    raise DataError(
        f"the tokenizer does not have {looked_for} to end a document with; "
        "name its own with --eot-token, or leave documents unseparated with --no-eot"
    )


def fingerprint(text: str) -> str:
    """XXH3-128 of a tokenizer.json's text, in hex."""
    return xxhash.xxh3_128_hexdigest(text.encode())
