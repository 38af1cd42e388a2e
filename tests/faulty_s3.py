"""An S3 server (moto) behind a proxy that records requests and, on order, loses them as a network does."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

import pytest

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_CONFIG_FILE": "/nowhere",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
Fault = Literal["500", "503", "403", "cut", "hang", "lost reply"]
HANG_S = 60.0


@contextlib.contextmanager
def faulty_store() -> Iterator[FaultyS3]:
    """Serve for the time of the context, with the environment that reaches it."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        server = FaultyS3()
        yield server
        server.stop()


@dataclass(frozen=True, slots=True)
class Request:
    """A request as the proxy saw it; `size` are the bytes of its body that arrived."""

    method: str
    path: str
    query: str
    size: int
    fault: Fault | None


class FaultyS3:
    """Moto behind the proxy. `choose` decides each request's fault from its method, path and place among all.

    `cut` ends the connection in the middle of the body, `hang` never answers, `lost reply` lets the request through and
    ends the connection instead of answering.
    """

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.requests: list[Request] = []
        self.choose: Callable[[str, str, int], Fault | None] = lambda method, path, place: None
        self._stopped = threading.Event()
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        self.upstream = self._moto.get_host_and_port()
        self._proxy = _Proxy(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._proxy.serve_forever, daemon=True).start()
        self.address = f"127.0.0.1:{self._proxy.server_address[1]}"
        self._create_bucket()

    def url(self, name: str, *, is_faulty: bool = True) -> str:
        """Return the URL of a folder in the bucket, through the proxy or past it."""
        host = self.address if is_faulty else f"{self.upstream[0]}:{self.upstream[1]}"
        return f"s3://bucket/{name}?endpoint_override={host}&scheme=http&region=us-east-1"

    def look(self, name: str) -> bytes | None:
        """Return an object's bytes, or None where there is none, past the proxy."""
        from moto.backends import get_backend
        from moto.core import DEFAULT_ACCOUNT_ID

        bucket = get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"].buckets["bucket"]
        found = bucket.keys.get(name)
        return None if found is None else bytes(found.value)

    def sent(self, method: str, part: str = "") -> list[Request]:
        """Return the requests of a method whose path holds a part."""
        return [request for request in list(self.requests) if request.method == method and part in request.path]

    def stop(self) -> None:
        """End both servers."""
        self._stopped.set()
        self._proxy.shutdown()
        self._proxy.server_close()
        self._moto.stop()

    def wait(self) -> None:
        """Wait as long as a server that hangs."""
        self._stopped.wait(HANG_S)

    def _create_bucket(self) -> None:
        connection = http.client.HTTPConnection(*self.upstream)
        connection.request("PUT", "/bucket")
        assert connection.getresponse().status == 200
        connection.close()


class _Proxy(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of a client that hung up."""


def _handler(server: FaultyS3) -> type[http.server.BaseHTTPRequestHandler]:
    return type("Handler", (_Handler,), {"faulty": server})


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    faulty: FaultyS3

    def answer(self) -> None:
        server, parts = self.faulty, urlsplit(self.path)
        fault = server.choose(self.command, parts.path, len(server.requests))
        body = self.read_body(half=fault == "cut")
        server.requests.append(Request(self.command, parts.path, parts.query, len(body), fault))
        if fault == "hang":
            server.wait()
        if fault in ("cut", "hang"):
            self.hang_up()
        elif fault in ("500", "503", "403"):
            codes = {"500": "InternalError", "503": "SlowDown", "403": "AccessDenied"}
            text = f"<Error><Code>{codes[fault]}</Code><Message>on order</Message></Error>"
            self.reply(int(fault), {"Content-Type": "application/xml"}, text.encode())
        else:
            status, headers, data = self.forward(body)
            if fault == "lost reply":
                self.hang_up()
            else:
                self.reply(status, headers, data)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def read_body(self, *, half: bool) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            length = int(self.headers.get("Content-Length", 0))
            return self.rfile.read(length // 2 if half else length)
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
            if half:
                return body[: size // 2]
        self.rfile.readline()
        return body

    def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.faulty.upstream, timeout=60)
        dropped = ("transfer-encoding", "content-length", "expect", "connection")
        headers = {name: value for name, value in self.headers.items() if name.lower() not in dropped}
        connection.request(self.command, self.path, body, {**headers, "Content-Length": str(len(body))})
        response = connection.getresponse()
        data = response.read()
        kept = {k: v for k, v in response.getheaders() if k.lower() not in ("connection", "transfer-encoding")}
        connection.close()
        return response.status, kept, data

    def reply(self, status: int, headers: dict[str, str], data: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() != "content-length" or self.command == "HEAD":
                self.send_header(name, value)
        if self.command != "HEAD":
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):  # the client has hung up before
            self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""
