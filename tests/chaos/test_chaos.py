"""pytest tests/chaos/test_chaos.py -m slow; the whole series is `python tests/chaos/chaos.py --runs 25`."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from chaos.orders import EXACT, FAILING, build_plans

SCRIPT = Path(__file__).with_name("chaos.py")


def test_a_series_is_a_function_of_its_seed():
    assert build_plans(25, 1, with_model=True) == build_plans(25, 1, with_model=True)
    assert build_plans(25, 1, with_model=True) != build_plans(25, 2, with_model=True)
    assert build_plans(25, 1, with_model=True)[:5] == build_plans(5, 1, with_model=True)


@pytest.mark.parametrize("seed", range(5))
def test_a_whole_series_strikes_each_victim_and_each_moment_more_than_twice(seed):
    plans = build_plans(25, seed, with_model=True)
    first = [plan.orders[0] for plan in plans]
    moments, victims = Counter(order.moment for order in first), Counter(order.victim for order in first)
    assert all(moments[moment] >= 3 for moment in (*EXACT, FAILING))
    assert all(victims[victim] >= 2 for victim in ("actor", "node", "driver", "head", "writes"))
    assert [plan.variant for plan in plans].count("model") == 2


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_is_killed_and_resumed_ends_byte_equal_to_an_undisturbed_run(tmp_path):
    figures = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--runs", "5", "--seed", "3", "--no-model", "--json", str(figures)],
        capture_output=True,
        text=True,
        timeout=1150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(figures.read_text())
    assert (found["runs"], found["runs_equal"]) == (5, 5)
    for moment in EXACT:
        assert found[f"hits_{moment.replace(' ', '_').replace('.', '_')}"] >= 1, done.stdout
    assert found["hits_failing_writes"] >= 1
