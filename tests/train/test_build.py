import pytest
import torch
from torch import nn

from openwafer.models import FAMILIES, num_parameters
from openwafer.streaming.lion import Lion
from openwafer.train.build import decoder_config, learning_rate_factor, make_optimizer, make_scheduler
from openwafer.train.config import PRESETS, ModelConfig, OptimizerConfig, ScheduleConfig


def test_every_preset_is_a_member_of_the_family():
    assert list(PRESETS) == list(FAMILIES)
    for preset in PRESETS:
        assert decoder_config(ModelConfig(preset=preset)) == FAMILIES[preset]


def test_fields_override_a_preset_and_what_follows_from_them_follows():
    config = decoder_config(ModelConfig(preset="cerebras-gpt-111m", hidden_size=384, num_layers=2))
    assert (config.hidden_size, config.ffn_size, config.num_layers, config.num_heads) == (384, 1536, 2, 12)
    assert config.output_init_std == pytest.approx(0.02 / 2)
    assert decoder_config(ModelConfig(preset="cerebras-gpt-111m", ffn_size=100)).ffn_size == 100


def test_without_a_preset():
    fields = {"vocab_size": 64, "hidden_size": 32, "num_layers": 1, "num_heads": 2, "max_positions": 16}
    config = decoder_config(ModelConfig(**fields))
    assert (config.ffn_size, config.dropout) == (128, 0.0)
    assert num_parameters(config) == 64 * 32 + 16 * 32 + 4 * 32 * 33 + 2 * 32 * 128 + 160 + 6 * 32


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adamw", torch.optim.AdamW),
        ("adam", torch.optim.Adam),
        ("sgd", torch.optim.SGD),
        ("adafactor", torch.optim.Adafactor),
        ("lion", Lion),
    ],
)
def test_the_optimizer_is_the_one_named(name, kind):
    optimizer = make_optimizer(model(), OptimizerConfig(name=name, lr=0.5, weight_decay=0.25))
    assert type(optimizer) is kind
    matrices, vectors = optimizer.param_groups
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.5]
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.25, 0.0)
    assert [param.dim() for param in matrices["params"]] == [2]
    assert [param.dim() for param in vectors["params"]] == [1, 1, 1]


def test_one_group_when_nothing_or_everything_decays():
    assert len(make_optimizer(model(), OptimizerConfig(weight_decay=0.0)).param_groups) == 1
    assert len(make_optimizer(model(), OptimizerConfig(decay_1d=True)).param_groups) == 1


@pytest.mark.parametrize(
    ("decay", "expected"),
    [
        ("linear", [0.5, 1.0, 1.0, 0.775, 0.55, 0.325, 0.1, 0.1]),
        ("cosine", [0.5, 1.0, 1.0, 0.868198, 0.55, 0.231802, 0.1, 0.1]),
        ("constant", [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_learning_rate_warms_up_and_decays(decay, expected):
    schedule = ScheduleConfig(warmup_steps=2, decay=decay, end_ratio=0.1)
    factor = learning_rate_factor(schedule, 6)
    assert [factor(step) for step in range(8)] == pytest.approx(expected, abs=1e-6)


def test_the_scheduler_starts_at_the_first_factor():
    optimizer = make_optimizer(model(), OptimizerConfig(lr=1.0))
    make_scheduler(optimizer, ScheduleConfig(warmup_steps=4), 10)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}
