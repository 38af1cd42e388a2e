"""What an adapter is worth on the validation split while it is trained: its loss, and scores of what it writes.

The loss is over all rows. For the scores a fixed sample of rows is answered by the packed engine on the model as it
stands, greedily, and compared with the references by the metrics that the evaluation stage uses. Each worker answers
its part; what workers add up are counts and fixed-point sums, so the scores are those of one worker.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed

from polypersona.chatml import shared_prefix_length, stop_ids
from polypersona.coding import code_answer, disposition_of
from polypersona.decoding.batching import BatchSettings, TokenEngine
from polypersona.decoding.decoder import StockDecoder
from polypersona.decoding.plain import PlainTokenEngine
from polypersona.decoding.prompts import Prompt, PromptGroup
from polypersona.decoding.sampling import SamplingSettings
from polypersona.decoding.trial import differs_from_own_forward
from polypersona.examples import example_item
from polypersona.metrics.base import Metric, Pair
from polypersona.metrics.catalogue import METRICS
from polypersona.models.loading import DTYPES
from polypersona.recipe_sections import VALIDATION_METRICS
from polypersona.records import Example, Item, digest
from polypersona.training.encoding import AnyRow, EncodedRow, collate
from polypersona.training.gradients import is_shortage
from polypersona.training.trainable import Trainable

SLOTS, CACHE_BYTES = 64, 1 << 30
# An answer may be somewhat longer than the longest reference of the sample before it is cut.
SPARE_TOKENS = 8
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Question:
    """A validation row that is asked: the prompt's ids, and what the answer is compared with."""

    persona_id: str
    ids: tuple[int, ...]
    num_answer: int
    item: Item
    reference: str
    reference_code: int | None


def choose_questions(examples: Sequence[Example], rows: Sequence[EncodedRow], count: int) -> list[Question]:
    """Return `count` rows, or all where there are fewer: a sample that follows from the rows' ids alone.

    A row that does not say what it asks is compared as a text.
    """
    chosen = sorted(range(len(rows)), key=lambda index: digest("validation", examples[index].id))[:count]
    return [_question(examples[index], rows[index]) for index in chosen]


def _question(example: Example, row: EncodedRow) -> Question:
    is_described = "question" in example.metadata
    item = example_item(example) if is_described else Item(example.id, "", "", "open")
    return Question(
        persona_id=str(example.metadata.get("persona_id", example.id)),
        ids=row.ids[: len(row.ids) - row.num_answer],
        num_answer=row.num_answer,
        item=item,
        reference=str(example.messages[-1]["content"]),
        reference_code=example.metadata.get("code"),
    )


def validation_loss(
    trainable: Trainable, rows: Sequence[AnyRow], pad_id: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> float:
    """Return the mean negative log-likelihood over all rows and workers, by the rows' weights; NaN without rows.

    The mean is over answer tokens, or over answers where the rows are of choices.
    """
    by_length = sorted(rows, key=lambda row: len(row.ids))[rank::world_size]
    sums = torch.zeros(2, dtype=torch.float64)  # summed loss, what it is the mean over
    begin = 0
    with torch.no_grad(), _answering(trainable):
        while begin < len(by_length):
            part = by_length[begin : begin + batch_size]
            losses = _losses_of(trainable, part, pad_id)
            if losses is None:
                if batch_size == 1:
                    raise torch.OutOfMemoryError("a validation row does not fit memory")
                batch_size //= 2
                continue
            weights = torch.tensor([row.answer_weight for row in part for _ in range(row.num_answer)]).double()
            sums += torch.stack([losses @ weights, weights.sum()])
            begin += len(part)
    sums = _summed(sums, trainable.device, world_size)
    return float(sums[0] / sums[1]) if sums[1] else math.nan


def _losses_of(trainable: Trainable, rows: Sequence[AnyRow], pad_id: int) -> torch.Tensor | None:
    """Return the losses of the rows' answers, on the CPU; None where memory did not do."""
    try:
        return trainable.answer_losses(collate(rows, pad_id).to(trainable.device)).double().cpu()
    except (RuntimeError, MemoryError) as error:
        if not is_shortage(error):
            raise
    if trainable.device != "cpu":
        torch.cuda.empty_cache()
    return None


def validation_scores(
    trainable: Trainable, tokenizer: Any, questions: Sequence[Question], rank: int = 0, world_size: int = 1
) -> dict[str, float]:
    """Answer the questions with the model as it stands and return the defined scores by metric.

    Range and signature of each are its metric's; all are better when higher.
    """
    personas: dict[str, list[Question]] = {}
    for question in questions:
        personas.setdefault(question.persona_id, []).append(question)
    mine = [personas[name] for name in sorted(personas)][rank::world_size]
    longest = max(question.num_answer for question in questions) + SPARE_TOKENS
    with _answering(trainable), trainable.autocast():
        pairs = _answer(trainable, tokenizer, mine, longest)
    scores = {}
    for metric in _metrics():
        rows = torch.from_numpy(metric.measure(pairs).reshape(-1, metric.width).sum(axis=0))
        total = _summed(rows, trainable.device, world_size)
        score = float(metric.score(total.numpy()[None])[0])
        if not math.isnan(score):
            scores[metric.name] = score
    return scores


def _metrics() -> list[Metric]:
    return [metric for metric in METRICS if metric.name in VALIDATION_METRICS]


def _answer(
    trainable: Trainable, tokenizer: Any, groups: Sequence[Sequence[Question]], max_new_tokens: int
) -> list[Pair]:
    if not groups:
        return []
    ends = stop_ids(tokenizer)
    prompts = [[Prompt(list(question.ids), 0, max_new_tokens) for question in group] for group in groups]
    written = _engine(trainable, ends).run([_group(group) for group in prompts])
    pairs = []
    for group, results in zip(groups, written, strict=True):
        for question, result in zip(group, results, strict=True):
            tokens = [token for token in result.tokens if token not in ends]
            text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
            order = question.item.shown or None
            ending = disposition_of(question.item, text, is_truncated=not result.is_ended, order=order)
            is_coded = ending == "complete" and question.item.is_closed
            code = code_answer(question.item, text, order) if is_coded else None
            pairs.append(
                Pair(
                    question.item,
                    text,
                    code,
                    "error" if result.error else ending,
                    question.reference,
                    question.reference_code,
                )
            )
    return pairs


def _engine(trainable: Trainable, ends: frozenset[int]) -> TokenEngine | PlainTokenEngine:
    """Return a new engine, because what an earlier one computed was computed with other weights."""
    greedy = SamplingSettings(temperature=0)
    try:
        decoder = StockDecoder(trainable.model, trainable.device, DTYPES[trainable.dtype])
        reason = differs_from_own_forward(decoder, trainable.model, trainable.device)
        if not reason:
            return TokenEngine(decoder, greedy, ends, BatchSettings(SLOTS, max_cache_bytes=CACHE_BYTES))
    except (AttributeError, TypeError, ValueError, KeyError, IndexError, NotImplementedError) as error:
        reason = f"{type(error).__name__}: {error}"
    _log.warning("Validation asks row by row, because this model cannot be packed (%s).", reason)
    return PlainTokenEngine(trainable.model, greedy, trainable.device, ends)


def _group(prompts: Sequence[Prompt]) -> PromptGroup:
    rows = [prompt.ids for prompt in prompts]
    shared = shared_prefix_length(rows) if len(rows) > 1 else len(rows[0]) - 1
    longest = max(len(prompt.ids) - shared + prompt.num_kept_tokens for prompt in prompts)
    return PromptGroup(tuple(prompts), shared, longest)


class _answering:
    """The model in eval mode while the body runs, and in the mode it was in after it."""

    def __init__(self, trainable: Trainable) -> None:
        self._model = trainable.model

    def __enter__(self) -> None:
        self._was_training = self._model.training
        self._model.eval()

    def __exit__(self, *_: object) -> None:
        self._model.train(self._was_training)


def _summed(values: torch.Tensor, device: str, world_size: int) -> torch.Tensor:
    """Return the sum over all workers, on the CPU."""
    if world_size == 1:
        return values
    shared = values.to(device)
    distributed.all_reduce(shared)
    return shared.cpu()


def describe_scores(loss: float, scores: Mapping[str, float]) -> dict[str, float]:
    """Return a validation as a log entry's values: `eval_loss`, and each score as `eval_` with its metric's name."""
    return {"eval_loss": loss, **{f"eval_{name}": value for name, value in scores.items()}}
