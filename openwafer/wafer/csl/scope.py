"""What names stand for while sema walks: module instances, bindings, frames, values and places."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from openwafer.wafer.csl import ast, ir
from openwafer.wafer.csl.ast import Span
from openwafer.wafer.csl.comptime import VOID, Cell, Const
from openwafer.wafer.csl.types import Type


@dataclass(frozen=True)
class Run:
    """A value that exists at run time; of an array or struct, `expr` is its address."""

    type: Type
    expr: ir.Expr


@dataclass(frozen=True)
class MemoryPlace:
    """Something in memory: address plus bytes."""

    type: Type
    address: ir.Expr
    offset: int = 0
    is_const: bool = False
    known: Const | None = None


@dataclass(frozen=True)
class ElementPlace:
    """address[index], a scalar."""

    type: Type
    address: ir.Expr
    index: ir.Expr
    is_const: bool = False


@dataclass(frozen=True)
class LocalPlace:
    type: Type
    local: ir.Local
    is_const: bool = False


@dataclass(frozen=True)
class CellPlace:
    """Part of a compile-time variable: names and flat indices from the outside in."""

    type: Type
    cell: Cell
    path: tuple[str | int, ...] = ()


@dataclass(frozen=True)
class PackedPlace:
    """A field of a packed struct or union that lies somewhere."""

    type: Type
    base: Place
    name: str

    @property
    def is_const(self) -> bool:
        return isinstance(self.base, MemoryPlace | ElementPlace | PackedPlace) and self.base.is_const


Value = Const | Run
Place = MemoryPlace | ElementPlace | LocalPlace | CellPlace | PackedPlace


@dataclass(eq=False)
class Instance:
    """A module: one file with one set of parameters. `names`: what has been analysed so far."""

    path: str
    declarations: dict[str, ast.Decl]
    file: ast.File
    params: dict[str, Const]
    is_library: bool
    origin: Span | None = None
    """Where it was imported first, or its code placed."""
    is_root: bool = False
    names: dict[str, Any] = field(default_factory=dict)
    active: list[str] = field(default_factory=list)
    """Names whose declarations are under analysis, outermost first."""


@dataclass(frozen=True)
class FunctionValue:
    """A function or task of an instance."""

    instance: Instance
    declaration: ast.FunctionDecl


@dataclass(frozen=True)
class RangeValue:
    """@range: bounds that may be known only at run time."""

    type: Type
    start: Value
    stop: Value
    step: Value


@dataclass(eq=False)
class Broken:
    """A value that a labelled block was left with; `store`: what will keep it, before `leave`."""

    value: Value
    store: ir.Labeled
    leave: ir.Break
    span: Span


@dataclass(eq=False)
class LoopMark:
    """A loop or labelled block around the code at hand: its label, and its IR at run time.

    again: a block around one round of an unrolled loop, left by continue
    want: the type that the value of a block should have
    values: what breaks gave a block so far; None: a loop
    """

    label: str | None
    loop: ir.Loop | ir.Labeled | None
    again: ir.Labeled | None = None
    want: Type | None = None
    values: list[Broken] | None = None


@dataclass(eq=False)
class Frame:
    """A function body, block or initialiser under analysis.

    Args:
        instance: where its globals are
        scopes: innermost last
        out: statements so far; None: everything happens at compile time
        in_memory: locals whose address is taken
        result: type of the function, None outside of one
        result_place: where a function puts a struct that it returns
        memory: variables of the function, which it has once, however often it is active
    """

    instance: Instance
    scopes: list[dict[str, Any]]
    out: list[ir.Stmt] | None = None
    in_memory: frozenset[str] = frozenset()
    result: Type | None = None
    loops: list[LoopMark] = field(default_factory=list)
    depth: int = 0
    name: str = ""
    result_place: MemoryPlace | None = None
    memory: list[ir.Variable] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.is_comptime = self.out is None

    def lookup(self, name: str) -> Any:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        return None

    def comptime(self) -> Frame:
        """The same names, nothing emitted."""
        if self.out is None:
            return self
        return Frame(self.instance, self.scopes, None, frozenset(), None, [], self.depth, self.name)


class Returned(Exception):
    """A return at compile time."""

    def __init__(self, value: Const) -> None:
        super().__init__()
        self.value = value


class Left(Exception):
    """A break or continue at compile time."""

    def __init__(self, mark: LoopMark, again: bool, value: Value = VOID) -> None:
        super().__init__()
        self.mark, self.again, self.value = mark, again, value
