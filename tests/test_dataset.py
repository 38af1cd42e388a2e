"""The dataset stage, end to end with the rules teacher and with records made elsewhere."""

import json
from collections import Counter

import pytest
from toy_models import make_toy_model

from polypersona import benchmark, generate
from polypersona.cli.plan import make_plan
from polypersona.composition import PAPER_RECORDS
from polypersona.dataset import run
from polypersona.engines.base import Answer
from polypersona.errors import DatasetError, EngineError, RecipeChangedError, RecipeError, RunFailedError
from polypersona.examples import SPLITS, example_item, load_examples
from polypersona.recipe import build_recipe
from polypersona.simulator.stance import stance_sign
from polypersona.storage import RunDirectory, load_run, update_run


def make_recipe(out, **sections):
    panel = {"source": "sampled", "size": 30}
    return build_recipe({"name": "d", "out": str(out), "panel": panel, "dataset": {"records": 240}, **sections})


def read_all(directory):
    return [row for split in SPLITS for row in load_examples(directory, split)]


def files_of(directory):
    return {name: directory.read(name) for name in directory.names("dataset")}


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """The default recipe's dataset: its directory and the stage's figures."""
    out = tmp_path_factory.mktemp("default")
    recipe = make_recipe(out, panel={"source": "sampled", "size": 433}, dataset={})
    return RunDirectory.at(recipe.location), run(recipe)


@pytest.fixture
def small(tmp_path):
    recipe = make_recipe(tmp_path)
    run(recipe)
    return RunDirectory.at(recipe.location)


def test_the_default_recipe_gives_the_papers_composition(default):
    directory, figures = default
    rows = read_all(directory)
    counts = Counter(row.metadata["domain"] for row in rows)
    assert [counts[domain] for domain in PAPER_RECORDS] == [520, 416, 416, 400, 384, 368, 368, 264, 216, 216]
    assert (figures["rows"], figures["personas"], figures["items"], figures["rejected"]) == (3568, 433, 82, 0)
    assert len({row.id for row in rows}) == 3568


def test_the_default_splits_share_no_persona(default):
    directory, figures = default
    assert [figures["splits"][split] for split in SPLITS] == pytest.approx([2854, 357, 357], abs=2)
    leaks = directory.read_json("dataset/leaks.json")
    assert all(counts["shared_personas"] == 0 for counts in leaks["leaks"].values())
    assert leaks["repeats"]["repeated_pairs"] == 0
    assert leaks["repeats"]["ids_marked_duplicate"] == 0


def test_open_answers_of_the_default_are_distinct(default):
    texts = [row.metadata["reference"] for row in read_all(default[0]) if row.metadata["question_type"] == "open"]
    assert len(texts) > 1400
    assert len(set(texts)) >= 0.95 * len(texts)


def test_no_persona_of_the_default_contradicts_itself(default):
    signs = {}
    for row in read_all(default[0]):
        item = example_item(row)
        sign = stance_sign(item, row.metadata["code"], row.metadata["reference"])
        assert sign is not None
        signs.setdefault((row.metadata["persona_id"], item.construct), set()).add(sign)
    assert sum(len(found) > 0 for found in signs.values()) > 2000
    assert not [key for key, found in signs.items() if {-1, 1} <= found]


def test_the_card_says_synthetic_and_shows_composition_splits_and_leaks(default):
    card = default[0].read("dataset/card.md").decode()
    assert "This dataset is synthetic" in card
    assert "| demographics | 520 | 14.6 % |" in card
    assert "3,568 rows of 433 personas and 82 items. 71.4 % of the personas appear in one domain only." in card
    assert "| personas in both | 0 of " in card
    assert "The engine `rules` answered as 433 personas" in card
    assert "none needed, they are sampled" in card


def test_the_output_loads_with_hugging_face_datasets(default, tmp_path):
    import datasets

    files = {split: str(default[0].local_path(f"dataset/{split}.jsonl")) for split in SPLITS}
    loaded = datasets.load_dataset("json", data_files=files, cache_dir=str(tmp_path))
    assert {split: loaded[split].num_rows for split in SPLITS} == default[1]["splits"]
    row = loaded["train"][0]
    assert [message["role"] for message in row["messages"]] == ["system", "user", "assistant"]
    assert row["metadata"]["reference"] == row["messages"][2]["content"]


def test_the_same_recipe_gives_the_same_bytes(small, tmp_path):
    other = make_recipe(tmp_path / "other")
    run(other)
    assert files_of(RunDirectory.at(other.location)) == files_of(small)


def test_a_second_run_does_nothing(small, tmp_path):
    stamp = small.local_path("dataset/train.jsonl").stat().st_mtime_ns
    figures = run(make_recipe(tmp_path))
    assert figures["skipped"] is True
    assert figures["rows"] == 240
    assert small.local_path("dataset/train.jsonl").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"seed": 8}, "seed: 7 → 8"),
        ({"dataset": {"records": 241}}, "dataset.records: 240 → 241"),
        ({"dataset": {"records": 240, "split_by": "item"}}, "dataset.split_by: persona → item"),
        ({"dataset": {"records": 240, "teacher": "fake"}}, "dataset.teacher: rules → fake"),
        ({"panel": {"source": "sampled", "size": 20}}, "panel.personas: 30 → 20"),
        ({"instrument": {"domains": ["finance"]}}, "items are gone or say something else, such as demographics"),
        ({"instrument": {"show_options": "letters"}}, "instrument.show_options: labels → letters"),
    ],
)
def test_other_content_is_refused_with_old_and_new_and_nothing_is_overwritten(small, tmp_path, sections, message):
    before = files_of(small), load_run(small)
    with pytest.raises(RecipeChangedError, match=message):
        run(make_recipe(tmp_path, **sections))
    assert (files_of(small), load_run(small)) == before


def test_a_panel_that_grows_leaves_the_dataset_as_it_is(small, tmp_path):
    assert run(make_recipe(tmp_path, panel={"source": "sampled", "size": 50}))["skipped"] is True


def test_an_instrument_that_grows_leaves_the_dataset_as_it_is(tmp_path):
    run(make_recipe(tmp_path, instrument={"max_items": 20}))
    assert run(make_recipe(tmp_path, instrument={"max_items": 40}))["skipped"] is True


@pytest.mark.parametrize("lost", ["dataset/test.jsonl", "run.json"])
def test_a_dataset_that_is_not_whole_is_built_again(small, tmp_path, lost):
    before = files_of(small)
    small.delete(lost)
    assert run(make_recipe(tmp_path))["skipped"] is False
    assert files_of(small) == before


def test_the_entry_in_run_json_leaves_the_other_stages_alone(tmp_path):
    recipe = make_recipe(tmp_path)
    directory = RunDirectory.at(recipe.location)
    update_run(directory, {"stages": {"other": {"state": "finished"}}})
    run(recipe)
    stages = load_run(directory)["stages"]
    assert stages["other"] == {"state": "finished"}
    assert stages["dataset"]["content"]["dataset.records"] == 240


def test_rows_that_cross_are_dropped_and_counted_when_split_by_both(tmp_path):
    recipe = make_recipe(tmp_path, dataset={"records": 600, "split_by": "both"})
    figures = run(recipe)
    assert figures["rows"] + figures["dropped"] == 600
    assert figures["dropped"] > 0
    assert (figures["leaks"]["shared_personas"], figures["leaks"]["shared_questions"]) == (0, 0)
    card = RunDirectory.at(recipe.location).read("dataset/card.md").decode()
    assert f"{figures['dropped']} rows belong to no split and were dropped" in card


def test_any_engine_can_be_the_teacher(tmp_path):
    figures = run(make_recipe(tmp_path, dataset={"records": 240, "teacher": "fake"}))
    assert (figures["teacher"], figures["rows"]) == ("fake", 240)


def test_an_unknown_teacher_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(EngineError, match=r"'ruels' is no engine of this version\. Did you mean 'rules'"):
        run(make_recipe(tmp_path, dataset={"records": 240, "teacher": "ruels"}))


def test_answers_that_are_not_complete_are_kept_aside_with_their_reason(tmp_path):
    personas = [{"id": f"p{number}", "age": 20 + number, "fake_failure": "refusal"} for number in range(2)]
    personas += [{"id": f"q{number}", "age": 20 + number, "fake_failure": "none"} for number in range(20)]
    personas = [{key: value for key, value in row.items() if value != "none"} for row in personas]
    (tmp_path / "panel.jsonl").write_text("".join(json.dumps(row) + "\n" for row in personas))
    panel = {"source": str(tmp_path / "panel.jsonl")}
    recipe = make_recipe(tmp_path, panel=panel, dataset={"records": 220, "teacher": "fake"})
    figures = run(recipe)
    directory = RunDirectory.at(recipe.location)
    rejected = [json.loads(line) for line in directory.read("dataset/rejected.jsonl").splitlines()]
    assert len(rejected) == figures["rejected"] == 220 - figures["rows"] > 0
    assert {row["reason"] for row in rejected} == {"refusal"}
    assert {row["persona_id"] for row in rejected} == {"p0", "p1"}
    assert f"{len(rejected)} were kept aside (`rejected.jsonl`)" in directory.read("dataset/card.md").decode()


class Stubborn:
    """An engine that answers nothing, or loses a cell."""

    name, reproduces = "stubborn", "bytes"

    def __init__(self, loses):
        self.loses = loses

    def answer(self, groups):
        cells = [cell for group in groups for cell in group.cells][self.loses :]
        return [Answer(cell.assignment_id, "", "error", error="no model") for cell in cells]

    def close(self):
        pass


@pytest.mark.parametrize(
    ("loses", "error", "message"),
    [
        (0, DatasetError, "answered none of 240 cells; 240 times: error: no model"),
        (1, RunFailedError, "gave 239 answers to 240 cells"),
    ],
)
def test_a_teacher_that_answers_nothing_is_an_error_and_nothing_is_written(
    tmp_path, monkeypatch, loses, error, message
):
    monkeypatch.setattr("polypersona.teacher.load_engine", lambda settings: Stubborn(loses))
    recipe = make_recipe(tmp_path)
    with pytest.raises(error, match=message):
        run(recipe)
    assert not RunDirectory.at(recipe.location).names("dataset")


def test_more_records_than_pairs_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="make only 2460"):
        run(make_recipe(tmp_path, dataset={"records": 2461}))


def test_a_folder_of_records_keeps_its_splits_and_its_leaks_are_reported(tmp_path, test_data):
    source = str(test_data / "polypersona_replication" / "data")
    recipe = make_recipe(tmp_path, dataset={"source": source})
    figures = run(recipe)
    assert figures["splits"] == {"train": 2854, "validation": 356, "test": 358}
    directory = RunDirectory.at(recipe.location)
    counts = directory.read_json("dataset/leaks.json")["leaks"]["test_in_train"]
    assert (counts["shared_personas"], counts["rows_with_shared_pair"], counts["duplicate_rows"]) == (239, 180, 111)
    card = directory.read("dataset/card.md").decode()
    assert "| personas in both | 239 of 239 |" in card
    assert "This dataset is synthetic" in card
    assert run(recipe)["skipped"] is True


def records_file(path, count=60, bad=0):
    rows = [
        {"persona": {"age": 20 + number % 12}, "question": f"Question {number % 5}?", "reference": f"Answer {number}."}
        for number in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n" * bad)
    return str(path)


def test_one_file_of_records_is_divided_by_the_recipe(tmp_path):
    source = records_file(tmp_path / "records.jsonl", bad=2)
    recipe = make_recipe(tmp_path, dataset={"source": source, "split_by": "persona", "splits": [0.5, 0.25, 0.25]})
    figures = run(recipe)
    assert (figures["rows"], figures["rejected"], figures["teacher"]) == (60, 2, None)
    assert figures["splits"] == {"train": 30, "validation": 15, "test": 15}
    rejected = RunDirectory.at(recipe.location).read("dataset/rejected.jsonl").splitlines()
    assert [json.loads(line)["row"] for line in rejected] == [61, 62]


def test_records_that_changed_are_refused(tmp_path):
    recipe = make_recipe(tmp_path, dataset={"source": records_file(tmp_path / "records.jsonl")})
    run(recipe)
    records_file(tmp_path / "records.jsonl", count=61)
    with pytest.raises(RecipeChangedError, match=r"records.source_hash: \w+ → \w+"):
        run(recipe)


@pytest.mark.parametrize("option", [{"records": 100}, {"teacher": "fake"}])
def test_options_without_a_meaning_beside_a_source_are_refused(tmp_path, option):
    source = records_file(tmp_path / "records.jsonl")
    with pytest.raises(DatasetError, match=f"dataset.{next(iter(option))} has no meaning here"):
        run(make_recipe(tmp_path, dataset={"source": source, **option}))


IDLE = [
    ("panel", {"size": 40}, "size"),
    ("panel", {"source": "people.csv"}, "source"),
    ("panel", {"distinct": True}, "distinct"),
    ("instrument", {"domains": ["healthcare"]}, "domains"),
    ("instrument", {"bank": "book.json"}, "bank"),
]


@pytest.mark.parametrize(("section", "keys", "named"), IDLE, ids=lambda value: str(value))
def test_panel_and_instrument_have_no_meaning_where_the_test_rows_of_a_source_are_asked(tmp_path, section, keys, named):
    dataset = {"source": records_file(tmp_path / "records.jsonl")}
    sections = {"dataset": dataset, "generate": {"on": "test", "engine": "fake"}, "model": {"adapter": "none"}}
    asked = build_recipe({"name": "d", "out": str(tmp_path), **sections, section: keys})
    for stage in (run, generate.run, make_plan, benchmark.run):
        with pytest.raises(RecipeError, match=rf"^{section}\.{named} has no meaning here: generate\.on: test asks"):
            stage(asked)
    assert not (tmp_path / "d").exists()
    shown = {"instrument": {"show_options": "letters"}}
    assert run(build_recipe({"name": "d", "out": str(tmp_path), **sections, **shown}))["rows"] == 60
    on_panel = {**sections, "panel": {"size": 40}, "generate": {"on": "panel"}}
    assert run(build_recipe({"name": "e", "out": str(tmp_path), **on_panel}))["rows"] == 60


def test_a_folder_with_splits_refuses_to_be_divided_again(tmp_path):
    for split in SPLITS:
        records_file(tmp_path / f"{split}.jsonl")
    with pytest.raises(DatasetError, match=r"dataset\.split_by has no meaning here.*brings its own splits"):
        run(make_recipe(tmp_path, dataset={"source": str(tmp_path), "split_by": "item"}))


def test_a_model_can_be_the_teacher(tmp_path):
    model = make_toy_model("llama", tmp_path / "model")
    sections = {
        "model": {"base": str(model)},
        "instrument": {"response_types": ["likert"]},
        "generate": {"max_new_tokens": 4},
    }
    recipe = make_recipe(tmp_path, dataset={"records": 60, "teacher": "packed"}, **sections)
    figures = run(recipe)
    assert figures["teacher"] == "packed"
    assert figures["rows"] + figures["rejected"] == 60
    content = load_run(RunDirectory.at(recipe.location))["stages"]["dataset"]["content"]
    assert (content["teacher.dtype"], content["teacher.adapter"]) == ("fp32", "none")
    make_toy_model("llama", model, seed=1)
    with pytest.raises(RecipeChangedError, match=r"teacher.model: \w+ → \w+"):
        run(recipe)
