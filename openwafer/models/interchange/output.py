"""A folder or a file that appears whole or not at all.

What is written goes into a hidden neighbour that carries the process's number; it takes the name asked for in one
rename when all is done, and is removed when something fails. What a killed process left is removed by the next.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from openwafer.base.errors import CheckpointError, ConfigError


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to write into, which is called `path` when the block ends well.

    Raises:
        ConfigError: path exists.
        CheckpointError: the file system does not take it.
    """
    with _partial(path) as partial:
        partial.mkdir()
        yield partial
        for file in partial.rglob("*"):
            _sync(file)
        _sync(partial)


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A path to write a file to, which is called `path` when the block ends well. Raises as `new_folder`."""
    with _partial(path) as partial:
        yield partial
        _sync(partial)


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    if path.exists() or path.is_symlink():
        raise ConfigError(f"{path} exists: give a name that does not exist yet, or remove it")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(path)
        yield partial
        os.rename(partial, path)
        _sync(path.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        _remove(partial)


def _remove_left_over(path: Path) -> None:
    for other in path.parent.glob(f".{path.name}.*.partial"):
        number = other.name.removeprefix(f".{path.name}.").removesuffix(".partial")
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            _remove(other)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
