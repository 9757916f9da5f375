"""Heat on a square: a 5-point stencil on a grid of PEs, checked with numpy.

python run.py                              compiles and runs
python run.py --steps=50 --save=u.npy      more steps, result in a file
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

RATE = np.float32(0.2)

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--name", help="folder of the compiled program; left out: compile it now")
parser.add_argument("--arch", default="wse3", choices=["wse2", "wse3"])
parser.add_argument("--width", type=int, default=4, help="PEs")
parser.add_argument("--height", type=int, default=4, help="PEs")
parser.add_argument("--W", type=int, default=8, help="columns of a PE's tile")
parser.add_argument("--H", type=int, default=8, help="rows of it")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--save", help="write the result to this .npy file")
args = parser.parse_args()

if args.name is None:
    from openwafer.wafer import compile

    sizes = {name: getattr(args, name) for name in ("width", "height", "W", "H")}
    args.name = str(compile(Path(__file__).with_name("layout.csl"), "out", arch=args.arch, params=sizes))

params = json.loads((Path(args.name) / "out.json").read_text())["params"]
width, height, W, H = (int(params[name]) for name in ("width", "height", "W", "H"))


def step(u: np.ndarray) -> np.ndarray:
    """The same in numpy; outside of the square u is 0."""
    p = np.pad(u, 1)
    return u + RATE * (p[:-2, 1:-1] + p[2:, 1:-1] + p[1:-1, :-2] + p[1:-1, 2:] - 4 * u)


u = np.zeros((height * H, width * W), np.float32)
u[u.shape[0] // 4 : u.shape[0] // 2, u.shape[1] // 3 : u.shape[1] // 2 + 1] = 1  # a hot spot
expected = u.copy()
for _ in range(args.steps):
    expected = step(expected)

runner = SdkRuntime(args.name)
runner.load()
runner.run()
options = {
    "streaming": False, "data_type": MemcpyDataType.MEMCPY_32BIT, "order": MemcpyOrder.ROW_MAJOR, "nonblock": False,
}  # fmt: skip
cells = (H + 2) * (W + 2)  # a tile with its border
tiles = np.pad(u.reshape(height, H, width, W).transpose(0, 2, 1, 3), ((0, 0), (0, 0), (1, 1), (1, 1)))
runner.memcpy_h2d(runner.get_id("u"), tiles.ravel(), 0, 0, width, height, cells, **options)
runner.launch("compute", np.uint16(args.steps), RATE, nonblock=False)
runner.memcpy_d2h(back := np.zeros(tiles.size, np.float32), runner.get_id("u"), 0, 0, width, height, cells, **options)
runner.stop()

u = back.reshape(tiles.shape)[:, :, 1:-1, 1:-1].transpose(0, 2, 1, 3).reshape(u.shape)
np.testing.assert_allclose(u, expected, rtol=1e-5, atol=1e-6)
if args.save:
    np.save(args.save, u)
print(f"SUCCESS: {args.steps} steps of {u.shape[0]} x {u.shape[1]} cells on {width} x {height} PEs")
