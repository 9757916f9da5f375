"""Computing on a device. Without one the whole path runs over links that copy in the memory of the CPU, bit for bit."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import openwafer as ow
from openwafer.base.errors import BudgetError, ConfigError
from openwafer.streaming.link import HostLink
from openwafer.streaming.lion import Lion
from openwafer.streaming.window import Window
from tests.pytorch.test_exact import CASES, NUMBERS, SETTINGS, TOKENS, Block, LanguageModel
from tests.streaming.lazy_link import LazyLink

CHOSEN = (
    "tied tied-functional frozen unused sometimes zero-size batch-norm buffers dropout randomness u-net appending "
    "experts shared class-token stateful"
).split()


@pytest.mark.parametrize("setting", [SETTINGS[3], SETTINGS[4], SETTINGS[7], SETTINGS[9]])
@pytest.mark.parametrize("name", CHOSEN)
def test_equals_plain(name: str, setting: dict[str, Any], equal_to_plain: Callable) -> None:
    """With room for one page at a time, over a link on which whatever is not waited for is NaN."""
    make_model, make_batch, options = CASES[name]
    equal_to_plain(make_model, make_batch, device=LazyLink(), window=0, optimizer_device="host", **setting, **options)


@pytest.mark.parametrize(("window", "tier"), [(20_000, "disk"), (None, "memory")])
@pytest.mark.parametrize("name", CHOSEN)
def test_equals_plain_with_room(name: str, tier: str, window: int | None, equal_to_plain: Callable) -> None:
    make_model, make_batch, options = CASES[name]
    setting = dict(tier=tier, window=window, micro_batches=4, clip=0.5, optimizer_device="device")
    equal_to_plain(make_model, make_batch, device=LazyLink(), **setting, **options)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("name", [name for name in CHOSEN if name != "appending"])
def test_equals_plain_autocast(name: str, count: int, equal_to_plain: Callable) -> None:
    make_model, make_batch, options = CASES[name]
    setting = dict(micro_batches=count, precision="bf16", clip=0.5, tier="disk", steps=2, optimizer_device="host")
    equal_to_plain(make_model, make_batch, device=HostLink(), window=0, **setting, **options)


def test_accumulated_backwards(equal_to_plain: Callable) -> None:
    """Gradients come back to the device to be added to."""
    equal_to_plain(LanguageModel, TOKENS, device=LazyLink(), window=0, backwards=3, tier="disk", clip=0.5)


@pytest.mark.parametrize("where", ["host", "device"])
@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.AdamW(params, lr=1e-2, fused=True),
        lambda params: torch.optim.SGD(params, lr=1e-2, momentum=0.9, nesterov=True),
        lambda params: Lion(params, lr=1e-3),
    ],
    ids=["fused", "sgd", "lion"],
)
def test_optimizers(make: Callable, where: str, equal_to_plain: Callable) -> None:
    equal_to_plain(
        LanguageModel, TOKENS, device=LazyLink(), optimizer=make, optimizer_device=where, tier="mixed", clip=0.5
    )


def test_an_optimizer_of_whole_parameters_stays_on_the_host(equal_to_plain: Callable) -> None:
    def make(params: Any) -> torch.optim.Optimizer:
        return torch.optim.Adafactor(params, lr=1e-2)

    equal_to_plain(LanguageModel, TOKENS, device=LazyLink(), optimizer=make)
    with pytest.raises(ConfigError, match=r"optimizer_device='device'.*element by element"):
        ow.compile(LanguageModel(), optimizer=make, device=HostLink(), optimizer_device="device")


def test_layers_share_their_way_up(equal_to_plain: Callable) -> None:
    """Each page goes up twice in a step, however many micro-batches there are."""
    link = LazyLink()
    job = equal_to_plain(
        LanguageModel, TOKENS, device=link, micro_batches=4, window=0, keep="all", order="layer-major", look=False
    )
    pages = len(job._streamer.pages)
    steps = job.step_count
    assert link.num_copies <= steps * 3 * pages


class Drops(nn.Module):
    """Draws from a device's generator."""

    generator = torch.Generator()

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(self.Layer(8) for _ in range(3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return F.mse_loss(x[:, :4], y)

    class Layer(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * torch.bernoulli(torch.full_like(x, 0.8), generator=Drops.generator)


@pytest.mark.parametrize("count", [1, 2])
def test_the_random_numbers_of_a_device(count: int, equal_to_plain: Callable) -> None:
    def make_batch(step: int) -> tuple[Tensor, ...]:
        if step == 0:
            Drops.generator.manual_seed(5)
        return NUMBERS(step)

    job = equal_to_plain(Drops, make_batch, device=LazyLink([Drops.generator]), micro_batches=count, steps=4)
    assert (job.plain_order is None) == (count == 1)
    assert count == 1 or "the device" in (job.plain_order or "")


def train(model: nn.Module, steps: range, **options: Any) -> ow.Job:
    """A job that has done some steps of NUMBERS."""
    job = ow.compile(
        model, optimizer=lambda params: torch.optim.AdamW(params, lr=1e-2), precision="fp32", clip_norm=0.5, **options
    )
    for step in steps:
        job.step(NUMBERS(step), 2)
    return job


def test_a_run_goes_on(tmp_path: Path) -> None:
    """Buffers, random state of the device, and where updates are computed are part of the state."""
    Drops.generator.manual_seed(5)
    first = Drops()
    first.register_buffer("seen", torch.arange(3.0))
    whole = copy.deepcopy(first)
    job = train(first, range(2), store=tmp_path / "a", device=LazyLink([Drops.generator]), optimizer_device="device")
    job.close()
    Drops.generator.manual_seed(99)
    second = Drops()
    second.register_buffer("seen", torch.zeros(3))
    job = train(second, range(2, 4), store=tmp_path / "a", device=LazyLink([Drops.generator]))
    assert job.step_count == 4
    assert job._updates_on == "device"
    assert job._state()["random"]["devices"] == [bytes(Drops.generator.get_state().numpy()).hex()]
    resumed = job.state_dict()
    job.close()
    Drops.generator.manual_seed(5)
    with train(whole, range(4), store=None, device=LazyLink([Drops.generator])) as plain:
        expected = plain.state_dict()
    assert resumed.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(value, resumed[name]), name


def test_what_leaves_the_job_is_in_host_memory(tmp_path: Path) -> None:
    model = LanguageModel()
    with ow.compile(model, optimizer=torch.optim.AdamW(model.parameters()), device=HostLink(), precision="fp32") as job:
        job.backward(TOKENS(0))
        values = {name: grad for name, grad in job.gradients()}
        assert {name for name, _ in model.named_parameters()} == set(values)
        job.update()
        job.save(tmp_path / "saved")
        state = job.state_dict()
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    for name, param in model.named_parameters():
        assert torch.equal(param, state[name])
        assert torch.equal(param, saved[name])
    assert model(*TOKENS(0)).isfinite()


def test_the_classical_loop(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = LanguageModel()
    plain = copy.deepcopy(model)
    ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (model, plain))
    job = ow.compile(model, optimizer=ours, store=tmp_path / "a", device=LazyLink(), precision="fp32")
    assert isinstance(job._front, Window)
    job._front.pool_bytes = 0
    assert not torch.autograd.is_multithreading_enabled()
    for step in range(3):
        losses = []
        for forward, optimizer in ((job, ours), (plain, theirs)):
            loss = forward(*TOKENS(step))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        assert torch.equal(*losses)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(job(*TOKENS(9)), plain(*TOKENS(9)))
    job(*TOKENS(9)).backward()
    job.close()
    assert torch.autograd.is_multithreading_enabled()


def test_a_budget_on_the_device(equal_to_plain: Callable) -> None:
    job = equal_to_plain(LanguageModel, TOKENS, device=LazyLink(), device_memory="64MiB", keep="auto", tier="disk")
    plan = job.planner.device_plan
    assert plan is not None
    assert plan.peak_bytes <= 64 << 20
    assert plan.keep == job.engine.keep
    assert plan.read_bytes >= sum(page.spec.param_bytes for page in job._streamer.pages)
    assert plan.write_bytes == sum(page.spec.param_bytes for page in job._streamer.pages)


def test_a_profile_in_the_process_is_that_of_a_child() -> None:
    """And leaves the model as it was."""
    plans = []
    for options in ({"device": HostLink(), "device_memory": "1GiB"}, {"memory": "20GiB"}):
        model = CASES["attribute"][0]()
        with ow.compile(model, optimizer=torch.optim.AdamW(model.parameters()), **options) as job:
            job.forecast(NUMBERS(0))
            assert (model.calls, model.memory) == (0, None)
            assert job.engine.recorder is None
            demand = job.planner.device_demand or job.planner.demand
            assert demand is not None
            plans.append(demand.profile)
    assert plans[0] is not None
    assert plans[0] == plans[1]


def test_a_forecast_tells_of_the_device() -> None:
    model = LanguageModel()
    optimizer = torch.optim.AdamW(model.parameters())
    with ow.compile(model, optimizer=optimizer, device=HostLink(), device_memory="1GiB", memory="20GiB") as job:
        forecast = job.forecast(TOKENS(0))
        labels = [label for label, _ in forecast.rows()]
    assert {"peak device memory", "link traffic a step"} <= set(labels)
    assert 0 < forecast.device_peak_bytes <= 1 << 30


def test_a_budget_that_is_too_small() -> None:
    with pytest.raises(BudgetError, match=r"^device_memory=1.00 MiB is too small: this step needs at least [0-9]+MiB"):
        ow.compile(LanguageModel(), device=HostLink(), device_memory="1MiB")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device_memory": "1GiB"}, "device_memory needs a device.*device='auto'"),
        ({"optimizer_device": "device"}, "optimizer_device='device' needs a device"),
        ({"optimizer_device": "moon"}, "optimizer_device must be one of auto, host, device, got 'moon'"),
        ({"device": "abacus"}, "device='abacus' is no device to compute on; allowed here: 'cpu'"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ow.compile(nn.Linear(2, 2), **options)


def test_a_compile_that_fails_gives_the_model_back() -> None:
    model = LanguageModel()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(BudgetError):
        ow.compile(
            model,
            optimizer=torch.optim.AdamW(model.parameters()),
            device=HostLink(),
            device_memory="60MiB",
            example=(torch.zeros(20000, 6, dtype=torch.int64), torch.zeros(20000, 6, dtype=torch.int64)),
        )
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
