"""`compare` end to end: published twins, a copy of the humans, a persona-blind run, small cells, what is refused."""

import csv
import json
import math
import random
from collections import defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from survey.human_runs import write_csv as write_rows
from survey.human_runs import write_json, write_run

from polypersona.compare import run as compare
from polypersona.compare import write_csv
from polypersona.errors import StorageError, SurveyError
from polypersona.records import Persona
from polypersona.storage import RunDirectory
from polypersona.survey.codebook import codebook_items
from polypersona.survey.codebook_checks import load_codebook, parse_codebook
from polypersona.survey.personas import build_personas

pytest_plugins = ["survey.conftest"]

ITEMS = ("Q3_1", "Q5", "Q6", "Q16", "Q30", "Q31", "Q19_1")


def rows_of(result, table, **wanted):
    return [row for row in result["tables"][table] if all(row[key] == value for key, value in wanted.items())]


def one(result, table, **wanted):
    (row,) = rows_of(result, table, **wanted)
    return row


@pytest.fixture(scope="module")
def twins(test_data, tmp_path_factory):
    """Twin-2K-500's humans as coded data and their twins as a run."""
    folder = tmp_path_factory.mktemp("twins")
    answers = {"human": defaultdict(dict), "twin": defaultdict(dict)}
    path = test_data / "twin2k" / "preference_redistribution" / "human_vs_twin_individual_level.csv"
    with path.open(encoding="utf-8") as stream:
        for row in csv.DictReader(stream):
            if row["value"]:
                answers[row["respondent_type"]][row["variable_name"]][row["TWIN_ID"]] = int(float(row["value"]))
    names = list(answers["human"])
    codes = {name: sorted({*answers["human"][name].values(), *answers["twin"][name].values()}) for name in names}
    book = {
        "title": "Preferences for redistribution, Twin-2K-500 mega-study",
        "source": "Twin-2K-500, Apache-2.0",
        "license": "Apache-2.0",
        "respondent_id": "TWIN_ID",
        "not_asked": "empty cell",
        "demographics": {},
        "items": {
            name: {
                "stem": name,
                "response_type": "likert",
                "options": {str(code): f"option {code}" for code in codes[name]},
            }
            for name in names
        },
    }
    codebook = write_json(folder / "codebook.json", book)
    ids = sorted({identity for name in names for identity in answers["human"][name]}, key=int)
    rows = [[identity, *(answers["human"][name].get(identity, "") for name in names)] for identity in ids]
    human = write_rows(folder / "human.csv", ["TWIN_ID", *names], rows)
    items = codebook_items(parse_codebook(book)[0])
    personas = [Persona(identity, {"note": identity}) for identity in ids]
    given = {
        (identity, name, 1, 1): answers["twin"][name][identity]
        for name in names
        for identity in ids
        if identity in answers["twin"][name]
    }
    run = write_run(folder, codebook, personas, items, given)
    return run, human, codebook


# Published: n, r, accuracy.
PUBLISHED = {
    "Trust": (1162, 0.295795, 0.592943),
    "Redistribution 1": (1153, 0.620508, 0.779705),
    "Fairness": (1151, 0.298406, 0.640747),
    "Work vs Luck": (1158, 0.346408, 0.769862),
}


@pytest.fixture(scope="module")
def compared_twins(twins):
    return compare(twins[0], str(twins[1]), str(twins[2]))


@pytest.mark.parametrize(("name", "expected"), PUBLISHED.items())
def test_the_twins_have_the_published_figures_to_six_digits(compared_twins, name, expected):
    row = one(compared_twins, "individuals", item=name, by="all")
    assert (row["n"], round(row["r"], 6), round(row["accuracy"], 6)) == expected


def test_trust_has_the_published_means_and_deviations(compared_twins):
    row = one(compared_twins, "individuals", item="Trust", by="all")
    found = [round(row[name], 4) for name in ("human_mean", "synthetic_mean", "human_sd", "synthetic_sd")]
    assert found == [1.7263, 2.2151, 0.7313, 0.9254]


def test_the_twins_raise_the_variance_collapse_alarm_where_their_variance_is_under_half(compared_twins):
    named = [alarm.split(" on ")[1].split(":")[0] for alarm in compared_twins["alarms"]]
    assert named == ["Work vs Luck", "Father education"]
    row = one(compared_twins, "scores", item="Father education", metric="variance_ratio")
    # Published standard deviations: 0.7096 and 2.4762.
    assert row["score"] == pytest.approx((0.7095695588922215 / 2.476193474016147) ** 2, rel=2e-3)
    assert row["high"] < 0.5


def test_the_twins_know_more_of_their_people_than_a_shuffle_would(compared_twins):
    row = one(compared_twins, "individuals", item="Redistribution 1", by="all")
    assert row["accuracy_low"] > row["accuracy_shuffled"]
    assert row["r_low"] == pytest.approx(0.5837, abs=2e-4)
    assert row["r_high"] == pytest.approx(0.6549, abs=2e-4)


@pytest.fixture(scope="module")
def nonvoters_files(test_data):
    folder = test_data / "nonvoters"
    return folder / "nonvoters_data.csv", folder / "codebook.json"


def copied(folder, survey, codebook, *, source=lambda row: row, shard_personas=256):
    """A run whose persona answers what the respondent `source(row)` answered."""
    personas = build_personas(survey)
    items = [item for item in codebook_items(survey.codebook) if item.item_id in ITEMS]
    answers = {}
    for item in items:
        chosen = survey.answers[item.item_id].options
        for row, persona in enumerate(personas):
            if chosen[source(row)] >= 0:
                answers[persona.persona_id, item.item_id, 1, 1] = item.codes[int(chosen[source(row)])]
    return write_run(folder, codebook, personas, items, answers, shard_personas=shard_personas)


@pytest.fixture(scope="module")
def copy(nonvoters, nonvoters_files, tmp_path_factory):
    run = copied(tmp_path_factory.mktemp("copy"), nonvoters, nonvoters_files[1])
    return run, compare(run, str(nonvoters_files[0]), str(nonvoters_files[1]), ["race", "educ"])


def test_the_humans_tables_are_the_published_ones(copy):
    shares = {row["code"]: round(row["human"], 2) for row in rows_of(copy[1], "shares", item="Q3_1", by="all")}
    assert shares == {1: 43.66, 2: 28.93, 3: 14.84, 4: 12.57}
    by_race = {
        row["group"]: round(row["human"], 2) for row in rows_of(copy[1], "shares", item="Q3_1", by="race", code=1)
    }
    assert by_race == {"White": 36.12, "Black": 75.99, "Hispanic": 49.08, "Other/Mixed": 51.73}
    assert round(copy[1]["human"]["effective_n"]) == 5205
    assert copy[1]["human"]["respondents"] == 5836


def test_a_copy_of_the_humans_is_perfect(copy):
    result = copy[1]
    for row in rows_of(result, "scores"):
        if row["n"] and row["metric"] not in ("effective_human_n",):
            assert row["score"] == pytest.approx(row["best"], abs=2e-3), row
    assert result["alarms"] == []
    assert result["pattern"]["correlation"] == pytest.approx(1.0, abs=1e-3)
    assert result["regression"]["share_different"] == 0.0
    assert all(abs(row["index"]) < 1e-4 for row in rows_of(result, "stereotyping"))
    assert all(row["exact"] == 1.0 for row in rows_of(result, "individuals"))


def test_every_score_has_its_n_effective_n_interval_floors_and_ceiling(copy):
    row = one(copy[1], "scores", item="Q3_1", by="race", group="Black", metric="total_variation")
    assert row["n"] == row["human_n"] > 900
    assert 600 < row["human_n_effective"] < 932
    assert row["low"] <= row["score"] <= row["high"]
    assert row["uniform"] > 0.3
    assert row["marginal"] == pytest.approx(row["shuffled"], abs=1e-3)
    assert row["marginal"] == pytest.approx(0.3233, abs=5e-3)
    assert 0 < row["split_half"] < 0.06
    assert "linearised" in row["signature"]


def test_what_is_undefined_is_no_number_and_rests_on_nobody(copy):
    row = one(copy[1], "scores", item="Q5", by="all", metric="w1_alignment")
    assert (row["n"], row["n_effective"], math.isnan(row["score"])) == (0, 0.0, True)
    stored = copy[0].read_json("scores/human.json")
    found = [row for row in stored["overall"] if row["item"] == "Q5" and row["metric"] == "w1_alignment"]
    assert found[0]["score"] is None


def test_a_persona_blind_run_is_exposed_by_its_subgroups(nonvoters, nonvoters_files, tmp_path):
    order = list(range(nonvoters.num_respondents))
    random.Random(3).shuffle(order)
    run = copied(tmp_path, nonvoters, nonvoters_files[1], source=lambda row: order[row])
    result = compare(run, str(nonvoters_files[0]), str(nonvoters_files[1]), ["race"])
    everybody = one(result, "scores", item="Q3_1", by="all", metric="total_variation")
    black = one(result, "scores", item="Q3_1", by="race", group="Black", metric="total_variation")
    assert everybody["score"] < 0.03
    assert abs(black["gain_over_shuffled"]) < 0.05
    assert black["low"] > black["split_half"]
    row = one(result, "stereotyping", item="Q3_1", by="race")
    assert row["index"] == pytest.approx(row["shuffled"], abs=0.005)
    assert row["high"] < 0
    assert result["prediction"]["gain"] < 0
    assert one(result, "individuals", item="Q3_1", by="all")["r"] == pytest.approx(0, abs=0.05)


def test_any_sharding_writes_the_same_bytes(nonvoters, nonvoters_files, tmp_path):
    found = []
    for place, size in enumerate((97, 1024)):
        run = copied(tmp_path / str(place), nonvoters, nonvoters_files[1], shard_personas=size)
        compare(run, str(nonvoters_files[0]), str(nonvoters_files[1]), ["race"])
        found.append({name: run.read(name) for name in run.names("scores", ".parquet")})
    assert list(found[0]) == list(found[1])
    assert [name for name in found[0] if found[0][name] != found[1][name]] == []


def test_the_source_and_its_licence_stand_beside(copy, tmp_path):
    run, result = copy
    stored = run.read_json("scores/human.json")
    assert "CC BY 4.0" in stored["human"]["source"]
    assert stored["synthetic"] is True
    metadata = pq.read_schema(run.local_path("scores/human_shares.parquet")).metadata
    assert b"CC BY 4.0" in metadata[b"human_source"]
    names = write_csv(str(tmp_path / "csv"), result["tables"], "Human data: X, CC BY 4.0")
    assert "human_shares.csv" in names
    assert "CC BY 4.0" in (tmp_path / "csv" / "SOURCE.txt").read_text(encoding="utf-8")
    with (tmp_path / "csv" / "human_shares.csv").open(encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if (row["item"], row["by"], row["code"]) == ("Q5", "all", "1")]
    assert round(float(rows[0]["human"]), 2) == 81.21


@pytest.fixture
def small(tmp_path, book):
    """Forty people, three of them men, and a run on as many personas."""
    rng = random.Random(9)
    codebook = write_json(tmp_path / "codebook.json", book)
    rows = []
    for place in range(40):
        q1 = ["1", "2", "3"][place % 3]
        rows.append(
            [f"h{place}", 1, rng.randint(18, 80), "m" if place < 3 else "f", q1, rng.choice("12") if q1 == "3" else "",
             rng.choice(["1", "-1"]), rng.choice(["1", "-1"])]
        )  # fmt: skip
    human = write_rows(tmp_path / "human.csv", ["id", "w", "age", "sex", "q1", "q2", "q3_1", "q3_2"], rows)
    personas = [Persona(f"s{place}", {"age": 20 + place, "sex": "fm"[place % 2]}) for place in range(40)]
    items = codebook_items(load_codebook(codebook))
    answers = {(p.persona_id, item.item_id, 1, 1): rng.choice(item.codes) for p in personas for item in items}
    return write_run(tmp_path, codebook, personas, items, answers), human, codebook


def test_cells_of_fewer_than_five_people_are_not_shown(small):
    result = compare(small[0], str(small[1]), str(small[2]), ["sex"])
    assert rows_of(result, "scores", group="m") == []
    assert rows_of(result, "shares", group="m") == []
    assert result["hidden_cells"] >= 4
    assert any("fewer than 5" in note for note in result["notes"])
    assert min(row["human_n"] for row in rows_of(result, "scores")) >= 5


def test_an_option_that_few_chose_is_blank_and_so_is_the_one_it_could_be_had_from(small, book, tmp_path):
    rows = list(csv.reader(small[1].open(encoding="utf-8")))
    for place, row in enumerate(rows[1:]):
        row[3] = "f" if place < 20 else "m"
        row[4] = "1" if place < 12 else "2" if place < 18 else "3"
        row[5] = "1" if row[4] == "3" and place % 2 else "2" if row[4] == "3" else ""
    human = write_rows(tmp_path / "other.csv", rows[0], rows[1:])
    result = compare(small[0], str(human), str(small[2]), ["sex"])
    shown = {row["label"]: row["human"] for row in rows_of(result, "shares", item="q1", group="f")}
    assert shown["Agree"] == pytest.approx(60.0)
    assert math.isnan(shown["Disagree"])  # two of twenty
    assert math.isnan(shown["Neither"])  # the next rarest


def test_without_by_all_demographics_that_personas_have_are_compared(small):
    result = compare(small[0], str(small[1]), str(small[2]))
    assert result["by"] == ["age", "sex"]


def test_a_second_comparison_leaves_no_table_of_the_first(small):
    compare(small[0], str(small[1]), str(small[2]), ["age"])
    assert small[0].exists("scores/human_stereotyping.parquet")
    compare(small[0], str(small[1]), str(small[2]), [])
    assert not small[0].exists("scores/human_stereotyping.parquet")


def test_too_many_profiles_are_refused_before_memory_is_taken(small, monkeypatch):
    monkeypatch.setattr("polypersona.compare.MAX_TABLE_BYTES", 1000)
    with pytest.raises(SurveyError, match=r"cut people into .* profiles"):
        compare(small[0], str(small[1]), str(small[2]), ["age", "sex"])


def test_a_run_without_responses_is_refused(tmp_path, nonvoters_files):
    with pytest.raises(StorageError, match="no responses"):
        compare(RunDirectory.at(tmp_path), str(nonvoters_files[0]), str(nonvoters_files[1]))


def test_intervals_of_everybodys_shares_hold_a_copy(copy):
    for row in rows_of(copy[1], "shares", by="all"):
        assert row["human_low"] <= row["synthetic"] <= row["human_high"]
    assert np.isfinite([row["human_low"] for row in rows_of(copy[1], "shares", by="all")]).all()


def test_human_json_is_plain_json(copy):
    json.loads(copy[0].read("scores/human.json"), parse_constant=lambda name: pytest.fail(name))
