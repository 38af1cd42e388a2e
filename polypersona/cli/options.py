"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def recipe_options(command: Command) -> Command:
    """Add the RECIPE argument and `--set`; the command gets `recipe_path` and `overrides`."""
    return click.argument("recipe_path", metavar="RECIPE", type=click.Path(dir_okay=False))(set_option(command))


def set_option(command: Command) -> Command:
    """Add `--set`; the command gets `overrides`."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a value of the recipe, such as generate.draws=3; may be repeated.",
    )(command)


def json_option(command: Command) -> Command:
    """Add `--json`; the command gets `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")(command)
