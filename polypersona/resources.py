"""Where the files are that travel with the package: questionbank, recipes, tiny model.

In a checkout they stand at the top level; in a wheel under `polypersona/_data`.
"""

from __future__ import annotations

from pathlib import Path

from polypersona.errors import StorageError

_PACKAGE = Path(__file__).parent


def resource(name: str) -> Path:
    """Return the path of a shipped file or folder, such as `questionbank` or `jobs/demo.yaml`.

    Raises:
        StorageError: the installation lacks it.
    """
    path = find_resource(name)
    if path is None:
        raise StorageError(f"This installation of polypersona lacks {name!r}.", "Install the package again.")
    return path


def find_resource(name: str) -> Path | None:
    """Return the path of a shipped file or folder, or None where there is none of that name."""
    # The wheel's own copy first: beside an installed package, `jobs` may be anybody's.
    places = (_PACKAGE / "_data" / name, _PACKAGE.parent / name)
    return next((path for path in places if path.exists()), None)


def tiny_model() -> Path:
    """Return the folder of the embedded tiny model.

    Raises:
        StorageError: the installation lacks it.
    """
    folder = _PACKAGE / "models" / "tiny"
    if not (folder / "model.safetensors").exists():
        raise StorageError(
            f"The embedded model is missing from {folder}.", "Install the package again, or run jobs/pretrain_tiny.py."
        )
    return folder
