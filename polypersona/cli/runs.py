"""The commands that look at a run: `verify` and `status`. Both only read."""

from __future__ import annotations

import json

import click

from polypersona.cli.options import json_option
from polypersona.errors import RunFailedError
from polypersona.progress import render_rate, render_seconds
from polypersona.storage import RunDirectory
from polypersona.verify import Status, read_status, verify


@click.command("verify")
@click.argument("run", metavar="RUN")
@json_option
def verify_command(run: str, as_json: bool) -> None:
    """Prove from a run's files that each planned assignment is there exactly once; exit 1 if not.

    \b
    Example: polypersona verify runs/demo
    """
    audit = verify(RunDirectory.at(run))
    if as_json:
        click.echo(json.dumps(audit.as_json(), indent=2, ensure_ascii=False))
    else:
        for line in (*audit.problems, *(f"note: {note}" for note in audit.notes)):
            click.echo(line)
    if not audit.is_clean:
        raise RunFailedError(
            f"{audit.run} is not clean: {len(audit.problems)} problem(s).",
            "Run the recipe again for what is not committed; delete a damaged shard file first.",
        )
    if not as_json:
        skipped = f" ({audit.not_asked:,} of them not asked)" if audit.not_asked else ""
        click.echo(
            f"clean: {audit.planned:,} planned = {audit.committed:,} committed{skipped} + "
            f"{audit.quarantined:,} quarantined, "
            f"in {audit.shards:,} shards of {audit.fingerprint}"
        )


@click.command("status")
@click.argument("run", metavar="RUN")
@json_option
def status_command(run: str, as_json: bool) -> None:
    """Show how far a run is, what failed, and the time left at the current rate.

    \b
    Example: polypersona status runs/demo --json
    """
    status = read_status(RunDirectory.at(run))
    click.echo(json.dumps(status.as_json(), indent=2, ensure_ascii=False) if as_json else _render(status))


def _render(status: Status) -> str:
    lines = [
        f"{status.run}: {status.responses_done:,} of {status.responses:,} responses, "
        f"{status.shards_done:,} of {status.shards:,} shards",
        f"quarantined: {status.quarantined:,}",
        *(f"  {count:,} × {reason}" for reason, count in status.reasons.items()),
    ]
    if status.shards_done == status.shards:
        return "\n".join([*lines, "finished"])
    if status.rate is None or status.left_s is None:
        return "\n".join([*lines, "not running, or too early to tell a rate"])
    rate = render_rate(status.rate, "responses")
    return "\n".join([*lines, f"{rate}, {render_seconds(status.left_s)} left at that rate"])
