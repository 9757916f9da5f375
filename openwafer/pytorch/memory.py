"""Divides a memory budget: what a step must have, and what the rest is best used for.

A step must hold the interpreter, the pages in use and on their way, gradients on their way out, and the activations
of the layer at work beside the inputs of all others. What is left keeps activations that would be recomputed, the
last layers first, since they wait the shortest; then gradients, parameters and optimizer state that would go to disk
and back. All sizes are predicted before anything is allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from openwafer.base.errors import BudgetError
from openwafer.base.units import format_bytes
from openwafer.pytorch.profile import Profile
from openwafer.streaming.page import PageSpec

# Beside what is counted: the allocator's rounding and libraries' scratch memory; chosen from measurements here.
RECOMPUTED_SHARE = 0.29  # of a layer's work: its forward, a third, less the last product, which no one needs again
CLEAR_GAIN = 0.03
HIDDEN_SHARE = 0.7  # traffic in rounds may take at most this part of the arithmetic's time
HANDLED_BYTES_S = 7e9  # hidden traffic takes processors too: system calls, checksums, copies; measured on 2 cores
SLACK_BYTES = 48 << 20
SLACK_SHARE = 0.10  # of activations: holes in the heap between tensors that stay and tensors that go
SLACK_SHARE_ROUNDS = 0.13  # the same where gradients come back and leave again between activations


@dataclass(frozen=True)
class MemoryPlan:
    """How the budget is divided; all in bytes.

    Attributes:
        base_bytes: the process as it is without pages and activations.
        pool_bytes: parameters in use and on their way; grad_bytes: gradients that may wait for their update in memory.
        working_bytes: most that activations and gradients take together at any moment.
        read_bytes, write_bytes: disk traffic of a step.
        group: micro-batches that run layer by layer together; the groups of a step, `rounds`, run one after another.
    """

    base_bytes: int
    ring_bytes: int
    pool_bytes: int
    grad_bytes: int
    working_bytes: int
    keep: frozenset[int]
    resident: frozenset[int]
    resident_bytes: int
    read_bytes: int
    write_bytes: int
    group: int = 1
    rounds: int = 1

    @property
    def peak_bytes(self) -> int:
        """Predicted peak resident set of the process."""
        counted = self.base_bytes + self.ring_bytes + self.pool_bytes + self.working_bytes + self.resident_bytes
        share = SLACK_SHARE if self.rounds == 1 else SLACK_SHARE_ROUNDS
        return counted + int(self.working_bytes * share) + SLACK_BYTES


@dataclass(frozen=True)
class Demand:
    """What a step asks of memory and disk, whatever the division.

    Attributes:
        accesses: sets of pages in the order of a round; `shared`: pages that stay for the whole step.
        profile: activations of one micro-batch; None if the model could not be run on fake tensors, or runs elsewhere.
        micro_batches: those that run together in a round; `rounds`: how many follow one another in a step.
        flops_s, moved_bytes_s, read_bytes_s, write_bytes_s: what this machine does in a second, to weigh
            recomputation against traffic.
        on_device: the memory is a device's and the traffic that of its link: every step begins with new parameters,
            and gradients do not wait there.
    """

    base_bytes: int
    ring_bytes: int
    specs: tuple[PageSpec, ...]
    shared: tuple[int, ...]
    accesses: tuple[tuple[int, ...], ...]
    profile: Profile | None
    micro_batches: int
    flops_s: float = 1e11
    moved_bytes_s: float = 1e10
    read_bytes_s: float = 1e9
    write_bytes_s: float = 1e9
    on_device: bool = False
    rounds: int = 1


def least(demand: Demand, keep: frozenset[int] = frozenset()) -> MemoryPlan:
    """The smallest division that works: the pages of two accesses at a time, gradients leave at once."""
    sizes = [spec.param_bytes for spec in demand.specs]
    cycle = [*demand.accesses, *demand.accesses[:1]]
    pairs = [sum(sizes[i] for i in set(a) | set(b)) for a, b in zip(cycle, cycle[1:], strict=False)]
    pool = max(pairs, default=max(sizes, default=0)) + sum(sizes[i] for i in demand.shared)
    if demand.profile is not None and demand.profile.layers:
        # The layer at which the forward turns round needs its activations at once: keeping them costs nothing.
        keep |= {demand.profile.layers[-1]}
    working = working_peak(demand, keep, 0)
    plan = MemoryPlan(
        base_bytes=demand.base_bytes,
        ring_bytes=demand.ring_bytes,
        pool_bytes=pool,
        grad_bytes=0,
        working_bytes=working,
        keep=keep,
        resident=frozenset(),
        resident_bytes=0,
        read_bytes=0,
        write_bytes=0,
        group=demand.micro_batches,
        rounds=demand.rounds,
    )
    return _with_traffic(demand, plan)


def working_peak(demand: Demand, keep: frozenset[int], grad_bytes: int) -> int:
    """Most that activations and gradients take together, when the layers of `keep` keep their activations.

    Gradients fill their share while the backward empties the activations, and drain in the next step's forward; from
    the second round on they wait all the time, and each page's come back for more to be added.
    """
    trainable = [spec for spec in demand.specs if spec.trainable]
    total = sum(spec.param_bytes for spec in trainable)
    largest = max((spec.param_bytes for spec in trainable), default=0)
    profile = demand.profile
    if profile is None or not profile.layers:
        return min(total, grad_bytes) + largest
    others = demand.micro_batches - 1
    last = len(profile.layers) - 1
    saved_before, held_before = [0], [0]
    for visit, layer in enumerate(profile.layers):
        saved = profile.saved_bytes[visit]
        saved_before.append(saved_before[-1] + saved)
        held_before.append(held_before[-1] + (saved if layer in keep else profile.output_bytes[visit]))
    again = demand.rounds > 1
    waiting = [min(total, grad_bytes)]
    for access in demand.accesses[: last + 1]:
        updated = sum(demand.specs[i].param_bytes for i in access if demand.specs[i].trainable)
        waiting.append(waiting[-1] if again else max(0, waiting[-1] - updated))
    peak = made = leaving = 0
    forward, backward = 0, last
    for segment in profile.segments:
        if not segment.backward:
            forward = segment.visit if segment.visit >= 0 else min(forward + 1, last)
            own = segment.peak_bytes - saved_before[forward]
            # The last micro-batch to come here: the others have left theirs of this layer already.
            passed = held_before[forward + (segment.visit >= 0)]
            held = held_before[forward] + passed * others
            peak = max(peak, own + held + waiting[forward])
            continue
        backward = segment.visit if segment.visit >= 0 else backward
        own = segment.peak_bytes - saved_before[backward]
        carried = max(0, segment.live_bytes - saved_before[backward + 1])
        held = held_before[backward] + (held_before[backward + 1] + carried) * others
        new = segment.new_gradient_bytes
        if again:  # beside what the rounds before have made, a gradient on its way to be added to it
            new += _largest_param(demand, backward)
            made = total - segment.new_gradient_bytes
        peak = max(peak, own + held + new + min(made, grad_bytes + leaving))
        made += segment.new_gradient_bytes
        leaving = segment.new_gradient_bytes or leaving
    return peak


def _largest_param(demand: Demand, visit: int) -> int:
    """Bytes of the largest parameter of a visit's layer."""
    specs = [demand.specs[index] for index in demand.accesses[visit]]
    return max((param.numel * spec.dtype.itemsize for spec in specs for param in spec.params), default=0)


def in_memory(demand: Demand, keep: frozenset[int] = frozenset()) -> MemoryPlan:
    """The division of a job without a disk: every page, gradient and state stays."""
    trainable = [spec for spec in demand.specs if spec.trainable]
    return replace(
        least(demand, keep),
        ring_bytes=0,
        pool_bytes=sum(spec.param_bytes for spec in demand.specs),
        grad_bytes=sum(spec.param_bytes for spec in trainable),
        working_bytes=working_peak(demand, keep, sum(spec.param_bytes for spec in trainable)),
        resident=frozenset(spec.index for spec in trainable),
        resident_bytes=sum(spec.state_bytes for spec in trainable),
        read_bytes=0,
        write_bytes=0,
    )


def divide(demand: Demand, budget_bytes: int, start: MemoryPlan) -> MemoryPlan:
    """Divide a budget: `start` is what must be; what is left goes where it saves the most time.

    Raises:
        BudgetError: the budget is too small; names the smallest that works.
    """
    plan = start
    if plan.peak_bytes > budget_bytes:
        raise BudgetError(
            f"{'device_' * demand.on_device}memory={format_bytes(budget_bytes)} is too small: this step needs at least "
            f"{_round_up(plan.peak_bytes)} ({describe(plan)}). Give more memory, a smaller batch, another number of "
            "micro_batches (each holds a gradient of its own for tied weights), or cut large layers with limit="
        )
    layers = list(demand.profile.layers) if demand.profile is not None else []
    waiting = [layer for layer in reversed(list(dict.fromkeys(layers))) if layer not in plan.keep]
    while True:
        candidates = []
        if waiting:
            keep = plan.keep | {waiting[0]}
            candidates.append(replace(plan, keep=keep, working_bytes=working_peak(demand, keep, plan.grad_bytes)))
        more = _less_traffic(demand, plan)
        if more is not None:
            candidates.append(_with_traffic(demand, more))
        candidates = [c for c in candidates if c.peak_bytes <= budget_bytes]
        if not candidates:
            return plan
        better = min(candidates, key=lambda c: (predict_seconds(demand, c), -len(c.keep)))
        if better.keep != plan.keep:
            waiting = waiting[1:]
        plan = better


def divide_rounds(
    demand: Demand, budget_bytes: int, start: Callable[[Demand], MemoryPlan]
) -> tuple[Demand, MemoryPlan]:
    """Divide a budget, and the micro-batches of a step into rounds.

    Together, every layer is loaded once a pass, but each micro-batch holds activations of its own. Fewer at a time
    leave memory to keep activations, parameters and gradients, and load every layer that does not stay once a round:
    chosen if it saves clearly more time than a prediction may be wrong by, while the traffic stays hidden behind
    arithmetic; or if nothing else fits.

    Args:
        demand: of all micro-batches together.
        start: what must be, for a demand.

    Raises:
        BudgetError: the budget is too small, however they are divided; names the smallest that works.
    """

    def seconds(rounds: Demand, plan: MemoryPlan) -> float:
        handling = 0 if demand.on_device else (plan.read_bytes + plan.write_bytes) / HANDLED_BYTES_S
        return max(compute_seconds(rounds, plan) + handling, io_seconds(rounds, plan))

    count = demand.micro_batches
    best: tuple[Demand, MemoryPlan] | None = None
    refusals: list[BudgetError] = []
    for group in sorted((g for g in range(1, count + 1) if count % g == 0), reverse=True):
        rounds = replace(demand, micro_batches=group, rounds=count // group)
        try:
            plan = divide(rounds, budget_bytes, start(rounds))
        except BudgetError as refusal:
            refusals.append(refusal)
            continue
        hidden = io_seconds(rounds, plan) < HIDDEN_SHARE * compute_seconds(rounds, plan)
        if best is None or (hidden and seconds(rounds, plan) < (1 - CLEAR_GAIN) * seconds(*best)):
            best = rounds, plan
    if best is None:
        raise refusals[-1]
    return best


def predict_seconds(demand: Demand, plan: MemoryPlan) -> float:
    """Seconds of a step: the longer of computing and moving bytes."""
    return max(compute_seconds(demand, plan), io_seconds(demand, plan))


def compute_seconds(demand: Demand, plan: MemoryPlan) -> float:
    """Seconds of arithmetic, recomputation and waiting for gradients that come back to be added to included."""
    if demand.profile is None:
        return 0.0
    visits = demand.profile.layers
    again = sum(layer not in plan.keep for layer in visits) / max(1, len(visits))
    once = demand.profile.flops / demand.flops_s + demand.profile.moved_bytes / demand.moved_bytes_s
    arithmetic = once * demand.micro_batches * demand.rounds * (1 + again * RECOMPUTED_SHARE)
    back = 0
    if demand.rounds > 1 and plan.write_bytes:
        back = gradient_spills(demand, plan.grad_bytes) * (demand.rounds - 1)
    return arithmetic + back / demand.read_bytes_s


def io_seconds(demand: Demand, plan: MemoryPlan) -> float:
    """Seconds of disk traffic, reads and writes side by side."""
    return max(plan.read_bytes / demand.read_bytes_s, plan.write_bytes / demand.write_bytes_s)


def describe(plan: MemoryPlan) -> str:
    """The parts of a plan in words."""
    parts = {
        "the process itself": plan.base_bytes,
        "parameters in use": plan.pool_bytes,
        "activations and gradients": plan.working_bytes,
        "optimizer state": plan.resident_bytes,
        "buffers for the disk": plan.ring_bytes,
    }
    return ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items() if size)


def _round_up(num_bytes: int) -> str:
    return f"{-(-num_bytes // (1 << 20))}MiB"


def _less_traffic(demand: Demand, plan: MemoryPlan) -> MemoryPlan | None:
    """The plan with one step more of memory spent against disk traffic: gradients, parameters, then state."""
    trainable = [spec for spec in demand.specs if spec.trainable]
    step = max((spec.param_bytes for spec in trainable), default=0)
    if not demand.on_device and plan.grad_bytes < sum(spec.param_bytes for spec in trainable):
        grad_bytes = plan.grad_bytes + step
        return replace(plan, grad_bytes=grad_bytes, working_bytes=working_peak(demand, plan.keep, grad_bytes))
    if plan.pool_bytes < sum(spec.param_bytes for spec in demand.specs):
        return replace(plan, pool_bytes=plan.pool_bytes + step)
    for spec in trainable:
        if spec.index not in plan.resident and spec.state_bytes:
            resident_bytes = plan.resident_bytes + spec.state_bytes
            return replace(plan, resident=plan.resident | {spec.index}, resident_bytes=resident_bytes)
    return None


def _with_traffic(demand: Demand, plan: MemoryPlan) -> MemoryPlan:
    trainable = [spec for spec in demand.specs if spec.trainable]
    read = parameter_reads(demand, plan.pool_bytes) * demand.rounds
    read += sum(spec.state_bytes for spec in trainable if spec.index not in plan.resident)
    write = sum(spec.param_bytes + spec.state_bytes for spec in trainable)
    spilled = 0 if demand.on_device else gradient_spills(demand, plan.grad_bytes) * demand.rounds
    return replace(plan, read_bytes=read + spilled, write_bytes=write + spilled)


def gradient_spills(demand: Demand, grad_bytes: int) -> int:
    """Bytes of gradients that go to disk and back in a round: whole pages, those made first, until the rest fits."""
    order: list[int] = []
    for access in reversed(demand.accesses):  # a page's gradient is final at its last use in the backward
        order += [i for i in access if demand.specs[i].trainable and i not in order]
    order.reverse()
    spilled, waiting = 0, []
    for index in [*order, *(i for i in demand.shared if i not in order)]:
        waiting.append(demand.specs[index].param_bytes)
        while waiting and sum(waiting) > grad_bytes:
            spilled += waiting.pop(0)
    return spilled


def parameter_reads(demand: Demand, pool_bytes: int) -> int:
    """Bytes of parameters read in one cycle of accesses, once the pool is warm (a device's is empty at the start).

    Follows the streamer's rule: what comes next is fetched ahead, in order, as long as it fits when only pages that
    are used later than it leave, the farthest first.
    """
    sizes = [spec.param_bytes for spec in demand.specs]
    if sum(sizes) <= pool_bytes:
        return sum(sizes) if demand.on_device else 0
    shared = set(demand.shared)
    sequence = [tuple(i for i in dict.fromkeys(access) if i not in shared) for access in demand.accesses]
    length = len(sequence)
    room = pool_bytes - sum(sizes[i] for i in shared)
    present: set[int] = set()
    reads = sum(sizes[i] for i in shared) if demand.on_device else 0

    def bring(index: int, position: int, distance: int, held: set[int]) -> bool:
        """Make room by evicting pages used later than `distance`, and read."""
        nonlocal reads
        uses = _next_uses(sequence, position)
        later = [i for i in present - held if uses.get(i, 2 * length) > distance]
        later.sort(key=lambda i: uses.get(i, 2 * length), reverse=True)
        used = sum(sizes[i] for i in present)
        if distance > 0 and used - sum(sizes[i] for i in later) + sizes[index] > room:
            return False
        while used + sizes[index] > room and later:
            victim = later.pop(0)
            present.discard(victim)
            used -= sizes[victim]
        present.add(index)
        if position >= length:
            reads += sizes[index]
        return True

    for position in range(2 * length):
        if demand.on_device and position == length:
            present.clear()
        held = set(sequence[position % length])
        for index in sequence[position % length]:
            if index not in present:
                bring(index, position, 0, held)
        ahead = [(d, index) for d in range(1, length) for index in sequence[(position + d) % length]]
        for distance, index in ahead:
            if index not in present and not bring(index, position, distance, held):
                break
    return reads


def _next_uses(sequence: Sequence[tuple[int, ...]], position: int) -> dict[int, int]:
    uses: dict[int, int] = {}
    for distance in range(len(sequence)):
        for index in sequence[(position + distance) % len(sequence)]:
            uses.setdefault(index, distance)
    return uses
