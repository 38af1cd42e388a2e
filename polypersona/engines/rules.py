"""The rules engine: a simulator of respondents that answers from a card by documented rules, and teaches models.

Attributes give latent traits, traits a stance on the item's construct, the stance an option or an opening sentence,
and a small grammar writes reasons and facts of the card around it. It knows only items whose construct is in
`simulator.constructs`. Its answers say nothing about people.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from polypersona.chatml import render_answer, shown_place
from polypersona.engines.base import Answer, Cell, EngineSettings, Group, Reproduces
from polypersona.errors import EngineError
from polypersona.records import Persona
from polypersona.simulator.constructs import CONSTRUCTS
from polypersona.simulator.grammar import fact_sentences, open_sentence, reason_sentences
from polypersona.simulator.traits import latent_traits, option_index, stance_level, stance_on, telling_trait


class RulesEngine:
    """Answers by rules. The persona's noise comes from `settings.seed`, the wording from the cell's seed.

    So all answers of a persona under one seed agree with each other, in every wave and draw. Nothing is drawn from
    probabilities, so it gives none and the temperature changes nothing.

    Raises:
        EngineError: a filter of sampling is asked for.
    """

    name = "rules"
    reproduces: Reproduces = "bytes"

    def __init__(self, settings: EngineSettings) -> None:
        if (settings.top_k, settings.top_p, settings.min_p) != (0, 1.0, 0.0):
            raise EngineError(
                "The rules engine does not know generate.top_k, top_p and min_p.", "Leave them out of the recipe."
            )
        self._seed = settings.seed
        self._has_rationale = settings.rationale
        self._show = settings.show_options

    def answer(self, groups: Sequence[Group]) -> list[Answer]:
        """Return one answer per cell, in order."""
        answers: list[Answer] = []
        for group in groups:
            traits = latent_traits(group.persona, self._seed)
            answers.extend(self._answer_cell(group.persona, traits, cell) for cell in group.cells)
        return answers

    def close(self) -> None:
        """Nothing is held."""

    def _answer_cell(self, persona: Persona, traits: dict[str, float], cell: Cell) -> Answer:
        item = cell.item
        if item.construct not in CONSTRUCTS:
            return Answer(
                cell.assignment_id,
                "",
                "error",
                error=f"the simulator knows no construct {item.construct!r} ({item.item_id})",
            )
        if item.is_closed and item.scale != "ordered":
            return Answer(
                cell.assignment_id, "", "error", error=f"the simulator answers ordered scales only ({item.item_id})"
            )
        rng = random.Random(cell.seed)
        stance = stance_on(traits, item.construct)
        trait, sign = telling_trait(traits, item.construct, stance, rng)
        if not item.is_closed:
            body = [
                *reason_sentences(trait, sign, rng.choice((1, 2)), rng),
                *fact_sentences(persona, rng.choice((1, 1, 2)), rng),
            ]
            rng.shuffle(body)
            return Answer(
                cell.assignment_id,
                " ".join([open_sentence(stance_level(stance), CONSTRUCTS[item.construct].topic, rng), *body]),
                "complete",
            )
        index = option_index(item, stance)
        label = item.options[index]
        rationale = ""
        if self._has_rationale:
            body = [*reason_sentences(trait, sign, 1, rng), *fact_sentences(persona, rng.choice((0, 1)), rng)]
            rationale = " ".join(body)
        return Answer(
            cell.assignment_id,
            render_answer(label, rationale, self._show, shown_place(index, cell.order)),
            "complete",
            rationale=rationale,
            code=item.codes[index],
            label=label,
        )
