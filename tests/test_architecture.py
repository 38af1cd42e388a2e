"""The shape of the package: imports point strictly down, Ray and torch stay where they belong, files stay small."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "polypersona"

# Lowest first. A name is a module at the top of the package, or a folder, whose modules may import each other.
LAYERS = (
    ("local_files", "location"),
    ("polypersona", "errors", "object_store", "progress"),
    ("control_tokens", "extras", "parquet", "recipe_text", "records", "resources", "storage"),
    ("recipe_sections", "scopes"),
    ("recipe", "chatml", "coding", "fingerprint", "events", "gates", "telemetry"),
    ("bisection", "composition", "dataset_card", "interview", "lease", "ledger", "leaks", "panel", "readback",
     "record_files", "roster", "scheduling", "shardfile", "simulator", "splits"),
    ("attempts", "decoding", "domain_files", "history", "models", "pool_watch", "record_fields", "rounds",
     "shard_audit", "shared_path", "survey", "tickets"),
    ("questionbank", "engines", "metrics", "status", "verify"),
    ("examples", "response_table", "routing"),
    ("merging", "population", "records_loader", "references", "respondents", "submission", "teacher", "training",
     "units"),
    ("adapter_choice", "annotation", "answering", "content", "dataset_options", "scoring"),
    ("measurement", "shard_store", "training_overlap"),
    ("shard_actor",),
    ("shard_pool",),
    ("driver", "evaluation", "worker_group"),
    ("planned_training", "side_by_side"),
    ("sweep",),
    ("benchmark", "compare", "dataset", "finetune", "generate", "evaluate", "retry"),
    ("bias", "report"),
    ("cli",),
    ("__main__",),
)  # fmt: skip
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# The command line may, too: it is the program that stages run in.
MAY_IMPORT_RAY = {
    "driver", "evaluation.pool", "evaluation.paired", "evaluation.parts", "finetune", "pool_watch",
    "scheduling.inventory", "shard_pool", "shared_path", "side_by_side",
    "telemetry", "worker_group",
}  # fmt: skip
MAY_IMPORT_TORCH = (
    "decoding", "engines", "models", "training", "worker_group",
    "metrics.bertscore", "metrics.encoder", "metrics.encoder_files", "metrics.mean_pooling", "metrics.token_matching",
)  # fmt: skip
TORCH_FAMILY = {"torch", "transformers", "peft", "accelerate", "bitsandbytes", "safetensors", "bert_score"}
MAX_LINES = 400


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[1:] if parts[-1] != "__init__" else parts[1:-1]) or "polypersona"


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imported(path):
    """Yield the dotted name of everything a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner.removeprefix("polypersona.") in SOURCES else node.module


def own_imports(path):
    for name in imported(path):
        if name == "polypersona" or name.startswith("polypersona."):
            yield name.removeprefix("polypersona.")


def unit(module):
    return module.split(".")[0]


GRAPH = {module: sorted(set(own_imports(path))) for module, path in SOURCES.items()}
LIBRARIES = {module: {name.split(".")[0] for name in imported(path)} for module, path in SOURCES.items()}


def test_every_module_has_its_layer():
    unknown = sorted({unit(module) for module in SOURCES} - set(RANK))
    assert not unknown, f"Add {', '.join(unknown)} to LAYERS in {Path(__file__).name}, above all that they import."


def test_every_layer_has_its_modules():
    gone = sorted(set(RANK) - {unit(module) for module in SOURCES})
    assert not gone, f"Remove {', '.join(gone)} from LAYERS in {Path(__file__).name}."


def test_imports_point_strictly_down():
    wrong = [
        f"{module} imports {other}, which is not below it"
        for module, others in GRAPH.items()
        for other in others
        if unit(other) != unit(module) and RANK.get(unit(other), -1) >= RANK.get(unit(module), len(LAYERS))
    ]
    assert not wrong, "\n".join(wrong)


def test_no_modules_import_each_other_in_a_circle_not_even_inside_functions():
    done: set[str] = set()

    def visit(module: str, trail: list[str]) -> None:
        assert module not in trail, " → ".join([*trail[trail.index(module) :], module])
        if module in done:
            return
        for other in GRAPH.get(module, ()):
            if other != module:
                visit(other, [*trail, module])
        done.add(module)

    for module in GRAPH:
        visit(module, [])


def test_ray_is_imported_by_the_stages_the_inventory_and_the_command_line_only():
    found = {module for module, names in LIBRARIES.items() if "ray" in names and unit(module) != "cli"}
    assert found == MAY_IMPORT_RAY


def test_torch_is_imported_by_engines_models_training_and_the_neural_metrics_only():
    wrong = [
        f"{module} imports {', '.join(sorted(names & TORCH_FAMILY))}"
        for module, names in LIBRARIES.items()
        if names & TORCH_FAMILY and not any(f"{module}.".startswith(f"{allowed}.") for allowed in MAY_IMPORT_TORCH)
    ]
    assert not wrong, "\n".join(wrong)


# Importing these reaches Ray or torch by design; everything else must stay light, through any chain of imports.
HEAVY_IMPORTS = {
    "ray": {
        "benchmark", "bias.battery", "cli.bias", "cli.job_server", "cli.plan", "driver", "evaluate",
        "evaluation.card_pairs", "evaluation.paired", "evaluation.paired_texts", "evaluation.pool", "evaluation.parts",
        "evaluation.personas", "finetune", "generate",
        "pool_watch", "retry",
        "scheduling.inventory", "shard_pool", "shared_path", "side_by_side", "sweep", "worker_group",
    },
    "torch": {
        "decoding.attention", "decoding.batching", "decoding.cache", "decoding.decoder", "decoding.fused",
        "decoding.native", "decoding.option_tree", "decoding.plain", "decoding.run", "decoding.sampling",
        "decoding.trial", "engines.calibration", "engines.cells", "engines.interviews", "engines.packed",
        "engines.vllm", "metrics.encoder", "metrics.mean_pooling", "metrics.token_matching", "models.adapters",
        "models.interview_attention", "models.loading", "models.lora", "models.pretraining", "models.quantization",
        "training.causal_attention", "training.checkpoints", "training.choice_loss", "training.encoding",
        "training.folder", "training.gradients", "training.loop", "training.optimizing", "training.trainable",
        "training.validation",
        "finetune", "side_by_side", "sweep", "worker_group",
    },
}  # fmt: skip
PROBE = """
import importlib, json, sys
loaded = {}
for name in sys.argv[2:]:
    importlib.import_module(name)
    found = [library for library in ("ray", "torch", "transformers") if library in sys.modules]
    if found:
        print(json.dumps([name, found]))
        break
else:
    print(json.dumps(["", []]))
"""


def probe(modules):
    names = [name if name == "polypersona" else f"polypersona.{name}" for name in modules]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, "-", *names], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_module_loads_neither_ray_nor_torch_unless_that_is_its_business():
    heavy = set().union(*HEAVY_IMPORTS.values())
    assert heavy <= set(SOURCES)
    light = [module for module in SOURCES if module not in heavy]
    assert {"cli.main", "recipe", "storage", "questionbank", "panel.sources", "simulator.grammar", "verify"} <= set(
        light
    )
    assert probe(light) == ["", []]


@pytest.mark.parametrize("folder", ["polypersona", "tests", "jobs"])
def test_no_file_is_long_and_none_is_unfinished(folder):
    marks = ("TO" + "DO", "FIX" + "ME", "X" + "XX")
    problems = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MAX_LINES:
            problems.append(f"{path.relative_to(ROOT)} has {lines} lines")
        problems += [f"{path.relative_to(ROOT)} says {mark}" for mark in marks if mark in text]
    assert not problems, "\n".join(problems)


def test_every_module_says_what_it_is_and_has_a_name_that_means_something():
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "handler"}
    problems = []
    for module, path in SOURCES.items():
        text = path.read_text(encoding="utf-8")
        if text.strip() and not ast.get_docstring(ast.parse(text)):
            problems.append(f"{module} has no docstring")
        if vague & set(module.split(".")):
            problems.append(f"{module} is named by what it is not")
        if len(module.split(".")) > 2:
            problems.append(f"{module} is deeper than two")
    assert not problems, "\n".join(problems)
