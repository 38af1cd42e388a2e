"""Run: pytest tests/benchmarks/test_evaluation_benchmark.py. Oracles: the libraries, as a plain script calls them."""

import pytest
from toy_encoder import write_encoder

from benchmarks.bertscore import bertscore
from benchmarks.evaluation import text_metrics


@pytest.mark.slow
def test_every_number_of_every_pair_equals_the_plain_scripts(tmp_path):
    figures = text_metrics(tmp_path, num_pairs=300, num_plain=300)
    assert figures["pairs_compared_exactly"] == 300
    assert figures["text_metrics_distinct_share"] >= 0.95


@pytest.mark.slow
@pytest.mark.ray
def test_every_bertscore_equals_the_packages_and_no_text_is_encoded_twice(local_ray, tmp_path):
    encoder = write_encoder(tmp_path / "encoder", max_tokens=512, has_limit=True)
    figures = bertscore(tmp_path, encoder, num_pairs=60)
    assert figures["bertscore_pairs"] == 120
    assert figures["bertscore_max_error"] <= 1e-5
    assert figures["bertscore_texts_encoded"] == figures["bertscore_texts"]
