"""Checkpoints of other programs, read and written one parameter at a time; no pickle is ever loaded."""

from openwafer.models.interchange.card import CardFacts, model_card
from openwafer.models.interchange.checkpoint import Checkpoint, parameter_shapes
from openwafer.models.interchange.gguf_file import write_gguf
from openwafer.models.interchange.hf_config import KINDS, from_hugging_face, kind_of, to_hugging_face
from openwafer.models.interchange.hugging_face import read_folder, write_folder, write_native
from openwafer.models.interchange.mdl import SIGNATURE as MDL_SIGNATURE
from openwafer.models.interchange.mdl import read_mdl, write_mdl
from openwafer.models.interchange.modelzoo_config import from_modelzoo, to_modelzoo

__all__ = [
    "KINDS",
    "MDL_SIGNATURE",
    "CardFacts",
    "Checkpoint",
    "from_hugging_face",
    "from_modelzoo",
    "kind_of",
    "model_card",
    "parameter_shapes",
    "read_folder",
    "read_mdl",
    "to_hugging_face",
    "to_modelzoo",
    "write_folder",
    "write_gguf",
    "write_mdl",
    "write_native",
]
