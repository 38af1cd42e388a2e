"""A question is put to those only whom earlier answers lead to it: for every engine, in the dataset, in references."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from response_rows import rows_of
from routed_bank import write_bank
from scored_runs import row as response_row
from scored_runs import table

from polypersona import dataset, evaluate, generate
from polypersona.answering import Task, answer_cells, build_cells, build_rows
from polypersona.engines.base import Answer, EngineSettings
from polypersona.engines.fake import FakeEngine
from polypersona.engines.rules import RulesEngine
from polypersona.examples import load_examples
from polypersona.gates import Outcome
from polypersona.ledger import Box, Ledger
from polypersona.metrics.catalogue import choose_metrics
from polypersona.panel.sources import load_panel
from polypersona.population import Population
from polypersona.questionbank import load_instrument
from polypersona.recipe import build_recipe
from polypersona.records import Gate, Item, Persona
from polypersona.references import TeacherReferences
from polypersona.report import stage as report
from polypersona.report.tally import Tally
from polypersona.response_table import AskedCell
from polypersona.scoring import Scorer, Settings
from polypersona.storage import RunDirectory
from polypersona.verify import verify

TASK = Task(seed=7, is_shuffled=False, shows_options=True, adapter="none", max_attempts=2)
PET = Item("pet", "x", "A pet?", "yesno", ("No", "Yes"))
HELPS = Item("helps", "x", "It helps.", "likert", ("Disagree", "Agree"), asked_if=(Gate("pet", (2,)),))
WHY = Item("why", "x", "Why?", "open", asked_if=(Gate("helps", (2,)),))
OTHER = Item("other", "x", "Else?", "open")
ITEMS = (PET, HELPS, WHY, OTHER)


class Scripted:
    """An engine that answers by item, or by persona and item, and remembers what it was asked."""

    name = "scripted"
    reproduces = "bytes"

    def __init__(self, **said):
        self.said, self.calls = said, []

    def answer(self, groups):
        self.calls.append([(group.persona.persona_id, cell.item.item_id) for group in groups for cell in group.cells])
        return [self._say(group.persona.persona_id, cell) for group in groups for cell in group.cells]

    def _say(self, persona_id, cell):
        said = self.said.get(f"{persona_id}_{cell.item.item_id}", self.said.get(cell.item.item_id, "text"))
        if isinstance(said, int):
            label = cell.item.options[cell.item.codes.index(said)]
            return Answer(cell.assignment_id, label, "complete", code=said, label=label)
        if said == "text":
            return Answer(cell.assignment_id, "Well.", "complete")
        return Answer(cell.assignment_id, "", said, error="broken" if said == "error" else "")

    def close(self):
        pass


def ask(engine, items=ITEMS, personas=1, waves=1, **options):
    people = tuple(Persona(f"p{number}") for number in range(personas))
    population = Population(people, items)
    ledger = Ledger(personas).extend(Box(personas, population.item_keys, waves=waves))
    shard = ledger.shard(0)
    cells = build_cells(shard, ledger, population, TASK)
    rows = build_rows(shard, cells, answer_cells(engine, cells, TASK.max_attempts, **options), TASK)
    failed = [(row, row.reason) for row in rows_of(rows.quarantined)]
    return SimpleNamespace(committed=rows_of(rows.committed), quarantined=failed)


def ends(rows):
    return {row.item_id: row.disposition for row in (*rows.committed, *(row for row, _ in rows.quarantined))}


def test_items_are_asked_in_rounds_gates_first():
    engine = Scripted(pet=2, helps=2)
    rows = ask(engine)
    assert engine.calls == [[("p0", "pet"), ("p0", "other")], [("p0", "helps")], [("p0", "why")]]
    assert set(ends(rows).values()) == {"complete"}
    assert [row.item_id for row in rows.committed] == [item.item_id for item in ITEMS]


def test_without_a_gate_the_engine_is_asked_once():
    engine = Scripted(pet=1)
    ask(engine, items=(PET, OTHER), personas=3)
    assert len(engine.calls) == 1


@pytest.mark.parametrize("answer", [1, "refusal", "item_nonresponse"])
def test_what_a_gate_forbids_is_never_asked_and_neither_is_what_follows_it(answer):
    engine = Scripted(pet=answer)
    rows = ask(engine)
    assert engine.calls == [[("p0", "pet"), ("p0", "other")]]
    assert not rows.quarantined
    assert ends(rows) == {
        "pet": "complete" if answer == 1 else answer, "other": "complete", "helps": "not_asked", "why": "not_asked",
    }  # fmt: skip
    skipped = rows.committed[1]
    assert (skipped.text, skipped.label, skipped.error, skipped.code) == ("", "", "", None)
    assert (skipped.option_probs, skipped.options_as_shown) == (None, None)
    assert (skipped.attempts, skipped.prompt_tokens, skipped.new_tokens) == (0, 0, 0)
    assert rows.committed[0].options_as_shown == (0, 1)


@pytest.mark.parametrize(("answer", "reason"), [("error", "broken"), ("invalid", "none of the options")])
def test_what_depends_on_a_quarantined_gate_is_quarantined_with_that_reason(answer, reason):
    engine = Scripted(pet=answer)
    rows = ask(engine)
    assert [row.item_id for row in rows.committed] == ["other"]
    reasons = {row.item_id: why for row, why in rows.quarantined}
    assert reason in reasons["pet"]
    assert reasons["helps"].startswith("its gate pet failed: ")
    assert reasons["why"].startswith("its gate helps failed: its gate pet failed: ")
    assert ("p0", "helps") not in [cell for call in engine.calls for cell in call]
    assert len(rows.committed) + len(rows.quarantined) == 4


def test_each_persona_and_wave_is_routed_by_its_own_answers():
    class Fickle(Scripted):
        def _say(self, persona_id, cell):
            self.seen[cell.assignment_id] = 1 + len(self.seen) % 2
            return (
                super()._say(persona_id, cell)
                if cell.item.item_id != "pet"
                else Answer(cell.assignment_id, "x", "complete", code=self.seen[cell.assignment_id], label="x")
            )

    engine = Fickle(helps=1)
    engine.seen = {}
    rows = ask(engine, items=(PET, HELPS), personas=3, waves=2).committed
    code = {(row.persona_id, row.wave): row.code for row in rows if row.item_id == "pet"}
    helps = {(row.persona_id, row.wave): row.disposition for row in rows if row.item_id == "helps"}
    assert set(code.values()) == {1, 2}
    assert helps == {key: "complete" if value == 2 else "not_asked" for key, value in code.items()}


def test_variants_are_routed_by_the_item_itself():
    engine = Scripted(pet=2, helps=1)
    forms = (PET, replace(PET, variant="turned"), HELPS, replace(HELPS, variant="turned"))
    rows = ask(engine, items=forms).committed
    assert [(row.variant, row.disposition) for row in rows if row.item_id == "helps"] == [
        ("", "complete"),
        ("turned", "complete"),
    ]
    assert engine.calls[0] == [("p0", "pet")] * 2


def test_a_gate_of_another_shard_is_taken_as_known():
    for outcome, end in ((Outcome("complete", 2), "complete"), (Outcome("complete", 1), "not_asked")):
        rows = ask(Scripted(helps=1), items=(HELPS,), known={("p0", 1, 1): {"pet": outcome}})
        assert ends(rows) == {"helps": end}
    with pytest.raises(RuntimeError, match="gate of the item helps"):
        ask(Scripted(), items=(HELPS,))


def test_an_engine_that_holds_interviews_gets_each_as_a_group_and_routes_for_itself():
    class Interviewer(Scripted):
        failures = 1

        def answer(self, groups):
            answers = super().answer(groups)
            if self.failures:
                self.failures -= 1
                answers[-1] = Answer(answers[-1].assignment_id, "", "error", error="not now")
            return answers

    engine = Interviewer(pet=1, helps="not_asked", why="not_asked")
    rows = ask(engine, waves=2, is_interview=True)
    whole = [("p0", item.item_id) for item in ITEMS]
    assert engine.calls == [whole * 2, whole]  # the second wave's interview is held again as a whole
    assert [row.attempts for row in rows.committed] == [1] * 4 + [2] * 4
    assert Counter(row.disposition for row in rows.committed) == {"complete": 4, "not_asked": 4}


@pytest.mark.parametrize("name", ["fake", "rules"])
def test_every_engine_is_routed(name, tmp_path):
    items = load_instrument(recipe(tmp_path).instrument).items
    people = load_panel(recipe(tmp_path).panel, 7).personas
    population = Population(tuple(people), tuple(items))
    ledger = Ledger(len(people)).extend(Box(len(people), population.item_keys))
    cells = build_cells(ledger.shard(0), ledger, population, TASK)
    engine = {"fake": FakeEngine, "rules": RulesEngine}[name](EngineSettings(name, 7))
    check_routing(rows_of(build_rows(ledger.shard(0), cells, answer_cells(engine, cells, 1), TASK).committed))
    assert isinstance(cells[0], AskedCell)


def recipe(folder, size=40, name="routed", items=(), bank=None, **sections):
    bank = bank or write_bank(folder)
    instrument = {"bank": bank, "items": list(items)}
    generate_ = {"engine": "fake", "shard_personas": 8, "actors": 1, **sections.pop("generate", {})}
    panel = {"source": "sampled", "size": size}
    content = {"name": name, "out": str(folder), "panel": panel, "instrument": instrument, "generate": generate_}
    return build_recipe(content | sections)


def check_routing(rows):
    """Rows (attribute access) of whole interviews hold exactly what the bank's routing says."""
    by_cell = {(row.persona_id, row.wave, row.draw, row.item_id): row for row in rows}
    seen = Counter()
    for key, row in by_cell.items():
        here = {item: by_cell[(*key[:3], item)] for item in ("pets.yesno.01", "pets.likert.01")}
        has_pet = here["pets.yesno.01"].code == 2
        expected = {
            "pets.likert.01": has_pet,
            "pets.open.01": has_pet and here["pets.likert.01"].code == 3,
        }.get(key[3], True)
        assert (row.disposition != "not_asked") == expected, key
        seen[key[3], expected] += 1
    assert min(seen["pets.likert.01", asked] for asked in (True, False)) > 2
    assert min(seen["pets.open.01", asked] for asked in (True, False)) > 0


class _Row:
    def __init__(self, values):
        self.__dict__.update(values)


def read(folder):
    tables = [pq.read_table(path) for path in sorted(Path(folder).glob("responses/*.parquet"))]
    return [_Row(row) for row in pa.concat_tables(tables).to_pylist()]


@pytest.mark.ray
def test_a_run_with_routing_is_complete_scored_and_reported(local_ray, tmp_path):
    own = recipe(tmp_path, generate={"engine": "rules"}, size=60)
    summary = generate.run(own)
    rows = read(tmp_path / "routed")
    check_routing(rows)
    skipped = sum(row.disposition == "not_asked" for row in rows)
    audit = verify(RunDirectory.at(own.location))
    assert (audit.is_clean, audit.planned, audit.committed, audit.not_asked) == (True, 360, 360, skipped)
    assert summary["quarantined"] == 0
    evaluate.run(own)
    scores = RunDirectory.at(own.location).read_json("scores/scores.json")
    assert (scores["num_rows"], scores["num_not_asked"], scores["dispositions"]["not_asked"]) == (360, skipped, skipped)
    assert f"{skipped:,} cells were not asked" in scores["caption"]
    exact = {row["group"]: row for row in scores["by_item"] if row["metric"] == "exact_agreement"}
    asked = sum(row.disposition == "complete" and row.item_id == "pets.likert.01" for row in rows)
    assert (exact["pets.likert.01"]["n"], exact["pets.likert.01"]["score"]) == (asked, 1.0)
    report.run(own)
    numbers = RunDirectory.at(own.location).read_json("report.json")
    assert (numbers["summary"]["num_rows"], numbers["summary"]["num_not_asked"]) == (360 - skipped, skipped)
    assert numbers["summary"]["share_complete"] == 1
    assert "not_asked" not in numbers["dispositions"]
    assert f"{skipped:,} cells were not asked" in numbers["what_was_run"][0]
    [item] = [row for row in numbers["items"] if row["item"] == "pets.likert.01"]
    assert item["n"] == asked
    assert "Not asked" in RunDirectory.at(own.location).read("report.html").decode()


@pytest.mark.ray
def test_follow_ups_added_later_are_routed_by_the_answers_that_are_there(local_ray, tmp_path):
    first = ["pets.yesno.01", "pets.open.02"]
    small, whole = recipe(tmp_path, items=first), recipe(tmp_path)
    generate.run(small)
    before = {path.name: path.read_bytes() for path in (tmp_path / "routed/responses").iterdir()}
    generate.run(whole)
    check_routing(read(tmp_path / "routed"))
    now = {path.name: path.read_bytes() for path in (tmp_path / "routed/responses").iterdir()}
    assert before.items() <= now.items()
    assert verify(RunDirectory.at(whole.location)).is_clean
    # The same cells get the same answers when all is asked at once, also where more waves and people follow.
    generate.run(recipe(tmp_path, name="once"))
    assert {row.assignment_id: row.text for row in read(tmp_path / "routed")} == {
        row.assignment_id: row.text for row in read(tmp_path / "once")
    }
    generate.run(recipe(tmp_path, size=52, generate={"waves": 2}))
    check_routing(read(tmp_path / "routed"))


def test_the_dataset_holds_no_row_of_a_question_that_was_not_put(tmp_path):
    sections = {"dataset": {"records": 200, "split_by": "neither"}}
    figures = dataset.run(recipe(tmp_path, size=60, **sections))
    run = RunDirectory.at(tmp_path / "routed")
    rows = [row.metadata for split in ("train", "validation", "test") for row in load_examples(run, split)]
    assert figures["rows"] == len(rows) == 200 - figures["not_asked"]
    assert 0 < figures["not_asked"] < 120
    assert figures["rejected"] == 0
    assert f"{figures['not_asked']} cells were not asked" in run.read("dataset/card.md").decode()
    # Also where the composition left the gate itself out, the respondent's answer to it decided.
    everything = recipe(tmp_path, size=60, name="all", dataset={"records": 360, "split_by": "neither"})
    dataset.run(everything)
    run = RunDirectory.at(everything.location)
    whole = [row.metadata for split in ("train", "validation", "test") for row in load_examples(run, split)]
    have = {(row["persona_id"], row["item_id"]) for row in whole}
    pets = {row["persona_id"] for row in whole if row["item_id"] == "pets.yesno.01" and row["code"] == 2}
    assert {persona for persona, item in have if item == "pets.likert.01"} == pets
    assert {(row["persona_id"], row["item_id"]) for row in rows} <= have


def test_the_teacher_gives_no_reference_where_its_own_answers_route_past(tmp_path):
    own = recipe(tmp_path)
    items, people = load_instrument(own.instrument).items, load_panel(own.panel, 7).personas
    references = TeacherReferences.build(people, items, 7, has_rationale=False)
    found = Counter()
    for persona in people:
        has_pet = references.own(persona.persona_id, "pets.yesno.01").code == 2
        reference = references.own(persona.persona_id, "pets.likert.01")
        assert (reference is not None) == has_pet
        found[has_pet] += 1
    assert len(found) == 2


def test_cells_that_were_not_asked_are_in_no_statistic():
    person = Persona("p")
    rows = [
        response_row(person, PET, text="Yes.", code=2, label="Yes"),
        response_row(person, HELPS, disposition="not_asked"),
        response_row(person, WHY, disposition="not_asked"),
    ]
    metrics, set_metrics = choose_metrics([], None)
    settings = Settings(metrics, set_metrics, {item.item_id: item for item in ITEMS}, None, 7, 10)
    with_skipped, without = Scorer.build(settings), Scorer.build(settings)
    with_skipped.add(table(rows))
    without.add(table(rows[:1]))
    assert with_skipped.partial.dispositions == {"complete": 1, "not_asked": 2}
    assert set(with_skipped.partial.sums.groups) == set(without.partial.sums.groups)
    for key, totals in without.partial.sums.groups.items():
        assert (with_skipped.partial.sums.groups[key] == totals).all()
    tally = Tally()
    plain = table(rows)
    for name in ("persona_id", "item_id", "variant", "domain", "response_type", "label", "disposition"):
        index = plain.schema.get_field_index(name)
        plain = plain.set_column(index, name, plain[name].cast(pa.string()))
    tally.add(plain.append_column("item", plain["item_id"]))
    assert (tally.num_rows, tally.num_not_asked, set(tally.item_types)) == (1, 2, {"pet"})
