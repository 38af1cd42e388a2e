import math

import pytest

from polypersona.report.numbers import (
    render_count,
    render_fact,
    render_facts,
    render_group,
    render_interval,
    render_number,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.12345, "0.123"), (-0.2, "−0.200"), (-0.0001, "0.000"), (1234.5, "1,234.500")],
)
def test_a_number_has_three_decimals_and_a_true_minus(value, text):
    assert render_number(value) == text


@pytest.mark.parametrize("value", [None, math.nan, math.inf, "x", True])
def test_an_undefined_number_is_never_zero(value):
    assert render_number(value) == "n/a"
    assert render_count(value) == "n/a"


def test_an_interval_stands_in_brackets_and_is_undefined_with_either_end():
    assert render_interval(0.1, 0.25) == "[0.100, 0.250]"
    assert render_interval(0.1, None) == "n/a"


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (-0.011, -0.0003, "[−0.011, −0.0003]"),
        (0.00004, 0.0005, "[0.00004, 0.001]"),
        (-1e-12, 0.0, "[0.000, 0.000]"),
    ],
)
def test_an_end_of_an_interval_that_is_not_zero_does_not_read_zero(low, high, text):
    assert render_interval(low, high) == text


@pytest.mark.parametrize(
    ("key", "value", "fact"),
    [
        ("rows_per_s", 1234.56, ("Rows per second", "1,234.6")),
        ("seconds", 2.0, ("Time", "2.0 s")),
        ("peak_bytes", 3 << 20, ("Peak", "3.0 MiB")),
        ("skipped", False, ("Skipped", "no")),
        ("learning_rate", 2e-4, ("Learning rate", "0.0002")),
        ("loss", math.nan, ("Loss", "n/a")),
    ],
)
def test_a_fact_takes_its_unit_from_the_key(key, value, fact):
    assert render_fact(key, value) == fact


def test_facts_name_their_section_and_leave_tables_out():
    facts = render_facts({"lora": {"rank": 16, "targets": ["q", "v"]}, "log": [{"step": 1}]})
    assert facts == [("Lora · Rank", "16"), ("Lora · Targets", "q, v")]


@pytest.mark.parametrize(
    ("label", "text"),
    [("work_status=part time", "Work status: part time"), ("org/a_model-1B + finance", "org/a_model-1B + finance")],
)
def test_a_subgroup_reads_as_words_and_a_model_keeps_its_name(label, text):
    assert render_group(label) == text
