"""Routing's rules: which condition a bank may state, in which order items are asked, and whether one is asked."""

import itertools
import json
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from routed_bank import YES, routed_items, row, write_bank

from polypersona.cli.main import main
from polypersona.errors import QuestionbankError
from polypersona.gates import Outcome, asking_order, describe_failure, gates_of, judge_gates
from polypersona.questionbank import check_bank, item_hash, load_bank, load_instrument
from polypersona.recipe_sections import InstrumentRecipe
from polypersona.records import Gate, Item

ORDER = [
    "pets.likert.02", "pets.open.02", "pets.yesno.01", "pets.likert.01", "pets.open.01", "pets.yesno.02",
]  # fmt: skip


def item(name, *gates):
    return Item(name, "x", name, "yesno", ("No", "Yes"), asked_if=tuple(Gate(gate, (2,)) for gate in gates))


def ids(items):
    return [item.item_id for item in items]


YES_ = Outcome("complete", 2)
NO = Outcome("complete", 1)
REFUSED = Outcome("refusal")
SILENT = Outcome("item_nonresponse")
SKIPPED = Outcome("not_asked")
BROKEN = Outcome("error", None, "no memory")
INVALID = Outcome("invalid")


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [
        ({}, "wait"),
        ({"a": YES_}, "wait"),
        ({"a": YES_, "b": YES_}, "ask"),
        ({"a": YES_, "b": NO}, "skip"),
        ({"a": NO}, "skip"),
        ({"a": REFUSED, "b": YES_}, "skip"),
        ({"a": SILENT, "b": YES_}, "skip"),
        ({"a": SKIPPED, "b": YES_}, "skip"),
        ({"a": BROKEN, "b": YES_}, "failed"),
        ({"a": INVALID, "b": YES_}, "failed"),
        ({"a": BROKEN}, "wait"),
        ({"a": BROKEN, "b": NO}, "skip"),
        ({"a": NO, "b": BROKEN}, "skip"),
    ],
)
def test_an_item_is_asked_where_all_its_gates_hold(outcomes, verdict):
    assert judge_gates(item("c", "a", "b"), outcomes) == verdict


def test_an_item_without_a_gate_is_always_asked_and_any_of_several_codes_opens_one():
    assert judge_gates(item("a"), {}) == "ask"
    either = replace(item("b"), asked_if=(Gate("a", (1, 2)),))
    assert [judge_gates(either, {"a": outcome}) for outcome in (YES_, NO)] == ["ask", "ask"]


def test_a_failed_gate_is_named_with_its_reason():
    outcomes = {"a": YES_, "b": BROKEN}
    assert describe_failure(item("c", "a", "b"), outcomes) == "its gate b failed: no memory"
    assert "none of the options" in describe_failure(item("c", "a"), {"a": INVALID})


def test_items_follow_their_gates_and_else_stay_where_they_are():
    items = [item("a", "d"), item("b"), item("c", "a"), item("d"), item("e")]
    assert ids(asking_order(items)) == ["b", "d", "a", "c", "e"]
    assert asking_order(items[1:2] + items[4:]) == [items[1], items[4]]
    assert ids(asking_order([item("a", "gone"), item("b", "a")])) == ["a", "b"]
    assert ids(asking_order([item("a", "b"), item("b", "a"), item("c")])) == ["c", "a", "b"]


@given(st.permutations("abcdef"), st.sets(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef"))))
def test_any_order_of_items_without_a_circle_puts_gates_first(names, edges):
    needs = {name: [gate for owner, gate in sorted(edges) if owner == name and gate < name] for name in names}
    items = [item(name, *needs[name]) for name in names]
    ordered = ids(asking_order(items))
    assert sorted(ordered) == sorted(names)
    assert all(ordered.index(gate) < ordered.index(name) for name in names for gate in needs[name])
    for name in names:
        decisive = gates_of(items, {name})
        assert decisive == set(needs[name]) | {far for near in needs[name] for far in gates_of(items, {near})}


def test_a_bank_states_routing_as_one_condition_or_a_list(tmp_path):
    items = load_bank(write_bank(tmp_path))
    assert ids(items) == ORDER
    by_id = {one.item_id: one for one in items}
    assert by_id["pets.likert.01"].asked_if == (Gate("pets.yesno.01", (2,)),)
    assert by_id["pets.open.01"].asked_if == (Gate("pets.yesno.01", (2,)), Gate("pets.likert.01", (3,)))
    assert by_id["pets.open.02"].asked_if == ()


def test_routing_is_content_and_items_without_it_keep_their_hash(tmp_path):
    assert item_hash(item("a")) == "0086c1efd22f4e92"  # as it was before items had gates
    assert len({item_hash(one) for one in (item("a"), item("a", "b"), item("a", "c"), item("a", "b", "c"))}) == 4
    assert item_hash(item("a", "b", "c")) == item_hash(item("a", "c", "b"))


LATER = {"item": "pets.likert.02", "codes": [3]}
FAULTS = {
    "no such item": ({"item": "pets.yesno.1", "codes": [2]}, "asked_if.item", "such as healthcare.likert.03"),
    "an unknown item": ({"item": "pets.yesno.03", "codes": [2]}, "asked_if", "Did you mean 'pets.yesno.0"),
    "an open item": ({"item": "pets.open.02", "codes": [1]}, "asked_if", "'pets.open.02' is an open item"),
    "an unknown code": ({"item": "pets.yesno.01", "codes": [2, 3]}, "asked_if", "has no code 3; its codes are 1, 2"),
    "itself": ({"item": "pets.likert.01", "codes": [3]}, "asked_if", "does not come before"),
    "one further down its list": (LATER, "asked_if", "does not come before"),
    "no codes": ({"item": "pets.yesno.01"}, "asked_if.codes", "missing"),
    "codes without one": ({"item": "pets.yesno.01", "codes": []}, "asked_if.codes", "at least one"),
    "a code as text": ({"item": "pets.yesno.01", "codes": ["2"]}, "asked_if.codes.0", "a whole number"),
    "a key too many": ({**YES, "code": 2}, "asked_if.code", "Did you mean 'codes'"),
    "an empty list": ([], "asked_if", "one or more"),
    "a fault in a list": ([YES, {"item": "pets.yesno.01"}], "asked_if.1.codes", "missing"),
    "an id alone": ("pets.yesno.01", "asked_if", "allowed is an object"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_condition_is_named_by_file_item_and_field(tmp_path, fault):
    condition, field, words = FAULTS[fault]
    items = routed_items()
    items["likert"][0]["asked_if"] = condition
    items["open"] = items["open"][1:]
    file = write_bank(tmp_path, items)
    problems = check_bank([file])
    assert [(p.file, p.item, p.field) for p in problems] == [(file, "pets.likert.01", field)]
    assert words in problems[0].message
    assert problems[0].hint.endswith(".")


def test_items_that_wait_for_each_other_are_both_named(tmp_path):
    items = routed_items()
    items["yesno"][0]["asked_if"] = {"item": "pets.likert.01", "codes": [3]}
    problems = check_bank([write_bank(tmp_path, items)])
    assert {p.item for p in problems} == {"pets.likert.01", "pets.yesno.01"}
    assert all("does not come before" in p.message for p in problems)


def test_a_gate_may_stand_in_another_domain(tmp_path):
    write_bank(tmp_path)
    cat = row("yesno", 1, "Is it a cat?", asked_if=YES) | {"id": "cats.yesno.01"}
    write_bank(tmp_path, {"yesno": [cat]}, "cats")
    assert check_bank([tmp_path]) == []
    found = ids(load_bank(tmp_path))
    assert found.index("cats.yesno.01") == found.index("pets.yesno.01") + 1


@pytest.mark.parametrize(
    ("section", "filter_"),
    [
        ({"items": ["pets.likert.01"]}, "items"),
        ({"response_types": ["likert"]}, "response_types"),
        ({"max_items": 4}, "max_items"),
    ],
)
def test_an_item_whose_gate_a_filter_leaves_out_is_refused(tmp_path, section, filter_):
    items = routed_items()
    items["yesno"] = items["yesno"][::-1]
    items["yesno"][0]["id"], items["yesno"][1]["id"] = "pets.yesno.01", "pets.yesno.02"
    items["likert"][0]["asked_if"] = {"item": "pets.yesno.02", "codes": [2]}
    items["open"] = items["open"][1:]
    bank = write_bank(tmp_path, items)
    with pytest.raises(QuestionbankError) as refused:
        load_instrument(InstrumentRecipe(bank=bank, **section))
    assert f"'pets.likert.01' is asked only after certain answers to 'pets.yesno.02', which instrument.{filter_}" in (
        refused.value.message
    )
    assert "pets.yesno.02" in refused.value.hint


def test_any_size_of_a_routed_instrument_holds_the_smaller_ones(tmp_path):
    bank = write_bank(tmp_path)
    sizes = []
    for size in range(1, 7):
        try:
            sizes.append(set(ids(load_instrument(InstrumentRecipe(bank=bank, max_items=size)).items)))
        except QuestionbankError:
            continue
    assert len(sizes) > 2
    assert all(small < large for small, large in itertools.pairwise(sizes))


def test_bank_commands_show_routing(tmp_path, monkeypatch, capsys):
    bank = write_bank(tmp_path)

    def said(*arguments):
        monkeypatch.setattr(sys, "argv", ["polypersona", "bank", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        return capsys.readouterr().out

    assert "OK: 6 items" in said("check", bank)
    assert "asked if       pets.likert.01 is 3" in said("show", "--bank", bank, "pets.open.01")
    assert json.loads(said("show", "--json", "--bank", bank, "pets.likert.01"))["asked_if"] == [YES]
