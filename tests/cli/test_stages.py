"""pytest tests/cli/test_stages.py"""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from polypersona.cli.main import COMMANDS, cli
from polypersona.cli.stages import plan_command, run_command
from polypersona.errors import TooManyQuarantinedError

RECIPE = """# polypersona run smoke.yaml
name: smoke
out: OUT
panel: {source: sampled, size: 12}
instrument: {items: [healthcare.likert.01, healthcare.open.01]}
generate: {engine: fake, shard_personas: 4}
"""


def write_recipe(folder, text=RECIPE):
    path = folder / "smoke.yaml"
    path.write_text(text.replace("OUT", str(folder / "runs")))
    return str(path)


def polypersona(*arguments, **environment):
    code = "from polypersona.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={**os.environ, "RAY_ADDRESS": "local", **environment},
    )


def test_the_plan_gives_the_work_and_a_reason_for_each_decision(tmp_path):
    done = CliRunner().invoke(plan_command, [write_recipe(tmp_path)])
    assert done.exit_code == 0, done.exception
    assert "12 personas × 2 items, in 3 shards" in done.output
    for what in ("training workers", "actors", "precision", "quantization", "slots", "threads"):
        assert what in done.output
    assert not (tmp_path / "runs").exists()


def test_the_plan_is_json_for_programs_and_takes_an_inventory(tmp_path):
    gpu = {"name": "A100", "memory_bytes": 80 << 30, "capability": 8.0}
    node = {"cpus": 16, "memory_bytes": 64 << 30, "gpus": [gpu, gpu]}
    (tmp_path / "cluster.json").write_text(json.dumps({"nodes": [node]}))
    arguments = [write_recipe(tmp_path), "--json", "--inventory", str(tmp_path / "cluster.json")]
    plan = json.loads(CliRunner().invoke(plan_command, [*arguments, "--set", "generate.draws=3"]).output)
    assert plan["work"]["cells"] == 72
    assert plan["train"]["workers"]["value"] == 2
    assert plan["inventory"]["source"].endswith("cluster.json")


def test_stages_in_the_wrong_order_are_refused(tmp_path):
    done = CliRunner().invoke(run_command, [write_recipe(tmp_path), "--from", "report", "--to", "dataset"])
    assert done.exit_code == 2
    assert "comes after" in done.output


@pytest.mark.parametrize("command", ["run", "dataset", "finetune", "generate", "evaluate", "report", "plan"])
def test_each_command_shows_an_example(command):
    assert command in COMMANDS
    done = CliRunner().invoke(cli, [command, "--help"])
    assert done.exit_code == 0
    assert f"Example: polypersona {command} jobs/" in done.output


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: [", "not valid YAML"),
        (RECIPE + "generat: {}\n", "Did you mean 'generate'"),
        (RECIPE.replace("size: 12", "size: 0"), "panel.size"),
        (RECIPE.replace("source: sampled", "source: nowhere.jsonl"), "nowhere.jsonl"),
        (RECIPE.replace("healthcare.open.01", "healthcare.open.99"), "healthcare.open.99"),
        (RECIPE.replace("engine: fake", "engine: vllm, temperature: 3"), "not part of the vllm engine"),
        (RECIPE.replace("engine: fake", "engine: packed") + "model: {base: no/such/folder/here}\n", "no/such/folder"),
    ],
)
def test_a_users_mistake_is_one_sentence_and_exit_2(tmp_path, text, says):
    done = polypersona("run", write_recipe(tmp_path, text), "--from", "generate")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
@pytest.mark.ray
def test_a_run_prints_the_plan_first_and_its_place_last(tmp_path):
    path = write_recipe(tmp_path)
    done = polypersona("run", path, "--from", "finetune", "--to", "generate", "--set", "generate.draws=2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "Plan"
    assert any(line.startswith("finetune: not needed") for line in lines)
    assert any(line.startswith("generate: run ") and "committed 48" in line for line in lines)
    assert lines[-1] == str(tmp_path / "runs" / "smoke")
    assert [line for line in done.stderr.splitlines() if not line.startswith("generate: ")] == []
    again = polypersona("generate", path, "--set", "generate.draws=2")
    assert "nothing to do" in again.stdout
    assert polypersona("verify", lines[-1]).returncode == 0
    assert "finished" in polypersona("status", lines[-1]).stdout


@pytest.mark.ray
def test_too_many_quarantined_end_with_exit_3_and_still_print_the_place(local_ray, tmp_path):
    panel = tmp_path / "panel.jsonl"
    rows = [{"id": f"p{place}", "fake_failure": "error" if place < 3 else "refusal"} for place in range(12)]
    panel.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = write_recipe(tmp_path, RECIPE.replace("source: sampled", f"source: {panel}"))
    done = CliRunner(catch_exceptions=True).invoke(run_command, [path, "--from", "generate", "--to", "generate"])
    assert isinstance(done.exception, TooManyQuarantinedError)
    assert done.exception.exit_code == 3
    assert "6 of 24 cells (25.00 %) are quarantined" in done.exception.message
    assert done.stdout.splitlines()[-1] == str(tmp_path / "runs" / "smoke")
