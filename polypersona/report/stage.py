"""The report stage: reads a run's files, writes `report.html` and `report.json`.

With other runs beside it, the page is `report-with-<names>.html`: it has what the run's own page has, and a screen that
sets the runs side by side. Streams the responses once; holds counters and the sample of answers that the page shows.
The same files give the same bytes, so a report of unchanged files is not written again.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from polypersona.errors import RecipeError, StorageError
from polypersona.recipe import Recipe, build_recipe, load_recipe
from polypersona.records import digest
from polypersona.report.beside import build_beside, paired_differences
from polypersona.report.content import build_content, without_nan
from polypersona.report.evidence import Evidence, digest_inputs, gather
from polypersona.report.human import browser_rows
from polypersona.report.page import assets_digest, browser_data, render_page
from polypersona.storage import RunDirectory, load_run, update_run

PAGE, NUMBERS = "report.html", "report.json"
MAX_RUNS = 5
_LONGEST_NAME = 80


def run(recipe: Recipe, others: Sequence[str] = (), directory: RunDirectory | None = None) -> dict[str, Any]:
    """Write the report of the recipe's run and return where it is.

    Args:
        recipe: of the run.
        others: the places of other runs to set beside it.
        directory: of the run, where it is not the recipe's location.

    Raises:
        StorageError: a run has not begun, or one of its files cannot be read.
    """
    directory = directory or RunDirectory.at(recipe.location)
    state = load_run(directory)
    if not state and not directory.names("responses", ".parquet"):
        raise _no_run(directory)
    beside = load_others(directory, others)
    page_name, numbers_name = _file_names([one.name for _, one, _ in beside])
    asked = [(directory, recipe, state), *beside]
    inputs = digest(*(digest_inputs(*one, assets_digest()) for one in asked))
    is_there = directory.exists(page_name) and directory.exists(numbers_name)
    if is_there and directory.read_json(numbers_name).get("inputs") == inputs:
        return {"report": directory.path(page_name), "skipped": True}
    evidence, sample = gather(directory, recipe, state)
    content = {"inputs": inputs, **build_content(evidence), "beside": None}
    if beside:
        content["beside"] = _side_by_side(content, evidence, beside)
    stems = {key: item.stem for key, item in evidence.source.items.items()}
    people = without_nan(browser_rows(evidence.human, stems)) if evidence.human else None
    page = render_page(content, browser_data(sample, evidence.source, evidence.tally), people).encode()
    directory.write_json(numbers_name, content)
    directory.write(page_name, page)
    figures = {"bytes": len(page), "rows": evidence.tally.num_rows, "shown_rows": sample.num_rows}
    if not beside:
        update_run(directory, {"stages": {"report": {"state": "finished", "figures": figures}}})
    return {"report": directory.path(page_name), **figures, "skipped": False}


def find_run(place: str, overrides: Sequence[str] = ()) -> tuple[Recipe, RunDirectory]:
    """Return the recipe and the run directory that a place names: a recipe's file, or a run's folder or URL.

    Args:
        place: the one or the other.
        overrides: of a recipe's values; a run's folder takes none.

    Raises:
        RecipeError: the recipe is no good, or a run's folder was named with overrides.
    """
    directory = RunDirectory.at(place)
    if not place.endswith((".yaml", ".yml")) and directory.exists("run.json"):
        if overrides:
            raise RecipeError(
                f"{directory.path()} is a run, and its recipe is what it was run with.", "Leave --set out."
            )
        return _recipe_of(directory, load_run(directory)), directory
    recipe = load_recipe(place, overrides)
    return recipe, RunDirectory.at(recipe.location)


def load_others(directory: RunDirectory, locations: Sequence[str]) -> list[tuple[RunDirectory, Recipe, dict[str, Any]]]:
    """Return the runs at some places, with their recipes and run.json.

    Raises:
        StorageError: there is no run at one of them, one is named twice, or there are too many.
    """
    if len(locations) >= MAX_RUNS:
        raise StorageError(
            f"{len(locations) + 1} runs are asked for, and {MAX_RUNS} can stand side by side.",
            "Name fewer with --with.",
        )
    found: list[tuple[RunDirectory, Recipe, dict[str, Any]]] = []
    for location in locations:
        other = RunDirectory.at(location)
        if other.location in (directory.location, *(one.location for one, _, _ in found)):
            raise StorageError(f"{other.path()} is named twice.", "Name each run once.")
        state = load_run(other)
        found.append((other, _recipe_of(other, state), state))
    return found


def _side_by_side(
    content: Mapping[str, Any], evidence: Evidence, beside: Sequence[tuple[RunDirectory, Recipe, dict[str, Any]]]
) -> dict[str, Any]:
    contents, recipes, state = [content], [evidence.recipe], evidence.run
    for directory, recipe, other in beside:
        contents.append(build_content(gather(directory, recipe, other)[0]))
        recipes.append(recipe)
    paired = paired_differences(evidence.against, state, [one for _, _, one in beside])
    found: dict[str, Any] = without_nan(build_beside(contents, recipes, paired))
    return found


def _file_names(names: Sequence[str]) -> tuple[str, str]:
    if not names:
        return PAGE, NUMBERS
    joined = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(names))
    if len(joined) > _LONGEST_NAME:
        joined = f"{joined[: _LONGEST_NAME - 9]}-{digest(joined)[:8]}"
    return f"report-with-{joined}.html", f"report-with-{joined}.json"


def _recipe_of(directory: RunDirectory, state: Mapping[str, Any]) -> Recipe:
    if "recipe" not in state:
        raise _no_run(directory)
    return build_recipe(state["recipe"], where=directory.path("run.json"))


def _no_run(directory: RunDirectory) -> StorageError:
    return StorageError(f"There is no run at {directory.path()}.", "Run the recipe first, or name its folder.")
