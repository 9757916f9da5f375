"""The coordinate check of muP as a plot: how far activations move in training, against the width.

Run: python benchmarks/mup.py            (15 seconds; writes results/mup.png and mup.json)

Cerebras-GPT's muP variant and BTLM at two layers, beside the standard parametrisation, each with one learning rate for
all widths. Flat lines are what muP promises; tests/models/test_mup.py asserts the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import report
import torch
from matplotlib import pyplot

from openwafer.models import Alibi, DecoderConfig, MuP
from openwafer.models.coordinates import coordinate_check, growth
from openwafer.view.style import CYCLE, STYLE

WIDTHS = (128, 256, 512, 1024)
NUM_STEPS = 4
LEARNING_RATE = 6e-3
RESULTS = Path(__file__).parent / "results"
BASE = {"num_layers": 2, "num_heads": 4, "vocab_size": 512, "max_positions": 64}


def cerebras_gpt(width: int) -> DecoderConfig:
    mup = MuP(base_hidden_size=128, base_ffn_size=512, embeddings_scale=10.0)
    return DecoderConfig(hidden_size=width, mup=mup, init_std=0.08, **BASE)


def btlm(width: int) -> DecoderConfig:
    mup = MuP(base_hidden_size=128, base_ffn_size=341, embeddings_scale=14.6, output_alpha=2.22)
    return DecoderConfig(
        hidden_size=width,
        ffn_size=width * 8 // 3,
        positions=Alibi(),
        activation="swiglu",
        mup=mup,
        init_std=0.073,
        **BASE,
    )


def standard(width: int) -> DecoderConfig:
    return DecoderConfig(hidden_size=width, **BASE)


MODELS: dict[str, Callable[[int], DecoderConfig]] = {
    "Cerebras-GPT, standard": standard,
    "Cerebras-GPT, muP": cerebras_gpt,
    "BTLM, muP": btlm,
}


def measure(model: Callable[[int], DecoderConfig]) -> dict[str, list[list[float]]]:
    """Movement [step][width] of each part."""
    ids = torch.randint(0, 512, (4, 64), generator=torch.Generator().manual_seed(0))
    checks = [coordinate_check(model(width), ids, LEARNING_RATE, NUM_STEPS) for width in WIDTHS]
    return {part: [[c[part][step] for c in checks] for step in range(NUM_STEPS)] for part in checks[0]}


def main() -> None:
    """Measure, print, plot and save."""
    facts = report.provenance()
    moved = {name: measure(model) for name, model in MODELS.items()}
    for name, parts in moved.items():
        for part, steps in parts.items():
            print(f"{name:24} {part:12} grows as width ** {growth(WIDTHS, steps[-1]):+.2f}")
    RESULTS.mkdir(exist_ok=True)
    value = {"provenance": facts, "widths": WIDTHS, "learning_rate": LEARNING_RATE, "moved": moved}
    (RESULTS / "mup.json").write_text(json.dumps(value, indent=2) + "\n")
    plot(moved)


def plot(moved: dict[str, dict[str, list[list[float]]]]) -> None:
    """One row a model, one column a part, one line a step."""
    parts = list(next(iter(moved.values())))
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(len(moved), len(parts), figsize=(9, 7.5), sharex=True, sharey="col")
        for row, (name, of_part) in zip(axes, moved.items(), strict=True):
            for axis, part in zip(row, parts, strict=True):
                for step, sizes in enumerate(of_part[part]):
                    axis.loglog(WIDTHS, sizes, "o-", color=CYCLE[step], label=f"step {step + 1}", markersize=3)
                axis.set_title(f"{name}: {part}", fontsize=9)
                axis.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
                axis.minorticks_off()
        for axis in axes[-1]:
            axis.set_xlabel("width")
        axes[0][0].legend(fontsize=8)
        for row in axes:
            row[0].set_ylabel("moved (root mean square)")
        figure.tight_layout()
        figure.savefig(RESULTS / "mup.png", dpi=120)


if __name__ == "__main__":
    main()
