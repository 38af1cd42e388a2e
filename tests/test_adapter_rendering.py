"""An adapter remembers how its training prompts showed the options; another way to ask is told, never silent."""

import json

import pytest
from toy_models import make_toy_model

from polypersona import generate
from polypersona.chatml import RENDERER_VERSION
from polypersona.cli.stages import _echo_warnings
from polypersona.engines.settings import locate_weights
from polypersona.events import read_events
from polypersona.models.adapters import rendering_warning
from polypersona.models.loading import load_base_model
from polypersona.models.lora import attach_lora
from polypersona.recipe import build_recipe
from polypersona.report import stage as report
from polypersona.storage import RunDirectory, load_run, update_run
from polypersona.teacher import locate_teacher
from polypersona.training.folder import training_rendering

LABELS = {"show_options": "labels", "renderer_version": RENDERER_VERSION}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make_toy_model("llama", tmp_path_factory.mktemp("base") / "toy")


@pytest.fixture
def adapter(base, tmp_path):
    folder = tmp_path / "tuned"
    attach_lora(load_base_model(str(base), dtype="fp32"), rank=4, alpha=8, dropout=0.0).save_pretrained(folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    (folder / "training.json").write_text(json.dumps({"rendering": LABELS}))
    return folder


def recipe(folder, base, adapter, show="letters", **sections):
    return build_recipe(
        {
            "name": "run",
            "out": str(folder),
            "panel": {"source": "sampled", "size": 2},
            "instrument": {"items": ["finance.likert.01"], "show_options": show},
            "model": {"base": str(base), "adapter": str(adapter), "dtype": "fp32", "quantization": "none"},
            "generate": {"engine": "packed", "actors": 1, "max_new_tokens": 4, "slots": 4},
            **sections,
        }
    )


@pytest.mark.parametrize(
    ("rendering", "show", "words"),
    [
        (LABELS, "labels", []),
        (LABELS, "letters", ["tuned", "show_options: labels;", "show_options: letters"]),
        (LABELS, "none", ["show_options: labels;", "show_options: none"]),
        ({**LABELS, "show_options": "letters"}, "letters", []),
        ({**LABELS, "show_options": "letters"}, "labels", ["show_options: letters;", "show_options: labels"]),
        ({**LABELS, "renderer_version": 0}, "labels", ["renderer version 0", f"version {RENDERER_VERSION}"]),
        (None, "labels", ["does not say", "show_options: labels"]),
    ],
)
def test_a_warning_names_both_ways_to_show_the_options(tmp_path, rendering, show, words):
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "training.json").write_text(json.dumps({} if rendering is None else {"rendering": rendering}))
    said = rendering_warning(folder, show)
    assert bool(said) == bool(words)
    assert all(word in said for word in words)


def test_an_adapter_without_training_json_does_not_say(tmp_path):
    assert "does not say" in rendering_warning(tmp_path, "labels")


def test_weights_carry_the_warning_and_the_teachers_too(tmp_path, base, adapter):
    run = RunDirectory.at(tmp_path / "run")
    assert locate_weights(recipe(tmp_path, base, adapter, show="labels"), run).warnings == ()
    own = recipe(tmp_path, base, adapter, dataset={"teacher": "packed"})
    [warning] = locate_weights(own, run).warnings
    assert "which it has not learnt" in warning
    assert locate_teacher(own, run)[2] == (warning,)
    assert locate_weights(recipe(tmp_path, base, "none"), run).warnings == ()


def test_an_adapter_records_what_its_dataset_was_rendered_with(tmp_path, base):
    run = RunDirectory.at(tmp_path / "run")
    own = recipe(tmp_path, base, "run", show="letters")
    assert training_rendering(own, run) == {**LABELS, "show_options": "letters"}
    content = {"instrument.show_options": "labels", "renderer_version": 1}
    update_run(run, {"stages": {"dataset": {"content": content}}})
    assert training_rendering(own, run) == {"show_options": "labels", "renderer_version": 1}


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_with_another_rendering_says_so_everywhere(local_ray, tmp_path, base, adapter, capsys):
    own = recipe(tmp_path, base, adapter)
    summary = generate.run(own)
    [warning] = summary["warnings"]
    directory = RunDirectory.at(own.location)
    assert load_run(directory)["stages"]["generate"]["warnings"] == [warning]
    assert [event["text"] for event in read_events(directory, "driver") if event["event"] == "warning"] == [warning]
    assert generate.run(own)["warnings"] == [warning]
    capsys.readouterr()  # a slow machine shows progress
    _echo_warnings(summary)
    assert capsys.readouterr().err == f"Warning: {warning}\n"
    report.run(own)
    assert warning in directory.read_json("report.json")["warnings"]
