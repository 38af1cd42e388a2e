import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import engine, measuring, table
from benchmarks.environments import Installer
from benchmarks.measuring import Outcome, Run
from benchmarks.processes import PeerError, Worker


def run(variant, repetition, cpu_s, tokens=100):
    return Run("bf16", repetition, variant, rows=10, tokens=tokens, cpu_s=cpu_s, wall_s=2 * cpu_s)


def outcome():
    own = [run("packed.text", repetition, cpu_s) for repetition, cpu_s in enumerate((1.0, 2.0, 1.0))]
    peer = [run("static32", repetition, cpu_s) for repetition, cpu_s in enumerate((6.0, 8.0, 5.5))]
    return Outcome(own + peer, {"openvino_bf16": "pip failed"})


def named(name):
    return next(row for row in table.ratios("small", {"bf16": outcome()}) if row.name == name)


def test_a_ratio_is_the_median_of_the_ratios_within_a_repetition():
    row = named("small.static32.text")
    assert (row.value, row.low, row.high, row.bar, row.is_reached) == (5.5, 4.0, 6.0, 5.0, True)
    assert math.isclose(row.wall, 5.5)


def test_a_peer_that_did_not_run_has_no_figure_but_a_reason():
    row = named("small.openvino_bf16.text")
    assert row.value is None
    assert row.is_reached is None
    assert "pip failed" in row.reason
    assert any("not run: openvino_bf16: pip failed" in line for line in table.ratio_lines([row]))


def test_every_bar_of_both_models_has_its_row():
    names = {row.name for model in ("small", "110m") for row in table.ratios(model, {"bf16": outcome()})}
    peers = ("static32", "bucketed32", "ctranslate2_int8", "openvino_bf16")
    assert names == {
        f"{model}.{peer}.{mode}" for model in ("small", "110m") for peer in peers for mode in ("text", "scored")
    }


def test_fp32_figures_stand_beside_without_a_bar():
    phases = {"bf16": outcome(), "fp32": Outcome([run("packed_fp32.text", 0, 1.0), run("static32_fp32", 0, 4.0)])}
    found = {row.name: row for row in table.ratios("small", phases)}
    assert found["small.static32.text.fp32"].value == 4.0
    assert found["small.static32.text.fp32"].bar is None


def test_a_variant_that_wrote_fewer_tokens_is_called_out_unless_it_scores():
    runs = [run("static32", 0, 1.0, tokens=80), run("packed.scored", 0, 1.0, tokens=40), run("packed.text", 0, 1.0)]
    assert table.uneven(Outcome(runs), 100) == ["static32 wrote 80 tokens, not 100"]


@pytest.mark.parametrize("phase", ["bf16", "fp32"])
def test_the_order_rotates_and_every_repetition_runs_every_variant_once(phase):
    variants = measuring.PHASES[phase]
    orders = [measuring.rotated(variants, repetition, 3) for repetition in range(3)]
    assert all(set(order) == set(variants) for order in orders)
    assert len({order[0] for order in orders}) == 3


def test_a_worker_whose_engine_cannot_be_built_says_why_in_one_line(tmp_path):
    (tmp_path / "workload.json").write_text("[]", encoding="utf-8")
    core = max(os.sched_getaffinity(0))
    settings = {"core": core, "workload": str(tmp_path / "workload.json"), "personas": 1, "folder": "x", "dtype": "y"}
    worker = Worker.start(Path(sys.executable), "no_such_peer", settings, tmp_path / "log.txt")
    try:
        with pytest.raises(PeerError, match="no_such_peer"):
            worker.ask(60, do="prepare")
    finally:
        worker.close()
    with pytest.raises(PeerError, match="ended without an answer"):
        worker.ask(60, do="prepare")


def test_an_installation_that_failed_is_not_tried_twice(tmp_path, monkeypatch):
    tried = []

    def fail(self, wanted, folder):
        tried.append(wanted.name)
        raise PeerError("no network")

    monkeypatch.setattr(Installer, "_install", fail)
    installer = Installer(tmp_path, lambda line: None)
    for _ in range(2):
        with pytest.raises(PeerError, match="no network"):
            installer.python_of("openvino")
    assert tried == ["openvino"]


def test_an_unknown_model_is_refused_with_the_names_there_are(capsys):
    with pytest.raises(SystemExit):
        engine.parse(["--models", "large"])
    assert "the models are small, 110m" in capsys.readouterr().err


def test_the_command_starts_from_any_folder(tmp_path):
    done = subprocess.run([sys.executable, engine.__file__, "--help"], cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0
    assert b"--quick" in done.stdout
