"""The endpoint engine: answers come from a model behind an OpenAI-compatible server.

The messages are those of `chatml`, closed by a line on the form of the answer unless `endpoint.instruct` is false. Open
cells, and closed ones with `closed: text`, are written and read as any text is. With `closed: score` a closed cell's
answer is one token, the letter of an option: the server's log probabilities of its 20 likeliest first tokens are summed
by letter and renormalised over the letters, and the cell's own seed draws one. A letter that is not among those tokens
gets probability 0: what is known of it is only that its token is no likelier than the least likely of the 20. Where no
letter is among them the answer is `invalid`.

A server may change its model, its precision and its seeds' meaning at any time, so this engine reproduces nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from polypersona.chatml import (
    CHOICE_AND_RATIONALE_FORM,
    CHOICE_FORM,
    LETTER_FORM,
    OPEN_FORM,
    ask_for,
    build_messages,
    render_answer,
)
from polypersona.coding import code_answer, disposition_of, split_rationale
from polypersona.decoding.choice import choose_option
from polypersona.engines.base import Answer, Cell, EndpointSettings, EngineSettings, Group, Reproduces
from polypersona.engines.endpoint_client import EndpointClient, Failure, Request, read_key
from polypersona.engines.endpoint_reply import Completion, letter_log_probs
from polypersona.errors import EngineError
from polypersona.records import Item, Persona

# The protocol's limit, and so the number of options whose letters can all be seen.
MAX_TOP_LOGPROBS = 20
MAX_STOPS = 4
# Servers take 64, 53, 32 or 31 bits of a seed.
_SEED_BITS = 31


class EndpointEngine:
    """Answers over HTTP. See the module's docstring.

    Raises:
        EngineError: an option the protocol does not have, or no key in the environment.
    """

    name = "endpoint"
    reproduces: Reproduces = "none"

    def __init__(self, settings: EngineSettings) -> None:
        self._endpoint = check_settings(settings)
        self._settings = settings
        self._client = EndpointClient(self._endpoint, read_key(self._endpoint))
        self._has_seen_log_probs = False

    def answer(self, groups: Sequence[Group]) -> list[Answer]:
        """Return one answer per cell, in order; a cell that the server does not answer ends as `error`.

        Raises:
            EngineError: the server accepts no request of this recipe.
            RunFailedError: the server answers nobody.
        """
        pairs = [(group.persona, cell) for group in groups for cell in group.cells]
        outcomes = self._client.ask([self._request(persona, cell) for persona, cell in pairs])
        if any(isinstance(outcome, Completion) and outcome.top is not None for outcome in outcomes):
            self._has_seen_log_probs = True
        return [self._read(cell, outcome) for (_, cell), outcome in zip(pairs, outcomes, strict=True)]

    def close(self) -> None:
        """Cut the connections."""
        self._client.close()

    def _is_scored(self, item: Item) -> bool:
        return item.is_closed and self._settings.closed == "score"

    def _request(self, persona: Persona, cell: Cell) -> Request:
        settings, endpoint = self._settings, self._endpoint
        messages: Sequence[Any] = build_messages(persona, cell.item, settings.show_options, cell.order)
        if endpoint.instruct and (form := self._form(cell.item)):
            messages = ask_for(messages, form)
        body: dict[str, Any] = {"model": endpoint.model, "messages": list(messages)}
        body["seed"] = cell.seed % (1 << _SEED_BITS)
        if self._is_scored(cell.item):
            body |= {"logprobs": True, "top_logprobs": MAX_TOP_LOGPROBS, "temperature": 1.0}
            body[endpoint.limit_parameter] = 1
            return Request(cell.assignment_id, body)
        body |= {"temperature": settings.temperature, endpoint.limit_parameter: settings.max_new_tokens}
        if settings.top_p != 1.0:  # 1.0 is the protocol's own value, and some servers take only one of the two
            body["top_p"] = settings.top_p
        if settings.stop:
            body["stop"] = list(settings.stop)
        return Request(cell.assignment_id, body)

    def _form(self, item: Item) -> str:
        if not item.is_closed:
            return OPEN_FORM
        if self._settings.show_options == "none":
            return ""
        if self._is_scored(item):
            return LETTER_FORM
        return CHOICE_AND_RATIONALE_FORM if self._settings.rationale else CHOICE_FORM

    def _read(self, cell: Cell, outcome: Completion | Failure) -> Answer:
        if isinstance(outcome, Failure):
            return Answer(cell.assignment_id, "", "error", error=outcome.reason)
        read = self._read_letter if self._is_scored(cell.item) else self._read_text
        answer = Answer(cell.assignment_id, outcome.text, "refusal") if outcome.is_refused else read(cell, outcome)
        return answer._replace(
            prompt_tokens=outcome.prompt_tokens,
            reused_prompt_tokens=outcome.cached_tokens,
            new_tokens=outcome.new_tokens,
        )

    def _read_text(self, cell: Cell, outcome: Completion) -> Answer:
        item, text, order = cell.item, outcome.text, cell.order
        has_letters = self._settings.show_options == "letters"
        is_cut = outcome.is_truncated
        disposition = disposition_of(item, text, is_truncated=is_cut, order=order, has_letters=has_letters)
        is_coded = item.is_closed and disposition == "complete"
        code = code_answer(item, text, order, has_letters=has_letters) if is_coded else None
        label, rationale = split_rationale(item, text, order, has_letters=has_letters) if is_coded else ("", "")
        return Answer(cell.assignment_id, text, disposition, rationale, code, label)

    def _read_letter(self, cell: Cell, completion: Completion) -> Answer:
        item = cell.item
        if completion.top is None and self._has_seen_log_probs:
            return Answer(cell.assignment_id, "", "error", error="the reply has no log probabilities")
        if completion.top is None:
            raise EngineError(
                f"The endpoint {self._endpoint.url} gave no log probabilities of {self._endpoint.model!r}, which "
                "generate.closed: score needs.",
                "Set generate.closed: text, or name a model that gives them.",
            )
        if len(item.options) > MAX_TOP_LOGPROBS:
            error = f"the item has {len(item.options)} options; an endpoint can score {MAX_TOP_LOGPROBS}"
            return Answer(cell.assignment_id, "", "error", error=error)
        shown = letter_log_probs(completion.top, len(item.options))
        if not any(map(math.isfinite, shown)):
            return Answer(cell.assignment_id, completion.text, "invalid")
        order = cell.order or tuple(range(len(item.options)))
        by_option = [shown[order.index(index)] for index in range(len(item.options))]
        index, probs = choose_option(by_option, cell.seed, is_greedy=self._settings.temperature == 0)
        label = item.options[index]
        text = render_answer(label, "", self._settings.show_options, order.index(index))
        return Answer(cell.assignment_id, text, "complete", "", item.codes[index], label, tuple(probs))


def check_settings(settings: EngineSettings) -> EndpointSettings:
    """Return the endpoint's settings.

    Raises:
        EngineError: there are none, or an option the protocol does not have is asked for.
    """
    if settings.endpoint is None:
        raise EngineError("The endpoint engine has no endpoint to ask.", "Set generate.endpoint.url and its model.")
    if (settings.top_k, settings.min_p, settings.repetition_penalty) != (0, 0.0, 1.0):
        raise EngineError(
            "The endpoint engine does not know generate.top_k, min_p and repetition_penalty: the OpenAI protocol has "
            "none of them.",
            "Leave them out of the recipe.",
        )
    if len(settings.stop) > MAX_STOPS:
        raise EngineError(
            f"generate.stop has {len(settings.stop)} texts; the OpenAI protocol takes {MAX_STOPS}.", "Name fewer."
        )
    if settings.closed == "score" and settings.show_options != "letters":
        raise EngineError(
            f"generate.closed: score asks an endpoint for the letter of an option, and instrument.show_options is "
            f"{settings.show_options}.",
            "Set instrument.show_options: letters, or generate.closed: text.",
        )
    if settings.closed == "score" and settings.rationale:
        raise EngineError(
            "generate.rationale: true is not part of an endpoint's generate.closed: score, whose answer is one token.",
            "Set generate.closed: text, or generate.rationale: false.",
        )
    return settings.endpoint
