"""pytest tests/engines/test_interviews.py: items in one conversation (`context: previous`) with the packed engine."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from packed_toys import END, ITEMS, LIKERT, LIMIT, OPEN, PERSONAS, SHORT, STOPS, YESNO, Plain, groups, said, settings
from response_rows import rows_of
from toy_models import CHATML, FAMILIES, make_toy_tokenizer

from polypersona.answering import Task, answer_cells, build_cells, build_rows
from polypersona.chatml import encode, render_answer, render_choice, render_prompt
from polypersona.decoding.choice import choose_option
from polypersona.decoding.plain import PlainTokenEngine
from polypersona.decoding.sampling import SamplingSettings
from polypersona.engines.base import Answer, Cell, Group
from polypersona.engines.packed import PackedEngine
from polypersona.errors import ModelError
from polypersona.interview import Turn, build_interview, encode_first, encode_next
from polypersona.ledger import Box, Ledger
from polypersona.population import Population
from polypersona.records import Gate, Item, Persona, seed_from

WORRY = Item("money.likert.01", "finance", "Money worries me.", "likert", ("Disagree", "Neutral", "Agree"))
ASKED = (LIKERT, OPEN, YESNO, SHORT, WORRY)


def interview(model: Path, **changes: Any) -> PackedEngine:
    return PackedEngine(settings(model, context="previous", **changes))


def by_interview(answers: Sequence[Answer], count: int) -> list[list[Answer]]:
    return [list(answers[at : at + count]) for at in range(0, len(answers), count)]


class Conversation:
    """An interview held without the engine: every turn is one forward over everything before it."""

    def __init__(self, plain: Plain, persona: Persona, show: Any = "labels") -> None:
        self.plain, self.persona, self.show = plain, persona, show
        self.turns: list[Turn] = []
        self.ids: list[int] = []

    def question(self, item: Item, order: Sequence[int] | None = None) -> list[int]:
        messages = build_interview(self.persona, self.turns, item, self.show, order)
        self.ids += (encode_next if self.turns else encode_first)(self.plain.tokenizer, messages)
        return list(self.ids)

    def answer(self, item: Item, order: Sequence[int] | None, text: str, tokens: Sequence[int]) -> None:
        self.ids += [token for token in tokens if token not in STOPS]
        self.turns.append(Turn(item, order, text or "…"))


@pytest.mark.parametrize("show", ["labels", "letters"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_turn_equals_a_forward_over_the_whole_conversation(
    lively_models: dict[str, Path], family: str, show: Any
) -> None:
    plain = Plain(lively_models[family])
    engine = interview(lively_models[family], rationale=True, show_options=show, slots=2)
    order = (2, 0, 3, 1, 4)
    asked = groups(items=ASKED)
    asked = [Group(g.persona, (g.cells[0]._replace(order=order), *g.cells[1:])) for g in asked]
    answers = engine.answer(asked)
    for persona, own in zip(PERSONAS, by_interview(answers, len(ASKED)), strict=True):
        held = Conversation(plain, persona, show)
        for item, answer in zip(ASKED, own, strict=True):
            shown = order if item is LIKERT else None
            ids = held.question(item, shown)
            assert answer.prompt_tokens == len(ids)
            chosen: list[int] = []
            if item.is_closed:
                choices = plain.choices(item, show, shown)
                scored = [choice[:1] for choice in choices] if show == "letters" else choices
                choice, probs = choose_option(plain.log_probs(ids, scored), 0, is_greedy=True)
                assert answer.option_probs == pytest.approx(probs, abs=2e-5)
                assert answer.code == item.codes[choice]
                chosen = choices[choice]
            tokens = plain.written([*ids, *chosen])
            assert (answer.rationale if item.is_closed else answer.text) == plain.text(tokens)
            assert answer.new_tokens == len(tokens)
            held.answer(item, shown, answer.text, [*chosen, *tokens])
        # Everything but the last answer's last token and the new question was computed before.
        reused = [answer.reused_prompt_tokens for answer in own]
        assert all(before.prompt_tokens <= now for before, now in zip(own, reused[1:], strict=False))
        assert all(now < answer.prompt_tokens for now, answer in zip(reused, own, strict=True))


def test_the_stream_is_the_templates_own_rendering_of_the_conversation(lively_models: dict[str, Path]) -> None:
    plain = Plain(lively_models["llama"])
    answers = interview(lively_models["llama"]).answer(groups(PERSONAS[:1], (LIKERT, YESNO, WORRY)))
    turns = [Turn(item, None, answer.text) for item, answer in zip((LIKERT, YESNO, WORRY), answers, strict=True)]
    for count, answer in enumerate(answers):
        messages = build_interview(PERSONAS[0], turns[:count], turns[count].item)
        text = render_prompt(plain.tokenizer, messages)
        assert answer.prompt_tokens == pytest.approx(len(encode(plain.tokenizer, text)), abs=2 * count)
        held = Conversation(plain, PERSONAS[0])
        for turn in turns[:count]:
            held.question(turn.item)
            held.answer(turn.item, None, turn.text, encode(plain.tokenizer, turn.text))
        assert plain.tokenizer.decode(held.question(turns[count].item)) == text


def test_the_first_question_is_asked_as_without_context(lively_models: dict[str, Path]) -> None:
    first = PackedEngine(settings(lively_models["llama"], rationale=True)).answer(groups(items=ITEMS[:1]))
    held = interview(lively_models["llama"], rationale=True).answer(groups())
    assert [*map(said, first)] == [*map(said, held[:: len(ITEMS)])]
    apart = PackedEngine(settings(lively_models["llama"], rationale=True)).answer(groups())
    assert [*map(said, apart)] != [*map(said, held)]


@pytest.mark.parametrize("slots", [1, 2, 64])
def test_neither_slots_nor_company_changes_an_interview(lively_models: dict[str, Path], slots: int) -> None:
    options = {"rationale": True, "temperature": 0.8}
    expected = interview(lively_models["qwen2"], **options).answer(groups(items=ASKED))
    assert [*map(said, interview(lively_models["qwen2"], slots=slots, **options).answer(groups(items=ASKED)))] == [
        *map(said, expected)
    ]
    engine = interview(lively_models["qwen2"], slots=slots, **options)
    alone = [engine.answer([group]) for group in groups(items=ASKED)]
    assert [said(answer) for part in alone for answer in part] == [*map(said, expected)]
    assert engine.answer(groups(items=ASKED)) == engine.answer(groups(items=ASKED))


class Copier:
    """A model that says again what it said last: its logits copy the choice that stands before the last question.

    Asked for the first time it has no opinion, so the cell's seed decides.
    """

    def __init__(self, tokenizer: Any, options: Sequence[str]) -> None:
        self.tokenizer, self.choices = tokenizer, [render_choice(label) for label in options]

    def __call__(self, input_ids: torch.Tensor) -> Any:
        ids = input_ids[0].tolist()
        logits = torch.zeros(1, len(ids), 384)
        *_, question = turns = self.tokenizer.decode(ids).split("<|im_start|>assistant\n")
        said = [turn.split("<|im_end|>")[0] for turn in turns[1:-1]]
        begin = len(ids) - len(encode(self.tokenizer, question))
        for choice in [said[-1]] if said else self.choices:
            tokens = encode(self.tokenizer, choice)
            for at in range(begin - 1, len(ids)):
                place = at - begin + 1
                if place < len(tokens) and ids[begin : at + 1] == tokens[:place]:
                    logits[0, at, tokens[place]] = 50.0
        return type("Out", (), {"logits": logits})


def test_an_answer_that_is_copied_from_an_earlier_one_is_consistent_only_in_an_interview(
    lively_models: dict[str, Path],
) -> None:
    again = replace(WORRY, item_id="money.likert.02", stem="Does money worry you, as you said?")
    people = [Persona(f"p{number}", {"age": 20 + number}) for number in range(20)]
    agreed = {}
    for context in ("none", "previous"):
        engine = PackedEngine(settings(lively_models["llama"], context=context, temperature=0.8))
        copier = Copier(engine._cells.tokenizer, WORRY.options)
        engine._tokens = PlainTokenEngine(copier, SamplingSettings(0.8), "cpu", frozenset({END}))
        pairs = by_interview(engine.answer(groups(people, (WORRY, again))), 2)
        agreed[context] = sum(one.code == other.code for one, other in pairs)
        assert len({one.code for one, _ in pairs}) == 3
    assert agreed["previous"] == 20
    assert agreed["none"] < 14


PET = Item("pets.yesno.01", "pets", "A pet?", "yesno", ("No", "Yes"))
HELPS = Item(
    "pets.likert.01", "pets", "It helps me.", "likert", ("Disagree", "Agree"), asked_if=(Gate(PET.item_id, (2,)),)
)
WHY = Item("pets.open.01", "pets", "Why?", "open", asked_if=(Gate(HELPS.item_id, (1, 2)),))


def test_routing_is_honoured_inside_an_interview(lively_models: dict[str, Path]) -> None:
    plain = Plain(lively_models["llama"])
    people = [Persona(f"p{number}", {"age": 20 + number}) for number in range(12)]
    engine = interview(lively_models["llama"], temperature=1.0)
    # Follow-ups stand before their gates in the file; they are asked after them.
    held = by_interview(engine.answer(groups(people, (WHY, HELPS, PET, SHORT))), 4)
    assert {own[2].code for own in held} == {1, 2}
    for persona, (why, helps, pet, short) in zip(people, held, strict=True):
        dispositions = (helps.disposition, why.disposition)
        if pet.code == 1:
            assert dispositions == ("not_asked", "not_asked")
            assert (helps.prompt_tokens, why.text, helps.option_probs) == (0, "", None)
            conversation = Conversation(plain, persona)
            conversation.question(PET)
            conversation.answer(PET, None, pet.text, encode(plain.tokenizer, pet.text))
            assert short.prompt_tokens == len(conversation.question(SHORT))  # nothing was said of a pet's help
        else:
            assert dispositions[0] == "complete"
            assert why.disposition not in ("not_asked", "error")
            assert why.prompt_tokens > helps.prompt_tokens > pet.prompt_tokens


def test_a_gate_that_is_not_in_the_interview_is_an_error_of_the_cell(lively_models: dict[str, Path]) -> None:
    answers = interview(lively_models["llama"]).answer(groups(PERSONAS[:1], (SHORT, HELPS)))
    assert [answer.disposition == "error" for answer in answers] == [False, True]
    assert PET.item_id in answers[1].error


def break_at(engine: PackedEngine, call: int) -> None:
    """Let the logits of the decoder's n-th step or prefill be undefined."""
    decoder, calls = engine._tokens._decoder, iter(range(10**6))
    whole = decoder.logits
    decoder.logits = lambda hidden: whole(hidden) * (float("nan") if next(calls) == call else 1.0)


def test_an_error_in_an_interview_makes_its_later_cells_errors(lively_models: dict[str, Path]) -> None:
    engine = interview(lively_models["llama"], slots=1)
    expected = engine.answer(groups(items=(LIKERT, YESNO, WORRY)))
    found = set()
    for call in range(1, 12):
        engine = interview(lively_models["llama"], slots=1)
        break_at(engine, call)
        for own, whole in zip(
            by_interview(engine.answer(groups(items=(LIKERT, YESNO, WORRY))), 3), by_interview(expected, 3), strict=True
        ):
            failed = [answer.disposition == "error" for answer in own]
            assert failed == sorted(failed)
            good = failed.count(False)
            assert [*map(said, own[:good])] == [*map(said, whole[:good])]
            if good < 3:
                found.add(good)
                assert own[good].error == "the model's logits are not finite"
                later = {answer.error for answer in own[good + 1 :]}
                assert later <= {"an earlier answer of the interview failed: the model's logits are not finite"}
    assert found >= {0, 1, 2}


def test_an_interview_longer_than_the_context_ends_with_errors_that_say_so(lively_models: dict[str, Path]) -> None:
    items = tuple(replace(OPEN, item_id=f"care.open.{n:02d}") for n in range(1, 16))
    for limit in (4, 40):
        engine = interview(lively_models["llama"], max_new_tokens=limit, slots=2)
        for own in by_interview(engine.answer(groups(items=items)), len(items)):
            failed = [answer.disposition == "error" for answer in own]
            assert failed == sorted(failed)
            assert 3 < failed.count(False) < 15
            first = own[failed.index(True)]
            before = own[failed.index(True) - 1]
            assert first.error == (
                f"the interview up to here has {first.prompt_tokens} tokens, {first.prompt_tokens + limit} with its "
                "answer; the model has room for 512"
            )
            assert before.prompt_tokens + limit <= 512 < first.prompt_tokens + limit


def test_long_option_lists_at_the_end_of_the_context_have_room(lively_models: dict[str, Path]) -> None:
    wide = Item("w", "x", "Which?", "single", tuple(f"The option {n} of this list of long ones" for n in range(9)))
    items = (*(replace(OPEN, item_id=f"o{n}") for n in range(3)), *(replace(wide, item_id=f"w{n}") for n in range(9)))
    plain = Plain(lively_models["llama"])
    engine = interview(lively_models["llama"], max_new_tokens=4, show_options="none")
    assert engine._cells.prompt([1], Cell("c", wide, 1)).num_kept_tokens > 150
    [own] = by_interview(engine.answer(groups(PERSONAS[1:2], items)), len(items))
    assert "complete" in {answer.disposition for answer in own}
    assert "error" in {answer.disposition for answer in own}
    held = Conversation(plain, PERSONAS[1], "none")
    for item, answer in zip(items, own, strict=True):
        if answer.disposition == "error":
            continue
        ids = held.question(item)
        chosen = encode(plain.tokenizer, answer.text) if item.is_closed else plain.written(ids, 4)
        if item.is_closed:
            probs = choose_option(plain.log_probs(ids, plain.choices(item)), 0, is_greedy=True)[1]
            assert answer.option_probs == pytest.approx(probs, abs=2e-5)
        held.answer(item, None, answer.text, chosen)


def test_what_a_stop_string_cut_is_no_part_of_the_conversation(lively_models: dict[str, Path]) -> None:
    for make in (lambda engine: None, as_plain):
        engine = interview(lively_models["llama"], stop=("\nQuestion",), max_new_tokens=40)
        make(engine)
        script = encode(engine._cells.tokenizer, "It is fine.\nQuestion: and you?")
        engine._tokens._sampler.draw = lambda logits, seeds, steps, _, script=script: (
            [script[at - 1] for at in steps],
            [True] * len(steps),
        )
        answers = engine.answer(groups(PERSONAS[:1], (OPEN, SHORT, LIKERT)))
        assert [answer.text for answer in answers[:2]] == ["It is fine."] * 2
        plain = Plain(lively_models["llama"])
        held = Conversation(plain, PERSONAS[0])
        for item, answer in zip((OPEN, SHORT), answers, strict=False):
            assert answer.prompt_tokens == len(held.question(item))
            held.answer(item, None, answer.text, encode(plain.tokenizer, answer.text))
        ids = held.question(LIKERT)
        assert plain.tokenizer.decode(ids).count("It is fine.<|im_end|>") == 2
        assert answers[2].prompt_tokens == len(ids)
        probs = choose_option(plain.log_probs(ids, plain.choices(LIKERT)), 0, is_greedy=True)[1]
        assert answers[2].option_probs == pytest.approx(probs, abs=2e-5)


def as_plain(engine: PackedEngine) -> None:
    """Give the engine the way of models that cannot be packed."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(engine._settings.model, dtype=torch.float32).eval()
    stopped = engine._cells.is_stopped
    engine._tokens = PlainTokenEngine(model, SamplingSettings(0.0), "cpu", frozenset({END}), stopped)


def test_a_model_that_cannot_be_packed_holds_the_same_interview(lively_models: dict[str, Path]) -> None:
    packed, plain = (interview(lively_models["llama"], rationale=True) for _ in range(2))
    as_plain(plain)
    assert plain.decoder == "plain"
    one, other = packed.answer(groups(items=ASKED)), plain.answer(groups(items=ASKED))
    assert [*map(said, one)] == [*map(said, other)]
    assert [answer.prompt_tokens for answer in one] == [answer.prompt_tokens for answer in other]


def test_an_interview_that_runs_out_of_memory_is_held_again_from_its_beginning(lively_models: dict[str, Path]) -> None:
    expected = interview(lively_models["llama"]).answer(groups())
    for call in range(0, 18, 3):
        engine = interview(lively_models["llama"])
        decoder, calls = engine._tokens._decoder, iter(range(10**6))
        whole = decoder.logits

        def logits(hidden: torch.Tensor, whole=whole, calls=calls, call=call) -> torch.Tensor:
            if next(calls) == call:
                raise torch.OutOfMemoryError("no room")
            return whole(hidden)

        decoder.logits = logits
        assert [*map(said, engine.answer(groups()))] == [*map(said, expected)]
        assert engine._tokens.settings.slots == (32 if next(calls) > call else 64)


# Qwen 3 with thinking off: the answer at the end stands behind an empty thought, which earlier answers lose.
THINKS = CHATML.replace("'<|im_start|>assistant\n'", "'<|im_start|>assistant\n<think>\n\n</think>\n\n'").replace(
    "message['content'] +",
    "('<think>\n\n</think>\n\n' if loop.last and message['role'] == 'assistant' else '') + message['content'] +",
)


def test_a_template_that_changes_earlier_turns_is_refused_by_name(
    lively_models: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "thinker"
    shutil.copytree(lively_models["llama"], folder)
    make_toy_tokenizer(THINKS).save_pretrained(folder)
    PackedEngine(settings(folder))
    with pytest.raises(ModelError, match="cannot hold an interview") as refused:
        interview(folder)
    assert "generate.context: none" in refused.value.hint


def test_waves_and_draws_are_interviews_of_their_own(lively_models: dict[str, Path]) -> None:
    task = Task(7, is_shuffled=True, shows_options=True, adapter="none", max_attempts=2, is_interview=True)
    population = Population(PERSONAS, ASKED)
    ledger = Ledger(3).extend(Box(3, population.item_keys, waves=2, draws=2))
    cells = build_cells(ledger.shard(0), ledger, population, task)
    engine = interview(lively_models["llama"], temperature=5.0)
    answers = answer_cells(engine, cells, 2, is_interview=True)
    rows = rows_of(build_rows(ledger.shard(0), cells, answers, task).committed)
    assert len(rows) == 3 * len(ASKED) * 4
    for persona in PERSONAS:
        held = {}
        for row in rows:
            if row.persona_id == persona.persona_id:
                held.setdefault((row.wave, row.draw), []).append(row)
        assert len(held) == 4
        for own in held.values():
            assert [row.item_id for row in own] == [item.item_id for item in ASKED]
            lengths = [row.prompt_tokens for row in own]
            assert lengths == sorted(lengths)
            assert max(lengths) < 512
        assert len({tuple(row.text for row in own) for own in held.values()}) > 1
        assert len({own[0].options_as_shown for own in held.values()}) > 1
    assert all(row.text == render_answer(row.label) for row in rows if row.option_probs)


def test_an_interview_with_an_error_is_held_again_as_a_whole(lively_models: dict[str, Path]) -> None:
    task = Task(7, is_shuffled=False, shows_options=True, adapter="none", max_attempts=3, is_interview=True)
    population = Population(PERSONAS, ASKED)
    ledger = Ledger(3).extend(Box(3, population.item_keys))
    cells = build_cells(ledger.shard(0), ledger, population, task)
    calm = answer_cells(interview(lively_models["llama"]), cells, 3, is_interview=True)
    engine = interview(lively_models["llama"], slots=1)
    break_at(engine, 12)
    found = answer_cells(engine, cells, 3, is_interview=True)
    assert [said(answer) for answer, _ in found] == [said(answer) for answer, _ in calm]
    attempts = [{count for _, count in found[at : at + len(ASKED)]} for at in range(0, len(found), len(ASKED))]
    assert sorted(attempts, key=min) == [{1}, {1}, {2}]


def test_an_empty_interview_and_an_empty_group_are_fine(lively_models: dict[str, Path]) -> None:
    engine = interview(lively_models["llama"])
    assert engine.answer([]) == []
    assert engine.answer([Group(PERSONAS[0], ())]) == []
    [answer] = engine.answer([Group(PERSONAS[0], (Cell("c", LIKERT, seed_from(1)),)), Group(PERSONAS[1], ())])
    assert answer.disposition == "complete"
    assert answer.new_tokens == 0
    assert engine._settings.max_new_tokens == LIMIT
