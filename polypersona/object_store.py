"""Object stores: the file system behind a URL, a write that one request makes appear, and patience with one that fails.

An S3 object of up to 10 MB is one PUT. A larger one goes in parts and appears with the last request, which is not sent
when a part has failed; a rule of the bucket should delete uploads that were begun and never completed. Raises what
pyarrow raises. Knows no run directory.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

import pyarrow as pa
import pyarrow.fs as pafs

from polypersona.location import mask_secrets

T = TypeVar("T")

# pyarrow tries a request 31 times, 0.2 s apart. A store that has answered before is then asked again after these waits.
RETRY_WAITS_S = (2.0, 8.0, 30.0, 60.0)
GIVE_UP_AFTER_S = 240.0
# What pyarrow's messages say of a store that is busy, restarting or out of reach, and not of a refusal.
_PASSING = (
    "NETWORK_CONNECTION", "SLOW_DOWN", "THROTTLING", "INTERNAL_FAILURE", "SERVICE_UNAVAILABLE", "REQUEST_TIMEOUT",
    "HTTP status 500", "HTTP status 502", "HTTP status 503", "HTTP status 504",
)  # fmt: skip
_answered: set[str] = set()
_log = logging.getLogger(__name__)


def open_store(url: str) -> tuple[pafs.FileSystem, str]:
    """Return pyarrow's file system for a URL and the path on it.

    Raises:
        pyarrow.ArrowInvalid: a scheme or an option that pyarrow does not know.
    """
    # Without this option pyarrow makes three requests of each write, and one that is broken off between the first two
    # leaves an empty object.
    if url.startswith("s3://") and "allow_delayed_open=" not in url:
        url += f"{'&' if '?' in url else '?'}allow_delayed_open=true"
    fs, path = pafs.FileSystem.from_uri(url)
    return fs, path


def put(fs: pafs.FileSystem, path: str, data: bytes | pa.Buffer) -> None:
    """Write an object whole or not at all."""
    with fs.open_output_stream(path) as stream:
        stream.write(data)


def with_patience(url: str, deed: Callable[[], T]) -> T:
    """Do something on a store, again after a while where a store that has answered before does not for now."""
    begin, waits = time.monotonic(), list(RETRY_WAITS_S)
    while True:
        try:
            result = deed()
        except FileNotFoundError:
            raise
        except OSError as error:
            is_passing = any(word in str(error) for word in _PASSING)
            if url not in _answered or not is_passing or not waits or time.monotonic() - begin > GIVE_UP_AFTER_S:
                raise
            _log.warning("%s does not answer for now; it is asked again in %g s.", mask_secrets(url), waits[0])
            time.sleep(waits.pop(0))
        else:
            _answered.add(url)
            return result
