"""The files that travel with the package are found in a checkout and in a wheel, and nobody else's are."""

from pathlib import Path

import pytest

from polypersona import resources
from polypersona.errors import StorageError
from polypersona.resources import resource, tiny_model


def install(tmp_path, monkeypatch):
    """Return site-packages as a wheel leaves it, with another project's `jobs` beside the package."""
    package = tmp_path / "site-packages" / "polypersona"
    for folder in (package / "_data" / "jobs", package / "_data" / "questionbank", package.parent / "jobs"):
        folder.mkdir(parents=True)
    (package / "_data" / "jobs" / "demo.yaml").write_text("name: demo\n")
    monkeypatch.setattr(resources, "_PACKAGE", package)
    return package


def test_a_checkout_has_its_files_at_the_top_level():
    root = Path(resources.__file__).parent.parent
    assert resource("questionbank") == root / "questionbank"
    assert resource("jobs/demo.yaml") == root / "jobs" / "demo.yaml"


def test_nothing_is_found_by_where_the_process_stands(tmp_path, monkeypatch):
    (tmp_path / "jobs").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resource("jobs") != tmp_path / "jobs"
    assert resource("jobs").is_absolute()


def test_an_installed_package_has_its_own_files_not_those_beside_it(tmp_path, monkeypatch):
    package = install(tmp_path, monkeypatch)
    assert resource("jobs") == package / "_data" / "jobs"
    assert resource("jobs/demo.yaml") == package / "_data" / "jobs" / "demo.yaml"
    assert resource("questionbank") == package / "_data" / "questionbank"


def test_what_an_installation_lacks_is_named(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch)
    with pytest.raises(StorageError, match=r"This installation of polypersona lacks 'nothing\.yaml'\. Install"):
        resource("nothing.yaml")


def test_a_tiny_model_without_its_weights_is_named(tmp_path, monkeypatch):
    package = install(tmp_path, monkeypatch)
    (package / "models" / "tiny").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"The embedded model is missing from .*models/tiny"):
        tiny_model()
    (package / "models" / "tiny" / "model.safetensors").write_bytes(b"")
    assert tiny_model() == package / "models" / "tiny"
