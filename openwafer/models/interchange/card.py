"""The model card: what a checkpoint is, in the words that a stranger needs.

What is not known is said to be unknown; nothing is made up. The head is the metadata that Hugging Face reads.
"""

from __future__ import annotations

from dataclasses import dataclass

from openwafer.models.config import Alibi, DecoderConfig, Rotary, num_parameters

_UNKNOWN = "Not stated."


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What only the owner of a model knows.

    Attributes:
        licence: an identifier such as apache-2.0.
    """

    name: str
    licence: str | None = None
    data: str | None = None
    training: str | None = None
    intended_use: str | None = None
    limits: str | None = None


def model_card(config: DecoderConfig, facts: CardFacts) -> str:
    """The card as Markdown."""
    head = ["library_name: transformers", "pipeline_tag: text-generation", "tags: [openwafer]"]
    if facts.licence:
        head.insert(0, f"license: {facts.licence.lower()}")
    sections = {
        "Architecture": _architecture(config),
        "Data": facts.data or _UNKNOWN,
        "Training": facts.training or _UNKNOWN,
        "Licence": facts.licence or _UNKNOWN,
        "Intended use": facts.intended_use or _UNKNOWN,
        "Limits": facts.limits
        or (
            "Not stated. Not evaluated by the tool that wrote this card. A language model repeats the errors and the "
            "prejudice of its data and states falsehoods fluently; test it for your use before you rely on it."
        ),
    }
    body = "\n\n".join(f"## {title}\n\n{text}" for title, text in sections.items())
    return "---\n" + "\n".join(head) + f"\n---\n\n# {facts.name}\n\n{body}\n\nWritten by openwafer.\n"


def _architecture(config: DecoderConfig) -> str:
    positions = {Rotary: "rotary", Alibi: "ALiBi"}.get(type(config.positions), "learned")
    rows = {
        "Parameters": f"{num_parameters(config):,}",
        "Layers": config.num_layers,
        "Hidden size": config.hidden_size,
        "Heads (of keys and values)": f"{config.num_heads} ({config.num_kv_heads})",
        "MLP": f"{config.ffn_size}, {config.activation}",
        "Positions": f"{positions}, {config.max_positions:,}",
        "Norm": config.norm,
        "Vocabulary": f"{config.vocab_size:,}" + (", tied to the output" if config.tie_embeddings else ""),
    }
    if config.window is not None:
        rows["Window"] = f"{config.window:,}"
    if config.experts is not None:
        rows["Experts"] = f"{config.experts.num_experts}, {config.experts.top_k} for each token"
    if config.mup is not None:
        rows["muP"] = (
            f"base width {config.mup.base_hidden_size:g}, embeddings x {config.embeddings_scale:g}, "
            f"logits x {config.logits_scale:g}, scores x {config.score_scale:g}"
        )
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join(["Decoder-only transformer.", "", "| | |", "|---|---|", *lines])
