"""Numbers as people read them."""

from __future__ import annotations

import pytest

from merganser import number_format


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (3.55e9, "3.55 GB"), (1_500, "1.5 kB"), (2e15, "2e+03 TB")],
)
def test_sizes(count: float, text: str) -> None:
    assert number_format.size(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(70, "70 s"), (90, "2 min"), (5300, "88 min"), (12_600, "3.5 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert number_format.duration(seconds) == text


def test_whole_numbers_are_grouped_and_nothing_else_is() -> None:
    assert [number_format.grouped(value) for value in (1234567, True, 0.5, "a")] == [
        "1,234,567", "True", "0.5", "a",
    ]  # fmt: skip
    assert number_format.grouped(9999, 10_000) == "9999"


@pytest.mark.parametrize(
    ("value", "significant", "decimal", "trimmed"),
    [
        (None, "–", "–", "–"),
        (0, "0", "0.000", "0"),
        (0.7, "0.7", "0.700", "0.7"),
        (2e-6, "2e-06", "0.000", "2e-06"),
        (-0.12345, "-0.1235", "-0.123", "-0.123"),
    ],
)
def test_numbers(value: float | None, significant: str, decimal: str, trimmed: str) -> None:
    assert number_format.significant(value) == significant
    assert number_format.decimal(value) == decimal
    assert number_format.trimmed(value) == trimmed


def test_errors_decide_how_many_decimals_a_mean_has() -> None:
    assert number_format.with_error(0.712345, 0.0213) == "0.7123 ±0.021"
    assert number_format.with_error(0.7, 0.0) == "0.7"
    places = number_format.decimals([0.0213, 0.002])
    assert number_format.with_error(0.712345, 0.002, places=places, sign=" ± ") == "0.712 ± 0.002"


def test_differences_have_a_sign() -> None:
    assert [number_format.signed(value, 2) for value in (0.125, 0.0, -3)] == [
        "+0.12", "+0.00", "-3.00",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0123, "0.012"),
        (9.96, "10"),
        (99.6, "100"),
        (12345.6, "12346"),
        (-7.12, "-7.1"),
    ],
)
def test_a_compact_number_has_no_exponent(value: float | None, text: str) -> None:
    assert number_format.compact(value, 2) == text


def test_parameters_are_as_in_a_recipe() -> None:
    assert [number_format.parameter(v) for v in (None, 0.12345, True, 3, "l1")] == [
        "–", "0.1235", "true", "3", "l1",
    ]  # fmt: skip


def test_no_zero_is_negative() -> None:
    assert number_format.decimal(-0.0004) == "0.000"
    assert number_format.decimal(-0.0006) == "-0.001"
