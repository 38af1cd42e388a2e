import json
import re
import shutil

import pyarrow as pa
import pytest
from toy_runs import toy_items, toy_personas, toy_recipe, toy_scores, write_run

from polypersona.errors import StorageError
from polypersona.report import stage
from polypersona.report.paper import TABLE_II
from polypersona.shardfile import read_shard, render_shard
from polypersona.storage import RunDirectory, load_run

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\u2028 & \"quoted\" 'text' <!--"


@pytest.fixture(scope="module")
def reported(tmp_path_factory):
    recipe = toy_recipe(tmp_path_factory.mktemp("runs"))
    run = write_run(recipe, toy_personas(30), toy_items(), texts={40: HOSTILE})
    stage.run(recipe)
    return recipe, run, run.read("report.html").decode(), run.read_json("report.json")


def test_the_page_asks_for_nothing_and_says_that_it_is_synthetic(reported):
    _, _, page, numbers = reported
    assert not re.search(r"""(?:src|href|action)\s*=\s*["'](?!#|data:)""", page)
    assert not re.search(r"url\(\s*[\"']?(?!#)|@import|xlink", page)
    assert "default-src 'none'" in page
    assert "<title>Synthetic" in page
    assert numbers["synthetic"] is True
    assert len(page) < 5_000_000


def test_text_of_the_run_cannot_leave_its_place(reported):
    page = reported[2]
    assert "<img src=x" not in page
    assert "<script>alert" not in page
    assert page.count("<script") == 2
    embedded = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL).group(1)
    data = json.loads(embedded)
    assert HOSTILE in [row[2] for row in data["rows"]]


def test_ids_are_unique(reported):
    ids = re.findall(r'\bid="([^"]*)"', reported[2])
    assert len(ids) == len(set(ids))


def test_the_page_shows_the_numbers_of_the_json_file(reported):
    _, _, page, numbers = reported
    text = re.sub(r"\s+", " ", page)
    for row in numbers["cards"]:
        assert f"<b>{row['score']:.3f}</b>" in text
        assert f"[{row['low']:.3f}, {row['high']:.3f}]" in text
    assert numbers["summary"]["num_rows"] == 30 * 12 - 3
    assert sum(row["answers"] for row in numbers["domains"]) == numbers["summary"]["num_rows"]
    assert numbers["quarantine"] == {"the engine failed three times: out of memory": 3}
    assert numbers["dispositions"]["complete"] == numbers["summary"]["num_complete"]


def test_table_two_tells_undefined_from_not_computed(reported):
    columns = [column["head"] for column in reported[3]["table_ii"]["columns"]]
    cells = dict(zip(columns, reported[3]["table_ii"]["scores"], strict=True))
    assert cells["BERT-F1"] == "not computed"
    assert cells["SentSim"]["score"] is None
    assert cells["SentSim"]["n"] == 0
    assert cells["BLEU"]["score"] == pytest.approx(0.171)
    assert set(reported[3]["table_ii"]["paper"]) == set(TABLE_II)
    own = re.search(r'<tr class="own">.*?</tr>', reported[2], re.DOTALL).group(0)
    assert "n/a" in own
    assert "—" in own
    assert "not comparable" in reported[2]


def test_a_run_against_the_rules_says_that_it_concludes_nothing_about_people(reported):
    assert "concludes nothing about people" in reported[2]
    assert reported[3]["summary"]["is_simulated"] is True
    assert reported[3]["warnings"] == []


def test_an_unchanged_run_is_not_reported_again_and_gives_the_same_bytes(reported):
    recipe, run, page, _ = reported
    assert stage.run(recipe)["skipped"] is True
    assert load_run(run)["stages"]["report"]["state"] == "finished"
    run.delete("report.html")
    assert stage.run(recipe)["skipped"] is False
    assert run.read("report.html").decode() == page


def test_new_scores_make_a_new_report_and_ignored_cards_a_warning(reported, tmp_path):
    recipe, run, page, _ = reported
    shutil.copytree(run.local_path(), tmp_path / "toy")
    copy = RunDirectory.at(tmp_path / "toy")
    copy.write_json("scores/scores.json", toy_scores(toy_items(), ignores_cards=True))
    moved = recipe.model_copy(update={"out": str(tmp_path)})
    assert stage.run(moved)["skipped"] is False
    changed = copy.read("report.html").decode()
    assert "The model ignores these cards." in changed
    assert "The model ignores these cards." not in page
    assert "That the answers depend on the cards." not in changed


def test_a_run_without_scores_and_training_says_so(reported, tmp_path):
    recipe, run, _, _ = reported
    shutil.copytree(run.local_path(), tmp_path / "toy", ignore=shutil.ignore_patterns("scores", "adapter", "report.*"))
    stage.run(recipe.model_copy(update={"out": str(tmp_path)}))
    copy = RunDirectory.at(tmp_path / "toy")
    page = copy.read("report.html").decode()
    assert "No scores were computed" in page
    assert "Table II" not in page
    assert copy.read_json("report.json")["table_iii"] == []


def test_the_shares_of_how_cells_ended_are_of_the_cells_that_were_asked(tmp_path):
    recipe = toy_recipe(tmp_path)
    run = write_run(recipe, toy_personas(30), toy_items())
    name = run.names("responses", ".parquet")[0]
    table, footer = read_shard(run.read(name), name)
    ends = table.column("disposition").to_pylist()
    place = table.schema.get_field_index("disposition")
    skipped = pa.array(["not_asked"] * 120 + ends[120:]).dictionary_encode()
    run.write(name, render_shard(table.set_column(place, table.schema.field(place), skipped), footer))
    stage.run(recipe)
    ended = re.search(r"<caption>How the cells ended</caption>.*?</table>", run.read("report.html").decode(), re.DOTALL)
    assert ">120<" in ended.group(0)
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td.*?>.*?</td><td.*?>([\d.]*).*?</td></tr>', ended.group(0))
    shares = {head: float(share) for head, share in rows if share}
    assert shares["Quarantined"] == pytest.approx(100 * 3 / (30 * 12 - 120), abs=0.06)
    assert sum(shares.values()) == pytest.approx(100, abs=0.2)


def test_a_panel_run_shows_the_cards_of_its_panel(tmp_path):
    path = tmp_path / "people.jsonl"
    personas = toy_personas(9)
    path.write_text("".join(json.dumps({"id": p.persona_id, **p.attributes}) + "\n" for p in personas))
    recipe = toy_recipe(
        tmp_path, panel={"source": str(path), "id": "id"}, instrument={"max_items": 12}, generate={"on": "panel"}
    )
    run = write_run(recipe, personas, toy_items(1), quarantined=0)
    stage.run(recipe)
    embedded = re.search(r'id="data">(.*?)</script>', run.read("report.html").decode(), re.DOTALL).group(1)
    cards = json.loads(embedded)["personas"]
    assert {card["id"] for card in cards} == {persona.persona_id for persona in personas}
    assert all(["Occupation", dict(persona.attributes)["occupation"]] in card["card"]
               for persona in personas for card in cards if card["id"] == persona.persona_id)  # fmt: skip


def test_a_panel_that_has_moved_is_a_note_and_no_failure(tmp_path):
    recipe = toy_recipe(tmp_path, panel={"source": str(tmp_path / "gone.jsonl")}, generate={"on": "panel"})
    run = write_run(recipe, toy_personas(3), toy_items(1), quarantined=0)
    stage.run(recipe)
    assert "gone.jsonl" in run.read_json("report.json")["notes"][0]


def test_a_run_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(StorageError, match="There is no run"):
        stage.run(toy_recipe(tmp_path, "nothing"))
