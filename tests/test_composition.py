"""Who answers what: the paper's composition and its shares at other sizes."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polypersona.composition import PAPER_RECORDS, apportion, compose
from polypersona.errors import DatasetError
from polypersona.questionbank import load_instrument
from polypersona.recipe_sections import InstrumentRecipe
from polypersona.records import Item

PERSONAS = [f"p{number:03d}" for number in range(433)]


def make_items(**sizes):
    return [
        Item(f"{domain}.open.{number:02d}", domain, "What?", "open")
        for domain, size in sizes.items()
        for number in range(size)
    ]


@pytest.fixture(scope="module")
def bank():
    return load_instrument(InstrumentRecipe()).items


@pytest.fixture(scope="module")
def default(bank):
    return compose(PERSONAS, bank, 3568, seed=7)


def domains_of(composition, items):
    domain = {item.item_id: item.domain for item in items}
    return {persona: Counter(domain[item_id] for item_id in own) for persona, own in composition.items()}


def test_the_default_has_the_papers_records_in_each_domain(default, bank):
    # Section III-C of the paper, in its order.
    paper = [520, 416, 416, 400, 384, 368, 368, 264, 216, 216]
    counts = sum(domains_of(default, bank).values(), Counter())
    assert [counts[domain] for domain in PAPER_RECORDS] == paper
    assert sum(counts.values()) == 3568


def test_the_default_uses_433_personas_of_which_71_percent_are_in_one_domain(default, bank):
    numbers = [len(counts) for counts in domains_of(default, bank).values()]
    assert len(numbers) == 433
    assert numbers.count(1) / 433 == pytest.approx(0.714, abs=0.005)


def test_the_default_uses_all_82_items_about_equally_within_a_domain(default, bank):
    uses = Counter(item_id for own in default.values() for item_id in own)
    assert set(uses) == {item.item_id for item in bank}
    assert len(uses) == 82
    for domain in PAPER_RECORDS:
        of_domain = [uses[item.item_id] for item in bank if item.domain == domain]
        assert max(of_domain) - min(of_domain) <= 1


def test_the_default_asks_nobody_the_same_item_twice(default):
    assert all(len(own) == len(set(own)) for own in default.values())


def test_response_types_are_asked_as_often_as_the_bank_has_them(default, bank):
    # The paper: 42.7 % open, 31.7 % likert, 18.3 % yes/no, 7.3 % agreement.
    response_type = {item.item_id: item.response_type for item in bank}
    counts = Counter(response_type[item_id] for own in default.values() for item_id in own)
    for name, share in (("open", 0.427), ("likert", 0.317), ("yesno", 0.183), ("agreement", 0.073)):
        assert counts[name] / 3568 == pytest.approx(share, abs=0.02)


def test_personas_and_items_come_in_the_order_given(default, bank):
    assert list(default) == PERSONAS
    place = {item.item_id: number for number, item in enumerate(bank)}
    assert all(
        [place[item_id] for item_id in own] == sorted(place[item_id] for item_id in own) for own in default.values()
    )


def test_what_is_paired_depends_on_the_seed_and_ids_not_on_their_order(default, bank):
    personas, items = PERSONAS[:], list(bank)
    random.Random(1).shuffle(personas)
    random.Random(2).shuffle(items)
    shuffled = compose(personas, items, 3568, seed=7)
    assert {persona: set(own) for persona, own in shuffled.items()} == {p: set(own) for p, own in default.items()}
    assert compose(PERSONAS, bank, 3568, seed=8) != default


def test_other_domains_are_weighted_by_their_items():
    items = make_items(space=6, time=3, matter=1)
    counts = sum(domains_of(compose(PERSONAS, items, 1000, seed=1), items).values(), Counter())
    assert counts == {"space": 600, "time": 300, "matter": 100}


def test_one_domain_is_no_obstacle():
    items = make_items(space=8)
    assert sum(map(len, compose(PERSONAS, items, 3000, seed=1).values())) == 3000


def test_more_records_than_pairs_are_refused_with_the_maximum(bank):
    with pytest.raises(DatasetError, match=r"433 personas × 82 items make only 35506\. Set dataset.records to 35506"):
        compose(PERSONAS, bank, 35507, seed=7)


@settings(max_examples=150, deadline=None)
@given(
    num_personas=st.integers(1, 40),
    sizes=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    fill=st.floats(0.001, 1),
    seed=st.integers(0, 10),
    is_paper=st.booleans(),
)
def test_any_feasible_size_is_met_exactly_with_every_persona_that_records_allow(
    num_personas, sizes, fill, seed, is_paper
):
    names = list(PAPER_RECORDS) if is_paper else [f"d{number}" for number in range(len(sizes))]
    items = make_items(**{name: sizes[number % len(sizes)] for number, name in enumerate(names)})
    records = max(1, int(fill * num_personas * len(items)))
    composition = compose(PERSONAS[:num_personas], items, records, seed)
    assert sum(map(len, composition.values())) == records
    assert len(composition) == min(num_personas, records)
    assert all(len(own) == len(set(own)) > 0 for own in composition.values())
    uses = Counter(item_id for own in composition.values() for item_id in own)
    for name in names:
        of_domain = [uses[item.item_id] for item in items if item.domain == name]
        assert max(of_domain) - min(of_domain) <= 1


@given(
    st.integers(0, 500),
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(1, 9), st.integers(0, 200)), min_size=1),
)
def test_a_total_is_divided_whole_and_within_the_limits(total, parts):
    weights = {name: weight for name, (weight, _) in parts.items()}
    limits = {name: limit for name, (_, limit) in parts.items()}
    total = min(total, sum(limits.values()))
    divided = apportion(total, weights, limits)
    assert sum(divided.values()) == total
    assert all(0 <= divided[name] <= limits[name] for name in parts)
    exact = {name: total * weights[name] / sum(weights.values()) for name in parts}
    if all(limits[name] >= exact[name] + 1 for name in parts):
        assert all(abs(divided[name] - exact[name]) < 1 for name in parts)
