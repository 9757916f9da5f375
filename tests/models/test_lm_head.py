"""The chunked loss, held against torch.nn.functional.cross_entropy over whole logits."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from openwafer.base.errors import ConfigError
from openwafer.models import IGNORE_INDEX, LMHead, linear_cross_entropy

VOCAB, WIDTH, TOKENS = 1009, 48, 70


@pytest.fixture
def case():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    weight = torch.randn(VOCAB, WIDTH, generator=generator) * 0.3
    labels = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    return hidden, weight, labels


def gradients(function, hidden, weight, scale=1.0):
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    loss = function(hidden, weight)
    (loss * scale).backward()
    return loss.detach(), hidden.grad, weight.grad


def relative(got, want):
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize("chunk", [1, 16, 35, 70, 512])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("ignored", [0, 23])
@pytest.mark.parametrize("scale", [1.0, 0.37])
def test_equals_cross_entropy(case, chunk, reduction, ignored, scale):
    hidden, weight, labels = case
    labels[:ignored] = IGNORE_INDEX
    want = gradients(lambda h, w: F.cross_entropy(h @ w.t(), labels, reduction=reduction), hidden, weight, scale)
    got = gradients(lambda h, w: linear_cross_entropy(h, w, labels, reduction, chunk), hidden, weight, scale)
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == torch.float32
        assert relative(mine, theirs) < 1e-6


def test_large_logits_do_not_overflow(case):
    hidden, weight, labels = case
    want = gradients(lambda h, w: F.cross_entropy(h @ w.t(), labels), hidden * 300, weight)
    got = gradients(lambda h, w: linear_cross_entropy(h, w, labels), hidden * 300, weight)
    for mine, theirs in zip(got, want, strict=True):
        assert relative(mine, theirs) < 1e-6


def test_no_valid_token_is_zero_loss_and_zero_gradient(case):
    hidden, weight, _ = case
    labels = torch.full((TOKENS,), IGNORE_INDEX)
    loss, hidden_grad, weight_grad = gradients(lambda h, w: linear_cross_entropy(h, w, labels), hidden, weight)
    assert loss == 0
    assert not hidden_grad.any()
    assert not weight_grad.any()


def test_empty_input(case):
    _, weight, _ = case
    assert linear_cross_entropy(torch.empty(0, WIDTH), weight, torch.empty(0, dtype=torch.long)) == 0


def test_bfloat16_autocast_is_no_worse_than_plain(case):
    hidden, weight, labels = case
    exact = gradients(lambda h, w: F.cross_entropy(h @ w.t(), labels), hidden, weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = gradients(lambda h, w: F.cross_entropy(F.linear(h, w).float(), labels), hidden, weight)
        mine = gradients(lambda h, w: linear_cross_entropy(h, w, labels, "mean", 32), hidden, weight)
    assert mine[0].dtype == torch.float32
    for got, theirs, truth in zip(mine, plain, exact, strict=True):
        assert relative(got, truth) < 1.2 * relative(theirs, truth) + 1e-6


def test_bfloat16_weight_and_hidden_get_bfloat16_gradients(case):
    hidden, weight, labels = case
    exact = gradients(lambda h, w: F.cross_entropy(h @ w.t(), labels), hidden, weight)
    mine = gradients(lambda h, w: linear_cross_entropy(h, w, labels), hidden.bfloat16(), weight.bfloat16())
    assert mine[1].dtype == mine[2].dtype == torch.bfloat16
    assert mine[0].dtype == torch.float32
    for got, truth in zip(mine, exact, strict=True):
        assert relative(got.float(), truth) < 2e-2


def test_float64_weights(case):
    hidden, weight, labels = case
    labels[5] = IGNORE_INDEX
    want = gradients(lambda h, w: F.cross_entropy(h @ w.t(), labels), hidden.double(), weight.double())
    got = gradients(lambda h, w: linear_cross_entropy(h, w, labels), hidden.double(), weight.double())
    assert relative(got[1], want[1]) < 1e-6
    assert relative(got[2], want[2]) < 1e-6


def test_second_call_gives_the_same_bits(case):
    hidden, weight, labels = case
    first = gradients(lambda h, w: linear_cross_entropy(h, w, labels, "mean", 32), hidden, weight)
    second = gradients(lambda h, w: linear_cross_entropy(h, w, labels, "mean", 32), hidden, weight)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("reentrant", [False, True])
def test_recompute_under_activation_checkpointing(case, reentrant):
    hidden, weight, labels = case

    def recomputed(h, w):
        return checkpoint(linear_cross_entropy, h, w, labels, "mean", 32, use_reentrant=reentrant)

    plain = gradients(lambda h, w: linear_cross_entropy(h, w, labels, "mean", 32), hidden, weight)
    assert all(torch.equal(a, b) for a, b in zip(gradients(recomputed, hidden, weight), plain, strict=True))


class Allocations(TorchDispatchMode):
    """Shapes of the tensors made with storage of their own, in order; views and in-place results are left out."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        known = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        result = func(*args, **kwargs)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() not in known:
                self.shapes.append(tuple(tensor.shape))
        return result


def test_logits_are_never_held_whole(case):
    hidden, weight, labels = case
    hidden.requires_grad_(), weight.requires_grad_()
    with Allocations() as seen:
        linear_cross_entropy(hidden, weight, labels, "mean", 16).backward()
    assert max(shape[0] for shape in seen.shapes if VOCAB in shape[1:]) == 16


def test_no_grad_makes_no_gradient_buffers(case):
    hidden, weight, labels = case
    weight.requires_grad_()
    with torch.no_grad(), Allocations() as seen:
        loss = linear_cross_entropy(hidden, weight, labels, "mean", 16)
    assert not loss.requires_grad
    assert (VOCAB, WIDTH) not in seen.shapes


def test_frozen_weight_makes_no_weight_gradient(case):
    hidden, weight, labels = case
    hidden.requires_grad_()
    with Allocations() as seen:
        linear_cross_entropy(hidden, weight, labels, "mean", 16).backward()
    assert hidden.grad is not None
    assert (VOCAB, WIDTH) not in seen.shapes


def test_weight_gradient_is_handed_over_not_copied(case):
    hidden, weight, labels = case
    weight.requires_grad_()
    with Allocations() as seen:
        linear_cross_entropy(hidden, weight, labels, "mean", 16).backward()
    assert seen.shapes.count((VOCAB, WIDTH)) == 1


def test_second_backward_is_refused(case):
    hidden, weight, labels = case
    loss = linear_cross_entropy(hidden.requires_grad_(), weight, labels)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_bad_arguments(case):
    hidden, weight, labels = case
    with pytest.raises(ConfigError, match=r"labels have shape \[69\].*need labels of shape \[70\]"):
        linear_cross_entropy(hidden, weight, labels[1:])
    with pytest.raises(ConfigError, match="reduction is 'none'"):
        linear_cross_entropy(hidden, weight, labels, "none")
    with pytest.raises(ConfigError, match="chunk_tokens is 0"):
        LMHead(4, 8, chunk_tokens=0)


def test_head_without_labels_gives_logits(case):
    hidden, weight, labels = case
    head = LMHead(WIDTH, VOCAB, torch.nn.Parameter(weight))
    assert torch.equal(head(hidden), F.linear(hidden, weight))
    assert relative(head(hidden, labels), F.cross_entropy(head(hidden), labels)) < 1e-6
