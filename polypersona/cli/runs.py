"""The commands that look at a run: `verify` and `status`. Both only read."""

from __future__ import annotations

import json
import sys
import time

import click

from polypersona.cli.options import json_option
from polypersona.errors import RunFailedError
from polypersona.progress import render_rate, render_seconds
from polypersona.status import Pool, Rate, Status, read_status
from polypersona.storage import RunDirectory
from polypersona.verify import verify

SHOWN_REASONS = 10
SHOWN_FILES = 5
_ENDS = {"": "", "finished": "", "stopped": " (after generate.max_hours)"}


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
@click.option("--watch", is_flag=True, help="Show it again and again until the run is finished or you press Ctrl-C.")
@click.option(
    "--every",
    "every_s",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How often --watch looks.",
)
@json_option
def status_command(run: str, watch: bool, every_s: float, as_json: bool) -> None:
    """Show how far a run is, what failed, and the time left at the current rate.

    With --watch, a terminal shows the newest status; a pipe gets one line, or with --json one object, each time.

    \b
    Example: polypersona status runs/demo --watch
    """
    directory = RunDirectory.at(run)
    if not watch:
        status = read_status(directory)
        click.echo(json.dumps(status.as_json(), indent=2, ensure_ascii=False) if as_json else _render(status))
        return
    try:
        while True:
            status = read_status(directory)
            _show_again(status, as_json=as_json)
            if status.state == "finished":
                return
            time.sleep(every_s)
    except KeyboardInterrupt:
        return


def _show_again(status: Status, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(status.as_json(), ensure_ascii=False))
    elif sys.stdout.isatty():
        click.clear()
        click.echo(_render(status))
    else:
        click.echo(_render_line(status))
    sys.stdout.flush()


def _render(status: Status) -> str:
    lines = [_render_line(status)]
    if status.holder:
        age_s = status.holder["heartbeat_age_s"]
        heartbeat = "" if age_s is None else f", heartbeat {render_seconds(age_s)} ago"
        lines.append(f"held by {status.holder['who']} since {status.holder['since']}{heartbeat}")
    if status.rate and (tokens := _render_tokens(status.rate)):
        lines.append(tokens)
    lines += [_render_pool(pool) for pool in status.pools]
    if status.failures:
        lines.append(f"attempts that failed: {status.failures:,}")
    if status.reasons:
        lines.append("quarantined:")
        shown = list(status.reasons.items())
        lines += [f"  {count:,} × {reason}" for reason, count in shown[:SHOWN_REASONS]]
        if rest := sum(count for _, count in shown[SHOWN_REASONS:]):
            lines.append(f"  {rest:,} × {len(shown) - SHOWN_REASONS:,} further reasons (--json has them)")
    if status.damaged:
        lines.append(
            f"missing or damaged although committed: {len(status.damaged):,} files; `polypersona verify` says more"
        )
        lines += [f"  {name}" for name in status.damaged[:SHOWN_FILES]]
    return "\n".join(lines)


def _render_line(status: Status) -> str:
    share = f" ({100 * status.responses_done // status.responses} %)" if status.responses else ""
    end = _ENDS.get(status.ended, f" ({status.ended})") if status.state == "stopped" else ""
    parts = [
        f"{status.run}: {status.state}{end}",
        f"{status.responses_done:,} of {status.responses:,} responses{share}",
        f"{status.shards_done:,} of {status.shards:,} shards",
        f"{status.quarantined:,} quarantined" if status.quarantined else "",
        render_rate(status.rate.responses, "responses") if status.rate else "",
        _render_left(status),
    ]
    return ", ".join(part for part in parts if part)


def _render_left(status: Status) -> str:
    if status.state != "running":
        return ""
    return "time left not known yet" if status.left_s is None else f"{render_seconds(status.left_s)} left"


def _render_tokens(rate: Rate) -> str:
    counts = {"new": rate.new_tokens, "prompt": rate.prompt_tokens}
    parts = [render_rate(count, f"{name} tokens") for name, count in counts.items() if count is not None]
    return " and ".join(parts)


def _render_pool(pool: Pool) -> str:
    of = f" {pool.name}" if pool.name else ""
    if pool.actors is None:
        return f"actors{of}: {pool.asked:,} asked for ({pool.reason})"
    count = f"{pool.actors:,}" if pool.actors == pool.asked else f"{pool.actors:,} of {pool.asked:,} asked for"
    return f"actors{of}: {count} ({pool.reason})"
