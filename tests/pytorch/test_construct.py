"""`with ow.init(store)`: the bits of plain construction under the same seed, in less memory than the model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import openwafer as ow
from openwafer.base.errors import ConfigError, StoreError
from openwafer.pytorch.construct import nursery_of


class Plain(nn.Module):
    """What constructors do: defaults, loops over parameters, copies from one to another, tying, freezing."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.embed = nn.Embedding(50, width, padding_idx=0)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(width, 4, 2 * width, batch_first=True) for _ in range(4))
        self.gate = nn.ParameterList([nn.Parameter(torch.rand(width)) for _ in range(3)])
        self.scalar = nn.Parameter(torch.tensor(0.5))
        self.head = nn.Linear(width, 50, bias=False)
        self.copy = nn.Linear(width, width)
        for name, param in self.named_parameters():
            if param.dim() > 1 and "blocks.1" in name:
                nn.init.orthogonal_(param)
            elif param.dim() > 1 and "blocks.2" in name:
                param.data.normal_(0, 0.02)
        with torch.no_grad():
            self.copy.weight.copy_(self.blocks[0].linear1.weight[:width] * 2)
            self.copy.weight[:, 3] = self.embed.weight[5]
            self.blocks[3].linear1.weight *= 0.5
            self.blocks[3].linear2.weight.data = self.blocks[3].linear2.weight.data.t().contiguous().t().contiguous()
            self.mean = float(self.head.weight.mean())
        self.head.weight = self.embed.weight
        self.copy.bias.requires_grad_(False)
        self.register_buffer("table", torch.randn(width))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for block in self.blocks:
            x = block(x)
        return self.head(self.copy(x) * self.scalar + sum(self.gate)).square().mean()


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=3, n_head=2)
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2
    )
    return transformers.LlamaForCausalLM(config)


def decoder() -> nn.Module:
    from openwafer.models import Decoder, DecoderConfig

    return Decoder(DecoderConfig(vocab_size=50, hidden_size=32, num_layers=3, num_heads=2, max_positions=16))


@pytest.mark.parametrize("memory", [1, 50_000, "1GiB"])
@pytest.mark.parametrize("make_model", [Plain, gpt2, llama, decoder])
def test_same_bits(make_model: Callable[[], nn.Module], memory: int | str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain = make_model()
    random = torch.get_rng_state()
    torch.manual_seed(3)
    with ow.init(tmp_path / "store", memory=memory):
        model = make_model()
    assert torch.equal(random, torch.get_rng_state())
    if memory == 1:
        spilled = [p for p in model.parameters() if p.untyped_storage().nbytes() < p.numel() * p.element_size()]
        assert len(spilled) > len(list(model.parameters())) / 2
    job = ow.compile(model, precision="fp32")
    assert job.store.path == tmp_path / "store"
    state = job.state_dict()
    expected = plain.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(state[name], value), name
    assert not (tmp_path / "store" / "init").exists()
    job.close()


def test_trains_as_plain(tmp_path: Path) -> None:
    torch.manual_seed(3)
    plain = gpt2()
    torch.manual_seed(3)
    with ow.init(tmp_path / "store", memory=10_000):
        model = gpt2()
    ids = torch.randint(50, (4, 8))
    optimizers = [torch.optim.AdamW(m.parameters(), lr=1e-2, weight_decay=0.1) for m in (plain, model)]
    job = ow.compile(model, optimizer=optimizers[1], precision="fp32", clip_norm=1.0)
    for seed in range(3):
        torch.manual_seed(seed)
        expected = plain(input_ids=ids, labels=ids).loss
        expected.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizers[0].step()
        optimizers[0].zero_grad()
        torch.manual_seed(seed)
        assert job.step({"input_ids": ids, "labels": ids}).loss == float(expected.detach())
    state = job.state_dict()
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    job.close()


def test_parameters_that_are_replaced_leave_nothing(tmp_path: Path) -> None:
    """A head that is tied afterwards has made a file that nobody needs."""
    with ow.init(tmp_path / "store", memory=1):
        model = Plain()
        folder = tmp_path / "store" / "init"
        count = len({id(p) for p in model.parameters()})
    assert len(list(folder.iterdir())) <= count
    ow.compile(model, precision="fp32").close()


def test_what_stays_in_memory_comes_back(tmp_path: Path) -> None:
    """A small frozen parameter is in no page; it may have left while the model was built."""

    def make_model() -> nn.Module:
        torch.manual_seed(3)
        first, second = nn.Linear(8, 8), nn.Linear(8, 8)
        first.bias.requires_grad_(False)
        return nn.Sequential(first, second)

    with ow.init(tmp_path / "store", memory=1):
        model = make_model()
    assert nursery_of(model[0].bias) is not None  # type: ignore[index]
    job = ow.compile(model, precision="fp32")
    for name, value in make_model().state_dict().items():
        assert torch.equal(job.state_dict()[name], value), name
    job.close()


def test_values_are_not_kept_where_the_store_has_them(tmp_path: Path) -> None:
    with ow.init(tmp_path / "store"):
        first = ow.compile(decoder(), precision="fp32")
    expected = first.state_dict()
    first.close()
    with ow.init(tmp_path / "store", memory=1):
        model = decoder()
        assert not (tmp_path / "store" / "init").exists()
    job = ow.compile(model, precision="fp32")
    for name, value in expected.items():
        assert torch.equal(job.state_dict()[name], value), name
    job.close()


def test_other_store_is_refused(tmp_path: Path) -> None:
    with ow.init(tmp_path / "one") as store:
        model = nn.Linear(4, 4)
    with pytest.raises(ConfigError, match="one store to both"):
        ow.compile(model, store=tmp_path / "two")
    job = ow.compile(model, store=tmp_path / "one")
    job.close()
    store.close()
    with pytest.raises(ConfigError, match="on disk"), ow.init(None):  # type: ignore[arg-type]
        pass


def test_failing_constructor_leaves_torch_as_it_was(tmp_path: Path) -> None:
    original = nn.Module.register_parameter

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4)
            raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"), ow.init(tmp_path / "store"):
        Broken()
    assert nn.Module.register_parameter is original
    assert nursery_of(nn.Linear(4, 4).weight) is None


def test_locked_store(tmp_path: Path) -> None:
    with ow.init(tmp_path / "store"):
        model = nn.Linear(4, 4)
        with pytest.raises(StoreError), ow.init(tmp_path / "store"):
            pass
    ow.compile(model).close()
