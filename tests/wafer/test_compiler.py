"""What the compiler says about mistakes, and that no input makes it fall over."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openwafer.wafer import image_file
from openwafer.wafer.csl.diagnostics import CompileFailed, Diagnostics
from openwafer.wafer.csl.lexer import KEYWORDS
from openwafer.wafer.csl.parser import parse_file
from openwafer.wafer.csl.source import Source, Sources
from tests.wafer.programs import build


def run(statement: str, declarations: str = "") -> str:
    return f"{declarations}\nfn run() void {{ {statement} }}\ncomptime {{ @export_symbol(run); }}"


MISTAKES = [
    (run("var a: u8 = 300;"), r'pe\.csl:\d+:\d+: error: value 300 does not fit u8 \(0 to 255\)'),
    (run("const a = undeclared;"), '"undeclared" is not declared'),
    (run("lenght = 1;", "var length: i16 = 0;"), '"lenght" is not declared; did you mean "length"'),
    (run("a[4] = 1;", "var a = @zeros([4]i16);"), r"index 4 is out of bounds \(0 to 3\)"),
    (run("a = b;", "var a: i16 = 0; var b: f32 = 0.0;"), "expected a value of type i16, found f32"),
    (run("a = a + b;", "var a: i16 = 0; var b: i32 = 0;"), r"\+ needs two operands of one type, found i16 and i32"),
    (run("@nothing();"), "there is no builtin @nothing"),
    (run("f(1);", "fn f() void {}"), "f takes 0 arguments, found 1"),
    (run("break;"), "break outside of a loop"),
    (run("a = 1;", "const a: i16 = 0;"), '"a" is constant'),
    (run("const a = 1 / 0;"), "division by zero"),
    (run("var a = 1;"), "a variable of type comptime_int does not exist at run time"),
    (run("if (1) {}"), "expected a value of type bool, found comptime_int"),
    ("comptime { @comptime_assert(false, \"never\"); }", "@comptime_assert: never"),
    ("const a: i16 = a;\ncomptime { @comptime_assert(a == 0); }", '"a" is defined by itself'),
    ("fn run() void { const a = 1 }", 'expected ";" after the declaration'),
    ("fn run() void { a < b < c; }", "comparisons do not chain"),
    ("fn run( void {}", "expected"),
    ('const a = "open;', 'this string has no closing "'),
    (run("@fadds(y, y, 1.0, .{ .async = true });",
         "var a = @zeros([4]f32);\nconst y = @get_dsd(mem1d_dsd, .{ .base_address = &a, .extent = 4 });"),
     "an asynchronous operation needs a fabric or FIFO operand"),
    ("const y = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{4} -> a[i * i] });\nvar a = @zeros([16]f32);\n"
     "comptime { @comptime_assert(@is_same_type(@type_of(y), i16)); }",
     "an index of an access must be affine"),
    ("task t() void {}\ntask u() void {}\n"
     "comptime { @bind_local_task(t, @get_local_task_id(9)); @bind_local_task(u, @get_local_task_id(9)); }",
     "id 9 is bound twice"),
    ("var big = @zeros([12000]f32); var more = @zeros([900]f32);\nfn run() void { big[0] = more[0]; }\ncomptime { @export_symbol(run); }",
     r"needs [\d,]+ bytes of memory, a PE has 49,152(.|\n)*big takes 48,000(.|\n)*more takes 3,600"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "message"), MISTAKES)
def test_mistakes_are_named(tmp_path, body, message):
    with pytest.raises(CompileFailed, match=message):
        build(tmp_path, body, "")


def test_several_mistakes_come_together(tmp_path):
    with pytest.raises(CompileFailed) as caught:
        build(tmp_path, run("const a = x1; const b = x2; const c = x3;"), "")
    assert str(caught.value).endswith("3 errors")


def test_a_caret_stands_under_the_mistake(tmp_path):
    with pytest.raises(CompileFailed) as caught:
        build(tmp_path, "fn run() void {\n  var a: u8 = 300;\n}\ncomptime { @export_symbol(run); }", "")
    lines = str(caught.value).splitlines()
    assert lines[1:3] == ["    var a: u8 = 300;", "                ^~~"]


def test_only_what_is_used_is_checked(tmp_path):
    build(tmp_path, "param unused: i16;\nfn wrong() void { nothing = 1; }\n" + run(""), "")


WORDS = st.sampled_from(
    [*sorted(KEYWORDS), *"(){}[].,;:=+-*&|<>!", "@as", "x", "i16", "3", "0x1f", "2.5", '"s"', ".*", "=>"]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(WORDS, max_size=60).map(" ".join) | st.text(max_size=80))
def test_no_text_breaks_the_parser(text):
    sources = Sources()
    diagnostics = Diagnostics(sources)
    source = Source("random.csl", text)
    try:
        parse_file(source, sources.add(source), diagnostics)
    except CompileFailed:
        return
    assert diagnostics.text() or not diagnostics.items


def test_an_image_comes_back(tmp_path):
    image = build(tmp_path, run("sys.unblock_cmd_stream();"), '@export_name("run", fn()void);')
    again = image_file.load(tmp_path / "out")
    assert (again.programs[0].code == image.programs[0].code).all()
    assert again.programs[0].functions == image.programs[0].functions
    assert again.route_tables == image.route_tables
    assert again.exports == image.exports


@pytest.mark.parametrize("keep", [0, 10, 300])
def test_a_damaged_image_is_refused(tmp_path, keep):
    build(tmp_path, run("sys.unblock_cmd_stream();"), "")
    path = tmp_path / "out" / "bin" / "image.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(image_file.ImageError, match="is damaged"):
        image_file.load(tmp_path / "out")
