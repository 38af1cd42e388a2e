"""Where something is: a local path, or a URL whose options (`?endpoint_override=…`) stand at its end.

A URL may hold a secret (`s3://KEY:SECRET@bucket`). It is needed to open the file and shown nowhere: what is printed or
stored goes through `mask_secrets`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

MASK = "***"

_SCHEME = r"(?<![a-z0-9+.-])([a-z0-9+.-]+://)"
# `user:password@` up to the last @, for a password may hold / and @ that should have been escaped.
_WITH_PASSWORD = re.compile(rf"{_SCHEME}[^\s/?#@:]*:((?:(?!://)\S)*)@", re.IGNORECASE)
_PORT = re.compile(r"\d+[/?#]")  # of `https://host:8080/@name`, which has no password
_WITH_USER = re.compile(rf"{_SCHEME}[^\s/?#@:]*@", re.IGNORECASE)
# Schemes whose part before @ names a container or an account, no token.
_NAMES_A_PLACE = ("abfs://", "abfss://", "gs://", "gcs://", "hdfs://", "viewfs://")
_SECRET_OPTION = re.compile(
    r"([?&;][\w.-]*(?:secret|token|password|passwd|signature|credential|api_?key|access_?key|account_?key|\bsig)[\w.-]*=)"
    r"[^\s&;#'\"]+",
    re.IGNORECASE,
)
_SECRET_VARIABLE = re.compile(r"(?:^|_)(?:KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIALS?)$")
# A shorter value would be cut out of ordinary words.
_SHORTEST_SECRET = 8


def join_location(location: str, name: str) -> str:
    """Return the location of a file or folder inside a folder."""
    place, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{options}"


def split_location(location: str) -> tuple[str, str]:
    """Return the location of the folder that a file or folder is in, and its name: what `join_location` joins."""
    place, mark, options = location.partition("?") if "://" in location else (location, "", "")
    folder, _, name = place.rstrip("/").rpartition("/")
    return f"{folder}{mark}{options}", name


def check_api_root(url: str) -> str:
    """Return the address of an HTTP API without a trailing slash.

    Raises:
        ValueError: no address, one of a single call, or one that may hold a secret. The message does not repeat it.
    """
    parts = urlsplit("")
    try:
        parts = urlsplit(url)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_address = False
    if not is_address:
        raise ValueError("this is no address such as 'https://api.openai.com/v1'")
    if "@" in parts.netloc or "?" in url or "#" in url:
        raise ValueError("an address here has no user, password, query or fragment; keys come from the environment")
    if parts.path.rstrip("/").endswith("/chat/completions"):
        raise ValueError("leave out '/chat/completions', it is added")
    return url.rstrip("/")


def mask_secrets(text: str) -> str:
    """Return a text in which the secrets of its URLs are `***`: user and password, and options named as a secret."""
    if "://" not in text:
        return text
    text = _WITH_PASSWORD.sub(lambda at: at[0] if _has_port(at[1], at[2]) else f"{at[1]}{MASK}@", text)
    text = _WITH_USER.sub(lambda at: at[0] if at[1].lower() in _NAMES_A_PLACE else f"{at[1]}{MASK}@", text)
    return _SECRET_OPTION.sub(rf"\1{MASK}", text)


def mask_all(content: Any) -> Any:
    """Return JSON content with the secrets in its texts masked, keys included: a key may be somebody's message."""
    if isinstance(content, str):
        return mask_secrets(content)
    if isinstance(content, Mapping):
        return {mask_all(key) if isinstance(key, str) else key: mask_all(value) for key, value in content.items()}
    return [mask_all(value) for value in content] if isinstance(content, list | tuple) else content


def mask_environment(text: str, environment: Mapping[str, str]) -> str:
    """Return a text with the secrets of its URLs masked, and the values of variables that are named as a secret."""
    text = mask_secrets(text)
    named = [value for name, value in environment.items() if _SECRET_VARIABLE.search(name.upper())]
    for value in sorted((value for value in named if len(value) >= _SHORTEST_SECRET), key=len, reverse=True):
        for form in (value, quote(value, safe=""), repr(value)[1:-1]):
            text = text.replace(form, MASK)
    return text


def _has_port(scheme: str, rest: str) -> bool:
    return scheme.lower().startswith(("http", "ray")) and bool(_PORT.match(rest))
