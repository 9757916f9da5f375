"""The decoder that a model section of ModelZoo describes: its parts, and the standard deviations of its weights."""

import dataclasses

from openwafer.models import DecoderConfig
from openwafer.models.interchange.modelzoo_config import from_modelzoo
from openwafer.train.modelzoo.model_section import ModelSection, filled


def decoder_of(section: ModelSection) -> DecoderConfig:
    """The decoder, with the initial weights that the section asks for.

    Raises:
        CheckpointError: something in it is not built.
    """
    config = from_modelzoo(filled(section), "the configuration")
    return dataclasses.replace(config, **_deviations(section, config))


def _deviations(section: ModelSection, config: DecoderConfig) -> dict[str, float]:
    """Standard deviations by group of weights.

    Source: ModelZoo 2.10's documentation of the initializers and of muP (arXiv 2203.03466, table 8). One difference:
    under muP, where ffn_output_layer_initializer is left out, the MLP's output follows output_layer_initializer, as
    in BTLM's published table (arXiv 2309.11568); release 2.10 itself falls back to initializer_range there.
    """
    base = (section.initializer or section).std
    given, ffn_given = section.output_layer_initializer, section.ffn_output_layer_initializer
    depth = (2 * section.num_hidden_layers) ** -0.5
    if section.mup_base_hidden_size is not None:
        output = (given or section).std * config.width_scale**0.5 * depth
        ffn_output = (ffn_given or given or section).std * config.ffn_width_scale**0.5 * depth
    else:
        output = given.std if given else base * (depth if section.initializer is None else 1.0)
        ffn_output = ffn_given.std if ffn_given else output
    return {
        "init_std": base,
        "embedding_init_std": (section.embedding_initializer or section).std,
        "hidden_init_std": base * config.width_scale**0.5,
        "output_init_std": output,
        "ffn_output_init_std": ffn_output,
    }
