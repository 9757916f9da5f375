"""The model section against counts of parameters that others publish or build, and BTLM's table of deviations."""

import pytest
import torch
import transformers

from openwafer.base.errors import ConfigError
from openwafer.models import learning_rate_scale, num_parameters
from openwafer.models.interchange.modelzoo_config import decoder_of
from openwafer.models.interchange.modelzoo_section import ModelSection, model_section
from tests.train.modelzoo.files import BTLM, LLAMA_8B, MIXTRAL_8X7B, initializer


def section(tree) -> ModelSection:
    return ModelSection.model_validate(model_section(tree)[0])


def test_btlm_has_its_published_size_and_deviations():
    btlm = section(BTLM)
    decoder = decoder_of(btlm)
    assert num_parameters(decoder) == 2_646_255_744
    assert decoder.logits_scale == pytest.approx(0.222)
    assert decoder.embedding_init_std == 0.073
    assert decoder.hidden_init_std == pytest.approx(0.02308, rel=1e-3)
    assert decoder.output_init_std == pytest.approx(0.002886, rel=1e-3)
    assert decoder.ffn_output_init_std == pytest.approx(0.002886, rel=1e-3)
    for name in ("attn.qkv", "attn.out", "mlp.up", "mlp.gate", "mlp.down"):
        assert learning_rate_scale(f"layers.0.{name}.weight", decoder) == pytest.approx(0.1, rel=1e-4)
    assert learning_rate_scale("wte.weight", decoder) == 1.0


@pytest.mark.parametrize(
    ("tree", "theirs"),
    [
        (
            LLAMA_8B,
            lambda: transformers.LlamaConfig(
                hidden_size=4096,
                intermediate_size=14336,
                num_key_value_heads=8,
                vocab_size=128256,
            ),
        ),
        (
            MIXTRAL_8X7B,
            lambda: transformers.MixtralConfig(vocab_size=32000, hidden_size=4096, intermediate_size=14336),
        ),
    ],
    ids=["llama", "mixtral"],
)
def test_counts_are_those_of_transformers(tree, theirs):
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(theirs())
    assert num_parameters(decoder_of(section(tree))) == sum(parameter.numel() for parameter in model.parameters())


def test_defaults_are_modelzoos():
    values, notes = model_section({"name": "gpt2"})
    assert notes == []
    assert (values["hidden_size"], values["dropout_rate"], values["max_position_embeddings"]) == (768, 0.1, 1024)
    assert values["embedding_dropout_rate"] == 0.1
    assert values["scale_qk_dot_by_d"] is False
    assert model_section(BTLM)[0]["scale_qk_dot_by_d"] is True
    assert decoder_of(section({"name": "gpt2"})).output_init_std == pytest.approx(0.02 / 24**0.5)


def test_what_means_nothing_here_is_named():
    _, notes = model_section({**BTLM, "attention_kernel": "optimized_beta", "attention_softmax_fp32": True})
    assert [note.split(":")[0] for note in notes] == ["model.attention_kernel", "model.attention_softmax_fp32"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"memory_tokens": {"num": 1}}, "memory_tokens: .* is not built here"),
        ({"attention_chunk_size": 128}, "attention_chunk_size: 128 is not built here"),
        ({"position_embedding_type": "relative"}, "position_embedding_type"),
        ({"pos_scaling_type": "longrope"}, "pos_scaling_type"),
        ({"nonlinearity": "mish"}, "nonlinearity 'mish' is not built; there are gelu"),
        ({"mup_base_filter_size": None}, "muP needs both"),
        ({"num_heads": 3}, "attention width 2560 is not a multiple of num_heads 3"),
        ({"attention_dropout_rate": 0.5}, "one rate for all three is built"),
        ({"initializer": {**initializer(0.02), "a": -1.0}}, "a cut at two standard deviations"),
        ({"initializer": {"name": "xavier_normal"}}, "truncated_normal"),
        ({"hiden_size": 3}, "hiden_size"),
        ({"moe": {"num_experts": 4, "top_k": 5}}, "top_k is 5, more than num_experts 4"),
        ({"moe": {"num_experts": 4, "routing_algorithm": "hash"}}, "routing_algorithm"),
        ({"name": "t5"}, "name"),
    ],
)
def test_what_is_lacking_or_wrong_is_refused_by_name(changes, says):
    tree = {key: value for key, value in {**BTLM, **changes}.items() if value is not None}
    with pytest.raises((ValueError, ConfigError), match=says):
        section(tree)
