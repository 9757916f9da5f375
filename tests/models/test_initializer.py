"""The initialiser's table against the distributions it names."""

import math

import pytest
import torch

from openwafer.models import CEREBRAS_GPT, Decoder, DecoderConfig
from openwafer.models.initializer import TABLE, TruncatedNormal, distribution_of

CONFIG = DecoderConfig(hidden_size=64, num_layers=2, num_heads=4, vocab_size=500, max_positions=32)
# Standard deviation of a unit normal cut at two: sqrt(1 - 4 phi(2) / (2 Phi(2) - 1)), Johnson et al. 1994, 13.10.1.
CUT = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))


def build(config=CONFIG):
    torch.manual_seed(3)
    return Decoder(config)


@pytest.mark.parametrize("untied", [False, True])
def test_every_parameter_follows_its_row(untied):
    model = build(DecoderConfig(hidden_size=64, num_layers=2, num_heads=4, vocab_size=500, tie_embeddings=not untied))
    for name, parameter in model.named_parameters():
        distribution = distribution_of(name, model.config)
        if isinstance(distribution, TruncatedNormal):
            assert parameter.abs().max() <= 2 * distribution.std, name
            assert abs(parameter.std() / (CUT * distribution.std) - 1) < 0.05, name
            assert abs(parameter.mean()) < 0.05 * distribution.std, name
        else:
            assert (parameter == distribution.value).all(), name


def test_every_row_is_used_and_has_a_source():
    model = build(DecoderConfig(hidden_size=64, num_layers=2, num_heads=4, vocab_size=50, tie_embeddings=False))
    names = [name for name, _ in model.named_parameters()]
    for row in TABLE:
        assert row.source
        assert any(distribution_of(name, CONFIG) == row.distribution(CONFIG) for name in names)


def test_output_projections_are_scaled_down():
    assert CEREBRAS_GPT["111m"].output_init_std == pytest.approx(0.02 / math.sqrt(20))
    assert CEREBRAS_GPT["1.3b"].output_init_std == 0.0025


def test_same_seed_same_bits_and_reset_leaf_by_leaf_gives_them_again():
    whole = build().state_dict()
    assert all(torch.equal(whole[k], v) for k, v in build().state_dict().items())

    with torch.device("meta"):
        late = Decoder(CONFIG)
    late.to_empty(device="cpu")
    late.lm_head.weight = late.wte.weight
    torch.manual_seed(3)
    for module in late.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert all(torch.equal(whole[k], v) for k, v in late.state_dict().items())


def test_truncated_normal_of_other_dtypes():
    value = torch.empty(1000, 100, dtype=torch.bfloat16)
    TruncatedNormal(0.5).fill_(value)
    assert value.abs().max() <= 1.0
    assert abs(value.float().std() / (0.5 * CUT) - 1) < 0.02
