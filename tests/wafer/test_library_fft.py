"""<kernels/fft/fft3d_layout> against numpy.fft."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openwafer.wafer import image_file
from openwafer.wafer.csl.diagnostics import CompileFailed
from openwafer.wafer.csl.driver import Options, compile_file
from openwafer.wafer.runtime.sdk_runtime import MemcpyDataType, MemcpyOrder, SdkRuntime
from openwafer.wafer.runtime.utils import memcpy_view
from tests.wafer.programs import start

LAYOUT = """
param n: u16;
param width: i16;
const memcpy = @import_module("<memcpy/get_params>", .{ .width = width, .height = width });
const fft = @import_module("<kernels/fft/fft3d_layout>", .{ .width = width, .memcpy = memcpy });
layout {
  @set_rectangle(width, width);
  fft.FFT_kernel(width, n, KIND);
}
"""
NORMS = ("backward", "ortho", "forward")


class Transform:
    """A compiled transform: what goes in and comes out as arrays [y][x][z]."""

    def __init__(self, folder: Path, n: int, width: int, kind: type, arch: str = "wse3") -> None:
        (folder / "layout.csl").write_text(LAYOUT.replace("KIND", "f16" if kind is np.float16 else "f32"))
        options = Options(arch=arch, params={"n": str(n), "width": str(width)})
        image_file.save(compile_file(folder / "layout.csl", options), folder / "out")
        self.n, self.width, self.kind = n, width, np.dtype(kind)
        self.data_type = MemcpyDataType.MEMCPY_16BIT if kind is np.float16 else MemcpyDataType.MEMCPY_32BIT
        self.runtime: SdkRuntime = start(folder)
        angle = 2 * np.pi * np.arange(n // 2) / n
        pairs = np.stack([np.cos(angle), np.sin(angle)], -1).ravel()
        self.put("twiddle_array", np.tile(pairs, width * width), n)

    def put(self, name: str, values: np.ndarray, count: int) -> None:
        words = np.zeros(values.size, np.uint32)
        memcpy_view(words, self.kind)[:] = values
        self.runtime.memcpy_h2d(
            self.runtime.get_id(name), words, 0, 0, self.width, self.width, count, streaming=False,
            data_type=self.data_type, order=MemcpyOrder.ROW_MAJOR, nonblock=False,
        )  # fmt: skip

    def get(self, name: str, count: int, data_type: MemcpyDataType) -> np.ndarray:
        words = np.zeros(self.width * self.width * count, np.uint32)
        self.runtime.memcpy_d2h(
            words, self.runtime.get_id(name), 0, 0, self.width, self.width, count, streaming=False,
            data_type=data_type, order=MemcpyOrder.ROW_MAJOR, nonblock=False,
        )  # fmt: skip
        return words

    def write(self, values: np.ndarray) -> None:
        w, t = self.width, self.n // self.width
        lines = values.reshape(w, t, w, t, self.n).transpose(0, 2, 4, 1, 3).ravel()  # [PE y][PE x][z][y][x]
        self.put("X", np.stack([lines.real, lines.imag], -1).ravel(), 2 * t * t * self.n)

    def read(self) -> np.ndarray:
        n, w, t = self.n, self.width, self.n // self.width
        parts = memcpy_view(self.get("X", 2 * t * t * n, self.data_type), self.kind).astype(np.float64)
        lines = (parts[0::2] + 1j * parts[1::2]).reshape(w, w, n, t, t)
        return lines.transpose(0, 3, 1, 4, 2).reshape(n, n, n)

    def cycles(self) -> np.ndarray:
        return self.get("fft_time", 2, MemcpyDataType.MEMCPY_32BIT).reshape(-1, 2)


def cube(n: int) -> np.ndarray:
    generator = np.random.default_rng(n)
    return generator.standard_normal((n, n, n)) + 1j * generator.standard_normal((n, n, n))


@pytest.mark.parametrize(
    ("n", "width", "kind", "tolerance"),
    [(4, 2, np.float32, 1e-5), (8, 2, np.float32, 1e-5), (4, 4, np.float32, 1e-5),
     (8, 1, np.float32, 1e-5), (2, 2, np.float32, 1e-5), (4, 2, np.float16, 2e-2)],
)  # fmt: skip
def test_against_numpy(tmp_path: Path, n: int, width: int, kind: type, tolerance: float) -> None:
    """Both ways, every norm, one after the other on the same PEs."""
    transform, given = Transform(tmp_path, n, width, kind), cube(n)
    for code, norm in enumerate(NORMS):
        for inverse, expected in ((0, np.fft.fftn), (1, np.fft.ifftn)):
            want = expected(given, norm=norm)
            transform.write(given)
            transform.runtime.launch("csfftExecC2C", np.int16(code), np.int16(inverse))
            np.testing.assert_allclose(transform.read(), want, atol=tolerance * np.abs(want).max())
    elapsed = transform.cycles()
    assert np.all(elapsed[:, 0] > n) and not np.any(elapsed[:, 1])
    transform.runtime.stop()


def test_on_wse2(tmp_path: Path) -> None:
    transform, given = Transform(tmp_path, 4, 2, np.float32, "wse2"), cube(4)
    transform.write(given)
    transform.runtime.launch("csfftExecC2C", np.int16(0), np.int16(0))
    np.testing.assert_allclose(transform.read(), np.fft.fftn(given), atol=1e-4)
    transform.runtime.stop()


def test_real_numbers_there_and_back(tmp_path: Path) -> None:
    """R2C ignores imaginary parts; C2R of the spectrum gives the real numbers again."""
    transform, given = Transform(tmp_path, 8, 2, np.float32), cube(8)
    transform.write(given)
    transform.runtime.launch("csfftExecR2C", np.int16(0))
    np.testing.assert_allclose(transform.read(), np.fft.fftn(given.real), atol=1e-4)
    transform.runtime.launch("csfftExecC2R", np.int16(0))
    np.testing.assert_allclose(transform.read(), given.real, atol=1e-5)
    transform.runtime.stop()


@pytest.mark.parametrize(("n", "width", "text"), [(12, 4, "power of two"), (8, 3, "width must divide n")])
def test_sizes_that_do_not_fit(tmp_path: Path, n: int, width: int, text: str) -> None:
    with pytest.raises(CompileFailed, match=text):
        Transform(tmp_path, n, width, np.float32)
