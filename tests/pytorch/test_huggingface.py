"""Hugging Face models as they are: their own forward, training, generation, LoRA; bit for bit those of a plain loop."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import openwafer as ow

transformers = pytest.importorskip("transformers")

LENGTH, VOCAB = 8, 40
SMALL = dict(
    vocab_size=VOCAB,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=3,
    num_attention_heads=2,
    max_position_embeddings=LENGTH * 4,
)
SETTINGS = [
    dict(tier="memory", micro_batches=1, keep="none"),
    dict(tier="disk", micro_batches=4, keep="none", clip=0.5),
    dict(tier="mixed", micro_batches=4, keep="all"),
]
NAMES = ["memory-1", "disk-4-clip", "mixed-4-keep"]


def text(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(3, VOCAB, (4, LENGTH), generator=generator)
    return {"input_ids": ids, "labels": ids.clone()}


def padded(step: int) -> dict[str, torch.Tensor]:
    """Half of the positions of each row are hidden from attention, all labels count."""
    batch = text(step)
    mask = torch.ones_like(batch["input_ids"])
    mask[:, :3] = 0
    return {**batch, "attention_mask": mask}


def pictures(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "pixel_values": torch.randn(4, 3, 8, 8, generator=generator),
        "labels": torch.randint(2, (4,), generator=generator),
    }


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(vocab_size=VOCAB, n_positions=32, n_embd=16, n_layer=3, n_head=2)
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, num_key_value_heads=1))


def qwen3() -> nn.Module:
    config = transformers.Qwen3Config(**SMALL, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True)
    return transformers.Qwen3ForCausalLM(config)


def gemma3() -> nn.Module:
    config = transformers.Gemma3TextConfig(**SMALL, num_key_value_heads=1, head_dim=8, sliding_window=4)
    return transformers.Gemma3ForCausalLM(config)


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(
        **SMALL, num_key_value_heads=1, num_local_experts=6, num_experts_per_tok=2, output_router_logits=True
    )
    return transformers.MixtralForCausalLM(config)


def bert() -> nn.Module:
    return transformers.BertForMaskedLM(transformers.BertConfig(**SMALL))


def albert() -> nn.Module:
    config = transformers.AlbertConfig(**SMALL, embedding_size=8, hidden_dropout_prob=0.1)
    return transformers.AlbertForMaskedLM(config)


def t5() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=2,
        decoder_start_token_id=0,
        pad_token_id=0,
    )
    return transformers.T5ForConditionalGeneration(config)


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    return transformers.ViTForImageClassification(config)


def swin() -> nn.Module:
    config = transformers.SwinConfig(
        image_size=8, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=2, mlp_ratio=2.0
    )
    return transformers.SwinForImageClassification(config)


def mamba() -> nn.Module:
    config = transformers.MambaConfig(vocab_size=VOCAB, hidden_size=16, state_size=4, num_hidden_layers=2)
    return transformers.MambaForCausalLM(config)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any]]] = {
    "gpt2": (gpt2, text),
    "llama": (llama, padded),
    "qwen3": (qwen3, text),
    "gemma3": (gemma3, padded),
    "mixtral": (mixtral, text),
    "bert": (bert, padded),
    "albert": (albert, text),
    "t5": (t5, text),
    "vit": (vit, pictures),
    "swin": (swin, pictures),
    "mamba": (mamba, text),
}


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
@pytest.mark.parametrize("name", MODELS)
def test_equals_plain(name: str, setting: dict[str, Any], equal_to_plain: Callable) -> None:
    make_model, make_batch = MODELS[name]
    equal_to_plain(lambda: make_model().train(), make_batch, **setting)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5", "vit"])
def test_equals_plain_autocast(name: str, equal_to_plain: Callable) -> None:
    make_model, make_batch = MODELS[name]
    equal_to_plain(lambda: make_model().train(), make_batch, precision="bf16", tier="disk", clip=1.0)


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "t5", "vit"])
def test_logits_without_gradients(name: str, tmp_path: Any) -> None:
    make_model, make_batch = MODELS[name]
    model = make_model().eval()
    twin = copy.deepcopy(model)
    job = ow.compile(model, store=tmp_path / "run", precision="fp32")
    job._streamer.configure(0, 0, frozenset())
    with torch.no_grad():
        assert torch.equal(job(**make_batch(0)).logits, twin(**make_batch(0)).logits)
    job.close()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3", "t5"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"do_sample": True}], ids=["greedy", "beams", "sampled"])
def test_generate(name: str, options: dict[str, Any], tmp_path: Any) -> None:
    model = MODELS[name][0]().eval()
    twin = copy.deepcopy(model)
    ids = text(0)["input_ids"][:, :5]
    torch.manual_seed(5)
    plain = twin.generate(
        input_ids=ids,
        max_new_tokens=6,
        min_new_tokens=6,
        attention_mask=torch.ones_like(ids),
        pad_token_id=0,
        **options,
    )
    job = ow.compile(model, store=tmp_path / "run", precision="fp32")
    job._streamer.configure(0, 0, frozenset())
    torch.manual_seed(5)
    streamed = job.model.generate(
        input_ids=ids,
        max_new_tokens=6,
        min_new_tokens=6,
        attention_mask=torch.ones_like(ids),
        pad_token_id=0,
        **options,
    )
    assert torch.equal(plain, streamed)
    job.close()


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama", "t5"])
def test_gradient_checkpointing(name: str, reentrant: bool, equal_to_plain: Callable) -> None:
    def make_model() -> nn.Module:
        model = MODELS[name][0]().train()
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model.config.use_cache = False
        return model

    for keep in ("none", "all"):
        equal_to_plain(make_model, text, tier="disk", keep=keep)


# peft 0.21 reads a property that transformers 5.23 has renamed.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_lora(setting: dict[str, Any], equal_to_plain: Callable) -> None:
    peft = pytest.importorskip("peft")

    def make_model() -> nn.Module:
        config = peft.LoraConfig(
            r=4, lora_dropout=0.1, target_modules=["c_attn", "c_fc"], task_type="CAUSAL_LM", fan_in_fan_out=True
        )
        return peft.get_peft_model(gpt2(), config).train()

    def trained(model: nn.Module) -> list[nn.Parameter]:
        return [param for param in model.parameters() if param.requires_grad]

    equal_to_plain(make_model, text, groups=trained, **setting)
