import pytest

from benchmarks.distribution import NUM_ITEMS, SHARD_PERSONAS, distribution_10m


@pytest.mark.slow
def test_the_distribution_benchmark_compares_every_answer_it_built(tmp_path):
    figures = distribution_10m(tmp_path, rows=2 * SHARD_PERSONAS * NUM_ITEMS)
    assert figures["distribution_10m_answers"] == 2 * SHARD_PERSONAS * NUM_ITEMS
    assert figures["distribution_10m_intervals"] > 9 * 9 * NUM_ITEMS * 0.9
    assert figures["distribution_10m_peak_mb"] < 1500
