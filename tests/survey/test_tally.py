"""Sums of a run: exact whatever the sharding, clustered by persona, and equal to what a loop over rows gives."""

import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from survey.human_runs import FINGERPRINT, write_csv, write_json, write_run

from polypersona.compare import build_frame, load_sources
from polypersona.errors import StorageError
from polypersona.ledger import Box, Ledger, committed_shards, ledger_from, shard_name
from polypersona.records import Persona
from polypersona.storage import RESPONSE_SCHEMA, load_run
from polypersona.survey.alignment import Aligned
from polypersona.survey.codebook import codebook_items
from polypersona.survey.codebook_checks import parse_codebook
from polypersona.survey.frame import Frame, fixed_bits
from polypersona.survey.responses import build_batches, read_columns_of, tally_responses
from polypersona.survey.tally import Tally

NUM_PERSONAS, WAVES, DRAWS = 40, 2, 3


@pytest.fixture
def sides(tmp_path, book):
    """A codebook file, human data, personas (ten of them twins), and answers with repeats and refusals."""
    rng = random.Random(5)
    codebook = write_json(tmp_path / "codebook.json", book)
    rows = []
    for place in range(30):
        q1 = rng.choice(["1", "2", "3", "-1"])
        q2 = rng.choice(["1", "2"]) if q1 in ("3", "-1") else ""
        rows.append(
            [f"p{place}", round(rng.uniform(0.4, 2), 3), rng.randint(18, 80), rng.choice("fm"), q1, q2,
             rng.choice(["1", "-1"]), rng.choice(["1", "-1"])]
        )  # fmt: skip
    human = write_csv(tmp_path / "human.csv", ["id", "w", "age", "sex", "q1", "q2", "q3_1", "q3_2"], rows)
    personas = [
        Persona(
            f"p{place + 20}", {"age": rng.randint(18, 80), "sex": rng.choice("fm")}, weight=rng.choice([0.5, 1.0, 2.25])
        )
        for place in range(NUM_PERSONAS)
    ]
    items = codebook_items(parse_codebook(book)[0])
    answers = {}
    for persona in personas:
        for item in items:
            for wave in range(1, WAVES + 1):
                for draw in range(1, DRAWS + 1):
                    weights = [rng.random() + 0.1 for _ in item.codes]
                    shares = [weight / sum(weights) for weight in weights]
                    code = rng.choices(item.codes, shares)[0]
                    answer = None if rng.random() < 0.05 else (code, shares)
                    if item.item_id == "q2" and answer:
                        answer = code  # no probabilities: its shares rest on codes
                    answers[persona.persona_id, item.item_id, wave, draw] = answer
    return codebook, human, personas, items, answers


def tallied(tmp_path, sides, name, shard_personas, max_rows):
    codebook, human, personas, items, answers = sides
    run = write_run(
        tmp_path / name, codebook, personas, items, answers, shard_personas=shard_personas, waves=WAVES, draws=DRAWS
    )
    stored = load_run(run)
    ledger = ledger_from(stored["ledger"])
    sources = load_sources(run, stored, str(human), str(codebook), ["age", "sex"])
    frame = build_frame(sources, ledger)
    batches = build_batches(ledger, sorted(committed_shards(run, FINGERPRINT)), FINGERPRINT, max_rows)
    return sources, tally_responses(run, batches, frame, lambda _: None)


def arrays(tally):
    return {
        "totals": tally.by_code.totals, "high": tally.by_code.high, "low": tally.by_code.low,
        "expected": tally.by_probability.totals, "answers": tally.answers, "clusters": tally.clusters,
        "joint": tally.joint, "joint_answers": tally.joint_answers,
        "pairs": tally.pairs, "extremes": tally.extremes, "outcomes": tally.dispositions,
    }  # fmt: skip


def test_any_sharding_gives_the_same_sums_to_the_last_bit(tmp_path, sides):
    expected = arrays(tallied(tmp_path, sides, "one", 64, 10**6)[1])
    for place, (shard_personas, max_rows) in enumerate([(1, 1), (7, 100), (16, 10**6)]):
        found = arrays(tallied(tmp_path, sides, f"run{place}", shard_personas, max_rows)[1])
        for name in expected:
            if name in ("high", "low"):
                continue
            assert np.array_equal(expected[name], found[name]), name
        squares = [side["high"] * 2.0**31 + side["low"] for side in (expected, found)]
        assert np.array_equal(*squares)


def test_moments_are_those_of_a_loop_over_rows(tmp_path, sides):
    _, _, personas, items, answers = sides
    sources, tally = tallied(tmp_path, sides, "run", 16, 200)
    for place, aligned in enumerate(tally.frame.items):
        item = next(item for item in items if item.item_id == aligned.question.item_id)
        count = len(item.codes)
        totals, squares = np.zeros((sources.profiles.count, count)), np.zeros((sources.profiles.count, count, count))
        for persona in personas:
            cluster = np.zeros(count)
            for (name, item_id, _, _), answer in answers.items():
                if (name, item_id) == (persona.persona_id, item.item_id) and answer is not None:
                    if isinstance(answer, tuple):
                        cluster += persona.weight * np.array(answer[1])
                    else:
                        cluster[item.codes.index(answer)] += persona.weight
            profile = sources.profiles.of_persona[persona.persona_id]
            totals[profile] += cluster
            squares[profile] += np.outer(cluster, cluster)
        moments = tally.moments(place)
        assert np.allclose(moments.totals, totals, atol=1e-2)
        assert np.allclose(moments.squares, squares, atol=1e-2, rtol=1e-4)
        assert moments.num_clusters <= NUM_PERSONAS


def test_interviews_with_answers_to_two_items_are_those_of_a_loop(tmp_path, sides):
    _, _, _, _, answers = sides
    _, tally = tallied(tmp_path, sides, "run", 7, 50)
    names = [one.question.item_id for one in tally.frame.items]
    interviews = {(person, wave, draw) for person, _, wave, draw in answers}
    expected = [
        [sum(all(answers[person, name, wave, draw] is not None for name in (a, b)) for person, wave, draw in interviews)
         for b in names]
        for a in names
    ]  # fmt: skip
    assert tally.joint_answers.tolist() == expected
    assert 0 < tally.joint_answers.min() < len(interviews)


def test_shares_rest_on_probabilities_only_where_every_answer_has_them(tmp_path, sides):
    tally = tallied(tmp_path, sides, "run", 16, 200)[1]
    assert [tally.basis(place) for place in range(4)] == ["option_probs", "codes", "option_probs", "option_probs"]


def test_pairs_are_those_of_personas_whose_id_a_respondent_has(tmp_path, sides):
    sources, tally = tallied(tmp_path, sides, "run", 16, 200)
    answers = sides[4]
    human = sources.survey.answers["q1"]
    expected = []
    for row, name in enumerate(sources.survey.respondent_ids):
        for (persona, item_id, _, _), answer in answers.items():
            if (persona, item_id) == (name, "q1") and answer is not None and human.options[row] >= 0:
                expected.append((human.options[row] + 1, answer[0]))
    sums = tally.pair_sums(0, np.ones(sources.profiles.count, bool))
    h, s = np.array(expected).T
    assert (sums.n, sums.h, sums.s, sums.hs) == (len(h), h.sum(), s.sum(), (h * s).sum())
    assert sums.absolute == np.abs(h - s).sum()
    assert sums.personas <= 10


def test_a_grown_runs_later_draws_are_of_the_same_clusters(tmp_path):
    ledger = Ledger(8).extend(Box(20, ("q1",), 1, 1)).extend(Box(20, ("q1",), 1, 2))
    batches = build_batches(ledger, range(ledger.num_shards), FINGERPRINT, 1)
    names = [{name.split("-")[1] for name in batch} for batch in batches]
    assert names == [{"00000", "00003"}, {"00001", "00004"}, {"00002", "00005"}]


def test_weights_below_one_lose_no_precision(tmp_path, sides):
    expected = arrays(tallied(tmp_path, sides, "one", 16, 200)[1])
    codebook, human, personas, items, answers = sides
    light = [replace(one, weight=one.weight / 4096) for one in personas]
    _, tally = tallied(tmp_path, (codebook, human, light, items, answers), "light", 16, 200)
    found = arrays(tally)
    assert [name for name in expected if not np.array_equal(expected[name], found[name])] == []
    total = sum(one.weight for one in light)
    assert tally.moments(3).totals.sum() <= total * WAVES * DRAWS * (1 + 1e-6)
    assert tally.moments(3).totals.sum() > total * WAVES * DRAWS * 0.8  # some refuse


def test_the_fixed_points_step_follows_the_mean_weight():
    for mean in (1.0, 0.3, 3.0, 1e-6, 5000.0):
        step = 2.0 ** -fixed_bits(2 * mean, mean, 1, 400_000)
        assert mean * 2**-17 <= step <= mean * 2**-16


@pytest.mark.parametrize("largest", [5000.0, 1e6])
def test_weights_have_fewer_bits_where_squares_would_not_fit(largest):
    bits = fixed_bits(largest, 1.0, 200, 400_000)
    assert bits < 16
    assert (largest * 200 * 2.0**bits) ** 2 * 400_000 < 2**63


def frame_of(book, personas):
    questions = parse_codebook(book)[0].questions
    items = tuple(Aligned(question, tuple(range(len(question.codes)))) for question in questions)
    return Frame(items, dict.fromkeys(personas, 0), 1, 1, 1, 16, np.full((4, 1), -(2**31), np.int32), {})


def rows_of(tmp_path, sides):
    codebook, _, personas, items, answers = sides
    run = write_run(tmp_path / "rows", codebook, personas, items, answers, waves=WAVES, draws=DRAWS)
    return read_columns_of(run, f"responses/{shard_name(0, FINGERPRINT)}")


def test_a_persona_that_the_panel_lacks_is_named(tmp_path, sides, book):
    with pytest.raises(StorageError, match="the persona 'p20'"):
        Tally.empty(frame_of(book, ["p1"])).add(rows_of(tmp_path, sides))


def test_a_code_that_an_item_lacks_is_named(tmp_path, sides, book):
    table = rows_of(tmp_path, sides)
    book["items"]["q1"]["options"] = {"7": "Agree", "8": "Disagree"}
    with pytest.raises(StorageError, match=r"'q1' has the code \d, which is none of its options"):
        Tally.empty(frame_of(book, set(table.column("persona_id").to_pylist()))).add(table)


def test_a_shard_that_is_none_is_named(tmp_path, sides):
    codebook, _, personas, items, answers = sides
    run = write_run(tmp_path / "bad", codebook, personas, items, answers, waves=WAVES, draws=DRAWS)
    run.write("responses/shard-00000-x.parquet", b"nothing")
    with pytest.raises(StorageError, match="shard-00000-x"):
        read_columns_of(run, "responses/shard-00000-x.parquet")


def test_changed_forms_of_items_and_other_items_are_counted_and_left_out(tmp_path, sides, book):
    table = rows_of(tmp_path, sides)
    personas = set(table.column("persona_id").to_pylist())
    rows = table.to_pylist()
    rows[0]["variant"] = "reversed"
    rows[1]["item_id"] = "other"
    schema = pa.schema([RESPONSE_SCHEMA.field(name) for name in table.column_names])
    frame = frame_of(book, personas)
    tally = Tally.empty(Frame(frame.items, frame.of_persona, 1, WAVES, DRAWS, 16, frame.human_codes, {}))
    tally.add(pa.Table.from_pylist(rows, schema=schema))
    assert (tally.num_variants, tally.unshared, tally.num_rows) == (1, {"other": 1}, len(rows))
    assert int(tally.dispositions.sum()) == len(rows) - 2
