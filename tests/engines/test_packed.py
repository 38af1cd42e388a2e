"""pytest tests/engines/test_packed.py

Toy models with random weights. Every figure is compared with plain forwards and plain `generate` of the same model over
the whole prompt, one cell at a time.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import FAMILIES, make_toy_model, make_toy_tokenizer

from polypersona.chatml import build_messages, encode, encode_prompt, render_choice
from polypersona.engines.base import Answer, Cell, EngineSettings, Group
from polypersona.decoding.option_tree import option_tree
from polypersona.engines.packed import PackedEngine
from polypersona.engines.registry import load_engine
from polypersona.decoding.sampling import choose_option
from polypersona.errors import ModelError
from polypersona.records import Item, Persona, seed_from

LIMIT = 10
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
        model.get_output_embeddings().weight[2] *= 2.5
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {family: make_lively_model(family, folder / family) for family in FAMILIES}


def settings(model: Path, **changes: Any) -> EngineSettings:
    given: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": LIMIT, "slots": 64, **changes}
    return EngineSettings(engine="packed", seed=7, model=str(model), **given)


def groups(personas: tuple[Persona, ...] = PERSONAS, items: tuple[Item, ...] = ITEMS) -> list[Group]:
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


def by_id(answers: list[Answer]) -> dict[str, Answer]:
    return {answer.assignment_id: answer for answer in answers}


class Plain:
    """The same model without the engine: whole prompts, one at a time."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def prompt(self, persona: Persona, item: Item) -> list[int]:
        return encode_prompt(self.tokenizer, build_messages(persona, item))

    def written(self, ids: list[int]) -> list[int]:
        out = self.model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long), do_sample=False,
            max_new_tokens=LIMIT, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
        return out[0, len(ids) :].tolist()

    def text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode([token for token in tokens if token != 2], skip_special_tokens=True).strip()

    @torch.no_grad()
    def option_log_probs(self, persona: Persona, item: Item) -> list[float]:
        ids = self.prompt(persona, item)
        totals = []
        for label in item.options:
            option = encode(self.tokenizer, render_choice(label))
            log_probs = self.model(torch.tensor([ids + option])).logits[0].double().log_softmax(-1)
            totals.append(sum(float(log_probs[len(ids) - 1 + at, token]) for at, token in enumerate(option)))
        return totals


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_answers_equal_plain_generation_one_by_one(models: dict[str, Path], family: str) -> None:
    plain = Plain(models[family])
    answers = by_id(PackedEngine(settings(models[family], slots=3, rationale=True)).answer(groups()))
    dispositions = set()
    for persona in PERSONAS:
        for item in ITEMS:
            answer = answers[f"{persona.persona_id}/{item.item_id}"]
            ids = plain.prompt(persona, item)
            assert answer.prompt_tokens == len(ids)
            if item.is_closed:
                ids += encode(plain.tokenizer, render_choice(answer.label))
            tokens = plain.written(ids)
            written = answer.rationale if item.is_closed else answer.text
            assert written == plain.text(tokens)
            assert answer.new_tokens == len(tokens)
            if not item.is_closed and written:
                assert answer.disposition == ("complete" if tokens[-1] == 2 else "truncated")
            dispositions.add(tokens[-1] == 2)
    if family == "llama":
        assert dispositions == {True, False}


@pytest.mark.parametrize("family", FAMILIES)
def test_option_probabilities_equal_unshared_forwards(models: dict[str, Path], family: str) -> None:
    plain = Plain(models[family])
    answers = by_id(PackedEngine(settings(models[family], temperature=0.8)).answer(groups()))
    spread = set()
    for persona in PERSONAS:
        for item in (LIKERT, YESNO):
            answer = answers[f"{persona.persona_id}/{item.item_id}"]
            totals = plain.option_log_probs(persona, item)
            seed = seed_from(7, persona.persona_id, item.item_id)
            choice, probs = choose_option(totals, seed, is_greedy=False)
            assert answer.option_probs == pytest.approx(probs, abs=1e-5)
            assert sum(answer.option_probs) == pytest.approx(1, abs=1e-12)
            assert (answer.code, answer.label) == (item.codes[choice], item.options[choice])
            assert answer.text == render_choice(answer.label)
            assert (answer.disposition, answer.rationale, answer.new_tokens) == ("complete", "", 0)
            spread.add(round(probs[-1], 3))
    assert len(spread) > 3


def test_greedy_takes_the_likeliest_option(models: dict[str, Path]) -> None:
    for answer in PackedEngine(settings(models["llama"])).answer(groups(items=(LIKERT,))):
        assert LIKERT.codes.index(answer.code) == max(range(5), key=answer.option_probs.__getitem__)


def test_neither_slots_nor_order_nor_company_changes_an_answer(models: dict[str, Path]) -> None:
    base = settings(models["llama"], temperature=0.8, rationale=True)
    expected = by_id(PackedEngine(base).answer(groups()))
    turned = [Group(group.persona, group.cells[::-1]) for group in groups()[::-1]]
    alone = [Group(group.persona, (cell,)) for group in groups() for cell in group.cells]
    for slots, asked in ((1, groups()), (3, turned), (64, alone)):
        for answer in PackedEngine(replace(base, slots=slots)).answer(asked):
            other = expected[answer.assignment_id]
            assert (answer.code, answer.text, answer.disposition) == (other.code, other.text, other.disposition)
            if other.option_probs:
                assert answer.option_probs == pytest.approx(other.option_probs, abs=1e-4)


def test_the_same_cells_twice_give_the_same_bytes(models: dict[str, Path]) -> None:
    base = settings(models["qwen2"], temperature=0.8, rationale=True)
    engine = PackedEngine(base)
    first = engine.answer(groups())
    assert engine.answer(groups()) == first == PackedEngine(base).answer(groups())


def test_reused_tokens_are_those_the_personas_cells_share(models: dict[str, Path]) -> None:
    plain = Plain(models["llama"])
    answers = PackedEngine(settings(models["llama"])).answer(groups())
    for number, persona in enumerate(PERSONAS):
        prompts = [plain.prompt(persona, item) for item in ITEMS]
        shared = next(at for at in range(len(prompts[0])) if len({prompt[at] for prompt in prompts}) > 1)
        part = answers[number * len(ITEMS) : (number + 1) * len(ITEMS)]
        assert [answer.reused_prompt_tokens for answer in part] == [0, shared, shared, shared]
        assert [answer.prompt_tokens for answer in part] == [len(prompt) for prompt in prompts]
        assert shared > len(plain.prompt(Persona("x"), SHORT)) / 2


def test_the_draws_of_one_item_share_all_but_its_last_token(models: dict[str, Path]) -> None:
    cells = tuple(Cell(f"draw{draw}", LIKERT, seed_from(draw)) for draw in range(40))
    answers = PackedEngine(settings(models["llama"], temperature=0.8, slots=16)).answer([Group(PERSONAS[0], cells)])
    assert answers[1].reused_prompt_tokens == answers[1].prompt_tokens - 1
    assert len({answer.option_probs[0] for answer in answers}) <= 3
    assert len({answer.code for answer in answers}) > 1


def test_a_prompt_too_long_ends_as_error_and_the_others_complete(models: dict[str, Path]) -> None:
    long = replace(OPEN, item_id="long", stem="Why? " * 400)
    engine = PackedEngine(settings(models["llama"]))
    answers = engine.answer(groups(items=(long, LIKERT, OPEN)))
    for number in range(len(PERSONAS)):
        first, *others = answers[number * 3 : number * 3 + 3]
        assert (first.disposition, first.text, first.code) == ("error", "", None)
        assert str(first.prompt_tokens) in first.error
        assert "512" in first.error
        assert others == engine.answer(groups((PERSONAS[number],), (LIKERT, OPEN)))
    assert [answer.disposition for answer in engine.answer(groups(items=(long,)))] == ["error"] * 3
    assert engine.answer([Group(PERSONAS[0], ())]) == []


def test_the_context_is_used_to_its_last_token_and_no_further(models: dict[str, Path]) -> None:
    plain = Plain(models["llama"])
    room = 512 - LIMIT
    fitting = next(
        item
        for words in range(1, 600)
        if len(plain.prompt(PERSONAS[1], item := replace(SHORT, stem="x" + " is" * words))) == room
    )
    answer, beyond = PackedEngine(settings(models["llama"])).answer(
        groups((PERSONAS[1],), (fitting, replace(fitting, item_id="beyond", stem=fitting.stem + " is")))
    )
    assert answer.disposition != "error"
    assert answer.text == plain.text(plain.written(plain.prompt(PERSONAS[1], fitting)))
    assert (beyond.disposition, beyond.prompt_tokens) == ("error", room + 1)


def test_a_sliding_window_bounds_the_prompt(tmp_path: Path, models: dict[str, Path]) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(models["mistral"])
    model.config.sliding_window = 160
    model.save_pretrained(tmp_path)
    make_toy_tokenizer().save_pretrained(tmp_path)
    plain, engine = Plain(tmp_path), PackedEngine(settings(tmp_path))
    long = replace(OPEN, item_id="long", stem="Why? " * 60)
    assert 160 < len(plain.prompt(PERSONAS[1], long)) < 400
    answers = engine.answer(groups((PERSONAS[1],), (long, SHORT)))
    assert answers[0].disposition == "error"
    assert "160" in answers[0].error
    ids = plain.prompt(PERSONAS[1], SHORT)
    assert len(ids) + LIMIT <= 160
    assert answers[1].text == plain.text(plain.written(ids))


@pytest.mark.parametrize("family", ["llama", "qwen2_moe", "phi"])
def test_rounded_and_quantised_models_answer_near_the_exact_one(tmp_path: Path, family: str) -> None:
    folder = make_lively_model(family, tmp_path, factor=2.0)
    exact = [answer for answer in PackedEngine(settings(folder)).answer(groups()) if answer.option_probs]
    assert len({answer.option_probs for answer in exact}) == len(exact)
    for precision, bound in ((("bf16", "none"), 0.02), (("bf16", "nf4"), 0.06), (("bf16", "int8"), 0.06)):
        dtype, quantization = precision
        answers = PackedEngine(settings(folder, dtype=dtype, quantization=quantization, slots=3)).answer(groups())
        assert {answer.disposition for answer in answers} <= {"complete", "truncated", "item_nonresponse"}
        rounded = [answer for answer in answers if answer.option_probs]
        for one, other in zip(exact, rounded, strict=True):
            assert other.option_probs == pytest.approx(one.option_probs, abs=bound)
            assert other.option_probs != one.option_probs


def test_an_adapter_is_merged_in_fp32(tmp_path: Path, models: dict[str, Path]) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(models["llama"], dtype=torch.float32)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    adapted = get_peft_model(base, config)
    adapted.save_pretrained(tmp_path)
    plain = Plain(models["llama"])
    without = plain.option_log_probs(PERSONAS[0], LIKERT)
    plain.model = PeftModel.from_pretrained(plain.model, tmp_path).eval()
    engine = PackedEngine(settings(models["llama"], adapter=str(tmp_path)))
    answers = engine.answer(groups((PERSONAS[0],)))
    expected = choose_option(plain.option_log_probs(PERSONAS[0], LIKERT), 0, is_greedy=True)[1]
    assert answers[0].option_probs == pytest.approx(expected, abs=1e-5)
    assert answers[0].option_probs != pytest.approx(choose_option(without, 0, is_greedy=True)[1], abs=1e-3)
    assert answers[1].text == plain.text(plain.written(plain.prompt(PERSONAS[0], OPEN)))
    quantised = PackedEngine(settings(models["llama"], adapter=str(tmp_path), quantization="nf4", dtype="bf16"))
    assert quantised.answer(groups())[0].option_probs is not None


def test_closed_text_is_written_and_coded(models: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = PackedEngine(settings(models["llama"], closed="text"))
    plain = Plain(models["llama"])
    answer = engine.answer(groups((PERSONAS[0],), (LIKERT,)))[0]
    assert answer.text == plain.text(plain.written(plain.prompt(PERSONAS[0], LIKERT)))
    assert (answer.option_probs, answer.code, answer.disposition) == (None, None, "invalid")
    # A random model names no option; one that is made to write a given answer does.
    script = [*encode(plain.tokenizer, "Strongly agree. I see it."), 2]
    steps = iter(script)
    monkeypatch.setattr("polypersona.decoding.sampling.sample_tokens", lambda *_: torch.tensor([next(steps)]))
    answer = PackedEngine(settings(models["llama"], closed="text", max_new_tokens=60)).answer(
        groups((PERSONAS[0],), (LIKERT,))
    )[0]
    assert (answer.code, answer.label, answer.disposition) == (5, "Strongly agree", "complete")
    assert (answer.text, answer.rationale) == ("Strongly agree. I see it.", "I see it.")
    assert answer.new_tokens == len(script)


def test_the_engine_asks_as_the_options_are_shown(models: dict[str, Path]) -> None:
    tokenizer = Plain(models["llama"]).tokenizer
    order = (4, 2, 0, 1, 3)
    cell = Cell("a", LIKERT, 1, order)
    seen = set()
    for show in ("labels", "letters", "none"):
        answer = PackedEngine(settings(models["llama"], show_options=show)).answer([Group(PERSONAS[0], (cell,))])[0]
        ids = encode_prompt(tokenizer, build_messages(PERSONAS[0], LIKERT, show, order))
        assert answer.prompt_tokens == len(ids)
        plain = Plain(models["llama"])
        plain.prompt = lambda *_, ids=ids: list(ids)
        totals = plain.option_log_probs(PERSONAS[0], LIKERT)
        assert answer.option_probs == pytest.approx(choose_option(totals, 0, is_greedy=True)[1], abs=1e-5)
        seen.add(answer.option_probs)
    assert len(seen) == 3


def test_logits_that_are_not_finite_end_their_cells_alone(
    models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = PackedEngine(settings(models["llama"], temperature=0.8, rationale=True))
    expected = engine.answer(groups())
    whole = PackedEngine._logits

    def damaged(self: PackedEngine, hidden: torch.Tensor) -> torch.Tensor:
        logits = whole(self, hidden)
        if logits.shape[0] == len(ITEMS):
            logits[1] = float("nan")
        return logits

    monkeypatch.setattr(PackedEngine, "_logits", damaged)
    answers = engine.answer(groups())
    assert [answer.disposition for answer in answers[1 :: len(ITEMS)]] == ["error"] * 3
    assert "not finite" in answers[1].error
    assert [a for i, a in enumerate(answers) if i % 4 != 1] == [a for i, a in enumerate(expected) if i % 4 != 1]
    monkeypatch.setattr(PackedEngine, "_logits", lambda self, hidden: whole(self, hidden) * float("nan"))
    assert {answer.disposition for answer in engine.answer(groups())} == {"error"}


def test_models_that_cannot_continue_a_shared_prefix_are_refused(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, BloomConfig, GraniteConfig

    shared = {"vocab_size": 384, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    bloom = BloomConfig(**{**shared, "n_layer": 2, "n_head": 4})
    granite = GraniteConfig(**shared, intermediate_size=128, num_key_value_heads=4, logits_scaling=8.0)
    for name, config in (("bloom", bloom), ("granite", granite)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            model.get_input_embeddings().weight.mul_(50)
        model.save_pretrained(tmp_path / name)
        make_toy_tokenizer().save_pretrained(tmp_path / name)
        with pytest.raises(ModelError, match="cannot continue from a shared prefix") as caught:
            PackedEngine(settings(tmp_path / name))
        assert caught.value.hint


def test_a_closed_engine_holds_no_weights(models: dict[str, Path]) -> None:
    engine = load_engine(settings(models["llama"]))
    assert (engine.name, engine.reproduces) == ("packed", "bytes")
    engine.close()
    engine.close()
    assert not any(isinstance(value, torch.nn.Module) for value in vars(engine).values())


def test_branches_see_the_suffix_and_themselves_only() -> None:
    tree = option_tree([7, 8], [[1, 2, 3], [4], [1, 5]])
    assert tree.ids == [7, 8, 1, 2, 1]
    assert tree.positions == [0, 1, 2, 3, 2]
    assert tree.options == [[(1, 1), (2, 2), (3, 3)], [(1, 4)], [(1, 1), (4, 5)]]
    assert tree.visible.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
