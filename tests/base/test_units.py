import pytest
from hypothesis import given
from hypothesis import strategies as st

from openwafer.base.errors import ConfigError
from openwafer.base.units import format_bytes, format_count, format_seconds, parse_bytes


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("2GiB", 2 << 30),
        ("500 MB", 500_000_000),
        ("1.5 GiB", 3 << 29),
        ("  16kb ", 16_000),
        (".5KiB", 512),
        ("1_000", 1000),
        ("7", 7),
        ("7 B", 7),
        ("2TiB", 2 << 40),
        (123, 123),
        ("9007199254740993", 9007199254740993),
    ],
)
def test_sizes_that_people_write(text, num_bytes):
    assert parse_bytes(text) == num_bytes


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ("", "not a size"),
        ("nan", "not a size"),
        ("inf", "not a size"),
        ("two GiB", "not a size"),
        ("1e9", "not a size"),
        ("2 GX", "unknown unit 'GX'"),
        ("-1GiB", "cannot be negative"),
        (-5, "cannot be negative"),
        (0, "at least one byte"),
        ("0.0 GiB", "at least one byte"),
        (1.5, "a float is not a size"),
        (True, "a bool is not a size"),
        (None, "a NoneType is not a size"),
    ],
)
def test_nonsense_is_refused_with_what_is_allowed(size, reason):
    with pytest.raises(ConfigError, match=rf"memory: .*({reason}).*got .*; write .*GiB") as caught:
        parse_bytes(size, "memory")
    assert repr(size) in str(caught.value)


@given(st.integers(1, 1 << 60))
def test_an_int_and_its_digits_mean_the_same(num_bytes):
    assert parse_bytes(num_bytes) == parse_bytes(str(num_bytes)) == num_bytes


@given(st.integers(1, 1 << 50))
def test_a_formatted_size_reads_back_to_within_its_digits(num_bytes):
    assert parse_bytes(format_bytes(num_bytes)) == pytest.approx(num_bytes, rel=0.006)


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (17, "17 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1023 * 1024, "1.00 MiB"),
        (2 << 30, "2.00 GiB"),
        (-1024, "-1.00 KiB"),
    ],
)
def test_format_bytes(num_bytes, text):
    assert format_bytes(num_bytes) == text


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0"), (2048, "2,048"), (12345, "12.3K"), (590e6, "590M"), (1.3e9, "1.3B"), (999_999, "1M")]
)
def test_format_count(count, text):
    assert format_count(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.12, "120 ms"),
        (4.21, "4.2 s"),
        (59.99, "1 min 00 s"),
        (185, "3 min 05 s"),
        (7500, "2 h 05 min"),
        (3e5, "3 d 11 h"),
        (float("nan"), "unknown"),
        (float("inf"), "unknown"),
    ],
)
def test_format_seconds(seconds, text):
    assert format_seconds(seconds) == text
