"""Where models are cut: real architectures on the meta device, overrides, and that every parameter has one owner."""

from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import nn

from openwafer.base.errors import PartitionError
from openwafer.pytorch.partition import Partition, partition


def meta(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return make()


def check(model: nn.Module, cut: Partition) -> None:
    """Every parameter has exactly one owner, every layer all pages of its parameters, layers lie side by side."""
    owned = Counter(id(param) for page in cut.pages for _, param in page.params)
    owned.update(id(param) for _, param in cut.left)
    assert owned == Counter({id(param): 1 for param in model.parameters()})
    page_of = {id(param): number for number, page in enumerate(cut.pages) for _, param in page.params}
    for layer in cut.layers:
        assert {page_of[id(p)] for p in layer.module.parameters() if id(p) in page_of} == set(layer.pages)
    for page in cut.pages:
        assert len({param.dtype for _, param in page.params}) == 1
        assert {param.requires_grad for _, param in page.params} == {page.trainable}
    names = [layer.name for layer in cut.layers]
    assert not [(a, b) for a in names for b in names if b.startswith(f"{a}.")]


def names(cut: Partition) -> list[str]:
    return [layer.name for layer in cut.layers]


def blocks(prefix: str, count: int) -> list[str]:
    return [f"{prefix}.{number}" for number in range(count)]


def test_gpt2() -> None:
    transformers = pytest.importorskip("transformers")
    model = meta(lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config()))
    cut = partition(model)
    check(model, cut)
    assert names(cut) == ["transformer.wte", "transformer.wpe", *blocks("transformer.h", 12), "lm_head"]
    tied = next(page for page in cut.pages if any(name == "transformer.wte.weight" for name, _ in page.params))
    assert tied.name == "transformer.wte and lm_head"
    assert [[name for name, _ in cut.pages[number].params] for number in cut.shared] == [
        ["transformer.ln_f.weight", "transformer.ln_f.bias"]
    ]


def test_t5() -> None:
    transformers = pytest.importorskip("transformers")
    model = meta(lambda: transformers.T5ForConditionalGeneration(transformers.T5Config()))
    cut = partition(model)
    check(model, cut)
    expected = {*blocks("encoder.block", 6), *blocks("decoder.block", 6), "shared", "lm_head"}
    assert expected <= set(names(cut))


def test_vit_and_swin() -> None:
    transformers = pytest.importorskip("transformers")
    model = meta(lambda: transformers.ViTForImageClassification(transformers.ViTConfig()))
    cut = partition(model)
    check(model, cut)
    assert sum(layer.module.__class__.__name__ == "ViTLayer" for layer in cut.layers) == 12
    config = transformers.SwinConfig(embed_dim=96, depths=[2, 2, 6, 2])
    model = meta(lambda: transformers.SwinForImageClassification(config))
    cut = partition(model)
    check(model, cut)
    assert sum(layer.module.__class__.__name__ == "SwinLayer" for layer in cut.layers) >= 10
    assert max(share(model, layer.module) for layer in cut.layers) < 0.3


def test_mixtral() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_key_value_heads=4,
        num_attention_heads=4,
    )  # fmt: skip
    model = meta(lambda: transformers.MixtralForCausalLM(config))
    cut = partition(model)
    check(model, cut)
    assert set(blocks("model.layers", 4)) <= set(names(cut))


def share(model: nn.Module, module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / sum(p.numel() for p in model.parameters())


class Stage(nn.Module):
    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv2(self.conv1(x)))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        widths = [64, 128, 256, 512]
        self.inlet = nn.Conv2d(3, 64, 3)
        self.down = nn.ModuleList(Stage(a, b) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(Stage(2 * b, a) for a, b in zip(widths, widths[1:], strict=False))
        self.outlet = nn.Conv2d(64, 1, 1)


class Experts(nn.Module):
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router = nn.Linear(64, 8)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(64, 256), nn.Linear(256, 64)) for _ in range(8))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    def __init__(self, depth: int):
        super().__init__()
        self.layers = nn.ModuleList(self.Layer() for _ in range(depth))


def test_u_net() -> None:
    """Nothing repeats: large parts are cut down until they are a small share of the whole."""
    model = meta(UNet)
    cut = partition(model)
    check(model, cut)
    assert max(share(model, layer.module) for layer in cut.layers) < 0.4
    assert {"down.2.conv1", "down.2.conv2", "up.2.conv1"} <= set(names(cut))


def test_experts() -> None:
    """Blocks of experts are layers if there are enough of them; in a few, each expert is one."""
    model = meta(lambda: Experts(12))
    cut = partition(model)
    check(model, cut)
    assert names(cut) == blocks("layers", 12)
    model = meta(lambda: Experts(2))
    cut = partition(model)
    check(model, cut)
    assert set(blocks("layers.0.experts", 8) + blocks("layers.1.experts", 8)) <= set(names(cut))
    cut = partition(meta(lambda: Experts(12)), limit_bytes=200_000)
    assert "layers.3.experts.5" in names(cut)


def test_single_module_has_no_layers() -> None:
    model = meta(lambda: nn.Linear(512, 512))
    cut = partition(model)
    check(model, cut)
    assert names(cut) == []
    assert len(cut.pages) == 2
    assert cut.shared == ()


def test_small_parameters_share_a_page() -> None:
    model = meta(lambda: nn.Sequential(*(nn.Linear(256, 256) for _ in range(20)), nn.LayerNorm(8)))
    cut = partition(model)
    check(model, cut)
    assert [[name for name, _ in cut.pages[number].params] for number in cut.shared] == [["20.weight", "20.bias"]]


def test_frozen_and_integers_and_dtypes() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8).double())
    model[0].requires_grad_(False)
    model.register_parameter("table", nn.Parameter(torch.arange(5), requires_grad=False))
    cut = partition(model)
    check(model, cut)
    assert {name for name, _ in cut.left} == {"table", "0.bias"}
    assert "0 (frozen)" in [page.name for page in cut.pages]
    assert "2 (float64)" in [page.name for page in cut.pages]


def test_shared_module_is_one_layer() -> None:
    block = nn.Linear(8, 8)
    model = nn.ModuleDict({"a": nn.ModuleList([block, block]), "b": nn.Sequential(block, nn.Linear(8, 8))})
    cut = partition(model)
    check(model, cut)
    assert len({id(layer.module) for layer in cut.layers}) == len(cut.layers)


def test_modules_in_a_plain_list() -> None:
    """As Keras keeps its layers: the parameters are registered, the modules are not."""

    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [nn.Linear(8, 8) for _ in range(3)]
            self.params = nn.ParameterList([p for part in self.parts for p in part.parameters()])
            self.parts.append(self)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    model = Listed()
    cut = partition(model)
    check(model, cut)
    assert names(cut) == blocks("parts", 3)


def test_overrides() -> None:
    model = meta(lambda: Experts(3))
    by_pattern = partition(model, layers=["layers.*"])
    by_name = partition(model, layers=[f"layers.{number}" for number in range(3)])
    by_rule = partition(model, layers=lambda name, module: isinstance(module, Experts.Layer))
    for cut in (by_pattern, by_name, by_rule):
        check(model, cut)
        assert names(cut) == blocks("layers", 3)
    some = partition(model, layers=["layers.1.experts.*"])
    check(model, some)
    assert names(some) == blocks("layers.1.experts", 8)


@pytest.mark.parametrize(
    ("layers", "match"),
    [
        (["layers.7"], "no module is called 'layers.7'; modules are called, for instance, 'layers'"),
        (["layers.1", "layers.1.router"], "lies inside 'layers.1'"),
        (["layers"], "ModuleList, which is never called"),
    ],
)
def test_override_errors(layers: list[str], match: str) -> None:
    with pytest.raises(PartitionError, match=match):
        partition(meta(lambda: Experts(3)), layers=layers)
