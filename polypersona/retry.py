"""The stage retry: asks again what a run has in quarantine, as the run's own recipe says.

A retry is a round. For each committed shard with quarantined rows, an actor asks those cells again, writes those that
still fail under a name of the round, and replaces the shard's response file, which names the round: that is the switch,
and whatever is killed before it leaves the shard as it was. Cells keep their seeds, so what failed by its own answer
fails again, and what failed by a lost device, a server or a limit of memory gets the answer it would have had. A killed
retry goes on with the shards that are not yet of its round.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from polypersona import driver
from polypersona.adapter_choice import choose_adapters
from polypersona.content import content_parts, refuse_changes
from polypersona.engines.settings import Weights, locate_weights, refuse_unsupported
from polypersona.errors import RecipeError, RunFailedError, StorageError
from polypersona.ledger import Ledger, ledger_from
from polypersona.population import Population, load_population
from polypersona.progress import Progress
from polypersona.recipe import Recipe, build_recipe, change_of
from polypersona.recipe_text import apply_overrides
from polypersona.rounds import current_quarantine, delete_leftovers, last_round, read_committed_footer
from polypersona.storage import RunDirectory, load_run, update_run

# The recipe of a run → who is asked what there, and what answers.
Sources = Callable[[Recipe], tuple[Population, Weights]]


def run(directory: RunDirectory, overrides: Sequence[str] = (), sources: Sources | None = None) -> dict[str, Any]:
    """Ask the quarantined rows of a run again.

    Args:
        directory: the run's.
        overrides: `section.key=value`, of what makes no other responses; a source that has moved may be named anew.
        sources: who is asked what, and what answers; those that the recipe names unless given.

    Returns:
        A summary: `run`, `round`, `shards` (those with quarantined rows), `asked`, `answered`, `quarantined` (of the
        whole run, now), `seconds`, and `skipped` (whether there was nothing to do).

    Raises:
        StorageError: there is no run, or it has no responses yet.
        RecipeError: an override asks for more than the run has.
        RecipeChangedError: an override, or a source that has changed, would make other responses.
        RunStoppedError: `generate.max_hours` were over.
        TooManyQuarantinedError: still more are quarantined than `generate.max_quarantined`.
        RunFailedError: no cell of the run has an answer.
    """
    begin = time.monotonic()
    stored = load_run(directory)
    if "ledger" not in stored:
        what = "has no responses yet" if stored else "is no run: it has no run.json"
        raise StorageError(f"{directory.path()} {what}.", "Name a run directory whose generate stage has begun.")
    recipe = _stored_recipe(stored, overrides, directory)
    fingerprint, ledger = stored["fingerprint"], ledger_from(stored["ledger"])
    before = _num_quarantined(directory, fingerprint)
    round_ = last_round(directory)
    if round_ == 0 or stored["stages"]["retry"]["state"] == "finished":
        round_ += 1
    pending = _pending(directory, fingerprint, round_)
    if pending:
        _ask_again(recipe, directory, stored, ledger, pending, round_, sources)
    reasons = driver.quarantine_reasons(directory, fingerprint)
    quarantined = sum(count for _, count in reasons)
    summary = {
        "run": directory.path(),
        "round": round_,
        "shards": len(pending),
        "asked": before,
        "answered": before - quarantined,
        "quarantined": quarantined,
        "seconds": round(time.monotonic() - begin, 3),
        "skipped": not pending,
    }
    if last_round(directory) == round_:
        update_run(directory, {"stages": {"retry": {"state": "finished", **summary}}})
    driver.judge(recipe, directory, ledger.num_cells, ledger.num_cells - quarantined, reasons)
    return summary


def _stored_recipe(stored: Mapping[str, Any], overrides: Sequence[str], directory: RunDirectory) -> Recipe:
    for override in overrides:
        key = override.partition("=")[0].strip()
        if change_of(key) == "extension":
            raise RecipeError(
                f"--set {override}: a retry asks what {directory.path()} has in quarantine, and nothing new.",
                "Extend the run with `polypersona generate`.",
            )
        if key in ("name", "out"):
            raise RecipeError(
                f"--set {override}: the run is {directory.path()}.", "Name another run to retry that one."
            )
    return build_recipe(apply_overrides(stored["recipe"], overrides), directory.path("run.json"))


def _pending(directory: RunDirectory, fingerprint: str, round_: int) -> list[int]:
    """Return the shards with quarantined rows that are not of this round yet."""
    return [
        number
        for number in current_quarantine(directory, fingerprint)
        if read_committed_footer(directory, number, fingerprint).round < round_
    ]


def _ask_again(
    recipe: Recipe,
    directory: RunDirectory,
    stored: Mapping[str, Any],
    ledger: Ledger,
    pending: Sequence[int],
    round_: int,
    sources: Sources | None,
) -> None:
    refuse_unsupported(recipe)
    if sources is None:
        population, weights = load_population(recipe, directory), locate_weights(recipe, directory)
    else:
        population, weights = sources(recipe)
    weights = choose_adapters(recipe, weights, population, stored["frozen"])
    _refuse_other_content(recipe, directory, stored, population, weights)
    driver.refuse_smaller(ledger, pending, population, directory)
    update_run(directory, {"stages": {"retry": {"state": "begun", "round": round_}}})
    delete_leftovers(directory, stored["fingerprint"])
    session = driver.open_session(
        recipe, directory, population, weights, stored["frozen"], stored["fingerprint"], ledger, pending, round_
    )
    with Progress("retry", len(pending), "shards") as progress:
        is_over = driver.answer(session, progress, lambda stats: 1, stops_early=False)
    left = len(_pending(directory, stored["fingerprint"], round_))
    if not is_over:
        update_run(directory, {"stages": {"retry": {"state": "stopped", "round": round_}}})
        raise driver.stopped(recipe, "retry", len(pending) - left, len(pending), directory)
    if left:
        raise RunFailedError(
            f"{left} of {len(pending)} shards of {directory.path()} were not asked again.",
            "Run the same command again.",
        )


def _refuse_other_content(
    recipe: Recipe,
    directory: RunDirectory,
    stored: Mapping[str, Any],
    population: Population,
    weights: Weights,
) -> None:
    parts = content_parts(recipe, stored["frozen"], weights, population)
    refuse_changes(directory.path(), stored, parts, recipe, population)


def _num_quarantined(directory: RunDirectory, fingerprint: str) -> int:
    return sum(count for _, count in driver.quarantine_reasons(directory, fingerprint))
