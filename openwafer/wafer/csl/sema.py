"""The only walker: runs what is known at compile time, checks the rest and turns it into IR.

A frame without `out` is compile time: every value in it must be known. Elsewhere a value is folded as far as it is
known. Declarations are analysed when they are used. Module instances are shared within a program where file and
parameters are equal; files are parsed once a compilation.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from openwafer.wafer.arch import MEMORY_BYTES, Arch
from openwafer.wafer.csl import aggregates, ast, ir, linkage, packed
from openwafer.wafer.csl import types as ty
from openwafer.wafer.csl.ast import Span
from openwafer.wafer.csl.comptime import (
    COMPARE,
    VOID,
    ArrayValue,
    Cell,
    ComptimeError,
    Const,
    PointerValue,
    StructValue,
    arithmetic,
    check_range,
    checked_float,
    encode,
    scalar_bits,
)  # fmt: skip
from openwafer.wafer.csl.diagnostics import Cascade, CslError, Diagnostics, among, nearest
from openwafer.wafer.csl.labels import labeled_block, leave, never_ends, one_round, unrolled
from openwafer.wafer.csl.parser import parse_file
from openwafer.wafer.csl.placement import Placement, TileCode
from openwafer.wafer.csl.scope import (
    CellPlace,
    ElementPlace,
    Frame,
    FunctionValue,
    Instance,
    Left,
    LocalPlace,
    LoopMark,
    MemoryPlace,
    PackedPlace,
    Place,
    RangeValue,
    Returned,
    Run,
    Value,
)  # fmt: skip
from openwafer.wafer.csl.source import SourceError, Sources, read_source
from openwafer.wafer.csl.tuples import filled, is_open, template
from openwafer.wafer.csl.types import Type
from openwafer.wafer.image import Location
from openwafer.wafer.isa import Op, Sys, T

LIBRARY = Path(__file__).parents[1] / "lib"
MAX_CALLS = 200
MAX_TRACE = 3
"""Calls that an error lists on the way to it."""
RANGE = ty.Simple("range")
FAILED = object()
"""What a name stands for whose declaration has an error."""
NOT_YET = frozenset("dfilt load_to_dsr_xdsr set_active_prng".split())
"""Documented builtins that are refused; docs/csl.md lists them."""
NO_LIBRARY_YET = frozenset(("message_passing",))
_PORTS = {
    name: Const(ty.DIRECTION, port)
    for name, port in (("NORTH", 0), ("SOUTH", 1), ("EAST", 2), ("WEST", 3), ("RAMP", 4))
}
_NAMED_TYPES = {name: Const(ty.TYPE, kind) for name, kind in ty.NAMED.items()}
_RUNTIME = {
    "+": Op.ADD, "-": Op.SUB, "*": Op.MUL, "/": Op.DIV, "%": Op.REM, "&": Op.AND, "|": Op.OR, "^": Op.XOR,
    "<<": Op.SHL, ">>": Op.SHR,
}  # fmt: skip
_integer_literal = functools.lru_cache(maxsize=1024)(functools.partial(Const, ty.COMPTIME_INT))
_COMPARISONS = {"==": Op.EQ, "!=": Op.NE, "<": Op.LT, "<=": Op.LE, ">": Op.LT, ">=": Op.LE}


@dataclass(eq=False)
class Compilation:
    """What all programs of one run of the compiler share."""

    arch: Arch
    import_paths: tuple[Path, ...] = ()
    max_iterations: int = 1_000_000
    size: tuple[int, int] = (0, 0)
    fabric: tuple[int, int] = (0, 0)
    offset: tuple[int, int] = (0, 0)
    placement: Placement = field(default_factory=Placement)
    sources: Sources = field(default_factory=Sources)
    files: dict[str, tuple[ast.File, dict[str, ast.Decl]]] = field(default_factory=dict)
    exports: dict[str, tuple[str, bool]] | None = None
    """What the layout exports: type and mutability by name; None before its end."""
    broken: set[str] = field(default_factory=set)
    """Files that do not parse."""

    def __post_init__(self) -> None:
        self.diagnostics = Diagnostics(self.sources)


def analyze_layout(
    compilation: Compilation, path: str, params: dict[str, str], colors: dict[str, int]
) -> tuple[Placement, dict[str, str]]:
    """Runs the layout block of the root file; also the parameters as out.json has them."""
    sema = Sema(compilation, placement=Placement())
    instance = sema.instance(path, {}, None)
    given = sema.command_line(instance, params, colors)
    instance.params.update(given)
    layouts = [d for d in instance.file.declarations if isinstance(d, ast.LayoutBlock)]
    if len(layouts) != 1:
        span = layouts[1].span if layouts else None
        raise CslError(span, f"{path} has {len(layouts) or 'no'} layout blocks; the root file needs exactly one")
    assert sema.placement is not None
    sema.placement.span = layouts[0].span
    sema.start(instance)
    sema.guarded(lambda: sema.block(Frame(instance, [{}]), layouts[0].block))
    compilation.diagnostics.check()
    compilation.size = sema.placement.size
    compilation.exports = sema.placement.exports
    return sema.placement, {name: str(const.value) for name, const in given.items()}


def analyze_program(compilation: Compilation, tile: TileCode) -> ir.IrProgram:
    """The program of one PE type."""
    sema = Sema(compilation, program=ir.IrProgram(Path(tile.path).name))
    sema.tile = tile
    instance = sema.instance(tile.path, dict(tile.params), tile.span)
    instance.is_root = True
    sema.check_params(instance, tile.span)
    sema.start(instance)
    sema.finish()
    assert sema.program is not None
    return sema.program


class Sema:
    """Analysis of one layout or one program; builtins live in `builtins` and get this object."""

    def __init__(
        self, compilation: Compilation, program: ir.IrProgram | None = None, placement: Placement | None = None
    ) -> None:
        from openwafer.wafer.csl.builtins import BUILTINS

        self.builtins = BUILTINS
        self.compilation = compilation
        self.arch = compilation.arch
        self.program = program
        self.placement = placement
        self.instances: dict[tuple, Instance] = {}
        self.functions: dict[tuple, ir.Function] = {}
        self.bindings: dict[tuple[int, str], tuple[Any, int, Span]] = {}
        self.spans: dict[tuple[Any, Any], Span] = {}
        """Where something was said that may be said only once."""
        self.calls: list[tuple[str, Span]] = []
        """Calls and imports that are under way, for notes."""
        self.later: list[Callable[[], None]] = []
        self.handlers: dict[tuple[str, int], ir.Function] = {}
        self.fifos: dict[int, ir.Fifo] = {}
        self.tile: TileCode | None = None
        self.control_table: Span | None = None
        self.exported: dict[str, Any] = {}
        self.exported_values: dict[str, tuple[Type, ir.Expr]] = {}
        self.choosers: dict[str, ir.Function] = {}
        self.linked: dict[str, linkage.Linked] = {}
        self.num_strings = 0
        self.launch_color: int | None = None

    def shown(self, path: str) -> str:
        return _shown(path)

    # --- modules ----------------------------------------------------------------------------------------------------

    def instance(self, path: str, params: dict[str, Const], span: Span | None) -> Instance:
        """The module of a file with these parameters."""
        file, declarations = self.parsed(path, span)
        is_library = LIBRARY in Path(path).parents
        return Instance(path, declarations, file, dict(params), is_library, span)

    def parsed(self, path: str, span: Span | None) -> tuple[ast.File, dict[str, ast.Decl]]:
        known = self.compilation.files.get(path)
        if known is not None:
            return known
        if path in self.compilation.broken:
            raise Cascade
        try:
            source = read_source(Path(path), _shown(path))
        except SourceError as error:
            raise CslError(span, str(error)) from None
        diagnostics = self.compilation.diagnostics
        before = diagnostics.num_errors
        file = parse_file(source, self.compilation.sources.add(source), diagnostics)
        declarations: dict[str, ast.Decl] = {}
        for declaration in file.declarations:
            name = getattr(declaration, "name", None)
            if name is None:
                continue
            if name in declarations:
                first = declarations[name].span
                error = CslError(declaration.span, f'"{name}" is declared twice', ("the first is here", first))
                diagnostics.add(error.diagnostic)
            declarations[name] = declaration
        if diagnostics.num_errors > before:
            self.compilation.broken.add(path)
            raise Cascade
        self.compilation.files[path] = file, declarations
        return file, declarations

    def import_module(self, frame: Frame, path: str, params: dict[str, Const], span: Span) -> Instance:
        """`@import_module`: a name in <> is sought in the library and the import paths."""
        found = self.resolve(frame.instance, path, span)
        key = (found, tuple(sorted(params.items(), key=lambda item: item[0])))
        try:
            known = self.instances.get(key)
        except TypeError:
            known, key = None, (found, id(span))
        if known is not None:
            return known
        if not Path(found).is_file():
            raise CslError(
                span, f"{_shown(found)}: no such file", f"a path is relative to {_shown(frame.instance.path)}"
            )
        instance = self.instance(found, params, span)
        self.check_params(instance, span)
        self.instances[key] = instance
        self.within("imported here", span, lambda: self.start(instance))
        return instance

    def check_params(self, instance: Instance, span: Span | None) -> None:
        """Every parameter that is given exists."""
        declared = [n for n, d in instance.declarations.items() if isinstance(d, ast.ParamDecl)]
        for name in instance.params:
            if name not in declared:
                raise CslError(span, f'{_shown(instance.path)} has no parameter "{name}"{among(name, declared)}')

    def resolve(self, instance: Instance, path: str, span: Span) -> str:
        if path.startswith("<") and path.endswith(">"):
            name = path[1:-1]
            folders = [LIBRARY, *self.compilation.import_paths]
            for folder in folders:
                for candidate in (folder / f"{name}.csl", folder / name):
                    if candidate.is_file():
                        return str(candidate)
            if name in NO_LIBRARY_YET:
                raise CslError(span, f"not supported yet: the library {path}")
            raise CslError(span, f"there is no library {path}; use --import-path=DIR for your own")
        found = Path(instance.path).parent / path
        if not found.is_file():
            for folder in self.compilation.import_paths:
                if (folder / path).is_file():
                    return str(folder / path)
        return str(found)

    def command_line(self, instance: Instance, params: dict[str, str], colors: dict[str, int]) -> dict[str, Const]:
        """--params and --colors as values of the root file's parameters."""
        given: dict[str, Const] = {}
        for name, text in params.items():
            if not isinstance(instance.declarations.get(name), ast.ParamDecl):
                declared = [n for n, d in instance.declarations.items() if isinstance(d, ast.ParamDecl)]
                raise CslError(None, f'--params: {instance.path} has no parameter "{name}"{nearest(name, declared)}')
            try:
                given[name] = Const(ty.COMPTIME_INT, int(text, 0))
            except ValueError:
                try:
                    given[name] = Const(ty.COMPTIME_FLOAT, float(text))
                except ValueError:
                    lower = text.lower()
                    if lower in ("true", "false"):
                        given[name] = Const(ty.BOOL, lower == "true")
                    else:
                        raise CslError(None, f'--params: "{text}" for {name} is no number and no bool') from None
        for name, value in colors.items():
            given[name] = Const(ty.COLOR, value)
        return given

    def start(self, instance: Instance) -> None:
        """Run the imports and comptime blocks of a module."""
        for declaration in instance.file.declarations:
            value = getattr(declaration, "value", None)
            if isinstance(value, ast.BuiltinCall) and value.name == "import_module":
                self.guarded(lambda name=declaration.name: self.global_name(instance, name, None))  # pyright: ignore
        for declaration in instance.file.declarations:
            if isinstance(declaration, ast.ComptimeBlock):
                self.guarded(lambda block=declaration.block: self.block(Frame(instance, [{}]), block))
            elif self.program is not None and getattr(declaration, "linkage", None) == "export":
                self.guarded(lambda name=declaration.name: self.export(instance, name))  # pyright: ignore

    def export(self, instance: Instance, name: str) -> None:
        found = self.global_name(instance, name, None)
        if isinstance(found, MemoryPlace):
            assert self.program is not None and isinstance(found.address, ir.Address)
            kind = found.type.element if isinstance(found.type, ty.Array) else found.type
            variable = found.address.variable
            name = variable.name
            self.program.symbols.append(ir.Symbol(name, variable, None, False, str(kind), not found.is_const))
        elif isinstance(found, Const) and isinstance(found.value, FunctionValue):
            linkage.export_function(self, found)

    def finish(self) -> None:
        """What had to wait until all tasks were bound."""
        for action in self.later:  # grows on the way
            self.guarded(action)
        self.later.clear()
        linkage.check(self)

    def guarded(self, action: Callable[[], object], span: Span | None = None) -> None:
        """Do it; a mistake in it is reported and the rest goes on."""
        try:
            action()
        except CslError as error:
            self.report(error)
        except RecursionError:
            self.report(too_deep(span))

    def report(self, error: CslError) -> None:
        """Keep a mistake, with notes on how analysis came to it."""
        for text, where in self.calls[: -MAX_TRACE - 1 : -1]:
            error.note(text, where)
        self.compilation.diagnostics.report(error)

    def within(self, text: str, span: Span, action: Callable[[], Any]) -> Any:
        """Do it; mistakes in it get a note."""
        self.calls.append((text, span))
        try:
            return action()
        except CslError as error:
            if len(self.calls) <= MAX_TRACE:
                error.note(text, span)
            raise
        finally:
            self.calls.pop()

    def attempt(self, action: Callable[[], Const]) -> Const | None:
        """What it gives at compile time; None, and nothing reported, if it cannot."""
        made = None
        mark = self.compilation.diagnostics.mark()
        with contextlib.suppress(CslError):
            made = action()
        return None if self.compilation.diagnostics.rewind(mark) else made

    # --- names ------------------------------------------------------------------------------------------------------

    def name(self, frame: Frame, node: ast.Name) -> Value | Place:
        found = frame.lookup(node.text)
        if found is FAILED:
            raise Cascade
        if found is None:
            found = self.global_name(frame.instance, node.text, node.span)
        if found is None:
            if node.text in ty.NAMED:
                return _NAMED_TYPES[node.text]
            if node.text in _PORTS:
                return _PORTS[node.text]
            if node.text == "undefined":
                return Const(ty.Simple("undefined"), None)
            sized = ty.named(node.text)
            if sized is not None:
                return Const(ty.TYPE, sized)
            known = [*frame.instance.declarations, *(n for scope in frame.scopes for n in scope), *ty.NAMED]
            raise CslError(node.span, f'"{node.text}" is not declared{nearest(node.text, known)}')
        if isinstance(found, Cell):
            return CellPlace(found.type, found)
        return found

    def global_name(self, instance: Instance, name: str, span: Span | None) -> Any:
        """What a top-level name stands for; None if there is none."""
        if name in instance.names:
            return instance.names[name]
        declaration = instance.declarations.get(name)
        if declaration is None:
            return None
        if name in instance.active:
            circle = instance.active[instance.active.index(name) :]
            way = f", by way of {' and '.join(circle[1:])}" if len(circle) > 1 else ""
            notes = [(f"{other} is declared here", instance.declarations[other].span) for other in circle[1:]]
            raise CslError(declaration.span, f'"{name}" is defined by itself{way}', *notes)
        instance.active.append(name)
        try:
            found = self.declare(instance, declaration, span)
        finally:
            instance.active.pop()
        instance.names[name] = found
        return found

    def declare(self, instance: Instance, declaration: ast.Decl, span: Span | None) -> Any:
        frame = Frame(instance, [{}])
        if isinstance(declaration, ast.FunctionDecl):
            return Const(self.function_type(instance, declaration), FunctionValue(instance, declaration))
        if isinstance(declaration, ast.ParamDecl):
            return self.param(frame, declaration, span)
        assert isinstance(declaration, ast.VarDecl)
        kind = self.type(frame, declaration.type) if declaration.type is not None else None
        if declaration.linkage == "extern":
            return linkage.extern_variable(self, frame, declaration, kind)
        value = self.initial(frame, declaration, kind)
        if isinstance(value.value, ty.Struct | ty.Enum) and value.value.name in ("struct", "enum"):
            value = Const(ty.TYPE, replace(value.value, name=declaration.name))
        kind = kind or value.type
        exported = declaration.linkage == "export" and self.program is not None
        if declaration.is_const and not isinstance(kind, ty.Array) and not exported:
            return value
        if ty.is_comptime_only(kind):
            if declaration.is_const and not exported:
                return value
            raise CslError(
                declaration.span,
                f"a variable of type {kind} does not exist at run time",
                "give it a sized type, or use const",
            )
        if exported:
            linked = linkage.declared(self, frame, declaration, kind)
            name = linkage.symbol_name(self, frame, declaration)
            return self.variable(frame, declaration, kind, value, name, linkage.variable(linked, name))
        return self.variable(frame, declaration, kind, value, declaration.name)

    def initial(self, frame: Frame, declaration: ast.VarDecl, kind: Type | None) -> Const:
        """The initial value of a global."""
        if declaration.value is None:
            if kind is None:
                raise CslError(declaration.span, f'"{declaration.name}" needs a type or a value')
            return self.zero(kind, declaration.span)
        value = self.constant(frame, declaration.value, kind)
        if value.type == ty.Simple("undefined"):
            assert kind is not None
            return self.zero(kind, declaration.span)
        return value

    def zero(self, kind: Type, span: Span) -> Const:
        if isinstance(kind, ty.Array):
            return Const(kind, ArrayValue(kind.count, None, self.zero(kind.element, span).value))
        if isinstance(kind, ty.Struct):
            fields = kind.fields[:1] if kind.is_union else kind.fields
            return Const(kind, StructValue(tuple((n, self.zero(t, span)) for n, t in fields)))
        if isinstance(kind, ty.Float):
            return Const(kind, 0.0)
        if kind == ty.BOOL:
            return Const(kind, False)
        if isinstance(kind, ty.DsdType):
            return Const(kind, ir.DsdValue(_dsd_kind(kind)))
        return Const(kind, 0)

    def variable(
        self,
        frame: Frame,
        declaration: ast.VarDecl,
        kind: Type,
        value: Const | None,
        name: str,
        made: ir.Variable | None = None,
    ) -> MemoryPlace:
        """Memory for a variable, `made` where others know it already."""
        size = ty.size_bytes(kind)
        alignment = 4 if size >= 4 else 2
        if declaration.align is not None:
            words = self.integer(frame, declaration.align)
            if words not in _ALIGNMENTS:
                text = f"an alignment is a power of two of words (1 to {_ALIGNMENTS[-1]}), found {words}"
                raise CslError(declaration.align.span, text)
            alignment = words * 2
        if ty.is_comptime_only(_innermost(kind)):
            raise CslError(declaration.span, f"a variable of type {kind} does not exist at run time")
        variable = made or ir.Variable(name, size, span=declaration.span)
        variable.align_bytes = alignment
        if size > MEMORY_BYTES and self.program is not None:
            raise CslError(declaration.span, f"{name} takes {size:,} bytes of memory, a PE has {MEMORY_BYTES:,}")
        if value is not None and self.program is not None:
            self.fill(variable, replace(value, type=kind), declaration.span)
        place = MemoryPlace(
            kind, ir.Address(variable), 0, declaration.is_const, value if declaration.is_const else None
        )
        if self.program is not None:
            self.program.variables.append(variable)
            if frame.out is not None:
                frame.memory.append(variable)
            element = kind.element if isinstance(kind, ty.Array) else kind
            self.program.symbols.append(ir.Symbol(name, variable, None, False, str(element), True, (), exported=False))
        return place

    def fill(self, variable: ir.Variable, value: Const, span: Span) -> None:
        """Put a value's bytes and addresses into a variable."""
        if isinstance(value.type, ty.DsdType):
            dsd: ir.DsdValue = value.value
            slots = dsd_slots(dsd)
            variable.initial = b"".join(slot.to_bytes(8, "little") for slot in slots)
            if dsd.base is not None:
                variable.relocations[4] = dsd.base
            return
        try:
            data, pointers = encode(value)
        except ComptimeError as error:
            raise CslError(span, str(error)) from None
        variable.initial = data
        variable.relocations = {at: ir.Address(p.variable, p.offset) for at, p in pointers.items()}

    def param(self, frame: Frame, declaration: ast.ParamDecl, span: Span | None) -> Const:
        given = frame.instance.params.get(declaration.name)
        kind = self.type(frame, declaration.type) if declaration.type is not None else None
        if given is None:
            if declaration.default is None:
                notes = [("used here", span)] if span is not None else []
                where = "its code is placed here" if frame.instance.is_root else "the module is imported here"
                notes += [(where, frame.instance.origin)] if frame.instance.origin else []
                raise CslError(
                    declaration.span,
                    f'the parameter "{declaration.name}" has no value',
                    *notes,
                    "give it one where the module is imported or its code is placed, or a default here",
                )
            return self.constant(frame, declaration.default, kind)
        return self.coerced_param(given, kind, declaration)

    def coerced_param(self, given: Const, kind: Type | None, declaration: ast.ParamDecl) -> Const:
        if kind is None:
            return given
        if isinstance(kind, ty.Opaque) and isinstance(given.value, int):
            return Const(kind, given.value)
        if isinstance(given.type, ty.Opaque) and isinstance(kind, ty.Int):
            return Const(kind, given.value)
        value = self.coerce(given, kind, declaration.span)
        assert isinstance(value, Const)
        return value

    # --- types and constants ----------------------------------------------------------------------------------------

    def type(self, frame: Frame, node: ast.Expr) -> Type:
        inner = frame.comptime()
        value = self.load(inner, self.expr(inner, node), node.span)
        if isinstance(value, Const) and (value.type is ty.TYPE or value.type == ty.TYPE):
            return value.value
        raise CslError(node.span, f"expected a type, found a value of type {value.type}")

    def constant(self, frame: Frame, node: ast.Expr, want: Type | None = None) -> Const:
        """The value of an expression that must be known now."""
        value = self.value(frame.comptime(), node, want)
        assert isinstance(value, Const)
        return value

    def integer(self, frame: Frame, node: ast.Expr) -> int:
        value = self.constant(frame, node)
        if isinstance(value.value, int):
            return int(value.value)
        raise CslError(node.span, f"expected an integer, found a value of type {value.type}")

    def string(self, frame: Frame, node: ast.Expr) -> str:
        value = self.constant(frame, node)
        if value.type != ty.COMPTIME_STRING:
            raise CslError(node.span, f"expected a string, found a value of type {value.type}")
        return value.value

    def function_type(self, instance: Instance, declaration: ast.FunctionDecl) -> ty.FunctionType:
        frame = Frame(instance, [{}])

        def kind(node: ast.Expr | None) -> Type:
            if node is None:
                return ty.VOID
            if _names(node) & names:
                return ty.ANYTYPE  # depends on a parameter
            return self.type(frame, node)

        names = {p.name for p in declaration.parameters}
        parameters = tuple(kind(p.type) for p in declaration.parameters)
        return ty.FunctionType(parameters, kind(declaration.result), declaration.is_task)

    # --- values -----------------------------------------------------------------------------------------------------

    def value(self, frame: Frame, node: ast.Expr, want: Type | None = None) -> Value:
        """An expression as a value, of type `want` if given."""
        value = self.load(frame, self.expr(frame, node, want), node.span)
        if want is not None:
            value = self.coerce(value, want, node.span)
        return value

    def load(self, frame: Frame, found: Value | Place, span: Span) -> Value:
        if isinstance(found, Const):
            return found
        if isinstance(found, CellPlace):
            return _at_path(found)
        if isinstance(found, PackedPlace):
            return packed.load(self, frame, found, span)
        if isinstance(found, MemoryPlace) and found.known is not None and frame.is_comptime:
            return found.known
        if frame.is_comptime:
            raise CslError(span, "this value is not known at compile time", *_where(found))
        if isinstance(found, Run):
            return found
        if isinstance(found, LocalPlace):
            return Run(found.type, ir.GetLocal(found.local))
        place = self.place_of(span)
        if isinstance(found, ElementPlace):
            own = ty.scalar(found.type)
            assert own is not None
            return Run(found.type, ir.LoadIndexed(own, found.address, found.index, place))
        own = ty.scalar(found.type)
        if own is not None:
            return Run(found.type, ir.Load(own, found.address, found.offset, place))
        if isinstance(found.type, ty.DsdType):
            return Run(found.type, ir.Load(ir.Special.DSD, found.address, found.offset, place))
        return Run(found.type, offset_by(found.address, found.offset))

    def place_of(self, span: Span) -> Location:
        source = self.compilation.sources[span.source]
        line, column = source.position(span.start)
        return Location(source.path, line, column)

    def coerce(self, value: Value, want: Type, span: Span) -> Value:
        """The value as one of another type, where CSL does that by itself."""
        have = value.type
        if have is want or have == want or want == ty.ANYTYPE:
            return value
        if isinstance(value, Const):
            converted = self.coerce_const(value, want, span)
            if converted is not None:
                return converted
        elif isinstance(have, ty.Pointer) and isinstance(want, ty.Pointer) and _pointer_fits(have, want):
            return Run(want, value.expr)
        elif _widens(have, want):
            return Run(want, convert(value.expr, have, want))
        elif want in ty.NUMBERS:
            text = f"expected a {want}, which is known at compile time; found a run-time value of type {have}"
            raise CslError(span, text)
        raise CslError(span, f"expected a value of type {want}, found {have}", *_conversion(have, want))

    def coerce_const(self, value: Const, want: Type, span: Span) -> Const | None:
        have, known = value.type, value.value
        if have == ty.Simple("undefined"):
            return self.zero(want, span)
        if have == ty.ACCESS and want == ty.COMPTIME_STRUCT:
            return self.access_fields(value)
        if _is_integer(have) and _is_integer(want):
            try:
                check_range(known, want)
            except ComptimeError as error:
                raise CslError(span, str(error)) from None
            return Const(want, known)
        is_number = have == ty.COMPTIME_INT and (isinstance(want, ty.Float) or want == ty.COMPTIME_FLOAT)
        if is_number or (have == ty.COMPTIME_FLOAT and isinstance(want, ty.Float)):
            try:
                return Const(want, checked_float(known, want))
            except ComptimeError as error:
                raise CslError(span, str(error)) from None
        if isinstance(have, ty.Float) and isinstance(want, ty.Float) and have.bits < want.bits:
            return Const(want, known)
        if isinstance(have, ty.Pointer) and isinstance(want, ty.Pointer) and _pointer_fits(have, want):
            return Const(want, known)
        if isinstance(known, StructValue):
            if want == ty.COMPTIME_STRUCT:
                return Const(want, known)
            if isinstance(want, ty.Array) and (known.is_tuple or not known.fields):
                return self.array(want, [v for _, v in known.fields], span)
            if isinstance(want, ty.Struct):
                return self.struct(want, known, span)
            if isinstance(want, ty.Packed):
                made = packed.literal(self, want, dict(known.fields), span)
                return made if isinstance(made, Const) else None
        if isinstance(have, ty.Array) and isinstance(want, ty.Array):
            same = have.count == want.count and have.element == want.element
            return Const(want, known) if same else None
        if isinstance(have, ty.FunctionType) and isinstance(want, ty.FunctionType):
            same = have.result == want.result and have.parameters == want.parameters
            return value if same else None
        return None

    def array(self, kind: ty.Array, elements: list[Const], span: Span) -> Const:
        if len(elements) != kind.count and len(elements) != kind.extents[0]:
            raise CslError(span, f"{kind} has {kind.count} elements, found {len(elements)}")
        if len(kind.extents) > 1 and len(elements) != kind.count:
            inner = ty.Array(kind.extents[1:], kind.element)
            rows = [self.coerce(e, inner, span) for e in elements]
            flat = [row.value.at(i) for row in rows if isinstance(row, Const) for i in range(inner.count)]
            return Const(kind, ArrayValue(kind.count, tuple(flat)))
        values = [self.coerce(e, kind.element, span) for e in elements]
        return Const(kind, ArrayValue(kind.count, tuple(v.value for v in values if isinstance(v, Const))))

    def struct(self, kind: ty.Struct, given: StructValue, span: Span) -> Const:
        self.check_fields(kind, given.names, span)
        known = dict(given.fields)
        fields = ((name, self.coerce(known[name], t, span)) for name, t in kind.fields if name in known)
        return Const(kind, StructValue(tuple(fields)))  # pyright: ignore[reportArgumentType]

    def check_fields(self, kind: ty.Struct | ty.Packed, given: list[str], span: Span) -> None:
        """A literal gives every field of a struct, and one of a union."""
        names = [name for name, _ in kind.fields]
        for name in given:
            if name not in names:
                raise CslError(span, f'{kind} has no field "{name}"{among(name, names)}')
        if kind.is_union:
            if len(given) != 1:
                text = f"a {kind} takes one field, {len(given)} are given"
                raise CslError(span, text, f"its fields: {', '.join(names)}")
            return
        for name in names:
            if name not in given:
                raise CslError(span, f'the field "{name}" of {kind} has no value')

    # --- expressions ------------------------------------------------------------------------------------------------

    def expr(self, frame: Frame, node: ast.Expr, want: Type | None = None) -> Value | Place:
        return _EXPRESSIONS[type(node)](self, frame, node, want)

    def literal(self, frame: Frame, node: ast.Expr, want: Type | None) -> Const:
        if isinstance(node, ast.IntLiteral):
            return _integer_literal(node.value)
        if isinstance(node, ast.FloatLiteral):
            return Const(ty.COMPTIME_FLOAT, float(node.text))
        if isinstance(node, ast.BoolLiteral):
            return Const(ty.BOOL, node.value)
        assert isinstance(node, ast.StringLiteral)
        return Const(ty.COMPTIME_STRING, node.value)

    def builtin(self, frame: Frame, node: ast.BuiltinCall, want: Type | None) -> Value | Place:
        handler = self.builtins.get(node.name)
        if handler is None and node.name in NOT_YET:
            raise CslError(node.span, f"not supported yet: @{node.name}")
        if handler is None:
            raise CslError(node.span, f"there is no builtin @{node.name}{nearest(node.name, self.builtins)}")
        if node.name.startswith("__") and not frame.instance.is_library:
            raise CslError(node.span, f"@{node.name} is for the standard library only")
        return handler(self, frame, node, want)

    def call(self, frame: Frame, node: ast.Call, want: Type | None) -> Value:
        callee = self.load(frame, self.expr(frame, node.function), node.function.span)
        if not isinstance(callee, Const) or not isinstance(callee.value, FunctionValue):
            raise CslError(node.function.span, f"a value of type {callee.type} cannot be called")
        if callee.value.declaration.is_task:
            declaration = callee.value.declaration
            raise CslError(
                node.span,
                f"{declaration.name} is a task and cannot be called",
                ("declared here", declaration.span),
                "activate the id that it is bound to: @activate(id)",
            )
        parameters = callee.value.declaration.parameters
        if len(parameters) != len(node.arguments):
            raise CslError(
                node.span,
                f"{callee.value.declaration.name} takes {len(parameters)} arguments, found {len(node.arguments)}",
                ("declared here", callee.value.declaration.span),
            )
        return self.call_with(frame, callee.value, node.arguments, node.span)

    def call_with(self, frame: Frame, function: FunctionValue, nodes: tuple[ast.Expr, ...], span: Span) -> Value:
        instance, declaration = function.instance, function.declaration
        scope: dict[str, Any] = {}
        inner = Frame(instance, [scope])
        arguments: list[tuple[ast.Parameter, Type, Value]] = []
        for parameter, node in zip(declaration.parameters, nodes, strict=True):
            kind = self.type(inner, parameter.type)
            must = frame.is_comptime or (ty.is_comptime_only(kind) and kind != ty.ANYTYPE) or parameter.is_comptime
            value = self.value(frame.comptime() if must else frame, node, None if kind == ty.ANYTYPE else kind)
            kind = value.type if kind == ty.ANYTYPE else kind
            if isinstance(value, Const) and not (is_open(value) and parameter.is_comptime):
                scope[parameter.name] = value
            else:
                scope[parameter.name] = LocalPlace(kind, ir.Local(parameter.name, self.slot_type(kind, node.span)))
            arguments.append((parameter, kind, value))
        result = self.type(inner, declaration.result) if declaration.result is not None else ty.VOID
        known = all(isinstance(v, Const) and not is_open(v) for _, _, v in arguments)
        if frame.is_comptime or (ty.is_comptime_only(result) and known):
            return self.within("called here", span, lambda: self.run(frame, function, scope, result, span))
        if declaration.is_inline and known and result != ty.VOID:
            made = self.attempt(lambda: self.run(frame, function, scope, result, span))
            if made is not None:
                return made
        fixed: dict[str, Const] = {}
        passed: dict[str, Value] = {}
        for parameter, kind, value in arguments:
            if is_open(value):
                assert isinstance(value, Const)
                fixed[parameter.name] = template(value, parameter.name, passed)  # pyright: ignore[reportArgumentType]
            elif isinstance(value, Const) and (_is_fixed(kind) or parameter.is_comptime or declaration.is_inline):
                fixed[parameter.name] = value
            else:
                passed[parameter.name] = value
        own = {p.name: k for p, k, _ in arguments}
        kinds = {name: own.get(name, value.type) for name, value in passed.items()}
        is_generic = fixed or ty.ANYTYPE in self.function_type(instance, declaration).parameters
        if instance.is_library or is_generic:
            target = self.within("called here", span, lambda: self.lower(function, fixed, kinds, result))
        else:
            target = self.lower(function, fixed, kinds, result)
        written = {p.name: node for (p, _, _), node in zip(arguments, nodes, strict=True)}
        slots = [aggregates.passed(self, frame, value, written.get(name), span) for name, value in passed.items()]
        return aggregates.call(self, frame, ir.Call(target, slots, self.place_of(span)), result, span)

    def run(self, frame: Frame, function: FunctionValue, scope: dict[str, Any], result: Type, span: Span) -> Const:
        """A call at compile time."""
        if frame.depth >= MAX_CALLS:
            name = function.declaration.name
            raise CslError(
                span, f"more than {MAX_CALLS} nested calls at compile time", f"{name} may call itself forever"
            )
        inner = Frame(function.instance, [dict(scope)], None, frozenset(), result, [], frame.depth + 1)
        if function.declaration.body is None:
            raise CslError(span, f"{function.declaration.name} is extern; it cannot be called at compile time")
        try:
            self.block(inner, function.declaration.body)
        except Returned as returned:
            if result == ty.VOID:
                return VOID
            value = self.coerce(returned.value, result, span)
            assert isinstance(value, Const)
            return value
        if result not in (ty.VOID, ty.ANYTYPE):
            raise _no_return(function.declaration, result)
        return VOID

    def lower(
        self, function: FunctionValue, fixed: dict[str, Const], kinds: dict[str, Type], result: Type
    ) -> ir.Function:
        """The IR of a function, once for each set of compile-time arguments and types."""
        declaration = function.declaration
        key = (id(function.instance), declaration.name, tuple(fixed.items()), tuple(kinds.items()))
        known = self.functions.get(key)
        if known is not None:
            return known
        scope: dict[str, Any] = dict(fixed)
        parameters = []
        names = _addressed(declaration.body) if declaration.body is not None else frozenset()
        frame = Frame(function.instance, [scope], [], names, result, [], 0, declaration.name)
        gives = self.slot_type(result, declaration.span)
        if isinstance(result, ty.Struct):
            parameters.append(ir.Local("result", gives))
            frame.result_place, gives = MemoryPlace(result, ir.GetLocal(parameters[0])), ir.Special.VOID
        for name, kind in kinds.items():
            local = ir.Local(name, self.slot_type(kind, declaration.span))
            parameters.append(local)
            is_struct = isinstance(kind, ty.Struct)
            scope[name] = MemoryPlace(kind, ir.GetLocal(local), 0, True) if is_struct else LocalPlace(kind, local)
        for name, value in fixed.items():
            if isinstance(value.value, StructValue):
                scope[name] = filled(value, scope, lambda place: Run(place.type, ir.GetLocal(place.local)))
        lowered = ir.Function(
            declaration.name, parameters, gives, [], self.place_of(declaration.span), declaration.span, frame.memory
        )
        self.functions[key] = lowered
        if self.program is not None:
            self.program.functions.append(lowered)
        assert frame.out is not None
        if declaration.body is None:
            self.later.append(lambda: linkage.bind(self, function, lowered))
            return lowered
        for name in kinds:
            if name in names and isinstance(scope[name], LocalPlace):
                self.to_memory(frame, name, scope)
        before = self.compilation.diagnostics.num_failures
        self.block(frame, declaration.body)
        lowered.body = frame.out
        if result != ty.VOID and before == self.compilation.diagnostics.num_failures and not never_ends(lowered.body):
            self.report(_no_return(declaration, result))
        return lowered

    def to_memory(self, frame: Frame, name: str, scope: dict[str, Any]) -> None:
        """A parameter whose address is taken gets memory."""
        place: LocalPlace = scope[name]
        variable = aggregates.own(self, frame, name, place.type)
        assert frame.out is not None
        frame.out.append(ir.Store(place.local.type, ir.Address(variable), 0, ir.GetLocal(place.local)))
        scope[name] = MemoryPlace(place.type, ir.Address(variable))

    def slot_type(self, kind: Type, span: Span) -> ir.Type:
        """How a value goes through slots."""
        if kind == ty.VOID:
            return ir.Special.VOID
        if isinstance(kind, ty.DsdType):
            return ir.Special.DSD
        own = ty.scalar(kind)
        if own is None:
            if isinstance(kind, ty.Struct):
                return T.U16  # its address
            if isinstance(kind, ty.Array):
                raise CslError(span, f"{kind} cannot be passed by value", "pass a pointer to it")
            raise CslError(span, f"a value of type {kind} does not exist at run time")
        return own

    def runtime(self, value: Value, span: Span) -> ir.Expr:
        """A value as IR."""
        if isinstance(value, Run):
            return value.expr
        kind, known = value.type, value.value
        if isinstance(known, PointerValue):
            return ir.Address(known.variable, known.offset)
        if isinstance(kind, ty.DsdType):
            return known
        own = ty.scalar(kind)
        if own is not None:
            return ir.Const(scalar_bits(kind, known), own)
        if isinstance(kind, ty.Array | ty.Struct):
            return ir.Address(self.anonymous(value, span))
        raise CslError(span, f"a value of type {kind} does not exist at run time", "give it a sized type with @as")

    def anonymous(self, value: Const, span: Span) -> ir.Variable:
        """Memory for a constant aggregate."""
        variable = ir.Variable(f"constant.{self.num_strings}", ty.size_bytes(value.type), 4)
        self.num_strings += 1
        self.fill(variable, value, span)
        if self.program is not None:
            self.program.variables.append(variable)
        return variable

    def access_fields(self, value: Const) -> Const:
        """The struct that an access of an array stands for."""
        from openwafer.wafer.csl.builtins.access import as_struct

        return as_struct(self, value)

    def field(self, frame: Frame, node: ast.Field, want: Type | None) -> Value | Place:
        base = self.expr(frame, node.base)
        if isinstance(base, Const) and base.type == ty.ACCESS:
            base = self.access_fields(base)
        if isinstance(base, Const) and not isinstance(base.type, ty.Packed):
            return self.const_field(base, node)
        kind = base.type
        if isinstance(kind, ty.Packed):
            return packed.field(self, base, node.name, node.span)
        if isinstance(base, CellPlace):
            if isinstance(kind, ty.Struct) or kind == ty.COMPTIME_STRUCT:
                inner = CellPlace(kind, base.cell, (*base.path, node.name))
                return replace(inner, type=_at_path(inner, node).type)
            return self.const_field(_at_path(base), node)
        if isinstance(kind, ty.Pointer) and isinstance(kind.target, ty.Struct | ty.Packed):
            pointer = self.load(frame, base, node.span)
            base = MemoryPlace(kind.target, self.runtime(pointer, node.span), 0, kind.is_const)
            kind = kind.target
            if isinstance(kind, ty.Packed):
                return packed.field(self, base, node.name, node.span)
        if isinstance(kind, ty.Struct) and isinstance(base, MemoryPlace | Run):
            fields = dict(kind.fields)
            if node.name not in fields:
                raise CslError(node.span, f'{kind} has no field "{node.name}"{among(node.name, fields)}')
            address = base.address if isinstance(base, MemoryPlace) else base.expr
            offset = base.offset if isinstance(base, MemoryPlace) else 0
            is_const = isinstance(base, Run) or base.is_const
            return MemoryPlace(fields[node.name], address, offset + kind.offset(node.name), is_const)
        raise CslError(node.span, f"a value of type {kind} has no fields")

    def const_field(self, base: Const, node: ast.Field) -> Value | Place:
        known = base.value
        if isinstance(known, Instance):
            found = self.global_name(known, node.name, node.span)
            if found is None:
                close = nearest(node.name, known.declarations)
                raise CslError(node.span, f'{_shown(known.path)} has no "{node.name}"{close}')
            return found
        if isinstance(known, StructValue):
            found = known.get(node.name)
            if found is None:
                raise _no_field(base, node.name, node.span)
            return found
        if base.type == ty.TYPE and isinstance(known, ty.Enum):
            members = dict(known.members)
            if node.name not in members:
                raise CslError(node.span, f'{known} has no member "{node.name}"{among(node.name, members)}')
            return Const(known, members[node.name])
        if isinstance(known, PointerValue) and isinstance(base.type, ty.Pointer):
            target = base.type.target
            if isinstance(target, ty.Packed):
                place = MemoryPlace(target, ir.Address(known.variable), known.offset, base.type.is_const)
                return packed.field(self, place, node.name, node.span)
            if isinstance(target, ty.Struct):
                if node.name not in dict(target.fields):
                    raise CslError(
                        node.span, f'{target} has no field "{node.name}"{among(node.name, dict(target.fields))}'
                    )
                offset = known.offset + target.offset(node.name)
                address = ir.Address(known.variable)
                return MemoryPlace(dict(target.fields)[node.name], address, offset, base.type.is_const)
        raise CslError(node.span, f"a value of type {base.type} has no fields")

    def dereference(self, frame: Frame, node: ast.Dereference, want: Type | None) -> Place:
        pointer = self.load(frame, self.expr(frame, node.base), node.span)
        if not isinstance(pointer.type, ty.Pointer):
            raise CslError(node.base.span, f".* needs a pointer, found a value of type {pointer.type}")
        return MemoryPlace(pointer.type.target, self.runtime(pointer, node.span), 0, pointer.type.is_const)

    def index(self, frame: Frame, node: ast.Index, want: Type | None) -> Value | Place:
        base = self.expr(frame, node.base)
        if isinstance(base.type, ty.Pointer):
            return self.pointer_index(frame, node, self.load(frame, base, node.base.span))
        known = _at_path(base) if isinstance(base, CellPlace) else base
        if isinstance(known, Const) and isinstance(known.value, StructValue) and known.value.is_tuple:
            return self.index_tuple(known.value, frame, node)
        kind = base.type
        if not isinstance(kind, ty.Array):
            raise CslError(node.base.span, f"a value of type {kind} cannot be indexed")
        if len(node.indices) != len(kind.extents):
            raise CslError(node.span, f"{kind} takes {len(kind.extents)} indices, found {len(node.indices)}")
        flat = self.flat_index(frame, node.indices, kind.extents)
        if isinstance(flat, int):
            if isinstance(base, CellPlace):
                return CellPlace(kind.element, base.cell, (*base.path, flat))
            if isinstance(base, Const) and isinstance(base.value, ArrayValue):
                return Const(kind.element, base.value.at(flat))
            if isinstance(base, MemoryPlace):
                whole = base.known.value if base.known is not None else None
                known = Const(kind.element, whole.at(flat)) if isinstance(whole, ArrayValue) else None
                offset = base.offset + flat * ty.size_bytes(kind.element)
                return MemoryPlace(kind.element, base.address, offset, base.is_const, known)
        if isinstance(base, Const):
            base = MemoryPlace(kind, self.runtime(base, node.span), 0, True)
        if isinstance(base, MemoryPlace):
            return self.element(offset_by(base.address, base.offset), kind.element, flat, base.is_const)
        if isinstance(base, Run):
            return self.element(base.expr, kind.element, flat, True)
        raise CslError(node.span, "an array that exists at compile time only takes an index known at compile time")

    def index_tuple(self, base: StructValue, frame: Frame, node: ast.Index) -> Const:
        if len(node.indices) != 1:
            raise CslError(node.span, f"a tuple takes 1 index, found {len(node.indices)}")
        number = self.integer(frame, node.indices[0])
        if not 0 <= number < len(base.fields):
            raise CslError(node.indices[0].span, f"index {number} is out of bounds (0 to {len(base.fields) - 1})")
        return base.fields[number][1]

    def pointer_index(self, frame: Frame, node: ast.Index, pointer: Value) -> Place:
        kind = pointer.type
        assert isinstance(kind, ty.Pointer)
        target = kind.target
        if isinstance(target, ty.Array) and not kind.is_many:
            extents, element = target.extents, target.element
        else:
            extents, element = (None,), target
        if len(node.indices) != len(extents):
            raise CslError(node.span, f"{kind} takes {len(extents)} indices, found {len(node.indices)}")
        flat = self.flat_index(frame, node.indices, extents)
        return self.element(self.runtime(pointer, node.span), element, flat, kind.is_const)

    def element(self, address: ir.Expr, kind: Type, flat: int | ir.Expr, is_const: bool) -> Place:
        size = ty.size_bytes(kind)
        if isinstance(flat, int):
            return MemoryPlace(kind, address, flat * size, is_const)
        if ty.scalar(kind) is not None:
            return ElementPlace(kind, address, flat, is_const)
        step = ir.Binary(Op.MUL, T.U16, flat, ir.Const(size, T.U16))
        return MemoryPlace(kind, ir.Binary(Op.ADD, T.U16, address, step), 0, is_const)

    def flat_index(self, frame: Frame, nodes: tuple[ast.Expr, ...], extents: tuple[int | None, ...]) -> int | ir.Expr:
        """Row-major index of one element."""
        flat: int | ir.Expr = 0
        for node, extent in zip(nodes, extents, strict=True):
            value = self.value(frame, node)
            if not (isinstance(value.type, ty.Int | ty.Enum) or value.type == ty.COMPTIME_INT):
                raise CslError(node.span, f"an index must be an integer, found {value.type}")
            own: int | ir.Expr
            if isinstance(value, Const):
                own = value.value
                if extent is not None and not 0 <= value.value < extent:
                    raise CslError(node.span, f"index {value.value} is out of bounds (0 to {extent - 1})")
            else:
                own = value.expr
            flat = own if extents.index(extent) == 0 and flat == 0 else _combine(flat, extent or 1, own)
        return flat

    def address_of(self, frame: Frame, node: ast.AddressOf, want: Type | None) -> Value:
        found = self.expr(frame, node.operand)
        if isinstance(found, MemoryPlace):
            kind = ty.Pointer(found.type, False, found.is_const)
            if isinstance(found.address, ir.Address):
                address = found.address
                return Const(kind, PointerValue(address.variable, address.offset + found.offset))
            return Run(kind, offset_by(found.address, found.offset))
        if isinstance(found, ElementPlace):
            size = ir.Const(ty.size_bytes(found.type), T.U16)
            step = ir.Binary(Op.MUL, T.U16, found.index, size)
            return Run(ty.Pointer(found.type, False, found.is_const), ir.Binary(Op.ADD, T.U16, found.address, step))
        if isinstance(found, Const) and ty.size_bytes(found.type):
            return Const(ty.Pointer(found.type, False, True), PointerValue(self.anonymous(found, node.span)))
        if isinstance(found, CellPlace) and ty.size_bytes(found.type):
            value = _at_path(found)
            return Const(ty.Pointer(found.type, False, True), PointerValue(self.anonymous(value, node.span)))
        if isinstance(found, PackedPlace):
            raise CslError(node.span, f"a field of a {found.base.type} has no address", "copy it to a variable first")
        raise CslError(node.span, "this has no address; a variable in memory, a field or an element of one has")

    def unary(self, frame: Frame, node: ast.Unary, want: Type | None) -> Value:
        literal = isinstance(node.operand, ast.IntLiteral)  # -32768 fits i16 though 32768 does not
        wanted = want if node.operator == "-" and _is_sized(want) and not literal else None
        value = self.value(frame, node.operand, wanted)
        kind = value.type
        if node.operator == "!":
            if kind != ty.BOOL:
                raise CslError(node.span, f"! needs a bool, found {kind}")
            return Const(kind, not value.value) if isinstance(value, Const) else Run(kind, ir.LogicalNot(value.expr))
        integral = isinstance(kind, ty.Int) or kind == ty.COMPTIME_INT
        if not integral and (node.operator == "~" or not (isinstance(kind, ty.Float) or kind == ty.COMPTIME_FLOAT)):
            raise CslError(node.span, f"{node.operator} is not defined for {kind}")
        if isinstance(value, Const):
            result = -value.value if node.operator == "-" else ~value.value
            return Const(kind, kind.wrap(result) if isinstance(kind, ty.Int) else result)
        own = ty.scalar(kind)
        assert own is not None
        node_type = ir.Negate if node.operator == "-" else ir.Invert
        return Run(kind, packed.narrow(node_type(own, value.expr), kind))

    def binary(self, frame: Frame, node: ast.Binary, want: Type | None) -> Value:
        if node.operator in ("and", "or"):
            return self.logical(frame, node)
        left = self.value(frame, node.left)
        right = self.value(frame, node.right)
        return self.operate(node.operator, left, right, node.span)

    def logical(self, frame: Frame, node: ast.Binary) -> Value:
        left = self.value(frame, node.left, ty.BOOL)
        is_and = node.operator == "and"
        if isinstance(left, Const):
            if bool(left.value) != is_and:
                return left
            return self.value(frame, node.right, ty.BOOL)
        inner = replace_out(frame)
        right = self.value(inner, node.right, ty.BOOL)
        right_expr = self.runtime(right, node.right.span)
        if inner.out:
            right_expr = ir.Sequence(inner.out, right_expr)
        return Run(ty.BOOL, ir.Logical(is_and, left.expr, right_expr))

    def operate(self, operator: str, left: Value, right: Value, span: Span) -> Value:
        """A binary operation on two values."""
        if operator in COMPARE:
            return self.compare(operator, left, right, span)
        if operator in ("<<", ">>"):
            kind = left.type
            if isinstance(right, Const) and isinstance(right.value, int) and right.value < 0:
                raise CslError(span, f"a shift count must not be negative, found {right.value}")
        else:
            left, right, kind = self.unified(left, right, span, operator)
        integral = isinstance(kind, ty.Int) or kind == ty.COMPTIME_INT
        floating = isinstance(kind, ty.Float) or kind == ty.COMPTIME_FLOAT
        if not integral and (not floating or operator in ("<<", ">>", "&", "|", "^")):
            if kind == ty.BOOL and operator in ("&", "|", "^") and isinstance(left, Const) and isinstance(right, Const):
                return Const(kind, bool(arithmetic(operator, ty.COMPTIME_INT, int(left.value), int(right.value))))
            raise CslError(span, f"{operator} is not defined for {kind}")
        if isinstance(left, Const) and isinstance(right, Const):
            try:
                return Const(kind, arithmetic(operator, kind, left.value, right.value))
            except ComptimeError as error:
                raise CslError(span, str(error)) from None
        if operator in ("<<", ">>"):
            if kind == ty.COMPTIME_INT:
                text = "the left side of a shift by a run-time count needs a sized type"
                raise CslError(span, text, "give it one with @as")
            if isinstance(right, Const) and right.type == ty.COMPTIME_INT:
                right = Const(ty.U16, right.value)
        if isinstance(right, Const) and operator in ("/", "%") and integral and right.value == 0:
            raise CslError(span, "division by zero")
        own = ty.scalar(kind)
        assert own is not None
        expr = ir.Binary(
            _RUNTIME[operator], own, self.runtime(left, span), self.runtime(right, span), self.place_of(span)
        )
        return Run(kind, packed.narrow(expr, kind))

    def unified(self, left: Value, right: Value, span: Span, operator: str) -> tuple[Value, Value, Type]:
        """Both operands in one type."""
        a, b = left.type, right.type
        if a == b:
            return left, right, a
        for one, other in ((a, b), (b, a)):
            if one in ty.NUMBERS and isinstance(other, ty.Int | ty.Float):
                return self.coerce(left, other, span), self.coerce(right, other, span), other
        if a in ty.NUMBERS and b in ty.NUMBERS:
            kind = ty.COMPTIME_FLOAT
            return self.coerce(left, kind, span), self.coerce(right, kind, span), kind
        if isinstance(left, Const) and isinstance(a, ty.Int) and isinstance(b, ty.Int):
            return self.coerce(left, b, span), right, b
        if isinstance(right, Const) and isinstance(a, ty.Int) and isinstance(b, ty.Int):
            return left, self.coerce(right, a, span), a
        if isinstance(a, ty.Pointer) and isinstance(b, ty.Pointer):
            return left, right, a
        hint = ["convert one with @as"] if ty.scalar(a) and ty.scalar(b) else []
        raise CslError(span, f"{operator} needs two operands of one type, found {a} and {b}", *hint)

    def compare(self, operator: str, left: Value, right: Value, span: Span) -> Value:
        left, right, kind = self.unified(left, right, span, operator)
        ordered = isinstance(kind, ty.Int | ty.Float | ty.Enum) or kind in ty.NUMBERS
        if operator not in ("==", "!=") and not ordered and not isinstance(kind, ty.Opaque):
            raise CslError(span, f"{operator} is not defined for {kind}")
        if isinstance(left, Const) and isinstance(right, Const) and not isinstance(kind, ty.Packed):
            return Const(ty.BOOL, COMPARE[operator](left.value, right.value))
        own = ty.scalar(kind)
        if own is None or isinstance(kind, ty.Packed):
            raise CslError(span, f"{operator} is not defined for {kind}")
        first, second = self.runtime(left, span), self.runtime(right, span)
        if operator in (">", ">="):
            first, second = second, first
        return Run(ty.BOOL, ir.Compare(_COMPARISONS[operator], own, first, second))

    def if_expr(self, frame: Frame, node: ast.IfExpr, want: Type | None) -> Value | Place:
        condition = self.value(frame, node.condition, ty.BOOL)
        if isinstance(condition, Const):
            if condition.value:
                return self.expr(frame, node.then, want)
            if node.otherwise is None:
                raise CslError(node.span, "no branch of this if is taken, so it has no value")
            return self.expr(frame, node.otherwise, want)
        if node.otherwise is None:
            raise CslError(node.span, "an if without else has no value")
        frames = replace_out(frame), replace_out(frame)
        then = self.value(frames[0], node.then, want)
        otherwise = self.value(frames[1], node.otherwise, want)
        then, otherwise, kind = self.unified(then, otherwise, node.span, "if")
        if kind in ty.NUMBERS:
            raise CslError(node.span, f"both values are of type {kind}, which does not exist at run time")
        values = []
        for inner, value in zip(frames, (then, otherwise), strict=True):
            expr = self.runtime(value, node.span)
            values.append(ir.Sequence(inner.out, expr) if inner.out else expr)
        return Run(kind, ir.Select(self.slot_type(kind, node.span), condition.expr, values[0], values[1]))

    def switch_expr(self, frame: Frame, node: ast.SwitchExpr, want: Type | None) -> Value | Place:
        operand = self.value(frame, node.operand)
        self.check_prongs(frame, operand.type, node)
        if not isinstance(operand, Const):
            return self.select_prong(frame, node, operand, want)
        prong = self.chosen(frame, operand, node.prongs, node.span)
        if prong is None or isinstance(prong.body, ast.Block | ast.Assign | ast.Return | ast.Break | ast.Continue):
            raise CslError(node.span, "the chosen prong has no value")
        return self.expr(frame, prong.body, want)  # pyright: ignore[reportArgumentType]

    def select_prong(self, frame: Frame, node: ast.SwitchExpr, operand: Run, want: Type | None) -> Value:
        """A switch expression over a run-time value."""
        kind, own = operand.type, ty.scalar(operand.type)
        assert own is not None
        held = self.held(frame, operand, own, node.span)
        made: list[tuple[ast.Prong, Frame, Value]] = []
        for prong in node.prongs:
            if isinstance(prong.body, ast.Block | ast.Assign | ast.Return | ast.Break | ast.Continue):
                raise CslError(prong.span, "this prong has no value")
            inner = replace_out(frame)
            made.append((prong, inner, self.value(inner, prong.body, want)))  # pyright: ignore[reportArgumentType]
        result = next((v.type for _, _, v in made if v.type not in ty.NUMBERS), None)
        if result is None:
            raise CslError(node.span, "the values of a switch over a run-time value need a sized type")
        *first, last = sorted(made, key=lambda item: item[0].is_else)
        chosen = self.prong_value(last, result)
        for item in reversed(first):
            condition: ir.Expr | None = None
            for value in item[0].values:
                test = self.prong_test(frame, held, own, kind, value)
                condition = test if condition is None else ir.Logical(False, condition, test)
            assert condition is not None
            chosen = ir.Select(self.slot_type(result, node.span), condition, self.prong_value(item, result), chosen)
        return Run(result, chosen)

    def prong_value(self, made: tuple[ast.Prong, Frame, Value], kind: Type) -> ir.Expr:
        prong, inner, value = made
        expr = self.runtime(self.coerce(value, kind, prong.span), prong.span)
        return ir.Sequence(inner.out, expr) if inner.out else expr

    def check_prongs(self, frame: Frame, kind: Type, node: ast.Switch | ast.SwitchExpr) -> None:
        """A switch leaves nothing out and says nothing twice."""
        if not isinstance(kind, ty.Int | ty.Enum | ty.Opaque) and kind not in _SWITCHED:
            raise CslError(node.operand.span, f"a switch goes over integers and enums, not over {kind}")
        self.check_values(frame, kind, node)
        if isinstance(kind, ty.Enum) and not any(p.is_else for p in node.prongs):
            seen = {self.constant(frame, v, kind).value for p in node.prongs for v in p.values}
            missing = [name for name, value in kind.members if value not in seen]
            if missing:
                raise CslError(node.span, f"the switch leaves out {', '.join(missing)}", "add prongs for them, or else")
        elif kind == ty.BOOL and not any(p.is_else for p in node.prongs):
            seen = {self.constant(frame, v, kind).value for p in node.prongs for v in p.values}
            for missing in {True, False} - seen:
                text = f"the switch leaves out {str(missing).lower()}"
                raise CslError(node.span, text, "add a prong for it, or else")
        elif not any(p.is_else for p in node.prongs):
            raise CslError(node.span, f"a switch over {kind} needs an else")

    def check_values(self, frame: Frame, kind: Type, node: ast.Switch | ast.SwitchExpr) -> None:
        seen: dict[Any, Span] = {}
        for prong in node.prongs:
            for value in prong.values if not prong.is_else else ():
                if isinstance(value, ast.Range):
                    low, high = (self.constant(frame, v, kind).value for v in (value.low, value.high))
                    if low > high:
                        raise CslError(value.span, f"this range is empty: {low} is more than {high}")
                    continue
                known = self.constant(frame, value, kind).value
                if known in seen:
                    raise CslError(value.span, "this value has a prong already", ("it is here", seen[known]))
                seen[known] = value.span
        others = [prong for prong in node.prongs if prong.is_else]
        if len(others) > 1:
            raise CslError(others[1].span, "a switch has one else", ("the first is here", others[0].span))

    def chosen(self, frame: Frame, operand: Const, prongs: tuple[ast.Prong, ...], span: Span) -> ast.Prong | None:
        """The prong of a known value."""
        for prong in prongs:
            if prong.is_else:
                return prong
            for value in prong.values:
                if isinstance(value, ast.Range):
                    low, high = self.integer(frame, value.low), self.integer(frame, value.high)
                    if low <= operand.value <= high:
                        return prong
                elif self.constant(frame, value, operand.type).value == operand.value:
                    return prong
        return None

    def struct_literal(self, frame: Frame, node: ast.StructLiteral, want: Type | None) -> Value | Place:
        if node.is_void:
            return VOID
        kind = self.type(frame, node.type) if node.type is not None else want
        wants = dict(kind.fields) if isinstance(kind, ty.Struct | ty.Packed) else {}
        fields: list[tuple[str, Value]] = []
        for item in node.fields:
            if any(item.name == name for name, _ in fields):
                raise CslError(item.span, f'the field "{item.name}" is given twice')
            fields.append((item.name, self.value(frame, item.value, wants.get(item.name))))
        if isinstance(kind, ty.Packed):
            return packed.literal(self, kind, dict(fields), node.span)
        if all(isinstance(value, Const) for _, value in fields):
            made = StructValue(tuple(fields))  # pyright: ignore[reportArgumentType]
            if isinstance(kind, ty.Struct):
                return self.struct(kind, made, node.span)
            return Const(ty.COMPTIME_STRUCT, made)
        if not isinstance(kind, ty.Struct):
            return self.open_struct(frame, fields, node.span)
        return self.runtime_struct(frame, kind, dict(fields), node.span)

    def open_struct(self, frame: Frame, fields: list[tuple[str, Value]], span: Span) -> Const:
        """An anonymous struct, its run-time fields each in a local; see tuples.py."""
        assert frame.out is not None
        held: list[tuple[str, Value]] = []
        for name, value in fields:
            if isinstance(value, Run) and isinstance(value.type, ty.Struct):
                value = aggregates.kept(self, frame, value, name, span)
            elif isinstance(value, Run):
                local = ir.Local(name, self.slot_type(value.type, span))
                frame.out.append(ir.SetLocal(local, value.expr))
                value = Run(value.type, ir.GetLocal(local))
            held.append((name, value))
        return Const(ty.COMPTIME_STRUCT, StructValue(tuple(held)))  # pyright: ignore[reportArgumentType]

    def runtime_struct(self, frame: Frame, kind: ty.Struct, fields: dict[str, Value], span: Span) -> Place:
        variable = aggregates.own(self, frame, "literal", kind)
        self.check_fields(kind, list(fields), span)
        for name, field_type in kind.fields:
            if kind.is_union and name not in fields:
                continue
            if name not in fields:
                continue
            self.store(frame, MemoryPlace(field_type, ir.Address(variable), kind.offset(name)), fields[name], span)
        return MemoryPlace(kind, ir.Address(variable))

    def tuple_literal(self, frame: Frame, node: ast.TupleLiteral, want: Type | None) -> Value | Place:
        kind: Type | None = None
        if node.type is not None:
            kind = self.literal_type(frame, node)
        elif isinstance(want, ty.Array):
            kind = want
        element = kind.element if isinstance(kind, ty.Array) and len(kind.extents) == 1 else None
        values = [self.value(frame, e, element) for e in node.elements]
        if all(isinstance(v, Const) for v in values):
            if isinstance(kind, ty.Array):
                return self.array(kind, values, node.span)  # pyright: ignore[reportArgumentType]
            fields = tuple((str(i), v) for i, v in enumerate(values))
            return Const(ty.COMPTIME_STRUCT, StructValue(fields))  # pyright: ignore[reportArgumentType]
        if not isinstance(kind, ty.Array):
            return self.open_struct(frame, [(str(i), v) for i, v in enumerate(values)], node.span)
        if len(values) != kind.count:
            raise CslError(node.span, f"{kind} has {kind.count} elements, found {len(values)}")
        variable = aggregates.own(self, frame, "literal", kind)
        size = ty.size_bytes(kind.element)
        for number, value in enumerate(values):
            self.store(frame, MemoryPlace(kind.element, ir.Address(variable), number * size), value, node.span)
        return MemoryPlace(kind, ir.Address(variable))

    def literal_type(self, frame: Frame, node: ast.TupleLiteral) -> Type:
        """The array type of a literal; `_` as extent counts the elements."""
        kind = node.type
        if isinstance(kind, ast.ArrayType) and len(kind.extents) == 1:
            extent = kind.extents[0]
            if isinstance(extent, ast.Name) and extent.text == "_":
                return ty.Array((len(node.elements),), self.type(frame, kind.element))
        assert kind is not None
        return self.type(frame, kind)

    def type_expr(self, frame: Frame, node: ast.Expr, want: Type | None) -> Const:
        if isinstance(node, ast.PointerType):
            return Const(ty.TYPE, ty.Pointer(self.type(frame, node.target), node.is_many, node.is_const))
        if isinstance(node, ast.ArrayType):
            extents = tuple(self.integer(frame, e) for e in node.extents)
            if any(extent < 0 for extent in extents):
                raise CslError(node.span, f"an array cannot have {min(extents)} elements")
            return Const(ty.TYPE, ty.Array(extents, self.type(frame, node.element)))
        if isinstance(node, ast.FunctionType):
            parameters = tuple(self.type(frame, p) for p in node.parameters)
            return Const(ty.TYPE, ty.FunctionType(parameters, self.type(frame, node.result), node.is_task))
        identity = (id(frame.instance), node.span)
        if isinstance(node, ast.EnumType):
            base = self.type(frame, node.base) if node.base is not None else ty.U16
            if not isinstance(base, ty.Int):
                raise CslError(node.span, f"an enum is made of integers, not of {base}")
            said = {name: self.integer(frame, value) for name, value in node.members if value is not None}
            free = (number for number in itertools.count() if number not in said.values())
            members = [(name, said[name] if name in said else next(free)) for name, _ in node.members]
            for (name, number), (_, value) in zip(members, node.members, strict=True):
                if not base.low <= number <= base.high:
                    text = f"{name} = {number} does not fit the enum's {base} ({base.low} to {base.high})"
                    raise CslError(value.span if value is not None else node.span, text)
            return Const(ty.TYPE, ty.Enum("enum", base, tuple(members), identity))
        assert isinstance(node, ast.StructType)
        for given in node.fields:
            if given.default is not None:
                raise CslError(given.default.span, "not supported yet: values of their own for fields")
        fields = tuple((f.name, self.type(frame, f.type)) for f in node.fields)
        if node.kind.startswith("packed"):
            return Const(ty.TYPE, packed.packed_type(node.kind, fields, identity, node))
        name = node.kind.split()[-1]
        return Const(ty.TYPE, ty.Struct(name, fields, identity, name == "union"))

    def comptime_expr(self, frame: Frame, node: ast.ComptimeExpr, want: Type | None) -> Value:
        return self.constant(frame, node.operand, want)

    def access_lambda(self, frame: Frame, node: ast.AccessLambda, want: Type | None) -> Const:
        return Const(ty.ACCESS, (node, frame))

    # --- statements -------------------------------------------------------------------------------------------------

    def block(self, frame: Frame, node: ast.Block) -> None:
        frame.scopes.append({})
        try:
            for statement in node.statements:
                self.statement(frame, statement)
        finally:
            frame.scopes.pop()

    def statement(self, frame: Frame, node: ast.Stmt) -> None:
        """A mistake in it is reported here; not where later values come from it: in a function at compile time."""
        if frame.is_comptime and (frame.result is not None or isinstance(node, ast.Assign)):
            self._statement(frame, node)
            return
        self.guarded(lambda: self._statement(frame, node), node.span)

    def _statement(self, frame: Frame, node: ast.Stmt) -> None:
        _STATEMENTS[type(node)](self, frame, node)

    def local(self, frame: Frame, node: ast.VarDecl) -> None:
        try:
            self.declare_local(frame, node)
        except CslError:
            frame.scopes[-1][node.name] = FAILED
            raise

    def declare_local(self, frame: Frame, node: ast.VarDecl) -> None:
        if node.name in frame.scopes[-1] and frame.scopes[-1][node.name] is not FAILED:
            raise CslError(node.span, f'"{node.name}" is declared twice in this block')
        kind = self.type(frame, node.type) if node.type is not None else None
        scope = frame.scopes[-1]
        if frame.is_comptime or node.is_comptime:
            value = self.constant(frame, node.value, kind) if node.value is not None else None
            if value is None or value.type == ty.Simple("undefined"):
                if kind is None:
                    raise CslError(node.span, f'"{node.name}" needs a type or a value')
                value = self.zero(kind, node.span)
            scope[node.name] = value if node.is_const else Cell(value.type, value, node.name)
            return
        value: Value | None = self.value(frame, node.value, kind) if node.value is not None else None
        if isinstance(value, Const) and value.type == ty.Simple("undefined"):
            value = None
        if isinstance(value, Const) and node.is_const and node.name not in frame.in_memory:
            scope[node.name] = value
            return
        kind = kind or (value.type if value is not None else None)
        if kind is None:
            raise CslError(node.span, f'"{node.name}" needs a type or a value')
        if ty.is_comptime_only(kind):
            if isinstance(value, Const) and node.is_const:
                scope[node.name] = value
                return
            raise CslError(node.span, f"a variable of type {kind} does not exist at run time", "give it a sized type")
        scalar = ty.scalar(kind) is not None or isinstance(kind, ty.DsdType)
        value = value if value is not None else self.zero(kind, node.span)
        place: Place
        if scalar and node.name not in frame.in_memory:
            place = LocalPlace(kind, ir.Local(node.name, self.slot_type(kind, node.span)))
        else:
            place = self.variable(frame, node, kind, None, f"{frame.name}.{node.name}")
            place = replace(place, is_const=False, known=None)
        self.store(frame, place, value, node.span)
        scope[node.name] = replace(place, is_const=True) if node.is_const and isinstance(place, LocalPlace) else place

    def store(self, frame: Frame, place: Place, value: Value, span: Span) -> None:
        """Assign a value of the place's type."""
        if isinstance(place, CellPlace):
            assert isinstance(value, Const)
            place.cell.value = _with_path(place.cell.value, place.path, value)
            return
        if isinstance(place, PackedPlace):
            packed.store(self, frame, place, value, span)
            return
        if frame.out is None:
            text = "this variable exists at run time only; it cannot change at compile time"
            raise CslError(span, text, *_where(place))
        expr, where = self.runtime(value, span), self.place_of(span)
        if isinstance(place, LocalPlace):
            frame.out.append(ir.SetLocal(place.local, expr))
        elif isinstance(place, ElementPlace):
            own = ty.scalar(place.type)
            assert own is not None
            frame.out.append(ir.StoreIndexed(own, place.address, place.index, expr, where))
        elif isinstance(place.type, ty.Array | ty.Struct):
            size = ty.size_bytes(place.type)
            frame.out.append(ir.CopyBytes(offset_by(place.address, place.offset), expr, size, where))
        else:
            frame.out.append(ir.Store(self.slot_type(place.type, span), place.address, place.offset, expr, where))

    def assign(self, frame: Frame, node: ast.Assign) -> None:
        if isinstance(node.target, ast.Name) and node.target.text == "_":
            value = self.value(frame, node.value)
            if isinstance(value, Run) and frame.out is not None:
                frame.out.append(ir.Evaluate(value.expr))
            return
        place = self.expr(frame, node.target)
        if isinstance(place, Const | Run):
            raise _constant(node.target, "cannot be assigned to" if isinstance(place, Run) else "is constant")
        if not isinstance(place, CellPlace) and place.is_const:
            raise _constant(node.target, "is constant")
        if node.operator != "=" or isinstance(place, PackedPlace):
            place = self.steady(frame, place, node.target.span)
        if node.operator == "=":
            value = self.value(frame, node.value, place.type)
        else:
            operator = node.operator[:-1]
            current = self.load(frame, place, node.target.span)
            right = self.value(frame, node.value)
            value = self.coerce(self.operate(operator, current, right, node.span), place.type, node.span)
        self.store(frame, place, value, node.span)

    def steady(self, frame: Frame, place: Place, span: Span) -> Place:
        """A place to load from and store to: what calls a function to find it does so once."""
        if isinstance(place, PackedPlace):
            return replace(place, base=self.steady(frame, place.base, span))
        if isinstance(place, LocalPlace | CellPlace):
            return place
        if ir.calls(place.address):
            place = replace(place, address=self.held(frame, Run(ty.U16, place.address), T.U16, span))
        if isinstance(place, ElementPlace) and ir.calls(place.index):
            own = place.index.type
            assert isinstance(own, T)
            place = replace(place, index=self.held(frame, Run(ty.U16, place.index), own, span))
        return place

    def expression_statement(self, frame: Frame, node: ast.ExprStmt) -> None:
        value = self.load(frame, self.expr(frame, node.value), node.span)
        if isinstance(value, Run) and isinstance(value.expr, ir.SysQuery) and value.expr.sys == Sys.COMPLETED:
            return  # whether a vector operation completed costs nothing where nobody asks
        if isinstance(value, Run) and frame.out is not None and value.type == ty.VOID:
            frame.out.append(ir.Evaluate(value.expr))
        elif isinstance(value, Run) and frame.out is not None:
            if isinstance(node.value, ast.Call | ast.BuiltinCall):
                frame.out.append(ir.Evaluate(value.expr))
            else:
                raise _unused(node)
        elif isinstance(value, Const) and value.type != ty.VOID and isinstance(node.value, _VALUES):
            raise _unused(node)

    def if_stmt(self, frame: Frame, node: ast.If) -> None:
        condition = self.condition(frame, frame, node.condition, (node.then, node.otherwise))
        if isinstance(condition, Const):
            if condition.value:
                self.scoped(frame, node.then)
            elif node.otherwise is not None:
                self.scoped(frame, node.otherwise)
            return
        assert frame.out is not None
        then = self.emitted(frame, node.then)
        otherwise = self.emitted(frame, node.otherwise) if node.otherwise is not None else []
        frame.out.append(ir.If(condition.expr, then, otherwise))

    def condition(self, frame: Frame, inner: Frame, node: ast.Expr, bodies: tuple[ast.Stmt | None, ...]) -> Value:
        """A bool; where it has an error at run time, what hangs on it is analysed all the same."""
        try:
            return self.value(inner, node, ty.BOOL)
        except CslError as error:
            if not frame.is_comptime:
                self.report(error)
                mark = LoopMark(None, ir.Loop(ir.Const(0, T.U8), [], []))
                frame.loops.append(mark)
                for body in bodies:
                    if body is not None:
                        self.emitted(frame, body)
                frame.loops.pop()
                raise Cascade from None
            raise

    def scoped(self, frame: Frame, node: ast.Stmt) -> None:
        frame.scopes.append({})
        try:
            self.statement(frame, node)
        finally:
            frame.scopes.pop()

    def emitted(self, frame: Frame, *nodes: ast.Stmt) -> list[ir.Stmt]:
        """What statements emit, apart from what came before."""
        outer, frame.out = frame.out, []
        try:
            for node in nodes:
                self.scoped(frame, node)
            assert frame.out is not None
            return frame.out
        finally:
            frame.out = outer

    def while_stmt(self, frame: Frame, node: ast.While) -> None:
        mark = LoopMark(node.label, None)
        if frame.is_comptime or node.is_inline:
            with unrolled(frame, mark):
                count = 0
                while self.constant(frame, node.condition, ty.BOOL).value:
                    count = self.counted(count, node.span)
                    if not self.round(frame, node.body, mark):
                        break
                    if node.step is not None:
                        self.statement(frame, node.step)
            return
        inner = replace_out(frame)
        condition = self.condition(frame, inner, node.condition, (node.body, node.step))
        expr = self.runtime(condition, node.condition.span)
        assert frame.out is not None
        loop = ir.Loop(ir.Sequence(inner.out, expr) if inner.out else expr, [], [])
        mark.loop = loop
        frame.loops.append(mark)
        loop.body = self.emitted(frame, node.body)
        frame.loops.pop()
        loop.step = self.emitted(frame, node.step) if node.step is not None else []
        frame.out.append(loop)

    def counted(self, count: int, span: Span) -> int:
        if count >= self.compilation.max_iterations:
            limit = self.compilation.max_iterations
            raise CslError(
                span, f"more than {limit} rounds of a loop at compile time", "raise --max-inlined-iterations"
            )
        return count + 1

    def round(self, frame: Frame, body: ast.Stmt, mark: LoopMark) -> bool:
        """One round of a loop at compile time, or of one that is unrolled; whether to go on."""
        frame.loops.append(mark)
        before = self.compilation.diagnostics.num_failures
        try:
            if not frame.is_comptime:
                return one_round(self, frame, body, mark) and before == self.compilation.diagnostics.num_failures
            self.scoped(frame, body)
        except Left as left:
            if left.mark is not mark:
                raise
            return left.again
        finally:
            frame.loops.pop()
        return before == self.compilation.diagnostics.num_failures  # one round with errors says enough

    def for_stmt(self, frame: Frame, node: ast.For) -> None:
        found = self.expr(frame, node.iterable)
        iterable = found.value if isinstance(found, Const) and isinstance(found.value, RangeValue) else found
        if isinstance(iterable, RangeValue):
            self.for_range(frame, node, iterable)
        elif isinstance(found.type, ty.Array):
            self.for_array(frame, node, found)
        elif isinstance(found, Const) and isinstance(found.value, StructValue) and found.value.is_tuple:
            self.for_tuple(frame, node, [value for _, value in found.value.fields])
        else:
            raise CslError(node.iterable.span, f"for goes over arrays and @range, not over {found.type}")

    def for_tuple(self, frame: Frame, node: ast.For, values: Iterable[Const]) -> None:
        mark = LoopMark(node.label, None)
        with unrolled(frame, mark):
            for number, value in enumerate(values):
                names: dict[str, Any] = {node.element: value}
                if node.index is not None:
                    names[node.index] = Const(ty.U16, number)
                frame.scopes.append(names)
                go_on = self.round(frame, node.body, mark)
                frame.scopes.pop()
                if not go_on:
                    return

    def for_range(self, frame: Frame, node: ast.For, span: RangeValue) -> None:
        bounds = (span.start, span.stop, span.step)
        if frame.is_comptime or node.is_inline:
            if not all(isinstance(b, Const) for b in bounds):
                raise CslError(node.iterable.span, "the bounds of this range are not known at compile time")
            start, stop, step = (b.value for b in bounds if isinstance(b, Const))
            if len(range(start, stop, step)) > self.compilation.max_iterations:
                self.counted(self.compilation.max_iterations, node.span)
            self.for_tuple(frame, node, (Const(span.type, i) for i in range(start, stop, step)))
            return
        own = ty.scalar(span.type)
        if own is None:
            raise CslError(node.iterable.span, f"a range of {span.type} does not exist at run time; use a sized type")
        assert frame.out is not None
        counter = ir.Local(node.element, own)
        frame.out.append(ir.SetLocal(counter, self.runtime(span.start, node.span)))
        down = isinstance(span.step, Const) and span.step.value < 0
        stop = self.held(frame, span.stop, own, node.span)
        sides = (stop, ir.GetLocal(counter)) if down else (ir.GetLocal(counter), stop)
        loop = ir.Loop(ir.Compare(Op.LT, own, *sides), [], [])
        step = ir.Binary(Op.ADD, own, ir.GetLocal(counter), self.runtime(span.step, node.span))
        names: dict[str, Any] = {node.element: LocalPlace(span.type, counter)}
        loop.step = [ir.SetLocal(counter, step)]
        if node.index is not None:
            self.count_index(frame, node, loop, names)
        self.loop_body(frame, node, loop, names)

    def held(self, frame: Frame, value: Value, own: T, span: Span) -> ir.Expr:
        """A value that is computed once, before a loop."""
        expr = self.runtime(value, span)
        if isinstance(expr, ir.Const | ir.Address):
            return expr
        local = ir.Local("bound", own)
        assert frame.out is not None
        frame.out.append(ir.SetLocal(local, expr))
        return ir.GetLocal(local)

    def count_index(self, frame: Frame, node: ast.For, loop: ir.Loop, names: dict[str, Any]) -> None:
        assert frame.out is not None and node.index is not None
        number = ir.Local(node.index, T.U16)
        frame.out.append(ir.SetLocal(number, ir.Const(0, T.U16)))
        loop.step.append(ir.SetLocal(number, ir.Binary(Op.ADD, T.U16, ir.GetLocal(number), ir.Const(1, T.U16))))
        names[node.index] = LocalPlace(ty.U16, number)

    def for_array(self, frame: Frame, node: ast.For, found: Value | Place) -> None:
        kind = found.type
        assert isinstance(kind, ty.Array)
        if frame.is_comptime or node.is_inline:
            known = self.load(frame, found, node.iterable.span)
            if not isinstance(known, Const):
                raise CslError(node.iterable.span, "the elements of this array are not known at compile time")
            if kind.count > self.compilation.max_iterations:
                self.counted(self.compilation.max_iterations, node.span)
            self.for_tuple(frame, node, (Const(kind.element, known.value.at(i)) for i in range(kind.count)))
            return
        address = self.runtime(self.load(frame, found, node.iterable.span), node.span)
        assert frame.out is not None
        number = ir.Local(node.index or "index", T.U16)
        frame.out.append(ir.SetLocal(number, ir.Const(0, T.U16)))
        loop = ir.Loop(ir.Compare(Op.LT, T.U16, ir.GetLocal(number), ir.Const(kind.count, T.U16)), [], [])
        loop.step = [ir.SetLocal(number, ir.Binary(Op.ADD, T.U16, ir.GetLocal(number), ir.Const(1, T.U16)))]
        names: dict[str, Any] = {node.element: self.element(address, kind.element, ir.GetLocal(number), True)}
        if node.index is not None:
            names[node.index] = LocalPlace(ty.U16, number)
        self.loop_body(frame, node, loop, names)

    def loop_body(self, frame: Frame, node: ast.For, loop: ir.Loop, names: dict[str, Any]) -> None:
        assert frame.out is not None
        frame.loops.append(LoopMark(node.label, loop))
        frame.scopes.append(names)
        loop.body = self.emitted(frame, node.body)
        frame.scopes.pop()
        frame.loops.pop()
        frame.out.append(loop)

    def switch_stmt(self, frame: Frame, node: ast.Switch) -> None:
        operand = self.value(frame, node.operand)
        kind = operand.type
        self.check_prongs(frame, kind, node)
        if isinstance(operand, Const):
            prong = self.chosen(frame, operand, node.prongs, node.span)
            if prong is not None:
                self.scoped(frame, _as_statement(prong))
            return
        assert frame.out is not None
        own = ty.scalar(kind)
        assert own is not None
        held = self.held(frame, operand, own, node.span)
        otherwise: list[ir.Stmt] = []
        for prong in reversed(node.prongs):
            body = self.emitted(frame, _as_statement(prong))
            if prong.is_else:
                otherwise = body
                continue
            condition: ir.Expr | None = None
            for value in prong.values:
                test = self.prong_test(frame, held, own, kind, value)
                condition = test if condition is None else ir.Logical(False, condition, test)
            assert condition is not None
            otherwise = [ir.If(condition, body, otherwise)]
        frame.out += otherwise

    def prong_test(self, frame: Frame, held: ir.Expr, own: T, kind: Type, value: ast.Expr) -> ir.Expr:
        def known(node: ast.Expr) -> ir.Expr:
            return self.runtime(self.constant(frame, node, kind), node.span)

        if isinstance(value, ast.Range):
            low = ir.Compare(Op.LE, own, known(value.low), held)
            return ir.Logical(True, low, ir.Compare(Op.LE, own, held, known(value.high)))
        return ir.Compare(Op.EQ, own, held, known(value))

    def return_stmt(self, frame: Frame, node: ast.Return) -> None:
        if frame.result is None:
            raise CslError(node.span, "return outside of a function")
        if node.value is None:
            if frame.result not in (ty.VOID, ty.ANYTYPE):
                raise CslError(node.span, f"expected a value of type {frame.result} after return")
            value: Value = VOID
        else:
            want = frame.result if frame.result not in (ty.ANYTYPE, ty.VOID) else None
            value = self.value(frame, node.value, want)
            if frame.result == ty.VOID and value.type != ty.VOID:
                text = f"this function returns nothing, found a value of type {value.type}"
                raise CslError(node.value.span, text, "write the type of the result behind its parameters")
        if frame.is_comptime:
            assert isinstance(value, Const)
            raise Returned(value)
        assert frame.out is not None
        if value.type == ty.VOID:
            if isinstance(value, Run):
                frame.out.append(ir.Evaluate(value.expr))
            frame.out.append(ir.Return(None))
        elif frame.result_place is not None:
            self.store(frame, frame.result_place, value, node.span)
            frame.out.append(ir.Return(None))
        else:
            frame.out.append(ir.Return(self.runtime(value, node.span)))

    def comptime_block(self, frame: Frame, node: ast.ComptimeBlock) -> None:
        self.block(frame.comptime(), node.block)


_EXPRESSIONS: dict[type, Callable] = {
    ast.IntLiteral: Sema.literal,
    ast.FloatLiteral: Sema.literal,
    ast.StringLiteral: Sema.literal,
    ast.BoolLiteral: Sema.literal,
    ast.Name: lambda sema, frame, node, want: sema.name(frame, node),
    ast.BuiltinCall: Sema.builtin,
    ast.Call: Sema.call,
    ast.Field: Sema.field,
    ast.Dereference: Sema.dereference,
    ast.Index: Sema.index,
    ast.AddressOf: Sema.address_of,
    ast.Unary: Sema.unary,
    ast.Binary: Sema.binary,
    ast.StructLiteral: Sema.struct_literal,
    ast.LabeledBlock: labeled_block,
    ast.TupleLiteral: Sema.tuple_literal,
    ast.AccessLambda: Sema.access_lambda,
    ast.IfExpr: Sema.if_expr,
    ast.SwitchExpr: Sema.switch_expr,
    ast.ComptimeExpr: Sema.comptime_expr,
    ast.PointerType: Sema.type_expr,
    ast.ArrayType: Sema.type_expr,
    ast.FunctionType: Sema.type_expr,
    ast.EnumType: Sema.type_expr,
    ast.StructType: Sema.type_expr,
}
_STATEMENTS: dict[type, Callable] = {
    ast.Block: Sema.block,
    ast.VarDecl: Sema.local,
    ast.Assign: Sema.assign,
    ast.ExprStmt: Sema.expression_statement,
    ast.If: Sema.if_stmt,
    ast.While: Sema.while_stmt,
    ast.For: Sema.for_stmt,
    ast.Switch: Sema.switch_stmt,
    ast.Break: leave,
    ast.Continue: leave,
    ast.Return: Sema.return_stmt,
    ast.ComptimeBlock: Sema.comptime_block,
}


def too_deep(span: Span | None) -> CslError:
    """The compiler's own limit."""
    return CslError(span, "the program nests too deeply for the compiler", "split the expression, or recurse less")


def offset_by(address: ir.Expr, offset: int) -> ir.Expr:
    """An address plus bytes."""
    if offset == 0:
        return address
    if isinstance(address, ir.Address):
        return ir.Address(address.variable, address.offset + offset)
    return ir.Binary(Op.ADD, T.U16, address, ir.Const(offset, T.U16))


def convert(expr: ir.Expr, have: Type, want: Type) -> ir.Expr:
    """A scalar converted, as @as does."""
    source, target = ty.scalar(have), ty.scalar(want)
    assert source is not None and target is not None
    made = expr if source == target else ir.Convert(target, source, expr)
    return made if _widens(have, want) else packed.narrow(made, want)


def replace_out(frame: Frame) -> Frame:
    """The same frame with statements of its own, for code that runs under a condition."""
    if frame.out is None:
        return frame
    return replace(frame, out=[])


def dsd_slots(dsd: ir.DsdValue) -> tuple[int, int, int]:
    """The slots of a DSD with a base of 0."""
    from openwafer.wafer.isa import Dsd

    return Dsd(dsd.kind, 0, dsd.extents, dsd.strides, dsd.queue, dsd.color, dsd.flags).slots()


_SWITCHED = (ty.BOOL, ty.COMPTIME_INT, ty.COMPTIME_STRING, ty.TYPE)
_ALIGNMENTS = tuple(1 << i for i in range(14))


def _innermost(kind: Type) -> Type:
    while isinstance(kind, ty.Array):
        kind = kind.element
    return kind


def _no_return(declaration: ast.FunctionDecl, result: Type) -> CslError:
    span = declaration.result.span if declaration.result is not None else declaration.span
    text = f"{declaration.name} can end without returning a value of type {result}"
    return CslError(span, text, "every way through it must end in return")


_VALUES = (
    ast.IntLiteral, ast.FloatLiteral, ast.StringLiteral, ast.BoolLiteral, ast.Name, ast.Field, ast.Index, ast.Unary,
    ast.Binary, ast.AddressOf, ast.Dereference,
)  # fmt: skip
"""Expressions that do nothing but have a value."""


def _unused(node: ast.ExprStmt) -> CslError:
    compared = isinstance(node.value, ast.Binary) and node.value.operator == "=="
    hint = 'to assign, write "="' if compared else "to compute it for nothing, write _ = ..."
    return CslError(node.span, "this value is not used", hint)


def _constant(node: ast.Expr, why: str) -> CslError:
    name = f'"{node.text}"' if isinstance(node, ast.Name) else "this"
    return CslError(node.span, f"{name} {why}", "declare it with var to change it")


def _where(found: Value | Place) -> list[tuple[str, Span | None]]:
    """A note on the variable that something is part of."""
    address = found.address if isinstance(found, MemoryPlace | ElementPlace) else None
    variable = address.variable if isinstance(address, ir.Address) else None
    if variable is None or variable.span is None:
        return []
    return [(f"{variable.name} is a variable of the PE, declared here", variable.span)]


def _conversion(have: Type, want: Type) -> list[str]:
    """How to turn one type into another, if there is a way."""
    numbers = (ty.Int, ty.Float)
    if isinstance(want, numbers) and (isinstance(have, numbers) or have in ty.NUMBERS or have == ty.BOOL):
        return [f"convert it with @as({want}, ...)"]
    if isinstance(have, ty.Pointer) and isinstance(want, ty.Pointer):
        return ["@ptrcast changes what a pointer points to"] if have.is_const <= want.is_const else []
    if isinstance(want, ty.Pointer) and want.target == have:
        return ["take its address with &"]
    if want == ty.BOOL and isinstance(have, numbers):
        return ["compare it with 0"]
    return []


def _dsd_kind(kind: ty.DsdType) -> Any:
    from openwafer.wafer.isa import DsdKind

    return DsdKind[kind.name.removesuffix("_dsd").upper()]


def _shown(path: str) -> str:
    """A path as a person knows it: <name> in the library, else relative to the working folder where that is shorter."""
    found = Path(path)
    if LIBRARY in found.parents:
        return f"<{found.relative_to(LIBRARY).with_suffix('').as_posix()}>"
    try:
        return str(found.resolve().relative_to(Path.cwd()))
    except ValueError:
        return path


def _is_fixed(kind: Type) -> bool:
    """An argument of this type makes a function of its own."""
    return kind == ty.VOID or ty.is_comptime_only(kind)


def _is_integer(kind: Type) -> bool:
    return isinstance(kind, ty.Int) or kind == ty.COMPTIME_INT


def _is_sized(kind: Type | None) -> bool:
    return isinstance(kind, ty.Int | ty.Float)


def _widens(have: Type, want: Type) -> bool:
    """Whether every number of one type is one of the other."""
    if isinstance(have, ty.Int) and isinstance(want, ty.Int):
        return have.low >= want.low and have.high <= want.high
    return isinstance(have, ty.Float) and isinstance(want, ty.Float) and have.bits < want.bits


def _pointer_fits(have: ty.Pointer, want: ty.Pointer) -> bool:
    if have.is_const and not want.is_const and not isinstance(have.target, ty.Array):
        return False
    target = have.target
    if want.target == ty.ANYOPAQUE and not want.is_many:
        return True
    if isinstance(want.target, ty.Array) and not have.is_many and want.target == ty.Array((1,), target):
        return True
    if want.is_many and not have.is_many and isinstance(target, ty.Array):
        target = target.element
    return target == want.target


def _combine(flat: int | ir.Expr, extent: int, own: int | ir.Expr) -> int | ir.Expr:
    """flat * extent + own."""
    if isinstance(flat, int) and isinstance(own, int):
        return flat * extent + own
    scaled: ir.Expr
    if isinstance(flat, int):
        if flat == 0 and not isinstance(own, int):
            return own
        scaled = ir.Const(flat * extent, T.U16)
    else:
        scaled = ir.Binary(Op.MUL, T.U16, flat, ir.Const(extent, T.U16))
    return ir.Binary(Op.ADD, T.U16, scaled, ir.Const(own, T.U16) if isinstance(own, int) else own)


def _at_path(place: CellPlace, node: ast.Field | None = None) -> Const:
    value = place.cell.value
    for step in place.path:
        if isinstance(step, int):
            assert isinstance(value.type, ty.Array)
            value = Const(value.type.element, value.value.at(step))
            continue
        found = value.value.get(step)
        if found is None:
            assert node is not None
            raise _no_field(value, step, node.span)
        value = found
    return value


def _no_field(base: Const, name: str, span: Span) -> CslError:
    """The error for a field that a known struct or union does not have."""
    names = base.value.names
    if isinstance(base.type, ty.Struct) and base.type.is_union and name in dict(base.type.fields):
        return CslError(span, f'this union holds "{names[0]}", not "{name}"')
    return CslError(span, f'the struct has no field "{name}"{among(name, names)}')


def _with_path(value: Const, path: tuple[str | int, ...], new: Const) -> Const:
    if not path:
        return new
    step, rest = path[0], path[1:]
    if isinstance(step, int):
        assert isinstance(value.type, ty.Array)
        inner = _with_path(Const(value.type.element, value.value.at(step)), rest, new)
        elements = [value.value.at(i) for i in range(value.value.count)]
        elements[step] = inner.value
        return Const(value.type, ArrayValue(value.value.count, tuple(elements)))
    fields = tuple((n, _with_path(v, rest, new) if n == step else v) for n, v in value.value.fields)
    return Const(value.type, StructValue(fields))


def _as_statement(prong: ast.Prong) -> ast.Stmt:
    body = prong.body
    kinds = (ast.Block, ast.Assign, ast.Return, ast.Break, ast.Continue)
    return body if isinstance(body, kinds) else ast.ExprStmt(value=body, span=prong.span)  # pyright: ignore


def _names(node: Any) -> set[str]:
    """All names in a tree."""
    found: set[str] = set()
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, ast.Name):
            found.add(item.text)
        elif isinstance(item, tuple):
            stack += item
        elif isinstance(item, ast.Node):
            stack += [value for key, value in vars(item).items() if key != "span"]
    return found


def _addressed(node: Any) -> frozenset[str]:
    """Names under an & somewhere in a tree."""
    names: set[str] = set()
    stack = [node]
    while stack:
        item = stack.pop()
        if isinstance(item, ast.AddressOf):
            base: Any = item.operand
            while isinstance(base, ast.Field | ast.Index):
                base = base.base
            if isinstance(base, ast.Name):
                names.add(base.text)
        if isinstance(item, tuple):
            stack += item
        elif isinstance(item, ast.Node):
            stack += [value for key, value in vars(item).items() if key != "span"]
    return frozenset(names)
