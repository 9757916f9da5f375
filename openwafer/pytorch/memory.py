"""Divides a memory budget: what a step must have, and what the rest is best used for.

A step must hold the interpreter, the pages in use and on their way, gradients on their way out, and the activations
of the layer at work beside the inputs of all others. What is left keeps activations that would be recomputed, the
last layers first, since they wait the shortest; then gradients, parameters and optimizer state that would go to disk
and back. All sizes are predicted before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from openwafer.base.errors import BudgetError
from openwafer.base.units import format_bytes
from openwafer.pytorch.profile import Profile
from openwafer.streaming.page import PageSpec

# Beside what is counted: the allocator's rounding and libraries' scratch memory; chosen from measurements here.
SLACK_BYTES = 48 << 20
SLACK_SHARE = 0.01


@dataclass(frozen=True)
class MemoryPlan:
    """How the budget is divided; all in bytes.

    Attributes:
        base_bytes: the process as it is without pages and activations.
        activation_bytes: most that activations and the work on them take at any moment.
        read_bytes, write_bytes: disk traffic of a step.
    """

    base_bytes: int
    ring_bytes: int
    pool_bytes: int
    grad_bytes: int
    grad_slack_bytes: int
    activation_bytes: int
    keep: frozenset[int]
    resident: frozenset[int]
    resident_bytes: int
    read_bytes: int
    write_bytes: int

    @property
    def peak_bytes(self) -> int:
        """Predicted peak resident set of the process."""
        counted = (
            self.base_bytes
            + self.ring_bytes
            + self.pool_bytes
            + self.grad_bytes
            + self.grad_slack_bytes
            + self.activation_bytes
            + self.resident_bytes
        )
        return int(counted * (1 + SLACK_SHARE)) + SLACK_BYTES


def activation_peak(profile: Profile, keep: frozenset[int], micro_batches: int) -> int:
    """Most that activations take at any moment of a step, when the layers of `keep` keep theirs."""
    visits = range(len(profile.layers))
    last = len(profile.layers) - 1
    held = [
        profile.saved_bytes[v] if profile.layers[v] in keep else profile.output_bytes[v] for v in visits
    ]
    saved_before = [0]
    held_before = [0]
    for v in visits:
        saved_before.append(saved_before[-1] + profile.saved_bytes[v])
        held_before.append(held_before[-1] + held[v])
    peak = 0
    forward_visit = backward_visit = -1
    for segment in profile.segments:
        if segment.visit >= 0:
            if segment.backward:
                backward_visit = segment.visit
            else:
                forward_visit = segment.visit
        if not segment.backward:
            done = forward_visit if segment.visit >= 0 else forward_visit + 1
            others = held_before[max(done, 0)] * (micro_batches if done < last else 1)
            own = segment.peak_bytes - saved_before[max(done, 0)]
            peak = max(peak, others + own + held_before[max(done, 0)] * (micro_batches - 1) * (done >= last))
            continue
        at = backward_visit if backward_visit >= 0 else last
        own = segment.peak_bytes - saved_before[at]
        recompute = profile.saved_bytes[at] if profile.layers[at] not in keep else 0
        del recompute
        peak = max(peak, own + held_before[at] + held_before[at + 1] * (micro_batches - 1))
    return peak


def minimum(base: int, ring: int, specs: Sequence[PageSpec], plan: Sequence[tuple[int, ...]], activation: int) -> MemoryPlan:
    """The smallest division that works: two accesses' pages at a time, gradients leave at once."""
    sizes = [spec.param_bytes for spec in specs]
    pairs = [sum(sizes[i] for i in set(a) | set(b)) for a, b in zip(plan, plan[1:], strict=False)]
    singles = [sum(sizes[i] for i in a) for a in plan]
    pool = max(pairs + singles, default=0)
    always = sum(size for size, spec in zip(sizes, specs, strict=True) if spec.name.startswith("small parameters"))
    slack = max((spec.param_bytes for spec in specs if spec.trainable), default=0)
    return MemoryPlan(
        base, ring, pool + always, 0, slack, activation, frozenset(), frozenset(), 0, *_traffic(specs, pool + always, 0, frozenset())
    )


def _traffic(specs: Sequence[PageSpec], pool: int, grads: int, resident: frozenset[int]) -> tuple[int, int]:
    """Bytes read and written by a step that visits every page once in the forward and once in the backward."""
    total = sum(spec.param_bytes for spec in specs)
    kept = min(pool, total)
    read = 2 * (total - kept)
    write = 0
    gradient = sum(spec.param_bytes for spec in specs if spec.trainable)
    spilled = max(0, gradient - grads)
    read += spilled
    write += spilled
    for spec in specs:
        if spec.trainable:
            write += spec.param_bytes + spec.state_bytes
            if spec.index not in resident:
                read += spec.state_bytes
    return read, write
