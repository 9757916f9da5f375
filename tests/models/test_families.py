"""The families against transformers with the same weights, and BTLM against its formulas written out here."""

import math

import pytest
import torch
from torch.nn import functional as F

from openwafer.base.errors import ConfigError
from openwafer.models import (
    BTLM,
    FAMILIES,
    Alibi,
    Decoder,
    DecoderConfig,
    Experts,
    KVCache,
    Learned,
    MuP,
    RopeScaling,
    Rotary,
    document_ids,
    generate,
    learning_rate_scale,
    num_parameters,
)

VOCABULARY = 211


def tiny(config, seed=0):
    """A decoder whose biases and norms take part."""
    torch.manual_seed(seed)
    model = Decoder(config)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


def tokens(batch=2, time=48, seed=1):
    return torch.randint(0, VOCABULARY, (batch, time), generator=torch.Generator().manual_seed(seed))


def close(ours, theirs, tolerance=1e-5):
    """Within a relative tolerance of the largest value: single logits near zero have no digits of their own."""
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def reduced(name):
    """A published member at a width for tests, its proportions of heads kept."""
    config = FAMILIES[name]
    group = config.num_heads // config.num_kv_heads
    heads = max(4, group)
    changes = dict(
        num_layers=2, num_heads=heads, num_kv_heads=heads // group, hidden_size=16 * heads, vocab_size=VOCABULARY
    )
    changes |= dict(ffn_size=None, head_dim=None, max_positions=64)
    if config.window:
        changes["window"] = 10
    return config.resized(**changes)


BTLM_TINY = BTLM["3b-8k"].resized(
    hidden_size=48, num_layers=3, num_heads=6, ffn_size=120, vocab_size=VOCABULARY, max_positions=64
)


# --- BTLM: the published formulas, plain and unfused ----------------------------------------------------------------


def published_slopes(n):
    """arXiv 2108.12409: a geometric sequence from 2^(-8/n); for other n, the authors' interleaving."""
    if math.log2(n).is_integer():
        first = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [first * first**i for i in range(n)]
    closest = 2 ** math.floor(math.log2(n))
    return published_slopes(closest) + published_slopes(2 * closest)[0::2][: n - closest]


def plain_btlm(weights, ids, layers, heads, scaling=1.0):
    """Logits of BTLM from arXiv 2309.11568, in the most literal way."""
    embedding = weights["wte.weight"]
    width = embedding.shape[1]
    x = embedding[ids] * 14.6
    time, dim = ids.shape[1], width // heads
    for i in range(layers):
        w = {k.removeprefix(f"layers.{i}."): v for k, v in weights.items() if k.startswith(f"layers.{i}.")}
        h = F.layer_norm(x, (width,), w["ln_1.weight"], w["ln_1.bias"], 1e-5)
        q, k, v = (h @ w["attn.qkv.weight"].T + w["attn.qkv.bias"]).chunk(3, dim=-1)
        out = torch.zeros_like(h)
        for head, slope in enumerate(published_slopes(heads)):
            part = slice(head * dim, (head + 1) * dim)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / dim
            for row in range(time):
                for column in range(time):
                    scores[:, row, column] -= slope / scaling * abs(row - column)
                    if column > row:
                        scores[:, row, column] = float("-inf")
            out[..., part] = scores.softmax(dim=-1) @ v[..., part]
        x = x + out @ w["attn.out.weight"].T + w["attn.out.bias"]
        h = F.layer_norm(x, (width,), w["ln_2.weight"], w["ln_2.bias"], 1e-5)
        up = h @ w["mlp.up.weight"].T + w["mlp.up.bias"]
        gate = h @ w["mlp.gate.weight"].T + w["mlp.gate.bias"]
        x = x + (up * (gate * torch.sigmoid(gate))) @ w["mlp.down.weight"].T + w["mlp.down.bias"]
    x = F.layer_norm(x, (width,), weights["ln_f.weight"], weights["ln_f.bias"], 1e-5)
    return (x @ embedding.T) * 2.22 * (256 / width)


@pytest.mark.parametrize("heads", [4, 6])
def test_btlm_is_its_published_formulas(heads):
    config = BTLM_TINY.resized(num_heads=heads, head_dim=None, num_kv_heads=None)
    model, ids = tiny(config), tokens(time=20)
    weights = {name: value.double() for name, value in model.state_dict().items()}
    close(model(ids).double(), plain_btlm(weights, ids, 3, heads))


def test_btlm_with_stretched_positions():
    for alibi, scaling in ((Alibi(factor=4.0), 4.0), (Alibi(train_positions=8), 2.5), (Alibi(train_positions=64), 1.0)):
        model, ids = tiny(BTLM_TINY.resized(positions=alibi)), tokens(time=20)
        weights = {name: value.double() for name, value in model.state_dict().items()}
        close(model(ids).double(), plain_btlm(weights, ids, 3, 6, scaling))


def test_btlm_has_the_published_size_and_factors():
    config = BTLM["3b-8k"]
    with torch.device("meta"):
        model = Decoder(config)
    assert sum(p.numel() for p in model.parameters()) == num_parameters(config) == 2_646_255_744
    assert config.logits_scale == pytest.approx(0.222)
    assert config.score_scale == 1 / 80
    assert config.hidden_init_std == pytest.approx(0.073 / math.sqrt(10))
    assert config.output_init_std == pytest.approx(0.002886, rel=1e-3)
    assert config.ffn_output_init_std == pytest.approx(0.002886, rel=1e-3)
    scales = {name: learning_rate_scale(name, config) for name, _ in model.named_parameters()}
    for name, scale in scales.items():
        matrix = name.startswith("layers.") and name.endswith("weight") and ".ln_" not in name
        assert scale == pytest.approx(0.1 if matrix else 1.0), name


def test_long_sequences_are_computed_in_blocks():
    """More tokens than a block of queries, for every kind of mask, against whole masks."""
    for changes in (
        {},
        {"window": 70},
        {"positions": Rotary(), "window": 70},
        {"positions": Rotary(), "window": 70, "sink_tokens": 5},
    ):
        config = BTLM_TINY.resized(num_layers=1, max_positions=600, **changes)
        model, ids = tiny(config), tokens(batch=1, time=600)
        whole = whole_masks(model, ids)
        close(model(ids), whole)
        documents = document_ids(ids, 7)
        close(model(ids, documents=documents), whole_masks(model, ids, documents))


def whole_masks(model, ids, documents=None):
    """Logits with one mask of all pairs, and positions counted in each document."""
    config, block = model.config, model.layers[0]
    time = ids.shape[1]
    row, column = torch.arange(time)[:, None], torch.arange(time)[None, :]
    seen = column <= row
    if config.window:
        seen &= (column > row - config.window) | (column < config.sink_tokens)
    if documents is not None:
        seen = seen & (documents[0][:, None] == documents[0][None, :])
    bias = torch.zeros(config.num_heads, time, time)
    if isinstance(config.positions, Alibi):
        bias = torch.tensor(published_slopes(config.num_heads))[:, None, None] * (column - row)
    bias = bias.masked_fill(~seen, float("-inf"))
    x = model.wte(ids) * config.embeddings_scale
    q, k, v = block.attn.qkv(block.ln_1(x)).view(1, time, 3, config.num_heads, config.head_dim).permute(2, 0, 3, 1, 4)
    if isinstance(config.positions, Rotary):
        angles = torch.arange(time)[:, None] * 10000.0 ** (-torch.arange(0, config.head_dim, 2) / config.head_dim)
        turn = torch.polar(torch.ones_like(angles), angles)
        half = config.head_dim // 2

        def turned(x):
            z = torch.complex(x[..., :half], x[..., half:]) * turn
            return torch.cat((z.real, z.imag), dim=-1)

        q, k = turned(q), turned(k)
    out = (q @ k.transpose(-1, -2) * config.score_scale + bias).softmax(dim=-1) @ v
    x = x + block.attn.out(out.transpose(1, 2).reshape(1, time, -1))
    x = x + block.mlp(block.ln_2(x))
    return F.linear(model.ln_f(x), model.wte.weight) * config.logits_scale


# --- parts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_every_member_has_its_size_and_runs_a_step_on_the_meta_device(name):
    config = FAMILIES[name]
    with torch.device("meta"):
        model, ids = Decoder(config), torch.zeros(1, 2048, dtype=torch.long)
    assert sum(p.numel() for p in model.parameters()) == num_parameters(config)
    model(ids, ids).backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("jais-13b", 13.0), ("jais-30b", 30.0), ("llama-2-7b", 6.738), ("llama-2-70b", 68.977), ("llama-3.1-8b", 8.030),
        ("llama-3.1-70b", 70.554), ("llama-3.1-405b", 405.853), ("llama-3.2-1b", 1.236), ("llama-3.2-3b", 3.213),
        ("mistral-7b", 7.242), ("mistral-nemo-12b", 12.248), ("mixtral-8x7b", 46.703), ("mixtral-8x22b", 140.6),
    ],
)  # fmt: skip
def test_parameter_counts_of_the_model_cards(name, billions):
    """Totals on the model cards and in the safetensors indices on Hugging Face, in billions."""
    assert num_parameters(FAMILIES[name]) / 1e9 == pytest.approx(billions, rel=0.01)


@pytest.mark.parametrize(
    "name", ["cerebras-gpt-111m-mup", "btlm-3b-8k", "jais-13b", "llama-3.1-8b", "mistral-7b", "mixtral-8x7b"]
)
def test_every_family_learns_at_reduced_width(name):
    torch.manual_seed(0)
    model, ids = Decoder(reduced(name)), tokens(time=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(4):
        loss = model(ids[:, :-1], ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.05, losses


@pytest.mark.parametrize("name", ["btlm-3b-8k", "jais-13b", "llama-3.1-8b", "mistral-7b", "mixtral-8x7b"])
@pytest.mark.parametrize("parts", [[1, 1, 30], [7, 1, 20, 4]], ids=str)
def test_cache_gives_the_logits_of_one_pass(name, parts):
    model, ids, cache = tiny(reduced(name)), tokens(time=32), KVCache()
    with torch.no_grad():
        pieces = [model(piece, past=cache) for piece in ids.split(parts, dim=1)]
        close(torch.cat(pieces, dim=1), model(ids))


@pytest.mark.parametrize("name", ["cerebras-gpt-111m", "btlm-3b-8k", "llama-3.1-8b", "mistral-7b", "mixtral-8x7b"])
def test_packed_documents_are_as_if_alone(name):
    model, ids = tiny(reduced(name)), tokens(batch=1, time=40)
    documents = torch.tensor([[0] * 11 + [1] * 1 + [2] * 28])
    packed = model(ids, documents=documents)
    alone = [model(part) for part in ids.split([11, 1, 28], dim=1)]
    close(packed, torch.cat(alone, dim=1))


def test_the_end_token_closes_its_document():
    assert document_ids(torch.tensor([[5, 9, 4, 4, 9, 9, 1]]), 9).tolist() == [[0, 0, 1, 1, 1, 2, 3]]


@pytest.mark.parametrize("name", ["btlm-3b-8k", "llama-2-7b"])
def test_sequences_may_be_longer_than_trained_with(name):
    model = tiny(reduced(name))
    assert model(tokens(time=80)).isfinite().all()
    assert generate(model, tokens(batch=1, time=62), 8, temperature=0).shape == (1, 70)


@pytest.mark.parametrize("name", ["btlm-3b-8k", "mistral-7b", "mixtral-8x7b"])
def test_bfloat16_autocast_is_near_fp32(name):
    model, ids = tiny(reduced(name)), tokens()
    want = model(ids[:, :-1], ids[:, 1:])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids[:, :-1], ids[:, 1:])
    assert abs(loss - want) < 2e-2 * want
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


# --- experts --------------------------------------------------------------------------------------------------------


def experts_config(**changes):
    experts = Experts(**(dict(num_experts=4, top_k=2, balance_coefficient=0.3) | changes))
    return reduced("mixtral-8x7b").resized(experts=experts)


def test_experts_are_the_weighted_sum_of_the_chosen():
    for changes in ({}, {"top_k": 1, "null_probability": 1.1}, {"num_shared": 1}):
        mixture = tiny(experts_config(**changes)).layers[0].mlp
        x = torch.randn(2, 5, 64)
        got, _ = mixture(x)
        for row, token in ((0, 0), (1, 4)):
            value = x[row, token]
            weights = (mixture.router.weight @ value).softmax(dim=-1)
            best = weights.sort(descending=True).indices[: mixture.top_k]
            total = weights[best].sum() + mixture.null_probability
            want = sum(weights[i] / total * mixture.experts[i](value) for i in best)
            want = want + sum(expert(value) for expert in mixture.shared)
            torch.testing.assert_close(got[row, token], want, rtol=1e-4, atol=1e-5)


def test_an_expert_without_tokens_has_a_zero_gradient():
    model, ids = tiny(experts_config(num_experts=32, top_k=1)), tokens(batch=1, time=4)
    model(ids, ids).backward()
    norms = [expert.up.weight.grad.norm() for layer in model.layers for expert in layer.mlp.experts]
    assert min(norms) == 0 < max(norms)


def test_the_balance_loss_does_not_depend_on_how_a_batch_is_cut():
    model, ids = tiny(experts_config()), tokens()
    whole = model(ids[:, :-1], ids[:, 1:])
    halves = [model(part[:, :-1], part[:, 1:]) for part in ids.split(1)]
    torch.testing.assert_close(whole, sum(halves) / 2)
    total = model(ids[:, :-1], ids[:, 1:], reduction="sum")
    torch.testing.assert_close(total / ids[:, 1:].numel(), whole)


# --- configuration --------------------------------------------------------------------------------------------------


def test_resized_derives_anew_what_was_derived():
    wide = BTLM_TINY.resized(hidden_size=96)
    assert wide.head_dim == 16
    assert wide.hidden_init_std == pytest.approx(BTLM_TINY.hidden_init_std / math.sqrt(2))
    fixed = DecoderConfig(hidden_size=64, num_layers=2, num_heads=4, output_init_std=0.5)
    assert fixed.resized(num_layers=8).output_init_std == 0.5
    assert fixed.resized(num_layers=8).ffn_output_init_std == 0.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"norm": "batchnorm"}, "norm is 'batchnorm'; it must be one of layernorm, rmsnorm"),
        ({"activation": "tanh"}, "activation is 'tanh'"),
        ({"window": 0}, "window is 0"),
        ({"positions": Rotary(dim=5)}, "positions.dim is 5; it must be even and at most head_dim 16"),
    ],
)
def test_bad_config(changes, message):
    with pytest.raises(ConfigError, match=message):
        DecoderConfig(**(dict(hidden_size=64, num_layers=2, num_heads=4) | changes))


def test_bad_parts():
    with pytest.raises(ConfigError, match=r"experts.top_k is 9 of experts.num_experts 8"):
        Experts(num_experts=8, top_k=9)
    with pytest.raises(ConfigError, match=r"mup.base_hidden_size is 0"):
        MuP(base_hidden_size=0, base_ffn_size=1)
    with pytest.raises(ConfigError, match=r"positions.scaling.kind is 'ntk'"):
        RopeScaling(kind="ntk", factor=2.0)


def test_bad_documents():
    model = tiny(DecoderConfig(hidden_size=64, num_layers=2, num_heads=4, vocab_size=VOCABULARY, positions=Learned()))
    with pytest.raises(ConfigError, match=r"documents have shape \[2, 3\]"):
        model(tokens(), documents=torch.zeros(2, 3))
    with pytest.raises(ConfigError, match="together with past"):
        model(tokens(), documents=torch.zeros(2, 48), past=KVCache())
