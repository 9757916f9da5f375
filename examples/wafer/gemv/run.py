"""GEMV on a grid of PEs, checked with numpy.

python run.py                              compiles and runs
python run.py --width=1 --height=1         on a single PE
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
parser.add_argument("--width", type=int, default=4, help="PEs")
parser.add_argument("--height", type=int, default=3, help="PEs")
parser.add_argument("--M", type=int, default=8, help="rows of a PE's block of A")
parser.add_argument("--N", type=int, default=6, help="columns of it")
args = parser.parse_args()

if args.name is None:
    from openwafer.wafer import compile

    sizes = {name: getattr(args, name) for name in ("width", "height", "M", "N")}
    args.name = str(compile(Path(__file__).with_name("layout.csl"), "out", arch=args.arch, params=sizes))

params = json.loads((Path(args.name) / "out.json").read_text())["params"]
width, height, M, N = (int(params[name]) for name in ("width", "height", "M", "N"))

rng = np.random.default_rng(0)
A = rng.standard_normal((height * M, width * N)).astype(np.float32)
x = rng.standard_normal(width * N).astype(np.float32)
b = rng.standard_normal(height * M).astype(np.float32)

runner = SdkRuntime(args.name)
runner.load()
runner.run()
options = {
    "streaming": False, "data_type": MemcpyDataType.MEMCPY_32BIT, "order": MemcpyOrder.ROW_MAJOR, "nonblock": False,
}  # fmt: skip

# Copies take (height, width, elements per PE): a block of A for each PE, x for the top row, b for the west column.
blocks = A.reshape(height, M, width, N).transpose(0, 2, 1, 3)
runner.memcpy_h2d(runner.get_id("A"), np.ascontiguousarray(blocks).ravel(), 0, 0, width, height, M * N, **options)
runner.memcpy_h2d(runner.get_id("x"), x, 0, 0, width, 1, N, **options)
runner.memcpy_h2d(runner.get_id("b"), b, 0, 0, 1, height, M, **options)
runner.launch("compute", nonblock=False)
y = np.zeros(height * M, np.float32)
runner.memcpy_d2h(y, runner.get_id("y"), width - 1, 0, 1, height, M, **options)
runner.stop()

np.testing.assert_allclose(y, A @ x + b, rtol=1e-5, atol=1e-5)
print(f"SUCCESS: {height * M} x {width * N} GEMV on {width} x {height} PEs")
