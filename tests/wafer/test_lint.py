"""Lint: each finding in a program made for it, none in a program without it; and what flow.py knows of numbers."""

from __future__ import annotations

import operator
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openwafer.wafer.flow import EXACT, Number, _arithmetic, _joined, _wrapped
from openwafer.wafer.isa import Op, T
from openwafer.wafer.lint import lint
from tests.wafer.programs import build

TO_EAST = "@set_color_config({x}, 0, @get_color({c}), .{{ .routes = .{{ .rx = .{{{rx}}}, .tx = .{{{tx}}} }} }});"
RUN = "fn run() void { STATEMENT sys.unblock_cmd_stream(); }\ncomptime { @export_symbol(run); REST }"
QUEUES = """
const iq = @get_input_queue(2); const oq = @get_output_queue(2); const line = @get_color(4);
const in = @get_dsd(fabin_dsd, .{ .extent = 4, .fabric_color = line, .input_queue = iq });
const out = @get_dsd(fabout_dsd, .{ .extent = 4, .fabric_color = line, .output_queue = oq });
var a align(8) = @zeros([6]f32); var b align(8) = @zeros([6]f32);
const mine = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{4} -> a[i] });
const theirs = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{4} -> b[i] });
const shifted = @get_dsd(mem1d_dsd, .{ .tensor_access = |i|{4} -> b[i + 1] });
"""


def route(x: int, rx: str, tx: str, color: int = 4) -> str:
    return TO_EAST.format(x=x, c=color, rx=rx, tx=tx)


def found(folder, statement="", rest="", routes="", head="", width=2, **options) -> list[str]:
    body = QUEUES + head + RUN.replace("STATEMENT", statement).replace("REST", rest)
    return [str(f) for f in lint(build(folder, body, "", width=width, routes=routes, **options))]


SEND = "if (x == 0) { @fmovs(out, mine); } else { @fmovs(mine, in); }"
PAIR = route(0, "RAMP", "EAST") + route(1, "WEST", "RAMP")


def test_a_sound_program_has_no_findings(tmp_path):
    assert found(tmp_path, SEND, routes=PAIR) == []


@pytest.mark.parametrize(
    ("statement", "routes", "finding"),
    [
        (SEND, PAIR + route(1, "RAMP", "EAST", 5), "dead-route: color 5 is sent EAST over the edge of the rectangle"),
        (SEND, PAIR + route(0, "RAMP", "EAST", 5), "dead-route: color 5 is sent EAST, where the next PE has no route"),
        (SEND, PAIR + route(0, "RAMP", "EAST", 5) + route(1, "RAMP", "RAMP", 5), "the next PE takes it only from RAMP"),
        ("@fmovs(out, mine);", PAIR, "never-received: color 4 is delivered to a core with no task"),
        ("@fmovs(mine, in);", PAIR, r"never-sent: color 4 is delivered to a core and no PE sends it \(PEs x 1, y 0\)"),
        (SEND, route(0, "RAMP", "EAST") + route(1, "WEST, RAMP", "RAMP"), "two-sides: color 4 may come from WEST and"),
    ],
)  # fmt: skip
def test_routes_and_colors(tmp_path, statement, routes, finding):
    assert any(re.search(finding, text) for text in found(tmp_path, statement, routes=routes))


def test_a_task_that_nothing_activates(tmp_path):
    head = "const t_id = @get_local_task_id(9); task t() void {}"
    texts = found(tmp_path, SEND, "@bind_local_task(t, t_id);", PAIR, head)
    assert len(texts) == 1  # the programs of both PEs in one
    assert "idle-task: local task t has id 9 and nothing activates it" in texts[0]
    bind = "@bind_local_task(t, t_id);"
    ways = [("@activate(t_id);", bind), ("if (a[0] > 1.0) @activate(t_id);", bind), ("", bind + "@activate(t_id);")]
    for statement, rest in ways:
        assert found(tmp_path, SEND + statement, rest, PAIR, head) == []


def test_a_queue_with_two_colors(tmp_path):
    head = "const again = @get_dsd(fabin_dsd, .{ .extent = 1, .fabric_color = @get_color(6), .input_queue = iq });"
    texts = found(tmp_path, SEND + " if (x == 9) { @fmovs(mine, again); }", "", PAIR, head)
    assert texts == []  # never reached, never compiled
    texts = found(tmp_path, SEND + " if (a[0] > 1.0) { @fmovs(mine, again); }", "", PAIR, head)
    assert any("shared-queue: input queue 2 serves colors 4 and 6" in text for text in texts)


def test_memory_nearly_full(tmp_path):
    head = "var big = @zeros([11500]f32);"
    texts = found(tmp_path, SEND + "big[0] = 1.0;", "", PAIR, head)
    assert any("memory: " in text and "largest: big 46,000" in text for text in texts)


@pytest.mark.parametrize(
    ("statement", "conflicts"),
    [
        ("@fadds(mine, mine, theirs);", True),
        ("@fadds(mine, mine, shifted);", False),
        ("@fadds(mine, mine, mine);", False),
        ("for (@range(i16, 4)) |i| { @fadds(mine, mine, @increment_dsd_offset(theirs, 2 * i, f32)); }", True),
        ("for (@range(i16, 4)) |i| { @fadds(mine, mine, @increment_dsd_offset(theirs, i, f32)); }", False),
    ],
)
def test_bank_conflicts(tmp_path, statement, conflicts):
    texts = found(tmp_path, SEND + statement, "", PAIR)
    assert any("bank-conflict: @fadds reads" in text and "pe.csl:" in text for text in texts) == conflicts


WORDS = st.integers(min_value=-(1 << 40), max_value=1 << 40)
BITS = st.integers(min_value=0, max_value=EXACT)


@given(WORDS, BITS, WORDS, BITS, st.sampled_from([Op.ADD, Op.SUB, Op.MUL]))
def test_numbers_are_never_wrong(a, a_bits, b, b_bits, op):
    known = _arithmetic(op, Number(a, a_bits), Number(b, b_bits))
    true = {Op.ADD: operator.add, Op.SUB: operator.sub, Op.MUL: operator.mul}[op](a, b)
    assert Number(true, known.bits).value == known.value
    narrow = _wrapped(known, T.I16)
    wrapped = (true & 0xFFFF) - (0x10000 if true & 0x8000 else 0)
    assert Number(wrapped, narrow.bits).value == narrow.value


@given(WORDS, BITS, WORDS, BITS)
def test_joined_numbers_hold_for_both(a, a_bits, b, b_bits):
    joined = _joined(Number(a, a_bits), Number(b, b_bits)) or Number(0, 0)
    assert isinstance(joined, Number)
    assert Number(a, joined.bits).value == Number(b, joined.bits).value == joined.value
