"""The commands that run stages: `run`, one for each stage, and `plan`, which starts nothing."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from polypersona.cli.options import json_option, recipe_options, set_option
from polypersona.errors import TooManyQuarantinedError
from polypersona.lease import hold
from polypersona.location import mask_secrets
from polypersona.recipe import STAGES, Recipe, load_recipe
from polypersona.storage import RunDirectory

_MODULES = {stage: f"polypersona.{stage}" for stage in STAGES} | {"report": "polypersona.report.stage"}


@click.command("run")
@recipe_options
@click.option("--from", "first", type=click.Choice(STAGES), default=STAGES[0], help="Begin with this stage.")
@click.option("--to", "last", type=click.Choice(STAGES), default=STAGES[-1], help="End with this stage.")
def run_command(recipe_path: str, overrides: tuple[str, ...], first: str, last: str) -> None:
    """Run all stages of a recipe, or some; print the plan first and the report's path last.

    What is there already is not done again, so the same command goes on after any interruption.

    \b
    Example: polypersona run jobs/demo.yaml --from dataset --to generate --set generate.draws=3
    """
    if STAGES.index(first) > STAGES.index(last):
        raise click.UsageError(f"--from {first} comes after --to {last}; the stages are {', '.join(STAGES)}.")
    recipe = load_recipe(recipe_path, overrides)
    _refuse_late_mistakes(recipe)
    _echo_plan(recipe, None, as_json=False)
    with hold(RunDirectory.at(recipe.location)):
        location, excess = _run_stages(recipe, STAGES[STAGES.index(first) : STAGES.index(last) + 1])
    click.echo(location)
    if excess is not None:
        raise excess


def _run_stages(recipe: Recipe, stages: Sequence[str]) -> tuple[str, TooManyQuarantinedError | None]:
    """Run stages one after another; return the place to look at, and whether too many cells are quarantined."""
    location, excess = mask_secrets(recipe.location), None
    for stage in stages:
        if stage == "finetune" and not _needs_adapter(recipe):
            click.echo("finetune: not needed, no adapter of this run answers")
            continue
        try:
            result = _run_stage(stage, recipe)
        except TooManyQuarantinedError as error:  # finished: the report says what it rests on, the exit code says no
            excess = error
            continue
        _echo_warnings(result)
        location = result.get("report", location) if stage == "report" else location
        if stage != "report":
            click.echo(_one_line(stage, result))
    return location, excess


def _refuse_late_mistakes(recipe: Recipe) -> None:
    """Raise for what a later stage would refuse only after hours of work."""
    RunDirectory.at(recipe.location).refuse_unusable()
    if recipe.evaluate.metrics:
        catalogue, asked = importlib.import_module("polypersona.metrics.catalogue"), recipe.evaluate
        catalogue.choose_metrics(asked.metrics, asked.bertscore_model, asked.embedding_model)
        catalogue.choose_comparison(asked.metrics, asked.embedding_model)


@click.command("plan")
@recipe_options
@click.option(
    "--inventory", "inventory_path", type=click.Path(path_type=Path), help="A JSON file that describes the nodes."
)
@json_option
def plan_command(recipe_path: str, overrides: tuple[str, ...], inventory_path: Path | None, as_json: bool) -> None:
    """Say what would run where, and why; start nothing.

    \b
    Example: polypersona plan jobs/paper.yaml --inventory cluster.json
    """
    recipe = load_recipe(recipe_path, overrides)
    _refuse_late_mistakes(recipe)
    _echo_plan(recipe, inventory_path, as_json=as_json)


@click.command("dataset")
@recipe_options
def dataset_command(recipe_path: str, overrides: tuple[str, ...]) -> None:
    """Build the examples an adapter is tuned on and scored against.

    \b
    Example: polypersona dataset jobs/demo.yaml
    """
    _run_alone("dataset", recipe_path, overrides)


@click.command("finetune")
@recipe_options
def finetune_command(recipe_path: str, overrides: tuple[str, ...]) -> None:
    """Fine-tune a LoRA adapter on the training split with Ray Train.

    \b
    Example: polypersona finetune jobs/demo.yaml --set finetune.epochs=1
    """
    _run_alone("finetune", recipe_path, overrides)


@click.command("generate")
@recipe_options
def generate_command(recipe_path: str, overrides: tuple[str, ...]) -> None:
    """Answer every cell of the run that is not answered yet.

    \b
    Example: polypersona generate jobs/demo.yaml --set generate.draws=3
    """
    _run_alone("generate", recipe_path, overrides)


@click.command("evaluate")
@recipe_options
def evaluate_command(recipe_path: str, overrides: tuple[str, ...]) -> None:
    """Score the responses, beside their floors.

    \b
    Example: polypersona evaluate jobs/demo.yaml
    """
    _run_alone("evaluate", recipe_path, overrides)


@click.command("report")
@click.argument("place", metavar="RECIPE|RUN")
@click.option("--with", "others", multiple=True, metavar="RUN", help="Another run to set beside it; may be repeated.")
@set_option
def report_command(place: str, others: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Write the HTML report of a recipe's run, or of a run's folder; with --with, of several runs side by side.

    Beside others the report is a file of its own, report-with-NAMES.html, in the first run's folder.

    Example: polypersona report jobs/demo.yaml --with runs/demo-plain --with runs/gss
    """
    stage = importlib.import_module("polypersona.report.stage")
    recipe, directory = stage.find_run(place, overrides)
    directory.refuse_unusable()
    with hold(directory):
        click.echo(stage.run(recipe, others, directory)["report"])


def _run_alone(stage: str, recipe_path: str, overrides: tuple[str, ...]) -> None:
    recipe = load_recipe(recipe_path, overrides)
    directory = RunDirectory.at(recipe.location)
    directory.refuse_unusable()
    with hold(directory):
        result = _run_stage(stage, recipe)
    _echo_warnings(result)
    click.echo(result["report"] if stage == "report" else _one_line(stage, result))


def _run_stage(stage: str, recipe: Recipe) -> dict[str, Any]:
    result: dict[str, Any] = importlib.import_module(_MODULES[stage]).run(recipe)
    return result


def _echo_warnings(result: dict[str, Any]) -> None:
    for warning in result.get("warnings", ()):
        click.echo(f"Warning: {warning}", err=True)


def _needs_adapter(recipe: Recipe) -> bool:
    from polypersona.scheduling.precision import MODEL_ENGINES

    return recipe.generate.engine in MODEL_ENGINES and recipe.model.adapter == "run"


def _one_line(stage: str, result: dict[str, Any]) -> str:
    """Return a stage's figures on one line; what is nested stays in run.json."""
    state = "nothing to do; " if result.get("skipped") else ""
    figures = [
        f"{name.replace('_', ' ')} {value:,}" if isinstance(value, int | float) else f"{name.replace('_', ' ')} {value}"
        for name, value in result.items()
        if isinstance(value, int | float | str) and not isinstance(value, bool)
    ]
    return f"{stage}: {state}{', '.join(figures)}"


def _echo_plan(recipe: Recipe, inventory_path: Path | None, *, as_json: bool) -> None:
    from polypersona.cli.plan import make_plan, render_plan

    outlook = make_plan(recipe, inventory_path)
    if as_json:
        click.echo(json.dumps(outlook.as_json(), indent=2, ensure_ascii=False))
    else:
        click.echo(render_plan(outlook))
