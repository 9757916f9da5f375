"""GGUF files, read back by transformers and by the gguf package's own reader."""

import json

import pytest
import torch

from openwafer.base.errors import ConfigError
from openwafer.models import RopeScaling, Rotary
from openwafer.models.interchange import Checkpoint, write_gguf
from tests.models.interchange.test_hugging_face import BTLM_SHAPES, GPT2, SHAPES, llama
from tests.models.test_families import close, published_slopes, reduced, tiny, tokens

gguf = pytest.importorskip("gguf")
transformers = pytest.importorskip("transformers")

MUP = BTLM_SHAPES["cerebras-gpt-mup"].resized(activation="gelu_tanh")


def written(model, folder, dtype=torch.float32, **extra):
    named = dict(model.named_parameters())
    checkpoint = Checkpoint(model.config, lambda: iter(named.items()), "a test", **extra)
    write_gguf(checkpoint, folder / "m.gguf", dtype=dtype)
    return folder / "m.gguf"


def tensors(path):
    """Values by name, as ggml understands them."""
    reader = gguf.GGUFReader(path)
    return {t.name: torch.from_numpy(gguf.quants.dequantize(t.data, t.tensor_type).copy()) for t in reader.tensors}


def tokenizer(size):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    value = Tokenizer(models.BPE({chr(33 + i): i for i in range(size - 1)} | {'!"': size - 1}, [("!", '"')]))
    value.pre_tokenizer, value.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    value.add_special_tokens(["!"])
    return value.to_str().encode()


def theirs(path):
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@pytest.mark.parametrize(
    "config",
    [
        SHAPES["gpt2-tanh"].resized(max_positions=1024),  # transformers takes the default for this one
        MUP.resized(max_positions=1024),
        llama(),
        llama(num_kv_heads=2),
        llama(num_kv_heads=2, tie_embeddings=True),
    ],
    ids=["gpt2", "gpt2-mup", "llama", "llama-gqa", "llama-tied"],
)
def test_transformers_reads_the_same_logits(config, tmp_path):
    model = tiny(config)
    path = written(model, tmp_path, files={"tokenizer.json": tokenizer(config.vocab_size)}, notes={"eos_token_id": 0})
    ids = tokens(time=24)
    with torch.no_grad():
        close(model(ids), theirs(path)(ids).logits)


def test_mixtral_has_its_experts_stacked(tmp_path):
    model = tiny(reduced("mixtral-8x7b"))
    path = written(model, tmp_path)
    have, mlp = tensors(path), model.layers[1].mlp
    assert torch.equal(have["blk.1.ffn_gate_inp.weight"], mlp.router.weight)
    for name in ("gate", "up", "down"):
        want = torch.stack([getattr(expert, name).weight for expert in mlp.experts])
        assert torch.equal(have[f"blk.1.ffn_{name}_exps.weight"], want)
    fields = gguf.GGUFReader(path).fields
    assert (fields["llama.expert_count"].contents(), fields["llama.expert_used_count"].contents()) == (8, 2)


@pytest.mark.parametrize("shape", ["btlm", "jais"])
def test_jais_architecture_computes_btlm(shape, tmp_path):
    """llama.cpp's `jais` graph, in the most literal way, over the tensors of the file."""
    config = BTLM_SHAPES[shape]
    model, ids = tiny(config), tokens(batch=1, time=16) % config.vocab_size
    path = written(model, tmp_path)
    w, fields = tensors(path), gguf.GGUFReader(path).fields
    assert fields["jais.attention.max_alibi_bias"].contents() == 8.0

    def norm(x, name):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x, heads = w["token_embd.weight"][ids[0]], config.num_heads
    distance = torch.arange(16)[None, :] - torch.arange(16)[:, None]
    bias = torch.tensor(published_slopes(heads))[:, None, None] * distance
    for i in range(config.num_layers):
        fused = linear(norm(x, f"blk.{i}.attn_norm"), f"blk.{i}.attn_qkv")
        q, k, v = (part.view(16, heads, -1).transpose(0, 1) for part in fused.chunk(3, -1))
        scores = q @ k.transpose(1, 2) / config.head_dim + bias.masked_fill(distance > 0, float("-inf"))
        x = x + linear((scores.softmax(-1) @ v).transpose(0, 1).reshape(16, -1), f"blk.{i}.attn_output")
        h = norm(x, f"blk.{i}.ffn_norm")
        h = torch.nn.functional.silu(linear(h, f"blk.{i}.ffn_gate")) * linear(h, f"blk.{i}.ffn_up")
        x = x + linear(h, f"blk.{i}.ffn_down")
    with torch.no_grad():
        close(model(ids)[0], norm(x, "output_norm") @ w["output.weight"].T)


@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_sixteen_bits(dtype, tmp_path):
    model = tiny(GPT2)
    have = tensors(written(model, tmp_path, dtype=dtype))
    want = model.wte.weight.to(dtype or torch.float16).float()
    assert torch.equal(have["token_embd.weight"], want)
    assert torch.equal(have["output_norm.weight"], model.ln_f.weight)


def test_positions_and_window(tmp_path):
    config = reduced("llama-3.1-8b")
    have = tensors(written(tiny(config), tmp_path))
    rotary = config.positions
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    parameters = {
        "rope_theta": rotary.theta, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    }  # fmt: skip
    hf = transformers.LlamaConfig(hidden_size=64, num_attention_heads=4, rope_parameters=parameters)
    frequencies, _ = ROPE_INIT_FUNCTIONS["llama3"](hf)
    plain = 1 / rotary.theta ** (torch.arange(0, 16, 2) / 16)
    torch.testing.assert_close(plain / have["rope_freqs.weight"], frequencies)

    (tmp_path / "m.gguf").unlink()
    fields = gguf.GGUFReader(written(tiny(reduced("mistral-7b")), tmp_path)).fields
    assert fields["llama.context_length"].contents() == 10
    scaled = llama(positions=Rotary(scaling=RopeScaling(kind="yarn", factor=4.0, original_positions=16)))
    (tmp_path / "m.gguf").unlink()
    fields = gguf.GGUFReader(written(tiny(scaled), tmp_path)).fields
    assert fields["llama.rope.scaling.type"].contents() == "yarn"
    assert fields["llama.rope.scaling.original_context_length"].contents() == 16


def test_what_llama_cpp_cannot_express_is_refused(tmp_path):
    silu = GPT2.resized(activation="silu")
    for config in (llama(mlp_bias=True), silu, BTLM_SHAPES["stretched"], SHAPES["llama-dynamic"]):
        with pytest.raises(ConfigError, match="no architecture for this model"):
            written(tiny(config), tmp_path)
    unigram = json.dumps({"model": {"type": "Unigram", "vocab": {}}}).encode()
    with pytest.raises(ConfigError, match="'Unigram', not byte-level BPE"):
        written(tiny(GPT2), tmp_path, files={"tokenizer.json": unigram})
    assert not list(tmp_path.iterdir())
