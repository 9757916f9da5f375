"""The two architectures: what a program may use, and one timing table each.

Every number says where it comes from: documented (public SDK documentation), inferred (fitted to published figures)
or chosen (ours, where nothing is known). docs/machine.md says what each timing means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum

MEMORY_BYTES = 48 * 1024
"""SRAM of a PE. Documented."""
NUM_COLORS = 24
"""Routable colors. Documented."""
NUM_MICROTHREADS = 8
"""Documented for WSE-3; WSE-2 ties a microthread to a queue, of which there are 8."""
NUM_CONTROL_TASKS = 64
"""Control task ids. Documented."""
NUM_DSRS = 64
"""Explicit DSRs per file; chosen, no public figure."""
TEARDOWN_TASK_ID = 29
"""System task of teardown and of an empty flushed queue. Documented."""


class Port(IntEnum):
    """Where a wavelet enters or leaves a router. HOST is ours: an ideal link to the host, one per PE."""

    NORTH = 0
    SOUTH = 1
    EAST = 2
    WEST = 3
    RAMP = 4
    HOST = 5


OPPOSITE = {Port.NORTH: Port.SOUTH, Port.SOUTH: Port.NORTH, Port.EAST: Port.WEST, Port.WEST: Port.EAST}


class Basis(StrEnum):
    """What stands behind a number."""

    DOCUMENTED = "documented"
    INFERRED = "inferred"
    CHOSEN = "chosen"


@dataclass(frozen=True)
class Cycles:
    """One timing.

    Args:
        value: cycles
        basis: what stands behind it
        source: where that can be read
    """

    value: int
    basis: Basis
    source: str


@dataclass(frozen=True)
class Arch:
    """What a PE and its router offer.

    Args:
        name: as in `--arch`
        max_fabric: width and height in tiles, halo included
        num_input_queues, num_output_queues: per PE
        input_queue_depths, output_queue_depths: wavelets, per queue id
        router_queue_depth: wavelets a router holds per port and color
        local_task_ids: ids a local task may have
        data_task_is_queue: a data task's id is an input queue, not a color
        switch_colors: colors that have switches
        switch_sets_both: one switch position may change rx and tx
        fabric_inputs: fabric operands a DSD operation may read
        simd_bits: width of the datapath for ops that use all of it
        timing: cycles by name
    """

    name: str
    max_fabric: tuple[int, int]
    num_input_queues: int
    num_output_queues: int
    input_queue_depths: tuple[int, ...]
    output_queue_depths: tuple[int, ...]
    router_queue_depth: int
    local_task_ids: range
    data_task_is_queue: bool
    switch_colors: frozenset[int]
    switch_sets_both: bool
    fabric_inputs: int
    simd_bits: int
    timing: Mapping[str, Cycles]


_STUDY = "public WSE-2 reduce study, official simulator: 512x1 reduce table, vector-op table"
_HPDC = "Near-Optimal Wafer-Scale Reduce, HPDC 2024, arXiv 2404.15888"


def _timing(hop: int) -> dict[str, Cycles]:
    inferred, chosen = Basis.INFERRED, Basis.CHOSEN
    return {
        "hop": Cycles(hop, inferred, _STUDY),
        "ramp_in": Cycles(2, inferred, f"{_HPDC}: T_R"),
        "ramp_out": Cycles(2, inferred, f"{_HPDC}: T_R"),
        "float_latency": Cycles(1, inferred, f"{_STUDY}: 6 cycles a stage that adds, {_HPDC}: 5 without arithmetic"),
        "task_start": Cycles(10, inferred, "third-party estimate of a task switch"),
        "scalar": Cycles(1, chosen, "one issue per cycle"),
        "immediate": Cycles(0, chosen, "a constant is part of the instruction that uses it"),
        "load": Cycles(1, chosen, "SRAM is read in the pipeline"),
        "store": Cycles(1, chosen, "SRAM is written in the pipeline"),
        "multiply": Cycles(1, chosen, "pipelined"),
        "divide_int": Cycles(20, chosen, "no divider is documented"),
        "divide_float": Cycles(50, inferred, "comment in the public blas.csl"),
        "branch": Cycles(2, chosen, "taken jump"),
        "call": Cycles(2, chosen, "call and return, each"),
        "task_bit": Cycles(1, chosen, "activate, block, unblock"),
        "dsd_load": Cycles(9, inferred, f"{_STUDY}: N+34 against N+6, three operands and the set-up"),
        "dsd_setup": Cycles(1, inferred, f"{_STUDY}: the same"),
        "vector_issue": Cycles(4, inferred, f"{_STUDY}: N+6, the reads of the counter included"),
        "timestamp": Cycles(2, inferred, f"{_STUDY}: the same"),
        "config": Cycles(2, chosen, "read or write of a configuration register"),
    }


def _depths(*pairs: tuple[int, int]) -> tuple[int, ...]:
    return tuple(depth for count, depth in pairs for _ in range(count))


WSE2 = Arch(
    name="wse2",
    max_fabric=(757, 996),
    num_input_queues=8,
    num_output_queues=6,
    input_queue_depths=_depths((2, 6), (2, 4), (4, 2)),
    output_queue_depths=_depths((2, 2), (2, 6), (2, 2)),
    router_queue_depth=4,
    local_task_ids=range(31),
    data_task_is_queue=False,
    switch_colors=frozenset(range(NUM_COLORS)),
    switch_sets_both=False,
    fabric_inputs=2,
    simd_bits=64,
    timing=_timing(hop=1),
)

WSE3 = Arch(
    name="wse3",
    max_fabric=(762, 1176),
    num_input_queues=8,
    num_output_queues=8,
    input_queue_depths=_depths((2, 8), (6, 4)),
    output_queue_depths=_depths((8, 8)),
    router_queue_depth=4,
    local_task_ids=range(8, 31),
    data_task_is_queue=True,
    switch_colors=frozenset((*range(10), 12, 13, 16, 17, 20, 21)),
    switch_sets_both=True,
    fabric_inputs=1,
    simd_bits=128,
    timing=_timing(hop=1),
)

ARCHITECTURES = {"wse2": WSE2, "wse3": WSE3}
