"""Published cycle counts of WSE-2 against the simulator's: the programs in wafer_timing/, one row each.

    .venv/bin/python benchmarks/wafer_timing.py

Sources: "study", a public WSE-2 reduce study on the official simulator (512x1 reduce table, vector operations, dense
GEMM loop); "HPDC", Near-Optimal Wafer-Scale Reduce, HPDC 2024, arXiv 2404.15888 (formulas, T_R = 2). The
formulas leave out what any vector operation takes at its start, 6 cycles by the study's N + 6: taken off in their rows.
Where the study's program is not described, ours is: see wafer_timing/. Deterministic; no timing of this machine.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from openwafer.wafer.csl.driver import Options, compile_file
from openwafer.wafer.sim.engine import Engine
from openwafer.wafer.sim.load import make_engine

FOLDER = Path(__file__).with_name("wafer_timing")
REDUCE = {512: 7218, 256: 9800, 128: 9297, 64: 9061, 32: 8973, 16: 8989, 8: 9117, 4: 9421, 2: 10055}
"""Chain length of the first phase -> cycles, 4,096 f32 on 512 x 1 PEs. Source: study."""
VECTORS = [
    ("@fmuls, DSRs", 0, 5124, 5130), ("@fmuls, DSRs", 0, 1028, 1034),
    ("@fmuls, DSRs, bank conflict", 1, 5124, 10254), ("@fmuls, DSRs, bank conflict", 1, 1028, 2062),
    ("@fmuls, DSDs", 2, 5124, 5158), ("@fadds, DSDs, two wide", 3, 5124, 2597),
    ("@fmuls, DSDs, bank conflict", 4, 1028, 2089),
]  # fmt: skip
"""What, case of vector_pe.csl, elements, cycles. Source: study."""
GEMM = [((8, 8, 32), 9756), ((32, 32, 32), 88795)]
"""N, K, M of a PE -> cycles. Source: study."""
RAMP, START = 2, 6


def main() -> None:
    rows = [*vector_rows(), *gemm_rows(), *reduce_rows(), *broadcast_rows()]
    print("| program | source | published | simulated | difference |\n|---|---|---|---|---|")
    for name, source, published, simulated in rows:
        print(f"| {name} | {source} | {published} | {simulated} | {100 * (simulated / published - 1):+.2f}% |")


def vector_rows() -> list[tuple[str, str, int, int]]:
    return [
        (f"{name}, {n}", "study", cycles, span(run("vector", N=n, case=case)))
        for name, case, n, cycles in VECTORS
    ]  # fmt: skip


def gemm_rows() -> list[tuple[str, str, int, int]]:
    return [(f"GEMM loop {s}", "study", cycles, span(run("gemm", N=s[0], K=s[1], M=s[2]))) for s, cycles in GEMM]


def reduce_rows() -> list[tuple[str, str, int, int]]:
    rows = []
    for step, cycles in REDUCE.items():
        engine = run("reduce", width=512, step=step, N=4096)
        rows.append((f"reduce 512 x 1, 4096, chains of {step}", "study", cycles, span(engine)))
    for width, n in ((16, 64), (64, 256), (256, 256), (512, 1024)):
        engine = run("reduce", width=width, step=width, N=n)
        rows.append((f"chain {width} PEs, {n}", "HPDC", n + (2 * RAMP + 2) * (width - 1), span(engine) - START))
    for width, step, n in ((64, 8, 256), (256, 16, 1024)):
        engine = run("reduce", width=width, step=step, N=n)
        stages = width // step
        formula = 2 * n + (2 * RAMP + 2) * (step - 1) + (stages - 2) * (2 * RAMP + 1 + step)
        rows.append((f"two-phase {width} PEs, chains of {step}, {n}", "HPDC", formula, span(engine) - START))
    return rows


def broadcast_rows() -> list[tuple[str, str, int, int]]:
    rows = []
    for width, n in ((16, 64), (64, 256), (512, 1024)):
        engine = run("broadcast", width=width, N=n)
        rows.append((f"broadcast {width} PEs, {n}", "HPDC", n + width - 1 + 2 * RAMP, span(engine, width - 1) - START))
    return rows


def run(name: str, **params: int) -> Engine:
    """The program, run to its end, on the whole rectangle."""
    image = compile_file(FOLDER / f"{name}_layout.csl", Options(params={k: str(v) for k, v in params.items()}))
    engine = make_engine(image)
    width, height = image.size
    functions = np.array([
        [next(s.value for s in image.programs[p].symbols if s.name == "main" and s.exported) for p in row]
        for row in image.program_of
    ])  # fmt: skip
    engine.launch(0, 0, width, height, functions, np.zeros(0, np.int64))
    stop = engine.run_commands(0, 0, width, height, 10_000_000)
    assert stop == "done", (name, params, stop, engine.waits()[:5])
    return engine


def span(engine: Engine, x: int = 0) -> int:
    """Cycles between the two readings of PE x, from `times`: two counters of three words."""
    program = engine.image.programs[engine.image.program_of[0, x]]
    symbol = next(s for s in program.symbols if s.name == "times" and s.kind == 0)
    words = np.frombuffer(engine.read(x, 0, symbol.value, 12), np.uint16).astype(np.int64)
    before, after = (int(w[0] | w[1] << 16 | w[2] << 32) for w in (words[:3], words[3:]))
    return after - before


if __name__ == "__main__":
    main()
