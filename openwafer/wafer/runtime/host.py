"""What a host script in plain Python needs besides SdkRuntime: the compiler as a function."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from openwafer.base.errors import OpenwaferError
from openwafer.wafer import image_file
from openwafer.wafer.arch import ARCHITECTURES
from openwafer.wafer.csl.driver import Options, compile_file


def compile(
    layout: str | os.PathLike[str],
    out: str | os.PathLike[str] = "out",
    *,
    arch: str = "wse2",
    params: Mapping[str, int | float | str] | None = None,
    colors: Mapping[str, int] | None = None,
    import_paths: Sequence[str | os.PathLike[str]] = (),
) -> Path:
    """Compile a root file into the folder `out`, as `cslc` does, and return the folder: what SdkRuntime takes.

    The fabric is as large as the program needs it.

    Args:
        layout: the root file
        arch: "wse2" or "wse3"
        params, colors: of the root file

    Raises:
        CompileFailed: the program has errors; the text shows them with their source lines.
    """
    if arch not in ARCHITECTURES:
        raise OpenwaferError(f'arch="{arch}" does not exist; there are {", ".join(sorted(ARCHITECTURES))}')
    texts = {name: str(value) for name, value in (params or {}).items()}
    paths = tuple(Path(path) for path in import_paths)
    image = compile_file(Path(layout), Options(arch, params=texts, colors=dict(colors or {}), import_paths=paths))
    image_file.save(image, Path(out))
    return Path(out)
