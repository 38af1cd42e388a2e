"""An object is there whole or not at all, by one request, whatever the network does; seen from the server's side."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty_s3 import faulty_store

from polypersona import object_store
from polypersona.errors import StorageError
from polypersona.recipe import build_recipe
from polypersona.storage import RunDirectory, load_run
from polypersona.verify import verify

MB = 1 << 20
ENDPOINTS = ("500", "503", "cut", "lost reply")


@pytest.fixture(scope="module")
def server():
    with faulty_store() as server:
        yield server


@pytest.fixture
def store(server, request, monkeypatch):
    """The server, well again, and nothing on it that a test before has left."""
    monkeypatch.setattr(object_store, "RETRY_WAITS_S", (0.1,))
    monkeypatch.setattr(object_store, "_answered", set())
    server.choose = lambda method, path, place: None
    server.requests.clear()
    server.folder = request.node.name.partition("[")[0] + str(abs(hash(request.node.name)))
    yield server
    server.choose = lambda method, path, place: None


def written(server, name="shard"):
    """Return the bytes of a file as a client without pyarrow sees them, or None."""
    return server.look(f"{server.folder}/{name}")


def fail_first(count, fault, part="/shard"):
    """Return a choice of faults: the first writes of a file fail."""
    seen = []

    def choose(method, path, place):
        if method in ("PUT", "POST") and path.endswith(part) and len(seen) < count:
            seen.append(path)
            return fault
        return None

    return choose


@pytest.mark.parametrize("size", [0, 10, 6 * MB])
def test_a_file_is_one_put(store, size):
    data = os.urandom(size)
    RunDirectory.at(store.url(store.folder)).write("shard", data)
    assert [(request.method, request.query) for request in store.requests] == [("PUT", "")]
    assert written(store) == data


def test_a_large_file_appears_with_the_last_request(store):
    data, seen = os.urandom(25 * MB), []

    def watch(method, path, place):
        if path.endswith("/shard"):
            seen.append(written(store))

    store.choose = watch
    RunDirectory.at(store.url(store.folder)).write("shard", data)
    assert len(seen) == 5  # begin, three parts, complete
    assert set(seen) == {None}
    assert written(store) == data


@pytest.mark.parametrize("fault", ENDPOINTS)
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_put_that_fails_is_sent_again(store, fault, old):
    run, data = RunDirectory.at(store.url(store.folder)), os.urandom(MB)
    if old is not None:
        run.write("shard", old)
    seen = []

    def choose(method, path, place):
        if method != "PUT" or len(seen) == 3:
            return None
        seen.append(written(store))
        return fault

    store.choose = choose
    run.write("shard", data)
    assert len(seen) == 3
    assert set(seen) <= {old, data} if fault == "lost reply" else set(seen) == {old}
    assert written(store) == data


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "old"), [("500", None), ("503", b"old"), ("cut", b"old"), ("cut", None)])
def test_a_store_that_stays_away_ends_in_one_error_and_leaves_what_was_there(store, fault, old):
    run = RunDirectory.at(store.url(store.folder))
    if old is not None:
        run.write("shard", old)
    store.choose = fail_first(10_000, fault)
    with pytest.raises(StorageError, match=r"/shard\S* cannot be written: .*AWS Error") as caught:
        run.write("shard", os.urandom(MB))
    assert "what was committed before is kept" in caught.value.hint
    assert written(store) == old
    store.choose = lambda method, path, place: None
    run.write("shard", b"new")
    assert written(store) == b"new"


@pytest.mark.slow
def test_a_large_file_that_lacks_a_part_never_appears(store):
    run = RunDirectory.at(store.url(store.folder))

    parts = []

    def choose(method, path, place):
        if method != "PUT":
            return None
        parts.append(path)
        return "500" if len(parts) > 1 else None

    store.choose = choose
    with pytest.raises(StorageError, match="cannot be written"):
        run.write("shard", os.urandom(25 * MB))
    assert written(store) is None
    assert not [request for request in store.sent("POST", "/shard") if "uploads" not in request.query]


@pytest.mark.slow
def test_a_store_that_has_answered_is_waited_for_longer_than_pyarrow_waits(store):
    run = RunDirectory.at(store.url(store.folder))
    run.write("other", b"x")
    store.choose = fail_first(40, "503")  # pyarrow gives up after 31
    run.write("shard", b"x")
    assert len(store.sent("PUT", "/shard")) == 41
    assert written(store) == b"x"


@pytest.mark.slow
def test_a_store_that_never_answered_and_a_refusal_are_not_waited_for(store):
    run = RunDirectory.at(store.url(store.folder))
    store.choose = fail_first(10_000, "503")
    with pytest.raises(StorageError):
        run.write("shard", b"x")
    assert len(store.sent("PUT", "/shard")) == 31
    store.choose = lambda method, path, place: None
    run.write("other", b"x")
    store.requests.clear()
    store.choose = fail_first(10_000, "403")
    with pytest.raises(StorageError, match="ACCESS_DENIED"):
        run.write("shard", b"x")
    assert len(store.sent("PUT", "/shard")) == 1


def test_a_server_that_hangs_is_hung_up_on_and_asked_again(store):
    run = RunDirectory.at(store.url(store.folder))
    store.choose = fail_first(1, "hang")
    begin = time.monotonic()
    run.write("shard", b"x")
    assert time.monotonic() - begin < 30
    assert [request.fault for request in store.sent("PUT", "/shard")] == ["hang", None]
    assert written(store) == b"x"


def test_a_deletion_whose_answer_gets_lost_is_done(store):
    run = RunDirectory.at(store.url(store.folder))
    run.write("shard", b"x")
    lost = []

    def choose(method, path, place):
        if method == "DELETE" and not lost:
            lost.append(path)
            return "lost reply"
        return None

    store.choose = choose
    run.delete("shard")
    assert lost
    assert written(store) is None


# A whole run ----------------------------------------------------------------------------------------------------------


def write_recipe(folder, out, name):
    panel = folder / "panel.jsonl"
    failing = {3: {"fake_failure": "invalid"}, 17: {"fake_failure": "error"}}
    rows = [{"id": f"p{place}", "age": 20 + place, **failing.get(place, {})} for place in range(40)]
    panel.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = build_recipe(
        {
            "name": name,
            "out": out,
            "panel": {"source": str(panel)},
            "instrument": {"items": ["healthcare.likert.01", "technology.yesno.01"]},
            "generate": {"engine": "fake", "shard_personas": 2, "actors": 2, "max_quarantined": 1.0},
        }
    )
    path = folder / f"{name}.json"
    path.write_text(recipe.model_dump_json())
    return path


def generate_alone(path):
    """Run the stage in a process of its own, for Ray's workers take the environment from where it was started."""
    return subprocess.run(
        [sys.executable, "-m", "polypersona", "generate", str(path)],
        env={**os.environ, "RAY_ADDRESS": "local"},
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=280,
    )


def files(run):
    return {name: run.read(name) for folder in ("responses", "quarantine") for name in run.names(folder)}


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_through_a_network_that_loses_a_fifth_of_the_puts_is_byte_equal_to_a_calm_one(store, tmp_path):
    calm = write_recipe(tmp_path, store.url("calm-out"), "calm")
    done = generate_alone(calm)
    assert done.returncode == 0, done.stderr
    chance = random.Random(4)

    def choose(method, path, place):
        return chance.choice(ENDPOINTS) if method == "PUT" and chance.random() < 0.2 else None

    store.requests.clear()
    store.choose = choose
    rough = write_recipe(tmp_path, store.url("rough-out"), "rough")
    done = generate_alone(rough)
    assert done.returncode == 0, done.stderr
    store.choose = lambda method, path, place: None
    faults = [request for request in store.sent("PUT") if request.fault]
    assert len(faults) >= 0.1 * len(store.sent("PUT"))
    assert {request.fault for request in faults} == set(ENDPOINTS)
    committed = [request for request in store.sent("PUT", "/responses/shard-") if not request.fault]
    assert not [request for request in store.sent("POST") if "uploads" in request.query]
    assert len({request.path for request in committed}) == 20
    expected = files(RunDirectory.at(store.url("calm-out/calm")))
    run = RunDirectory.at(store.url("rough-out/rough"))
    assert len(expected) == 22
    assert files(run) == expected
    assert verify(run).problems == ()


@pytest.mark.ray
@pytest.mark.slow
def test_a_store_that_refuses_in_mid_run_stops_it_with_one_error_and_the_same_command_goes_on(store, tmp_path):
    calm = write_recipe(tmp_path, store.url("sound-out"), "sound")
    assert generate_alone(calm).returncode == 0
    store.requests.clear()

    def choose(method, path, place):
        is_late = len({request.path for request in store.sent("PUT", "/responses/shard-")}) >= 6
        return "403" if is_late and method == "PUT" else None

    store.choose = choose
    broken = write_recipe(tmp_path, store.url("broken-out"), "broken")
    stopped = generate_alone(broken)
    assert stopped.returncode == 2
    assert "cannot be written" in stopped.stderr
    assert "ACCESS_DENIED" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert stopped.stderr.count("Error: ") == 1, stopped.stderr
    store.choose = lambda method, path, place: None
    run = RunDirectory.at(store.url("broken-out/broken"))
    expected = files(RunDirectory.at(store.url("sound-out/sound")))
    part = files(run)
    assert 0 < len(part) < len(expected)
    assert part.items() <= expected.items()
    resumed = generate_alone(broken)
    assert resumed.returncode == 0, resumed.stderr
    assert files(run) == expected
    assert verify(run).problems == ()
    assert load_run(run)["stages"]["generate"]["state"] == "finished"
