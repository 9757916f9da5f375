"""Text to tokens. A token is (kind, text, start, end); kinds are the constants below.

Keywords are ordinary names to everyone but the parser. Comments run from // to the end of the line.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from openwafer.wafer.csl.ast import Span
from openwafer.wafer.csl.diagnostics import Diagnostic, Diagnostics
from openwafer.wafer.csl.source import Source

NAME, KEYWORD, BUILTIN, INT, FLOAT, STRING, PUNCTUATION, END = (
    "name", "keyword", "builtin", "integer", "float", "string", "symbol", "end of file",
)  # fmt: skip

KEYWORDS = frozenset(
    """
    align and anytype break comptime const continue else enum export extern false fn for if inline layout linkname
    linksection or packed param return struct switch task true union var while
    """.split()
)

_TOKEN = re.compile(
    r"""
    (?P<space>(?:[ \t\r\n]|//[^\n]*)+)
  | (?P<name>[A-Za-z_][A-Za-z_0-9]*)
  | (?P<builtin>@[A-Za-z_][A-Za-z_0-9]*)
  | (?P<float>(?:[0-9][0-9_]*\.[0-9][0-9_]*(?:[eE][+-]?[0-9]+)?|[0-9][0-9_]*[eE][+-]?[0-9]+))
  | (?P<integer>0[xX][0-9A-Fa-f_]+|0[bB][01_]+|0[oO][0-7_]+|[0-9][0-9_]*)
  | (?P<string>"(?:[^"\\\n]|\\.)*")
  | (?P<character>'(?:[^'\\\n]|\\x[0-9A-Fa-f]{2}|\\.)')
  | (?P<symbol>(?!/\*)(?:<<=|>>=|\.\.\.|<<|>>|==|!=|<=|>=|\+=|-=|\*=|/=|%=|&=|\|=|\^=|=>|->|\.\*
      |[-+*/%&|^~!=<>(){}\[\],.;:?]))
    """,
    re.VERBOSE,
)

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "0": "\0"}


class Token(NamedTuple):
    """`value` is the number of an integer and the text of a string without its quotes; else the text itself."""

    kind: str
    text: str
    start: int
    end: int
    value: int | str


def tokenize(source: Source, source_id: int, diagnostics: Diagnostics) -> list[Token]:
    """All tokens and one END; what is no token is reported and left out."""
    text, tokens, at = source.text, [], 0
    match = _TOKEN.match

    def report(message: str, start: int, end: int) -> None:
        diagnostics.add(Diagnostic(message, Span(source_id, start, end)))

    while at < len(text):
        found = match(text, at)
        if found is None:
            start, at = at, _bad(text, at, report)
            if text[start] == '"':  # the parser goes on as if it were closed
                tokens.append(Token(STRING, text[start:at], start, at, text[start + 1 : at]))
            continue
        kind, start, at = found.lastgroup, at, found.end()
        if kind == "space":
            continue
        word = found.group()
        if kind == "name":
            tokens.append(Token(KEYWORD if word in KEYWORDS else NAME, word, start, at, word))
        elif kind == "symbol":
            tokens.append(Token(PUNCTUATION, word, start, at, word))
        elif kind == "builtin":
            tokens.append(Token(BUILTIN, word[1:], start, at, word[1:]))
        elif kind == "string":
            tokens.append(Token(STRING, word, start, at, _unescape(word[1:-1], start + 1, report)))
        elif kind == "character":
            tokens.append(Token(INT, word, start, at, _byte(word, start, at, report)))
        else:
            if at < len(text) and (text[at].isalnum() or text[at] == "_"):
                end = re.compile(r"\w*").match(text, at).end()  # pyright: ignore[reportOptionalMemberAccess]
                report(f'"{text[start:end]}" is not a number', start, end)
                at = end
            if kind == "integer":
                tokens.append(Token(INT, word, start, at, _integer(word, start, at, report)))
            else:
                tokens.append(Token(FLOAT, word, start, at, word.replace("_", "")))
    tokens.append(Token(END, "", len(text), len(text), ""))
    return tokens


def _bad(text: str, at: int, report) -> int:
    """Report what begins at `at` and is no token; where to go on."""
    if text[at] == '"':
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        closed = text.find(";", at, end)
        report('this string has no closing " on its line', at, end if closed < 0 else closed)
        return end if closed < 0 else closed
    if text.startswith("/*", at):
        end = text.find("*/", at)
        report("there are no comments in /* */; a comment runs from // to the end of its line", at, at + 2)
        return len(text) if end < 0 else end + 2
    shown = text[at] if text[at].isprintable() else f"\\x{ord(text[at]):02x}"
    report(f'the character "{shown}" has no meaning in CSL', at, at + 1)
    return at + 1


def _integer(word: str, start: int, end: int, report) -> int:
    digits = word.replace("_", "")
    if len(digits) > 64:
        report("this number has more than 64 digits", start, end)
        return 0
    try:
        return int(digits, 0) if digits[:1] == "0" and len(digits) > 1 and digits[1].isalpha() else int(digits)
    except ValueError:
        report(f'"{word}" is not a number', start, end)
        return 0


def _byte(word: str, start: int, end: int, report) -> int:
    """The number of a character literal."""
    number = ord(_unescape(word[1:-1], start + 1, report))
    if number > 0x7F and not word.startswith("'\\x"):
        report(f"{word} is more than one byte in UTF-8", start, end)
        return 0
    return number


def _unescape(body: str, start: int, report) -> str:
    if "\\" not in body:
        return body
    parts, at = [], 0
    while at < len(body):
        if body[at] != "\\":
            parts.append(body[at])
            at += 1
            continue
        code = body[at + 1]
        if code == "x":
            digits = body[at + 2 : at + 4]
            if re.fullmatch(r"[0-9A-Fa-f]{2}", digits):
                parts.append(bytes.fromhex(digits).decode(errors="surrogateescape"))
                at += 4
                continue
        if code not in _ESCAPES:
            report(f'"\\{code}" is not an escape; known: \\n \\t \\r \\\\ \\" \\0 \\xNN', start + at, start + at + 2)
        parts.append(_ESCAPES.get(code, code))
        at += 2
    return "".join(parts).encode(errors="surrogateescape").decode(errors="surrogateescape")
