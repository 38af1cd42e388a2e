"""What travels with a job, and what is refused before anything is sent."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from polypersona.errors import RecipeError
from polypersona.scheduling.inventory import WORKER_ENVIRONMENT
from polypersona.submission import RESERVED_VARIABLES, build_submission

ROOT = Path(__file__).resolve().parent.parent
OUT = "out=/shared/runs"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """Return a function that writes a recipe into an empty working directory and builds its submission."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    scratches = iter(range(100))

    def build(text="name: mine\npanel: {size: 20}\n", *overrides, name="mine.yaml", **options):
        (here / name).write_text(text)
        scratch = tmp_path / f"scratch{next(scratches)}"
        scratch.mkdir()
        return build_submission(name, scratch, overrides=overrides, **options)

    return build


def test_the_command_runs_the_recipe_with_its_stages_and_overrides(recipe):
    built = recipe("name: mine\npanel: {size: 20}\n", OUT, "generate.stop=['a b']", first="generate", last="report")
    assert shlex.split(built.entrypoint) == [
        "python", "-m", "polypersona", "run", "mine.yaml", "--from", "generate", "--to", "report",
        "--set", OUT, "--set", "generate.stop=['a b']",
    ]  # fmt: skip
    assert [path.name for path in built.working_dir.iterdir()] == ["mine.yaml"]
    assert built.metadata["run"] == "/shared/runs/mine"


def test_what_travels_runs_without_a_checkout_or_an_installation(recipe):
    built = recipe("name: mine\npanel: {size: 20}\n", OUT)
    code = (
        f"import sys; sys.path[:] = [{str(built.package.parent)!r}] + [p for p in sys.path if p != {str(ROOT)!r}]\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'editable' not in getattr(f, '__module__', '')]\n"
        f"import polypersona; assert polypersona.__file__.startswith({str(built.package)!r}), polypersona.__file__\n"
        "from polypersona.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, "plan", "jobs/smoke.yaml", "--json"],
        cwd=built.working_dir, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert '"items": 20' in done.stdout


def test_no_compiled_file_travels_so_that_the_same_code_is_sent_once(recipe):
    assert not list(recipe("name: mine\npanel: {size: 20}\n", OUT).package.rglob("*.pyc"))


@pytest.mark.parametrize("out", ["runs", "./runs", "../runs"])
def test_a_relative_out_is_refused(recipe, out):
    with pytest.raises(RecipeError, match=r"a relative path leads there") as caught:
        recipe("name: mine\npanel: {size: 20}\n", f"out={out}")
    assert "--set out=" in caught.value.hint


def test_a_recipe_without_out_is_refused_for_its_default_is_relative(recipe):
    with pytest.raises(RecipeError, match="out is 'runs'"):
        recipe()


@pytest.mark.parametrize("out", ["/shared/runs", "s3://bucket/runs", "file:///shared/runs"])
def test_an_absolute_out_is_taken(recipe, out):
    assert f"out={out}" in recipe("name: mine\npanel: {size: 20}\n", f"out={out}").entrypoint


def test_an_out_that_only_the_nodes_know_is_left_to_the_job(recipe):
    built = recipe("name: mine\nout: ${SHARED_RUNS}\npanel: {size: 20}\n")
    assert built.notes == (
        "The nodes must have SHARED_RUNS set, which the recipe names; it is not sent.",
        "The recipe is checked by the job, for what it names is not set here.",
    )


def test_a_variable_that_is_sent_decides_whether_out_is_relative(recipe, monkeypatch):
    monkeypatch.setenv("WHERE", "runs")
    with pytest.raises(RecipeError, match="a relative path"):
        recipe("name: mine\nout: ${WHERE}\npanel: {size: 20}\n", variables=["WHERE"])
    monkeypatch.setenv("WHERE", "/shared")
    built = recipe("name: mine\nout: ${WHERE}\npanel: {size: 20}\n", variables=["WHERE"])
    assert (dict(built.variables), built.notes) == ({"WHERE": "/shared"}, ())


def test_a_mistake_in_the_recipe_is_found_before_anything_is_sent(recipe):
    with pytest.raises(RecipeError, match="Did you mean 'size'"):
        recipe("name: mine\npanel: {siz: 20}\n", OUT)


def test_a_recipe_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"There is no recipe 'nowhere\.yaml'"):
        build_submission("nowhere.yaml", tmp_path)


def test_a_shipped_recipe_travels_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "scratch").mkdir()
    monkeypatch.chdir(tmp_path)
    built = build_submission("jobs/smoke.yaml", tmp_path / "scratch", overrides=[OUT])
    assert [path.name for path in built.working_dir.iterdir()] == ["smoke.yaml"]
    whole = build_submission("jobs/smoke.yaml", _empty(tmp_path / "more"), overrides=[OUT], working_dir=tmp_path)
    assert " run jobs/smoke.yaml " in whole.entrypoint


PANEL = "name: mine\nout: /shared\npanel: {source: people.csv, mapping: {age: age}}\n"


def test_a_file_of_the_users_that_would_stay_behind_is_refused(recipe):
    Path("people.csv").write_text("age\n30\n")
    with pytest.raises(RecipeError, match=r"panel\.source is 'people\.csv'") as caught:
        recipe(PANEL)
    assert "--working-dir ." in caught.value.hint


def test_a_folder_that_holds_recipe_and_files_travels_whole(recipe):
    Path("people.csv").write_text("age\n30\n")
    built = recipe(PANEL, working_dir=Path())
    assert built.working_dir == Path()
    assert " run mine.yaml " in built.entrypoint


def test_a_file_outside_the_folder_that_travels_is_refused(recipe):
    Path("sub").mkdir()
    Path("people.csv").write_text("age\n30\n")
    with pytest.raises(RecipeError, match="which is not in sub"):
        recipe(PANEL, name="sub/mine.yaml", working_dir=Path("sub"))


def test_a_recipe_outside_the_folder_that_travels_is_refused(recipe):
    Path("sub").mkdir()
    with pytest.raises(RecipeError, match="is not in sub"):
        recipe("name: mine\npanel: {size: 20}\n", OUT, working_dir=Path("sub"))


def test_a_folder_that_is_not_there_is_refused(recipe):
    with pytest.raises(RecipeError, match="there is no such folder"):
        recipe("name: mine\npanel: {size: 20}\n", OUT, working_dir=Path("nowhere"))


@pytest.mark.parametrize(
    "url", ["s3://AKIA:verysecret@bucket/runs", "s3://bucket/runs?secret_key=verysecret", "https://verysecret@host/x"]
)
def test_a_secret_in_a_url_does_not_travel(recipe, url):
    for text, overrides in ((f"name: mine\nout: {url}\npanel: {{size: 20}}\n", ()), (None, (f"out={url}",))):
        with pytest.raises(RecipeError, match="holds a secret") as caught:
            recipe(text or "name: mine\npanel: {size: 20}\n", *overrides)
        assert "verysecret" not in str(caught.value)


def test_the_names_of_variables_in_a_url_are_no_secret(recipe):
    text = "name: mine\nout: 's3://${S3_KEY}:${S3_SECRET}@bucket/runs?secret_token=${MORE}'\npanel: {size: 20}\n"
    assert len(recipe(text).notes) == 4


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OPENAI_API_KEY", "sk-1"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("HF_TOKEN", "x"),
        ("DB_PASSWORD", "x"),
        ("PLACE", "s3://a:b@c"),
    ],
)
def test_a_variable_that_looks_like_a_secret_does_not_travel(recipe, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(RecipeError, match="looks like a secret") as caught:
        recipe("name: mine\npanel: {size: 20}\n", OUT, variables=[name])
    assert value not in caught.value.message.replace(name, "")


def test_a_variable_that_is_not_set_or_is_the_runs_own_is_refused(recipe):
    with pytest.raises(RecipeError, match="is not set here"):
        recipe("name: mine\npanel: {size: 20}\n", OUT, variables=["NOWHERE_SET"])
    assert frozenset(WORKER_ENVIRONMENT) == RESERVED_VARIABLES
    with pytest.raises(RecipeError, match="every run sets OMP_NUM_THREADS"):
        recipe("name: mine\npanel: {size: 20}\n", OUT, variables=["OMP_NUM_THREADS"])


def _empty(folder):
    folder.mkdir()
    return folder
