"""A real OpenAI-compatible HTTP server on this machine that misbehaves as told, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from polypersona.engines.base import Answer, Cell, EndpointSettings, EngineSettings, Group
from polypersona.engines.registry import load_engine
from polypersona.records import Item, Persona, seed_from

KEY = "sk-proj-0123456789abcdef"
ADA = Persona("ada", {"age": 36, "occupation": "nurse"})
OPEN = Item("test.open.01", "healthcare", "How do you feel about telemedicine?", "open")
CLOSED = Item(
    "test.likert.01", "healthcare", "I trust my doctor.", "likert", ("Disagree", "Neither", "Agree"), (1, 2, 3)
)


def completion(text: str | None = "Agree.", reason: str = "stop", **message: Any) -> dict[str, Any]:
    """Return the JSON of a chat completion."""
    return {
        "id": "1",
        "object": "chat.completion",
        "model": "toy",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": reason}
        ],
        "usage": {
            "prompt_tokens": 90,
            "completion_tokens": 3,
            "total_tokens": 93,
            "prompt_tokens_details": {"cached_tokens": 64},
        },
    }


def scored(log_probs: Mapping[str, float], text: str = "B") -> dict[str, Any]:
    """Return the JSON of a completion of one token with its likeliest alternatives."""
    data = completion(text, "length")
    top = [{"token": token, "logprob": value, "bytes": None} for token, value in log_probs.items()]
    data["choices"][0]["logprobs"] = {"content": [{"token": text, "logprob": -0.1, "top_logprobs": top}]}
    return data


@dataclass
class Step:
    """How one request is answered: after `delay_s`, with these bytes; `cut` closes the connection part of the way."""

    status: int = 200
    body: Any = field(default_factory=completion)
    headers: Mapping[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    cut: str = ""  # "head": nothing is sent; "body": half of it


def refusal(status: int, message: str = "no", **headers: str) -> Step:
    """Return a step that refuses as OpenAI does; header names are given with underscores."""
    body = {"error": {"message": message, "type": "error", "code": None}}
    return Step(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


@dataclass
class Server:
    """The steps to come (then `default`), and what was asked."""

    url: str = ""
    steps: list[Step] = field(default_factory=list)
    default: Step = field(default_factory=Step)
    by_text: dict[str, Step] = field(default_factory=dict)  # a step for each prompt that contains the text
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next_step(self, body: dict[str, Any], headers: Mapping[str, str]) -> Step:
        """Record a request and return how it is answered."""
        with self.lock:
            self.times.append(time.monotonic())
            self.bodies.append(body)
            self.headers.append(dict(headers))
            prompt = json.dumps(body["messages"])
            for text, step in self.by_text.items():
                if text in prompt:
                    return step
            return self.steps.pop(0) if self.steps else self.default


@contextmanager
def serve() -> Iterator[Server]:
    """Run a server until the block ends."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            with server.lock:
                server.in_flight += 1
                server.most_in_flight = max(server.most_in_flight, server.in_flight)
            try:
                self._answer()
            except OSError:
                self.close_connection = True  # the client has gone
            finally:
                with server.lock:
                    server.in_flight -= 1

        def _answer(self) -> None:
            assert self.path == "/v1/chat/completions"
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            step = server.next_step(body, self.headers)
            time.sleep(step.delay_s)
            if step.cut == "head":
                self.close_connection = True
                return
            data = step.body if isinstance(step.body, bytes) else json.dumps(step.body).encode()
            self.send_response_only(step.status)
            self.send_header("Date", step.headers.get("Date", self.date_time_string()))
            for name, value in step.headers.items():
                if name != "Date":
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if step.cut else data)
            self.close_connection = bool(step.cut)

        def log_message(self, *args: Any) -> None:
            pass

    class QuietServer(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

    with QuietServer(("127.0.0.1", 0), Handler) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server
        http.shutdown()
        thread.join()


def settings_for(
    server: Server,
    *,
    closed: Any = "text",
    show_options: Any = "labels",
    rationale: bool = False,
    sampling: Mapping[str, Any] | None = None,
    **options: Any,
) -> EngineSettings:
    """Return settings that ask the server; `options` are those of the endpoint."""
    endpoint = EndpointSettings(server.url, "toy", **{"timeout_s": 5.0, "max_retries": 2, **options})
    return EngineSettings(
        "endpoint", 7, closed=closed, show_options=show_options, rationale=rationale, endpoint=endpoint,
        **(sampling or {}),
    )  # fmt: skip


def cells(count: int, item: Item = OPEN, order: tuple[int, ...] | None = None) -> list[Group]:
    """Return one persona's cells of one item."""
    return [Group(ADA, tuple(Cell(f"c{index}", item, seed_from(index), order) for index in range(count)))]


def ask(settings: EngineSettings, groups: list[Group]) -> list[Answer]:
    """Return what an engine answers that lives for this call."""
    engine = load_engine(settings)
    try:
        return engine.answer(groups)
    finally:
        engine.close()
