"""Run: pytest tests/benchmarks/test_evaluation_benchmark.py. Oracles: the libraries, as a plain script calls them."""

import pytest

from benchmarks.evaluation import text_metrics


@pytest.mark.slow
def test_every_number_of_every_pair_equals_the_plain_scripts(tmp_path):
    figures = text_metrics(tmp_path, num_pairs=300, num_plain=300)
    assert figures["pairs_compared_exactly"] == 300
    assert figures["text_metrics_distinct_share"] >= 0.95
    assert figures["peak_mb"] < 1500
