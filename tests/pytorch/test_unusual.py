"""What models do besides the ordinary: other randomness, views of parameters, hooks, lazy state; exact or refused."""

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import openwafer as ow
from openwafer.base.errors import ConfigError, RefusedError

SETTINGS = [
    dict(tier="memory", micro_batches=1, keep="none"),
    dict(tier="disk", micro_batches=1, keep="all"),
    dict(tier="disk", micro_batches=4, keep="none", clip=0.5),
    dict(tier="mixed", micro_batches=4, keep="all"),
]
IDS = ["memory-1", "disk-1-keep", "disk-4-clip", "mixed-4-keep"]


def rows(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 16, generator=generator), torch.randn(8, 16, generator=generator)


class Stack(nn.Module):
    """Some layers of one kind, in a row."""

    def __init__(self, layer: Callable[[], nn.Module], depth: int = 3):
        super().__init__()
        self.layers = nn.ModuleList(layer() for _ in range(depth))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return F.mse_loss(x, y)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x))


class PythonRandom(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * random.random()


class NumpyRandom(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.from_numpy(np.random.rand(16).astype(np.float32))


class OwnGenerator(Layer):
    def __init__(self) -> None:
        super().__init__()
        self.seed = 7
        self.generator = torch.Generator().manual_seed(7)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * torch.rand(16, generator=self.generator)


class Reseeding(Layer):
    def forward(self, x: Tensor) -> Tensor:
        torch.manual_seed(int(x.detach().abs().sum() * 1000) % 100)
        return super().forward(x) * torch.rand(16)


class Returning(nn.Module):
    """A layer whose output is a view of its parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(16, 16))
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.linear(x), self.table[:8]


class ReturningStack(Stack):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        views = []
        for layer in self.layers:
            x, view = layer(x)
            views.append(view)
            if x.shape == view.shape:
                x = x * view
        return F.mse_loss(x, y) + sum(view.square().mean() for view in views)


class Squared(torch.autograd.Function):
    """Keeps a parameter as an attribute of its context, which no hook sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.weight = weight
        ctx.save_for_backward(x)
        return x * weight

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        return grad * ctx.weight, (grad * x).sum(0)


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16))
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return Squared.apply(self.linear(x), self.weight)


class Hooked(Layer):
    """Hooks of its own for saved tensors, in a part of the layer."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t):
            return super().forward(x)


class Checkpointed(Layer):
    def forward(self, x: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)


class CheckpointedStack(Stack):
    """The root checkpoints a stretch of several layers."""

    reentrant = False

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        def stretch(x: Tensor) -> Tensor:
            return self.layers[1](self.layers[0](x) * 2)

        x = torch.utils.checkpoint.checkpoint(
            stretch, x * self.layers[0].linear.bias.sum(), use_reentrant=self.reentrant
        )
        return F.mse_loss(self.layers[2](x), y)


class ReentrantStack(CheckpointedStack):
    reentrant = True


class Lazy(Layer):
    """State that is made when it is first needed."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(16.0)
            self.register_buffer("mask", torch.ones(16), persistent=False)
        return super().forward(x * self.mask) + 0.01 * self.table


class InPlaceInside(Layer):
    """In place, but not on its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x).add_(1), inplace=True)


class InPlaceBetween(Stack):
    """The root changes a layer's output in place."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer.linear(x).mul_(2)
            x = F.relu_(x + 0.5)
        return F.mse_loss(x, y)


class Detached(Stack):
    """Part of the forward without gradients, and a layer whose input needs none."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.layers[1](x)
        x = self.layers[0](x).detach()
        return F.mse_loss(self.layers[1](x), y) + F.mse_loss(self.layers[2](x), target)


class Foreign(nn.Module):
    """A layer that uses a parameter of another one, which it knows without being its parent."""

    def __init__(self, other: nn.Linear):
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.others = (lambda: other,)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x)) @ self.others[0]().weight


class ForeignStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Linear(16, 16)
        self.layers = nn.ModuleList(Foreign(self.table) for _ in range(3))

    def __deepcopy__(self, memo: dict) -> "ForeignStack":
        twin = ForeignStack()
        twin.load_state_dict(self.state_dict())
        return twin

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return F.mse_loss(self.table(x), y)


class Given(Stack):
    """Layers are given a parameter of the root as an argument."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor, weight: Tensor) -> Tensor:
            return self.linear(x) @ weight

    def __init__(self) -> None:
        super().__init__(self.Layer)
        self.weight = nn.Parameter(torch.randn(16, 16) / 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x, self.weight)
        return F.mse_loss(x, y)


class Registered(Layer):
    """A forward hook and a pre-hook of the user on every layer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_forward_pre_hook(_double)
        self.register_forward_hook(_add_one)
        self.linear.weight.register_hook(_halve)


def _double(module: nn.Module, args: tuple) -> tuple:
    return (args[0] * 2,)


def _add_one(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
    return output + 1


def _halve(grad: Tensor) -> Tensor:
    return grad / 2


class Single(nn.Linear):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # type: ignore[override]
        return F.mse_loss(super().forward(x), y)


def stack(layer: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    return lambda: Stack(layer)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "python-random": stack(PythonRandom),
    "numpy-random": stack(NumpyRandom),
    "own-generator": stack(OwnGenerator),
    "reseeding": stack(Reseeding),
    "returning": lambda: ReturningStack(Returning),
    "custom-function": stack(Custom),
    "own-hooks": stack(Hooked),
    "checkpointed": stack(Checkpointed),
    "checkpointed-stretch": lambda: CheckpointedStack(Layer),
    "reentrant-stretch": lambda: ReentrantStack(Layer),
    "lazy": stack(Lazy),
    "in-place-inside": stack(InPlaceInside),
    "in-place-between": lambda: InPlaceBetween(Layer),
    "detached": lambda: Detached(Layer),
    "foreign": ForeignStack,
    "given": Given,
    "user-hooks": stack(Registered),
    "single": lambda: Single(16, 16),
    "transformer": stack(lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.1, batch_first=True)),
}


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
@pytest.mark.parametrize("name", MODELS)
def test_equals_plain(name: str, setting: dict[str, Any], equal_to_plain: Callable) -> None:
    equal_to_plain(MODELS[name], rows, steps=4, twin=MODELS[name], **setting)


@pytest.mark.parametrize("name", ["transformer", "lazy", "given", "foreign", "returning"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluation(name: str, precision: str, tmp_path: Path) -> None:
    """Without gradients torch takes paths of its own through its transformers."""
    model = MODELS[name]().eval()
    twin = copy.deepcopy(model)
    job = ow.compile(model, store=tmp_path / "store", precision=precision)
    job._streamer.configure(0, 0, frozenset())
    for guard in (torch.no_grad, torch.inference_mode):
        with guard():
            streamed = job(*rows(0))
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
                assert torch.equal(streamed, twin(*rows(0)))
    job.close()


@pytest.mark.parametrize("nested", [False, True])
def test_evaluation_of_a_padded_transformer(nested: bool, tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(16), enable_nested_tensor=nested).eval()
    twin = copy.deepcopy(model)
    x, hidden = torch.randn(4, 6, 16), torch.zeros(4, 6, dtype=torch.bool)
    hidden[:, 4:] = True
    job = ow.compile(model, store=tmp_path / "store", precision="fp32")
    job._streamer.configure(0, 0, frozenset())
    with torch.no_grad(), pytest.MonkeyPatch.context():
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # nested tensors are a prototype
            assert torch.equal(job(x, src_key_padding_mask=hidden), twin(x, src_key_padding_mask=hidden))
    job.close()


def test_layers_given_by_name(equal_to_plain: Callable) -> None:
    for layers in (["layers.*"], ["layers.1"], ["layers.*.linear"], lambda name, module: name == "layers.2"):
        equal_to_plain(stack(Layer), rows, layers=layers, tier="disk", micro_batches=2)


def test_layers_kept_by_name(equal_to_plain: Callable) -> None:
    equal_to_plain(stack(Layer), rows, keep=["layers.0", "layers.2"], tier="disk", micro_batches=2)


def test_uneven_targets(tmp_path: Path) -> None:
    """Micro-batches count by their targets: the step's gradient is that of the mean over all of them."""

    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(16, 16), nn.Linear(16, 16)

        def forward(self, input_ids: Tensor, labels: Tensor) -> Tensor:
            return F.cross_entropy(self.head(self.embed(input_ids)).flatten(0, 1), labels.flatten())

    model = Tagger()
    twin = copy.deepcopy(model)
    ids = torch.randint(16, (4, 6))
    labels = ids.clone()
    labels[0, 1:] = labels[2, 3:] = -100
    job = ow.compile(model, optimizer=torch.optim.SGD(model.parameters()), precision="fp32", store=tmp_path)
    loss = job.backward({"input_ids": ids, "labels": labels}, 4)
    expected = []
    for row in range(4):
        share = int((labels[row] != -100).sum()) / int((labels != -100).sum())
        part = twin(ids[row : row + 1], labels[row : row + 1]) * share
        part.backward()
        expected.append(part.detach())
    assert loss == float(torch.stack(expected).sum())
    grads = {name: grad.clone() for name, grad in job.gradients()}
    for name, param in twin.named_parameters():
        assert torch.equal(grads[name], param.grad), name
    whole = copy.deepcopy(twin)
    whole.zero_grad()
    whole(ids, labels).backward()
    for left, right in zip(twin.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(left.grad, right.grad)
    job.close()


def test_input_changed_in_place_is_refused(tmp_path: Path) -> None:
    """Unless the layer keeps its activations."""

    class InPlace(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.relu_())

    class Root(Stack):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x.clone(), y)

    model = Root(InPlace)
    job = ow.compile(model, optimizer=torch.optim.SGD(model.parameters()), keep="none", precision="fp32")
    with pytest.raises(RefusedError, match=r"layer 'layers\.0' changes its input in place.*keep=\['layers\.0'\]"):
        job.step(rows(0))


def test_input_changed_in_place_is_kept(equal_to_plain: Callable) -> None:
    class InPlace(Layer):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x.relu_())

    class Root(Stack):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x.clone(), y)

    equal_to_plain(lambda: Root(InPlace), rows, keep="all", tier="disk", micro_batches=4)


def test_impure_layer_is_refused() -> None:
    """A layer that does something else when it is run again."""
    calls = [0]

    class Impure(Layer):
        def forward(self, x: Tensor) -> Tensor:
            calls[0] += 1
            return super().forward(x) if calls[0] < 4 else self.linear(x)[:4].exp()

    model = Stack(Impure)
    job = ow.compile(model, optimizer=torch.optim.SGD(model.parameters()), keep="none", precision="fp32")
    with pytest.raises(RefusedError, match="did something else when it was run again"):
        job.step(rows(0))


def test_unfrozen_later_is_refused() -> None:
    model = Stack(Layer)
    model.layers[1].requires_grad_(False)
    job = ow.compile(model, optimizer=torch.optim.SGD(model.parameters()), precision="fp32")
    job.step(rows(0))
    model.layers[1].requires_grad_(True)
    with pytest.raises(RefusedError, match=r"layers\.1\.linear\.weight was frozen"):
        job.step(rows(1))


def test_frozen_later(equal_to_plain: Callable) -> None:
    """What is frozen after compile gets no more gradients, as in a plain loop."""

    class Freezing(Stack):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            for layer in self.layers[:2]:
                layer.requires_grad_(self.training and float(y[0, 0]) < 0)
            return super().forward(x, y)

    equal_to_plain(lambda: Freezing(Layer), rows, steps=1)


def test_other_memory_formats_are_refused() -> None:
    class Pictures(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x).mean()

    model = Pictures().to(memory_format=torch.channels_last)
    with pytest.raises(RefusedError, match="not contiguous"):
        ow.compile(model, optimizer=torch.optim.SGD(model.parameters()), precision="fp32")


def test_parameters_that_share_memory_are_refused() -> None:
    model = Stack(Layer)
    model.layers[0].linear.weight = nn.Parameter(model.layers[1].linear.weight.data)
    with pytest.raises(RefusedError, match="same memory"):
        ow.compile(model, optimizer=torch.optim.SGD(model.parameters()), precision="fp32")


def test_meta_parameters_are_refused() -> None:
    with torch.device("meta"):
        model = Stack(Layer)
    with pytest.raises((RefusedError, ConfigError), match="meta"):
        ow.compile(model, optimizer=torch.optim.SGD(model.parameters()), precision="fp32")


def test_branch_called_from_outside(tmp_path: Path) -> None:
    """Parts of a model may be called by themselves: a layer, or a module that holds some."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(*(Layer() for _ in range(3)), nn.LayerNorm(16))
            self.decoder = nn.Sequential(*(Layer() for _ in range(3)))

        def forward(self, x: Tensor) -> Tensor:
            return self.decoder(self.encoder(x))

    model = Both()
    twin = copy.deepcopy(model)
    job = ow.compile(model, store=tmp_path / "store", precision="fp32")
    job._streamer.configure(0, 0, frozenset())
    x = rows(0)[0]
    with torch.no_grad():
        assert torch.equal(model.encoder(x), twin.encoder(x))
        assert torch.equal(model.decoder[1](x), twin.decoder[1](x))
        assert torch.equal(job(x), twin(x))
    job.close()


class Rounding(torch.utils._python_dispatch.TorchDispatchMode):
    """Changes what every tanh gives."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result.round(decimals=1) if func is torch.ops.aten.tanh.default else result


CONTEXTS: dict[str, Callable[[], Any]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "dispatch-mode": Rounding,
    "device": lambda: torch.device("cpu"),
}


@pytest.mark.parametrize("name", CONTEXTS)
def test_contexts_around_a_step(name: str, tmp_path: Path) -> None:
    """Whatever acts on the caller's thread acts on every micro-batch."""
    for keep in ("none", "all"):
        torch.manual_seed(0)
        model = Stack(Layer)
        twin = copy.deepcopy(model)
        optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
        job = ow.compile(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), precision="fp32", keep=keep)
        for step in range(3):
            losses = []
            with CONTEXTS[name]():
                loss = job.backward(rows(step), 4)
                for x, y in zip(*(part.chunk(4) for part in rows(step)), strict=True):
                    part = twin(x, y) / 4
                    part.backward()
                    losses.append(part.detach())
            assert loss == float(torch.stack(losses).sum())
            for key, grad in job.gradients():
                assert torch.equal(grad, dict(twin.named_parameters())[key].grad), key
            job.update()
            optimizer.step()
            optimizer.zero_grad()
        job.close()


def test_step_in_an_autocast_region_is_refused() -> None:
    """Plain PyTorch would go on with casts of the parameters as they were."""
    model = Stack(Layer)
    job = ow.compile(model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1), precision="fp32")
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RefusedError, match="old parameters"):
        job.step(rows(0))
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        job.step(rows(0))


def test_looking_at_one_gradient_loses_none(tmp_path: Path) -> None:
    model = Stack(Layer)
    job = ow.compile(model, optimizer=torch.optim.SGD(model.parameters()), precision="fp32", store=tmp_path)
    job._streamer.configure(0, 0, frozenset())
    job.backward(rows(0))
    count = len(list(job.gradients()))
    for _ in range(3):
        next(job.gradients())
    assert len(list(job.gradients())) == count == 6
    job.close()
