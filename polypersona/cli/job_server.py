"""The job server of a Ray cluster: submit a job, follow its log, say how it ended.

The only place that knows Ray's client of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from polypersona.errors import ClusterError, PolypersonaError, RunFailedError
from polypersona.location import mask_secrets
from polypersona.submission import Submission

CONNECT_TIMEOUT_S = 10.0
# The log is asked for again this often after the connection is lost, with growing pauses, before it is given up.
MAX_RECONNECTS = 6
LONGEST_PAUSE_S = 30.0
STATUS_PAUSE_S = 0.5
# They would mix what Ray's client uploads and closes into the job's log.
_CHATTY = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
# Ray's client would let them override the address that it is given.
_OVERRIDES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_FAILURES = (OSError, RuntimeError, ValueError, KeyError, aiohttp.ClientError)


class _Log:
    """What of a job's log was shown already: each connection sends it from the beginning."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.shown = 0
        self._show = show
        self._seen = 0

    def rewind(self) -> None:
        self._seen = 0

    def add(self, text: str) -> None:
        fresh = text[max(0, self.shown - self._seen) :]
        self._seen += len(text)
        self.shown = max(self.shown, self._seen)
        if fresh:
            self._show(fresh)


class JobServer:
    """A connection to a cluster's job server.

    Args:
        address: its URL, such as `http://127.0.0.1:8265`.

    Raises:
        ClusterError: nothing answers there, no job server does, or it refuses this user.
    """

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        _refuse_silent(self.address)
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.WARNING)
        self.sends_token = False
        self._client = self._connect()

    def submit(self, submission: Submission, job: str | None, resources: Mapping[str, Any]) -> str:
        """Send a job and return its id.

        Raises:
            ClusterError: the cluster does not take it.
        """
        runtime_env: dict[str, Any] = {
            "working_dir": str(submission.working_dir),
            "py_modules": [str(submission.package)],
        }
        if submission.variables:
            runtime_env["env_vars"] = dict(submission.variables)
        with self._named_errors("does not take the job"):
            sent: str = self._client.submit_job(
                entrypoint=submission.entrypoint,
                submission_id=job,
                runtime_env=runtime_env,
                metadata=dict(submission.metadata),
                **resources,
            )
        return sent

    def find(self, job: str) -> tuple[str, bool] | None:
        """Return the command line of a job and whether it has ended; None where the cluster has no job of that id."""
        for details in self._list():
            if details.submission_id == job:
                return details.entrypoint, details.status.is_terminal()
        return None

    def find_running(self, submission: Submission) -> str | None:
        """Return the id of a job that does just what this one would do and has not ended."""
        for details in self._list():
            is_same = (details.entrypoint, details.metadata) == (submission.entrypoint, submission.metadata)
            if is_same and details.submission_id and not details.status.is_terminal():
                return str(details.submission_id)
        return None

    def _list(self) -> list[Any]:
        with self._named_errors("does not list its jobs"):
            return list(self._client.list_jobs())

    def follow(self, job: str, show: Callable[[str], None]) -> int:
        """Show a job's log as it is written, from its beginning, and return the exit code of its driver.

        Raises:
            RunFailedError: the job was stopped, did not begin, was killed, or cannot be followed any more.
        """
        log, failures = _Log(show), 0
        while True:
            before, cause = log.shown, None
            try:
                asyncio.run(self._tail(job, log))
            except BrokenPipeError:  # nobody reads what is shown
                raise
            except _FAILURES as error:
                cause = error
            try:
                details = self._client.get_job_info(job)
                if details.status.is_terminal():
                    return _exit_code(job, details)
            except _FAILURES as error:
                cause = error
            if cause is None:
                time.sleep(STATUS_PAUSE_S)
                continue
            failures = 1 if log.shown > before else failures + 1
            if failures > MAX_RECONNECTS:
                raise RunFailedError(
                    f"The connection to {mask_secrets(self.address)} is lost ({_reason(cause)}); job {job} may still "
                    "be running.",
                    "Give the same command again to go on following it.",
                ) from cause
            time.sleep(min(2.0**failures, LONGEST_PAUSE_S))

    async def _tail(self, job: str, log: _Log) -> None:
        log.rewind()
        async for text in self._client.tail_job_logs(job):
            log.add(text)

    def _connect(self) -> Any:
        """Return Ray's client; a server that asks for a token gets the user's own, as `ray start` finds it."""
        with self._named_errors("is no Ray job server"), _without_overrides():
            try:
                return JobSubmissionClient(self.address)
            except AuthenticationError as error:
                token = _read_token()
                if token is None or "Authentication required" not in str(error):
                    raise
                self.sends_token = True
                return JobSubmissionClient(self.address, headers={"authorization": f"Bearer {token}"})

    @contextlib.contextmanager
    def _named_errors(self, what: str) -> Iterator[None]:
        place = mask_secrets(self.address)
        try:
            yield
        except PolypersonaError:
            raise
        except AuthenticationError as error:
            is_wrong = self.sends_token or "Authentication required" not in str(error)
            raise ClusterError(
                f"{place} refuses the token that was sent." if is_wrong else f"{place} asks for a token.",
                "Set RAY_AUTH_TOKEN_PATH to a file with the cluster's token, or put the token into ~/.ray/auth_token.",
            ) from error
        except _FAILURES as error:
            raise ClusterError(
                f"{place} {what}: {_reason(error)}.",
                "Name the address of the cluster's dashboard, and look at what it says there.",
            ) from error


def _refuse_silent(address: str) -> None:
    """Refuse an address where nothing listens; Ray's client would try for minutes."""
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        parts, host, port = urlsplit(""), None, 0
    if parts.scheme not in ("http", "https") or host is None:
        raise ClusterError(
            f"{mask_secrets(address)!r} is no address of a job server.", "Write --address http://HOST:8265."
        )
    try:
        socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(
            f"Nothing answers at {mask_secrets(address)} ({getattr(error, 'strerror', None) or error}).",
            "Start a cluster, such as cluster/local.sh start, or name the address of its dashboard.",
        ) from error


@contextlib.contextmanager
def _without_overrides() -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in _OVERRIDES if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _read_token() -> str | None:
    """Return the token that Ray would use, were it told that the cluster wants one."""
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except OSError:
        return None


def _exit_code(job: str, details: Any) -> int:
    if details.status == JobStatus.SUCCEEDED:
        return 0
    again = "What is committed is kept; submit the recipe again to go on."
    if details.status == JobStatus.STOPPED:
        raise RunFailedError(f"Job {job} was stopped.", again)
    code = details.driver_exit_code
    if code is None:
        why = mask_secrets((details.message or "no reason given").strip().splitlines()[-1])
        raise RunFailedError(f"Job {job} failed outside its own program: {why.rstrip('.')}.", again)
    if not 0 < code < 126:
        number = code - 128 if code > 128 else -code
        raise RunFailedError(f"The driver of job {job} was killed (exit code {code}, signal {number}).", again)
    return int(code)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return mask_secrets((lines[0] if lines else type(error).__name__)[:300]).rstrip(".")
