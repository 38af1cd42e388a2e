"""What becomes of a damaged file of records that only spares work."""

from __future__ import annotations

from pathlib import Path

import pytest

from polypersona.scheduling import training_pace
from polypersona.scheduling.micro_batches import (
    FILE,
    known_micro_batch,
    remember_micro_batch,
    set_aside_micro_batches,
)
from polypersona.scheduling.training_pace import set_aside_paces

PARTS = {"hardware": "T4, 16 GiB"}
DAMAGES = (b"", b"{", b"\xff\xfe", b'{"format": 9}', b'{"format": 1, "micro_batches": {"a": {"micro_batch": 4}}}')


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "polypersona").mkdir()
    return tmp_path / "polypersona"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_kept_aside_and_a_new_one_can_be_begun(folder: Path, damage: bytes) -> None:
    (folder / FILE).write_bytes(damage)
    told = set_aside_micro_batches()
    assert told is not None
    assert told.kept_as == f"{folder / FILE}.damaged"
    assert told.text.startswith(f"The file of known micro-batches {folder / FILE} is damaged: ")
    assert told.text.endswith(f"; it is kept as {told.kept_as}, and a new one is begun.")
    assert Path(told.kept_as).read_bytes() == damage
    assert known_micro_batch(PARTS) is None
    remember_micro_batch(PARTS, 4, "CUDA out of memory", "2026-01-01")
    assert set_aside_micro_batches() is None
    assert known_micro_batch(PARTS) == 4


def test_no_file_that_was_kept_aside_is_written_over(folder: Path) -> None:
    kept = []
    for damage in (b"{", b"[", b""):
        (folder / training_pace.FILE).write_bytes(damage)
        told = set_aside_paces()
        assert told is not None
        kept.append(Path(told.kept_as))
    assert [path.name.removeprefix(f"{training_pace.FILE}.") for path in kept] == ["damaged", "damaged-2", "damaged-3"]
    assert [path.read_bytes() for path in kept] == [b"{", b"[", b""]
    assert set_aside_paces() is None


def test_records_that_have_no_place_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    told = set_aside_micro_batches()
    assert told is not None
    assert told.text == "There is no cache folder: Could not determine home directory; it is not used."
