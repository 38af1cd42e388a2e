"""Nothing that others send is run: pickles wherever a path is taken, code beside a model, adapters that import."""

from __future__ import annotations

import ast
import io
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from canary import Canary
from toy_models import make_toy_model

from polypersona.errors import DatasetError, ModelError, PersonaError, StorageError
from polypersona.metrics.base import Pair
from polypersona.metrics.bertscore import build_bertscores
from polypersona.metrics.card_similarity import build_comparison
from polypersona.models.adapters import check_adapter
from polypersona.models.loading import load_base_model, load_model, load_tokenizer, num_parameters
from polypersona.models.location import model_hash
from polypersona.models.lora import attach_lora
from polypersona.panel.sources import read_personas
from polypersona.parquet import open_parquet, read_parquet
from polypersona.questionbank import load_bank
from polypersona.recipe import load_recipe
from polypersona.recipe_sections import FinetuneSettings, PanelRecipe
from polypersona.record_files import read_records
from polypersona.records import Example, Item
from polypersona.shardfile import read_shard
from polypersona.storage import RunDirectory, load_run

PACKAGE = Path(__file__).resolve().parents[2] / "polypersona"
CLASSES = (
    "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
    "class C(LlamaConfig):\n    model_type = 'foreign'\n"
    "class M(LlamaForCausalLM):\n    config_class = C\n"
    "class T(PreTrainedTokenizerFast): pass\n"
)


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def with_bin_beside_a_decoy(model: Path, canary: Canary) -> None:
    (model / "model.safetensors").rename(model / "decoy.safetensors")
    torch.save({"x": canary}, model / "pytorch_model.bin")


def with_bin_alone(model: Path, canary: Canary) -> None:
    (model / "model.safetensors").unlink()
    torch.save({"x": canary}, model / "pytorch_model.bin")
    torch.save({"x": canary}, model / "model.pt")


def with_a_list_that_names_a_bin(model: Path, canary: Canary) -> None:
    (model / "model.safetensors").rename(model / "decoy.safetensors")
    torch.save({"x": canary}, model / "weights.bin")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "weights.bin"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def with_a_list_that_leaves_the_folder(model: Path, canary: Canary) -> None:
    (model / "model.safetensors").rename(model / "decoy.safetensors")
    torch.save({"x": canary}, model.parent / "weights.safetensors")
    index = {"metadata": {}, "weight_map": {"model.embed_tokens.weight": "../weights.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


def with_a_config_that_names_a_bin(model: Path, canary: Canary) -> None:
    torch.save({"x": canary}, model / "weights.bin")
    change(model / "config.json", transformers_weights="weights.bin")


def with_a_pickle_by_another_name(model: Path, canary: Canary) -> None:
    (model / "model.safetensors").write_bytes(canary.pickled())


def with_a_torch_archive_by_another_name(model: Path, canary: Canary) -> None:
    torch.save({"x": canary}, model / "model.safetensors")


def with_an_adapter_in_it(model: Path, canary: Canary) -> None:
    attach_lora(load_base_model(str(model), dtype="fp32"), rank=2, alpha=4, dropout=0.0).save_pretrained(model)
    (model / "adapter_model.safetensors").unlink()
    torch.save({"x": canary}, model / "adapter_model.bin")


@pytest.mark.parametrize(
    "damage",
    [
        with_bin_alone, with_bin_beside_a_decoy, with_a_list_that_names_a_bin, with_a_list_that_leaves_the_folder,
        with_a_config_that_names_a_bin, with_a_pickle_by_another_name, with_a_torch_archive_by_another_name,
        with_an_adapter_in_it,
    ],
)  # fmt: skip
def test_no_pickle_in_a_model_folder_is_loaded(
    damage: Callable[[Path, Canary], None], model: Path, canary: Canary
) -> None:
    damage(model, canary)
    with pytest.raises(ModelError) as caught:
        load_model(str(model), dtype="fp32")
    assert "\n" not in str(caught.value)
    assert not canary.has_sung


def test_the_canary_sings_where_it_is_unpickled(canary: Canary) -> None:
    pickle.loads(canary.pickled())
    assert canary.has_sung


def test_a_base_model_that_brings_an_adapter_is_refused(model: Path) -> None:
    attach_lora(load_base_model(str(model), dtype="fp32"), rank=2, alpha=4, dropout=0.0).save_pretrained(model)
    with pytest.raises(ModelError, match="an adapter would be put on it unasked"):
        load_base_model(str(model), dtype="fp32")
    with pytest.raises(ModelError, match="an adapter would be put on it unasked"):
        model_hash(str(model))


def with_code(model: Path, canary: Canary, model_type: str) -> None:
    (model / "foreign.py").write_text(canary.code(CLASSES))
    names = {"AutoConfig": "foreign.C", "AutoModelForCausalLM": "foreign.M", "AutoTokenizer": [None, "foreign.T"]}
    change(model / "config.json", auto_map=names, model_type=model_type)
    change(model / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "foreign.T"]}, tokenizer_class="T")


@pytest.mark.parametrize("model_type", ["foreign", "llama"])
def test_code_beside_a_model_is_not_run_unless_it_is_asked_for(
    model_type: str, model: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))  # nobody is asked, either
    with_code(model, canary, model_type)
    loaders: list[Callable[[], Any]] = [
        lambda: load_tokenizer(str(model)),
        lambda: load_base_model(str(model), dtype="fp32"),
        lambda: num_parameters(str(model)),
        lambda: model_hash(str(model)),
    ]
    for load in loaders:
        try:
            load()
        except ModelError as error:
            assert "trust_remote_code: true" in error.hint or "cannot be loaded" in error.message  # noqa: PT017
        assert not canary.has_sung


def test_code_beside_a_model_is_run_where_the_recipe_says_so(model: Path, canary: Canary, tmp_path: Path) -> None:
    with_code(model, canary, "foreign")
    load_base_model(str(model), dtype="fp32", trust_remote_code=True)
    assert canary.has_sung
    (tmp_path / "r.yaml").write_text("name: x\npanel: {size: 2}\nmodel: {base: tiny}\n")
    assert load_recipe(tmp_path / "r.yaml").model.trust_remote_code is False


def test_every_loader_of_a_model_says_whether_foreign_code_may_run() -> None:
    silent = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            loader = node.func.attr in ("from_pretrained", "from_config") and ast.unparse(node.func.value).startswith(
                "Auto"
            )
            if loader and not any(word.arg in ("trust_remote_code", None) for word in node.keywords):
                silent.append(f"{path.name}:{node.lineno}")
    assert not silent


def test_only_one_module_reads_parquet_and_none_unpickles_or_evaluates_files() -> None:
    wrong = []
    readers = {"read_table", "ParquetFile", "ParquetDataset", "read_schema", "read_metadata", "from_parquet"}
    unsafe = {"unsafe_load", "full_load", "UnsafeLoader", "FullLoader", "joblib", "allow_pickle", "read_pickle"}
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        safe = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call) and loads_weights_only(node)}
        for node in ast.walk(tree):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
            whole = ast.unparse(node) if isinstance(node, ast.Attribute) else name
            is_reader = name in readers and path.name != "parquet.py"
            if is_reader or name in unsafe or whole in ("eval", "exec") or name == "__import__":
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {whole}")
            if whole == "torch.load" and id(node) not in safe:
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {whole}")
            if whole == "pickle.loads" and path.name not in ("shard_pool.py", "parts.py"):
                wrong.append(f"{path.relative_to(PACKAGE)}:{node.lineno} {whole}")  # what our own actors send
    assert not wrong


def loads_weights_only(call: ast.Call) -> bool:
    return any(keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True" for keyword in call.keywords)


@pytest.fixture
def adapter(toy_base: Path, tmp_path: Path) -> Path:
    base = load_base_model(str(toy_base), dtype="fp32")
    attach_lora(base, rank=2, alpha=4, dropout=0.0).save_pretrained(tmp_path / "adapter")
    change(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(toy_base))
    return tmp_path / "adapter"


def test_no_pickle_in_an_adapter_is_loaded(adapter: Path, toy_base: Path, canary: Canary) -> None:
    torch.save({"x": canary}, adapter / "adapter_model.bin")
    load_model(str(toy_base), dtype="fp32", adapter=str(adapter))
    torch.save({"x": canary}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="cannot be attached"):
        load_model(str(toy_base), dtype="fp32", adapter=str(adapter))
    (adapter / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="pickled weights are not loaded"):
        load_model(str(toy_base), dtype="fp32", adapter=str(adapter))
    assert not canary.has_sung


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2, "prompt_tuning_init": "TEXT", "inference_mode": False,
          "prompt_tuning_init_text": "x", "tokenizer_kwargs": {"trust_remote_code": True}}, "only LORA is loaded"),
        ({"peft_type": "XLORA", "adapters": {"a": "/nowhere"}}, "only LORA is loaded"),
        ({"peft_type": None}, "only LORA is loaded"),
        ({"megatron_config": {"x": 1}, "megatron_core": "foreign_module"}, "cannot be attached"),
    ],
)  # fmt: skip
def test_an_adapter_that_would_load_more_than_weights_is_refused(
    values: dict[str, Any], message: str, adapter: Path, toy_base: Path, model: Path, canary: Canary,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (model / "foreign_module.py").write_text(canary.code())
    monkeypatch.syspath_prepend(str(model))
    with_code(model, canary, "foreign")
    change(adapter / "adapter_config.json", tokenizer_name_or_path=str(model), **values)
    with pytest.raises(ModelError, match=message):
        load_model(str(toy_base), dtype="fp32", adapter=str(adapter))
    assert not canary.has_sung


def test_an_adapter_of_another_base_is_refused_by_hash_name_and_shape(
    adapter: Path, toy_base: Path, tmp_path: Path
) -> None:
    other = make_toy_model("llama", tmp_path / "elsewhere" / toy_base.name, seed=3)
    (adapter / "training.json").write_text(json.dumps({"base": {"name": "x", "hash": model_hash(str(toy_base))}}))
    with pytest.raises(ModelError, match="its weights or tokenizer differ"):
        check_adapter(str(adapter), str(other))
    (adapter / "training.json").write_text(json.dumps({"base": "not a mapping"}))
    change(adapter / "adapter_config.json", base_model_name_or_path="someone/else")
    with pytest.raises(ModelError, match="the names differ"):
        check_adapter(str(adapter), str(toy_base))
    wider = make_toy_model("llama", tmp_path / "wider" / toy_base.name, hidden=128)
    change(adapter / "adapter_config.json", base_model_name_or_path=str(wider))
    with pytest.raises(ModelError, match="cannot be attached"):
        load_model(str(wider), dtype="fp32", adapter=str(adapter))


def test_no_pickle_in_a_checkpoint_is_loaded_by_a_resumed_training(
    toy_base: Path, tmp_path: Path, canary: Canary
) -> None:
    from polypersona.training.job import TrainingJob
    from polypersona.training.loop import Listeners, Place, train

    question = ({"role": "user", "content": "How satisfied?"}, {"role": "assistant", "content": "Yes."})
    examples = [Example(str(number), question, {}) for number in range(42)]
    small = FinetuneSettings(
        epochs=1, learning_rate=5e-3, rank=2, alpha=4, dropout=0.0, batch_size=2, accumulation=1, max_length=64
    )
    job = TrainingJob(str(toy_base), str(toy_base), small, seed=7)
    saved: list[Path] = []

    def keep(metrics: dict[str, Any], folder: Path | None) -> None:
        saved.append(Path(shutil.copytree(str(folder), tmp_path / f"kept-{metrics['step']}")))

    train(job, examples, [], Place(tmp_path / "work"), Listeners(on_checkpoint=keep))
    assert sorted(path.suffix for path in saved[0].iterdir() if path.suffix not in (".json", ".safetensors")) == [".pt"]
    torch.save({"x": canary}, saved[0] / "optimizer.pt")
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        train(job, examples, [], Place(tmp_path / "after"), Listeners(), saved[0])
    assert not canary.has_sung


def parquet_with_objects(path: Path, canary: Canary, *, nested: bool = False) -> Path:
    """A file whose column Ray Data would unpickle."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    kind = ArrowPythonObjectType()
    column: Any = pa.ExtensionArray.from_storage(kind, pa.array([canary.pickled()], pa.large_binary()))
    if nested:
        column = pa.StructArray.from_arrays([column], names=["inner"])
    pq.write_table(pa.table({"persona_id": ["p1"], "age": column}), path)
    return path


@pytest.mark.parametrize("nested", [False, True])
def test_no_column_of_pickled_objects_is_read_anywhere(nested: bool, tmp_path: Path, canary: Canary) -> None:
    path = parquet_with_objects(tmp_path / "file.parquet", canary, nested=nested)
    readers: list[tuple[type[Exception], Callable[[], Any]]] = [
        (pa.ArrowInvalid, lambda: read_parquet(path)),
        (pa.ArrowInvalid, lambda: open_parquet(path)),
        (PersonaError, lambda: read_personas(PanelRecipe(source=str(path)))),
        (DatasetError, lambda: list(read_records(path))),
        (StorageError, lambda: read_shard(path.read_bytes(), "it")),
    ]
    for kind, read in readers:
        with pytest.raises(kind, match=r"extension type 'ray\.data\.arrow_pickled_object'"):
            read()
    assert not canary.has_sung
    if not nested:  # what happens without that refusal
        pq.read_table(path).column("age").to_pylist()
        assert canary.has_sung


def test_records_that_name_files_or_addresses_open_none(tmp_path: Path) -> None:
    from datasets import Features, Image, Value

    features = Features({"question": Value("string"), "picture": Image()})
    picture = pa.array(
        [{"bytes": None, "path": "http://127.0.0.1:9/x.png"}], features.arrow_schema.field("picture").type
    )
    described = {"huggingface": json.dumps({"info": {"features": features.to_dict()}})}
    table = pa.table({"question": ["x"], "picture": picture}).replace_schema_metadata(described)
    pq.write_table(table, tmp_path / "records.parquet")
    with pytest.raises(DatasetError, match="the column 'picture' is of the type Image"):
        list(read_records(tmp_path / "records.parquet"))


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet", ".xlsx", ".sav", ".pkl", ".yaml", ".pt"])
def test_a_pickle_in_the_place_of_any_other_file_is_refused(suffix: str, tmp_path: Path, canary: Canary) -> None:
    path = tmp_path / f"file{suffix}"
    path.write_bytes(canary.pickled())
    run = RunDirectory.at(tmp_path / "run")
    run.write("run.json", canary.pickled())
    for read in (
        lambda: read_personas(PanelRecipe(source=str(path))),
        lambda: list(read_records(path)),
        lambda: load_bank(path),
        lambda: load_recipe(path),
        lambda: load_run(run),
        lambda: build_bertscores(str(path)),
        lambda: build_comparison(str(path)),
    ):
        try:
            read()
        except Exception as error:  # noqa: BLE001 whatever it is, it must be one of ours
            assert hasattr(error, "hint"), f"{type(error).__name__}: {error}"  # noqa: PT017
    assert not canary.has_sung


BUILDERS: tuple[Callable[[str], Any], ...] = (build_bertscores, build_comparison)


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path / "encoder"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abc", "##a", "##b"]))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=10, **sizes)).save_pretrained(folder)
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    return folder


def test_an_encoder_with_pickled_weights_is_refused(encoder: Path, canary: Canary) -> None:
    item = Item("a", "b", "c", "open")
    assert build_bertscores(str(encoder))[0].measure([Pair(item, "ab", reference="ac")])[0, 0] == 1
    comparison = build_comparison(str(encoder))
    assert -1 <= comparison.load().match([("ab", "ac")])[0, 0] <= 1
    (encoder / "model.safetensors").unlink()
    torch.save({"x": canary}, encoder / "pytorch_model.bin")
    for build in BUILDERS:
        with pytest.raises(ModelError, match="pickled weights are not loaded"):
            build(str(encoder))
    with pytest.raises(ModelError, match="cannot be loaded"):
        comparison.load()
    assert not canary.has_sung


def test_code_beside_an_encoder_is_not_run_whatever_stands_on_stdin(
    encoder: Path, canary: Canary, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    (encoder / "foreign.py").write_text(
        canary.code(
            "from transformers import BertConfig, BertModel\nclass C(BertConfig): pass\nclass M(BertModel): pass\n"
        )
    )
    change(
        encoder / "config.json", auto_map={"AutoConfig": "foreign.C", "AutoModel": "foreign.M"}, model_type="foreign"
    )
    for build in BUILDERS:
        with pytest.raises(ModelError, match="no encoder that can be loaded"):
            build(str(encoder))
    assert not canary.has_sung
