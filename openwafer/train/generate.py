"""`openwafer generate RUN`: text from the model of a run, its weights streamed as in training."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from openwafer.base.errors import ConfigError, RunError
from openwafer.data import load_tokenizer
from openwafer.models import generate
from openwafer.train.folder import RunFolder
from openwafer.train.loop import open_job


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are drawn."""

    max_new_tokens: int = 64
    temperature: float = 0.8
    top_k: int | None = 50
    seed: int = 0


def generate_text(
    run_dir: Path | str,
    prompt: str,
    sampling: Sampling,
    *,
    memory: str | int | None = None,
    on_text: Callable[[str], object] = lambda text: None,
) -> str:
    """The prompt and its continuation by the run's model as last committed; the run is not changed.

    Args:
        memory: budget of the process; the run's own unless given.
        on_text: called with each new piece of text as it is known, the prompt first.

    Raises:
        RunError: no run there, or without a tokenizer.
        ConfigError: the prompt is empty or too long.
    """
    folder = RunFolder(Path(run_dir))
    config = folder.load([] if memory is None else [f"memory={memory}"])
    if not folder.tokenizer_file.exists():
        raise RunError(
            f"{folder.path} has no tokenizer.json: its data was prepared without one. Copy the tokenizer.json of the "
            "data into the run's folder."
        )
    tokenizer = load_tokenizer(folder.tokenizer_file)
    ids: list[int] = tokenizer.encode(prompt).ids
    if not ids:
        raise ConfigError("the prompt has no tokens; give some text with --prompt.")
    job = open_job(config.model_copy(update={"device": None, "device_memory": None}))  # a token at a time: on the CPU
    try:
        if job.step_count == 0:
            raise RunError(f"{folder.path} has not committed a step yet; let it train first.")
        job.eval()
        pieces = _Pieces(tokenizer.decode, ids, on_text)
        out = generate(
            job.model,
            torch.tensor([ids]),
            sampling.max_new_tokens,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            seed=sampling.seed,
            on_token=lambda token: pieces.add(int(token[0])),
        )
        return tokenizer.decode(out[0].tolist())
    finally:
        job.abandon()


class _Pieces:
    """Turns tokens into pieces of text; a character of several tokens is held back until it is whole."""

    def __init__(self, decode: Callable[[list[int]], str], ids: list[int], on_text: Callable[[str], object]) -> None:
        self._decode = decode
        self._ids = list(ids)
        self._on_text = on_text
        self._shown = 0
        self._show()

    def add(self, token: int) -> None:
        self._ids.append(token)
        self._show()

    def _show(self) -> None:
        text = self._decode(self._ids)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._on_text(text[self._shown :])
            self._shown = len(text)
