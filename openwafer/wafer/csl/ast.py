"""The syntax tree of one CSL file. No meaning here: names are strings, numbers are as written."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Span:
    """Half-open range of characters in one file: index into the compilation's list of sources, offsets."""

    source: int
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Node:
    span: Span


# Expressions


@dataclass(frozen=True, kw_only=True)
class IntLiteral(Node):
    value: int


@dataclass(frozen=True, kw_only=True)
class FloatLiteral(Node):
    text: str


@dataclass(frozen=True, kw_only=True)
class StringLiteral(Node):
    value: str


@dataclass(frozen=True, kw_only=True)
class BoolLiteral(Node):
    value: bool


@dataclass(frozen=True, kw_only=True)
class Name(Node):
    """An identifier; type names (i16, comptime_int, mem1d_dsd), NORTH and its like, `undefined` and `null` too."""

    text: str


@dataclass(frozen=True, kw_only=True)
class BuiltinCall(Node):
    """`@name(arguments)`; `name` without the @."""

    name: str
    arguments: tuple[Expr, ...]


@dataclass(frozen=True, kw_only=True)
class Call(Node):
    function: Expr
    arguments: tuple[Expr, ...]


@dataclass(frozen=True, kw_only=True)
class Field(Node):
    """`base.name`."""

    base: Expr
    name: str


@dataclass(frozen=True, kw_only=True)
class Dereference(Node):
    """`base.*`."""

    base: Expr


@dataclass(frozen=True, kw_only=True)
class Index(Node):
    """`base[i, j]`."""

    base: Expr
    indices: tuple[Expr, ...]


@dataclass(frozen=True, kw_only=True)
class AddressOf(Node):
    operand: Expr


@dataclass(frozen=True, kw_only=True)
class Unary(Node):
    """Operator: `-`, `~` or `!`."""

    operator: str
    operand: Expr


@dataclass(frozen=True, kw_only=True)
class Binary(Node):
    """Operator as written: + - * / % << >> & | ^ == != < <= > >= and or."""

    operator: str
    left: Expr
    right: Expr


@dataclass(frozen=True, kw_only=True)
class FieldInit(Node):
    """`.name = value` in a struct literal."""

    name: str
    value: Expr


@dataclass(frozen=True, kw_only=True)
class StructLiteral(Node):
    """`.{ .a = 1 }` or, with a type, `T{ .a = 1 }`; `{}` alone, the void value, is one with no type and no fields."""

    type: Expr | None
    fields: tuple[FieldInit, ...]
    is_void: bool = False


@dataclass(frozen=True, kw_only=True)
class TupleLiteral(Node):
    """`.{ a, b }` (also the empty `.{}`), or `[N]T{ a, b }` with the array type."""

    type: Expr | None
    elements: tuple[Expr, ...]


@dataclass(frozen=True, kw_only=True)
class AccessLambda(Node):
    """`|i, j|{ I, J } -> a[i, j + 1]`."""

    variables: tuple[str, ...]
    extents: tuple[Expr, ...]
    body: Expr


@dataclass(frozen=True, kw_only=True)
class IfExpr(Node):
    """Without `otherwise` it has a value only where the condition is known to hold."""

    condition: Expr
    then: Expr
    otherwise: Expr | None


@dataclass(frozen=True, kw_only=True)
class SwitchExpr(Node):
    """As an expression every prong's body is an expression."""

    operand: Expr
    prongs: tuple[Prong, ...]


@dataclass(frozen=True, kw_only=True)
class ComptimeExpr(Node):
    operand: Expr


@dataclass(frozen=True, kw_only=True)
class BlockExpr(Node):
    """A block used as an expression, as the body of a prong."""

    block: Block


# Types in expression position


@dataclass(frozen=True, kw_only=True)
class PointerType(Node):
    """`*T`, `*const T`, `[*]T`, `[*]const T`."""

    is_many: bool
    is_const: bool
    target: Expr


@dataclass(frozen=True, kw_only=True)
class ArrayType(Node):
    """`[N, M]T`."""

    extents: tuple[Expr, ...]
    element: Expr


@dataclass(frozen=True, kw_only=True)
class FunctionType(Node):
    """`fn(A, B) R`, or `task(A) void`."""

    is_task: bool
    parameters: tuple[Expr, ...]
    result: Expr


@dataclass(frozen=True, kw_only=True)
class EnumType(Node):
    """`enum(T) { A, B = 3 }`."""

    base: Expr | None
    members: tuple[tuple[str, Expr | None], ...]


@dataclass(frozen=True, kw_only=True)
class StructType(Node):
    """`struct { a: T, b: U = default }`; kind: "struct", "packed struct", "extern struct", "union", "packed union"."""

    kind: str
    fields: tuple[StructField, ...]


@dataclass(frozen=True, kw_only=True)
class StructField(Node):
    name: str
    type: Expr
    default: Expr | None


# Statements


@dataclass(frozen=True, kw_only=True)
class Block(Node):
    statements: tuple[Stmt, ...]


@dataclass(frozen=True, kw_only=True)
class LabeledBlock(Node):
    """`label: { ... }`, an expression; `break :label value` ends it."""

    label: str
    block: Block


@dataclass(frozen=True, kw_only=True)
class VarDecl(Node):
    """`const` or `var`, at top level or in a block. `linkage`: "export", "extern" or None."""

    name: str
    is_const: bool
    is_comptime: bool
    linkage: str | None
    type: Expr | None
    value: Expr | None
    align: Expr | None = None
    linksection: Expr | None = None
    linkname: Expr | None = None


@dataclass(frozen=True, kw_only=True)
class Assign(Node):
    """`target operator value`; operator is "=" or "+=" and its like. A target that is the name `_` discards."""

    operator: str
    target: Expr
    value: Expr


@dataclass(frozen=True, kw_only=True)
class ExprStmt(Node):
    value: Expr


@dataclass(frozen=True, kw_only=True)
class If(Node):
    condition: Expr
    then: Stmt
    otherwise: Stmt | None


@dataclass(frozen=True, kw_only=True)
class While(Node):
    """`while (condition) : (step) body`."""

    condition: Expr
    step: Stmt | None
    body: Stmt
    label: str | None = None
    is_inline: bool = False


@dataclass(frozen=True, kw_only=True)
class For(Node):
    """`for (iterable) |element, index| body`."""

    iterable: Expr
    element: str
    index: str | None
    body: Stmt
    label: str | None = None
    is_inline: bool = False


@dataclass(frozen=True, kw_only=True)
class Prong(Node):
    """`a, b...c => body`; no values for `else`. A value may be a Range."""

    values: tuple[Expr, ...]
    is_else: bool
    body: Stmt | Expr


@dataclass(frozen=True, kw_only=True)
class Range(Node):
    """`low...high` in a prong."""

    low: Expr
    high: Expr


@dataclass(frozen=True, kw_only=True)
class Switch(Node):
    operand: Expr
    prongs: tuple[Prong, ...]


@dataclass(frozen=True, kw_only=True)
class Break(Node):
    """`value`: what a labelled block gives."""

    label: str | None = None
    value: Expr | None = None


@dataclass(frozen=True, kw_only=True)
class Continue(Node):
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Return(Node):
    value: Expr | None


@dataclass(frozen=True, kw_only=True)
class ComptimeBlock(Node):
    """`comptime { }`, at top level or in a function."""

    block: Block


# Top level


@dataclass(frozen=True, kw_only=True)
class ParamDecl(Node):
    """`param name: T = default;`."""

    name: str
    type: Expr | None
    default: Expr | None


@dataclass(frozen=True, kw_only=True)
class Parameter(Node):
    """Of a function. `is_comptime`: `comptime name: T`; a type of the name `anytype` is left as a Name."""

    name: str
    type: Expr
    is_comptime: bool = False


@dataclass(frozen=True, kw_only=True)
class FunctionDecl(Node):
    """`fn` or `task`. `linkage`: "export", "extern" or None; an extern function has no body.

    is_inline: what is known of its arguments at a call is known in its body, and of its result.
    """

    name: str
    is_task: bool
    parameters: tuple[Parameter, ...]
    result: Expr | None
    body: Block | None
    linkage: str | None = None
    is_inline: bool = False
    linkname: Expr | None = None


@dataclass(frozen=True, kw_only=True)
class LayoutBlock(Node):
    block: Block


@dataclass(frozen=True, kw_only=True)
class File(Node):
    """One file: its declarations in order."""

    declarations: tuple[Decl, ...] = field(default=())


Expr = (
    IntLiteral | FloatLiteral | StringLiteral | BoolLiteral | Name | BuiltinCall | Call | Field | Dereference | Index
    | AddressOf | Unary | Binary | StructLiteral | TupleLiteral | AccessLambda | IfExpr | SwitchExpr | ComptimeExpr
    | BlockExpr | LabeledBlock | PointerType | ArrayType | FunctionType | EnumType | StructType | Range
)  # fmt: skip
Stmt = (
    Block | VarDecl | Assign | ExprStmt | If | While | For | Switch | Break | Continue | Return | ComptimeBlock
)  # fmt: skip
Decl = VarDecl | ParamDecl | FunctionDecl | ComptimeBlock | LayoutBlock
