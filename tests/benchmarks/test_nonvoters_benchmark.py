"""The benchmark of held-out respondents, end to end through the command line on a survey of made-up people."""

import json

import pytest
import yaml
from toy_survey import write_toy

from benchmarks.nonvoters import PREDICTORS, measure_split, render, summarise


@pytest.mark.slow
@pytest.mark.ray
def test_one_split_is_tuned_scored_and_compared_with_the_people_who_were_held_out(tmp_path):
    source, codebook = write_toy(tmp_path, num=300)
    recipe = {
        "name": "toy",
        "dataset": {
            "source": str(source),
            "splits": [0.8, 0.0, 0.2],
            "survey": {"codebook": str(codebook), "items": ["q1"], "withheld": ["q2"], "bands": {"age": [18, 40]}},
        },
        "model": {"base": "tiny", "dtype": "fp32"},
        "finetune": {"preset": "tiny", "loss": "options", "epochs": 10, "batch_size": 2, "validation_rows": 0},
        "generate": {"on": "test"},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    split, _ = measure_split(str(tmp_path / "toy.yaml"), 1, tmp_path / "runs")
    figures = summarise([split], ["q1"], ["q2"], 60.0)
    assert all(0 <= figures[f"{name}.alignment"] <= 1 for name in PREDICTORS)
    assert figures["tuned.alignment"] > figures["untuned.alignment"]
    assert figures["tuned.alignment"] > figures["uniform.alignment"] - 0.02
    assert figures["cells"] > 0
    assert "halves of holdout" in render(figures)
    run = tmp_path / "runs" / "tuned-1"
    card = (run / "adapter/README.md").read_text()
    assert all(said in card for said in ("Toy survey", "made up", "CC0-1.0"))
    assert "secret-" not in json.dumps(json.loads((run / "run.json").read_text()))
