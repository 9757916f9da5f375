"""`update.apply` against plain torch.optim on whole parameters with clip_grad_norm_: equal bits after every step."""

import pytest
import torch
from torch.optim import SGD, Adafactor, Adam, AdamW

from openwafer.base.errors import ConfigError, RefusedError
from openwafer.streaming import kernels
from openwafer.streaming.lion import Lion
from openwafer.streaming.update import CHUNK_MULTIPLE, OptimizerSpec, apply, snapshot, state_layout

FUSED, FOREACH = {"fused": True}, {"foreach": True}
CASES = {
    "adamw": (AdamW, {}),
    "adamw-foreach": (AdamW, FOREACH),
    "adamw-fused": (AdamW, FUSED),
    "adamw-amsgrad": (AdamW, {"amsgrad": True, "betas": (0.4, 0.95)}),
    "adamw-amsgrad-fused": (AdamW, {"amsgrad": True, "betas": (0.4, 0.95), **FUSED}),
    "adamw-maximize": (AdamW, {"maximize": True}),
    "adamw-maximize-fused": (AdamW, {"maximize": True, **FUSED}),
    "adamw-tensor-lr": (AdamW, {"lr": torch.tensor(0.01)}),
    "adamw-tensor-lr-fused": (AdamW, {"lr": torch.tensor(0.01), **FUSED}),
    "adam": (Adam, {}),
    "adam-fused": (Adam, FUSED),
    "adam-l2": (Adam, {"weight_decay": 0.1, "maximize": True}),
    "adam-l2-foreach": (Adam, {"weight_decay": 0.1, **FOREACH}),
    "adam-l2-fused": (Adam, {"weight_decay": 0.1, **FUSED}),
    "sgd": (SGD, {"weight_decay": 0.1}),
    "sgd-momentum": (SGD, {"momentum": 0.9, "dampening": 0.3}),
    "sgd-nesterov": (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    "sgd-nesterov-foreach": (SGD, {"momentum": 0.9, "nesterov": True, **FOREACH}),
    "sgd-nesterov-fused": (SGD, {"momentum": 0.9, "nesterov": True, **FUSED}),
    "sgd-momentum-fused": (SGD, {"momentum": 0.9, "dampening": 0.3, "maximize": True, **FUSED}),
    "lion": (Lion, {"weight_decay": 0.1}),
    "adafactor": (Adafactor, {"weight_decay": 0.1}),
    "adafactor-foreach": (Adafactor, FOREACH),
}
SHAPES = [(0,), (), (1,), (17,), (1025,), (33, 65), (3, 4, 5)]


def plain_and_streamed(kind, options, shapes, grad_dtype=torch.float32, clip=1.0, steps=5, seed=0):
    """Run both for `steps` steps and yield, after each, pairs of tensors that must be equal."""
    generator = torch.Generator().manual_seed(seed)
    if kind is Adafactor:  # plain torch divides by the number of elements
        shapes = [shape for shape in shapes if 0 not in shape]
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    groups = [{"params": params[::2]}, {"params": params[1::2], "weight_decay": 0.01}]
    optimizer = kind([group for group in groups if group["params"]], **{"lr": 0.01, **options})
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    spec = OptimizerSpec.of(optimizer)
    owned = [(group, param) for group in optimizer.param_groups for param in group["params"]]
    masters = [param.detach().clone() for _, param in owned]
    states = [
        {item.name: torch.zeros(item.shape, dtype=item.dtype) for item in state_layout(spec, group, param.shape)}
        for group, param in owned
    ]
    for step in range(1, steps + 1):
        grads = [torch.randn(param.shape, generator=generator).to(grad_dtype) for _, param in owned]
        for (_, param), grad in zip(owned, grads, strict=True):
            param.grad = grad.float().clone()
        coef = None
        if clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(params, clip)
            coef = torch.clamp(clip / (norm + 1e-6), max=1.0)
        hypers = [snapshot(group) for group, _ in owned]
        optimizer.step()
        scheduler.step()
        for hyper, master, grad, state in zip(hypers, masters, grads, states, strict=True):
            apply_in_pieces(spec, hyper, step, master, grad, state, coef, generator)
        for (_, param), master, state in zip(owned, masters, states, strict=True):
            yield param.detach(), master
            for name, tensor in state.items():
                if param.numel():
                    yield optimizer.state[param][name], tensor


def apply_in_pieces(spec, hyper, step, p, g, state, coef, generator):
    if not spec.elementwise:
        apply(spec, hyper, step, p, g, state, coef)
        return
    # Every view is one element off any vector alignment, as it can be inside a flat page.
    views = {"p": p, "g": g, **state}
    rooms = {name: torch.empty(p.numel() + 1, dtype=tensor.dtype)[1:] for name, tensor in views.items()}
    for name, tensor in views.items():
        rooms[name].copy_(tensor.reshape(-1))
    start = 0
    while start < p.numel():
        size = CHUNK_MULTIPLE * int(torch.randint(1, 200 if p.numel() > 10_000 else 6, (), generator=generator))
        piece = {name: room[start : start + size] for name, room in rooms.items()}
        apply(spec, hyper, step, piece.pop("p"), piece.pop("g"), piece, coef)
        start += size
    for name, tensor in views.items():
        if name != "g":
            tensor.copy_(rooms[name].view(tensor.shape))


def assert_equal_bits(pairs):
    count = 0
    for want, got in pairs:
        assert torch.equal(want, got), f"pair {count}: {(want != got).sum()} of {want.numel()} elements differ"
        count += 1
    assert count


@pytest.fixture(params=["native", "torch"])
def path(request, monkeypatch):
    """Run with the native kernels, and with torch alone."""
    if request.param == "torch":
        monkeypatch.setattr(kernels, "adam_applies", lambda *_: False)
    elif not kernels.flavours():
        pytest.skip("no native library")


@pytest.mark.parametrize("grad_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("case", CASES)
def test_equals_plain_torch(case, grad_dtype, path):
    kind, options = CASES[case]
    assert_equal_bits(plain_and_streamed(kind, options, SHAPES, grad_dtype))


@pytest.mark.parametrize("clip", [None, 1e9], ids=["off", "coefficient-1"])
@pytest.mark.parametrize("case", ["adamw", "adamw-fused", "sgd-nesterov"])
def test_equals_plain_torch_unclipped(case, clip, path):
    kind, options = CASES[case]
    assert_equal_bits(plain_and_streamed(kind, options, [(33, 65)], clip=clip))


@pytest.mark.parametrize("case", ["adamw", "adamw-fused", "adam-l2-fused", "sgd-momentum-fused", "lion"])
def test_equals_plain_torch_on_a_million(case, path):
    kind, options = CASES[case]
    assert_equal_bits(plain_and_streamed(kind, options, [(1_000_003,)], steps=2))


@pytest.mark.parametrize("case", ["adamw", "adamw-fused", "sgd-nesterov", "sgd-nesterov-fused", "lion", "adafactor"])
def test_thread_count_changes_no_bit(case):
    kind, options = CASES[case]
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            pairs = plain_and_streamed(kind, options, [(317, 331)], steps=2)
            results.append([want.clone() for want, _ in pairs])
    finally:
        torch.set_num_threads(before)
    assert_equal_bits(zip(*results, strict=True))


def test_random_hyperparameters(path):
    generator = torch.Generator().manual_seed(3)
    for trial in range(30):
        lr, beta1, beta2, decay, eps = torch.rand(5, generator=generator, dtype=torch.float64).tolist()
        options = {"lr": lr**4, "betas": (beta1, 1 - beta2**3 / 2), "weight_decay": decay, "eps": 10 ** (-12 * eps)}
        options["fused"] = trial % 2 == 0
        kind = (Adam, AdamW)[trial // 2 % 2]
        assert_equal_bits(plain_and_streamed(kind, options, [(2051,)], steps=3, seed=trial))


def test_state_layout_has_the_shapes_of_torch():
    for kind, options in CASES.values():
        for shape in [(5,), (3, 4), (2, 3, 4), ()]:
            param = torch.nn.Parameter(torch.ones(shape))
            optimizer = kind([param], **{"lr": 0.01, **options})
            param.grad = torch.ones(shape)
            layout = state_layout(OptimizerSpec.of(optimizer), optimizer.param_groups[0], shape)
            optimizer.step()
            held = {k: v for k, v in optimizer.state[param].items() if k != "step" and v is not None}
            assert {item.name: item.shape for item in layout} == {k: tuple(v.shape) for k, v in held.items()}


def test_snapshot_is_not_changed_by_a_scheduler():
    optimizer = AdamW([torch.nn.Parameter(torch.ones(1))], lr=torch.tensor(0.5))
    hyper = snapshot(optimizer.param_groups[0])
    optimizer.param_groups[0]["lr"].fill_(0.1)
    assert hyper["lr"] == 0.5
    assert "params" not in hyper


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda p: torch.optim.RMSprop(p), "RMSprop cannot be streamed; supported: AdamW, Adam, SGD, Adafactor, Lion"),
        (lambda p: type("Mine", (AdamW,), {})(p), "Mine cannot be streamed"),
        (lambda p: AdamW(p, capturable=True), "capturable=True"),
        (lambda p: SGD(p, differentiable=True), "differentiable=True"),
    ],
)
def test_refuses_what_it_cannot_reproduce(make, words):
    with pytest.raises(RefusedError, match=words):
        OptimizerSpec.of(make([torch.nn.Parameter(torch.ones(1))]))


def test_refuses_step_hooks():
    optimizer = AdamW([torch.nn.Parameter(torch.ones(1))])
    optimizer.register_step_pre_hook(lambda *_: None)
    with pytest.raises(RefusedError, match="hooks"):
        OptimizerSpec.of(optimizer)


def test_refuses_bf16_adafactor_and_other_dtypes():
    params = [torch.nn.Parameter(torch.ones(1))]
    with pytest.raises(RefusedError, match="Adafactor"):
        OptimizerSpec.of(Adafactor(params), moments=torch.bfloat16)
    with pytest.raises(ConfigError, match="float16"):
        OptimizerSpec.of(AdamW(params), moments=torch.float16)


@pytest.mark.parametrize(
    ("kind", "options", "changed"),
    [(SGD, {"lr": 0.1}, {"momentum": 0.9}), (AdamW, {}, {"amsgrad": True})],
)
def test_refuses_state_that_appears_later(kind, options, changed):
    p, g = torch.ones(4), torch.ones(4)
    optimizer = kind([torch.nn.Parameter(p.clone())], **options)
    spec, group = OptimizerSpec.of(optimizer), optimizer.param_groups[0]
    state = {item.name: torch.zeros(item.shape) for item in state_layout(spec, group, p.shape)}
    with pytest.raises(RefusedError, match="cannot be switched on"):
        apply(spec, {**snapshot(group), **changed}, 1, p, g, state)


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"weight_decay": -0.1}])
def test_lion_names_the_wrong_value(options):
    with pytest.raises(ConfigError, match="Lion: "):
        Lion([torch.nn.Parameter(torch.ones(1))], **options)


def test_lion_formula():
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer = Lion([p], lr=0.1, betas=(0.5, 0.75), weight_decay=0.5)
    p.grad = torch.tensor([4.0, -4.0, 0.0])
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.tensor([0.85, -1.8, 2.85]))
    torch.testing.assert_close(optimizer.state[p]["exp_avg"], torch.tensor([1.0, -1.0, 0.0]))
