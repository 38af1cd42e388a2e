"""The holdout table's baselines on real data, and what it does not show."""

from dataclasses import replace

import numpy as np
import pytest

from polypersona.survey.cells import MIN_CELL
from polypersona.survey.holdout import BASELINES, compare_holdout
from polypersona.survey.profiles import build_groupings

TUNED = ["Q2_1", "Q2_4", "Q3_1", "Q3_3", "Q4_1", "Q6", "Q8_1", "Q8_8", "Q9_3", "Q16", "Q17_3", "Q25"]


@pytest.fixture(scope="module")
def fifths(nonvoters):
    """The survey with its age bands, its groupings, and five disjoint fifths of its respondents."""
    book = nonvoters.codebook
    banded = tuple(replace(one, bands=(18, 30, 45, 60)) if one.is_integer else one for one in book.demographics)
    survey = replace(nonvoters, codebook=replace(book, demographics=banded))
    groupings = build_groupings(survey, ["ppage", "race", "educ", "gender", "income_cat"])
    fold = np.random.default_rng(0).permutation(survey.num_respondents) % 5
    return survey, groupings, [fold == number for number in range(5)]


def test_the_baselines_on_real_respondents_are_those_computed_apart(fifths):
    """Computed by a script of its own from the raw file: .823, .954 ± .002, .977 ± .002, .960, .982."""
    survey, groupings, folds = fifths
    found = [compare_holdout(survey, groupings, TUNED, fold, {}) for fold in folds]
    means = {name: np.mean([one.mean(name, TUNED) for one in found]) for name in BASELINES}
    expected = {
        "uniform": 0.823, "marginal": 0.954, "subgroup_marginal": 0.977, "halves_of_holdout": 0.960,
        "halves_of_sample": 0.982,
    }  # fmt: skip
    assert means == pytest.approx(expected, abs=0.003)
    assert all(len(one.cells) == len(TUNED) * 17 for one in found)


def test_a_perfect_prediction_aligns_fully_and_a_constant_one_as_its_baseline(fifths):
    survey, groupings, [held_out, *_] = fifths
    options = survey.answers["Q6"].options
    exact = np.eye(4)[np.clip(options, 0, None)]
    flat = np.full((len(options), 4), 0.25)
    found = compare_holdout(survey, groupings, ["Q6"], held_out, {"exact": {"Q6": exact}, "flat": {"Q6": flat}})
    assert found.mean("exact", ["Q6"]) == pytest.approx(1.0)
    assert found.mean("flat", ["Q6"]) == pytest.approx(found.mean("uniform", ["Q6"]))


def test_people_who_were_not_asked_for_a_demographic_are_in_none_of_its_groups(fifths):
    survey, groupings, [held_out, *_] = fifths
    book = replace(survey.codebook, not_asked=survey.codebook.not_asked | {"65"})
    found = [
        compare_holdout(one, groupings, ["Q6"], held_out, {}).cells for one in (survey, replace(survey, codebook=book))
    ]
    counts = [{cell.group: cell.n for cell in cells if cell.by == "ppage"} for cells in found]
    aged = [age == "65" for age in survey.traits["ppage"]]
    lost = int((np.array(aged) & held_out & survey.answers["Q6"].is_answered).sum())
    assert lost > 0
    assert counts[0]["60 or more"] - counts[1]["60 or more"] == lost


def test_cells_of_fewer_than_five_people_are_left_out_and_counted(fifths):
    survey, groupings, _ = fifths
    few = np.zeros(survey.num_respondents, bool)
    few[: 4 * MIN_CELL] = True
    found = compare_holdout(survey, groupings, ["Q6", "Q16"], few, {})
    assert found.num_hidden > 0
    assert all(cell.n >= MIN_CELL for cell in found.cells)
    assert len(found.cells) + found.num_hidden == 2 * 17
