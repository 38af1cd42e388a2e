"""Run: pytest tests/metrics/test_personas.py. Metrics of whole personas, on answers whose scores are known by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations

import pytest

from polypersona.metrics.facts import FactReader, is_true
from polypersona.metrics.interviews import Interviews
from polypersona.metrics.personas import PersonaMetrics
from polypersona.records import Item, Persona
from polypersona.references import rotation

FIVE = ("Strongly disagree", "Disagree", "Neither", "Agree", "Strongly agree")


def item(name: str, construct: str = "thrift", *, reverse: bool = False, options: Sequence[str] = FIVE) -> Item:
    kind = "likert" if options else "open"
    return Item(name, name.split(".")[0], "I save.", kind, tuple(options), construct=construct, reverse=reverse)


ITEMS = (item("a.1"), item("a.2", reverse=True), item("b.1", "other"), item("a.open", "saving", options=()))


def said(persona: str, item_id: str, code: int | None = None, text: str = "x", wave: int = 1, draw: int = 1) -> dict:
    return {
        "persona_id": persona, "item_id": item_id, "wave": wave, "draw": draw, "code": code, "text": text,
        "disposition": "complete",
    }  # fmt: skip


def scored(rows, personas=(), names=(), *, replicates=0, kind="overall", shards=1, items=ITEMS):
    known = list(personas) or [Persona(name) for name in sorted({row["persona_id"] for row in rows})]
    others = rotation((one.persona_id for one in known), 7)
    metrics = PersonaMetrics.of(items, known, others, names, 7, replicates)
    sums = metrics.empty()
    people = sorted({row["persona_id"] for row in rows})
    for start in range(shards):
        part = metrics.empty()
        own = set(people[start::shards])
        found = Interviews.of([row for row in rows if row["persona_id"] in own], items)
        metrics.add(part, [(found.persona_ids, metrics.measure(found))])
        sums.merge(part)
    return {(row["metric"], row["group"]): row for row in metrics.build_rows(sums, kind, items)}


def test_reverse_keyed_items_agree_where_their_stances_do_and_opposite_sides_contradict():
    rows = [said("p", "a.1", 5), said("p", "a.2", 1)]  # for saving, and not against it
    rows += [said("q", "a.1", 5), said("q", "a.2", 4)]  # a contradiction
    rows += [said("r", "a.1", 3), said("r", "a.2", 5)]  # the middle contradicts nothing
    rows += [said("s", "a.1", 1), said("s", "a.2", 5), said("s", "b.1", 5)]
    found = scored(rows)
    consistency, contradiction = found["stance_consistency", "all"], found["contradiction_rate", "all"]
    assert (consistency["score"], consistency["n"]) == (0.5, 4)
    assert (contradiction["score"], contradiction["n"]) == (pytest.approx(1 / 3), 3)
    # First signs are +, +, 0, −; second ones +, −, −, −: whoever answers second agrees by chance in 5 of 16 pairs.
    assert consistency["floor"] == pytest.approx((2 * 1 + 1 * 0 + 1 * 3) / 16)
    assert contradiction["floor"] == pytest.approx((2 * 3 + 1 * 1) / (2 * 3 + 1 * 1 + 2 * 1 + 1 * 3))


def test_the_shuffled_floor_is_the_mean_over_all_reassignments():
    rng = random.Random(3)
    codes = {name: [rng.randint(1, 5) for _ in range(6)] for name in ("a.1", "a.2")}
    rows = [said(f"p{who}", name, code) for name, column in codes.items() for who, code in enumerate(column)]
    found = scored(rows)["stance_consistency", "all"]
    sign = [(code > 3) - (code < 3) for code in codes["a.1"]]
    other = [(code < 3) - (code > 3) for code in codes["a.2"]]
    assert found["score"] == pytest.approx(sum(x == y for x, y in zip(sign, other, strict=True)) / 6)
    assert found["floor"] == pytest.approx(sum(x == y for x in sign for y in other) / 36)


def test_answers_that_follow_a_trait_gain_over_the_floor_and_those_of_yea_sayers_do_not():
    rng = random.Random(5)
    consistent, yea = [], []
    for who in range(80):
        level = rng.choice((1, 2, 4, 5))
        consistent += [said(f"p{who}", "a.1", level), said(f"p{who}", "a.2", 6 - level)]
        yea += [said(f"p{who}", "a.1", rng.choice((4, 5))), said(f"p{who}", "a.2", rng.choice((4, 5)))]
    right, wrong = scored(consistent, replicates=200), scored(yea, replicates=200)
    assert right["stance_consistency", "all"]["score"] == 1
    assert right["stance_consistency", "all"]["gain_low"] > 0.3
    assert right["inter_item_correlation", "all"]["score"] == pytest.approx(1, abs=1e-6)
    assert wrong["contradiction_rate", "all"]["score"] == 1
    assert wrong["stance_consistency", "all"]["gain"] == pytest.approx(0)
    assert wrong["inter_item_correlation", "all"]["gain_low"] < 0 < wrong["inter_item_correlation", "all"]["gain_high"]


def test_retest_pairs_are_of_one_item_and_kappa_is_within_items():
    rows = []
    for who, codes in enumerate([(5, 5), (4, 5), (1, 3), (2, 2)]):
        rows += [said(f"p{who}", "a.1", code, draw=draw) for draw, code in enumerate(codes, start=1)]
    rows += [said("p0", "a.1", 1, wave=2)]
    found = scored(rows)
    exact, near, kappa = (found[f"retest_draws_{name}", "all"] for name in ("exact", "near", "kappa"))
    assert (exact["score"], near["score"], exact["n"]) == (0.5, 0.75, 4)
    pool = [5, 5, 4, 5, 1, 3, 2, 2]
    assert exact["floor"] == pytest.approx(sum(x == y for x in pool for y in pool) / 64)
    mean = sum(pool) / 8
    variance = sum((code - mean) ** 2 for code in pool) / 8
    assert kappa["score"] == pytest.approx(1 - (1 + 4) / (4 * 2 * variance))
    assert (found["retest_waves_exact", "all"]["score"], found["retest_waves_exact", "all"]["n"]) == (0, 1)
    assert ("retest_waves_kappa", "all") not in found or found["retest_waves_kappa", "all"]["n"] == 1


CARDS = (
    Persona("nurse", {"age": 45, "gender": "female", "occupation": "nurse", "area": "rural", "marital": "widowed"}),
    Persona("cook", {"age": "25-34", "gender": "male", "occupation": "cook", "area": "city", "marital": "married"}),
)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("As a nurse, I see this every day.", [True]),
        ("At 45, I know my own mind. I say this as someone who is married.", [True, False]),
        ("I am 54 and speak from experience.", [False]),
        ("I'm a single mother living in the country.", [True, True]),
        ("As a 45-year-old man I work as a cook.", [True, False, False]),
        ("I am 45% sure, and at 45 minutes a day it is a big ask for a nurse.", []),
        ("My neighbour is a cook and he lives in a city flat, as a rule.", []),
    ],
)
def test_facts_are_read_in_the_first_person_and_held_against_the_card(text, facts):
    found = FactReader.of(CARDS).read(text)
    assert sorted(is_true(fact, CARDS[0]) for fact in found) == sorted(facts)


def test_an_age_band_holds_its_ages_and_a_card_without_the_attribute_judges_nothing():
    reader = FactReader.of(CARDS)
    assert [is_true(fact, CARDS[1]) for text in ("I am 30.", "I am 45.") for fact in reader.read(text)] == [True, False]
    assert [is_true(fact, Persona("x", {})) for fact in reader.read("I am 30, and as a nurse I know.")] == [None, None]


def test_faithfulness_counts_the_facts_that_a_card_can_judge_beside_anothers():
    rows = [
        said("nurse", "a.open", text="As a nurse, I see this. I am 45."),
        said("nurse", "a.1", 5, "Strongly agree."),
    ]
    rows += [said("cook", "a.open", text="As a nurse, I see this."), said("cook", "b.1", 5, "Strongly agree.")]
    found = scored(rows, CARDS)
    faithful, rate = found["fact_faithfulness", "all"], found["fact_rate", "all"]
    assert (faithful["score"], faithful["n"]) == (pytest.approx(2 / 3), 3)
    assert faithful["floor"] == pytest.approx(1 / 3)
    assert (rate["score"], rate["n"], rate["floor"]) == (0.5, 4, None)
    assert scored(rows, CARDS, kind="domain")["fact_faithfulness", "a"]["n"] == 3


def test_any_sharding_of_personas_gives_the_same_rows_with_intervals():
    rng = random.Random(9)
    rows = [
        said(f"p{who}", name, rng.randint(1, 5), wave=wave)
        for who in range(30)
        for name in ("a.1", "a.2", "b.1")
        for wave in (1, 2)
    ]
    whole = [scored(rows, replicates=50, kind=kind) for kind in ("overall", "domain", "item")]
    parts = [scored(rows, replicates=50, kind=kind, shards=7) for kind in ("overall", "domain", "item")]
    assert whole == parts
    assert {group for _, group in whole[2]} == {"a.1", "a.2", "b.1", "a.open"} - {"a.open"}
    overall = whole[0]["retest_waves_exact", "all"]
    assert overall["low"] < overall["score"] < overall["high"]
    assert overall["n"] == 90


def test_only_named_metrics_are_shown_and_nothing_is_scored_where_no_pair_is():
    rows = [said("p", "a.1", 5), said("p", "a.2", 1)]
    assert set(scored(rows, names=["contradiction_rate"])) == {("contradiction_rate", "all")}
    assert scored([said("p", "a.1", 5)], names=["contradiction_rate"]) == {}


def test_many_items_of_a_construct_are_compared_in_a_bounded_number_of_pairs():
    from polypersona.metrics.consistency import MAX_PAIRS, ConstructPairs

    many = [item(f"a.{place}") for place in range(60)]
    pairs = ConstructPairs(many).pairs
    assert len(pairs) == MAX_PAIRS < len(list(combinations(many, 2)))
