"""Recipes learn: two phases on real text, and every family, streamed with the bits of a plain PyTorch loop."""

import importlib
import io
from pathlib import Path

import pytest
import torch
from rich.console import Console

from openwafer.base.events import read_steps
from openwafer.data import prepare
from openwafer.models import Decoder
from openwafer.train.build import decoder_config
from openwafer.train.dataset import open_dataset
from openwafer.train.demo import standard_library
from openwafer.train.loop import fit, open_job
from openwafer.train.read_config import parse_config

ROOT = Path(__file__).parents[2]
VOCABULARY = 512


@pytest.fixture(scope="module")
def recipes():
    """benchmarks/recipes.py, which trains the same at a larger size and draws it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        yield importlib.import_module("recipes")


@pytest.mark.parametrize("name", ["btlm", "cerebras_gpt"])
def test_a_two_phase_recipe_learns_what_plain_pytorch_learns(recipes, tmp_path, name):
    recipe = getattr(recipes, name)(width=64, layers=2, vocab_size=VOCABULARY, context=16, sequences=8, steps=24)
    data = recipes.text_corpus(tmp_path, VOCABULARY, 60_000)
    outcome = recipes.compare(recipe, data, tmp_path / "both", None)
    assert outcome["losses"] == outcome["plain_losses"]
    assert outcome["equal_weights"]
    assert sum(outcome["losses"][-4:]) / 4 < sum(outcome["losses"][:4]) / 4 - 0.3, "it learns"


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "shards"
    prepare(standard_library(60_000), folder, vocab_size=VOCABULARY)
    return folder


@pytest.mark.parametrize(
    "preset",
    ["cerebras-gpt-590m", "cerebras-gpt-111m-mup", "btlm-3b-8k", "jais-13b", "llama-3.1-8b", "llama-2-7b", "mistral-7b",
     "mistral-nemo-12b", "mixtral-8x7b"],
)  # fmt: skip
def test_every_family_is_fit_with_the_bits_of_plain_pytorch(shards, tmp_path, preset):
    config = parse_config(
        f"run: {tmp_path / 'run'}\n"
        f"model: {{preset: {preset}, hidden_size: 64, num_layers: 2, num_heads: 4, vocab_size: {VOCABULARY}, "
        "max_positions: 32}\n"
        f"data: {{path: {shards}, sequence_length: 32}}\n"
        "optimizer: {name: adamw, lr: 0.003}\n"
        "schedule: {decay: constant}\n"
        "train: {steps: 3, sequences: 4, micro_batches: 2, precision: fp32, seed: 7}\n"
    )
    fit(config, console=Console(file=io.StringIO()))
    losses, weights = plain(config)
    assert [record.loss for record in read_steps(config.run / "events.jsonl")] == losses
    job = open_job(config)
    state = job.state_dict()
    assert all(torch.equal(state[name], weight) for name, weight in weights.items())
    job.abandon()


def plain(config):
    """The run in a plain loop: no engine, no store; muP's groups written out from the published table."""
    torch.manual_seed(config.train.seed)
    decoder = decoder_config(config.model)
    model = Decoder(decoder)
    groups = {}
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() > 1 and not name.startswith(("wte", "wpe", "lm_head"))
        scale = decoder.ffn_width_scale if matrix and "down" in name else decoder.width_scale if matrix else 1.0
        decay = 0.1 if parameter.dim() > 1 else 0.0
        group = groups.setdefault((scale, decay), {"params": [], "lr": 0.003 * scale, "weight_decay": decay})
        group["params"].append(parameter)
    optimizer = torch.optim.AdamW(list(groups.values()), betas=(0.9, 0.95), eps=1e-8)
    batches, losses = open_dataset(config).train(), []
    for step in range(config.train.steps):
        batch = batches.batch(step)
        parts = []
        for rows in torch.arange(len(batch["input_ids"])).tensor_split(config.train.micro_batches):
            loss = model(**{name: value[rows] for name, value in batch.items()}) / config.train.micro_batches
            loss.backward()
            parts.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(torch.stack(parts).sum()))
    return losses, {name: tensor.detach() for name, tensor in model.state_dict().items()}
