"""HTTP to an OpenAI-compatible server: many requests in flight, paced, tried again with patience, and given up.

Takes request bodies, gives a completion or a failure for each, in order. Raises only what concerns the whole run: a
key, address or model the server does not accept, or a server that answers nobody. Knows no persona, no item and no Ray.
The key is in the headers of the connection alone; it is cut out of whatever the server says.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import httpx

from polypersona.engines.base import EndpointSettings
from polypersona.engines.endpoint_reply import (
    Completion,
    UnreadableReplyError,
    error_of,
    read_completion,
    retry_after_s,
    shorten,
)
from polypersona.errors import EngineError, PolypersonaError, RunFailedError

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
# A server that asks for more patience than this has a quota of hours or days: the run ends and can be gone on with.
LONGEST_PAUSE_S = 600.0
# So many cells given up, with none answered between them, say that the server is at fault and not the cells.
MAX_GIVEN_UP = 50
# Statuses after which a request may succeed unchanged, besides all of 5xx; and those that no other request escapes.
_PASSING = (408, 409, 425, 429)
_UNAVAILABLE = (408, 429, 502, 503, 504)
_FATAL = {
    401: "Set {variable} to a key that the server accepts.",
    402: "Pay the account, or name another endpoint.",
    403: "Set {variable} to a key that may use this model.",
    404: "Mend generate.endpoint.url and generate.endpoint.model.",
    405: "Mend generate.endpoint.url.",
}
_NO_QUOTA = "insufficient_quota"
# A shorter key is a placeholder for a server without keys; it would be cut out of ordinary answers.
_SECRET_CHARACTERS = 8


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: the cell it is for, and the body of the call."""

    cell_id: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why there is no completion. `is_passing` where asking again may help, `is_unavailable` where nobody is served."""

    reason: str
    is_passing: bool = True
    is_unavailable: bool = False


class Pace:
    """When the next request may leave: evenly spaced under a limit, and not while the server asks to wait."""

    def __init__(self, requests_per_minute: float | None) -> None:
        self._interval_s = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._next = self._resume = time.monotonic()

    def pause(self, seconds: float) -> None:
        """Hold all requests for that long from now."""
        self._resume = max(self._resume, time.monotonic() + seconds)

    async def wait(self) -> None:
        """Return when a request may leave."""
        while True:
            while (left := self._resume - time.monotonic()) > 0:
                await asyncio.sleep(left)
            start = max(time.monotonic(), self._next)
            self._next = start + self._interval_s
            await asyncio.sleep(max(0.0, start - time.monotonic()))
            if self._resume <= time.monotonic():
                return


class EndpointClient:
    """Asks one server. Its connections live in a thread of their own, so any caller may wait and be interrupted.

    Args:
        settings: where, and how patiently.
        key: what `Authorization: Bearer` carries; empty for a server without keys.
    """

    def __init__(self, settings: EndpointSettings, key: str) -> None:
        self._settings = settings
        self._key = key
        self._pace = Pace(settings.requests_per_minute)
        self._given_up: dict[str, bool] = {}  # since the last answer; cell → whether the server was unavailable
        self._has_answered = False
        self._jitter = random.Random()
        try:
            self._url = httpx.URL(f"{settings.url}/chat/completions")
        except httpx.InvalidURL as error:
            raise EngineError(
                f"generate.endpoint.url: {settings.url} is no address: {error}.", "Mend the recipe."
            ) from error
        limits = httpx.Limits(max_connections=settings.concurrency, max_keepalive_connections=settings.concurrency)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self._http = httpx.AsyncClient(headers=headers, limits=limits, timeout=None)  # the time-out is the call's
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def ask(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        """Return what became of each request.

        Raises:
            EngineError: the server accepts no request of this recipe.
            RunFailedError: the server is not there, or asks for more patience than a run has.
        """
        future = asyncio.run_coroutine_threadsafe(self._ask_all(requests), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # of what is done already, nothing; on an interrupt, all that is in flight

    def close(self) -> None:
        """Cut the connections and end the thread. May be called twice."""
        if self._loop.is_closed():
            return
        with contextlib.suppress(TimeoutError):  # a connection that cannot even be closed
            asyncio.run_coroutine_threadsafe(self._http.aclose(), self._loop).result(timeout=5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _ask_all(self, requests: Sequence[Request]) -> list[Completion | Failure]:
        outcomes: list[Completion | Failure] = [Failure("not asked")] * len(requests)
        places = iter(enumerate(requests))

        async def work() -> None:
            for place, request in places:  # shared: each takes the next
                outcomes[place] = await self._ask_patiently(request)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._settings.concurrency, len(requests))):
                    group.create_task(work())
        except BaseExceptionGroup as errors:
            named = [error for error in errors.exceptions if isinstance(error, PolypersonaError)]
            raise (named or errors.exceptions)[0] from None
        return outcomes

    async def _ask_patiently(self, request: Request) -> Completion | Failure:
        tries = 0
        while True:
            await self._pace.wait()
            outcome = await self._ask_once(request)
            tries += 1
            if isinstance(outcome, Completion):
                self._given_up.clear()
                self._has_answered = True
                return outcome
            if not outcome.is_passing or tries > self._settings.max_retries:
                return self._give_up(request, outcome, tries)
            longest = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (tries - 1))
            await asyncio.sleep(longest * self._jitter.uniform(0.5, 1.0))

    async def _ask_once(self, request: Request) -> Completion | Failure:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                response = await self._http.post(self._url, content=json.dumps(request.body).encode())
        except TimeoutError:
            return Failure(f"no answer within {self._settings.timeout_s:g} s", is_unavailable=True)
        except httpx.HTTPError as error:
            reason = shorten(self._without_key(f"{type(error).__name__}: {error}".rstrip(": ")))
            return Failure(f"the connection failed: {reason}", is_unavailable=True)
        try:
            data = json.loads(response.content)
        except (ValueError, RecursionError):
            data = None
        if response.status_code != httpx.codes.OK:
            return self._read_refusal(response, data)
        try:
            if data is None:
                raise UnreadableReplyError("the reply is no JSON")
            completion = read_completion(data)
        except UnreadableReplyError as error:
            return Failure(f"{error}, but {shorten(self._without_key(' '.join(response.text.split())))!r}")
        is_secret = len(self._key) >= _SECRET_CHARACTERS
        return replace(completion, text=self._without_key(completion.text)) if is_secret else completion

    def _read_refusal(self, response: httpx.Response, data: Any) -> Failure:
        """Return the failure of one call, or raise that of the run; heed what the server asks to wait."""
        status, settings = response.status_code, self._settings
        code, message = error_of(data, response.text)
        said = f"HTTP {status}: {shorten(self._without_key(message))}"
        if status in _FATAL or 300 <= status < 400 or code == _NO_QUOTA:
            hint = _FATAL.get(402 if code == _NO_QUOTA else status, "Mend generate.endpoint.url.")
            raise EngineError(
                f"The endpoint {settings.url} does not answer for model {settings.model!r} with the key of "
                f"{settings.key_variable or 'no variable'}: {said}.",
                hint.format(variable=settings.key_variable or "generate.endpoint.key_variable"),
            )
        is_passing = status in _PASSING or status >= 500
        asked = retry_after_s(response.headers, datetime.now(UTC)) if is_passing else None
        if asked is not None and asked > LONGEST_PAUSE_S:
            raise RunFailedError(
                f"The endpoint {settings.url} asks to wait {asked:,.0f} s: {said}.",
                "Run the same command again then; what is committed is not asked again.",
            )
        if asked is not None:
            self._pace.pause(asked)
        return Failure(said, is_passing, is_unavailable=status in _UNAVAILABLE)

    def _give_up(self, request: Request, failure: Failure, tries: int) -> Failure:
        """Return the failure with its number of tries; raise where no cell at all is answered."""
        self._given_up[request.cell_id] = failure.is_unavailable
        reason = failure.reason if tries == 1 else f"{failure.reason} (tried {tries} times)"
        if len(self._given_up) >= MAX_GIVEN_UP and (not self._has_answered or all(self._given_up.values())):
            kind = RunFailedError if failure.is_unavailable else EngineError
            raise kind(
                f"The endpoint {self._settings.url} answered none of the last {len(self._given_up)} cells: {reason}.",
                "Mend that and run the same command again; what is committed is not asked again.",
            )
        return replace(failure, reason=reason)

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text


def read_key(settings: EndpointSettings) -> str:
    """Return the key from the environment of this process; empty where the settings name no variable.

    Raises:
        EngineError: the variable is not set, or holds what no header can carry. The message never shows the key.
    """
    variable = settings.key_variable
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise EngineError(
            f"The environment variable {variable} is not set where the endpoint is asked from, so there is no key for "
            f"{settings.url}.",
            f"Set {variable} before Ray starts, or generate.endpoint.key_variable: null for a server without keys.",
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise EngineError(
            f"The environment variable {variable} holds characters that no key has.", f"Set {variable} to the key."
        )
    return key
