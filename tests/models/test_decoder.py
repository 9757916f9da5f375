"""The decoder, held against transformers' GPT2LMHeadModel with the same weights."""

import pytest
import torch

from openwafer.base.errors import ConfigError
from openwafer.models import CEREBRAS_GPT, IGNORE_INDEX, Decoder, DecoderConfig, KVCache, num_parameters


def tiny(**changes):
    torch.manual_seed(0)
    sizes = dict(hidden_size=48, num_layers=3, num_heads=4, vocab_size=211, max_positions=32)
    model = Decoder(DecoderConfig(**(sizes | changes)))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)  # biases and norms take part
    return model


def tokens(batch=2, time=32, seed=1):
    return torch.randint(0, 211, (batch, time), generator=torch.Generator().manual_seed(seed))


def hugging_face_twin(model):
    """GPT2LMHeadModel with the weights of `model`; HF's Conv1D holds its weight transposed."""
    transformers = pytest.importorskip("transformers")
    c = model.config
    twin = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=c.vocab_size,
            n_positions=c.max_positions,
            n_embd=c.hidden_size,
            n_layer=c.num_layers,
            n_head=c.num_heads,
            n_inner=c.ffn_size,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=c.tie_embeddings,
        )
    )
    names = {"attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    state = {}
    for name, value in model.state_dict().items():
        for ours, theirs in names.items():
            if f".{ours}." in name:
                name = name.replace(ours, theirs)
                value = value.t() if name.endswith("weight") else value
        state[name if name.startswith("lm_head") else f"transformer.{name.replace('layers.', 'h.')}"] = value
    twin.load_state_dict(state)
    return twin.eval()


@pytest.mark.parametrize(
    "changes", [{}, {"tie_embeddings": False}, {"ffn_size": 80, "num_heads": 3, "num_layers": 1}], ids=str
)
def test_logits_loss_and_gradients_equal_hugging_face(changes):
    model, ids = tiny(**changes), tokens()
    twin = hugging_face_twin(model)
    theirs = twin(input_ids=ids, labels=ids)
    torch.testing.assert_close(model(ids), theirs.logits, rtol=1e-5, atol=1e-5)

    loss = model(ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close(loss, theirs.loss, rtol=1e-6, atol=1e-6)
    loss.backward()
    theirs.loss.backward()
    torch.testing.assert_close(model.wte.weight.grad, twin.transformer.wte.weight.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        model.layers[0].attn.qkv.weight.grad, twin.transformer.h[0].attn.c_attn.weight.grad.t(), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("size", CEREBRAS_GPT)
def test_parameter_count_of_the_family(size):
    config = CEREBRAS_GPT[size]
    with torch.device("meta"):
        model = Decoder(config)
    assert sum(p.numel() for p in model.parameters()) == num_parameters(config)
    # The name is the count in millions or billions, rounded.
    named = float(size[:-1]) * (1e9 if size.endswith("b") else 1e6)
    assert abs(num_parameters(config) - named) < 0.025 * named


def test_parameter_count_untied():
    model = tiny(tie_embeddings=False, ffn_size=99)
    assert sum(p.numel() for p in model.parameters()) == num_parameters(model.config)


def test_a_true_size_runs_on_the_meta_device():
    with torch.device("meta"):
        model, ids = Decoder(CEREBRAS_GPT["13b"]), torch.zeros(1, 2048, dtype=torch.long)
    model(ids, ids).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_head_holds_the_embedding_parameter_itself():
    model = tiny()
    assert model.lm_head.weight is model.wte.weight
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_bfloat16_autocast_is_near_fp32():
    model, ids = tiny(), tokens()
    want = model(ids[:, :-1], ids[:, 1:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids[:, :-1], ids[:, 1:])
    assert loss.dtype == torch.float32
    assert abs(loss - want) < 2e-2
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_later_tokens_do_not_change_earlier_logits():
    model, ids = tiny(), tokens(batch=1)
    other = ids.clone()
    other[:, 20:] = (other[:, 20:] + 7) % 211
    torch.testing.assert_close(model(ids)[:, :20], model(other)[:, :20], rtol=1e-5, atol=1e-6)


def test_ignored_labels_take_no_part():
    model, ids = tiny(), tokens()
    labels = ids.clone()
    labels[0] = IGNORE_INDEX
    torch.testing.assert_close(model(ids, labels), model(ids[1:], ids[1:]), rtol=1e-6, atol=1e-6)
    both = model(ids[:1], ids[:1], reduction="sum") + model(ids[1:], ids[1:], reduction="sum")
    torch.testing.assert_close(model(ids, ids, reduction="sum"), both, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("parts", [[32], [1, 1, 30], [7, 1, 20, 4]], ids=str)
def test_cache_gives_the_logits_of_one_pass(parts):
    model, ids, cache = tiny(), tokens(), KVCache()
    with torch.no_grad():
        pieces = [model(piece, past=cache) for piece in ids.split(parts, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=1e-5, atol=1e-5)
    assert cache.length == 32


def test_logits_to_keep():
    model, ids = tiny(), tokens()
    torch.testing.assert_close(model(ids, logits_to_keep=3), model(ids)[:, -3:], rtol=1e-5, atol=1e-6)


def test_dropout_only_in_training():
    model, ids = tiny(dropout=0.5), tokens()
    assert not torch.equal(model(ids), model(ids))
    model.eval()
    assert torch.equal(model(ids), model(ids))


def test_too_many_positions_is_refused():
    with pytest.raises(ConfigError, match="the sequence has 33 tokens; this model has 32 positions"):
        tiny()(tokens(time=33))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "hidden_size 48 is not a multiple of num_heads 5"),
        ({"num_layers": 0}, "num_layers is 0; it must be at least 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ConfigError, match=message):
        tiny(**changes)
