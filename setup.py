"""Builds the native kernels where a C compiler is found; what is declared as data is in pyproject.toml.

Each is plain C with a C ABI, loaded through ctypes. Without a compiler setuptools says so and the install goes on: the
pure-torch path gives the same results, slower.
"""

from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

# No -ffast-math and no contraction: the kernels promise torch's bits. The two -fno flags change no value.
FLAGS = ["-std=c11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]


class BuildKernels(build_ext):
    """Extensions that are plain shared libraries: no Python ABI in the name, no module entry point."""

    def get_ext_filename(self, fullname: str) -> str:
        return f"{fullname.replace('.', '/')}.so"

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


setup(
    ext_modules=[
        Extension(
            "openwafer.streaming._kernels",
            sources=["openwafer/streaming/kernels.c"],
            libraries=["m"],
            extra_compile_args=FLAGS,
            optional=True,
        ),
        Extension(
            "openwafer.wafer.sim._core",
            sources=["openwafer/wafer/sim/core/core.c"],
            depends=glob("openwafer/wafer/sim/core/*.h"),
            libraries=["m"],
            extra_compile_args=[*FLAGS, "-fvisibility=hidden"],
            optional=True,
        ),
    ],
    cmdclass={"build_ext": BuildKernels},
)
