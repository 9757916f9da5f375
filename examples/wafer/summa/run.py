"""SUMMA GEMM on P x P PEs, checked with numpy; says what share of the PEs' peak it reached.

python run.py --P=4 --M=8 --K=8 --N=8      compiles and runs
cs_python run.py --name out                runs what cslc compiled into out
"""

import argparse
import json
from pathlib import Path

import numpy as np

try:
    from cerebras.sdk.runtime.sdkruntimepybind import MemcpyDataType, MemcpyOrder, SdkRuntime
except ImportError:  # no cs_python: openwafer has the same names
    from openwafer.wafer import MemcpyDataType, MemcpyOrder, SdkRuntime

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--name", help="folder of the compiled program; left out: compile it now")
parser.add_argument("--arch", default="wse3", choices=["wse2", "wse3"])
parser.add_argument("--P", type=int, default=16, help="PEs along each side")
parser.add_argument("--M", type=int, default=64, help="rows of a PE's block of A; even, so that no bank conflicts")
parser.add_argument("--K", type=int, default=16, help="columns of a block of A, rows of a block of B; even")
parser.add_argument("--N", type=int, default=32, help="columns of a block of B")
args = parser.parse_args()

if args.name is None:
    from openwafer.wafer import compile

    sizes = {name: getattr(args, name) for name in ("P", "M", "K", "N")}
    args.name = str(compile(Path(__file__).with_name("layout.csl"), "out", arch=args.arch, params=sizes))

params = json.loads((Path(args.name) / "out.json").read_text())["params"]
P, M, K, N = (int(params[name]) for name in ("P", "M", "K", "N"))


def blocks(matrix: np.ndarray) -> np.ndarray:
    """(P, P, words): block (y, x) for PE (x, y), column after column."""
    height, width = matrix.shape[0] // P, matrix.shape[1] // P
    return matrix.reshape(P, height, P, width).transpose(0, 2, 3, 1).reshape(P, P, height * width).copy()


rng = np.random.default_rng(0)
A = rng.standard_normal((P * M, P * K)).astype(np.float32)
B = rng.standard_normal((P * K, P * N)).astype(np.float32)

runner = SdkRuntime(args.name)
runner.load()
runner.run()
options = {
    "streaming": False, "data_type": MemcpyDataType.MEMCPY_32BIT, "order": MemcpyOrder.ROW_MAJOR, "nonblock": False,
}  # fmt: skip
runner.memcpy_h2d(runner.get_id("A"), blocks(A).ravel(), 0, 0, P, P, M * K, **options)
runner.memcpy_h2d(runner.get_id("B"), blocks(B).ravel(), 0, 0, P, P, K * N, **options)
runner.launch("compute", nonblock=False)
C = np.zeros(P * P * M * N, np.float32)
cycles = np.zeros(P * P, np.uint32)
runner.memcpy_d2h(C, runner.get_id("C"), 0, 0, P, P, M * N, **options)
runner.memcpy_d2h(cycles, runner.get_id("cycles"), 0, 0, P, P, 1, **options)
runner.stop()

C = C.reshape(P, P, N, M).transpose(0, 3, 1, 2).reshape(P * M, P * N)
np.testing.assert_allclose(C, A @ B, rtol=1e-4, atol=1e-3)

# Peak: every PE does one f32 multiply-add a cycle.
useful, taken = P * M * K * N, int(cycles.max())
print(f"{useful} multiply-adds a PE in {taken} cycles: {useful / taken:.1%} of peak")
print(f"SUCCESS: {P * M} x {P * K} by {P * K} x {P * N} on {P} x {P} PEs")
