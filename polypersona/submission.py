"""What travels to a Ray cluster with a job: the command, this package, the recipe and the files that it names.

Checks before anything is sent what the job could only find out on the cluster, and that no secret travels: a job's
command and environment stand in Ray's records and logs, which everybody on the cluster may read. Knows no Ray.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polypersona import __version__
from polypersona.errors import RecipeError
from polypersona.location import join_location, mask_secrets
from polypersona.recipe import STAGES, build_recipe
from polypersona.recipe_text import read_mapping
from polypersona.resources import find_resource, resource

# What Ray sets for the workers of a run; a job that sets it too is refused by Ray.
RESERVED_VARIABLES = frozenset({"OMP_NUM_THREADS", "TOKENIZERS_PARALLELISM"})
SHIPPED = ("questionbank", "jobs")
# Recipe keys that may name a file or folder.
_FILE_KEYS = ("panel.source", "instrument.bank", "dataset.source", "model.base", "model.adapter")

_VARIABLE = re.compile(r"\$\{(\w+)(:-[^}]*)?\}")
_SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSW|PWD|CREDENTIAL|SIGNATURE", re.IGNORECASE)


@dataclass(frozen=True)
class Submission:
    """A job, ready to be sent.

    Args:
        entrypoint: the command line that the job runs.
        working_dir: the folder the job begins in a copy of.
        package: a folder of this package with the files that it ships.
        variables: environment variables of the job and its workers; no secret is among them.
        metadata: what Ray shows beside the job.
        notes: sentences for the user on what could not be checked here.
    """

    entrypoint: str
    working_dir: Path
    package: Path
    variables: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def build_submission(
    recipe_path: str,
    scratch: Path,
    *,
    overrides: Sequence[str] = (),
    first: str = STAGES[0],
    last: str = STAGES[-1],
    working_dir: Path | None = None,
    variables: Sequence[str] = (),
) -> Submission:
    """Check a recipe for a job and put what travels with it into `scratch`.

    Args:
        recipe_path: the recipe; a shipped one is found by its name.
        scratch: an empty folder.
        overrides: `section.key=value`, as for `run`.
        first: the stage to begin with.
        last: the stage to end with.
        working_dir: a folder that travels whole and holds the recipe; without it the recipe travels alone.
        variables: names of environment variables whose values travel.

    Raises:
        RecipeError: no such recipe, one that is not valid, a relative `out`, a file that would stay behind, or a secret
            that would travel.
    """
    path = _find_recipe(recipe_path)
    data = read_mapping(path, overrides)
    _refuse_secrets(path, overrides)
    sent = _read_variables(variables)
    expected = sorted({name for name, default in _VARIABLE.findall(str(data)) if not default} - set(sent))
    notes = [f"The nodes must have {name} set, which the recipe names; it is not sent." for name in expected]
    if all(name in os.environ for name in expected):
        build_recipe(data, where=str(path))
    else:
        notes.append("The recipe is checked by the job, for what it names is not set here.")
    _refuse_relative_out(data, sent)
    _refuse_stay_behind(data, working_dir)
    folder, name = _place_recipe(path, recipe_path, scratch, working_dir)
    words = ["python", "-m", "polypersona", "run", name, "--from", first, "--to", last]
    for override in overrides:
        words += ["--set", override]
    run = join_location(str(data.get("out", "")), str(data.get("name", "")))
    return Submission(
        entrypoint=shlex.join(words),
        working_dir=folder,
        package=_copy_package(scratch),
        variables=sent,
        metadata={
            "polypersona": __version__,
            "run": mask_secrets(run),
            "recipe": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
        },
        notes=tuple(notes),
    )


def _find_recipe(recipe_path: str) -> Path:
    path = Path(recipe_path)
    if path.parent == Path("jobs") and not path.exists():
        return find_resource(recipe_path) or path
    return path


def _refuse_secrets(path: Path, overrides: Iterable[str]) -> None:
    for where, text in (
        (str(path), path.read_text(encoding="utf-8")),
        *(("--set", override) for override in overrides),
    ):
        if _holds_secret(text):
            raise RecipeError(
                f"{where} holds a secret in a URL, which Ray's records and logs of the job would show.",
                "Write ${NAME} in its place and set NAME where the nodes start, or let the nodes find their own keys.",
            )


def _holds_secret(text: str) -> bool:
    """Whether a text has a secret of its own in a URL, and not the name of a variable that holds one."""
    text = re.sub(r"\$\{\w+\}(:\$\{\w+\})?@", "", text)
    text = re.sub(r"=\$\{\w+\}", "=", text)
    return mask_secrets(text) != text


def _read_variables(names: Iterable[str]) -> dict[str, str]:
    values = {}
    for name in names:
        if name in RESERVED_VARIABLES:
            raise RecipeError(f"--env {name}: every run sets {name} for its workers.", f"Leave out --env {name}.")
        if name not in os.environ:
            raise RecipeError(f"--env {name}: the environment variable {name} is not set here.", f"Set {name}.")
        if _SECRET_NAME.search(name) or _holds_secret(os.environ[name]):
            raise RecipeError(
                f"--env {name}: this looks like a secret, and a job's environment stands in Ray's records.",
                f"Set {name} where the nodes start: the workers have the environment of their node.",
            )
        values[name] = os.environ[name]
    return values


def _refuse_relative_out(data: Mapping[str, Any], sent: Mapping[str, str]) -> None:
    out = str(data.get("out", "runs"))
    for name, default in _VARIABLE.findall(out):
        if name not in sent:
            return  # the nodes know its value, and the job checks it
        out = out.replace(f"${{{name}{default}}}", sent[name])
    if "://" not in out and not out.startswith("/"):
        raise RecipeError(
            f"out is {out!r}: a job runs in a copy of its folder that Ray deletes, and a relative path leads there.",
            "Give a path that all nodes share, or a URL: --set out=/shared/runs.",
        )


def _refuse_stay_behind(data: Mapping[str, Any], working_dir: Path | None) -> None:
    """Refuse a relative file of the user's that is here and would not be where the job runs."""
    for key in _FILE_KEYS:
        section, _, name = key.partition(".")
        part = data.get(section)
        value = part.get(name) if isinstance(part, dict) else None
        if not isinstance(value, str) or "://" in value or "$" in value or Path(value).is_absolute():
            continue
        here, shipped = Path(value), find_resource(value)
        if not here.exists() or (shipped is not None and here.samefile(shipped)):
            continue
        if working_dir is None:
            raise RecipeError(
                f"{key} is {value!r}, a path on this machine that would not travel with the job.",
                "Add --working-dir ., or give an absolute path that all nodes share, or a URL.",
            )
        if not (working_dir / value).resolve().is_relative_to(working_dir.resolve()) or (
            not (working_dir / value).exists()
        ):
            raise RecipeError(
                f"{key} is {value!r}, which is not in {working_dir}, the folder that travels with the job.",
                "Give a path inside that folder and relative to it, or an absolute path that all nodes share.",
            )


def _place_recipe(path: Path, recipe_path: str, scratch: Path, working_dir: Path | None) -> tuple[Path, str]:
    """Return the folder that travels, and the recipe's name for the job that begins there."""
    if working_dir is None:
        folder = scratch / "recipe"
        folder.mkdir()
        shutil.copyfile(path, folder / path.name)
        return folder, path.name
    if not working_dir.is_dir():
        raise RecipeError(f"--working-dir {working_dir}: there is no such folder.", "Name a folder, such as `.`.")
    if path.resolve().is_relative_to(working_dir.resolve()):
        return working_dir, str(path.resolve().relative_to(working_dir.resolve()))
    shipped = find_resource(recipe_path)
    if shipped is not None and path.exists() and path.samefile(shipped):
        return working_dir, recipe_path
    raise RecipeError(
        f"The recipe {str(path)!r} is not in {working_dir}, the folder that travels with the job.",
        "Move it there, or name a --working-dir that holds it.",
    )


def _copy_package(scratch: Path) -> Path:
    """Copy this package with the files that a wheel of it holds, so that the nodes need its libraries only."""
    target = scratch / "package" / "polypersona"
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(Path(__file__).parent, target, ignore=ignored)
    for name in SHIPPED:
        shutil.copytree(resource(name), target / "_data" / name, ignore=ignored, dirs_exist_ok=True)
    return target
