"""The blind sample: what is in it, that it stays the same, and that it does not give itself away."""

import json
from collections import Counter

import pyarrow as pa
import pytest
from annotated_runs import annotated_run, write_humans
from response_rows import make_table
from toy_runs import toy_items, toy_personas

from polypersona.annotation.human import load_human_answers
from polypersona.annotation.sample import draw_sample
from polypersona.errors import StorageError, SurveyError
from polypersona.shardfile import Footer, read_shard, render_shard
from polypersona.storage import RunDirectory

PERSONAS = {persona.persona_id: persona for persona in toy_personas(30)}
ITEMS = {item.item_id: item for item in toy_items(1)}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return annotated_run(tmp_path_factory.mktemp("sample"))


@pytest.fixture(scope="module")
def answers(run):
    names = run.names("responses", ".parquet")
    rows = pa.concat_tables([read_shard(run.read(name), name)[0] for name in names]).to_pylist()
    return {(row["persona_id"], row["item_id"]): row for row in rows}


def draw(run, count, seed=7, humans=()):
    return draw_sample(run, "f00d", seed, count, PERSONAS, ITEMS, humans)


def test_half_of_the_answers_are_the_models_and_half_another_personas(run, answers):
    entries = draw(run, 48)
    assert Counter(entry.kind for entry in entries) == {"model": 24, "shuffled": 24}
    for entry in entries:
        assert entry.answer == answers[entry.answered_by, entry.item_id]["text"]
        assert (entry.answered_by == entry.persona_id) == (entry.kind == "model")
        assert dict(entry.card)["age"] == str(PERSONAS[entry.persona_id].attributes["age"])
        assert entry.question == ITEMS[entry.item_id].stem


def test_no_card_and_question_are_shown_twice(run):
    entries = draw(run, 100)
    assert len({(entry.persona_id, entry.item_id) for entry in entries}) == 100
    assert len({entry.entry_id for entry in entries}) == 100


def test_only_answers_are_shown(run, answers):
    entries = draw(run, 10_000)
    shown = {"complete", "truncated"}
    assert len(entries) == sum(row["disposition"] in shown for row in answers.values())
    assert all(answers[entry.answered_by, entry.item_id]["disposition"] in shown for entry in entries)


def test_a_blank_answer_is_nobodys_partner(answers, tmp_path):
    first, second = [row for row in answers.values() if row["item_id"] == next(iter(ITEMS))][:2]
    other = RunDirectory.at(tmp_path)
    rows = [first, second | {"text": " "}]
    data = render_shard(make_table(rows), Footer("f00d", 0, 2, 2, 0))
    other.write("responses/shard-00000-f00d.parquet", data)
    assert draw(other, 10) == []


def test_a_larger_sample_begins_with_the_smaller_and_another_seed_gives_another(run):
    small, large = draw(run, 20), draw(run, 60)
    assert large[:20] == small
    assert draw(run, 20, seed=8) != small


def test_the_sample_does_not_depend_on_how_rows_lie_in_shards(run, answers, tmp_path):
    other = RunDirectory.at(tmp_path)
    rows = sorted(answers.values(), key=lambda row: row["text"])
    for shard in range(7):
        part = rows[shard::7]
        data = render_shard(make_table(part), Footer("f00d", shard, len(part), len(part), 0))
        other.write(f"responses/shard-{shard:05d}-f00d.parquet", data)
    assert draw(other, 50) == draw(run, 50)


def test_a_file_that_is_not_the_runs_own_is_not_drawn_from(run, tmp_path):
    other = RunDirectory.at(tmp_path)
    for name in run.names("responses", ".parquet"):
        other.write(name, run.read(name))
    other.write("responses/notes-f00d.parquet", b"somebody's notes")
    assert draw(other, 48) == draw(run, 48)


def test_what_raters_see_says_nothing_of_the_kind(run):
    for entry in draw(run, 20):
        assert set(entry.blinded()) == {"id", "card", "about", "domain", "question", "options", "answer"}
        assert entry.kind not in json.dumps({key: entry.blinded()[key] for key in ("id", "domain")})
        assert entry.persona_id not in json.dumps(entry.blinded())


def test_human_answers_are_a_third_until_they_run_out(run, tmp_path):
    humans = load_human_answers(write_humans(tmp_path, 20), PERSONAS, ITEMS)
    assert Counter(entry.kind for entry in draw(run, 48, humans=humans)) == {"model": 16, "shuffled": 16, "human": 16}
    few = draw(run, 48, humans=humans[:2])
    assert len(few) == 48
    assert sum(entry.kind == "human" for entry in few) == 2


def test_a_human_answer_may_bring_its_own_card_and_question(tmp_path):
    path = tmp_path / "own.jsonl"
    row = {
        "answer": "Yes.",
        "question": "Do you vote?",
        "persona": {"age": 41, "likes": ["tea", "go"], "text": "Calm."},
    }
    path.write_text(json.dumps(row) + "\n\n", encoding="utf-8")
    (entry,) = load_human_answers(str(path), {}, {})
    assert entry.card == (("age", "41"), ("likes", "tea, go"))
    assert (entry.about, entry.question, entry.kind) == ("Calm.", "Do you vote?", "human")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: this is no JSON"),
        ('{"item_id": "x"}', "line 1: there is no answer"),
        ('{"answer": "a"}', "line 1: there is no persona"),
        ('{"answer": "a", "persona_id": "p9999"}', "the run has no persona 'p9999'"),
        ('{"answer": "a", "persona_id": "p0001"}', "line 1: there is no question"),
        ('{"answer": "a", "persona_id": "p0001", "item_id": "x"}', "the run has no item 'x'"),
        ("", "holds no human answer"),
    ],
)
def test_a_human_answer_that_cannot_be_taken_is_named_by_its_line(tmp_path, line, message):
    path = tmp_path / "human.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(SurveyError, match=message):
        load_human_answers(str(path), PERSONAS, ITEMS)
    with pytest.raises(SurveyError, match="cannot be read"):
        load_human_answers(str(tmp_path / "none.jsonl"), PERSONAS, ITEMS)


def test_a_damaged_shard_and_a_panel_that_changed_are_named(run, tmp_path):
    with pytest.raises(StorageError, match="the persona 'p00"):
        draw_sample(run, "f00d", 7, 10, {}, ITEMS)
    with pytest.raises(StorageError, match="the item '"):
        draw_sample(run, "f00d", 7, 10, PERSONAS, {})
    other = RunDirectory.at(tmp_path)
    other.write("responses/shard-00000-f00d.parquet", b"no Parquet")
    with pytest.raises(StorageError, match=r"shard-00000-f00d\.parquet cannot be read"):
        draw(other, 10)
