"""BTLM in two phases from one file: a longer context and a smaller batch follow without a break.

Run: python examples/train/btlm_two_phase.py       (4 layers of width 512; what it does is btlm_two_phase.yaml)
"""

import argparse
from pathlib import Path

from openwafer.base.events import read_steps
from openwafer.cli import main
from openwafer.data import prepare
from openwafer.train.demo import standard_library

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--run", type=Path, default=Path("runs/btlm"), help="everything is written here; must be new")
parser.add_argument("--small", action="store_true", help="two layers of width 64, a quarter of the lengths")
args = parser.parse_args()

shards = args.run.with_name(f"{args.run.name}-text")
if not shards.exists():
    prepare(standard_library(200_000 if args.small else 4_000_000), shards, vocab_size=1024)
overrides = [f"run={args.run}", f"data.path={shards}"]
if args.small:
    overrides += ["model.hidden_size=64", "model.num_layers=2", "model.num_heads=4"]
    overrides += ["phases.0.data.sequence_length=32", "phases.1.data.sequence_length=128"]
code = main(["fit", str(Path(__file__).with_suffix(".yaml")), *overrides])
assert code == 0, f"openwafer fit ended with {code}"

records = read_steps(args.run / "events.jsonl")
first, second = records[:60], records[60:]
assert [record.step for record in records] == list(range(1, 81)), "one step counter over both phases"
assert {record.tokens for record in records} == {first[0].tokens}, "the same number of tokens in every step"
losses = [sum(record.loss for record in part) / len(part) for part in (first[:5], first[-5:], second[-5:])]
print("loss, first and last five steps of phase one, last five of phase two:", *(f"{loss:.3f}" for loss in losses))
assert losses[0] > losses[1] > losses[2], "it learns in both phases"
