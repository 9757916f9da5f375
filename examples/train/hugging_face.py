"""A Hugging Face model as it is, trained while its state streams from disk; nothing in it is changed or replaced.

Run: python examples/train/hugging_face.py                     (GPT-2 124M from scratch, under 1536MiB)
     python examples/train/hugging_face.py --model my-folder   (any causal language model saved by transformers)
"""

import argparse
from pathlib import Path

import torch
import transformers

import openwafer as ow
from openwafer.data import Loader, TokenShards, prepare
from openwafer.train.demo import standard_library

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--run", type=Path, default=Path("runs/hugging-face"), help="everything is written here")
parser.add_argument("--model", type=Path, help="a folder written by save_pretrained")
parser.add_argument("--memory", default="1536MiB", help="of the whole process")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--small", action="store_true", help="two layers of width 64")
args = parser.parse_args()

shards = args.run / "shards"
if not shards.exists():
    prepare(standard_library(200_000 if args.small else 4_000_000), shards, vocab_size=1024)
length, sequences = (64, 8) if args.small else (512, 4)
loader = Loader(TokenShards(shards), length, sequences, seed=1)

transformers.set_seed(1)
if args.model is not None:
    model = transformers.AutoModelForCausalLM.from_pretrained(args.model)
else:
    sizes = {"n_layer": 2, "n_embd": 64, "n_head": 4, "vocab_size": 1024} if args.small else {}
    with ow.init(args.run / "store"):  # parameters are made in the store, a layer at a time
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
job = ow.compile(
    model, optimizer=optimizer, memory=args.memory, store=args.run / "store", precision="bf16", clip_norm=1.0
)
job.train()

losses = []
for step in range(job.step_count, args.steps):
    ids = loader.batch(step)["input_ids"]
    record = job.step({"input_ids": ids, "labels": ids})  # transformers shifts the labels itself
    losses.append(record.loss)
    print(f"step {record.step}: loss {record.loss:.3f}, {record.tokens_per_s:.0f} tokens/s")
job.close()
if len(losses) >= 10:
    assert losses[-1] < losses[0] - 0.5, f"the loss did not fall: {losses[0]:.3f} to {losses[-1]:.3f}"
    print(f"loss fell from {losses[0]:.3f} to {losses[-1]:.3f}")
