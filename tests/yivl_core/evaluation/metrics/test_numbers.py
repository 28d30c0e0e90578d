from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from yivl_core.evaluation.metrics.metric import RowBatch
from yivl_core.evaluation.metrics.numbers import parse_amount, relaxed_accuracy

AMOUNTS = [
    ("12", "12"),
    ("12.30", "12.30"),
    (".5", "0.5"),
    ("12.", "12"),
    ("1.234", "1.234"),
    ("1,234.50", "1234.50"),
    ("12,345,678", "12345678"),
    ("1 234.50", "1234.50"),
    ("1\u202f234", "1234"),
    ("1'234.50", "1234.50"),
    ("RM9", "9"),
    ("9.00 RM", "9.00"),
    ("US$ 9", "9"),
    ("Rs. 5", "5"),
    ("人民币12元", "12"),
    ("９．００", "9.00"),
    ("−9", "-9"),
    ("-$1,000", "-1000"),
    ("$-1,000", "-1000"),
    ("9-", "-9"),
    ("+9", "9"),
    ("(RM 9.00)", "-9.00"),
    ("RM(9.00)", "-9.00"),
]
NO_AMOUNTS = [
    *("", "RM", "-", "()", "12,30", "1.234,50", "1,2345", "1,23,456", "12345,678", "1,234 567", "12%", "1e3", "9 apples", "--9"),
    *("(-9)", "-9-", "((9))", "(9", "9)", "RM RM 9", "12/05/2018", "1.2.3"),
]


@pytest.mark.parametrize(("text", "amount"), AMOUNTS)
def test_amounts_as_they_are_written(text: str, amount: str) -> None:
    assert parse_amount(text) == Decimal(amount)


@pytest.mark.parametrize("text", NO_AMOUNTS)
def test_what_is_no_amount(text: str) -> None:
    assert parse_amount(text) is None


@given(
    amount=st.decimals(min_value=-(10**12), max_value=10**12, places=2),
    currency=st.sampled_from(["", "RM", "$", "€ "]),
    is_enclosed=st.booleans(),
)
def test_an_amount_is_read_as_it_was_printed(amount: Decimal, currency: str, is_enclosed: bool) -> None:
    printed = f"{currency}{abs(amount):,}"
    sign = ("(", ")") if is_enclosed else ("-", "")
    assert parse_amount(printed.join(sign) if amount < 0 else printed) == amount


def test_relaxed_accuracy_counts_in_floating_point_as_published() -> None:
    """1.05 - 1 is 0.05000000000000004 there; text goes through the normaliser first."""
    batch = RowBatch(["1.05", " 1.04 ", "nan", "inf"], [("1",), ("1",), ("1",), ("inf",)], ["stop"] * 4)
    assert relaxed_accuracy().measure(batch)[:, 1].tolist() == [0, 1, 0, 0]
