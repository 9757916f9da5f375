"""Phases in our own schema, groups of parameters, and the loss by sequences."""

import pytest
import torch
from torch import nn

from openwafer.base.errors import ConfigError
from openwafer.models import Decoder, DecoderConfig
from openwafer.models.config import MuP
from openwafer.train.config import LossConfig, OptimizerConfig
from openwafer.train.group_scheduler import GroupScheduler
from openwafer.train.loss import StepLoss
from openwafer.train.param_groups import param_groups
from openwafer.train.phases import phases
from openwafer.train.read_config import dump_config, parse_config
from openwafer.train.schedules import parse_driven

TEXT = """
run: runs/two
model: {preset: cerebras-gpt-111m}
data: {path: shards, sequence_length: 512}
train: {batch_tokens: 16384}
phases:
- train: {steps: 100}
- train: {steps: 150, batch_tokens: 32768}
- train: {steps: 180}
  data: {sequence_length: 1024}
"""


def test_a_phase_says_what_differs():
    config = parse_config(TEXT)
    assert [(phase.begin, phase.end, phase.config.sequences) for phase in phases(config)] == [
        (0, 100, 32),
        (100, 150, 64),
        (150, 180, 16),
    ]
    assert [phase.first_sample for phase in phases(config)] == [0, 3200, 0], "on from there while the data is the same"
    assert config.last_step == 180
    assert parse_config(dump_config(config)) == config
    assert parse_config(TEXT, ["phases.2.train.steps=200"]).last_step == 200


@pytest.mark.parametrize(
    ("override", "says"),
    [
        (
            "phases.1.train.steps=90",
            r"every phase must end after the one before; their train\.steps are \[100, 90, 180\]",
        ),
        ("phases.7.train.steps=90", "there are 3 phases, counted from 0"),
        ("phases.1.train.step=90", r"unknown key phases\.1\.train\.step; did you mean train\.steps\?"),
        (
            "phases.1.train.precision=fp8",
            r"phases\.1\.train\.precision: 'fp8' is not allowed; choose one of fp32, bf16",
        ),
        ("phases.1.run=elsewhere", "run belongs to the whole run"),
    ],
)
def test_mistakes_in_a_phase_are_named(override, says):
    with pytest.raises(ConfigError, match=says):
        parse_config(TEXT, [override])


def decoder(mup: bool = True) -> DecoderConfig:
    base = MuP(base_hidden_size=8, base_ffn_size=16) if mup else None
    return DecoderConfig(hidden_size=16, num_layers=1, num_heads=2, vocab_size=11, max_positions=8, mup=base)


def test_groups_by_width_and_decay():
    config = decoder()
    groups = param_groups(Decoder(config), OptimizerConfig(), 0.1, config)
    assert [(group["lr_scale"], group.get("weight_decay")) for group in groups] == [
        (1.0, None),
        (1.0, 0.0),
        (0.5, None),
        (0.25, None),
    ]
    sizes = [sum(parameter.numel() for parameter in group["params"]) for group in groups]
    # embeddings; vectors; attention and the MLP's way in, 16 / 8 wide; the MLP's way out, 64 / 16 wide
    assert sizes[0] == (11 + 8) * 16
    assert sizes[2:] == [4 * 16 * 16 + 16 * 64, 16 * 64]
    assert sum(len(group["params"]) for group in groups) == len(list(Decoder(config).parameters()))


def test_scales_of_the_file_go_before_those_of_muP():
    config = decoder()
    model = Decoder(config)
    chosen = OptimizerConfig(group_scales={"decoder_kernel": 0.125}, lr_scales={"*mlp.down.weight": 2.0})
    scale = {id(p): group["lr_scale"] for group in param_groups(model, chosen, 0.0, config) for p in group["params"]}
    assert scale[id(model.get_parameter("layers.0.attn.qkv.weight"))] == 0.125
    assert scale[id(model.get_parameter("layers.0.mlp.down.weight"))] == 2.0
    assert scale[id(model.wte.weight)] == 1.0
    for wrong, says in (
        ({"lr_scales": {"*nothing": 1.0}}, "matches no parameter"),
        ({"group_scales": {"x": 1.0}}, "no group"),
    ):
        with pytest.raises(ConfigError, match=says):
            param_groups(model, OptimizerConfig(**wrong), 0.0, config)


def test_a_schedule_drives_the_groups_that_its_tags_name():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    chosen = OptimizerConfig(tags={"first": ["0.*"]}, lr_scales={"1.weight": 0.5})
    optimizer = torch.optim.AdamW(param_groups(model, chosen, 0.1), lr=1.0, weight_decay=0.1)
    linear = {"initial_learning_rate": 0.0, "end_learning_rate": 1.0, "total_iters": 10}
    scheduler = GroupScheduler(
        optimizer,
        [
            parse_driven({"LinearLR": {**linear, "param_group_tags": "first"}}),
            parse_driven({"ConstantLR": {"learning_rate": 0.3, "param_group_tags": [None]}}),
            parse_driven({"LinearWD": {"initial_val": 0.2, "end_val": 0.0, "total_iters": 10}}),
        ],
    )
    for _ in range(5):
        scheduler.step()
    values = {(tuple(group["tags"]), group["lr_scale"]): group["lr"] for group in optimizer.param_groups}
    assert values == {(("first",), 1.0): 0.5, ((), 1.0): 0.3, ((), 0.5): 0.15}
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 0.1}
    again = GroupScheduler(optimizer, [parse_driven({"ConstantLR": {"learning_rate": 1}})])
    again.load_state_dict(scheduler.state_dict())
    assert again.last_epoch == 5
    with pytest.raises(ConfigError, match="two schedules drive the lr of one parameter group"):
        GroupScheduler(optimizer, [parse_driven({"ConstantLR": {"learning_rate": 1}})] * 2)
    with pytest.raises(ConfigError, match="drives no parameter"):
        GroupScheduler(optimizer, [parse_driven({"ConstantLR": {"learning_rate": 1, "param_group_tags": "x"}})])


def test_the_loss_by_sequences_is_modelzoos_formula():
    """sum over tokens / batch * weight, for a batch with masked labels, from the mean that the engine minimises."""
    labels = torch.tensor([[1, 2, -100, -100], [3, -100, -100, -100], [1, 1, 1, 1]])
    token_losses = torch.rand(labels.shape)
    mean = token_losses[labels != -100].mean()
    loss = StepLoss()
    loss.begin(LossConfig(scaling="batch_size", weight=0.25), {"input_ids": labels, "labels": labels})
    assert loss(mean, None).item() == pytest.approx(token_losses[labels != -100].sum().item() / 3 * 0.25)
    loss.begin(LossConfig(), {"input_ids": labels, "labels": labels})
    assert loss(mean, None).item() == mean.item()
