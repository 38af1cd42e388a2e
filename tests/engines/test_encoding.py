"""pytest tests/engines/test_encoding.py"""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_models import CHATML, make_toy_tokenizer

from polypersona.chatml import build_messages, encode_prompt
from polypersona.engines.encoding import PromptEncoder
from polypersona.engines.fake import WordTokenizer
from polypersona.models.loading import load_tokenizer
from polypersona.records import Item, Persona
from polypersona.resources import tiny_model

BRACKETS = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'system' %}{{ '<<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' }}"
    "{% else %}{{ ' ' + message['content'] }}{% endif %}{% endfor %}"
)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)
PERSONAS = st.builds(
    lambda name, value, text: Persona("p", {"age": 40, name or "work": value}, text), TEXTS, TEXTS, TEXTS
)
ITEMS = st.builds(
    lambda stem, options: Item("x.01", "x", stem, "single" if options else "open", tuple(options)),
    TEXTS,
    st.lists(TEXTS, max_size=4, unique=True),
)


def metaspace_tokenizer() -> Any:
    """A tokenizer without a border at line ends: its words keep whatever stands before them, as SentencePiece's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    tokenizer.train_from_iterator(["Persona:\nage: 40\n\nDomain: x\nQuestion: Why?\n\nDomain: y"] * 30, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", bos_token="<s>")
    fast.chat_template = BRACKETS
    return fast


class Slow:
    """A tokenizer that cannot say where its tokens stand."""

    def __init__(self) -> None:
        self.inner = make_toy_tokenizer()
        self.chat_template, self.all_special_tokens = self.inner.chat_template, self.inner.all_special_tokens
        self.apply_chat_template = self.inner.apply_chat_template

    def __call__(self, text: str, *, add_special_tokens: bool, **options: Any) -> Any:
        if options:
            raise NotImplementedError
        return self.inner(text, add_special_tokens=add_special_tokens)


TOKENIZERS = {
    "tiny": lambda: load_tokenizer(str(tiny_model())),
    "chatml": lambda: make_toy_tokenizer(CHATML),
    "brackets": lambda: make_toy_tokenizer(BRACKETS),
    "no template": lambda: make_toy_tokenizer(None),
    "metaspace": metaspace_tokenizer,
    "slow": Slow,
    "words": WordTokenizer,
}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Any]:
    return {name: make() for name, make in TOKENIZERS.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(personas=st.lists(PERSONAS, min_size=2, max_size=3), items=st.lists(ITEMS, min_size=2, max_size=4))
@settings(max_examples=40, deadline=None)
def test_prompts_put_together_are_those_rendered_whole(
    tokenizers: dict[str, Any], name: str, personas: list[Persona], items: list[Item]
) -> None:
    tokenizer = tokenizers[name]
    for show in ("labels", "letters"):
        encoder = PromptEncoder(tokenizer, show)
        for persona in personas:
            for item in items:
                order = tuple(reversed(range(len(item.options)))) or None
                expected = encode_prompt(tokenizer, build_messages(persona, item, show, order))
                assert encoder.encode(persona, item, order) == expected


@pytest.mark.parametrize("name", ["tiny", "chatml", "brackets", "no template", "words"])
def test_each_card_and_each_question_is_rendered_once(
    tokenizers: dict[str, Any], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    personas = [Persona(f"p{number}", {"age": 20 + number}) for number in range(5)]
    items = [Item(f"x.{number}", "x", f"Question {number}?", "open") for number in range(7)]
    encoder, calls = PromptEncoder(tokenizers[name], "labels"), []
    whole = encoder._encode_whole
    monkeypatch.setattr(encoder, "_encode_whole", lambda *asked: calls.append(1) or whole(*asked))
    for persona in personas:
        for item in items:
            encoder.encode(persona, item, None)
    assert len(calls) == len(personas) + len(items) - 1
