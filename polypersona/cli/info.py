"""`polypersona models` and `polypersona doctor`: what is supported, what this environment can do. Starts nothing."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from polypersona.cli.options import json_option
from polypersona.decoding.compiler import find_compiler
from polypersona.errors import PolypersonaError
from polypersona.extras import EXTRAS
from polypersona.models.catalogue import BASE_MODELS, BaseModel
from polypersona.models.location import TINY, locate_model
from polypersona.resources import resource
from polypersona.training.artifacts import library_versions

GIB = 1 << 30


@click.command("models")
@json_option
def models_command(as_json: bool) -> None:
    """List the supported base models with licence, LoRA targets and size.

    Other models work by hub id or folder; their LoRA targets are read from their layers.

    \b
    Example: polypersona models --json
    """
    rows = [_model_row(model) for model in BASE_MODELS.values()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['model_id']}")
        click.echo(f"  in Table II: {row['table_name']}; {row['class_name']}; licence {row['license']}{row['access']}")
        click.echo(f"  {row['size']}; LoRA on {', '.join(row['lora_targets'])}; template: {row['template']}")
        if row["note"]:
            click.echo(f"  {row['note']}")


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> None:
    """Say what this environment can do: libraries, processors, memory, optional readers, shipped files.

    Exits with 1 where the default run would not work.

    \b
    Example: polypersona doctor
    """
    report = examine()
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        _print_report(report)
    if report["problems"]:
        sys.exit(1)


def examine() -> dict[str, Any]:
    """Return what this environment has; `problems` lists what keeps the default run from working."""
    from polypersona.scheduling.inventory import local_inventory

    node = local_inventory().nodes[0]
    versions = library_versions()
    problems = [f"{name} is not installed" for name, found in versions.items() if found == "not installed"]
    problems += [problem for name in ("questionbank", "jobs") if (problem := _missing(name))]
    tiny = _tiny_problem()
    return {
        "versions": versions,
        "cpus": node.cpus,
        "memory_gib": round(node.memory_bytes / GIB, 1),
        "cpu_bf16": node.has_cpu_bf16,
        "gpus": [asdict(gpu) for gpu in node.gpus],
        "shared_memory_free_gib": _free_gib("/dev/shm"),  # Ray's object store lives there
        "disk_free_gib": _free_gib("."),
        "compiler": find_compiler(),
        "extras": {extra: importlib.util.find_spec(module) is not None for extra, module in EXTRAS.items()},
        "quantization": "int8 and nf4 on GPUs" if node.gpus else "int8 and nf4 on the CPU: correct, but not faster",
        "problems": problems + ([tiny] if tiny else []),
    }


def _model_row(model: BaseModel) -> dict[str, Any]:
    size = "shipped" if model.model_id == TINY else f"{model.num_parameters / 1e9:.2f} billion parameters"
    if model.num_parameters:
        size += f", {model.bf16_weights_gb:.1f} GB of weights in bf16"
    template = "its own" if model.has_chat_template else "ChatML fallback"
    return {
        **asdict(model),
        "lora_targets": list(model.lora_targets),
        "bf16_weights_gb": round(model.bf16_weights_gb, 1),
        "size": size,
        "access": ", gated on the hub" if model.is_gated else "",
        "template": template + (", chain of thought off" if model.thinks else ""),
    }


def _print_report(report: dict[str, Any]) -> None:
    for name, found in report["versions"].items():
        click.echo(f"{name:<24}{found}")
    bf16 = "with bf16 instructions" if report["cpu_bf16"] else "without bf16 instructions"
    click.echo(f"{'processors':<24}{report['cpus']:g}, {bf16}")
    click.echo(f"{'memory':<24}{report['memory_gib']} GiB; {report['shared_memory_free_gib']} GiB free in /dev/shm")
    click.echo(f"{'disk':<24}{report['disk_free_gib']} GiB free here")
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_bytes'] / GIB:.0f} GiB)" for gpu in report["gpus"]) or "none"
    click.echo(f"{'GPUs':<24}{gpus}")
    click.echo(f"{'quantisation':<24}{report['quantization']}")
    kernels = f"compiled by {report['compiler']}" if report["compiler"] else "none: no C compiler, about half the speed"
    click.echo(f"{'kernels':<24}{kernels}")
    for extra, is_there in report["extras"].items():
        hint = "installed" if is_there else f"not installed: pip install 'polypersona[{extra}]'"
        click.echo(f"{'extra ' + extra:<24}{hint}")
    for problem in report["problems"]:
        click.echo(f"Problem: {problem}.", err=True)
    if not report["problems"]:
        click.echo("Ready: polypersona run jobs/demo.yaml")


def _missing(name: str) -> str:
    try:
        resource(name)
    except PolypersonaError as error:
        return error.message.rstrip(".")
    return ""


def _tiny_problem() -> str:
    try:
        locate_model(TINY)
    except PolypersonaError as error:
        return error.message.rstrip(".")
    return ""


def _free_gib(folder: str) -> float | None:
    return round(shutil.disk_usage(folder).free / GIB, 1) if Path(folder).is_dir() else None
