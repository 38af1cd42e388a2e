"""Texts become numbers where all are; a few values that prevent it are pointed out, codes and mixed columns are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polypersona.panel.numbers import MIN_NUMERIC, Strays, find_strays, type_numbers
from polypersona.panel.sources import read_personas
from polypersona.recipe_sections import PanelRecipe


def strays(values: list[Any], *, is_untyped: bool = True) -> Strays | None:
    return find_strays(range(2, len(values) + 2), values, is_untyped=is_untyped)


@pytest.mark.parametrize(
    ("values", "typed"),
    [
        (["1", "-2"], [1, -2]),
        (["1", "2.5", "1e3"], [1.0, 2.5, 1000.0]),
        (["1", "n/a"], ["1", "n/a"]),
        (["007", "12"], ["007", "12"]),
        (["4", 5, ("a",), True], [4, 5, ("a",), True]),
        ([], []),
    ],
)
def test_texts_become_numbers_where_all_are(values: list[Any], typed: list[Any]) -> None:
    assert list(type_numbers(values)) == typed


@pytest.mark.parametrize(
    ("values", "is_untyped", "found"),
    [
        (["1"] * 9 + ["n/a"], True, Strays(10, 1, 11, "n/a")),
        (["x", *["1.5"] * 18, "y"], True, Strays(20, 2, 2, "x")),
        (["1"] * 8 + ["n/a"], True, None),  # 89 % are numbers
        (["1"] * 10, True, None),
        (["10115"] * 19 + ["01067"], True, None),  # a column of codes
        (["1"] * 10 + ["x"], False, None),  # texts on purpose
        ([1] * 10 + ["11"], False, Strays(11, 1, 12, "11")),
        ([1] * 10 + [True], False, Strays(11, 1, 12, "True")),
        ([1.5] * 10 + [("a",)], True, Strays(11, 1, 12, "('a',)")),
        ([], True, None),
    ],
)
def test_a_few_values_that_are_no_numbers_are_found(values: list[Any], is_untyped: bool, found: Strays | None) -> None:
    assert strays(values, is_untyped=is_untyped) == found


@given(st.lists(st.one_of(st.integers().map(str), st.text(min_size=1)), max_size=30))
def test_an_attribute_that_became_numeric_has_no_strays_and_the_share_is_kept(values: list[str]) -> None:
    typed = list(type_numbers(values))
    found = strays(typed)
    if all(isinstance(value, int | float) for value in typed):
        assert found is None
    if found is not None:
        assert typed == values
        assert found.num_values == len(values)
        assert 0 < found.num_strays <= (1 - MIN_NUMERIC) * len(values) + 1e-9
        assert values[found.row - 2] == found.value


def test_a_column_with_one_bad_cell_is_reported_with_its_row(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    ages = ["n/a" if number == 15 else str(20 + number % 50) for number in range(200)]
    path.write_text("AGE,area\n" + "".join(f"{age},city\n" for age in ages))
    reading = read_personas(PanelRecipe(source=str(path), mapping={"age": "AGE", "area": "area"}))
    assert reading.strays == {"age": Strays(200, 1, 17, "n/a")}
    assert reading.personas[15].attributes["age"] == "n/a"
    assert reading.personas[0].attributes["age"] == "20"
    recoded = {"age": {"column": "AGE", "values": {"n/a": ""}}}
    assert read_personas(PanelRecipe(source=str(path), mapping=recoded)).strays == {}
