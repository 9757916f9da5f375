"""Every kind of module of issue 2 in every setting, against a plain PyTorch loop, bit for bit."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

TIERS = ("memory", "disk", "mixed")
# Activations are recomputed in one half of the settings and kept in the other.
SETTINGS = [
    pytest.param(
        dict(tier=tier, micro_batches=count, clip=clip, keep="none" if (clip is None) == (count == 1) else "all"),
        id=f"{tier}-{count}-{'clip' if clip else 'free'}",
    )
    for tier, count, clip in itertools.product(TIERS, (1, 4), (None, 0.5))
]


def numbers(*shape: int) -> Callable[[int], tuple[Tensor, ...]]:
    """Batches (x, y) of normal numbers; a function of the step alone."""

    def make(step: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(step)
        return torch.randn(8, *shape, generator=generator), torch.randn(8, 4, generator=generator)

    return make


def tokens(vocab: int = 32, length: int = 6) -> Callable[[int], tuple[Tensor, ...]]:
    def make(step: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(step)
        ids = torch.randint(vocab, (8, length + 1), generator=generator)
        return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()

    return make


class Regression(nn.Module):
    """A body and a mean squared error."""

    def __init__(self, *layers: nn.Module):
        super().__init__()
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(self.body(x), y)


class Block(nn.Module):
    def __init__(self, width: int, dropout: float = 0.0):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.dropout(self.down(F.gelu(self.up(self.norm(x)))))


class LanguageModel(nn.Module):
    """Embedding, blocks, and a head that may be tied to the embedding in one of two ways."""

    def __init__(self, tie: str = "", dropout: float = 0.0, depth: int = 3):
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.position = nn.Parameter(0.1 * torch.randn(1, 6, 16))
        self.blocks = nn.ModuleList(Block(16, dropout) for _ in range(depth))
        self.head = nn.Linear(16, 32, bias=False) if tie != "functional" else None
        if tie == "module":
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(ids) + self.position
        for block in self.blocks:
            x = block(x)
        logits = F.linear(x, self.embed.weight) if self.head is None else self.head(x)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def frozen() -> nn.Module:
    """Frozen: whole layers, one bias inside a layer, and the embedding."""
    model = LanguageModel()
    model.embed.weight.requires_grad_(False)
    model.blocks[0].requires_grad_(False)
    model.blocks[1].up.bias.requires_grad_(False)
    model.blocks[2].up.weight.requires_grad_(False)
    return model


class Unused(LanguageModel):
    """Parameters that never get a gradient: a whole layer, and one inside a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.never = Block(16)
        self.blocks[1].register_parameter("never", nn.Parameter(torch.ones(40)))


class Sometimes(LanguageModel):
    """Layers that are left out in some steps, by a fixed rule of the data."""

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x = self.embed(ids) + self.position
        for number, block in enumerate(self.blocks):
            if (int(ids.sum()) + number) % 2:
                x = block(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


class ZeroSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.empty = nn.Parameter(torch.zeros(0, 16))
        self.hollow = nn.Module()
        self.hollow.nothing = nn.Parameter(torch.zeros(4, 0))
        with pytest.warns(UserWarning, match="zero-element"):
            self.none = nn.Linear(16, 0)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.cat([x, self.empty])
        return F.mse_loss(self.last(x), y) + self.none(x).sum() + self.hollow.nothing.sum()


def batch_norm() -> nn.Module:
    return Regression(
        nn.Conv1d(3, 8, 3, padding=1),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU()),
        nn.Sequential(nn.Conv1d(8, 8, 3, padding=1), nn.BatchNorm1d(8, momentum=None), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(48, 4),
    )


class Noisy(nn.Module):
    """Randomness of several kinds: in layers, between them, of the data's shape, normal and uniform."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(Block(16, 0.2) for _ in range(3))
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.first(x + 0.1 * torch.randn_like(x))
        for block in self.blocks:
            if torch.rand(()) < 0.3:  # stochastic depth
                continue
            x = block(x) * torch.bernoulli(torch.full((x.shape[0], 1), 0.9))
        return F.mse_loss(self.last(x), y + 0.01 * torch.randn(5, 1).sum())


class Conv(nn.Module):
    def __init__(self, inside: int, outside: int):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm = nn.GroupNorm(2, outside)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class UNet(nn.Module):
    """Skip connections between distant layers, by concatenation and by addition; `x` is used several times."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = Conv(2, 4)
        self.down = nn.ModuleList([Conv(4, 8), Conv(8, 8)])
        self.middle = Conv(8, 8)
        self.up = nn.ModuleList([Conv(16, 8), Conv(8, 4)])
        self.gate = nn.Conv2d(8, 8, 1)
        self.outlet = nn.Linear(4 * 64, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        first = self.inlet(x)
        second = F.avg_pool2d(self.down[0](first), 2)
        third = F.avg_pool2d(self.down[1](second), 2)
        middle = self.middle(third) * torch.sigmoid(self.gate(third)) + third
        up = F.interpolate(torch.cat([middle, third], 1), scale_factor=2)
        up = self.up[0](up) + second * second
        up = self.up[1](F.interpolate(up, scale_factor=2)) + first
        return F.mse_loss(self.outlet(up.flatten(1)), y)


class Dense(nn.Module):
    """A list that grows is given to every layer (DenseNet)."""

    class Layer(nn.Module):
        def __init__(self, count: int):
            super().__init__()
            self.linear = nn.Linear(8 * count, 8)

        def forward(self, features: list[Tensor]) -> Tensor:
            return torch.tanh(self.linear(torch.cat(features, 1)))

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(self.Layer(count) for count in (1, 2, 3))
        self.last = nn.Linear(32, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(features))
        return F.mse_loss(self.last(torch.cat(features, 1)), y)


class Appending(Dense):
    """Every layer appends its output to the list it is given."""

    class Layer(Dense.Layer):
        def forward(self, features: list[Tensor]) -> None:
            features.append(super().forward(features))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            layer(features)
        return F.mse_loss(self.last(torch.cat(features, 1)), y)


class Experts(nn.Module):
    """Top-1 routing by the data, a Python loop over experts; some get nothing."""

    class Layer(nn.Module):
        def __init__(self, width: int, count: int):
            super().__init__()
            self.router = nn.Linear(width, count)
            self.experts = nn.ModuleList(Block(width) for _ in range(count))

        def forward(self, x: Tensor) -> Tensor:
            weight, chosen = self.router(x).softmax(-1).max(-1)
            out = torch.zeros_like(x)
            for number, expert in enumerate(self.experts):
                rows = (chosen == number).nonzero().squeeze(-1)
                if rows.numel():
                    out = out.index_add(0, rows, expert(x[rows]) * weight[rows, None])
            return x + out

    def __init__(self, count: int = 6):
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.layers = nn.ModuleList(self.Layer(16, count) for _ in range(2))
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x)
        return F.mse_loss(self.last(x), y)


class Shuffled(Experts):
    """Experts are called in an order that depends on the data, with batch norm inside."""

    class Layer(nn.Module):
        def __init__(self, width: int, count: int):
            super().__init__()
            self.experts = nn.ModuleList(
                nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width)) for _ in range(count)
            )

        def forward(self, x: Tensor) -> Tensor:
            for number in x.detach().sum(0)[: len(self.experts)].argsort()[:3].tolist():
                x = x + self.experts[number](x)
            return x


class Outputs(nn.Module):
    """Two losses, several outputs, keywords, and arguments that are no tensors."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)
            self.side = nn.Linear(16, 4)

        def forward(self, x: Tensor, *, options: dict[str, Any], name: str, twice: bool = False) -> dict[str, Any]:
            assert name == "layer"
            x = torch.tanh(self.linear(x)) * options["scale"]
            return {"x": (x, None), "side": self.side(x * 2 if twice else x), "name": name}

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.layers = nn.ModuleList(self.Layer() for _ in range(3))

    def forward(self, x: Tensor, target: Tensor, scale: float, flags: dict[str, bool]) -> dict[str, Tensor]:
        x = self.first(x)
        sides = []
        for layer in self.layers:
            result = layer(x, options={"scale": scale}, name="layer", **flags)
            x = result["x"][0]
            sides.append(result["side"])
        return {"main": F.mse_loss(sides[-1], target), "extra": torch.stack(sides[:-1]).abs().mean(), "x": x}


def outputs_batch(step: int) -> dict[str, Any]:
    x, y = numbers(8)(step)
    return {"x": x, "target": y, "scale": 0.5, "flags": {"twice": True}}


def outputs_loss(output: Any, batch: Any) -> Tensor:
    assert batch["flags"] == {"twice": True}
    return output["main"] + 0.1 * output["extra"]


class Shared(nn.Module):
    """One block applied several times (ALBERT), in a row and with another between."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.block = Block(16, dropout)
        self.other = Block(16, dropout)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.block(self.block(self.first(x)))
        return F.mse_loss(self.last(self.block(self.other(x))), y)


class SharedNorm(nn.Module):
    """A batch norm that is called several times: its statistics depend on the order of the calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.blocks = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = torch.cat([x, x], 1)
        for block in self.blocks:
            x = self.norm(block(x))
        return F.mse_loss(self.last(x), y)


class ClassToken(nn.Module):
    """Parameters used by the root itself: a token, positions kept in a variable while the layers run, a product."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.position = nn.Parameter(torch.randn(1, 7, 16))
        self.blocks = nn.ModuleList(Block(16) for _ in range(3))
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.mix = nn.Parameter(torch.randn(16, 4) / 4)
        self.bias = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        position = self.position[:, : x.shape[1]]
        transposed = self.mix.t()
        for block in self.blocks:
            x = block(x + position) * self.scale
        return F.mse_loss(F.linear(x[:, 0], transposed, self.bias) + torch.einsum("bd,dk->bk", x[:, 1], self.mix), y)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.lstm = nn.LSTM(16, 16, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.gru = nn.GRU(32, 16, batch_first=True)
        self.head = nn.Linear(16, 32)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        x, _ = self.lstm(self.embed(ids))
        x, _ = self.gru(x)
        return F.cross_entropy(self.head(x).flatten(0, 1), labels.flatten())


class EncoderDecoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 16)
        self.transformer = nn.Transformer(16, 2, 2, 2, 32, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, 32)

    def forward(self, ids: Tensor, labels: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(labels.shape[1])
        x = self.transformer(self.embed(ids), self.embed(labels), tgt_mask=mask, tgt_is_causal=True)
        return F.cross_entropy(self.head(x)[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


class Stateful(nn.Module):
    """Keeps something from one layer to a later one, and forgets it at the end."""

    class Writer(nn.Module):
        def __init__(self, state: Any):
            super().__init__()
            self.linear = nn.Linear(16, 16)
            self.state = state

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.linear(x))
            self.state.value = x
            return x

    class Reader(Writer):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.linear(x)) + self.state.value

    class State:
        value: Any = None

    def __init__(self) -> None:
        super().__init__()
        state = self.State()
        self.first = nn.Linear(8, 16)
        self.writer, self.middle, self.reader = self.Writer(state), Block(16), self.Reader(state)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.reader(self.middle(self.writer(self.first(x))))
        self.writer.state.value = None
        return F.mse_loss(self.last(x), y)


class Attribute(Stateful):
    """The same, in an attribute of the root."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)

        def forward(self, x: Tensor, root: list) -> Tensor:
            x = torch.tanh(self.linear(x)) + (0 if root[0].memory is None else root[0].memory)
            root[0].memory = x
            return x

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.first = nn.Linear(8, 16)
        self.layers = nn.ModuleList(self.Layer() for _ in range(3))
        self.last = nn.Linear(16, 4)
        self.memory: Tensor | None = None
        self.calls = 0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.first(x)
        self.calls += 1
        for layer in self.layers:
            x = layer(x, [self])
        self.memory = None
        return F.mse_loss(self.last(x), y) * (1 + 0.1 * self.calls)


class Auxiliary(Experts):
    """Layers leave a loss in an attribute; the root adds them up (load balancing)."""

    class Layer(nn.Module):
        def __init__(self, width: int, count: int):
            super().__init__()
            self.linear = nn.Linear(width, width)
            self.gate = nn.Linear(width, count)
            self.loss: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.loss = self.gate(x).softmax(-1).square().mean()
            return x + torch.relu(self.linear(x))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x, y) + sum(layer.loss for layer in self.layers)


class Average(nn.Module):
    """Buffers: a moving average in place, one that is replaced, a counter, an unregistered tensor, a large one."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 16)
            self.register_buffer("mean", torch.zeros(16))
            self.register_buffer("count", torch.zeros((), dtype=torch.int64))
            self.register_buffer("replaced", torch.ones(16))
            self.register_buffer("large", torch.zeros(300, 300), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.linear(x)
            if self.training:
                with torch.no_grad():
                    self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
                    self.count += 1
                    self.replaced = 0.5 * self.replaced + x.detach().std(0, unbiased=False)
                    self.large[: x.shape[0], :16].add_(x.detach())
            return (x - self.mean) / (1 + self.replaced) + self.large[0, :16] / self.count.clamp(min=1)

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.layers = nn.ModuleList(self.Layer() for _ in range(3))
        self.register_buffer("seen", torch.zeros(16))
        self.loose = torch.zeros(16)
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = layer(x) + self.seen.clone() + self.loose.clone()
            self.seen.mul_(0.5).add_(x.detach().mean(0))
            self.loose.mul_(0.5).sub_(x.detach().mean(0))
        return F.mse_loss(self.last(x), y)


class Mixture(nn.Module):
    """Layers of different shapes and kinds, nothing repeats."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 5, 3)
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)
        self.bilinear = nn.Bilinear(5, 5, 7)
        self.mix = nn.Sequential(nn.Linear(7, 11), nn.PReLU(), nn.LayerNorm(11), nn.Linear(11, 3, bias=False))
        self.last = nn.Linear(12, 4)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.conv(x).transpose(1, 2)
        x, _ = self.attention(x, x, x)
        return F.mse_loss(self.last(self.mix(self.bilinear(x, x)).flatten(1)), y)


def normed() -> nn.Module:
    """Parametrizations: a weight is computed from others whenever it is read; one has buffers."""
    parametrizations = nn.utils.parametrizations
    return Regression(
        parametrizations.weight_norm(nn.Linear(8, 16)),
        nn.Tanh(),
        parametrizations.spectral_norm(nn.Linear(16, 16)),
        parametrizations.orthogonal(nn.Linear(16, 4)),
    )


NUMBERS, TOKENS = numbers(8), tokens()
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any], dict[str, Any]]] = {
    "layers": (lambda: Regression(nn.Linear(8, 16), nn.ReLU(), Block(16), Block(16), nn.Linear(16, 4)), NUMBERS, {}),
    "tied": (lambda: LanguageModel("module"), TOKENS, {}),
    "tied-functional": (lambda: LanguageModel("functional"), TOKENS, {}),
    "frozen": (frozen, TOKENS, {}),
    "unused": (Unused, TOKENS, {}),
    "sometimes": (Sometimes, TOKENS, {}),
    "zero-size": (ZeroSize, NUMBERS, {}),
    "batch-norm": (batch_norm, numbers(3, 6), {}),
    "buffers": (Average, NUMBERS, {}),
    "dropout": (lambda: LanguageModel(dropout=0.3), TOKENS, {}),
    "randomness": (Noisy, NUMBERS, {}),
    "shapes": (Mixture, numbers(3, 6), {}),
    "u-net": (UNet, numbers(2, 8, 8), {}),
    "dense": (Dense, NUMBERS, {}),
    "appending": (Appending, NUMBERS, {}),
    "encoder-decoder": (EncoderDecoder, TOKENS, {}),
    "experts": (Experts, NUMBERS, {}),
    "shuffled-experts": (Shuffled, NUMBERS, {}),
    "outputs": (Outputs, outputs_batch, {"loss": outputs_loss}),
    "shared": (Shared, NUMBERS, {}),
    "shared-dropout": (lambda: Shared(0.3), NUMBERS, {}),
    "shared-norm": (SharedNorm, NUMBERS, {}),
    "class-token": (ClassToken, numbers(6, 16), {}),
    "recurrent": (Recurrent, TOKENS, {}),
    "stateful": (Stateful, NUMBERS, {}),
    "attribute": (Attribute, NUMBERS, {}),
    "auxiliary": (Auxiliary, NUMBERS, {}),
    "parametrized": (normed, NUMBERS, {}),
}


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", CASES)
def test_equals_plain(name: str, setting: dict[str, Any], equal_to_plain: Callable) -> None:
    make_model, make_batch, options = CASES[name]
    equal_to_plain(make_model, make_batch, **setting, **options)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("name", [n for n in CASES if n not in ("recurrent", "parametrized", "shapes")])
def test_equals_plain_autocast(name: str, count: int, equal_to_plain: Callable) -> None:
    make_model, make_batch, options = CASES[name]
    equal_to_plain(make_model, make_batch, precision="bf16", tier="disk", clip=0.5, micro_batches=count, **options)


@pytest.mark.parametrize("group", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_equals_plain_in_groups(name: str, group: int, equal_to_plain: Callable) -> None:
    make_model, make_batch, options = CASES[name]
    equal_to_plain(make_model, make_batch, tier="disk", clip=0.5, micro_batches=4, group=group, **options)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_dropout_in_groups(precision: str, equal_to_plain: Callable) -> None:
    """The random state goes from one group to the next."""
    order = "layer-major in groups of 2"
    setting = dict(tier="mixed", micro_batches=4, group=2, steps=5, order=order, precision=precision)
    equal_to_plain(lambda: LanguageModel("module", 0.2), TOKENS, **setting)
