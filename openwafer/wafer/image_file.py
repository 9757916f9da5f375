"""An image in a folder: out.json and bin/out_rpc.json in the form host scripts read, and our own bin/image.npz.

image.npz holds one JSON text and the arrays; no pickle is ever written or read.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import types
import typing
import zipfile
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np

from openwafer.base.errors import OpenwaferError
from openwafer.wafer import image as image_module
from openwafer.wafer import isa
from openwafer.wafer.image import Image, SymbolKind
from openwafer.wafer.image_check import check

VERSION = 3


class ImageError(OpenwaferError):
    """A compiled program cannot be read."""


def save(image: Image, folder: Path) -> None:
    """Write an image; files of an earlier one are replaced."""
    (folder / "bin").mkdir(parents=True, exist_ok=True)
    (folder / "out.json").write_text(json.dumps({"params": image.params, "colors": image.colors}, indent=1) + "\n")
    (folder / "bin" / "out_rpc.json").write_text(json.dumps(rpc_table(image), indent=1) + "\n")
    arrays: dict[str, np.ndarray] = {}
    text = json.dumps({"version": VERSION, "image": _plain(image, arrays)})
    arrays["json"] = np.frombuffer(text.encode(), np.uint8)
    made = io.BytesIO()
    np.savez_compressed(made, **arrays)  # pyright: ignore[reportArgumentType]
    (folder / "bin" / "image.npz").write_bytes(made.getvalue())


def load(folder: Path) -> Image:
    """Read an image.

    Raises:
        ImageError: there is none, it is damaged, or another version made it.
    """
    path = folder / "bin" / "image.npz"
    if not path.is_file():
        raise ImageError(f"{folder} holds no compiled program: {path} is missing; compile it with cslc -o {folder}")
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
        content = json.loads(arrays["json"].tobytes().decode())
        if content["version"] != VERSION:
            raise ImageError(f"{path} has version {content['version']}, this program reads {VERSION}: compile it again")
        image = _decoder(Image)(content["image"], arrays)
        check(image)
        return image
    except (
        ValueError,
        KeyError,
        TypeError,
        IndexError,
        OSError,
        EOFError,
        zipfile.BadZipFile,
        UnicodeDecodeError,
    ) as error:
        raise ImageError(f"{path} is damaged ({type(error).__name__}: {error}); compile the program again") from None


def rpc_table(image: Image) -> dict[str, Any]:
    """What the host may name, with the ids SdkRuntime gives out."""
    rows = []
    for number, (name, (kind, mutable)) in enumerate(image.exports.items()):
        is_function = kind.startswith("fn")
        rows.append(
            {
                "id": number,
                "kind": "Func" if is_function else "Var",
                "name": name,
                "sym_name": name,
                "type": kind,
                "immutable": not mutable,
                "inputs": [],
            }
        )
    return {"rpc_symbols": rows}


def exported_names(image: Image) -> dict[str, SymbolKind]:
    """Names of all programs."""
    return {s.name: s.kind for program in image.programs for s in program.symbols if s.exported}


def _plain(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name), arrays) for f in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        name = f"array{len(arrays)}"
        arrays[name] = value
        return name
    if isinstance(value, dict):
        return [[_plain(k, arrays), _plain(v, arrays)] for k, v in value.items()]
    if isinstance(value, tuple | list):
        return [_plain(item, arrays) for item in value]
    return int(value) if isinstance(value, IntEnum) else value


_NAMES = {**vars(isa), **vars(image_module)}
_Decoder = Callable[[Any, dict[str, np.ndarray]], Any]


@functools.cache
def _decoder(kind: Any) -> _Decoder:
    """Makes a value of an annotated type from its plain form and the file's arrays."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is np.ndarray:
        return lambda value, arrays: arrays[value]
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _record(kind)
    if isinstance(kind, type) and issubclass(kind, IntEnum):
        members = {int(member): member for member in kind}
        return lambda value, arrays: members[value] if type(value) is int else kind(value)
    if origin in (typing.Union, types.UnionType):
        inner = _decoder(next(a for a in arguments if a is not type(None)))
        return lambda value, arrays: None if value is None else inner(value, arrays)
    if origin is tuple and len(arguments) == 2 and arguments[1] is Ellipsis:
        item = _decoder(arguments[0])
        return lambda value, arrays: tuple([item(own, arrays) for own in value])
    if origin is tuple:
        items = [_decoder(argument) for argument in arguments]
        return lambda value, arrays: tuple(make(own, arrays) for make, own in zip(items, value, strict=True))
    if origin is dict:
        key, content = map(_decoder, arguments)
        return lambda value, arrays: {key(k, arrays): content(v, arrays) for k, v in value}
    if kind in (int, str, bool, float):
        return _plain_value(kind)
    raise TypeError(f"{kind} in an image")


def _record(kind: type) -> _Decoder:
    hints = typing.get_type_hints(kind, _NAMES)
    fields = [(f.name, _decoder(hints[f.name])) for f in dataclasses.fields(kind)]

    def make(value: Any, arrays: dict[str, np.ndarray]) -> Any:
        return kind(*[decode(value[name], arrays) for name, decode in fields])

    return make


def _plain_value(kind: type) -> _Decoder:
    def take(value: Any, arrays: dict[str, np.ndarray]) -> Any:
        if not isinstance(value, kind):
            raise ValueError(f"expected {kind.__name__}, found {value!r}")
        return value

    return take
