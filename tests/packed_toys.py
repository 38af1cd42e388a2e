"""What tests of the packed engine share: lively toy models, cells, and the same model without the engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from toy_models import make_toy_model

from polypersona.chatml import build_messages, encode, encode_prompt, render_choice, shown_place
from polypersona.engines.base import Answer, Cell, EngineSettings, Group
from polypersona.records import Item, Persona, seed_from

LIMIT = 10
END = 2  # the toy tokenizer's end of turn
STOPS = [0, 1, END]  # its control tokens: what an answer ends at
SCALE = ("Strongly disagree", "Disagree", "Neutral", "Agree", "Strongly agree")
LIKERT = Item("care.likert.01", "healthcare", "I am satisfied with the care.", "likert", SCALE)
YESNO = Item("care.yesno.01", "healthcare", "Do you go?", "yesno", ("No", "Yes"), codes=(0, 1))
OPEN = Item("care.open.01", "healthcare", "How do you feel about the care that you receive in your town?", "open")
SHORT = Item("work.open.01", "work", "Work?", "open")
ITEMS = (LIKERT, OPEN, YESNO, SHORT)
PERSONAS = (
    Persona("a", {"age": 44, "gender": "female", "work": "full time", "occupation": "nurse"}),
    Persona("b", {"age": 71, "work": "retired", "politics": "moderate"}),
    Persona("c", text="I am a retired bus driver."),
)


def make_lively_model(family: str, folder: Path, factor: float = 6.0) -> Path:
    """A toy model whose attention and logits depend strongly on the prompt, and which ends some of its answers."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(make_toy_model(family, folder), dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed" not in name:
                weight.mul_(factor)
            elif "embed" in name:
                weight.mul_(30.0)
        model.get_output_embeddings().weight[END] *= 2.5
    model.save_pretrained(folder)
    return folder


def settings(model: Path | str, **changes: Any) -> EngineSettings:
    given: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": LIMIT, "slots": 64, **changes}
    return EngineSettings(engine="packed", seed=7, model=str(model), **given)


def groups(personas: Sequence[Persona] = PERSONAS, items: Sequence[Item] = ITEMS) -> list[Group]:
    return [
        Group(
            persona,
            tuple(
                Cell(f"{persona.persona_id}/{item.item_id}", item, seed_from(7, persona.persona_id, item.item_id))
                for item in items
            ),
        )
        for persona in personas
    ]


def by_id(answers: Sequence[Answer]) -> dict[str, Answer]:
    return {answer.assignment_id: answer for answer in answers}


def said(answer: Answer) -> tuple[Any, ...]:
    """What an answer says, without its probabilities and counts."""
    return answer.assignment_id, answer.disposition, answer.text, answer.code, answer.rationale, answer.error


class Plain:
    """The same model without the engine: whole prompts, one at a time."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def prompt(self, persona: Persona, item: Item) -> list[int]:
        return encode_prompt(self.tokenizer, build_messages(persona, item))

    def written(self, ids: list[int], limit: int = LIMIT, **options: Any) -> list[int]:
        out = self.model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
            max_new_tokens=limit, eos_token_id=STOPS, pad_token_id=0, **options,
        )  # fmt: skip
        return out[0, len(ids) :].tolist()

    def text(self, tokens: list[int]) -> str:
        written = [token for token in tokens if token not in STOPS]
        return self.tokenizer.decode(written, skip_special_tokens=True).strip()

    @torch.no_grad()
    def log_probs(self, ids: list[int], options: Sequence[Sequence[int]]) -> list[float]:
        totals = []
        for option in options:
            log_probs = self.model(torch.tensor([[*ids, *option]])).logits[0].double().log_softmax(-1)
            totals.append(sum(float(log_probs[len(ids) - 1 + at, token]) for at, token in enumerate(option)))
        return totals

    def option_log_probs(self, persona: Persona, item: Item) -> list[float]:
        return self.log_probs(self.prompt(persona, item), self.choices(item))

    def choices(self, item: Item, show: Any = "labels", order: Sequence[int] | None = None) -> list[list[int]]:
        """The options' tokens in the item's order."""
        texts = [render_choice(label, show, shown_place(index, order)) for index, label in enumerate(item.options)]
        return [encode(self.tokenizer, text) for text in texts]
