"""A plain Keras 3 model, trained while its state streams from disk; the model knows nothing of it.

Run: python examples/train/keras_model.py       (a transformer that sorts digits, under 1GiB)
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import openwafer as ow

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--run", type=Path, default=Path("runs/keras"), help="everything is written here")
parser.add_argument("--memory", default="1GiB", help="of the whole process")
parser.add_argument("--steps", type=int, default=60)
parser.add_argument("--small", action="store_true", help="width 32")
args = parser.parse_args()
LENGTH, DIGITS = 8, 10


def sorter(width: int, num_layers: int) -> keras.Model:
    """Digits [B, LENGTH] -> logits [B, LENGTH, DIGITS] of the same digits in order."""
    layers = keras.layers
    inputs = layers.Input((LENGTH,), dtype="int32")
    x = layers.Embedding(DIGITS, width)(inputs)
    for _ in range(num_layers):
        x = x + layers.MultiHeadAttention(4, width // 4)(layers.LayerNormalization()(x), layers.LayerNormalization()(x))
        hidden = layers.Dense(4 * width, activation="gelu")(layers.LayerNormalization()(x))
        x = x + layers.Dense(width)(hidden)
    flat = layers.Flatten()(layers.LayerNormalization()(x))
    return keras.Model(inputs, layers.Reshape((LENGTH, DIGITS))(layers.Dense(LENGTH * DIGITS)(flat)))


class WithLoss(nn.Module):
    """The model and what it is asked for."""

    def __init__(self, body: keras.Model):
        super().__init__()
        self.body = body

    def forward(self, digits: Tensor, wanted: Tensor) -> Tensor:
        logits = self.body(digits, training=self.training)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten())


def batch(step: int) -> tuple[Tensor, Tensor]:
    """64 rows of digits, and the same in order."""
    digits = torch.randint(DIGITS, (64, LENGTH), generator=torch.Generator().manual_seed(step))
    return digits, digits.sort(dim=1).values


keras.utils.set_random_seed(1)
model = WithLoss(sorter(32, 2) if args.small else sorter(256, 4))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3 if args.small else 1e-3)
job = ow.compile(model, optimizer=optimizer, memory=args.memory, store=args.run / "store", clip_norm=1.0)

losses = []
for step in range(job.step_count, args.steps):
    record = job.step(batch(step), micro_batches=2)
    losses.append(record.loss)
    if record.step % 10 == 0:
        print(f"step {record.step}: loss {record.loss:.3f}, {record.seconds:.2f} s")
job.close()
if len(losses) >= 40:
    assert losses[-1] < 0.7 * losses[0], f"the loss did not fall: {losses[0]:.3f} to {losses[-1]:.3f}"
    print(f"loss fell from {losses[0]:.3f} to {losses[-1]:.3f}")
