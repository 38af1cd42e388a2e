"""The shipped bank holds what it promises; every fault of a bank is named with its place."""

from __future__ import annotations

import copy
import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from polypersona.coding import code_answer, disposition_of
from polypersona.domain_files import BANK_TYPES, DOMAINS
from polypersona.errors import QuestionbankError
from polypersona.questionbank import check_bank, item_hash, load_bank, load_instrument
from polypersona.recipe_sections import InstrumentRecipe
from polypersona.resources import resource
from polypersona.simulator.constructs import CONSTRUCTS

BANK = load_bank("questionbank")
SCALED = [item for item in BANK if item.response_type in ("likert", "agreement")]

# open, likert, yesno, agreement; the totals are the paper's (section III-D: 42.7, 31.7, 18.3 and 7.3 per cent of 82).
COUNTS = {
    "demographics": (4, 3, 1, 1),
    "healthcare": (4, 3, 1, 1),
    "education": (3, 3, 1, 1),
    "work_experience": (3, 3, 1, 1),
    "technology": (3, 3, 1, 1),
    "consumer_preferences": (3, 3, 2, 0),
    "finance": (3, 2, 2, 1),
    "social_issues": (4, 2, 2, 0),
    "environment": (4, 2, 2, 0),
    "lifestyle": (4, 2, 2, 0),
}
SOURCES = {"HCAHPS", "NSSE", "TAM", "NEP", "Gallup Q12", "WHOQOL-BREF", "ACSI", "World Values Survey", "FINRA NFCS"}


def test_the_shipped_bank_has_no_problem():
    assert check_bank(["questionbank"]) == []


def test_the_shipped_bank_is_ten_files_named_after_their_domains():
    files = {file.stem for file in resource("questionbank").glob("*.json")} - {"schema"}
    assert files == set(DOMAINS) == set(COUNTS)
    assert len(files) == 10


def test_the_bank_has_82_items_with_the_papers_shares():
    assert len(BANK) == 82
    assert Counter(item.response_type for item in BANK) == {"open": 35, "likert": 26, "yesno": 15, "agreement": 6}


@pytest.mark.parametrize("domain", COUNTS)
def test_each_domain_has_its_counts(domain: str):
    found = Counter(item.response_type for item in BANK if item.domain == domain)
    assert tuple(found[name] for name in ("open", "likert", "yesno", "agreement")) == COUNTS[domain]


def test_items_come_in_the_papers_order_of_domains():
    assert tuple(dict.fromkeys(item.domain for item in BANK)) == DOMAINS
    assert [item.item_id for item in BANK if item.domain == "healthcare"][:4] == [
        "healthcare.likert.01", "healthcare.likert.02", "healthcare.likert.03", "healthcare.open.01",
    ]  # fmt: skip


def test_ids_and_stems_are_unique_and_ids_name_the_place():
    assert len({item.item_id for item in BANK}) == len({item.stem.casefold() for item in BANK}) == 82
    for place, group in Counter((item.domain, item.response_type) for item in BANK).items():
        numbers = [item.item_id for item in BANK if (item.domain, item.response_type) == place]
        assert numbers == [f"{place[0]}.{place[1]}.{number:02d}" for number in range(1, group + 1)]


def test_at_least_a_fifth_of_the_scales_and_some_yes_no_items_are_reversed():
    assert len(SCALED) == 32
    assert sum(item.reverse for item in SCALED) == 10
    assert sum(item.reverse for item in BANK if item.response_type == "yesno") == 4
    assert not any(item.reverse for item in BANK if item.response_type == "open")
    assert {item.domain for item in BANK if item.reverse} == set(DOMAINS)


def test_every_construct_is_of_the_items_domain_and_all_are_used():
    for item in BANK:
        assert CONSTRUCTS[item.construct].domain == item.domain, item.item_id
    assert {item.construct for item in BANK} == set(CONSTRUCTS)


def test_every_item_names_one_of_the_nine_sources_and_all_nine_are_used():
    assert {item.source for item in BANK} == SOURCES


def test_stems_are_short():
    assert max(len(item.stem.split()) for item in BANK) <= 22
    assert all(item.stem.endswith(("?", ".")) for item in BANK)


def test_closed_items_have_the_labels_of_their_response_type():
    assert {item.options for item in BANK if item.response_type == "yesno"} == {("No", "Yes")}
    assert {item.options for item in BANK if item.response_type == "open"} == {()}
    assert {len(item.options) for item in SCALED} == {5}
    assert len({item.options for item in BANK if item.response_type == "likert"}) == 4
    assert len({item.options for item in BANK if item.response_type == "agreement"}) == 1
    assert all(item.codes == tuple(range(1, len(item.options) + 1)) for item in BANK)


def test_every_label_of_the_bank_is_coded_back():
    for item in BANK:
        for label, code in zip(item.options, item.codes, strict=True):
            assert code_answer(item, f"{label}. It suits me.") == code
            assert disposition_of(item, f"{label}.") == "complete"


def test_the_schema_is_a_valid_json_schema():
    Draft202012Validator.check_schema(json.loads((resource("questionbank") / "schema.json").read_text()))


# A small sound file; each case below breaks it in one place.
def _closed(number: int = 1, **changes: Any) -> dict[str, Any]:
    row = {
        "id": f"pets.likert.{number:02d}",
        "stem": f"Statement number {number} is true of my pet.",
        "options": ["Disagree", "Agree"],
        "scale": "ordered",
        "reverse": False,
        "construct": "",
        "source": "our own",
    }
    return {key: value for key, value in {**row, **changes}.items() if value is not None}


def _open(**changes: Any) -> dict[str, Any]:
    row = {"id": "pets.open.01", "stem": "How is it?", "scale": "ordered", "reverse": False}
    return {**row, "construct": "", "source": "our own", **changes}


def _bank(likert: Any = None, **changes: Any) -> dict[str, Any]:
    items = {"likert": [_closed()] if likert is None else likert, "open": [_open()]}
    data = {"domain": "pets", "title": "Pets", "version": "1", "items": items, **changes}
    return {key: value for key, value in data.items() if value is not None}


def _write(folder: Path, data: Any, name: str = "pets.json") -> Path:
    file = folder / name
    file.write_text(data if isinstance(data, str) else json.dumps(data), encoding="utf-8")
    return file


DONT_KNOW, REFUSAL = ["Agree", "Don't know"], ["Agree", "Prefer not to say"]
FAULTS = {
    "broken JSON": ('{"domain": "pets",', "", "", "not valid JSON (line 1"),
    "a list": ([], "", "", "allowed is an object"),
    "a key twice": ('{"domain": "pets", "domain": "cats"}', "", "domain", "stands twice"),
    "no domain": (_bank(domain=None), "", "domain", "missing"),
    "no items": (_bank(items=None), "", "items", "missing"),
    "items is a list": (_bank(items=[]), "", "items", "allowed is an object"),
    "empty": (_bank(items={"likert": []}), "", "items", "no item"),
    "unknown list": (_bank(items={"likrt": []}), "", "items.likrt", "Did you mean 'likert'"),
    "unknown key": (_bank(titel="Pets"), "", "titel", "Did you mean 'title'"),
    "domain with a blank": (_bank(domain="my pets"), "", "domain", "lower-case"),
    "no id": (_bank([_closed(id=None)]), "likert number 1", "id", "missing"),
    "no stem": (_bank([_closed(stem=None)]), "pets.likert.01", "stem", "missing"),
    "no construct": (_bank([_closed(construct=None)]), "pets.likert.01", "construct", "missing"),
    "no options": (_bank([_closed(options=None)]), "pets.likert.01", "options", "missing"),
    "empty options": (_bank([_closed(options=[])]), "pets.likert.01", "options", "got 0 options"),
    "one option": (_bank([_closed(options=["Agree"])]), "pets.likert.01", "options", "at least 2"),
    "options as text": (_bank([_closed(options="Agree")]), "pets.likert.01", "options", "allowed is a list"),
    "option no text": (_bank([_closed(options=["A", 2])]), "pets.likert.01", "options.1", "allowed is a text"),
    "empty option": (_bank([_closed(options=["A", " "])]), "pets.likert.01", "options.1", "not empty"),
    "option twice": (_bank([_closed(options=["Agree", "agree!"])]), "pets.likert.01", "options", "told apart"),
    "option is a nonresponse": (_bank([_closed(options=DONT_KNOW)]), "pets.likert.01", "options", "nonresponse"),
    "option is a refusal": (_bank([_closed(options=REFUSAL)]), "pets.likert.01", "options", "refusal"),
    "empty stem": (_bank([_closed(stem="  ")]), "pets.likert.01", "stem", "not empty"),
    "reverse is a text": (_bank([_closed(reverse="yes")]), "pets.likert.01", "reverse", "true or false"),
    "unknown scale": (_bank([_closed(scale="interval")]), "pets.likert.01", "scale", "ordered or nominal"),
    "unknown field": (_bank([_closed(revers=True)]), "pets.likert.01", "revers", "Did you mean 'reverse'"),
    "id of no form": (_bank([_closed(id="first")]), "first", "id", "healthcare.likert.03"),
    "id of another domain": (_bank([_closed(id="cats.likert.01")]), "cats.likert.01", "id", "pets.likert."),
    "id of another type": (_bank([_closed(id="pets.yesno.01")]), "pets.yesno.01", "id", "pets.likert."),
    "item is a text": (_bank(["What?"]), "likert number 1", "", "allowed is an object"),
    "id twice": (_bank([_closed(), _closed(stem="Other.")]), "pets.likert.01", "id", "is that of 'pets.likert.01'"),
    "stem twice": (_bank([_closed(), _closed(2, stem=_closed()["stem"].upper())]), "pets.likert.02", "stem", "too"),
    "too few codes": (_bank([_closed(codes=[1])]), "pets.likert.01", "codes", "1 codes for 2 options"),
    "code twice": (_bank([_closed(codes=[1, 1])]), "pets.likert.01", "codes", "twice"),
    "code too large": (_bank([_closed(codes=[1, 70000])]), "pets.likert.01", "codes.1", "maximum is 32767"),
    "missing code is an option's": (_bank([_closed(missing={"2": "DK"})]), "pets.likert.01", "missing", "code 2"),
    "missing code no number": (_bank([_closed(missing={"DK": "?"})]), "pets.likert.01", "missing.DK", "no such field"),
    "options on an open item": (
        _bank(items={"open": [_open(options=["A", "B"])]}), "pets.open.01", "options", "no such field",
    ),
    "reversed open item": (_bank(items={"open": [_open(reverse=True)]}), "pets.open.01", "reverse", "never"),
    "three answers to yes or no": (
        _bank(items={"yesno": [_closed(id="pets.yesno.01", options=["No", "Maybe", "Yes"])]}),
        "pets.yesno.01", "options", "at most 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_by_file_item_and_field(tmp_path: Path, fault: str):
    data, item, field, words = FAULTS[fault]
    file = _write(tmp_path, data)
    problems = check_bank([file])
    assert [(p.file, p.item, p.field) for p in problems] == [(str(file), item, field)]
    assert words in problems[0].message
    assert problems[0].message.endswith((".", "?"))
    assert problems[0].hint.endswith(".")
    with pytest.raises(QuestionbankError) as caught:
        load_bank(file)
    for word in (str(file), item, field, words):
        assert word in caught.value.message
    assert "\n" not in caught.value.message
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_sound_file_of_these_tests_is_sound(tmp_path: Path):
    file = _write(tmp_path, _bank([_closed(codes=[0, 5], missing={"-8": "Don't know"})]))
    likert, question = load_bank(file)
    assert (likert.codes, likert.missing) == ((0, 5), {-8: "Don't know"})
    assert not question.is_closed


def test_all_problems_of_all_files_are_found(tmp_path: Path):
    first = _write(tmp_path, _bank([_closed(stem=None, source=None), _closed(2, options=["A"]), _closed(3, codes=[1])]))
    second = _write(tmp_path, "{", "second.json")
    found = [(Path(p.file).name, p.item, p.field) for p in check_bank([first, second, tmp_path / "third.json"])]
    assert found == [
        ("pets.json", "pets.likert.01", "stem"),
        ("pets.json", "pets.likert.01", "source"),
        ("pets.json", "pets.likert.02", "options"),
        ("pets.json", "pets.likert.03", "codes"),
        ("second.json", "", ""),
        ("third.json", "", ""),
    ]
    with pytest.raises(QuestionbankError, match="lists all 4 problems"):
        load_bank(first)


def test_a_domain_in_two_files_and_a_folder_without_files_are_problems(tmp_path: Path):
    assert "no domain file" in check_bank([tmp_path])[0].message
    _write(tmp_path, _bank())
    _write(tmp_path, _bank([_closed(2)], items={"likert": [_closed(2)]}), "more.json")
    assert [p.field for p in check_bank([tmp_path])] == ["domain"]


def test_a_file_that_is_not_utf8_is_named(tmp_path: Path):
    (tmp_path / "pets.json").write_bytes(b'{"domain": "\xff"}')
    assert "cannot be read" in check_bank([tmp_path])[0].message


def test_a_bank_of_other_domains_comes_after_the_papers_by_name(tmp_path: Path):
    for name in ("zoo", "cats"):
        row = _closed(id=f"{name}.likert.01", stem=f"I like the {name}.")
        _write(tmp_path, _bank(domain=name, items={"likert": [row]}), f"{name}.json")
    own = json.loads((resource("questionbank") / "lifestyle.json").read_text())
    _write(tmp_path, own, "lifestyle.json")
    assert list(dict.fromkeys(item.domain for item in load_bank(tmp_path))) == ["lifestyle", "cats", "zoo"]


def test_filters_keep_bank_order():
    wanted = ["lifestyle.open.01", "healthcare.yesno.01", "healthcare.likert.01"]
    items = load_instrument(InstrumentRecipe(items=wanted)).items
    assert [item.item_id for item in items] == ["healthcare.likert.01", "healthcare.yesno.01", "lifestyle.open.01"]
    items = load_instrument(InstrumentRecipe(domains=["finance", "healthcare"], response_types=["likert"])).items
    assert [(item.domain, item.response_type) for item in items] == [("healthcare", "likert")] * 3 + [
        ("finance", "likert")
    ] * 2


def test_twenty_closed_items_of_five_domains_are_four_of_each():
    recipe = InstrumentRecipe(domains=list(DOMAINS[:5]), response_types=["likert", "yesno", "agreement"], max_items=20)
    items = load_instrument(recipe).items
    assert Counter(item.domain for item in items) == dict.fromkeys(DOMAINS[:5], 4)
    assert {item.response_type for item in items} == {"likert", "yesno", "agreement"}


@given(
    st.integers(1, 90),
    st.lists(st.sampled_from(DOMAINS), unique=True),
    st.lists(st.sampled_from(BANK_TYPES[:3]), unique=True),
)
@settings(max_examples=25, deadline=None)
def test_max_items_is_even_over_domains_and_grows_by_what_is_new(size: int, domains: list[str], types: list[Any]):
    whole = load_instrument(InstrumentRecipe(domains=domains, response_types=types)).items
    some = load_instrument(InstrumentRecipe(domains=domains, response_types=types, max_items=size)).items
    more = load_instrument(InstrumentRecipe(domains=domains, response_types=types, max_items=size + 1)).items
    assert len(some) == min(size, len(whole))
    assert [item for item in more if item in some] == list(some)
    assert [item for item in whole if item in some] == list(some)
    available, taken = Counter(i.domain for i in whole), Counter(i.domain for i in some)
    open_ended = [taken[domain] for domain in available if taken[domain] < available[domain]]
    assert not open_ended or max(taken.values()) - min(open_ended) <= 1


REFUSED = {
    "unknown domain": ({"domains": ["helthcare"]}, "Did you mean 'healthcare'?"),
    "unknown item": ({"items": ["finance.likert.3"]}, "Did you mean 'finance.likert.0"),
    "a response type the bank lacks": ({"response_types": ["numeric"]}, "'numeric' is not in the bank"),
    "nothing left": ({"domains": ["lifestyle"], "response_types": ["agreement"]}, "No item of 'questionbank'"),
    "an item the domains leave out": (
        {"domains": ["lifestyle"], "items": ["finance.likert.01"]},
        "instrument.items names 'finance.likert.01'",
    ),
    "no such bank": ({"bank": "no/such/bank"}, "no/such/bank: there is no such file"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_filter_the_bank_cannot_meet_is_refused(case: str):
    section, words = REFUSED[case]
    with pytest.raises(QuestionbankError) as caught:
        load_instrument(InstrumentRecipe(**section))
    assert words in caught.value.message
    assert caught.value.hint


def test_the_source_hash_ignores_layout_and_notices_content(tmp_path: Path):
    data = _bank([_closed(), _closed(2)])
    plain = load_instrument(InstrumentRecipe(bank=str(_write(tmp_path, data)))).source_hash
    turned = {**data, "items": dict(reversed(data["items"].items())), "title": "Other", "version": "2"}
    laid_out = _write(tmp_path, "\ufeff" + json.dumps(dict(reversed(turned.items())), indent=7), "other.json")
    assert load_instrument(InstrumentRecipe(bank=str(laid_out))).source_hash == plain
    for field, value in {"stem": "Is it?", "options": ["Agree", "Disagree"], "reverse": True, "construct": "x"}.items():
        changed = copy.deepcopy(data)
        changed["items"]["likert"][1][field] = value
        assert load_instrument(InstrumentRecipe(bank=str(_write(tmp_path, changed)))).source_hash != plain, field
    selected = InstrumentRecipe(bank=str(laid_out), items=["pets.likert.01"])
    assert load_instrument(selected).source_hash != plain


def test_item_hashes_are_distinct_and_the_source_is_no_part_of_them(tmp_path: Path):
    assert len({item_hash(item) for item in BANK}) == 82
    first, _ = load_bank(_write(tmp_path, _bank()))
    second, _ = load_bank(_write(tmp_path, _bank([_closed(source="elsewhere")])))
    assert item_hash(first) == item_hash(second)


def test_options_left_to_the_default_codes_hash_like_written_ones(tmp_path: Path):
    first, _ = load_bank(_write(tmp_path, _bank()))
    second, _ = load_bank(_write(tmp_path, _bank([_closed(codes=[1, 2])])))
    assert item_hash(first) == item_hash(second)


_ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(_ANY_JSON, st.sampled_from(["title", "items", "likert", "row", *_closed(), "codes", "missing"]))
@settings(max_examples=80, deadline=None)
def test_no_value_in_any_place_escapes_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, value: Any, place: str
):
    row = _closed(**{place: value}) if place not in ("title", "items", "likert", "row") else _closed()
    data = _bank([value if place == "row" else row])
    if place == "likert":
        data["items"]["likert"] = value
    elif place in data:
        data[place] = value
    file = _write(tmp_path_factory.getbasetemp(), data)
    for problem in check_bank([file]):
        assert str(file) in str(problem)
        assert "\n" not in str(problem)
