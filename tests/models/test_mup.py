"""muP: the coordinate check as an assertion (benchmarks/mup.py draws it), and which parameter gets which factor."""

import pytest
import torch

from openwafer.models import Alibi, Decoder, DecoderConfig, Experts, MuP, learning_rate_scale
from openwafer.models.coordinates import coordinate_check, growth

WIDTHS = (128, 256, 512, 1024)
BASE = dict(num_layers=2, num_heads=4, vocab_size=512, max_positions=64)
MUP = MuP(base_hidden_size=128, base_ffn_size=512, embeddings_scale=10.0)


def cerebras_gpt(width):
    return DecoderConfig(hidden_size=width, mup=MUP, init_std=0.08, **BASE)


def btlm(width):
    mup = MuP(base_hidden_size=128, base_ffn_size=341, embeddings_scale=14.6, output_alpha=2.22)
    parts = dict(positions=Alibi(), activation="swiglu", ffn_size=width * 8 // 3)
    return DecoderConfig(hidden_size=width, mup=mup, init_std=0.073, **parts, **BASE)


def standard(width):
    return DecoderConfig(hidden_size=width, **BASE)


def grown(model):
    """How the movement after three steps grows with the width, part by part."""
    ids = torch.randint(0, 512, (2, 48), generator=torch.Generator().manual_seed(0))
    moved = [coordinate_check(model(width), ids, 6e-3, 3) for width in WIDTHS]
    return {part: growth(WIDTHS, [one[part][-1] for one in moved]) for part in moved[0]}


@pytest.mark.parametrize("model", [cerebras_gpt, btlm])
def test_activations_move_alike_at_every_width(model):
    grows = grown(model)
    assert abs(grows["embeddings"]) < 0.1
    assert abs(grows["last layer"]) < 0.15
    # From above: at small widths the output still sees the random part of its tied embedding.
    assert -0.45 < grows["logits"] < 0.1


def test_the_standard_parametrisation_does_not():
    grows = grown(standard)
    assert grows["last layer"] > 1.0
    assert grows["logits"] > 0.5


def test_growth_is_the_exponent():
    assert growth(WIDTHS, [3.0 * width**0.7 for width in WIDTHS]) == pytest.approx(0.7)


def test_factors_of_every_parameter():
    config = DecoderConfig(
        hidden_size=512, ffn_size=1024, mup=MUP, experts=Experts(num_experts=2, top_k=1, num_shared=1), **BASE
    ).resized(activation="swiglu", tie_embeddings=False)
    with torch.device("meta"):
        scales = {name: learning_rate_scale(name, config) for name, _ in Decoder(config).named_parameters()}
    matrices = {
        name for name in scales if name.endswith(".weight") and name.startswith("layers") and ".ln_" not in name
    }
    for name, scale in scales.items():
        want = 1.0
        if name in matrices and "router" not in name:
            want = 0.5 if ".down." in name else 0.25
        assert scale == want, name
    assert config.logits_scale == 0.25
    assert config.score_scale == 1 / 128
    assert all(learning_rate_scale(name, standard(512)) == 1.0 for name in scales)
