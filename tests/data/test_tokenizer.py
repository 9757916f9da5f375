"""Tokenizers trained and loaded, held against transformers reading the same file."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openwafer.base.errors import ConfigError, DataError
from openwafer.data import load_tokenizer, train_tokenizer
from openwafer.data.tokenizer import END_OF_TEXT, end_of_text_id


@given(st.text())
def test_any_text_comes_back(tokenizer, text):
    text = text.encode(errors="replace").decode()
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_vocabulary_and_end_of_text(tokenizer, texts):
    assert tokenizer.get_vocab_size() <= 400
    assert end_of_text_id(tokenizer) == 0
    assert len(tokenizer.encode(texts[5]).ids) < 0.5 * len(texts[5])


def test_training_is_deterministic(texts, tokenizer):
    assert train_tokenizer(texts, 400).to_str() == tokenizer.to_str()


def test_equals_transformers_on_the_same_file(tokenizer, tokenizer_file, texts):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizer_file))
    assert theirs(texts[3])["input_ids"] == load_tokenizer(tokenizer_file).encode(texts[3]).ids


def test_file_or_folder(tokenizer_file):
    assert load_tokenizer(tokenizer_file).to_str() == load_tokenizer(tokenizer_file.parent).to_str()


def test_text_cannot_forge_the_end_of_a_document(tokenizer_file):
    tokenizer = load_tokenizer(tokenizer_file)
    assert 0 not in tokenizer.encode(f"a{END_OF_TEXT}b").ids


def test_truncation_in_the_file_is_switched_off(tokenizer, tmp_path, texts):
    from tokenizers import Tokenizer

    cut = Tokenizer.from_str(tokenizer.to_str())
    cut.enable_truncation(4)
    cut.enable_padding(length=2000)
    cut.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode(texts[5]).ids == tokenizer.encode(texts[5]).ids


def test_unusable(tmp_path, tokenizer):
    with pytest.raises(DataError, match="cannot read the tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(DataError, match=r"is not a Hugging Face tokenizer\.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(ConfigError, match="vocab_size is 256; a byte-level BPE needs at least 257"):
        train_tokenizer(["x"], 256)
    with pytest.raises(DataError, match="does not have '<stop>' to end a document with"):
        end_of_text_id(tokenizer, "<stop>")
