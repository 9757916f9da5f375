"""Keras 3 models on the torch backend, trained by a plain PyTorch loop, are streamed bit for bit."""

import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Keras picks its backend when it is imported.
if "keras" not in sys.modules:
    os.environ["KERAS_BACKEND"] = "torch"
keras = pytest.importorskip("keras")
pytestmark = [
    pytest.mark.skipif(keras.backend.backend() != "torch", reason="Keras runs on another backend"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:keras"),
]


class Wrapped(nn.Module):
    """A Keras model and a loss."""

    def __init__(self, body: Any):
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self.body(x, training=self.training), y)


def dense() -> nn.Module:
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    layers = keras.layers
    return Wrapped(
        keras.Sequential(
            [
                layers.Input((8,)),
                layers.Dense(16, activation="relu"),
                layers.BatchNormalization(),
                layers.Dense(16, activation="gelu"),
                layers.LayerNormalization(),
                layers.Dense(4),
            ]
        )
    )


def dropped() -> nn.Module:
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    layers = keras.layers
    return Wrapped(
        keras.Sequential(
            [
                layers.Input((8,)),
                layers.Dense(16),
                layers.Dropout(0.3, seed=5),
                layers.Dense(16),
                layers.Dropout(0.3),
                layers.Dense(4),
            ]
        )
    )


def attention() -> nn.Module:
    """Functional, with attention and a skip connection."""
    keras.utils.clear_session()
    keras.utils.set_random_seed(3)
    layers = keras.layers
    inputs = layers.Input((6, 8))
    x = layers.Dense(8)(inputs)
    for _ in range(2):
        x = x + layers.MultiHeadAttention(2, 4)(x, x)
        x = layers.LayerNormalization()(x)
    return Wrapped(keras.Model(inputs, layers.Dense(4)(layers.GlobalAveragePooling1D()(x))))


def rows(*shape: int) -> Callable[[int], tuple[Tensor, Tensor]]:
    def make(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        return torch.randn(8, *shape, generator=generator), torch.randn(8, 4, generator=generator)

    return make


@pytest.mark.parametrize(
    "setting",
    [
        dict(tier="memory", micro_batches=1),
        dict(tier="disk", micro_batches=4, clip=0.5),
        dict(tier="mixed", micro_batches=4, keep="all"),
    ],
    ids=["memory-1", "disk-4-clip", "mixed-4-keep"],
)
@pytest.mark.parametrize(("make_model", "make_batch"), [(dense, rows(8)), (dropped, rows(8)), (attention, rows(6, 8))])
def test_equals_plain(
    make_model: Callable, make_batch: Callable, setting: dict[str, Any], equal_to_plain: Callable
) -> None:
    def trained(model: nn.Module) -> list[nn.Parameter]:
        return [param for param in model.parameters() if param.requires_grad]

    equal_to_plain(make_model, make_batch, groups=trained, twin=make_model, **setting)
