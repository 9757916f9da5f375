"""Trainer files in the form of ModelZoo 2.x, written for the tests; the figures are published ones."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

VOCABULARY = 97


def put_samples(folder: Path, count: int, length: int, seed: int = 0) -> Path:
    """A folder of the sample form: a text of period 8 that a small model learns."""
    folder.mkdir(parents=True)
    start = np.random.default_rng(seed).integers(0, 8, size=count)
    stream = (start[:, None] + np.arange(length + 1)) % 8 * 11
    data = np.stack([stream[:, :-1], np.ones((count, length), int), stream[:, 1:]], axis=1)
    with h5py.File(folder / "data.h5", "w") as file:
        file.create_dataset("data", data=data.astype("i4"))
    return folder


def initializer(std: float) -> dict[str, Any]:
    return {"name": "truncated_normal", "mean": 0.0, "std": std, "a": -2 * std, "b": 2 * std}


BTLM = {
    "name": "btlm",
    "hidden_size": 2560,
    "position_embedding_type": "alibi",
    "share_embedding_weights": True,
    "max_position_embeddings": 8192,
    "vocab_size": 50257,
    "num_hidden_layers": 32,
    "dropout_rate": 0.0,
    "num_heads": 32,
    "attention_type": "scaled_dot_product",
    "attention_dropout_rate": 0.0,
    "filter_size": 6826,
    "nonlinearity": "swiglu",
    "embedding_initializer": initializer(0.073),
    "initializer": initializer(0.073),
    "output_layer_initializer": initializer(0.073),
    "loss_scaling": "batch_size",
    "loss_weight": 1 / 8192,
    "mup_base_filter_size": 682.6,
    "mup_base_hidden_size": 256,
    "output_logits_alpha": 2.22,
    "scale_qk_dot_by_d": True,
    "embeddings_scale": 14.6,
}
"""BTLM-3B-8K. Source of the figures: arXiv 2309.11568."""

LLAMA_8B = {
    "name": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_heads": 32,
    "attention_module": "multiquery_attention",
    "extra_attention_params": {"num_kv_groups": 8},
    "filter_size": 14336,
    "nonlinearity": "swiglu",
    "norm_type": "rmsnorm",
    "position_embedding_type": "rotary",
    "rotary_dim": 128,
    "rope_theta": 500000.0,
    "pos_scaling_type": "llama3",
    "pos_scaling_factor": 8.0,
    "pos_scaling_extra_args": {
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "share_embedding_weights": False,
    "max_position_embeddings": 131072,
    "vocab_size": 128256,
    "dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
    "use_projection_bias_in_attention": False,
    "use_ffn_bias_in_attention": False,
    "use_ffn_bias": False,
}

MIXTRAL_8X7B = {
    **{key: value for key, value in LLAMA_8B.items() if not key.startswith("pos_scaling")},
    "name": "mixtral",
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "vocab_size": 32000,
    "moe": {"num_experts": 8, "top_k": 2, "load_balancing_loss_coef": 0.02, "router_fp32": True},
}


def small(model: dict[str, Any], length: int, **changes: Any) -> dict[str, Any]:
    """The same kind of model at a width that a test can train."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_heads": 4, "filter_size": 64, "vocab_size": VOCABULARY}
    return {**model, **sizes, "max_position_embeddings": length, **changes}


def trainer(model: dict[str, Any], train: dict[str, Any], **init: Any) -> dict[str, Any]:
    """One trainer; `init` replaces sections of its own."""
    sections = {
        "seed": 1,
        "backend": {"backend_type": "CSX", "cluster_config": {"num_csx": 1}},
        "model": model,
        "optimizer": {"AdamW": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1, "correct_bias": True}},
        "schedulers": [
            {
                "SequentialLR": {
                    "schedulers": [
                        {"LinearLR": dict(initial_learning_rate=0.0, end_learning_rate=0.02, total_iters=2)},
                        {"LinearLR": dict(initial_learning_rate=0.02, end_learning_rate=0.002, total_iters=8)},
                    ]
                }
            }
        ],
        "precision": {"enabled": True, "fp16_type": "cbfloat16", "loss_scaling_factor": "dynamic"},
        "loop": {"max_steps": 6, "eval_frequency": None},
        "checkpoint": {"steps": 200, "save_initial_checkpoint": False},
        "logging": {"log_steps": 1},
        "callbacks": [{"ComputeNorm": {}}],
        **init,
    }
    return {"trainer": {"init": sections, "fit": {"train_dataloader": train}}}


def loader(folder: Path, batch_size: int, **options: Any) -> dict[str, Any]:
    return {
        "data_processor": "GptHDF5MapDataProcessor",
        "data_dir": str(folder),
        "batch_size": batch_size,
        "shuffle": False,
        "num_workers": 1,
        **options,
    }


def dump(tree: Any, path: Path) -> Path:
    path.write_text(yaml.safe_dump(tree))
    return path
