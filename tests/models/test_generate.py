"""Generation: the cache against passes over the whole sequence, and sampling against its own definition."""

import pytest
import torch

from openwafer.base.errors import ConfigError
from openwafer.models import Decoder, DecoderConfig, generate, sample


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = Decoder(DecoderConfig(hidden_size=48, num_layers=3, num_heads=4, vocab_size=97, max_positions=64))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model.eval()


@pytest.fixture
def prompt():
    return torch.randint(0, 97, (3, 7), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"seed": 5}, {"seed": 5, "temperature": 0.7, "top_k": 9}], ids=str
)
def test_cache_changes_no_token(model, prompt, options):
    cached = generate(model, prompt, 57, **options)
    assert cached.shape == (3, 64)
    assert torch.equal(cached[:, :7], prompt)
    assert torch.equal(cached, generate(model, prompt, 57, use_cache=False, **options))


def test_seed_decides(model, prompt):
    first = generate(model, prompt, 20, seed=1)
    assert torch.equal(first, generate(model, prompt, 20, seed=1))
    assert not torch.equal(first, generate(model, prompt, 20, seed=2))


def test_on_token_sees_each_token_in_order(model, prompt):
    seen = []
    out = generate(model, prompt, 5, temperature=0, on_token=seen.append)
    assert torch.equal(torch.stack(seen, dim=1), out[:, 7:])


def test_each_new_token_is_one_pass_of_one_token(model, prompt):
    widths = []

    def counting(input_ids, **options):
        widths.append(input_ids.shape[1])
        return model(input_ids, **options)

    generate(counting, prompt, 4)
    assert widths == [7, 1, 1, 1]


def test_no_new_tokens(model, prompt):
    assert torch.equal(generate(model, prompt, 0), prompt)


def test_no_gradient_is_kept(model, prompt):
    logits = []

    def recording(input_ids, **options):
        logits.append(model(input_ids, **options))
        return logits[-1]

    generate(recording, prompt, 2)
    assert not any(each.requires_grad for each in logits)


def test_bfloat16_autocast(model, prompt):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert generate(model, prompt, 10, seed=1).shape == (3, 17)


def test_top_k_and_temperature_follow_the_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(20000, 4)
    drawn = sample(logits, temperature=2.0, top_k=3, generator=torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn, minlength=4) / 20000
    want = torch.tensor([0.0, *torch.tensor([0.5, 1.0, 1.5]).softmax(0)])
    torch.testing.assert_close(shares, want, rtol=0, atol=0.015)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 59}, "ask for at most 58 new tokens"),
        ({"max_new_tokens": -1}, "max_new_tokens is -1"),
        ({"max_new_tokens": 1, "temperature": -1.0}, "temperature is -1.0"),
        ({"max_new_tokens": 1, "temperature": float("nan")}, "temperature is nan"),
        ({"max_new_tokens": 1, "top_k": 0}, "top_k is 0"),
    ],
)
def test_bad_options(model, prompt, options, message):
    with pytest.raises(ConfigError, match=message):
        generate(model, prompt, **options)


def test_empty_prompt(model):
    with pytest.raises(ConfigError, match=r"shape \[1, 0\]"):
        generate(model, torch.empty(1, 0, dtype=torch.long), 1)
