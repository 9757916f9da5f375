"""The trials of trial.py under DeepSpeed ZeRO-3 with parameters and optimizer on disk, on its CPU accelerator, 1 rank.

Runs under a Python of its own that has DeepSpeed (see peers.py). bf16 parameters, fp32 master weights and moments in
DeepSpeed's CPU Adam. The settings are those that were fastest here; peers.py says what else was tried.
"""

from __future__ import annotations

import os
import time
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
import torch
from trial import CLIP_NORM, LEARNING_RATE, Trial, child, make_batch, make_model, run_steps

from openwafer.models import CEREBRAS_GPT, LMHead

ALIGNMENT = 1 << 20


def largest_tensor(size: str) -> int:
    """Elements of the embedding, the largest parameter: every buffer must hold it."""
    config = CEREBRAS_GPT[size]
    return config.vocab_size * config.hidden_size


def settings(trial: Trial) -> dict[str, Any]:
    """The JSON configuration; `trial.options` may change single settings, or leave all of them to DeepSpeed."""
    options = dict(trial.options)
    buffer = -(-largest_tensor(trial.size) // ALIGNMENT) * ALIGNMENT
    pipelined = options.get("pipelined", False)
    offload = {"device": "nvme", "nvme_path": trial.store}
    untuned = {"zero_optimization": {"stage": 3, "offload_param": offload, "offload_optimizer": offload}}
    tuned = {
        "zero_optimization": {
            "stage": 3,
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_bucket_size": options.get("bucket", 1 << 24),
            "sub_group_size": options.get("sub_group", buffer),
            "stage3_prefetch_bucket_size": options.get("prefetch", 1 << 24),
            "stage3_param_persistence_threshold": options.get("persistence", 1 << 14),
            "stage3_max_live_parameters": options.get("live", 1 << 27),
            "stage3_max_reuse_distance": options.get("reuse", 1 << 27),
            "offload_param": {
                **offload,
                "buffer_count": options.get("param_buffers", 5),
                "buffer_size": buffer,
                "max_in_cpu": options.get("max_in_cpu", 0),
                "pin_memory": options.get("pin", False),
            },
            "offload_optimizer": {
                **offload,
                "buffer_count": options.get("buffers", 16 if pipelined else 5),
                "pipeline_read": pipelined,
                "pipeline_write": pipelined,
                "pin_memory": options.get("pin", False),
            },
        },
        "aio": {
            "block_size": options.get("block", 8 << 20),
            "queue_depth": options.get("depth", 8),
            "intra_op_parallelism": options.get("threads", 1),
            "single_submit": False,
            "overlap_events": True,
        },
    }
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": trial.micro_batches,
        "gradient_clipping": CLIP_NORM,
        "steps_per_print": 1 << 30,
        "bf16": {"enabled": True},
        "optimizer": {
            "type": "AdamW",
            # As torch.optim.AdamW has it.
            "params": {"lr": LEARNING_RATE, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01},
        },
        **(untuned if options.get("untuned") else tuned),
    }


def run_deepspeed(trial: Trial) -> dict[str, Any]:
    """Parameters are drawn while they are built, inside zero.Init: to draw them anew afterwards would do nothing."""
    assert trial.store is not None
    os.makedirs(trial.store, exist_ok=True)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29531", "RANK": "0", "WORLD_SIZE": "1"}
    os.environ["LOCAL_RANK"] = "0"
    deepspeed.init_distributed("gloo")
    # DeepSpeed prints the model; under zero.Init a parameter has no shape that LMHead could tell.
    LMHead.extra_repr = lambda self: ""
    config = settings(trial)
    started = time.perf_counter()
    with deepspeed.zero.Init(config_dict_or_path=config, remote_device=trial.options.get("remote", "nvme")):
        model = make_model(trial)
    if trial.options.get("checkpoint", True):
        for block in model.layers:
            _checkpoint(block)
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), config=config)
    made_s = time.perf_counter() - started
    batch = make_batch(trial)
    phases = {"forward": 0.0, "backward": 0.0, "update": 0.0}

    def step() -> dict[str, Any]:
        total = 0.0
        phases.update(dict.fromkeys(phases, 0.0))
        for index in range(trial.micro_batches):
            part = {name: tensor.chunk(trial.micro_batches)[index] for name, tensor in batch.items()}
            clock = time.perf_counter()
            loss = engine(**part)
            total += float(loss.detach()) / trial.micro_batches
            phases["forward"] += time.perf_counter() - clock
            clock = time.perf_counter()
            engine.backward(loss)
            phases["backward"] += time.perf_counter() - clock
            clock = time.perf_counter()
            engine.step()
            phases["update"] += time.perf_counter() - clock
        return {"loss": total, "phase_s": dict(phases)}

    return {"steps": run_steps(trial, step), "made_s": made_s, "settings": config, "version": deepspeed.__version__}


def _checkpoint(block: torch.nn.Module) -> None:
    """Recompute the block's parts in the backward pass; ZeRO's hooks sit on the modules inside and fire again."""
    from torch.utils.checkpoint import checkpoint

    forward = block.forward
    block.forward = lambda *args: checkpoint(forward, *args, use_reentrant=False)


if __name__ == "__main__":
    child({"deepspeed": run_deepspeed})
