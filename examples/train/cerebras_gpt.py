"""Pretrain Cerebras-GPT from scratch: weights, moments and gradients stream from disk under a budget of memory.

Run: python examples/train/cerebras_gpt.py                   (111M under 1280MiB, 20 steps; again to go on)
     python examples/train/cerebras_gpt.py --text books/ --preset cerebras-gpt-1.3b --memory 3GiB --steps 1000

The model is an ordinary module, the optimizer torch's own. Without --text it learns the Python standard library.
"""

import argparse
from pathlib import Path

import torch

import openwafer as ow
from openwafer.data import Loader, TokenShards, prepare
from openwafer.models import FAMILIES, Decoder
from openwafer.train.demo import standard_library

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--run", type=Path, default=Path("runs/cerebras-gpt"), help="everything is written here")
parser.add_argument("--text", type=Path, nargs="*", help="text files, JSON lines, parquet, or folders of them")
parser.add_argument("--preset", default="cerebras-gpt-111m", choices=FAMILIES)
parser.add_argument("--memory", default="1280MiB", help="of the whole process")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--small", action="store_true", help="two layers of width 64")
args = parser.parse_args()

shards = args.run / "shards"
if not shards.exists():
    prepare(args.text or standard_library(200_000 if args.small else 4_000_000), shards, vocab_size=1024)
config = FAMILIES[args.preset]
if args.small:
    config = config.resized(num_layers=2, hidden_size=64, num_heads=4, ffn_size=256, vocab_size=1024)
length, sequences = (64, 8) if args.small else (512, 4)
loader = Loader(TokenShards(shards), length, sequences, seed=1)

torch.manual_seed(1)
with ow.init(args.run / "store"):  # parameters are made in the store, a layer at a time
    model = Decoder(config)
optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), weight_decay=0.1)
warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: min(1.0, (done + 1) / 5))
job = ow.compile(model, optimizer=optimizer, scheduler=warmup, memory=args.memory, precision="bf16", clip_norm=1.0)

losses = []
for step in range(job.step_count, args.steps):  # the store is the checkpoint: a second start goes on from there
    record = job.step(loader.batch(step))
    losses.append(record.loss)
    print(
        f"step {record.step}: loss {record.loss:.3f}, {record.tokens_per_s:.0f} tokens/s, "
        f"{(record.bytes_read + record.bytes_written) / 1e9:.2f} GB moved, {record.peak_rss_bytes / 2**20:.0f} MiB"
    )
job.close()
if len(losses) >= 10:
    assert losses[-1] < losses[0] - 0.3, f"the loss did not fall: {losses[0]:.3f} to {losses[-1]:.3f}"
    print(f"loss fell from {losses[0]:.3f} to {losses[-1]:.3f}")
