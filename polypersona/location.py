"""Where something is: a local path, or a URL whose options (`?endpoint_override=…`) stand at its end."""

from __future__ import annotations


def join_location(location: str, name: str) -> str:
    """Return the location of a file or folder inside a folder."""
    place, mark, options = location.partition("?") if "://" in location else (location, "", "")
    return f"{place.rstrip('/')}/{name}{mark}{options}"
