"""Checkpoints of other programs, read and written one parameter at a time; no pickle is ever loaded."""

from openwafer.models.interchange.card import CardFacts, model_card
from openwafer.models.interchange.checkpoint import Checkpoint, parameter_shapes
from openwafer.models.interchange.hf_config import KINDS, from_hugging_face, kind_of, to_hugging_face
from openwafer.models.interchange.hugging_face import read_folder, write_folder, write_native

__all__ = [
    "KINDS",
    "CardFacts",
    "Checkpoint",
    "from_hugging_face",
    "kind_of",
    "model_card",
    "parameter_shapes",
    "read_folder",
    "to_hugging_face",
    "write_folder",
    "write_native",
]
