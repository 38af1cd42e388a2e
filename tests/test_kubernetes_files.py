"""The Kubernetes files in cluster/ have only documented fields, and fit each other, the image and the program."""

import json
import os
import shlex
import subprocess

import click
import pytest
from cluster_files import CLUSTER, document, documents, groups, submitter
from kuberay_schema import KINDS, check
from pydantic import ValidationError

from polypersona.cli.main import cli
from polypersona.scheduling.machines import ACCELERATOR, MARKET, SPOT

FILES = ["raycluster.yaml", "rayjob.yaml", "submit-job.yaml"]


@pytest.mark.parametrize("name", FILES)
def test_a_kubernetes_file_has_only_documented_fields(name):
    for one in documents(name):
        check(one)


def test_the_schema_refuses_a_misspelt_field_anywhere():
    assert {one["kind"] for name in FILES for one in documents(name)} == set(KINDS)
    for name in FILES:
        for one in documents(name):
            for path in _mappings(one):
                spoilt = json.loads(json.dumps(one))
                target = spoilt
                for key in path:
                    target = target[key]
                target["misspelt!"] = {}
                with pytest.raises(ValidationError):
                    check(spoilt)


def _mappings(value, path=()):
    """Yield the path of every mapping in a document."""
    if isinstance(value, dict):
        yield path
        for key, inner in value.items():
            yield from _mappings(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _mappings(inner, (*path, index))


def test_the_rayjobs_cluster_is_the_raycluster():
    assert (
        document("rayjob.yaml", "RayJob")["spec"]["rayClusterSpec"] == document("raycluster.yaml", "RayCluster")["spec"]
    )


def test_every_node_has_the_shared_storage_and_the_keys():
    claim = document("raycluster.yaml", "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for group in groups():
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        (mount,) = container["volumeMounts"]
        (volume,) = [one for one in pod["volumes"] if one["name"] == mount["name"]]
        assert volume["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert container["envFrom"] == [{"secretRef": {"name": "polypersona-keys", "optional": True}}]
        for out in (document("rayjob.yaml", "RayJob")["spec"]["entrypoint"], *submitter()["command"]):
            if "out=" in out:
                assert f"out={mount['mountPath']}" in out


def test_the_head_answers_nothing_and_shows_its_dashboard_to_the_cluster():
    head, *_ = groups()
    assert head["rayStartParams"] == {"num-cpus": "0", "dashboard-host": "0.0.0.0"}
    assert head["labels"][MARKET] == "on-demand"


def test_a_pod_of_a_spot_group_goes_to_a_spot_node_and_one_with_a_gpu_to_a_gpu():
    for group in groups():
        pod = group["template"]["spec"]
        assert (pod.get("nodeSelector", {}).get("cloud.google.com/gke-spot") == "true") == (
            group["labels"][MARKET] == SPOT
        )
        limits = pod["containers"][0]["resources"]["limits"]
        kind = group["labels"].get(ACCELERATOR)
        assert (limits.get("nvidia.com/gpu", 0) > 0) == (kind is not None)
        if kind:
            assert pod["nodeSelector"]["cloud.google.com/gke-accelerator"] == f"nvidia-{kind.lower()}"
            assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    kinds = [(group["labels"].get(ACCELERATOR), group["labels"][MARKET]) for group in groups()[1:]]
    assert {("L4", "spot"), ("L4", "on-demand")} <= set(kinds)


def test_the_rayjob_is_a_command_without_shell_for_kuberay_hands_it_to_one():
    entrypoint = document("rayjob.yaml", "RayJob")["spec"]["entrypoint"]
    words = shlex.split(entrypoint)
    assert entrypoint == " ".join(words)
    assert not set("|&;<>(){}$`\\\"'*?\n") & set(entrypoint)
    assert words[0] == "polypersona-rayjob"
    run = cli.get_command(click.Context(cli), "run")
    run.make_context("run", words[1:])
    assert " /usr/local/bin/polypersona-rayjob" in (CLUSTER / "Dockerfile").read_text()


@pytest.mark.parametrize(("code", "ends"), [(0, 0), (1, 1), (2, 2), (3, 0), (4, 0), (137, 137)])
def test_the_rayjobs_program_ends_well_for_what_must_not_be_begun_again(tmp_path, code, ends):
    (tmp_path / "polypersona").write_text(f'#!/bin/sh\necho "$@"\nexit {code}\n')
    (tmp_path / "polypersona").chmod(0o755)
    done = subprocess.run(
        [str(CLUSTER / "rayjob-entrypoint.sh"), "jobs/demo.yaml", "--set", "out=/runs", "--set", "name=a b"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (ends, "run jobs/demo.yaml --set out=/runs --set name=a b\n")
    assert (f"exit code {code}" in done.stderr) == (code in (3, 4))


def test_the_submitting_job_is_not_begun_again_after_a_mistake_or_a_finished_run():
    ignored, failed = document("submit-job.yaml", "Job")["spec"]["podFailurePolicy"]["rules"]
    assert (ignored["action"], ignored["onPodConditions"][0]["type"]) == ("Ignore", "DisruptionTarget")
    assert (failed["action"], failed["onExitCodes"]["values"]) == ("FailJob", [2, 3, 4])
    assert failed["onExitCodes"]["containerName"] == submitter()["name"]
    # Kubernetes demands it where there is a podFailurePolicy.
    assert document("submit-job.yaml", "Job")["spec"]["template"]["spec"]["restartPolicy"] == "Never"


def test_the_submitting_job_calls_the_cluster_by_its_service_and_token():
    name = document("raycluster.yaml", "RayCluster")["metadata"]["name"]
    program, command, *words = submitter()["command"]
    assert (program, command) == ("polypersona", "submit")
    context = cli.get_command(click.Context(cli), "submit").make_context("submit", words)
    assert context.params["address"] == f"http://{name}-head-svc:8265"
    (token,) = submitter()["env"]
    assert token == {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": name, "key": "auth_token"}}}
