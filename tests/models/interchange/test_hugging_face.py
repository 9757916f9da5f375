"""Folders that transformers writes are read, and those that we write it reads, with equal logits."""

import json

import pytest
import torch

from openwafer.base.errors import ConfigError
from openwafer.models import (
    BTLM,
    CEREBRAS_GPT_MUP,
    Alibi,
    Decoder,
    DecoderConfig,
    Experts,
    MuP,
    RopeScaling,
    Rotary,
)
from openwafer.models.interchange import (
    CardFacts,
    Checkpoint,
    from_hugging_face,
    read_folder,
    to_hugging_face,
    write_folder,
    write_native,
)
from tests.models.test_families import VOCABULARY, close, reduced, tiny, tokens

transformers = pytest.importorskip("transformers")

GPT2 = DecoderConfig(hidden_size=48, num_layers=3, num_heads=4, vocab_size=VOCABULARY, max_positions=64)
LLAMA = reduced("llama-2-7b")


def llama(**changes):
    return LLAMA.resized(**changes)


def stretched(**scaling):
    return llama(positions=Rotary(theta=500.0, scaling=RopeScaling(**scaling)), max_positions=32)


SHAPES = {
    "gpt2": GPT2,
    "gpt2-17-heads": GPT2.resized(num_heads=17, hidden_size=68),
    "gpt2-ffn": GPT2.resized(ffn_size=80, num_layers=1),
    "gpt2-tanh": GPT2.resized(activation="gelu_tanh"),
    "gpt2-untied": GPT2.resized(tie_embeddings=False),
    "llama-mha": llama(),
    "llama-gqa": llama(num_kv_heads=2),
    "llama-mqa": llama(num_kv_heads=1),
    "llama-tied": llama(tie_embeddings=True),
    "llama-head-dim": llama(head_dim=24),
    "llama-bias": llama(qkv_bias=True, attention_out_bias=True, mlp_bias=True),
    "llama-linear": stretched(kind="linear", factor=4.0),
    "llama-dynamic": stretched(kind="dynamic", factor=2.0),
    "llama-llama3": stretched(kind="llama3", factor=8.0, original_positions=16),
    "llama-yarn": stretched(kind="yarn", factor=4.0, original_positions=16),
    "llama-yarn-fine": stretched(
        kind="yarn", factor=4.0, original_positions=16, beta_fast=16.0, beta_slow=2.0, mscale=1.0, mscale_all_dim=0.5
    ),
    "llama-3.1": reduced("llama-3.1-8b"),
    "mistral": reduced("mistral-7b"),
    "mistral-nemo": reduced("mistral-nemo-12b").resized(head_dim=24, window=48),
    "mixtral": reduced("mixtral-8x7b"),
    "mixtral-window": reduced("mixtral-8x22b").resized(window=12),
}


def write(model, folder, **options):
    named = dict(model.named_parameters())
    write_folder(Checkpoint(model.config, lambda: iter(named.items()), "a test"), folder, **options)
    return folder


def load(folder):
    """Our decoder from a folder."""
    checkpoint = read_folder(folder)
    model = Decoder(checkpoint.config)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in checkpoint.tensors():
            named.pop(name).copy_(tensor)
    assert not named
    return model.eval()


def theirs(folder):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("shape", SHAPES)
def test_equal_logits_both_ways(shape, tmp_path):
    model, ids = tiny(SHAPES[shape]), tokens()
    twin = theirs(write(model, tmp_path / "ours"))
    with torch.no_grad():
        close(model(ids), twin(ids).logits)
        twin.save_pretrained(tmp_path / "theirs")
        again = load(tmp_path / "theirs")
        close(again(ids), twin(ids).logits)
    assert torch.equal(again(ids), model(ids))


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trips_are_bit_exact(shape, tmp_path):
    model = tiny(SHAPES[shape])
    again = load(write(model, tmp_path / "a", shard_bytes=50_000))
    assert again.config.resized() == model.config.resized(init_std=again.config.init_std, output_init_std=None)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    write_native(read_folder(tmp_path / "a"), tmp_path / "native")
    write_folder(read_folder(tmp_path / "native"), tmp_path / "b", shard_bytes=50_000)
    for file in (tmp_path / "a").iterdir():
        if file.name != "README.md":
            assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


def test_loss_and_balance_loss_of_mixtral(tmp_path):
    config = reduced("mixtral-8x7b")
    model, ids = tiny(config.resized(experts=Experts(num_experts=4, top_k=2, balance_coefficient=0.5))), tokens()
    twin = theirs(write(model, tmp_path / "m"))
    want = sum(twin(row, labels=row, output_router_logits=True).loss for row in ids.split(1)) / 2
    # Theirs balances all tokens, the last one of a row included, so ours must see it too, without a label.
    labels = torch.cat((ids[:, 1:], torch.full((2, 1), -100)), dim=1)
    torch.testing.assert_close(model(ids, labels), want, rtol=1e-5, atol=1e-6)


def test_dtype_is_kept_or_chosen(tmp_path):
    model = tiny(llama()).bfloat16()
    write(model, tmp_path / "bf16")
    assert {tensor.dtype for _, tensor in read_folder(tmp_path / "bf16").tensors()} == {torch.bfloat16}
    assert json.loads((tmp_path / "bf16/config.json").read_text())["torch_dtype"] == "bfloat16"
    write(model, tmp_path / "fp16", dtype=torch.float16)
    assert {tensor.dtype for _, tensor in read_folder(tmp_path / "fp16").tensors()} == {torch.float16}


# --- muP, BTLM, Jais ------------------------------------------------------------------------------------------------

BTLM_SHAPES = {
    "btlm": BTLM["3b-8k"].resized(num_layers=2, hidden_size=48, num_heads=6, ffn_size=120, vocab_size=VOCABULARY),
    "jais": reduced("jais-13b"),
    "stretched": BTLM["3b-8k"].resized(
        num_layers=1, hidden_size=48, num_heads=4, ffn_size=99, vocab_size=99, positions=Alibi(factor=4.0)
    ),
    "dynamic": BTLM["3b-8k"].resized(
        num_layers=1, hidden_size=48, num_heads=4, ffn_size=99, vocab_size=99, positions=Alibi(train_positions=2048)
    ),
    "cerebras-gpt-mup": CEREBRAS_GPT_MUP["111m"].resized(
        num_layers=2, hidden_size=48, num_heads=4, ffn_size=None, vocab_size=VOCABULARY, max_positions=64
    ),
}


@pytest.mark.parametrize("shape", BTLM_SHAPES)
def test_all_mup_fields_are_kept(shape, tmp_path):
    model = tiny(BTLM_SHAPES[shape])
    again = load(write(model, tmp_path / "m", kind="jais" if shape == "jais" else "btlm"))
    assert again.config.mup == model.config.mup
    assert again.config.positions == model.config.positions
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_the_btlm_config_has_the_published_values(tmp_path):
    """The values of cerebras/btlm-3b-8k-base's config.json."""
    value = to_hugging_face(BTLM["3b-8k"], None, {})
    published = {
        "model_type": "btlm", "vocab_size": 50257, "n_positions": 8192, "n_embd": 2560, "n_layer": 32, "n_head": 32,
        "n_inner": 6826, "activation_function": "swiglu", "position_embedding_type": "alibi", "mup_width_scale": 0.1,
        "mup_embeddings_scale": 14.6, "mup_scale_qk_dot_by_d": True, "tie_word_embeddings": True,
    }  # fmt: skip
    assert {name: value[name] for name in published} == published
    assert value["mup_output_alpha"] * value["mup_width_scale"] == pytest.approx(0.222)
    # Without our extra keys, which its own file does not have, the base sizes follow from the ratio.
    for name in ("mup_base_hidden_size", "mup_base_filter_size"):
        del value[name]
    config, _ = from_hugging_face(value, "config.json")
    assert config.mup == MuP(base_hidden_size=256, base_ffn_size=682.6, embeddings_scale=14.6, output_alpha=2.22)


def test_btlm_names_and_layout(tmp_path):
    """mlstack: c_fc is the value side, c_fc2 the SiLU side, both transposed; slopes are a column."""
    from safetensors.torch import load_file

    model = tiny(BTLM_SHAPES["btlm"])
    file = load_file(write(model, tmp_path / "m") / "model.safetensors")
    layer = model.layers[1]
    assert torch.equal(file["transformer.h.1.mlp.c_fc.weight"], layer.mlp.up.weight.t())
    assert torch.equal(file["transformer.h.1.mlp.c_fc2.weight"], layer.mlp.gate.weight.t())
    assert torch.equal(file["transformer.h.1.attn.c_attn.bias"], layer.attn.qkv.bias)
    assert file["transformer.relative_pe.slopes"].shape == (6, 1)
    assert "lm_head.weight" not in file


def test_mup_folds_into_a_plain_gpt2(tmp_path):
    model, ids = tiny(BTLM_SHAPES["cerebras-gpt-mup"]), tokens()
    twin = theirs(write(model, tmp_path / "m", kind="gpt2"))
    with torch.no_grad():
        close(model(ids), twin(ids).logits)


# --- what travels along ---------------------------------------------------------------------------------------------


def test_tokenizer_card_and_generation_config(tmp_path):
    from tokenizers import Tokenizer, models

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    model = tiny(llama())
    named = dict(model.named_parameters())
    checkpoint = Checkpoint(
        model.config,
        lambda: iter(named.items()),
        "a test",
        {"tokenizer.json": tmp_path / "tokenizer.json"},
        {"eos_token_id": 1},
    )
    facts = CardFacts(name="Tiny", licence="apache-2.0", data="Random numbers.", training="None.", limits="Many.")
    write_folder(checkpoint, tmp_path / "m", facts=facts)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "m").encode("b") == [1]
    assert transformers.GenerationConfig.from_pretrained(tmp_path / "m").eos_token_id == 1
    card = (tmp_path / "m" / "README.md").read_text()
    for part in (
        "license: apache-2.0",
        "## Architecture",
        "Random numbers.",
        "## Intended use\n\nNot stated.",
        "Many.",
    ):
        assert part in card
    write_folder(read_folder(tmp_path / "m"), tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text() == card
    assert json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] == 1


def test_the_original_gpt2_layout_is_read(tmp_path):
    """Without the prefix of the trunk, and with the buffers that older versions saved."""
    from safetensors.torch import load_file, save_file

    model = tiny(GPT2)
    file = write(model, tmp_path / "m") / "model.safetensors"
    tensors = {name.removeprefix("transformer."): value for name, value in load_file(file).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 4, 4)
    save_file(tensors, file)
    assert torch.equal(load(tmp_path / "m").wte.weight, model.wte.weight)


@pytest.mark.parametrize(
    ("config", "kind", "lost"),
    [
        (llama(window=8), "llama", "window"),
        (llama(qkv_bias=True), "llama", "attention_out_bias"),
        (llama(), "gpt2", "positions"),
        (GPT2.resized(activation="silu"), "llama", "rotary positions only"),
        (reduced("mixtral-8x7b").resized(experts=Experts(num_experts=4, top_k=1, num_shared=1)), "mixtral", "experts"),
    ],
)
def test_what_a_family_cannot_express_is_refused(config, kind, lost, tmp_path):
    with pytest.raises(ConfigError, match=lost):
        write(tiny(config), tmp_path / "m", kind=kind)
    assert not list(tmp_path.iterdir())
