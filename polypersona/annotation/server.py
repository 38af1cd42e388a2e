"""The page's server: this machine only, one secret address, one rater.

It listens on 127.0.0.1. Every path begins with a random token, so other users of the machine and pages of other sites
cannot guess it; a request whose Host header is not this address is refused, so a site that points its own name at
127.0.0.1 (DNS rebinding) gets nothing. Writing takes JSON from this origin only.
"""

from __future__ import annotations

import hmac
import json
import secrets
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from polypersona.annotation.session import Session
from polypersona.errors import PolypersonaError, StorageError

HOST = "127.0.0.1"
MAX_BODY_BYTES = 1 << 16
_STATIC = Path(__file__).parent / "static"
_FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "page.css": ("page.css", "text/css; charset=utf-8"),
    "page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class AnnotationServer(ThreadingHTTPServer):
    """Serves one session until it is shut down.

    Args:
        session: what is rated.
        port: 0 for a free one.

    Raises:
        PolypersonaError: the port is taken or not allowed.
    """

    daemon_threads = True

    def __init__(self, session: Session, port: int = 0) -> None:
        self.session = session
        self.token = secrets.token_urlsafe(24)
        try:
            super().__init__((HOST, port), _Request)
        except OSError as error:
            raise PolypersonaError(
                f"The port {port} cannot be used: {error.strerror or error}.", "Give another --port, or none."
            ) from error

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self.server_address[1])

    @property
    def url(self) -> str:
        """The page's address. Whoever has it can rate."""
        return f"http://{HOST}:{self.port}/{self.token}/"


class _Request(BaseHTTPRequestHandler):
    server: AnnotationServer
    server_version = "polypersona"
    sys_version = ""
    timeout = 60

    def do_GET(self) -> None:
        name = self._allowed_name()
        if name is None:
            return
        if name == "api/session":
            self._send_json(HTTPStatus.OK, self.server.session.as_json())
        elif name in _FILES:
            file, kind = _FILES[name]
            self._send(HTTPStatus.OK, (_STATIC / file).read_bytes(), kind)
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")

    def do_POST(self) -> None:
        name = self._allowed_name()
        if name is None:
            return
        if name != "api/ratings":
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")
            return
        body = self._json_body()
        if body is None:
            return
        try:
            self._send_json(HTTPStatus.OK, {"num_rated": self.server.session.rate(body)})
        except ValueError as error:
            self._refuse(HTTPStatus.BAD_REQUEST, f"The rating is not taken: {error}.")
        except StorageError as error:
            self._refuse(HTTPStatus.INSUFFICIENT_STORAGE, str(error))

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the terminal quiet: a line a request would hide what matters."""

    def _allowed_name(self) -> str | None:
        """Return the path behind the token; refuse a request that is not the page's own."""
        if self.headers.get("Host", "") not in (f"{HOST}:{self.server.port}", f"localhost:{self.server.port}"):
            self._refuse(HTTPStatus.FORBIDDEN, "This address is not served.")
            return None
        token, slash, name = self.path.partition("?")[0].removeprefix("/").partition("/")
        if not slash or not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._refuse(HTTPStatus.NOT_FOUND, "There is no such page.")
            return None
        return name

    def _json_body(self) -> Any:
        """Return the body's content, None after refusing it."""
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{self.headers['Host']}":
            self._refuse(HTTPStatus.FORBIDDEN, "This page may not write.")
            return None
        if self.headers.get_content_type() != "application/json":
            self._refuse(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "A rating is sent as JSON.")
            return None
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self._refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "A rating is a small JSON object.")
            return None
        try:
            return json.loads(self.rfile.read(int(length))) or {}
        except ValueError:
            self._refuse(HTTPStatus.BAD_REQUEST, "This is no JSON.")
            return None

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        self._send_json(status, {"error": message})

    def _send_json(self, status: HTTPStatus, content: Any) -> None:
        self._send(status, json.dumps(content, ensure_ascii=False).encode(), "application/json; charset=utf-8")

    def _send(self, status: HTTPStatus, data: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
