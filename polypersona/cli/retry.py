"""The command `retry`: asks again what a run has in quarantine."""

from __future__ import annotations

import json

import click

from polypersona.cli.options import json_option
from polypersona.lease import hold
from polypersona.storage import RunDirectory


@click.command("retry")
@click.argument("run", metavar="RUN")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a value of the run's recipe that makes no other responses, such as generate.actors=2.",
)
@json_option
def retry_command(run: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Ask again what a run has in quarantine, by the run's own recipe; what is answered joins its responses.

    Cells keep their seeds, so this mends what a lost device, a server or a limit of memory has spoiled. Run evaluate
    and report again afterwards. A bias battery is a run of its own, RUN/bias: run bias again after its retry.

    \b
    Example: polypersona retry runs/demo --set generate.actors=1
    """
    from polypersona import retry
    from polypersona.bias import battery

    directory = RunDirectory.at(run)
    if directory.exists("run.json"):
        directory.refuse_unusable()
        owner = battery.owner_of(directory)
        with hold(owner or directory):  # bias holds the run that it is a part of
            if owner is None:
                summary = retry.run(directory, overrides)
            else:
                summary = battery.ask_again(directory, owner, overrides)
    else:
        summary = retry.run(directory, overrides)  # says what is not there, and makes no folder
    if as_json:
        click.echo(json.dumps({"synthetic": True, **summary}, indent=2, ensure_ascii=False))
    elif summary["skipped"]:
        click.echo(f"retry: nothing to do, {summary['quarantined']:,} quarantined in {summary['run']}")
    else:
        click.echo(
            f"retry: round {summary['round']}, {summary['answered']:,} of {summary['asked']:,} quarantined cells "
            f"answered, {summary['quarantined']:,} still quarantined in {summary['run']}"
        )
