"""pytest tests/test_verify.py"""

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from polypersona.answering import Task
from polypersona.cli.runs import status_command, verify_command
from polypersona.engines.base import EngineSettings
from polypersona.engines.settings import Weights
from polypersona.errors import RunFailedError, StorageError
from polypersona.ledger import Box, Ledger
from polypersona.population import Population
from polypersona.records import Item, Persona
from polypersona.shard_actor import Job, ShardActor
from polypersona.shardfile import Footer, read_shard, render_shard
from polypersona.storage import RunDirectory, update_run
from polypersona.verify import read_status, verify

ITEMS = (
    Item("x.likert.01", "x", "Is it good?", "likert", ("Bad", "Fair", "Good")),
    Item("x.open.01", "x", "Why?", "open"),
)
FIRST = "responses/shard-00000-ab.parquet"


def make_run(folder, size=6, failing=(), shards=None):
    """Write a run of `size` personas in shards of two, by an actor in this process; return its directory."""
    run = RunDirectory.at(folder / "run")
    personas = tuple(
        Persona(f"p{place}", {"fake_failure": "error"} if place in failing else {}) for place in range(size)
    )
    population = Population(personas, ITEMS)
    ledger = Ledger(2).extend(Box(size, population.item_keys))
    recipe = {"generate": {"on": "panel"}}
    update_run(run, {"fingerprint": "ab", "ledger": ledger.as_json(), "recipe": recipe})
    job = Job(
        run=run,
        fingerprint="ab",
        ledger=ledger,
        settings=EngineSettings(engine="fake", seed=7),
        weights=Weights(),
        task=Task(seed=7, is_shuffled=False, shows_options=True, adapter="none", max_attempts=2),
        session="one",
        pending=np.arange(ledger.num_shards),
        load_population=lambda: population,
    )
    actor = ShardActor(job)
    for number in range(ledger.num_shards) if shards is None else shards:
        assert actor({"id": [number]})["failure"].to_pylist() == [b""]
    return run


def rewrite(run, name, change):
    """Replace a shard's rows by `change(table)`, with a footer that fits the new rows."""
    table, footer = read_shard(run.read(name), name)
    changed = change(table)
    fitting = Footer(footer.fingerprint, footer.shard, changed.num_rows, changed.num_rows, 0)
    run.write(name, render_shard(changed, fitting))


def test_an_undisturbed_run_is_clean(tmp_path):
    audit = verify(make_run(tmp_path, failing=(1,)))
    assert audit.is_clean
    assert (audit.planned, audit.committed, audit.quarantined, audit.shards) == (12, 10, 2, 3)


def test_a_shard_that_is_not_committed_is_named(tmp_path):
    audit = verify(make_run(tmp_path, shards=[0, 2]))
    assert audit.problems == (
        "1 shard files are not committed: shard-00001-ab.parquet.",
        "12 assignments are planned, but 8 are committed and 0 quarantined: -4.",
    )


def test_a_file_of_another_run_is_named(tmp_path):
    run = make_run(tmp_path)
    run.write("responses/shard-00000-cd.parquet", run.read(FIRST))
    assert "not of this run: shard-00000-cd.parquet" in verify(run).problems[0]


def test_a_flipped_byte_is_found(tmp_path):
    run = make_run(tmp_path)
    data = bytearray(run.read(FIRST))
    data[len(data) // 4] ^= 1
    run.write(FIRST, bytes(data))
    problems = verify(run).problems
    assert problems
    assert all("shard-00000" in problem or "planned" in problem for problem in problems)


def test_a_missing_row_is_found_even_where_the_footer_was_forged(tmp_path):
    run = make_run(tmp_path)
    rewrite(run, FIRST, lambda table: table.slice(1))
    problems = " ".join(verify(run).problems)
    assert "not the file that was committed" in problems
    assert "Shard 0 holds 3 assignments; 4 are planned." in problems
    assert "-1" in problems


def test_a_repeated_row_is_found(tmp_path):
    run = make_run(tmp_path)
    rewrite(run, FIRST, lambda table: table.take([0, 0, 2, 3]))
    assert "1 assignments are there more than once." in verify(run).problems


def test_a_row_that_was_never_asked_is_found(tmp_path):
    run = make_run(tmp_path)

    def rename(table):
        column = table.schema.get_field_index("persona_id")
        values = ["stranger", *table.column("persona_id").to_pylist()[1:]]
        kind = table.schema.field("persona_id").type
        return table.set_column(column, table.schema.field("persona_id"), pq_array(values, kind))

    rewrite(run, FIRST, rename)
    problems = " ".join(verify(run).problems)
    assert "1 rows whose id is not that of their persona" in problems
    assert "3 personas; 2 are planned" in problems


def pq_array(values, kind):
    import pyarrow as pa

    return pa.array(values).dictionary_encode().cast(kind)


def test_a_quarantine_file_that_went_missing_is_found(tmp_path):
    run = make_run(tmp_path, failing=(0,))
    run.delete("quarantine/shard-00000-ab.parquet")
    problems = " ".join(verify(run).problems)
    assert "2 responses and 0 quarantined rows; it was committed with 2 and 2 of 4" in problems


def test_rows_of_another_schema_are_found(tmp_path):
    run = make_run(tmp_path)
    rewrite(run, FIRST, lambda table: table.drop_columns(["rationale"]))
    assert f"{FIRST} has another schema." in verify(run).problems


def test_a_mixture_of_versions_is_a_note(tmp_path):
    run = make_run(tmp_path)
    run.write("events/actor-x.jsonl", b'{"event": "start", "versions": {"ray": "1.0"}}\n{"cut sho')
    audit = verify(run)
    assert audit.is_clean
    assert "several versions of ray: 1.0, " in audit.notes[0]


def test_no_run_and_no_responses_are_told_apart(tmp_path):
    with pytest.raises(StorageError, match=r"is no run: it has no run\.json"):
        verify(RunDirectory.at(tmp_path / "nothing"))
    run = RunDirectory.at(tmp_path / "begun")
    update_run(run, {"seed": 1})
    with pytest.raises(StorageError, match="has no responses yet"):
        read_status(run)


def test_the_commands_print_and_exit_as_they_should(tmp_path):
    run = make_run(tmp_path, failing=(1,))
    done = CliRunner().invoke(verify_command, [run.path()])
    assert done.exit_code == 0
    assert done.output.startswith("clean: 12 planned = 10 committed + 2 quarantined")
    status = json.loads(CliRunner().invoke(status_command, [run.path(), "--json"]).output)
    assert status["reasons"] == {"asked the fake engine for an error": 2}
    assert (status["shards_done"], status["responses_done"], status["left_s"]) == (3, 12, 0.0)
    run.delete(FIRST)
    broken = CliRunner().invoke(verify_command, [run.path()])
    assert isinstance(broken.exception, RunFailedError)
    assert broken.exception.exit_code == 1
    assert "shard-00000-ab.parquet" in broken.output


def test_the_rate_and_time_left_come_from_the_commits(tmp_path):
    run = make_run(tmp_path, size=20, shards=[0, 1, 2])
    begin = datetime(2030, 1, 1, tzinfo=UTC)
    lines = [
        {
            "time": (begin + timedelta(seconds=10 * number)).isoformat(),
            "event": "commit",
            "shard": number,
            "rows": 4,
            "quarantined": 0,
        }
        for number in range(3)
    ]
    for name in run.names("events"):
        run.delete(name)
    run.write("events/actor-x.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
    running = read_status(run, now=lambda: begin.timestamp() + 25)
    assert running.responses_done == 12
    assert running.rate == pytest.approx(0.4)
    assert running.left_s == pytest.approx(28 / 0.4)
    stopped = read_status(run, now=lambda: begin.timestamp() + 3600)
    assert stopped.rate is None
    assert stopped.left_s is None


def test_the_actor_answers_a_committed_shard_from_its_file(tmp_path):
    run = make_run(tmp_path)
    before = run.read(FIRST)
    make_run(tmp_path)
    assert run.read(FIRST) == before
    commits = [line for line in run.names("events") for line in run.read(line).splitlines() if b'"commit"' in line]
    assert len(commits) == 3


def test_what_an_actor_left_in_quarantine_without_a_commit_is_removed(tmp_path):
    run = make_run(tmp_path, shards=[])
    made = make_run(tmp_path / "failed", failing=(0, 1), shards=[0])
    run.write("quarantine/shard-00000-ab.parquet", made.read("quarantine/shard-00000-ab.parquet"))
    assert read_status(run).quarantined == 0
    make_run(tmp_path)
    assert not run.names("quarantine")
    assert pq.read_table(run.local_path(FIRST)).num_rows == 4
