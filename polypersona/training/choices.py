"""Closed examples → rows for the loss on choices: one card, several of its questions, every option of each.

A row is a tree of tokens: what its prompts and options share stands in it once, so that one forward gives every
option's likelihood, and the gradient is that of the examples one by one. Answers of the same card to the same question
are one question with shares, weighted by the examples' `sampling_weight`. Knows tokenizers by duck typing, no torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from polypersona.chatml import ChatTokenizer, encode_prompt, encode_text, render_choice, shown_place
from polypersona.errors import DatasetError
from polypersona.interview import answer_lead
from polypersona.recipe_sections import QUESTIONS_PER_ROW
from polypersona.records import Example, seed_from
from polypersona.scheduling.training_plan import RowSizes


@dataclass(frozen=True, slots=True)
class Posed:
    """A question within a row. `options` have, per option, (node before, token) of each of its tokens.

    `weights` are the summed sampling weights of those who chose each option, as shares of the row's mean question.
    """

    options: tuple[tuple[tuple[int, int], ...], ...]
    weights: tuple[float, ...]


@dataclass(frozen=True)
class ChoiceRow:
    """A tree of tokens, parents before children. `parents` has −1 for the root; `weight` is how often it is drawn."""

    ids: tuple[int, ...]
    parents: tuple[int, ...]
    questions: tuple[Posed, ...]
    weight: float

    @cached_property
    def positions(self) -> tuple[int, ...]:
        """Each token's distance from the root."""
        found: list[int] = []
        for parent in self.parents:
            found.append(found[parent] + 1 if parent >= 0 else 0)
        return tuple(found)

    @property
    def num_answer(self) -> int:
        """What a step's loss is the mean over: questions. Their weights sum to it, as the row is drawn by its own."""
        return len(self.questions)

    @property
    def answer_weight(self) -> float:
        """What each question counts in a mean over rows: the row's own loss is one of its mean question."""
        return self.weight / len(self.questions)


def group_examples(examples: Sequence[Example], seed: int) -> list[list[int]]:
    """Return the examples' indices by row: those of one card, `QUESTIONS_PER_ROW` of its questions each.

    Which questions of a card share a row follows from the seed and the card.
    """
    cards: dict[str, dict[str, list[int]]] = {}
    for index, example in enumerate(examples):
        card, question = _keys(example)
        cards.setdefault(card, {}).setdefault(question, []).append(index)
    rows = []
    for card, questions in cards.items():
        order = sorted(questions, key=lambda question: seed_from(seed, card, question))
        for begin in range(0, len(order), QUESTIONS_PER_ROW):
            rows.append([index for name in order[begin : begin + QUESTIONS_PER_ROW] for index in questions[name]])
    return rows


def encode_choices(
    tokenizer: ChatTokenizer, examples: Sequence[Example], max_length: int, seed: int
) -> tuple[ChoiceRow, ...]:
    """Return the rows of the examples.

    Raises:
        DatasetError: an example is of an open item or of no option, or a question is longer than a row may be.
    """
    lead, choices = answer_lead(tokenizer), _Choices()
    rows = []
    for group in group_examples(examples, seed):
        tree, posed = _Tree(), {}
        for index in group:
            example = examples[index]
            _, question = _keys(example)
            if question not in posed:
                prompt = encode_prompt(tokenizer, example.messages[:-1])
                options = [encode_text(tokenizer, lead + text) for text in choices.texts(example)]
                firsts = [option[:1] for option in options]
                if choices.has_letters(example) and len({*map(tuple, firsts)}) == len(firsts):
                    options = firsts  # generation scores the letter alone
                if len(prompt) + max(map(len, options)) > max_length:
                    raise DatasetError(
                        f"The example {example.id!r} has {len(prompt) + max(map(len, options))} tokens, a row has at "
                        f"most {max_length}.",
                        "Raise finetune.max_length.",
                    )
                posed[question] = tree.pose(prompt, options), [0.0] * len(options)
            posed[question][1][choices.place(example)] += sampling_weight(example)
        total = sum(sum(weights) for _, weights in posed.values())
        share = len(posed) / total
        questions = tuple(Posed(options, tuple(weight * share for weight in own)) for options, own in posed.values())
        rows.append(ChoiceRow(tuple(tree.ids), tuple(tree.parents), questions, total))
    return tuple(rows)


def num_rows(examples: Sequence[Example], loss: str, seed: int) -> int:
    """Return how many rows a training on these examples has."""
    return len(group_examples(examples, seed)) if loss == "options" else len(examples)


def bound_sizes(examples: Sequence[Example], loss: str, seed: int) -> RowSizes:
    """Return what the rows of a training on these examples cannot exceed."""
    if loss != "options":
        return RowSizes.bound(example.messages for example in examples)
    choices, tokens, answer = _Choices(), 0, 0
    for group in group_examples(examples, seed):
        posed = {_keys(examples[index])[1]: examples[index] for index in group}
        card = RowSizes.bound([next(iter(posed.values())).messages[:-2]]).tokens
        asked = [one.messages[-2]["content"] for one in posed.values()]
        differs = (place for place, letters in enumerate(zip(*asked, strict=False)) if len({*letters}) > 1)
        shared = next(differs, min(map(len, asked)))
        parts = [{"content": asked[0][:shared]}, *({"content": text[shared:]} for text in asked)]
        questions = RowSizes.bound([parts]).tokens
        options = RowSizes.bound([[{"content": text} for one in posed.values() for text in choices.texts(one)]]).tokens
        tokens, answer = max(tokens, card + questions + options), max(answer, options)
    return RowSizes(tokens, answer)


def sampling_weight(example: Example) -> float:
    """Return how much an example counts: a respondent's weight, one where the data have none."""
    return float(example.metadata.get("sampling_weight", 1.0))


def _keys(example: Example) -> tuple[str, str]:
    """Return what a card and a question are told apart by."""
    stored = example.metadata
    card = json.dumps([example.messages[0]["content"], stored.get("persona")], sort_keys=True)
    return card, f"{stored.get('item_id')}\n{example.messages[-2]['content']}"


class _Tree:
    """A tree of tokens that grows by sequences."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.parents: list[int] = []
        self._children: dict[tuple[int, int], int] = {}

    def pose(self, prompt: Sequence[int], options: Sequence[Sequence[int]]) -> tuple[tuple[tuple[int, int], ...], ...]:
        """Add a prompt with its options; return each option's (node before, token)."""
        end = self._walk(-1, prompt)
        found = []
        for option in options:
            node, scored = end, []
            for place, token in enumerate(option):
                scored.append((node, token))
                if place < len(option) - 1:
                    node = self._child(node, token)
            found.append(tuple(scored))
        return tuple(found)

    def _walk(self, node: int, tokens: Sequence[int]) -> int:
        for token in tokens:
            node = self._child(node, token)
        return node

    def _child(self, node: int, token: int) -> int:
        found = self._children.get((node, token))
        if found is None:
            found = self._children[node, token] = len(self.ids)
            self.ids.append(token)
            self.parents.append(node)
        return found


class _Choices:
    """How the options of examples are written, which their answers show."""

    def __init__(self) -> None:
        self._known: dict[tuple[tuple[str, ...], tuple[int, ...] | None, bool], tuple[str, ...]] = {}

    def texts(self, example: Example) -> tuple[str, ...]:
        """Return the options as answers, in the item's order."""
        labels, order = self._labels(example), tuple(example.metadata.get("shown") or ()) or None
        key = labels, order, self.has_letters(example)
        if key not in self._known:
            self._known[key] = tuple(
                render_choice(label, "letters" if key[2] else "labels", shown_place(index, order))
                for index, label in enumerate(labels)
            )
        return self._known[key]

    def has_letters(self, example: Example) -> bool:
        """Return whether the answer begins with a letter that the prompt gave the option."""
        label = str(example.metadata.get("label"))
        return not str(example.messages[-1]["content"]).startswith(render_choice(label))

    def place(self, example: Example) -> int:
        """Return the index of the option chosen."""
        return self._labels(example).index(str(example.metadata["label"]))

    def _labels(self, example: Example) -> tuple[str, ...]:
        stored: Mapping[str, object] = example.metadata
        options = stored.get("options")
        labels = tuple(str(label) for label in options) if isinstance(options, list | tuple) else ()
        if len(labels) < 2 or stored.get("label") not in labels:
            raise DatasetError(
                f"The example {example.id!r} is no choice among options, so finetune.loss: options has nothing to "
                "learn from it.",
                "Set finetune.loss: tokens, or leave open items out with instrument.response_types.",
            )
        return labels
