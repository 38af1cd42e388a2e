"""What lies behind single distributions: stereotyping, regressions, prediction, person-level agreement.

Takes a `Comparison`, gives rows. Knows no file and no response.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from polypersona.survey.association import Coefficient, compare_fits, fit_model
from polypersona.survey.cells import MIN_CELL, Comparison, Group, Row
from polypersona.survey.distribution import chance_between, eta_squared, nominal_eta_squared
from polypersona.survey.humans import ladder_of
from polypersona.survey.individuals import agreement_matrix, back_off, predicted_agreement, shuffled_accuracy
from polypersona.survey.inference import Moments, fisher_interval, interval_of
from polypersona.survey.profiles import UNKNOWN, Profiles

FloatArray: TypeAlias = npt.NDArray[np.float64]


class _Term(NamedTuple):
    """A group that a coefficient sets against the reference group; `least` is the smallest of both on either side."""

    by: str
    group: str
    reference: str
    personas: int
    people: int
    least: int


def stereotyping_rows(comparison: Comparison, item: int) -> list[Row]:
    """Return η² of humans and run by demographic, and their difference, the stereotyping index.

    Both are Kelley's (1935) ε², η² without what sampling people or personas alone adds to it: a small sample shall not
    look like groups that differ. The shuffled floor is −ε² of the humans: answers handed to other personas lose all
    differences between groups. `noise` is the mean |difference| between random halves of the humans, whose additions
    cancel.
    """
    profiles, question = comparison.humans.profiles, comparison.items[item].question
    human, synthetic = comparison.moments(item)
    values = np.array(question.values)
    measure, scores = (
        (eta_squared, values[:, None]) if question.is_ordered else (nominal_eta_squared, np.eye(len(values)))
    )
    halves = comparison.humans.half_totals(item)
    rows = []
    for place, grouping in enumerate(profiles.groupings):
        labels, count = profiles.members[:, place], len(grouping.labels)
        sides = human.grouped(labels, count), synthetic.grouped(labels, count)
        if min(side.num_clusters for side in sides) < MIN_CELL * 2:
            continue
        shape = (count, len(values))

        chances = [chance_between(side.totals, side.squares, scores) for side in sides]

        def index(
            s: FloatArray, h: FloatArray, shape: tuple[int, int] = shape, chances: Sequence[float] = chances
        ) -> FloatArray:
            own, people = s.reshape(-1, *shape), h.reshape(-1, *shape)
            return measure(own, values, chances[1]) - measure(people, values, chances[0])

        found = interval_of(index, [sides[1], sides[0]], -1, 1)
        own = [float(measure(side.totals, values, chance)) for side, chance in zip(sides, chances, strict=True)]
        grouped = np.stack([halves[:, :, labels == group].sum(axis=2) for group in range(count)], axis=2)
        gaps = np.abs(measure(grouped[:, 0], values) - measure(grouped[:, 1], values))
        rows.append(
            {
                "item": question.item_id,
                "by": grouping.name,
                "n": 0 if math.isnan(found.value) else sides[1].num_answers,
                "n_effective": sides[1].effective_n,
                "human_n": sides[0].num_answers,
                "human_n_effective": sides[0].effective_n,
                "human": own[0],
                "synthetic": own[1],
                "index": found.value,
                "low": found.low,
                "high": found.high,
                "shuffled": -own[0],
                "noise": float(np.nanmean(gaps)) if np.isfinite(gaps).any() else math.nan,
                "signature": "stereotyping|epsilon2(Kelley1935)_synthetic-human|interval:linearised,95%|range:-1..1",
            }
        )
    return rows


def regression_rows(comparison: Comparison, item: int) -> list[Row]:
    """Return the coefficients of one linear model of the item on all demographics, fitted to both sides.

    The outcome is the item's value on 0…1 where it is ordered, else whether the humans' most common option was chosen.
    Groups that one side lacks are left out of the model, and so are coefficients of groups with fewer than five people
    or personas out of the rows. Nothing where a side varies too little to fit.
    """
    profiles, question = comparison.humans.profiles, comparison.items[item].question
    if not profiles.groupings:
        return []
    sides = comparison.moments(item)
    shared = _shared_groups(profiles, sides)
    human, synthetic = (_masked(side, shared) for side in sides)
    values = np.array(question.values)
    usual = human.totals.sum(axis=0).argmax()
    outcome = (values - values.min()) / np.ptp(values) if question.is_ordered else np.eye(len(values))[usual]
    design, terms = _design(profiles, human, synthetic)
    fits = [fit_model(side, design, outcome) for side in (human, synthetic)]
    if fits[0] is None or fits[1] is None:
        return []
    head = {
        "item": question.item_id,
        "outcome": "value, 0 to 1" if question.is_ordered else f"chose {list(question.options.values())[int(usual)]!r}",
        "n": synthetic.num_answers,
        "n_effective": synthetic.effective_n,
        "human_n": human.num_answers,
        "human_n_effective": human.effective_n,
    }
    names = ["intercept", *(f"{term.by}={term.group}" for term in terms)]
    found = zip(terms, compare_fits(fits[0], fits[1], names), strict=True)
    return [{**head, **_coefficient(term, one)} for term, one in found if term.least >= MIN_CELL]


def regression_summary(rows: Sequence[Row]) -> Row:
    """Return the share of coefficients that differ (|z| > 1.96), and of those the share whose sign flips."""
    known = [row for row in rows if not math.isnan(row["z"])]
    different = [row for row in known if row["is_different"]]
    return {
        "coefficients": len(known),
        "share_different": len(different) / len(known) if known else math.nan,
        "share_flipped": sum(row["is_flipped"] for row in different) / len(different) if different else math.nan,
        "expected_different": 0.05,
        "signature": "wls|z:(b_s-b_h)/sqrt(se2+se2)>1.96|se:sandwich,clusters:persona|Bisbee2024",
    }


def prediction_row(comparison: Comparison, item: int) -> Row:
    """Return how well the run and the demographic back-off each predict the respondents' own answers.

    Both sides predict with a draw from a distribution for the respondent's profile: the run's, or that of the other
    respondents, with fewer demographics where fewer than ten answered. Agreement is 1 − |difference|/range, equality
    for nominal items; `gain` is what the run adds to demographics. `marginal` predicts without any demographic.
    """
    question, profiles = comparison.items[item].question, comparison.humans.profiles
    human, synthetic = comparison.moments(item)
    counts, match = comparison.humans.counts(item), _match(comparison, item)
    ladder = ladder_of(profiles.members)
    weights = synthetic.totals.sum(axis=1, keepdims=True)
    scaled = np.divide(synthetic.totals, weights, out=np.zeros_like(synthetic.totals), where=weights > 0)
    predicted = back_off(scaled * synthetic.answers[:, None], ladder, leave_one_out=False)[:, :1]
    scores = {
        "synthetic": predicted_agreement(counts, human.totals, predicted, match),
        "back_off": predicted_agreement(counts, human.totals, back_off(counts, ladder), match),
        "marginal": predicted_agreement(counts, human.totals, back_off(counts, ()), match),
        "uniform": predicted_agreement(counts, human.totals, np.full((1, 1, len(match)), 1 / len(match)), match),
    }
    scale = "ordered" if question.is_ordered else "nominal"
    return {
        "item": question.item_id,
        "n": human.num_answers,
        "n_effective": human.effective_n,
        **scores,
        "gain": scores["synthetic"] - scores["back_off"],
        "signature": f"expected_agreement|{scale}|back_off:min10,leave_one_out",
    }


def individual_rows(comparison: Comparison, item: int, groups: Sequence[Group]) -> list[Row]:
    """Return accuracy and r of personas with the human of the same id, by group; nothing where no id is shared."""
    tally, question = comparison.tally, comparison.items[item].question
    low, high = (int(value) for value in tally.extremes[item])
    rows = []
    for group in groups:
        sums = tally.pair_sums(item, group.members)
        if sums.personas < MIN_CELL:
            continue
        span = float(high - low)
        accuracy = sums.accuracy(span) if question.is_ordered else None
        correlation = fisher_interval(sums.correlation, sums.personas) if question.is_ordered else None
        codes = np.array(question.codes, dtype=float)
        human, synthetic = tally.pair_counts(item, group.members).astype(float)
        shuffled = shuffled_accuracy(synthetic, human, codes, span)
        rows.append(
            {
                "item": question.item_id,
                "by": group.by,
                "group": group.label,
                "n": sums.n,
                "n_effective": float(sums.personas),
                "accuracy": accuracy.value if accuracy else math.nan,
                "accuracy_low": accuracy.low if accuracy else math.nan,
                "accuracy_high": accuracy.high if accuracy else math.nan,
                "accuracy_shuffled": shuffled if accuracy else math.nan,
                "r": correlation.value if correlation else math.nan,
                "r_low": correlation.low if correlation else math.nan,
                "r_high": correlation.high if correlation else math.nan,
                "r_shuffled": 0.0 if correlation else math.nan,
                "exact": sums.equal / sums.n,
                "human_mean": sums.h / sums.n,
                "synthetic_mean": sums.s / sums.n,
                "human_sd": sums.spread("h"),
                "synthetic_sd": sums.spread("s"),
                "signature": "twin|accuracy:1-mean|h-s|/range_over_both|r:pearson,fisher95%|unweighted|Toubia2025",
            }
        )
    return rows


def _masked(moments: Moments, kept: npt.NDArray[np.bool_]) -> Moments:
    return Moments(
        moments.totals * kept[:, None],
        moments.squares * kept[:, None, None],
        moments.clusters * kept,
        moments.answers * kept,
    )


def _match(comparison: Comparison, item: int) -> FloatArray:
    question = comparison.items[item].question
    return agreement_matrix(np.array(question.values), is_ordered=question.is_ordered)


def _shared_groups(profiles: Profiles, sides: Sequence[Moments]) -> npt.NDArray[np.bool_]:
    """Return which profiles have all their demographics known, and all their groups on both sides."""
    kept: npt.NDArray[np.bool_] = (profiles.members != UNKNOWN).all(axis=1)
    while True:
        lacking = np.zeros_like(kept)
        for place, grouping in enumerate(profiles.groupings):
            for group in range(len(grouping.labels)):
                inside = kept & (profiles.members[:, place] == group)
                if not all(side.clusters[inside].any() for side in sides):
                    lacking |= inside
        if not lacking.any():
            return kept
        kept &= ~lacking


def _design(profiles: Profiles, human: Moments, synthetic: Moments) -> tuple[FloatArray, list[_Term]]:
    """Return, by profile, an intercept and an indicator of each group but the humans' largest, and these groups."""
    columns, terms = [np.ones(profiles.count)], []
    for place, grouping in enumerate(profiles.groupings):
        count = len(grouping.labels)
        people, personas = (side.grouped(profiles.members[:, place], count) for side in (human, synthetic))
        sizes = people.totals.sum(axis=1)
        usual = int(np.argmax(sizes))
        for group, label in enumerate(grouping.labels):
            if group != usual and sizes[group] > 0:
                columns.append((profiles.members[:, place] == group).astype(float))
                counts = int(personas.clusters[group]), int(people.clusters[group])
                least = min(*counts, int(personas.clusters[usual]), int(people.clusters[usual]))
                terms.append(_Term(grouping.name, label, grouping.labels[usual], *counts, least))
    return np.stack(columns, axis=1), terms


def _coefficient(term: _Term, one: Coefficient) -> Row:
    return {
        "term": one.term,
        "by": term.by,
        "group": term.group,
        "reference": term.reference,
        "group_n": term.personas,
        "group_human_n": term.people,
        "human": one.human,
        "human_error": one.human_error,
        "synthetic": one.synthetic,
        "synthetic_error": one.synthetic_error,
        "z": one.z,
        "is_different": one.is_different,
        "is_flipped": one.is_flipped,
    }
