"""The `polypersona` command. A command is options, a recipe, one call of a stage and one line of output.

Commands live in modules that are imported only when they are called, so that `--help` loads neither Ray nor torch.
"""

from __future__ import annotations

import importlib
import io
import sys
import threading

import click

from polypersona import __version__
from polypersona.cli.failure import show_failure, show_thread_failure
from polypersona.errors import PolypersonaError, nearest
from polypersona.location import mask_secrets

# command → (module, one-line help). The help stands here so that listing commands imports nothing.
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("polypersona.cli.stages:run_command", "Run all stages of a recipe, or some: --from dataset --to generate."),
    "dataset": ("polypersona.cli.stages:dataset_command", "Build the examples an adapter is tuned on."),
    "finetune": ("polypersona.cli.stages:finetune_command", "Fine-tune a LoRA adapter with Ray Train."),
    "generate": ("polypersona.cli.stages:generate_command", "Answer every cell of the run."),
    "evaluate": ("polypersona.cli.stages:evaluate_command", "Score the responses beside their floors."),
    "report": ("polypersona.cli.stages:report_command", "Write the HTML report."),
    "submit": ("polypersona.cli.submit:submit_command", "Run a recipe as a job on a Ray cluster; follow its log."),
    "plan": ("polypersona.cli.stages:plan_command", "Say what would run where; start nothing."),
    "bench": ("polypersona.cli.bench:bench_command", "Measure how fast this machine answers a recipe, for plan."),
    "verify": ("polypersona.cli.runs:verify_command", "Prove that each assignment is there exactly once."),
    "retry": ("polypersona.cli.retry:retry_command", "Ask again what a run has in quarantine."),
    "status": ("polypersona.cli.runs:status_command", "Show how far a run is."),
    "compare": (
        "polypersona.cli.compare:compare_command",
        "Compare a run with coded human data, by item and subgroup.",
    ),
    "bias": ("polypersona.cli.bias:bias_command", "Measure what wording, order and scale do to the answers."),
    "difference": ("polypersona.cli.difference:difference_command", "Compare two runs on the cells both answered."),
    "annotate": ("polypersona.cli.annotate:annotate_command", "Let people rate a blind sample on a local page."),
    "bank": ("polypersona.cli.bank:bank", "Check, list and show the questionbank."),
    "personas": ("polypersona.cli.personas:personas", "Sample, import and describe panels."),
    "models": ("polypersona.cli.info:models_command", "List the supported base models."),
    "doctor": ("polypersona.cli.info:doctor_command", "Say what this environment can do."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order of the work."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        if cmd_name not in COMMANDS:
            raise click.UsageError(f"There is no command {cmd_name!r}.{nearest(cmd_name, COMMANDS)}", ctx)
        module, attribute = COMMANDS[cmd_name][0].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="polypersona")
def cli() -> None:
    """Mass-produce synthetic survey responses, and judge whether to trust them.

    \b
    Example: polypersona run jobs/demo.yaml

    \b
    Exit codes:
      0    finished, with no more quarantined than generate.max_quarantined
      1    an unexpected failure, or `verify` found something
      2    a mistake in what was asked for; nothing was changed
      3    finished, with more quarantined than allowed; `retry` asks again
      4    stopped after generate.max_hours; the same command goes on
      130  interrupted; the same command goes on
    """


@cli.result_callback()
def _forget_result(_result: object) -> None:
    """What a command returns is no exit code; the one that it gives to `ctx.exit` is."""


def main() -> None:
    """Run the command line; a named failure is one sentence on stderr and its exit code, without a traceback."""
    threading.excepthook = show_thread_failure
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        click.echo("Stopped. What was committed is kept; run the same command again to go on.", err=True)
        sys.exit(130)
    except click.ClickException as error:
        shown = io.StringIO()
        error.show(shown)
        click.echo(mask_secrets(shown.getvalue()), err=True, nl=False)
        sys.exit(error.exit_code)
    except PolypersonaError as error:
        click.echo(f"Error: {error.message}", err=True)
        if error.hint:
            click.echo(error.hint, err=True)
        sys.exit(error.exit_code)
    except Exception as error:  # noqa: BLE001 whatever it is, its traceback must not show a secret
        show_failure(error)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)
