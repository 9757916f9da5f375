"""Elements a vector operation handles in a cycle when all its operands lie in memory.

Documented in the public SDK documentation (appendix on SIMD); f32 multiplication and multiply-add are not in its
table and take one element a cycle, which a published measurement of @fmuls confirms (N + 6 cycles).
"""

from __future__ import annotations

from openwafer.wafer.isa import V

_ROWS: dict[tuple[int, int], str] = {
    (4, 8): "ADD16 SUB16 AND16 OR16 XOR16 MOV16 FABSH FADDH FSUBH FMULH FMACH FMOVH FNEGH",
    (2, 4): "FADDS FSUBS FMOVS FNEGS FABSS FNORMS FSCALES FADDHS FMACHS MOV32",
    (1, 8): "ADDC16 FMAXH FH2XP16 XP162FH",
    (1, 4): "FMAXS SLL16 SLR16 SAR16 FH2S FS2H FS2XP16 XP162FS CLZ CTZ POPCNT FNORMH FSCALEH",
    (1, 1): "FMULS FMACS DFILT",
}
WIDTHS = {V[name]: width for width, names in _ROWS.items() for name in names.split()}
"""Operation -> (WSE-2, WSE-3)."""


def width(op: V, arch: str, strides: tuple[int, ...]) -> int:
    """Elements a cycle; strides of the memory operands, in elements.

    A stride of 0, 1 or one that is 2, 3, 5 or 6 modulo 8 runs at full width, others that are 1 or 7 at 2, the rest at 1
    (the documentation contradicts itself on 4: chosen).
    """
    full = WIDTHS[op][0 if arch == "wse2" else 1]
    for stride in strides:
        if stride in (0, 1) or stride % 8 in (2, 3, 5, 6):
            continue
        full = min(full, 2 if stride % 8 in (1, 7) else 1)
    return full
