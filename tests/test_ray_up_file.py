"""cluster/ray-up.yaml is what this Ray and AWS take, and its machines are what recipes and pools ask for."""

import os
import shlex
import subprocess

import pytest
from cluster_files import ROOT, ray_up_file
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts.scripts import start as ray_start

from polypersona.models.catalogue import BASE_MODELS
from polypersona.recipe import load_recipe
from polypersona.scheduling.machines import ACCELERATOR, MARKET, SPOT, Gpu, Inventory, Node
from polypersona.scheduling.policy import build_plan

GIB = 1 << 30


@pytest.fixture
def ray_up():
    return ray_up_file()


def test_ray_takes_the_ray_up_file(ray_up):
    validate_config(prepare_config(ray_up))


def test_ray_would_refuse_a_field_it_does_not_know(ray_up):
    ray_up["available_node_types"]["l4_spot"]["label"] = {}
    with pytest.raises(Exception, match="label"):
        validate_config(prepare_config(ray_up))


def test_the_start_commands_are_those_of_this_ray(ray_up):
    for command in ray_up["head_start_ray_commands"] + ray_up["worker_start_ray_commands"]:
        words = shlex.split(command)
        _, *rest = words[words.index("ray") :]
        if rest[0] == "start":
            assert "RAY_AUTH_MODE=token" in words
            ray_start.make_context("start", rest[1:])
        else:
            assert rest == ["stop"]


def test_the_environment_file_of_a_node_reaches_what_ray_starts(ray_up, tmp_path):
    (tmp_path / "polypersona.env").write_text("SOME_KEY=some-value\n")
    (tmp_path / "ray").write_text("#!/bin/sh\necho $1 $SOME_KEY $RAY_AUTH_MODE\n")
    (tmp_path / "ray").chmod(0o755)
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}", "RAY_HEAD_IP": "10.0.0.1"}
    for command in (ray_up["head_start_ray_commands"][1], ray_up["worker_start_ray_commands"][1]):
        for expected in ("start some-value token", "start token"):
            done = subprocess.run(["bash", "-ec", command], env=env, capture_output=True, text=True, check=True)
            assert done.stdout.strip() == expected
            (tmp_path / "polypersona.env").unlink(missing_ok=True)
        (tmp_path / "polypersona.env").write_text("SOME_KEY=some-value\n")


@pytest.fixture(scope="module")
def machines():
    """What AWS says of the machines of ray-up.yaml, as moto knows it, through Ray's own provider."""
    from moto import mock_aws

    config = ray_up_file()
    for kind in config["available_node_types"].values():
        kind["resources"] = {}
    with pytest.MonkeyPatch.context() as patch, mock_aws():
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "testing")
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider

        return AWSNodeProvider.fillout_available_node_types_resources(config)["available_node_types"]


def test_a_machine_has_what_its_node_type_says(ray_up, machines):
    for name, kind in ray_up["available_node_types"].items():
        found = machines[name]["resources"]
        if name == ray_up["head_node_type"]:
            assert kind["resources"]["CPU"] == 0, "the head answers nothing"
            continue
        assert {key: found[key] for key in kind["resources"]} == kind["resources"], name
        types = [key.removeprefix("accelerator_type:") for key in found if key.startswith("accelerator_type:")]
        assert types == ([kind["labels"][ACCELERATOR]] if "GPU" in kind["resources"] else []), name


def test_a_spot_machine_is_ordered_as_one_and_preferred(ray_up):
    for kind in ray_up["available_node_types"].values():
        is_ordered = kind["node_config"].get("InstanceMarketOptions") == {"MarketType": "spot"}
        assert is_ordered == (kind["labels"][MARKET] == SPOT)
    by_machine = {}
    for name, kind in ray_up["available_node_types"].items():
        if name != ray_up["head_node_type"]:
            by_machine.setdefault(kind["node_config"]["InstanceType"], {})[kind["labels"][MARKET]] = kind
    pairs = [pair for pair in by_machine.values() if len(pair) == 2]
    assert len(pairs) == 2
    assert all(pair["spot"]["priority"] > pair["on-demand"]["priority"] for pair in pairs)


def test_the_limit_of_machines_leaves_room_for_every_node_type(ray_up):
    assert ray_up["max_workers"] >= max(kind.get("max_workers", 0) for kind in ray_up["available_node_types"].values())


@pytest.mark.parametrize("name", ["paper.yaml", "demo.yaml", "smoke.yaml"])
def test_every_shipped_recipe_fits_the_machines(name, ray_up, machines):
    memories = {"L4": Gpu("NVIDIA L4", 23 * GIB, 8.9), "T4": Gpu("Tesla T4", 15 * GIB, 7.5)}
    for kind, described in ray_up["available_node_types"].items():
        labels, resources = described["labels"], described["resources"]
        if kind == ray_up["head_node_type"] or (name == "paper.yaml" and ACCELERATOR not in labels):
            continue  # nf4 needs a GPU
        gpus = (memories[labels[ACCELERATOR]],) * resources["GPU"] if ACCELERATOR in labels else ()
        node = Node(float(resources["CPU"]), machines[kind]["resources"]["memory"], gpus, labels=labels)
        recipe = load_recipe(ROOT / "jobs" / name, ["out=/shared"])
        known = BASE_MODELS.get(recipe.model.base)
        plan = build_plan(recipe, Inventory((node,)), weight_bytes=int(known.bf16_weights_gb * 1e9) if known else None)
        assert plan.generate.actors.value >= 1, kind
