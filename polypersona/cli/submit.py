"""`polypersona submit`: the same run as a job on a Ray cluster."""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path
from typing import Any

import click

from polypersona.cli.options import recipe_options
from polypersona.errors import ClusterError
from polypersona.location import mask_secrets
from polypersona.recipe import STAGES
from polypersona.submission import Submission, build_submission


def _read_mapping(_context: click.Context, _option: click.Parameter, value: str | None) -> dict[str, Any] | None:
    """Return the JSON object that an option holds."""
    if value is None:
        return None
    try:
        content = json.loads(value)
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise click.BadParameter(f'{value!r} is no JSON object such as {{"name": "value"}}.')
    return content


@click.command("submit")
@recipe_options
@click.option(
    "--address", envvar="RAY_API_SERVER_ADDRESS", required=True, metavar="URL", help="The cluster's dashboard."
)
@click.option("--from", "first", type=click.Choice(STAGES), default=STAGES[0], help="Begin with this stage.")
@click.option("--to", "last", type=click.Choice(STAGES), default=STAGES[-1], help="End with this stage.")
@click.option("--working-dir", type=click.Path(path_type=Path), help="A folder that travels with the job.")
@click.option("--env", "variables", multiple=True, metavar="NAME", help="Send this environment variable; no secrets.")
@click.option("--submission-id", metavar="ID", help="The job's id; one that is there already is followed again.")
@click.option("--no-wait", is_flag=True, help="Print the job's id and return at once.")
@click.option("--entrypoint-num-cpus", type=float, help="CPUs to reserve for the driver.")
@click.option("--entrypoint-memory", type=int, metavar="BYTES", help="Memory to reserve for the driver.")
@click.option(
    "--entrypoint-resources", metavar="JSON", callback=_read_mapping, help="Resources to reserve for the driver."
)
@click.option(
    "--entrypoint-label-selector", metavar="JSON", callback=_read_mapping, help="Labels of the driver's node."
)
def submit_command(
    recipe_path: str,
    overrides: tuple[str, ...],
    address: str,
    first: str,
    last: str,
    working_dir: Path | None,
    variables: tuple[str, ...],
    submission_id: str | None,
    no_wait: bool,
    **resources: Any,
) -> None:
    """Run a recipe as a job on a Ray cluster, follow its log and end with its exit code.

    This package and the recipe travel with the job; the nodes need the package's libraries. Secrets do not travel: set
    them where the nodes start. An interrupt detaches and leaves the job running; the same command follows it again.

    \b
    Example: polypersona submit jobs/smoke.yaml --address http://127.0.0.1:8265 --from generate --set out=/shared/runs
    """
    if STAGES.index(first) > STAGES.index(last):
        raise click.UsageError(f"--from {first} comes after --to {last}; the stages are {', '.join(STAGES)}.")
    with tempfile.TemporaryDirectory() as scratch:
        submission = build_submission(
            recipe_path,
            Path(scratch),
            overrides=overrides,
            first=first,
            last=last,
            working_dir=working_dir,
            variables=variables,
        )
        for note in submission.notes:
            click.echo(f"Note: {note}", err=True)
        job, server = _send(submission, address, submission_id, resources)
    if no_wait:
        click.echo(job)
        return
    try:
        code = server.follow(job, lambda text: click.echo(text, nl=False))
    except KeyboardInterrupt:
        click.echo(f"\nDetached: job {job} goes on.\n{_ways(server, job)}", err=True)
        code = 130
    click.get_current_context().exit(code)


def _send(submission: Submission, address: str, job: str | None, resources: dict[str, Any]) -> tuple[str, Any]:
    """Submit the job, or find the one that is there; return its id and the server."""
    from polypersona.cli.job_server import JobServer

    server = JobServer(address)
    found = None if job is None else server.find(job)
    if job is not None and found is not None:
        command, has_ended = found
        if command != submission.entrypoint:
            raise ClusterError(
                f"Job {job} is there already and runs something else: {mask_secrets(command)}.", "Give another id."
            )
        ending = "has ended already, nothing is started; give another id to run it again"
        click.echo(f"Job {job} {ending if has_ended else 'is running already, and is followed'}.", err=True)
        return job, server
    if job is None and (running := server.find_running(submission)) is not None:
        click.echo(f"Job {running} does this already, and is followed.", err=True)
        return running, server
    job = server.submit(submission, job, {name: value for name, value in resources.items() if value is not None})
    click.echo(f"Job {job} is submitted to {mask_secrets(server.address)}.\n{_ways(server, job)}", err=True)
    return job, server


def _ways(server: Any, job: str) -> str:
    """Return how to follow a job and how to stop it, in commands that can be copied."""
    prefix = "RAY_AUTH_MODE=token " if server.sends_token else ""
    where = shlex.join(["--address", mask_secrets(server.address), job])
    return (
        f"follow: {prefix}ray job logs --follow {where}\n"
        f"stop:   {prefix}ray job stop {where}\n"
        "The same command again follows it too, and ends with its exit code."
    )
