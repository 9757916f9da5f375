"""What the compiler tells its user: `path:line:col: error: message`, the source line, a caret, notes.

Errors are collected, up to MAX_ERRORS and one at a place; a part that finds one raises CslError and whoever can go on
catches it, at the border of a statement, a declaration or a program. What then meets the gap raises Cascade.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass, replace

from openwafer.base.errors import OpenwaferError
from openwafer.wafer.csl.ast import Span
from openwafer.wafer.csl.source import Sources

MAX_ERRORS = 20
LIKENESS = 0.67
"""Of two names, for the one to be taken for a misspelling of the other; chosen."""
MAX_LISTED = 12
"""How many names a message lists when none of them is near."""
_TAB = "    "


@dataclass(frozen=True)
class Diagnostic:
    """An error, a warning, and what helps to understand it.

    Args:
        message: one line
        span: where; None for the compilation as a whole
        notes: (text, where or None)
        severity: "error", "warning" or "note"
    """

    message: str
    span: Span | None
    notes: tuple[tuple[str, Span | None], ...] = ()
    severity: str = "error"


class CslError(Exception):
    """One mistake in the user's program; carries its diagnostic to where compilation can go on."""

    def __init__(self, span: Span | None, message: str, *notes: tuple[str, Span | None] | str) -> None:
        super().__init__(message)
        pairs = tuple((note, None) if isinstance(note, str) else note for note in notes)
        self.diagnostic = Diagnostic(message, span, pairs)

    def note(self, text: str, span: Span | None) -> None:
        """Add what the place that raises does not know."""
        self.diagnostic = replace(self.diagnostic, notes=(*self.diagnostic.notes, (text, span)))


class Cascade(CslError):
    """Something needs what an error has left without a value; that error is reported, this one is not."""

    def __init__(self) -> None:
        super().__init__(None, "follows from an error before")


class CompileFailed(OpenwaferError):
    """The program has errors; the text shows them all."""

    def __init__(self, text: str, diagnostics: tuple[Diagnostic, ...]) -> None:
        super().__init__(text)
        self.diagnostics = diagnostics


class Diagnostics:
    """The collector of one compilation."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.items: list[Diagnostic] = []
        self.num_failures = 0
        """Errors and what followed from them."""
        self._seen: set[str | Span | tuple[str, Span | None]] = set()

    @property
    def num_errors(self) -> int:
        return sum(item.severity == "error" for item in self.items)

    def mark(self) -> int:
        """Where `rewind` goes back to."""
        return len(self.items)

    def rewind(self, mark: int) -> bool:
        """Forgets what came since the mark; whether there was anything."""
        for item in self.items[mark:]:
            self._seen.discard((item.message, item.span))
        found = len(self.items) > mark
        del self.items[mark:]
        return found

    def add(self, diagnostic: Diagnostic) -> None:
        """Keep one, once.

        Raises:
            CompileFailed: there are MAX_ERRORS errors now.
        """
        is_error = diagnostic.severity == "error"
        key = diagnostic.span or diagnostic.message if is_error else (diagnostic.message, diagnostic.span)
        if key in self._seen:
            return
        self._seen.add(key)
        self.items.append(diagnostic)
        if is_error and self.num_errors >= MAX_ERRORS:
            self.check()

    def report(self, error: CslError) -> None:
        """Keep what an exception carries, as `add` does; a cascade is counted only."""
        self.num_failures += 1
        if not isinstance(error, Cascade):
            self.add(error.diagnostic)

    def check(self) -> None:
        """Go on only without errors.

        Raises:
            CompileFailed: there are some.
        """
        if self.num_errors:
            raise CompileFailed(self.text(), tuple(self.items))

    def text(self) -> str:
        """All of them, errors last and in the order of the source, with a count."""
        ordered = sorted(self.items, key=lambda item: _order(item) if item.severity == "error" else (-1, 0))
        parts = [render(item, self.sources) for item in ordered]
        count = self.num_errors
        if count:
            ending = f"{count} error{'s' if count > 1 else ''}"
            parts.append(ending + (", and perhaps more" if count >= MAX_ERRORS else ""))
        return "\n".join(parts)


def _order(item: Diagnostic) -> tuple[int, int]:
    return (item.span.source, item.span.start) if item.span is not None else (0, 0)


def render(diagnostic: Diagnostic, sources: Sources) -> str:
    """Message, source line and caret; then the notes in the same form."""
    lines = _pointed(diagnostic.severity, diagnostic.message, diagnostic.span, sources)
    for text, span in diagnostic.notes:
        pointed = _pointed("note", text, span, sources)
        lines += pointed if span != diagnostic.span else pointed[:1]
    return "\n".join(lines)


def _pointed(kind: str, message: str, span: Span | None, sources: Sources) -> list[str]:
    if span is None:
        return [f"{kind}: {message}"]
    source = sources[span.source]
    line, column = source.position(span.start)
    text = source.line(line)
    before = text[: column - 1].replace("\t", _TAB)
    under = text[column - 1 : column - 1 + max(1, span.end - span.start)].replace("\t", _TAB)
    caret = "^" + "~" * (len(under) - 1)
    return [
        f"{source.path}:{line}:{column}: {kind}: {message}",
        "  " + text.replace("\t", _TAB),
        "  " + " " * len(before) + caret,
    ]


def among(name: str, known: Iterable[str]) -> str:
    """The nearest of a few names, or all of them."""
    names = list(known)
    close = nearest(name, names)
    return close or (f"; there are {', '.join(names)}" if 0 < len(names) <= MAX_LISTED else "")


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean "x"?`, or nothing if no known name is near."""
    close = difflib.get_close_matches(name, list(known), 1, LIKENESS)
    return f'; did you mean "{close[0]}"?' if close else ""
