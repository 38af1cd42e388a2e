"""The command line answers at once, helps with an example everywhere, and says failures in one sentence."""

import resource
import subprocess
import sys
from pathlib import Path

import click
import pytest

from polypersona import __version__
from polypersona.cli import main as main_module
from polypersona.cli.main import COMMANDS, cli, main
from polypersona.errors import RecipeError, RunFailedError, StorageError, TooManyQuarantinedError

PROGRAM = Path(sys.executable).with_name("polypersona")
MAX_HELP_S = 0.5


def call(monkeypatch, capsys, *arguments):
    """Run the program in this process; return its exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["polypersona", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    out, err = capsys.readouterr()
    return stop.value.code, out, err


@pytest.fixture
def add_command(monkeypatch):
    """Return a function that adds a command with the given body to the program."""

    def add(body):
        command = click.command("probe")(body)
        monkeypatch.setattr(main_module, "probe", command, raising=False)
        monkeypatch.setitem(COMMANDS, "probe", ("polypersona.cli.main:probe", "A probe."))

    return add


def leaves(command, words):
    """Yield every command below this one with the words that call it."""
    if isinstance(command, click.Group):
        context = click.Context(command, info_name=words[-1])
        for name in command.list_commands(context):
            yield from leaves(command.get_command(context, name), [*words, name])
        if words != ["polypersona"]:
            yield words, command
    else:
        yield words, command


ALL_COMMANDS = [pytest.param(words, command, id=" ".join(words)) for words, command in leaves(cli, ["polypersona"])]


def test_help_takes_less_than_half_a_second_of_a_core():
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, timeout=60)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert done.returncode == 0, done.stderr
        if times[-1] < MAX_HELP_S:
            break
    assert min(times) < MAX_HELP_S, times


def test_help_and_the_list_of_commands_load_neither_ray_nor_torch():
    code = (
        "import sys\nfrom polypersona.cli.main import main\nsys.argv[1:] = ['--help']\ntry:\n    main()\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "heavy = {'ray', 'torch', 'transformers', 'pyarrow', 'pydantic', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name, (_, text) in COMMANDS.items():
        assert f"  {name} " in done.stdout
        assert text.split()[0] in done.stdout


def test_the_version_is_the_packages(monkeypatch, capsys):
    assert call(monkeypatch, capsys, "--version") == (0, f"polypersona, version {__version__}\n", "")


def test_every_command_of_the_program_is_a_click_command():
    for name in COMMANDS:
        assert isinstance(cli.get_command(click.Context(cli), name), click.Command), name


@pytest.mark.parametrize(("words", "command"), ALL_COMMANDS)
def test_every_commands_help_has_an_example_that_its_own_options_take(words, command):
    text = command.get_help(click.Context(command, info_name=words[-1]))
    assert "\\b" not in text
    _, found, rest = text.partition("  Example: ")
    assert found, text
    program, *arguments = rest.split("\n\n")[0].split()
    assert [program, *arguments][: len(words)] == words
    if not isinstance(command, click.Group):
        command.make_context(words[-1], arguments[len(words) - 1 :])


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("generat", "There is no command 'generat'. Did you mean 'generate'?"),
        ("zzz", "There is no command 'zzz'."),
    ],
)
def test_an_unknown_command_names_the_nearest(monkeypatch, capsys, word, sentence):
    code, out, err = call(monkeypatch, capsys, word)
    assert (code, out) == (2, "")
    assert sentence in err
    assert "Traceback" not in err


def test_an_unknown_option_is_a_users_mistake(monkeypatch, capsys):
    code, out, err = call(monkeypatch, capsys, "bank", "list", "--domian", "finance")
    assert (code, out) == (2, "")
    assert "--domian" in err
    assert "--domain" in err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RecipeError("a.yaml: 'sed' is no key of a recipe.", "Did you mean 'seed'?"), 2),
        (StorageError("There is no run.json.", "Run it first."), 2),
        (RunFailedError("No cell was answered.", "Look at events/."), 1),
        (TooManyQuarantinedError("5 of 10 cells are quarantined.", "Run `polypersona status`."), 3),
    ],
)
def test_a_named_failure_is_one_sentence_its_hint_and_its_exit_code(monkeypatch, capsys, add_command, error, code):
    def fail() -> None:
        raise error

    add_command(fail)
    assert call(monkeypatch, capsys, "probe") == (code, "", f"Error: {error.message}\n{error.hint}\n")


def test_a_failure_without_a_hint_ends_with_its_sentence(monkeypatch, capsys, add_command):
    def fail() -> None:
        raise RecipeError("a.yaml is broken.")

    add_command(fail)
    assert call(monkeypatch, capsys, "probe") == (2, "", "Error: a.yaml is broken.\n")


@pytest.mark.parametrize("code", [0, 1, 3, 7])
def test_the_exit_code_a_command_asks_for_is_the_programs(monkeypatch, capsys, add_command, code):
    add_command(lambda: click.get_current_context().exit(code))
    assert call(monkeypatch, capsys, "probe")[0] == code


def test_a_command_that_exits_itself_keeps_its_code(monkeypatch, capsys, add_command):
    add_command(lambda: sys.exit(5))
    assert call(monkeypatch, capsys, "probe")[0] == 5


def test_a_command_that_ends_well_exits_with_zero(monkeypatch, capsys, add_command):
    add_command(lambda: click.echo("done"))
    assert call(monkeypatch, capsys, "probe") == (0, "done\n", "")


def test_what_a_command_returns_is_no_exit_code(monkeypatch, capsys, add_command):
    add_command(lambda: True)
    assert call(monkeypatch, capsys, "probe")[0] == 0


def test_an_interrupt_says_how_to_go_on(monkeypatch, capsys, add_command):
    def interrupt() -> None:
        raise KeyboardInterrupt

    add_command(interrupt)
    code, out, err = call(monkeypatch, capsys, "probe")
    assert (code, out) == (130, "")
    assert err.strip() == "Stopped. What was committed is kept; run the same command again to go on."


def test_a_defect_keeps_its_traceback(monkeypatch, capsys, add_command):
    def fail() -> None:
        raise ZeroDivisionError

    add_command(fail)
    code, out, err = call(monkeypatch, capsys, "probe")
    assert (code, out) == (1, "")
    assert err.startswith("Traceback (most recent call last):\n")
    assert err.endswith("raise ZeroDivisionError\nZeroDivisionError\n")


def test_a_reader_that_closes_the_pipe_early_is_no_failure():
    shell = f"set -o pipefail; {PROGRAM} bank list | head -n 1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
