"""Source files: text, and line and column of an offset."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path

from openwafer.base.errors import OpenwaferError

MAX_SOURCE_BYTES = 16 << 20


class SourceError(OpenwaferError):
    """A source file cannot be read."""


@dataclass(frozen=True)
class Source:
    """One file. `path` is printed in diagnostics as it was given."""

    path: str
    text: str
    line_starts: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        starts = (0, *(i + 1 for i, char in enumerate(self.text) if char == "\n"))
        object.__setattr__(self, "line_starts", starts)

    def position(self, offset: int) -> tuple[int, int]:
        """Line and column of a character, both from 1."""
        line = bisect_right(self.line_starts, offset)
        return line, offset - self.line_starts[line - 1] + 1

    def line(self, number: int) -> str:
        """Text of a line (from 1) without its end."""
        start = self.line_starts[number - 1]
        end = self.line_starts[number] - 1 if number < len(self.line_starts) else len(self.text)
        return self.text[start:end].rstrip("\r")


class Sources:
    """The files of one compilation, each with an index that spans refer to."""

    def __init__(self) -> None:
        self._sources: list[Source] = []

    def __getitem__(self, index: int) -> Source:
        return self._sources[index]

    def add(self, source: Source) -> int:
        """Its index."""
        self._sources.append(source)
        return len(self._sources) - 1


def read_source(path: Path, shown: str | None = None) -> Source:
    """A file of UTF-8 text.

    Raises:
        SourceError: missing, a folder, not readable, too large, or not UTF-8.
    """
    name = shown or str(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SOURCE_BYTES + 1)
    except FileNotFoundError:
        raise SourceError(f"{name}: no such file") from None
    except IsADirectoryError:
        raise SourceError(f"{name}: is a folder, a CSL file was expected") from None
    except OSError as error:
        raise SourceError(f"{name}: cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise SourceError(f"{name!r} is not a path: {error}") from None
    if len(data) > MAX_SOURCE_BYTES:
        raise SourceError(f"{name}: larger than {MAX_SOURCE_BYTES >> 20} MiB, too large for a CSL file")
    try:
        return Source(name, data.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise SourceError(f"{name}: byte {error.start} is not UTF-8 text") from None
