"""Pretraining of the embedded tiny model: tokenizer, architecture, and a loop over the synthetic corpus.

Takes settings and a folder; gives a folder in Hugging Face format (safetensors in bf16, tokenizer with chat template).
One respondent's turns share the card: they are packed into one row in which each turn sees the card and itself
only, so the card is computed once and every turn is trained exactly as it is asked at generation. Knows no Ray.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from polypersona.chatml import SYSTEM_PROMPT, render_card, render_prompt, render_question
from polypersona.models.allocator import keep_freed_memory
from polypersona.models.interview_attention import INTERVIEW_ATTENTION, PackedRow, pack_batch
from polypersona.models.loading import load_base_model, load_tokenizer
from polypersona.simulator.corpus import Interview, interviews

PAD, TURN_BEGIN, TURN_END = "<|pad|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BODY_WEIGHT = 0.3
_CARD, _QUESTION = "\x1dCARD\x1d", "\x1dQUESTION\x1d"


@dataclass(frozen=True, slots=True)
class PretrainSettings:
    """Everything the weights follow from, besides the corpus' code. Sizes in tokens, dimensions in units.

    `resume` is a model folder to go on from, at the share `start` of the training; its tokenizer is kept. `dtype` is
    what products are computed in; a CPU without bf16 instructions is several times faster in fp32.
    """

    seed: int = 11
    vocabulary: int = 2048
    hidden: int = 160
    layers: int = 5
    heads: int = 5
    intermediate: int = 448
    num_interviews: int = 41_600
    turns: int = 8
    batch: int = 16
    learning_rate: float = 2.5e-3
    weight_decay: float = 0.05
    warmup_steps: int = 100
    tokenizer_interviews: int = 3000
    resume: str = ""
    start: float = 0.0
    dtype: Literal["bf16", "fp32"] = "bf16"


class Frame:
    """The fixed text around card and question, taken from the one renderer."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        user = f"Persona:\n{_CARD}\n\n{_QUESTION}"
        messages = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": user}]
        text = render_prompt(tokenizer, messages)
        self.head, rest = text.split(_CARD)
        self.middle, self.tail = rest.split(_QUESTION)

    def prefix(self, interview: Interview) -> str:
        """Return the text all turns of the respondent share."""
        return self.head + render_card(interview.persona) + self.middle


def train_tokenizer(settings: PretrainSettings) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on the corpus, with the chat template and left padding."""

    def texts() -> Iterator[str]:
        for interview in interviews(settings.seed + 1, 0, settings.tokenizer_interviews, 1.0, settings.turns):
            yield render_card(interview.persona)
            for turn in interview.turns:
                yield render_question(turn.item, "labels")
                yield turn.answer

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.train_from_iterator(
        texts(),
        trainers.BpeTrainer(
            vocab_size=settings.vocabulary,
            special_tokens=[PAD, TURN_BEGIN, TURN_END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        bos_token=TURN_BEGIN,
        eos_token=TURN_END,
        model_max_length=1024,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def build_model(settings: PretrainSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return the model with fresh weights, a function of the seed."""
    config = LlamaConfig(
        vocab_size=settings.vocabulary,
        hidden_size=settings.hidden,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        intermediate_size=settings.intermediate,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        model = LlamaForCausalLM(config)
    model.set_attn_implementation(INTERVIEW_ATTENTION)
    return model


def pack_interview(tokenizer: PreTrainedTokenizerFast, frame: Frame, interview: Interview) -> PackedRow:
    """Return the respondent's row: the text all turns share, then each turn's question and answer."""
    texts = [frame.prefix(interview)]
    for turn in interview.turns:
        first, gap, rest = turn.answer.partition(". ")
        head = first + "." if gap else turn.answer
        texts += [render_question(turn.item, "labels") + frame.tail, head, (f" {rest}" if gap else "") + TURN_END]
    card, *parts = [row.ids for row in tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)]
    turns = [(question, head + body) for question, head, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True)]
    return PackedRow(card, turns, [len(head) for head in parts[1::3]])


def pretrain(settings: PretrainSettings, folder: Path, *, threads: int, report: Callable[[str], None]) -> None:
    """Train the tokenizer and the model and save both into `folder` (bf16), with `pretraining.json`.

    Args:
        settings: what the weights follow from.
        folder: is created; an earlier model in it is replaced when the training has ended.
        threads: of torch; the corpus is made in one further process.
        report: takes a line of progress.
    """
    keep_freed_memory()
    torch.set_num_threads(threads)
    tokenizer = load_tokenizer(settings.resume) if settings.resume else train_tokenizer(settings)
    model = build_model(settings, tokenizer)
    if settings.resume:
        model.load_state_dict(load_base_model(settings.resume, dtype="fp32").state_dict())
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.learning_rate, betas=(0.9, 0.95), weight_decay=settings.weight_decay
    )
    num_steps = settings.num_interviews // settings.batch
    started, tokens, smooth = time.monotonic(), 0, math.nan
    model.train()
    first = int(settings.start * num_steps)
    for step, rows in enumerate(_batches(settings, tokenizer, first, num_steps), start=first):
        warmup = min(1.0, (step - first + 1) / settings.warmup_steps)
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * min(warmup, _schedule(step, num_steps, settings.warmup_steps))
        loss = _loss(model, rows, settings.dtype)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += sum(map(len, rows))
        smooth = loss.item() if math.isnan(smooth) else 0.97 * smooth + 0.03 * loss.item()
        if step % 50 == 0 or step == num_steps - 1:
            rate = tokens / (time.monotonic() - started)
            report(f"step {step}/{num_steps} loss {smooth:.4f} tokens {tokens / 1e6:.2f}M rate {rate:.0f}/s")
        if step and step % 250 == 0:
            _save(model, tokenizer, settings, folder.with_name(folder.name + "-partial"), tokens, smooth)
    _save(model, tokenizer, settings, folder, tokens, smooth)


def _loss(model: LlamaForCausalLM, rows: Sequence[PackedRow], dtype: str) -> torch.Tensor:
    """Return the mean cross entropy of the answers' tokens; those after the first sentence count BODY_WEIGHT."""
    batch = pack_batch(rows)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == "bf16"):
        hidden = model.model(
            input_ids=batch.ids[None], position_ids=batch.positions[None], use_cache=False, interviews=batch.layout
        ).last_hidden_state[0]
        logits = model.lm_head(hidden[batch.sources])
    losses = torch.nn.functional.cross_entropy(logits.float(), batch.ids[batch.sources + 1], reduction="none")
    weights = torch.where(batch.is_head, 1.0, BODY_WEIGHT)
    return (losses * weights).sum() / weights.sum()


def _schedule(step: int, num_steps: int, warmup: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    share = (step - warmup) / max(1, num_steps - warmup)
    return 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * share))


def _batches(
    settings: PretrainSettings, tokenizer: PreTrainedTokenizerFast, first: int, num_steps: int
) -> Iterator[list[PackedRow]]:
    """Yield the batches of steps `first` to `num_steps`, made ahead of their use in one further process."""
    chunk = 16  # batches per job, sorted by length within
    jobs = [(settings, tokenizer, start, num_steps) for start in range(first, num_steps, chunk)]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        ahead = deque(pool.apply_async(_make_batches, (job,)) for job in jobs[:2])
        for number in range(len(jobs)):
            if number + 2 < len(jobs):
                ahead.append(pool.apply_async(_make_batches, (jobs[number + 2],)))
            yield from ahead.popleft().get()[: num_steps - jobs[number][2]]


def _make_batches(job: tuple[PretrainSettings, PreTrainedTokenizerFast, int, int]) -> list[list[PackedRow]]:
    settings, tokenizer, start, num_steps = job
    chunk, size = 16, settings.batch
    frame = Frame(tokenizer)
    people = interviews(settings.seed, start * size, chunk * size, start / num_steps, settings.turns)
    rows = sorted((pack_interview(tokenizer, frame, person) for person in people), key=len)
    batches = [rows[index : index + size] for index in range(0, len(rows), size)]
    order = np.random.default_rng((settings.seed, start)).permutation(len(batches))
    return [batches[index] for index in order]


def _save(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: PretrainSettings,
    folder: Path,
    tokens: int,
    loss: float,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    facts: dict[str, Any] = {
        "synthetic": True,
        "settings": asdict(settings),
        "parameters": sum(tensor.numel() for tensor in model.parameters()),
        "tokens": tokens,
        "loss": round(loss, 4),
    }
    (folder / "pretraining.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
