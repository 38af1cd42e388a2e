"""Locations are joined, and shown without the secrets in them."""

from __future__ import annotations

import pickle
import time

import pytest

from polypersona.errors import PersonaError, StorageError
from polypersona.events import EventLog
from polypersona.location import join_location, mask_all, mask_secrets, split_location
from polypersona.recipe import Recipe, build_recipe, flatten
from polypersona.storage import RunDirectory, load_run, update_run

SECRET = "wJalr/XUt+nFEMI"
URL = f"s3://AKIA:{SECRET}@bucket/p.csv"


def test_a_name_goes_before_the_options_of_a_url():
    assert join_location("s3://b/a/?scheme=http", "x.csv") == "s3://b/a/x.csv?scheme=http"
    assert join_location("a/b?c/", "x.csv") == "a/b?c/x.csv"


@pytest.mark.parametrize("folder", ["s3://b/a?scheme=http", "gs://b", "/runs/a?b"])
def test_a_location_is_split_where_it_was_joined(folder):
    assert split_location(join_location(folder, "bias")) == (folder, "bias")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (URL, "s3://***@bucket/p.csv"),
        ("https://user:p@ss@host/x", "https://***@host/x"),
        ("https://ghp_token@github.com/x", "https://***@github.com/x"),
        ("s3://K:12/34@b/x", "s3://***@b/x"),
        ("abfss://container:key@account.dfs.core.windows.net/x", "abfss://***@account.dfs.core.windows.net/x"),
        ("no S3://K:S@b/a, nor 's3://K2:S2@c/d'.", "no S3://***@b/a, nor 's3://***@c/d'."),
        ("https://b/x?X-Amz-Signature=abc&X-Amz-Credential=q&n=1",
         "https://b/x?X-Amz-Signature=***&X-Amz-Credential=***&n=1"),
        ("az://b/x?sig=a%2Fb&design=3", "az://b/x?sig=***&design=3"),
        ("s3://b/x?access_key=A&secret_key=B&region=eu", "s3://b/x?access_key=***&secret_key=***&region=eu"),
    ],
)  # fmt: skip
def test_what_a_url_must_not_show_is_masked(text, masked):
    assert mask_secrets(text) == masked
    assert mask_secrets(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "", "people.csv", "mail me@x.org", "runs/a@b:c", "s3://bucket/a@b.csv", "https://host:8080/a/@b",
        "s3://bucket/x?endpoint_override=127.0.0.1:9&scheme=http", "abfss://container@account.dfs/x",
        "gs://anonymous@bucket/x", "file:///tmp/a b.csv", "http://localhost:8000",
    ],
)  # fmt: skip
def test_what_holds_no_secret_is_shown_as_it_is(text):
    assert mask_secrets(text) == text


def test_a_long_text_is_masked_in_no_time():
    begin = time.perf_counter()
    for text in ("a" * 200_000 + "://x", "://" * 50_000, "s3://a:" + "b" * 200_000, "s3://a:b" * 20_000):
        mask_secrets(text)
    assert time.perf_counter() - begin < 2


def test_content_is_masked_in_depth():
    assert mask_all({"a": [URL, 1, {"b": (URL, None)}]}) == {
        "a": ["s3://***@bucket/p.csv", 1, {"b": ["s3://***@bucket/p.csv", None]}]
    }


def test_an_error_shows_no_secret_on_either_side_of_a_process_border():
    error = PersonaError(f"There is no {URL!r}.", f"Copy {URL}.")
    for one in (error, pickle.loads(pickle.dumps(error))):
        assert (one.message, one.hint) == ("There is no 's3://***@bucket/p.csv'.", "Copy s3://***@bucket/p.csv.")
        assert SECRET not in str(one) + repr(one)


def test_a_recipe_keeps_its_urls_and_its_record_shows_no_secret():
    recipe = build_recipe({"name": "x", "out": "s3://K:S3cr@b/r", "panel": {"source": URL}})
    assert recipe.panel.source == URL
    assert recipe.location == "s3://K:S3cr@b/r/x"
    for shown in (recipe.model_dump_json(), str(recipe.model_dump(mode="json")), str(flatten(recipe))):
        assert "s3://***@bucket/p.csv" in shown
        assert SECRET not in shown
        assert "S3cr" not in shown
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert isinstance(recipe, Recipe)


def test_the_record_and_the_events_of_a_run_show_no_secret(tmp_path):
    run = RunDirectory.at(tmp_path / "r")
    recipe = build_recipe({"name": "x", "panel": {"source": URL}})
    update_run(run, {"recipe": recipe.model_dump(mode="json"), "stages": {"dataset": {"from": URL}}})
    EventLog(run, "driver").write("failed", reason=f"cannot read {URL}", where=[URL])
    assert load_run(run)["recipe"]["panel"]["source"] == "s3://***@bucket/p.csv"
    written = [path.read_text() for path in (tmp_path / "r").rglob("*") if path.is_file()]
    assert len(written) == 2
    assert all("s3://***@bucket/p.csv" in text and SECRET not in text for text in written)


def test_a_run_directory_is_shown_without_its_secret_and_opened_with_it():
    run = RunDirectory.at(f"nowhere://K:{SECRET}@bucket/runs/x")
    assert run.path("run.json") == "nowhere://***@bucket/runs/x/run.json"
    assert SECRET in run.address("run.json")
    with pytest.raises(StorageError, match=r"nowhere://\*\*\*@bucket") as caught:
        run.filesystem()
    assert SECRET not in str(caught.value)
