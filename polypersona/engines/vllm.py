"""The vLLM engine: a model served by vLLM in a process of its own, on this actor's GPU or with its CPU build.

Takes prompts of `chatml` as token ids, persona by persona, so that vLLM's prefix cache holds what a persona's cells
share. Closed cells are scored: vLLM gives the log probabilities of the tokens at which the options part, and the cell's
own seed draws one here, so a choice depends on vLLM by its probabilities alone. Where the prompt shows letters, one
token decides; otherwise whole options are scored. A rationale continues from the option chosen. Open cells are sampled
by vLLM with the cell's seed, but its batching may change a rounding and so a token: this engine reproduces nothing.

If vLLM's own process dies, this one ends at once: whoever runs the actor starts another.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from polypersona.chatml import (
    build_messages,
    encode_prompt,
    encode_text,
    render_answer,
    render_choice,
    shown_place,
    stop_ids,
)
from polypersona.coding import code_answer, disposition_of, split_rationale
from polypersona.decoding.choice import choose_option
from polypersona.engines.base import Answer, Cell, EngineSettings, Group, Reproduces
from polypersona.engines.token_questions import TokenQuestion, option_log_probs, token_questions
from polypersona.engines.vllm_library import end_process, first_line, load_adapter, load_library, load_llm, shut_down
from polypersona.engines.vllm_limits import MAX_TOKEN_IDS, check_settings
from polypersona.interview import answer_lead
from polypersona.models.loading import load_tokenizer
from polypersona.records import Persona

_NOT_FINITE = "the model's logits are not finite"
_ENDED, _CUT = "stop", "length"  # finish reasons of a whole and of a truncated text


@dataclass(slots=True)
class _Row:
    """A cell on its way through the engine. `questions` score its options, `log_probs` are their answers."""

    cell: Cell
    prompt: list[int]
    options: list[list[int]]
    questions: tuple[TokenQuestion, ...] = ()
    log_probs: dict[tuple[tuple[int, ...], int], float] = field(default_factory=dict)
    reused: int | None = None
    choice: int | None = None
    probs: tuple[float, ...] | None = None
    num_written: int = 0
    text: str = ""
    is_ended: bool = False
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Request:
    """One prompt for vLLM, and what it is for: a question about options, or a text where that is None."""

    row: _Row
    ids: list[int]
    params: Any
    question: TokenQuestion | None = None


class VllmEngine:
    """Answers with vLLM. See the module's docstring.

    Raises:
        MissingExtraError: vLLM is not installed.
        EngineError: an option vLLM does not support, or neither a GPU nor its CPU build.
        ModelError: no such model or adapter, or one that vLLM cannot load.
    """

    name = "vllm"
    reproduces: Reproduces = "none"

    def __init__(self, settings: EngineSettings) -> None:
        check_settings(settings)
        self._settings = settings
        self._library = load_library()
        self._tokenizer = load_tokenizer(
            settings.model, revision=settings.revision, trust_remote_code=settings.trust_remote_code
        )
        self._ends = stop_ids(self._tokenizer)
        self._lead = answer_lead(self._tokenizer)
        self._llm: Any = load_llm(self._library, settings)
        self._max_tokens = int(self._llm.model_config.max_model_len)
        self._lora = load_adapter(self._library, self._llm, settings.adapter)

    def answer(self, groups: Sequence[Group]) -> list[Answer]:
        """Return one answer per cell, in order; cells that do not fit the model's context end as `error`."""
        rows = [self._build_row(group.persona, cell) for group in groups for cell in group.cells]
        self._ask([request for row in rows if not row.error for request in self._first_requests(row)])
        for row in rows:
            self._choose(row)
        if self._settings.rationale:
            self._ask([self._write_request(row) for row in rows if row.choice is not None])
        return [self._finish(row) for row in rows]

    def close(self) -> None:
        """End vLLM's process and free its memory."""
        llm, self._llm = self._llm, None
        if llm is not None:
            shut_down(llm)

    def _build_row(self, persona: Persona, cell: Cell) -> _Row:
        settings, item, show = self._settings, cell.item, self._settings.show_options
        messages = build_messages(persona, item, show, cell.order)
        is_scored = item.is_closed and settings.closed == "score"
        options = [
            encode_text(self._tokenizer, self._lead + render_choice(label, show, shown_place(index, cell.order)))
            for index, label in enumerate(item.options if is_scored else ())
        ]
        row = _Row(cell, encode_prompt(self._tokenizer, messages), options)
        need = len(row.prompt) + max(map(len, options), default=0)
        need += settings.max_new_tokens if not options or settings.rationale else 0
        if need > self._max_tokens:
            row.error = (
                f"the prompt has {len(row.prompt)} tokens, {need} with its answer; vLLM has room for {self._max_tokens}"
            )
        elif options:
            row.questions = token_questions(options, by_first_token=show == "letters", max_tokens=MAX_TOKEN_IDS)
        return row

    def _first_requests(self, row: _Row) -> list[_Request]:
        if not row.options:
            return [self._write_request(row)]
        return [
            _Request(row, row.prompt + list(question.path), self._question_params(question), question)
            for question in row.questions
        ]

    def _question_params(self, question: TokenQuestion) -> Any:
        tokens = list(question.tokens)
        options: dict[str, Any] = {"max_tokens": 1, "temperature": 0.0, "logprob_token_ids": tokens}
        if question.is_exclusive:
            options["allowed_token_ids"] = tokens
        return self._library.sampling_params(**options, detokenize=False)

    def _write_request(self, row: _Row) -> _Request:
        settings = self._settings
        start = row.options[row.choice] if row.choice is not None else []
        options: dict[str, Any] = {
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "top_p": settings.top_p,
            "min_p": settings.min_p,
            "repetition_penalty": settings.repetition_penalty,
            "seed": row.cell.seed,
            "stop": list(settings.stop) or None,
            "detokenize": bool(settings.stop),  # vLLM finds stop strings in text only
            "stop_token_ids": sorted(self._ends),
            "ignore_eos": True,  # the ids above are all that end a turn, whatever files beside the weights say
        }
        return _Request(row, row.prompt + start, self._library.sampling_params(**options))

    def _ask(self, requests: list[_Request]) -> None:
        """Send requests to vLLM in one call, and give each row what came back."""
        for request, output in self._generate(requests):
            row, completion = request.row, output.outputs[0]
            if row.reused is None:
                row.reused = min(output.num_cached_tokens or 0, len(row.prompt))
            if completion.finish_reason not in (_ENDED, _CUT):
                row.error = f"vLLM ended the request with {completion.finish_reason!r}"
            elif request.question is None:
                self._take_text(row, completion)
            else:
                _take_log_probs(row, request.question, completion)

    def _generate(self, requests: list[_Request]) -> Iterator[tuple[_Request, Any]]:
        """Yield requests with their outputs; a request that vLLM refuses gets its row an error, and no other."""
        if not requests:
            return
        prompts = [self._library.tokens_prompt(prompt_token_ids=request.ids) for request in requests]
        params = [request.params for request in requests]
        try:
            outputs = self._llm.generate(prompts, params, use_tqdm=False, lora_request=self._lora)
        except self._library.dead.EngineDeadError as error:
            end_process(error)
        except (self._library.exceptions.VLLMClientError, ValueError) as error:
            if len(requests) == 1:
                requests[0].row.error = f"vLLM refuses the request: {first_line(error)}"
                return
            for request in requests:
                yield from self._generate([request])
            return
        if len(outputs) != len(requests):
            raise RuntimeError(f"vLLM gave {len(outputs)} outputs to {len(requests)} requests")
        yield from zip(requests, outputs, strict=True)

    def _take_text(self, row: _Row, completion: Any) -> None:
        ids = list(completion.token_ids)
        row.num_written = len(ids)
        row.is_ended = completion.finish_reason == _ENDED
        if self._settings.stop:
            row.text = completion.text.strip()
            return
        if row.is_ended and ids and ids[-1] in self._ends:
            ids.pop()
        row.text = self._tokenizer.decode(ids, skip_special_tokens=True).strip()

    def _choose(self, row: _Row) -> None:
        if not row.options or row.error:
            return
        totals = option_log_probs(row.options, row.questions, row.log_probs)
        if not all(map(math.isfinite, totals)):
            row.error = _NOT_FINITE
            return
        row.choice, probs = choose_option(totals, row.cell.seed, is_greedy=self._settings.temperature == 0)
        row.probs = tuple(probs)

    def _finish(self, row: _Row) -> Answer:
        return self._read(row)._replace(
            prompt_tokens=len(row.prompt),
            reused_prompt_tokens=row.reused or 0,
            new_tokens=row.num_written,
        )

    def _read(self, row: _Row) -> Answer:
        cell, show = row.cell, self._settings.show_options
        item, order, has_letters = cell.item, cell.order, show == "letters"
        if row.error:
            return Answer(cell.assignment_id, "", "error", error=row.error)
        if row.choice is not None:
            label = item.options[row.choice]
            text = render_answer(label, row.text, show, shown_place(row.choice, order))
            return Answer(
                cell.assignment_id, text, "complete", row.text, item.codes[row.choice], label, option_probs=row.probs
            )
        disposition = disposition_of(
            item, row.text, is_truncated=not row.is_ended, order=order, has_letters=has_letters
        )
        if not item.is_closed or disposition != "complete":
            return Answer(cell.assignment_id, row.text, disposition)
        code = code_answer(item, row.text, order, has_letters=has_letters)
        label, rationale = split_rationale(item, row.text, order, has_letters=has_letters)
        return Answer(cell.assignment_id, row.text, disposition, rationale, code, label)


def _take_log_probs(row: _Row, question: TokenQuestion, completion: Any) -> None:
    given = completion.logprobs[0] if completion.logprobs else {}
    if missing := [token for token in question.tokens if token not in given]:
        row.error = f"vLLM gave no log probability of token {missing[0]}"
        return
    for token in question.tokens:
        row.log_probs[question.path, token] = float(given[token].logprob)
