"""Two-phase recipes on real text, streamed and in plain PyTorch: do they learn the same, bit for bit?

Run: python benchmarks/recipes.py            (about 10 minutes on 2 cores; writes results/recipes.md, .json and .png)

BTLM and Cerebras-GPT at reduced width with everything else as published: muP, ALiBi and SwiGLU or learned positions,
AdamW, clipping, warm-up and decay, and BTLM's change to four times the context at a quarter of the sequences. The
text is the source of the Python standard library. `fit` reads a ModelZoo trainer file and streams from disk; the
other side is a loop over torch's own classes: no part of the engine, the store or the schedules is in it. Samples
are shuffled alike.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import report
import torch
import yaml
from matplotlib import pyplot
from rich.console import Console

from openwafer.base.events import read_steps
from openwafer.data import Hdf5Samples
from openwafer.data.permutation import Permutation
from openwafer.data.prepare import prepare_hdf5
from openwafer.models import Decoder
from openwafer.models.interchange.modelzoo_config import decoder_of
from openwafer.train.demo import standard_library
from openwafer.train.loop import fit, open_job
from openwafer.train.read_config import read_config
from openwafer.view.style import CYCLE, STYLE

VOCAB_SIZE = 2048
SHUFFLE_SEED = 1


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One model and how long it learns; phases as (context, sequences a step, last step)."""

    name: str
    model: dict[str, Any]
    learning_rate: float
    end_learning_rate: float
    warmup_steps: int
    phases: tuple[tuple[int, int, int], ...]
    micro_batch_size: int
    wide_scales: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """muP's share of the learning rate for matrices of attention, into the MLP and out of it."""


def _initializer(std: float) -> dict[str, Any]:
    return {"name": "truncated_normal", "mean": 0.0, "std": std, "a": -2 * std, "b": 2 * std}


def _sizes(width: int, layers: int, heads: int, filter_size: int, vocab_size: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_heads": heads,
        "filter_size": filter_size,
        "vocab_size": vocab_size,
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
        "attention_type": "scaled_dot_product",
        "share_embedding_weights": True,
    }


def btlm(width: int, layers: int, vocab_size: int, context: int, sequences: int, steps: int) -> Recipe:
    """BTLM-3B-8K's recipe: 75% of the steps at one context, the rest at four times of it. Source: arXiv 2309.11568."""
    filter_size = width * 8 // 3
    model = {
        "name": "btlm",
        **_sizes(width, layers, width // 32, filter_size, vocab_size),
        "position_embedding_type": "alibi",
        "nonlinearity": "swiglu",
        "embedding_initializer": _initializer(0.073),
        "initializer": _initializer(0.073),
        "output_layer_initializer": _initializer(0.073),
        "mup_base_hidden_size": width // 4,
        "mup_base_filter_size": filter_size / 4,
        "embeddings_scale": 14.6,
        "output_logits_alpha": 2.22,
        "scale_qk_dot_by_d": True,
        "loss_scaling": "batch_size",
    }
    phases = ((context, sequences, steps * 3 // 4), (4 * context, sequences // 4, steps))
    return Recipe("BTLM", model, 0.012, 0.012 * 0.0085, max(2, steps // 20), phases, 2, (0.25, 0.25, 0.25))


def cerebras_gpt(width: int, layers: int, vocab_size: int, context: int, sequences: int, steps: int) -> Recipe:
    """Cerebras-GPT 13B's recipe, whose batch grows by half on the way. Source: arXiv 2304.03208."""
    model = {
        "name": "gpt3",
        **_sizes(width, layers, width // 32, 4 * width, vocab_size),
        "position_embedding_type": "learned",
        "nonlinearity": "gelu",
        "embedding_initializer": _initializer(0.02),
        "initializer": _initializer(0.02),
        "output_layer_initializer": _initializer(0.02 * (2 * layers) ** -0.5),
        "loss_scaling": "num_tokens",
    }
    phases = ((context, sequences, steps // 2), (context, sequences * 3 // 2, steps))
    return Recipe("Cerebras-GPT", model, 2e-3, 2e-4, max(2, steps // 20), phases, 2)


def trainer_file(recipe: Recipe, data: Path, run: Path) -> list[dict[str, Any]]:
    """The recipe in ModelZoo's form, a trainer a phase, in fp32."""
    total = recipe.phases[-1][2]
    decay = {
        "initial_learning_rate": recipe.learning_rate,
        "end_learning_rate": recipe.end_learning_rate,
        "total_iters": total - recipe.warmup_steps,
    }
    warmup = {
        "initial_learning_rate": 0.0,
        "end_learning_rate": recipe.learning_rate,
        "total_iters": recipe.warmup_steps,
    }
    longest = max(context for context, _, _ in recipe.phases)
    trainers = []
    for context, sequences, last in recipe.phases:
        model = {**recipe.model, "max_position_embeddings": longest}
        if model["loss_scaling"] == "batch_size":
            model["loss_weight"] = 1 / context
        init = {
            "seed": 1,
            "model_dir": str(run),
            "model": model,
            "optimizer": {"AdamW": {"betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}},
            "schedulers": [{"SequentialLR": {"schedulers": [{"LinearLR": warmup}, {"LinearLR": decay}]}}],
            "precision": {"enabled": False, "max_gradient_norm": 1.0},
            "loop": {"max_steps": last, "eval_frequency": None},
            "callbacks": [{"ScopedTrainFlags": {"csx.performance.micro_batch_size": recipe.micro_batch_size}}],
        }
        loader = {
            "data_processor": "GptHDF5MapDataProcessor",
            "data_dir": str(data),
            "max_sequence_length": context,
            "batch_size": sequences,
            "shuffle": True,
            "shuffle_seed": SHUFFLE_SEED,
        }
        trainers.append({"trainer": {"init": init, "fit": {"train_dataloader": loader}}})
    return trainers


def streamed(recipe: Recipe, data: Path, folder: Path, memory: str | None) -> tuple[list[float], dict]:
    """The losses of `openwafer fit`, and the parameters of the last step."""
    file = folder / "params.yaml"
    file.write_text(yaml.safe_dump(trainer_file(recipe, data, folder / "run")), encoding="utf-8")
    config = read_config(file, [f"memory={memory}"] if memory else [])
    fit(config, console=Console(file=io.StringIO()))
    job = open_job(config)
    state = {name: tensor.clone() for name, tensor in job.state_dict().items()}
    job.abandon()
    return [record.loss for record in read_steps(config.run / "events.jsonl")], state


def plain(recipe: Recipe, data: Path, folder: Path) -> tuple[list[float], dict]:
    """The same in a plain loop: one module, one torch.optim.AdamW, one backward a micro-batch."""
    file = folder / "plain.yaml"
    file.write_text(yaml.safe_dump(trainer_file(recipe, data, folder / "unused")), encoding="utf-8")
    section = read_config(file).model.modelzoo
    assert section is not None
    torch.manual_seed(1)
    model = Decoder(decoder_of(section))
    optimizer = torch.optim.AdamW(plain_groups(model, recipe), lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses: list[float] = []
    place, before = 0, None
    for context, sequences, last in recipe.phases:
        place = place if context == before else 0
        samples, before = Hdf5Samples([data], context), context
        order = Permutation(len(samples), SHUFFLE_SEED, 0)
        while len(losses) < last:
            for group in optimizer.param_groups:
                group["lr"] = plain_rate(recipe, len(losses)) * group["share"]
            rows = [torch.from_numpy(samples.read(order[place + row])) for row in range(sequences)]
            place += sequences
            losses.append(plain_step(model, optimizer, torch.stack(rows), recipe.micro_batch_size))
    return losses, {name: tensor.detach() for name, tensor in model.state_dict().items()}


def plain_groups(model: Decoder, recipe: Recipe) -> list[dict[str, Any]]:
    """Matrices by muP's share, then embeddings, then what does not decay."""
    shares = dict(zip(("attn", "up", "down"), recipe.wide_scales, strict=True)) | {"gate": recipe.wide_scales[1]}
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() > 1
        part = next((key for key in shares if f"{key}." in name), None)
        share = shares[part] if part and matrix else 1.0
        group = groups.setdefault((share, matrix), {"params": [], "share": share})
        group["params"].append(parameter)
        if not matrix:
            group["weight_decay"] = 0.0
    return list(groups.values())


def plain_rate(recipe: Recipe, step: int) -> float:
    """Two straight lines: up to the peak, and down to the end."""
    if step < recipe.warmup_steps:
        share = 1 - step / recipe.warmup_steps
        return share * 0.0 + (1 - share) * recipe.learning_rate
    share = 1 - (step - recipe.warmup_steps) / (recipe.phases[-1][2] - recipe.warmup_steps)
    return share * recipe.learning_rate + (1 - share) * recipe.end_learning_rate


def plain_step(model: Decoder, optimizer: torch.optim.Optimizer, rows: torch.Tensor, micro_batch_size: int) -> float:
    """One optimizer step on samples [B, 3, T]; the mean loss."""
    parts = rows.tensor_split(-(-len(rows) // micro_batch_size))
    losses = []
    for part in parts:
        loss = model(part[:, 0], part[:, 2]) / len(parts)
        loss.backward()
        losses.append(loss.detach())
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return float(torch.stack(losses).sum())


def text_corpus(folder: Path, vocab_size: int, text_bytes: int) -> Path:
    """The standard library's source in ModelZoo's corpus form, which is cut into any context as it is read."""
    out = folder / "text"
    prepare_hdf5(standard_library(text_bytes), out, "corpus", vocab_size=vocab_size)
    return out


def compare(recipe: Recipe, data: Path, folder: Path, memory: str | None) -> dict[str, Any]:
    """Both sides of one recipe, and whether they are equal."""
    folder.mkdir()
    began = time.monotonic()
    losses, state = streamed(recipe, data, folder, memory)
    between = time.monotonic()
    expected, weights = plain(recipe, data, folder)
    return {
        "name": recipe.name,
        "phases": recipe.phases,
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "losses": losses,
        "plain_losses": expected,
        "equal_losses": losses == expected,
        "equal_weights": all(torch.equal(state[name], weights[name]) for name in weights),
        "streamed_s": between - began,
        "plain_s": time.monotonic() - between,
    }


def main() -> None:
    """Train, compare, print, plot and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--context", type=int, default=128, help="tokens of a sequence in the first phase")
    parser.add_argument("--sequences", type=int, default=8, help="of a step in the first phase")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--text-bytes", type=int, default=4_000_000)
    parser.add_argument("--memory", default="768MiB", help="budget of the streamed side")
    parser.add_argument("--results", type=Path, default=report.RESULTS)
    args = parser.parse_args()
    sizes = (args.width, args.layers, VOCAB_SIZE, args.context, args.sequences, args.steps)
    recipes = [btlm(*sizes), cerebras_gpt(*sizes)]
    facts = report.provenance()
    with tempfile.TemporaryDirectory(prefix="recipes-") as scratch:
        data = text_corpus(Path(scratch), VOCAB_SIZE, args.text_bytes)
        outcomes = [compare(recipe, data, Path(scratch) / recipe.name, args.memory) for recipe in recipes]
    table = report_table(outcomes)
    print(table)
    title = "Two-phase recipes on real text: streamed and plain PyTorch, fp32"
    report.save(args.results, "recipes", title, facts, outcomes, [table, "![losses](recipes.png)"])
    plot(outcomes, args.results / "recipes.png")
    if not all(outcome["equal_losses"] and outcome["equal_weights"] for outcome in outcomes):
        raise SystemExit("streamed and plain PyTorch differ")


def report_table(outcomes: list[dict[str, Any]]) -> str:
    """One row a recipe."""
    lines = [
        "| | parameters | phases | loss, first 10 steps | loss, last 10 | against plain |",
        "|---|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        phases = ", ".join(f"{count} x {context} to step {last}" for context, count, last in outcome["phases"])
        first, last = (sum(part) / len(part) for part in (outcome["losses"][:10], outcome["losses"][-10:]))
        same = outcome["equal_losses"] and outcome["equal_weights"]
        verdict = "every loss and every weight equal" if same else "DIFFERENT"
        name = f"{outcome['name']}, reduced"
        lines.append(f"| {name} | {outcome['parameters']:,} | {phases} | {first:.3f} | {last:.3f} | {verdict} |")
    return "\n".join(lines)


def plot(outcomes: list[dict[str, Any]], path: Path) -> None:
    """One picture a recipe: the streamed losses as a line, those of plain PyTorch as points."""
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(1, len(outcomes), figsize=(9, 3.5), sharey=True)
        for axis, outcome in zip(axes, outcomes, strict=True):
            steps = range(1, len(outcome["losses"]) + 1)
            axis.plot(steps, outcome["losses"], color=CYCLE[0], linewidth=1, label="streamed by openwafer fit")
            every = max(1, len(steps) // 40)
            axis.plot(
                steps[::every],
                outcome["plain_losses"][::every],
                "o",
                color=CYCLE[1],
                markersize=3,
                label="plain PyTorch",
            )
            axis.axvline(outcome["phases"][0][2] + 0.5, color=CYCLE[7], linestyle=":", label="second phase")
            axis.set_title(f"{outcome['name']}, reduced", fontsize=9)
            axis.set_xlabel("step")
        axes[0].set_ylabel("loss (nats a token)")
        axes[0].legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(path, dpi=120)
        pyplot.close(figure)


if __name__ == "__main__":
    main()
