"""Every family of decoders streamed, against a plain PyTorch loop, bit for bit."""

import pytest
import torch

from openwafer.models import Decoder
from tests.models.test_families import VOCABULARY, reduced

FAMILIES = ["cerebras-gpt-111m-mup", "btlm-3b-8k", "llama-3.1-8b", "mistral-7b", "mixtral-8x7b"]


def batch(step):
    ids = torch.randint(VOCABULARY, (4, 25), generator=torch.Generator().manual_seed(step))
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()


@pytest.mark.parametrize("micro_batches", [1, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_streamed_as_plain(name, micro_batches, equal_to_plain):
    tier, keep = ("disk", "none") if micro_batches == 1 else ("mixed", "all")
    config = reduced(name)
    equal_to_plain(lambda: Decoder(config), batch, tier=tier, micro_batches=micro_batches, keep=keep, clip=1.0)


@pytest.mark.parametrize("name", FAMILIES[1:])
def test_recomputed_in_bfloat16(name, equal_to_plain):
    config = reduced(name)
    equal_to_plain(lambda: Decoder(config), batch, tier="disk", micro_batches=2, precision="bf16")
