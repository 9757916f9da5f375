"""The C kernels against torch and against the pure-torch rounding: equal bits, on ordinary and on extreme values."""

import logging
import os
import subprocess
import sys

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from openwafer.streaming import kernels, rounding
from openwafer.streaming.lion import Lion
from openwafer.streaming.update import OptimizerSpec, apply, snapshot, state_layout

native = pytest.mark.skipif(kernels.load() is None, reason="no native library")


def extreme(count, seed):
    """Values over the whole range of fp32, with zeros of both signs and denormals among them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, generator=generator) * torch.exp(10 * torch.randn(count, generator=generator))
    values[::97] = 0.0
    values[1::97] = -0.0
    values[2::101] *= 1e-38
    values[3::997] = 1e-45
    values[4::997] = 3e38
    return values.clamp(-3e38, 3e38)


@native
@pytest.mark.skipif("AVX" not in torch.backends.cpu.get_cpu_capability(), reason="torch rounds otherwise without FMA")
def test_both_flavours_are_reproduced_on_this_machine():
    assert set(kernels.flavours()) == {False, True}


@native
@pytest.mark.parametrize("fused", [False, True], ids=["for-loop", "fused"])
@pytest.mark.parametrize("kind", [AdamW, Adam])
@pytest.mark.parametrize("amsgrad", [False, True], ids=["", "amsgrad"])
def test_bits_of_extreme_values(kind, fused, amsgrad):
    count = 500_009
    param = torch.nn.Parameter(extreme(count, 1))
    optimizer = kind([param], lr=3e-3, weight_decay=0.1, amsgrad=amsgrad, fused=fused)
    spec, group = OptimizerSpec.of(optimizer), optimizer.param_groups[0]
    names = [item.name for item in state_layout(spec, group, (count,))]
    start = {name: extreme(count, 2 + i) for i, name in enumerate(names)}
    start = {name: value if name == "exp_avg" else value.abs() for name, value in start.items()}
    optimizer.state[param] = {"step": torch.tensor(6.0), **{name: value.clone() for name, value in start.items()}}
    p, g = param.detach().clone(), extreme(count, 9)
    param.grad = g * 0.37
    optimizer.step()
    assert kernels.adam_applies(kind, snapshot(group), p, g, start) == (fused in kernels.flavours())
    apply(spec, snapshot(group), 7, p, g, start, 0.37)
    for want, got in [(param.detach(), p), *((optimizer.state[param][name], start[name]) for name in names)]:
        both_nan = want.isnan() & got.isnan()
        assert bool(((want.view(torch.int32) == got.view(torch.int32)) | both_nan).all())


def bf16_run(kind, options, pieces, *, seed=5, steps=3, count=3001, element=0, grad_dtype=torch.float32):
    """Weights and bf16 moments after `steps` updates, made in pieces of the given size."""
    generator = torch.Generator().manual_seed(0)
    p = torch.randn(count, generator=generator)
    optimizer = kind([torch.nn.Parameter(p.clone())], **{"lr": 0.01, **options})
    spec, group = OptimizerSpec.of(optimizer, moments=torch.bfloat16, seed=seed), optimizer.param_groups[0]
    state = {item.name: torch.zeros(count, dtype=item.dtype) for item in state_layout(spec, group, (count,))}
    assert all(tensor.dtype == torch.bfloat16 for tensor in state.values())
    for step in range(1, steps + 1):
        g = torch.randn(count, generator=generator).to(grad_dtype)
        for at in range(0, count, pieces):
            cut = slice(at, at + pieces)
            views = {name: tensor[cut] for name, tensor in state.items()}
            apply(spec, snapshot(group), step, p[cut], g[cut], views, 0.5, element=element + at)
    return [p, *(tensor.view(torch.int16) for tensor in state.values())]


BF16_CASES = {
    "adamw": (AdamW, {}),
    "adamw-fused": (AdamW, {"fused": True}),
    "adamw-amsgrad": (AdamW, {"amsgrad": True}),
    "adam-l2": (Adam, {"weight_decay": 0.1, "maximize": True}),
    "sgd": (SGD, {"momentum": 0.9}),
    "lion": (Lion, {}),
}


@pytest.mark.parametrize("case", BF16_CASES)
def test_bf16_moments_do_not_depend_on_pieces_or_path(case, monkeypatch):
    kind, options = BF16_CASES[case]
    near_carry = 2**32 - 1000
    whole = bf16_run(kind, options, 3001, element=near_carry)
    cut = bf16_run(kind, options, 192, element=near_carry)
    monkeypatch.setattr(kernels, "adam_applies", lambda *_: False)
    pure = bf16_run(kind, options, 640, element=near_carry)
    for a, b, c in zip(whole, cut, pure, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_bf16_moments_with_bf16_gradients(monkeypatch):
    fast = bf16_run(AdamW, {}, 3001, grad_dtype=torch.bfloat16)
    monkeypatch.setattr(kernels, "adam_applies", lambda *_: False)
    for a, b in zip(fast, bf16_run(AdamW, {}, 3001, grad_dtype=torch.bfloat16), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("change", [{"seed": 6}, {"element": 64}])
def test_rounding_depends_on_seed_and_element(change):
    a, b = bf16_run(AdamW, {}, 3001, steps=1), bf16_run(AdamW, {}, 3001, steps=1, **change)
    assert torch.equal(a[0], b[0])  # the first update uses unrounded moments
    assert not torch.equal(a[1], b[1])


def rounded(values, step=1, slot=0, element=0):
    out = torch.empty(values.numel(), dtype=torch.bfloat16)
    rounding.round_stochastic(values, out, seed=1, step=step, slot=slot, element=element)
    return out


@pytest.mark.parametrize("slot", [0, 1, 2])
def test_rounding_is_unbiased(slot):
    count = 400_000
    for value in (1.001, -0.3337, 3e-39):
        low = torch.tensor(value).view(torch.int32).bitwise_and(-65536).view(torch.float32).double()
        unit = (torch.tensor(value).view(torch.int32).bitwise_and(-65536) + 65536).view(torch.float32).double() - low
        up = ((rounded(torch.full((count,), value), slot=slot).double() - low) / unit).mean()
        share = (torch.tensor(value).double() - low) / unit
        assert abs(up - share) < 5 * (share * (1 - share) / count).sqrt()


def test_rounding_bits_are_independent():
    half = torch.full((1 << 17,), 1.0 + 2**-8)  # midway between two bf16 values: one fair coin each
    base = rounded(half) == 1.0
    others = {
        "step": rounded(half, step=2) == 1.0,
        "slot": rounded(half, slot=1) == 1.0,
        "stream": rounded(half, slot=2) == 1.0,
        "next": rounded(half, element=1) == 1.0,
        "high word": rounded(half, element=1 << 32) == 1.0,
    }
    for name, other in others.items():
        assert abs((base == other).float().mean() - 0.5) < 5 * 0.5 / (1 << 17) ** 0.5, name


def test_rounding_keeps_what_bf16_holds_and_what_is_not_finite():
    exact = torch.tensor([0.0, -0.0, 1.0, -2.5, 2.0**-133, float("inf"), float("-inf")])
    for step in range(1, 20):
        assert torch.equal(rounded(exact, step=step).float(), exact)
        top = rounded(torch.full((64,), torch.finfo(torch.float32).max), step=step)
        assert top.isfinite().all()
        nan = torch.tensor([0x7F800001, -8388607], dtype=torch.int32).view(torch.float32)
        assert rounded(nan, step=step).isnan().all()


def test_absent_library_is_said_once_and_torch_runs(monkeypatch, caplog, tmp_path):
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "kernels.py"))
    monkeypatch.delenv("OPENWAFER_NATIVE", raising=False)
    for function in (kernels.load, kernels.flavours):
        function.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            bf16_run(AdamW, {}, 512)
        said = [record.message for record in caplog.records if record.name == kernels.__name__]
        assert len(said) == 1
        assert "pure-torch" in said[0]
    finally:
        for function in (kernels.load, kernels.flavours):
            function.cache_clear()


def test_environment_switches_native_off():
    code = "from openwafer.streaming import kernels; raise SystemExit(0 if not kernels.flavours() else 1)"
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "OPENWAFER_NATIVE": "0"}, check=False)
    assert done.returncode == 0
