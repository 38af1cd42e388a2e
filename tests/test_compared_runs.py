"""What a comparison must say of its run: answers at temperature 0, no end yet, failures, tuned on the same people."""

import csv
import hashlib
import json
import random

import pyarrow as pa
import pytest
from survey.human_runs import FINGERPRINT, write_json, write_run
from survey.human_runs import write_csv as write_rows

from polypersona.compare import Mitigation
from polypersona.compare import run as compare
from polypersona.ledger import quarantine_name, shard_name
from polypersona.records import Persona
from polypersona.report.human import HumanEvidence, build_human
from polypersona.shardfile import QUARANTINE_SCHEMA, Footer, read_shard, render_shard
from polypersona.storage import RunDirectory, load_run, update_run
from polypersona.survey.codebook import codebook_items
from polypersona.survey.codebook_checks import load_codebook

pytest_plugins = ["survey.conftest"]


@pytest.fixture
def people(tmp_path, book):
    """Human data of forty people, their codebook, forty personas and the items."""
    rng = random.Random(9)
    codebook = write_json(tmp_path / "codebook.json", book)
    rows = []
    for place in range(40):
        q1 = "123"[place % 3]
        q2 = rng.choice("12") if q1 == "3" else ""
        rows.append([f"h{place}", 1, 20 + place, "fm"[place % 2], q1, q2, *rng.choices(["1", "-1"], k=2)])
    human = write_rows(tmp_path / "human.csv", ["id", "w", "age", "sex", "q1", "q2", "q3_1", "q3_2"], rows)
    personas = [Persona(f"s{place}", {"age": 20 + place, "sex": "fm"[place % 2]}) for place in range(40)]
    return human, codebook, personas, codebook_items(load_codebook(codebook))


def made(tmp_path, people, answer=None, **options):
    """A run of those personas; `answer` gives an item's answer, its first code where it is left out."""
    _, codebook, personas, items = people
    answers = {
        (one.persona_id, item.item_id, 1, 1): answer(item) if answer else item.codes[0]
        for one in personas
        for item in items
    }
    return write_run(tmp_path, codebook, personas, items, answers, shard_personas=10, **options)


def compared(run, people, mitigation=None):
    return compare(run, str(people[0]), str(people[1]), ["sex"], mitigation)


def note(result, part):
    (found,) = [one for one in result["notes"] if part in one]
    return found


def unsure(item):
    """The first option, as the likeliest by little."""
    count = len(item.codes)
    return item.codes[0], [0.5, *([0.5 / (count - 1)] * (count - 1))]


def first_share(result):
    return next(row["synthetic"] for row in result["tables"]["shares"] if (row["item"], row["code"]) == ("q1", 1))


def test_answers_at_temperature_zero_are_compared_by_their_codes(tmp_path, people):
    drawn = compared(made(tmp_path / "drawn", people, unsure), people, Mitigation())
    assert (first_share(drawn), drawn["basis"]) == (pytest.approx(50, abs=0.01), {"option_probs": 4})
    assert "from option probabilities, for 4 of 4 items" in drawn["caption"]
    run = made(tmp_path / "greedy", people, unsure, sections={"generate": {"temperature": 0}})
    greedy = compared(run, people, Mitigation())
    assert (first_share(greedy), greedy["basis"]) == (pytest.approx(100), {"codes": 4})
    assert "temperature 0" in greedy["caption"]
    assert "expected" not in greedy["caption"]
    assert greedy["mitigation"]["temperatures"] == {}
    assert not [row for row in greedy["tables"]["mitigation"] if "temperature" in row["variant"]]


def test_weights_that_sum_to_one_give_the_shares_of_weights_that_average_one(tmp_path, people):
    rng = random.Random(2)
    weights = [rng.uniform(0.1, 3) for _ in people[2]]
    found = []
    for place, scale in enumerate((len(weights) / sum(weights), 1 / sum(weights), 1e-7)):
        personas = [
            Persona(one.persona_id, one.attributes, weight=weight * scale)
            for one, weight in zip(people[2], weights, strict=True)
        ]
        own = (*people[:2], personas, people[3])
        answers = random.Random(4)
        found.append(compared(made(tmp_path / str(place), own, lambda item, of=answers: of.choice(item.codes)), own))
    for row, *others in zip(*(result["tables"]["scores"] for result in found), strict=True):
        for other in others:
            for name in ("score", "low", "high", "n_effective"):
                assert other[name] == pytest.approx(row[name], abs=2e-3, rel=1e-3, nan_ok=True), (row, name)


def test_a_comparison_of_an_unfinished_run_says_so(tmp_path, people):
    run = made(tmp_path, people)
    assert not [one for one in compared(run, people)["notes"] if "not finished" in one]
    run.delete(f"responses/{shard_name(3, FINGERPRINT)}")
    result = compared(run, people)
    assert "120 of 160 planned responses" in note(result, "not finished")
    assert (result["num_rows"], result["num_planned"]) == (120, 160)


@pytest.mark.parametrize(("rows", "planned", "is_stale"), [(160, 160, False), (200, 160, True), (160, 320, True)])
def test_a_report_after_further_generation_says_that_the_comparison_is_out_of_date(
    tmp_path, people, rows, planned, is_stale
):
    run = made(tmp_path, people)
    result = compared(run, people)
    state = load_run(run)
    state["ledger"]["num_cells"] = planned
    content = json.loads(run.read("scores/human.json"))
    facts = build_human(HumanEvidence(content), {}, state, rows)
    assert result["num_rows"] == 160
    assert facts["is_stale"] is is_stale
    assert any("run compare again" in one for one in facts["warnings"]) is is_stale


def quarantine(run: RunDirectory, number: int, dispositions: list[str], round_: int = 0) -> None:
    """Move the first rows of a shard into quarantine."""
    name = f"responses/{shard_name(number, FINGERPRINT)}"
    table, _ = read_shard(run.read(name), name)
    count = len(dispositions)
    footer = Footer(FINGERPRINT, number, table.num_rows, table.num_rows - count, count, round=round_)
    rows = [
        {**row, "code": None, "label": "", "disposition": disposition, "reason": "made up"}
        for row, disposition in zip(table.slice(0, count).to_pylist(), dispositions, strict=True)
    ]
    failed = render_shard(pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA), footer)
    run.write(f"quarantine/{quarantine_name(number, FINGERPRINT, round_)}", failed)
    run.write(name, render_shard(table.slice(count), footer))


def test_rows_that_failed_are_counted_by_item_and_their_share_is_named(tmp_path, people):
    run = made(tmp_path, people)
    quarantine(run, 1, ["error", "invalid", "error", "invalid", "error"])
    result = compared(run, people)
    outcomes = {row["item"]: row for row in result["tables"]["outcomes"]}
    assert [outcomes[name]["synthetic_error"] for name in ("q1", "q2", "q3_1", "q3_2")] == [2, 0, 1, 0]
    assert [outcomes[name]["synthetic_invalid"] for name in ("q1", "q2", "q3_1", "q3_2")] == [0, 1, 0, 1]
    assert outcomes["q1"]["synthetic_complete"] == 38
    assert "5 of 160 answers to the shared items (3.1 %)" in note(result, "failed")
    assert (result["num_rows"], result["num_quarantined"]) == (155, 5)
    assert not [one for one in result["notes"] if "not finished" in one]


def test_of_several_rounds_of_a_shards_quarantine_only_the_current_one_is_counted(tmp_path, people):
    run = made(tmp_path, people)
    quarantine(run, 1, ["error"] * 4)
    quarantine(run, 1, ["error"], round_=1)
    update_run(run, {"stages": {"retry": {"round": 1}}})
    assert compared(run, people)["num_quarantined"] == 1


def tuned(tmp_path, people, *, human=None, **sections):
    """A run whose recipe tunes an adapter on three people's answers to q1, and one of them to q2."""
    source, codebook = human or people[0], people[1]
    dataset = {"source": str(source), "survey": {"codebook": str(codebook)}}
    run = made(tmp_path, people, sections={"dataset": dataset, **sections})
    content = {
        "survey.hash": hashlib.blake2b(source.read_bytes(), digest_size=16).hexdigest(),
        "survey.codebook_hash": hashlib.blake2b(codebook.read_bytes(), digest_size=16).hexdigest(),
    }
    update_run(run, {"stages": {"dataset": {"state": "finished", "content": content}}})
    rows = [
        {"id": f"{who}{item}", "messages": [],
         "metadata": {"persona_id": who, "persona": {"attributes": {}}, "item_id": item, "domain": domain}}
        for who, item, domain in (("a", "q1", "x"), ("b", "q1", "x"), ("c", "q1", "x"), ("c", "q2", "y"))
    ]  # fmt: skip
    run.write("dataset/train.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return run


def test_an_adapter_that_was_tuned_on_these_people_is_named_in_caption_and_notes(tmp_path, people):
    result = compared(tuned(tmp_path, people), people)
    assert "3 of these people gave to q1, q2" in note(result, "tuned")
    assert (
        "tuned on answers that 3 of these people gave to 2 items, 2 of the 4 compared among them" in (result["caption"])
    )
    assert result["training_overlap"] == {"is_same_file": True, "respondents": 3, "items": ["q1", "q2"]}


def test_an_adapter_of_the_run_is_known_by_its_folder_too(tmp_path, people):
    named = {name: str(tmp_path / name / "adapter") for name in ("run", "other")}
    found = [compared(tuned(tmp_path, people, model={"adapter": folder}), people) for folder in named.values()]
    assert [one["training_overlap"] is not None for one in found] == [True, False]


def test_only_the_answers_that_the_answering_adapters_were_tuned_on_are_counted(tmp_path, people):
    finetune = {"adapters": [{"name": "one", "domains": ["x"]}, {"name": "two", "domains": ["y"]}]}
    run = tuned(tmp_path, people, finetune=finetune)
    update_run(run, {"frozen": {"adapters": {"y": ["two"]}}})
    assert compared(run, people)["training_overlap"] == {"is_same_file": True, "respondents": 1, "items": ["q2"]}


def test_another_file_under_the_same_codebook_may_hold_the_same_people(tmp_path, people):
    rows = list(csv.reader(people[0].open(encoding="utf-8")))
    other = write_rows(tmp_path / "other.csv", rows[0], rows[1:21])
    result = compared(tuned(tmp_path / "run", people, human=other), people)
    assert "people who may be among these" in note(result, "tuned")


def test_training_rows_that_are_gone_leave_the_numbers_unknown(tmp_path, people):
    run = tuned(tmp_path, people)
    run.delete("dataset/train.jsonl")
    assert "how many and on which items is not known" in note(compared(run, people), "tuned")


@pytest.mark.parametrize(
    "sections",
    [{"model": {"adapter": "none"}}, {"generate": {"engine": "rules"}}],
    ids=["the base answers", "no model answers"],
)
def test_a_run_that_no_adapter_of_its_own_answered_is_not_called_tuned(tmp_path, people, sections):
    result = compared(tuned(tmp_path, people, **sections), people)
    assert "tuned" not in result["caption"]
    assert result["training_overlap"] is None
