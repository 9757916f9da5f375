"""Training a model whose state is larger than the memory of the GPU, beside FSDP2 and DeepSpeed with CPU offload.

Run: python benchmarks/gpu.py --size 6.7b --device-memory 24GiB --tokens 16384

Each row is a process of its own with the model, batch, bf16 autocast and clipping of trial.py. The state is in host
memory where it fits, else on the disk under --store. "hidden" is the share of the seconds in which copies to the GPU
ran that the computation did not wait for, from events around every copy and every wait. MFU counts 6 FLOP a parameter
and token. DeepSpeed is run if this Python has it. Without a GPU it says so and exits with 2.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import report
import torch
import trial
from trial import CLIP_NORM, LEARNING_RATE, Trial

from openwafer.base import machine
from openwafer.base.units import parse_bytes
from openwafer.streaming.link import Event, StreamLink

STATE_BYTES = 16  # fp32 weights, gradients and two moments a parameter
# Dense bf16 FLOP/s. Source: NVIDIA's data sheets of H100 SXM, H200, A100, L40S, RTX 4090 (fp32 accumulation).
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}
MODES = ("streamed", "fsdp2", "deepspeed")


def main() -> None:
    """Measure, print and save."""
    args = parse()
    if not torch.cuda.is_available():
        print("this machine has no CUDA device that torch can use: nothing was measured", file=sys.stderr)
        raise SystemExit(2)
    if args.look:
        return
    facts = {**report.provenance(), "gpu": torch.cuda.get_device_name()}
    print("\n".join(f"{name}: {value}" for name, value in facts.items()))
    outcomes: list[dict[str, Any]] = []
    with trial.store_folder(args.store) as folder:
        for mode in args.modes:
            if mode == "deepspeed" and importlib.util.find_spec("deepspeed") is None:
                outcomes.append({"name": mode, "error": "this Python has no deepspeed"})
                continue
            options = {"device_memory": parse_bytes(args.device_memory), "optimizer_device": args.optimizer_device}
            one = Trial(mode, args.size, args.tokens, args.steps, options=options)
            fits = one.num_parameters * STATE_BYTES * 1.2 < machine.memory_total_bytes()
            with trial.one_store(folder) as store:
                one = dataclasses.replace(one, store=None if fits else store)
                outcomes.append({"name": mode, **trial.run(one, script=__file__, timeout_s=args.timeout)})
            title = f"Cerebras-GPT {args.size.upper()} on {facts['gpu']}, {args.tokens:,} tokens a step"
            report.save(args.results, f"gpu_{args.size}_{args.tokens}", title, facts, outcomes, [table(outcomes)])
    print("\n" + table(outcomes))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="6.7b", choices=trial.CEREBRAS_GPT)
    parser.add_argument("--tokens", type=int, default=16384, help="tokens of a step")
    parser.add_argument("--device-memory", default="24GiB", help="budget on the GPU, of the streamed row")
    parser.add_argument("--optimizer-device", default="auto", choices=("auto", "host", "device"))
    parser.add_argument("--steps", type=int, default=3, help="timed steps, after one of warm-up")
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=MODES)
    parser.add_argument("--store", help="folder for the state where it does not fit in memory")
    parser.add_argument("--timeout", type=float, default=7200, metavar="SECONDS", help="of one process")
    parser.add_argument("--look", action="store_true", help="only see whether there is a GPU")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    return parser.parse_args()


def table(outcomes: list[dict[str, Any]]) -> str:
    """A row a system, medians of the timed steps."""
    rows = []
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in torch.cuda.get_device_name()), None)
    for outcome in outcomes:
        steps = report.timed(outcome)
        if not steps:
            rows.append([outcome["name"], outcome.get("error", "failed"), "", "", "", ""])
            continue
        one = Trial(**outcome["trial"])
        rate = one.tokens / report.median(step["seconds"] for step in steps)
        hidden = [1 - step["waited_s"] / step["copied_s"] for step in steps if step.get("copied_s")]
        rows.append(
            [
                outcome["name"],
                f"{rate:.0f}",
                "-" if peak is None else f"{6 * one.num_parameters * rate / peak:.1%}",
                f"{report.median(hidden):.0%}" if hidden else "-",
                report.gib(max(step["device_bytes"] for step in steps)),
                report.gib(outcome["peak_bytes"]),
            ]
        )
    return report.table(["", "tokens/s", "MFU", "copies hidden", "GPU GiB", "host GiB"], rows)


# --- in the child ----------------------------------------------------------------------------------------------------


class TimedLink(StreamLink):
    """Notes how long copies take and how long the computation waits for them."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        self.copies: list[tuple[Any, Any]] = []
        self.waits: list[tuple[Any, Any]] = []

    def follow(self, event: Event) -> None:
        start = _now()
        super().follow(event)
        self.waits.append((start, _now()))

    def upload(self, target: torch.Tensor, source: torch.Tensor, after: Event) -> Event:
        self._up.wait_event(after)  # the wait is not the copy's
        start = _now(self._up)
        event = super().upload(target, source, after)
        self.copies.append((start, _now(self._up)))
        return event

    def seconds(self) -> dict[str, float]:
        """Since the last call."""
        torch.cuda.synchronize()
        sums = {
            "copied_s": sum(start.elapsed_time(end) for start, end in self.copies) / 1e3,
            "waited_s": sum(start.elapsed_time(end) for start, end in self.waits) / 1e3,
        }
        self.copies, self.waits = [], []
        return sums


def _now(stream: torch.Stream | None = None) -> Any:
    event = torch.Event("cuda", enable_timing=True)
    event.record(stream or torch.accelerator.current_stream())
    return event


def device_bytes() -> dict[str, float]:
    return {"device_bytes": torch.cuda.max_memory_reserved()}


def streamed(one: Trial) -> dict[str, Any]:
    """openwafer under the budgets."""
    import openwafer as ow

    link = TimedLink(torch.device("cuda", torch.cuda.current_device()))
    model = trial.make_model(one)
    job = ow.compile(
        model, optimizer=trial.make_optimizer(model), clip_norm=CLIP_NORM, store=one.store, device=link, **one.options
    )
    batch = trial.make_batch(one)

    def step() -> dict[str, Any]:
        record = job.step(batch, one.micro_batches)
        return {"loss": record.loss, "stall_s": record.stall_s, **link.seconds(), **device_bytes()}

    try:
        steps = trial.run_steps(one, step)
        plan = job.planner.device_plan
        return {
            "steps": steps,
            "schedule": job.schedule,
            "predicted_device_bytes": None if plan is None else plan.peak_bytes,
        }
    finally:
        job.abandon()


def parts(one: Trial) -> list[dict[str, torch.Tensor]]:
    """The micro-batches, on the device."""
    batch = {name: tensor.cuda() for name, tensor in trial.make_batch(one).items()}
    count = one.micro_batches
    return [{name: tensor.chunk(count)[index] for name, tensor in batch.items()} for index in range(count)]


def fsdp2(one: Trial) -> dict[str, Any]:
    """PyTorch's fully_shard on one rank, blocks recomputed, with its CPUOffloadPolicy."""
    import torch.distributed as dist
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "29531", "RANK": "0", "WORLD_SIZE": "1"}
    dist.init_process_group("cpu:gloo,cuda:nccl")
    model = trial.make_model(one)
    settings: dict[str, Any] = {
        "offload_policy": CPUOffloadPolicy(),
        "mp_policy": MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32),
    }
    for block in model.layers:
        trial._checkpoint(block)
        fully_shard(block, **settings)
    fully_shard(model, **settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    micro = parts(one)

    def step() -> dict[str, Any]:
        total = 0.0
        for part in micro:
            loss = model(**part) / len(micro)
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        return {"loss": total, **device_bytes()}

    try:
        return {"steps": trial.run_steps(one, step)}
    finally:
        dist.destroy_process_group()


def deepspeed(one: Trial) -> dict[str, Any]:
    """ZeRO-3 with parameters and optimizer in host memory, blocks recomputed."""
    import deepspeed as ds

    model = trial.make_model(one)
    for block in model.layers:
        trial._checkpoint(block)
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": one.micro_batches,
        "gradient_clipping": CLIP_NORM,
        "steps_per_print": 1 << 30,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": LEARNING_RATE}},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": True,
            "offload_param": {"device": "cpu", "pin_memory": True},
            "offload_optimizer": {"device": "cpu", "pin_memory": True},
        },
    }
    engine, *_ = ds.initialize(model=model, model_parameters=model.parameters(), config=config)
    micro = parts(one)

    def step() -> dict[str, Any]:
        total = 0.0
        for part in micro:
            loss = engine(**part)
            engine.backward(loss)
            engine.step()
            total += float(loss.detach()) / len(micro)
        torch.cuda.synchronize()
        return {"loss": total, **device_bytes()}

    return {"steps": trial.run_steps(one, step)}


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1].startswith("{"):
        trial.child({"streamed": streamed, "fsdp2": fsdp2, "deepspeed": deepspeed})
    main()
