"""The embedded model as it is shipped: its size, its card, and that it answers in sentences."""

from __future__ import annotations

import random

from polypersona.engines.base import Cell, EngineSettings, Group
from polypersona.engines.packed import PackedEngine
from polypersona.models.loading import load_tokenizer, num_parameters
from polypersona.panel.sampler import sample_personas
from polypersona.questionbank import load_bank
from polypersona.records import Assignment
from polypersona.resources import tiny_model
from polypersona.simulator.corpus import corpus_questions
from polypersona.simulator.grammar import is_well_formed

MAX_BYTES = 8 * 10**6


def test_the_shipped_folder_fits_eight_megabytes_and_holds_no_pickle() -> None:
    files = [path for path in tiny_model().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md"}


def test_it_has_about_two_million_parameters_and_its_own_tokenizer() -> None:
    assert 1_500_000 < num_parameters("tiny") < 2_500_000
    tokenizer = load_tokenizer("tiny")
    assert len(tokenizer) == 2048
    assert tokenizer.chat_template
    assert tokenizer.padding_side == "left"


def test_the_card_says_how_it_was_made_and_what_it_does() -> None:
    card = (tiny_model() / "README.md").read_text(encoding="utf-8")
    figures = card.partition("<!-- figures: jobs/measure_tiny.py -->")[2].partition("<!-- end of figures -->")[0]
    assert "synthetic" in card
    assert "jobs/pretrain_tiny.py" in card
    for measure in ("stance agreement", "bleu", "well formed"):
        assert f"| {measure} |" in figures


def test_the_untuned_model_answers_unseen_stems_in_whole_sentences() -> None:
    bank = load_bank()
    asked = set(corpus_questions())
    assert not any(item.stem in asked for item in bank)
    rng = random.Random(2)
    engine = PackedEngine(EngineSettings("packed", 7, model="tiny", dtype="fp32", rationale=True, max_new_tokens=96))
    groups = []
    for persona in sample_personas(12, 11):
        items = rng.sample(list(bank), 8)
        cells = [Assignment(persona.persona_id, item.item_id) for item in items]
        groups.append(
            Group(persona, tuple(Cell(c.assignment_id, i, c.seed(7)) for c, i in zip(cells, items, strict=True)))
        )
    answers = engine.answer(groups)
    items = {cell.assignment_id: cell.item for group in groups for cell in group.cells}
    formed = [is_well_formed(answer.text, items[answer.assignment_id].options) for answer in answers]
    assert sum(formed) / len(formed) > 0.85
