"""Fine-tune an imported checkpoint with LoRA: the frozen weights stream in, only the adapters are trained and stored.

Run: python examples/train/lora.py --model my-folder     (a causal language model saved by transformers)
     python examples/train/lora.py                       (a small untrained one, written in Hugging Face form first)

The adapters are those of the peft package, the folder that comes out is what peft loads.
"""

import argparse
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import save_file

import openwafer as ow
from openwafer.data import Loader, TokenShards, prepare
from openwafer.models import FAMILIES, Decoder
from openwafer.models.interchange import Checkpoint, write_folder
from openwafer.train.demo import standard_library

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--run", type=Path, default=Path("runs/lora"), help="everything is written here")
parser.add_argument("--model", type=Path, help="a folder with config.json and safetensors")
parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj", "down_proj"], help="layers that get adapters")
parser.add_argument("--memory", default="1536MiB", help="of the whole process")
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--small", action="store_true", help="less text")
args = parser.parse_args()

if args.model is None:
    args.model = args.run / "base"
    if not args.model.exists():
        sizes = {"num_layers": 2, "hidden_size": 64, "num_heads": 4, "num_kv_heads": 2, "ffn_size": 128}
        torch.manual_seed(1)
        base = Decoder(FAMILIES["llama-3.2-1b"].resized(**sizes, head_dim=None, vocab_size=1024))
        write_folder(Checkpoint(base.config, lambda: base.named_parameters(), "examples"), args.model)
shards = args.run / "shards"
if not shards.exists():
    prepare(standard_library(200_000 if args.small else 4_000_000), shards, vocab_size=1024)
loader = Loader(TokenShards(shards), 64, 8, seed=1)

model = transformers.AutoModelForCausalLM.from_pretrained(args.model)
transformers.set_seed(1)
model = peft.get_peft_model(
    model, peft.LoraConfig(r=16, lora_alpha=32, target_modules=args.targets, task_type="CAUSAL_LM")
)
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
print(f"{sum(p.numel() for p in trained):,} of {sum(p.numel() for p in model.parameters()):,} parameters are trained")
job = ow.compile(
    model, optimizer=torch.optim.AdamW(trained, lr=1e-2), memory=args.memory, store=args.run / "store", clip_norm=1.0
)
job.train()

losses = []
for step in range(job.step_count, args.steps):
    ids = loader.batch(step)["input_ids"]
    record = job.step({"input_ids": ids, "labels": ids})
    losses.append(record.loss)
    print(f"step {record.step}: loss {record.loss:.3f}, {(record.bytes_written) / 1e6:.1f} MB written")
state = {name.replace(".default.", "."): tensor.clone() for name, tensor in job.state_dict().items() if "lora_" in name}
job.close()

folder = args.run / "adapters"
model.peft_config["default"].save_pretrained(folder)
save_file(state, folder / "adapter_model.safetensors")
again = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(args.model), folder)
ids = loader.batch(args.steps - 1)["input_ids"]
with torch.no_grad():
    loss = float(again(input_ids=ids, labels=ids).loss)
print(f"peft loads {folder}: loss {loss:.3f}")
if len(losses) >= 10:
    assert losses[-1] < losses[0] - 0.05, f"the loss did not fall: {losses[0]:.3f} to {losses[-1]:.3f}"
    assert abs(loss - losses[-1]) < 0.1, "the adapters on disk are those that were trained"
