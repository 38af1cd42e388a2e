"""pytest tests/report/test_composition.py: answers and references of closed items, and how people's are shown."""

import json
import re

import pytest
from response_rows import make_table
from toy_runs import toy_items, toy_personas, toy_recipe, write_run

from polypersona.engines.base import Answer
from polypersona.examples import build_example, render_examples
from polypersona.records import Assignment, Item, Persona
from polypersona.report import stage
from polypersona.report.composition import closed_items
from polypersona.report.source import load_source
from polypersona.report.tally import Tally, stream_rows
from polypersona.shardfile import Footer, render_shard
from polypersona.storage import RunDirectory, update_run

ITEM = Item("x.single.01", "x", "Which?", "single", ("One", "Two", "Three", "Four"))
HUMAN = {"title": "A survey", "source": "an institute, 2020", "license": "CC0"}


def run_of(folder, codes, weights=None, *, is_human=False, temperature=0.8, num_probable=None):
    """A run whose test split and responses are the same people's, who chose these codes.

    The first `num_probable` answers have option probabilities; unless given, all.
    """
    recipe = toy_recipe(folder, generate={"on": "test", "temperature": temperature})
    run = RunDirectory.at(recipe.location)
    examples, rows = [], []
    for place, (code, weight) in enumerate(zip(codes, weights or [1.0] * len(codes), strict=True)):
        person = Persona(f"p{place}", {"age": 30}, weight=weight)
        cell = Assignment(person.persona_id, ITEM.item_id)
        label = ITEM.options[code - 1]
        has_probs = num_probable is None or place < num_probable
        probs = [float(other == code) for other in ITEM.codes] if has_probs else None
        answer = Answer(cell.assignment_id, f"{label}.", "complete", code=code, label=label)
        examples.append(build_example(person, ITEM, answer, "labels"))
        rows.append({
            "assignment_id": cell.assignment_id, "persona_id": person.persona_id, "item_id": ITEM.item_id,
            "variant": "", "domain": "x", "response_type": "single", "wave": 1, "draw": 1, "weight": weight,
            "text": answer.text, "rationale": "", "code": code, "label": label, "option_probs": probs,
            "disposition": "complete", "error": "", "attempts": 1, "prompt_tokens": 1, "reused_prompt_tokens": 0,
            "new_tokens": 1, "adapter": "none", "seed": 1, "shard": 0,
        })  # fmt: skip
    if is_human:
        examples = [as_human(example) for example in examples]
    run.write("dataset/test.jsonl", render_examples(examples))
    table = make_table(rows)
    run.write("responses/shard-00000-f00d.parquet", render_shard(table, Footer("f00d", 0, len(rows), len(rows), 0)))
    return run, recipe


def as_human(example):
    example.metadata["is_human"] = True
    return example


def options_of(run, recipe):
    tally = Tally()
    for table in stream_rows(run):
        tally.add(table)
    (item,) = closed_items(tally, load_source(run, recipe, frozenset()), [])
    return item, item["options"]


def test_references_and_probabilities_are_weighted_as_the_answers_are(tmp_path):
    item, options = options_of(*run_of(tmp_path, [1, 1, 2, 3], [0.5, 0.5, 2.0, 1.0]))
    assert [option["reference"] for option in options] == [2, 1, 1, 0]
    assert item["n_reference"] == 4
    for name in ("share", "share_reference", "probability"):
        assert [option[name] for option in options] == pytest.approx([0.25, 0.5, 0.25, 0.0]), name


def test_probabilities_are_shown_only_where_every_answer_has_them(tmp_path):
    _, options = options_of(*run_of(tmp_path, [1, 1, 2, 3], num_probable=3))
    assert [option["probability"] for option in options] == [None] * 4
    assert [option["share"] for option in options] == pytest.approx([0.5, 0.25, 0.25, 0.0])


@pytest.mark.parametrize(("temperature", "shown"), [(0.8, [0.5, 0.25, 0.25, 0.0]), (0, [None] * 4)])
def test_at_temperature_0_probabilities_do_not_describe_the_answers_and_are_not_shown(tmp_path, temperature, shown):
    run, recipe = run_of(tmp_path, [1, 1, 2, 3], temperature=temperature)
    stage.run(recipe)
    numbers, page = run.read_json("report.json"), run.read("report.html").decode()
    (item,) = numbers["items"]
    assert [option["probability"] for option in item["options"]] == shown
    assert [option["share"] for option in item["options"]] == [0.5, 0.25, 0.25, 0.0]
    assert ("given at temperature 0" in page) is (temperature == 0)
    assert (">Mean probability<" in page) is (temperature > 0)


@pytest.mark.parametrize(
    ("counts", "shown"),
    [
        ((9, 8, 6, 0), (9, 8, 6, 0)),
        ((9, 8, 4, 0), (9, None, None, 0)),  # the third alone could be had by subtraction
        ((9, 8, 4, 1), (9, 8, None, None)),
        ((5, 1, 0, 0), (None, None, 0, 0)),
        ((4, 0, 0, 0), (0, 0, 0, 0)),
    ],
)
def test_what_one_to_four_people_chose_is_not_shown(tmp_path, counts, shown):
    codes = [code for code, count in enumerate(counts, start=1) for _ in range(count)]
    item, options = options_of(*run_of(tmp_path, codes, is_human=True))
    assert tuple(option["reference"] for option in options) == shown
    assert item["n_reference"] == (len(codes) if len(codes) > 4 else 0)
    for option in options:
        assert (option["share_reference"] is None) == (option["reference"] is None or not item["n_reference"])
    assert [option["count"] for option in options] == list(counts)
    simulated, _ = options_of(*run_of(tmp_path, codes))
    assert tuple(option["reference"] for option in simulated["options"]) == counts


def test_peoples_answers_are_not_called_synthetic(tmp_path):
    recipe = toy_recipe(tmp_path)
    run = write_run(recipe, toy_personas(30), toy_items())
    stage.run(recipe)
    plain = run.read("report.html").decode()
    assert "synthetic records: " in plain
    assert "beside human data" not in re.sub("<script.*?</script>", "", plain, flags=re.DOTALL)
    rows = [json.loads(line) for line in run.read("dataset/test.jsonl").decode().splitlines()]
    for row in rows:
        row["metadata"]["is_human"] = True
    run.write("dataset/test.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    update_run(run, {"stages": {"dataset": {"figures": {"human": HUMAN}}}})
    stage.run(recipe)
    page = run.read("report.html").decode()
    assert "records of people&#39;s answers: " in page
    assert "synthetic records" not in page
    named = 'data-source="synthetic answers beside human data: an institute, 2020 (CC0)"'
    assert page.count(named) == 2
    assert re.search(rf'<section id="items"[^>]*{re.escape(named)}', page)
