"""pytest tests/models/test_pretraining.py

The run is one of twenty steps of a narrow model, in a process of its own: it sets threads and allocator for good.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from polypersona.chatml import build_messages, encode, encode_example, encode_prompt, end_of_turn_ids
from polypersona.engines.base import Cell, EngineSettings, Group
from polypersona.engines.packed import PackedEngine
from polypersona.models.interview_attention import pack_batch
from polypersona.models.loading import load_model, load_tokenizer
from polypersona.models.pretraining import (
    CHAT_TEMPLATE,
    TURN_END,
    Frame,
    PretrainSettings,
    build_model,
    pack_interview,
    train_tokenizer,
)
from polypersona.simulator.corpus import interviews

SETTINGS = PretrainSettings(
    seed=3, vocabulary=512, hidden=64, layers=2, heads=4, intermediate=128, num_interviews=80, turns=4, batch=4,
    warmup_steps=4, tokenizer_interviews=60, dtype="fp32",
)  # fmt: skip
RUN = """
import json, sys
from pathlib import Path
from polypersona.models.pretraining import PretrainSettings, pretrain
for name, settings in json.loads(sys.argv[2]).items():
    pretrain(PretrainSettings(**settings), Path(sys.argv[1]) / name, threads=1, report=lambda line: print(name, line))
"""


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SETTINGS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("pretrained")
    fields = {name: getattr(SETTINGS, name) for name in SETTINGS.__dataclass_fields__}
    wanted = {"first": fields, "again": fields}
    command = [sys.executable, "-c", RUN, str(folder), json.dumps(wanted)]
    return folder, subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("progress", [0.0, 0.4, 1.0])
def test_a_packed_turn_is_what_the_one_renderer_makes_of_it(tokenizer, progress: float) -> None:
    """Prompts as the engine encodes them, prompts and answers as fine-tuning does."""
    frame = Frame(tokenizer)
    ends = set()
    for person in interviews(SETTINGS.seed, 0, 60, progress, 6):
        row = pack_interview(tokenizer, frame, person)
        assert len(row.turns) == len(row.heads) == len(person.turns)
        for turn, (question, answer) in zip(person.turns, row.turns, strict=True):
            messages = build_messages(person.persona, turn.item)
            assert row.card + question == encode_prompt(tokenizer, messages)
            example = encode_example(tokenizer, [*messages, {"role": "assistant", "content": turn.answer}])
            assert (row.card + question, answer) == example
            assert answer == [*encode(tokenizer, turn.answer), tokenizer.eos_token_id]
            ends.add(answer[-1])
    assert ends == end_of_turn_ids(tokenizer) == {tokenizer.convert_tokens_to_ids(TURN_END)}


def test_heads_are_the_first_sentences(tokenizer) -> None:
    frame = Frame(tokenizer)
    lengths = set()
    for person in interviews(SETTINGS.seed, 0, 60, 1.0, 6):
        row = pack_interview(tokenizer, frame, person)
        for turn, (_, answer), head in zip(person.turns, row.turns, row.heads, strict=True):
            first = turn.answer.partition(". ")[0].rstrip(".") + "."
            assert tokenizer.decode(answer[:head]) == first
            lengths.add(head < len(answer) - 1)
    assert lengths == {True, False}


def test_labels_are_exactly_the_answers(tokenizer) -> None:
    frame = Frame(tokenizer)
    people = list(interviews(SETTINGS.seed, 0, 9, 1.0, 5))
    batch = pack_batch([pack_interview(tokenizer, frame, person) for person in people])
    learned = batch.ids[batch.sources + 1].tolist()
    expected = [
        token
        for person in people
        for turn in person.turns
        for token in [*encode(tokenizer, turn.answer), tokenizer.eos_token_id]
    ]
    assert learned == expected
    last = [place for place, token in enumerate(expected) if token == tokenizer.eos_token_id]
    assert len(last) == sum(len(person.turns) for person in people) >= 9 * 5
    assert not batch.is_head[last].any()


def test_the_tokenizer_is_a_function_of_the_settings(tokenizer) -> None:
    text = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    assert json.loads(train_tokenizer(SETTINGS).backend_tokenizer.to_str())["model"] == text
    assert len(tokenizer) == SETTINGS.vocabulary
    for sentence in ("Ünïcödé, 漢字 and\n\ttabs  stay.", "Strongly agree. As a nurse, I see this every day."):
        assert tokenizer.decode(encode(tokenizer, sentence)) == sentence


def test_the_template_marks_what_the_assistant_says(tokenizer) -> None:
    said = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "Agree."}]
    rendered = tokenizer.apply_chat_template(said, return_dict=True, return_assistant_tokens_mask=True)
    taught = [i for i, flag in zip(rendered["input_ids"], rendered["assistant_masks"], strict=True) if flag]
    assert taught == [*encode(tokenizer, "Agree."), tokenizer.eos_token_id]
    assert "generation" in CHAT_TEMPLATE


def test_fresh_weights_follow_from_the_seed_alone(tokenizer) -> None:
    state = torch.random.get_rng_state()
    one, again, other = (build_model(replace(SETTINGS, seed=seed), tokenizer).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_twenty_steps_lower_the_loss_and_say_so(runs: tuple[Path, str]) -> None:
    folder, said = runs
    lines = [line.split() for line in said.splitlines() if line.startswith("first ")]
    losses = [float(line[4]) for line in lines]
    assert [line[2] for line in lines] == ["0/20", "19/20"]
    # The last one is a running mean that still holds the first steps.
    assert losses[-1] < losses[0] - 0.3
    facts = json.loads((folder / "first" / "pretraining.json").read_text())
    assert facts["synthetic"] is True
    assert facts["settings"]["hidden"] == 64
    assert facts["loss"] == pytest.approx(losses[-1], abs=1e-3)
    assert facts["tokens"] > 80 * 4 * 40


def test_the_same_seed_and_threads_give_the_same_files(runs: tuple[Path, str]) -> None:
    folder, _ = runs
    names = sorted(path.name for path in (folder / "first").iterdir())
    assert "model.safetensors" in names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    for name in names:
        assert (folder / "first" / name).read_bytes() == (folder / "again" / name).read_bytes(), name


def test_the_folder_is_small_and_loads_like_any_model(runs: tuple[Path, str]) -> None:
    from safetensors import safe_open

    folder = runs[0] / "first"
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8e6
    with safe_open(folder / "model.safetensors", framework="pt") as stream:
        assert {stream.get_tensor(name).dtype for name in stream.keys()} == {torch.bfloat16}  # noqa: SIM118
        assert "lm_head.weight" not in stream.keys()  # noqa: SIM118
    tokenizer = load_tokenizer(str(folder))
    model = load_model(str(folder), dtype="fp32")
    assert tokenizer.padding_side == "left"
    assert (tokenizer.pad_token_id, tokenizer.eos_token) == (0, TURN_END)
    assert model.config._attn_implementation != "polypersona_interviews"
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert len(tokenizer) == model.config.vocab_size == SETTINGS.vocabulary


def test_the_default_shape_fits_the_embedded_size(tokenizer) -> None:
    default = PretrainSettings()
    parameters = sum(weight.numel() for weight in build_model(default, tokenizer).parameters())
    assert 2 * parameters < 8e6


def test_the_packed_engine_answers_with_it(runs: tuple[Path, str]) -> None:
    settings = EngineSettings(engine="packed", seed=7, model=str(runs[0] / "first"), rationale=True, max_new_tokens=8)
    people = list(interviews(9, 0, 3, 1.0, 4))
    groups = [
        Group(person.persona, tuple(Cell(f"{i}/{j}", turn.item, i * 10 + j) for j, turn in enumerate(person.turns)))
        for i, person in enumerate(people)
    ]
    answers = PackedEngine(settings).answer(groups)
    assert len(answers) == sum(len(person.turns) for person in people) >= 12
    assert "error" not in {answer.disposition for answer in answers}
    assert any(answer.option_probs for answer in answers)
