"""Regression coefficients and associations beside people's: charts, tables and what is too small to be shown."""

import re

import numpy as np
import pytest
from report.people_runs import compared_run

from polypersona.parquet import read_parquet
from polypersona.recipe import build_recipe
from polypersona.report import stage
from polypersona.report.figures import draw_charts
from polypersona.report.scatter import Points, scatter_chart
from polypersona.report.structure import LISTED, MAX_POINTS, coefficient_facts, pair_facts
from polypersona.storage import load_run


def coefficient(item="q1", group="village", human=0.1, synthetic=0.2, z=0.5, **others):
    return {
        "item": item, "by": "area", "group": group, "reference": "city", "outcome": "value, 0 to 1", "group_n": 30,
        "group_human_n": 30, "human": human, "human_error": 0.1, "synthetic": synthetic, "synthetic_error": 0.05,
        "z": z,
        "is_different": abs(z) > 1.96, "is_flipped": abs(z) > 1.96 and human * synthetic < 0, **others,
    }  # fmt: skip


def pair(item, other, human, synthetic, **others):
    return {"item": item, "other": other, "n": 40, "human_n": 40, "human": human, "synthetic": synthetic, **others}


def marks(svg):
    """The places of a chart's marks by their colour; the last of a colour is the legend's own."""
    found = {}
    for use in re.findall(r"<use [^>]*/>", svg):
        if 'y="' in use and (colour := re.search(r"var\(--(chart-1|chart-2|bad|muted)\)", use)):
            places = [float(re.search(rf' {name}="([^"]*)"', use).group(1)) for name in "xy"]
            found.setdefault(colour.group(1), []).append(places)
    return found


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    run = compared_run(tmp_path_factory.mktemp("structure"))
    stage.run(build_recipe(load_run(run)["recipe"]), directory=run)
    tables = {
        name: read_parquet(run.local_path(f"scores/human_{name}.parquet")).to_pylist()
        for name in ("regression", "pairs")
    }
    return run.read("report.html").decode(), run.read_json("report.json"), tables, run.read_json("scores/human.json")


def rows_under(page, caption):
    """The body rows of the table with a caption, as lists of the cells' unrounded numbers or texts."""
    table = re.search(rf"<caption>{re.escape(caption)}</caption>.*?</table>", page, re.DOTALL).group(0)
    body = re.search(r"<tbody>(.*?)</tbody>", table, re.DOTALL).group(1)
    return [
        [value or re.sub("<.*?>", "", text) for value, text in
         re.findall(r'<t[dh](?: class="num")?(?: scope="row")?(?: data-v="([^"]*)")?[^>]*>(.*?)</t[dh]>', row)]
        for row in re.findall(r"<tr>(.*?)</tr>", body, re.DOTALL)
    ]  # fmt: skip


def test_the_page_has_every_coefficient_of_the_table_and_counts_them_as_the_comparison_does(compared):
    page, numbers, tables, human = compared
    shown = rows_under(page, "Regression coefficients, the most different first")
    expected = {(row["item"], row["group"]): row for row in tables["regression"]}
    assert {(row[0], row[2]) for row in shown} == set(expected)
    for row in shown:
        stored = expected[row[0], row[2]]
        assert row[1:4:2] == ["Area", "city"]
        assert [float(row[place]) for place in (4, 6, 8)] == pytest.approx(
            [stored[name] for name in ("human", "synthetic", "z")], rel=1e-5
        )
        low, high = map(float, row[5].split(" "))
        assert (low + high) / 2 == pytest.approx(stored["human"], abs=1e-5)
        assert (high - low) / 2 == pytest.approx(1.96 * stored["human_error"], rel=1e-3)
    counts = numbers["human"]["coefficients"]["counts"]
    assert sum(counts.values()) == human["regression"]["coefficients"] == len(shown) == 3
    differ = human["regression"]["share_different"] * len(shown)
    assert counts["different"] + counts["flipped"] == pytest.approx(differ)


def test_the_page_has_every_pair_that_has_an_association_on_both_sides(compared):
    page, numbers, tables, human = compared
    shown = rows_under(page, "Cramér's V of pairs of questions, the most different first")
    (stored,) = (row for row in tables["pairs"] if row["synthetic"] == row["synthetic"])
    assert [row[:2] for row in shown] == [["q2", "q3"]]
    assert [float(value) for value in shown[0][2:4]] == pytest.approx([stored["human"], stored["synthetic"]], rel=1e-5)
    assert numbers["human"]["pairs"]["one_sided"] == human["pattern"]["one_sided"] == 2
    assert "2 further pairs have no V on one side" in page


def test_a_group_of_three_people_is_in_no_chart_and_no_table(compared):
    page, numbers, _, _ = compared
    assert {row["group"] for row in numbers["human"]["coefficients"]["points"]} == {"village"}
    assert "island" not in re.sub("<script.*?</script>", "", page, flags=re.DOTALL)


def test_coefficients_and_pairs_of_fewer_than_five_are_left_out_whatever_the_tables_hold():
    rows = [coefficient("q1"), coefficient("q2", group_human_n=4), coefficient("q3", group_n=3), coefficient("q4")]
    old = {name: value for name, value in rows.pop().items() if name != "group_human_n"}
    assert [row["item"] for row in coefficient_facts([*rows, old], {})["points"]] == ["q1"]
    pairs = [pair("a", "b", 0.1, 0.2), pair("a", "c", 0.1, 0.9, human_n=4), pair("b", "c", 0.1, 0.9, n=4)]
    assert [row["other"] for row in pair_facts(pairs, {}, {"n": 1})["points"]] == ["b"]
    assert coefficient_facts(rows[1:], {}) is None
    assert pair_facts(pairs[1:], {}, {}) is None


def test_what_is_undefined_is_no_point():
    nothing = float("nan")
    assert coefficient_facts([coefficient(z=nothing)], {}) is None
    assert pair_facts([pair("a", "b", 0.1, None), pair("a", "c", nothing, 0.1)], {}, {"one_sided": 2}) is None


def test_the_most_different_stand_first_and_each_demographic_has_its_counts():
    rows = [
        coefficient("q1", z=1.0), coefficient("q2", human=0.3, synthetic=-0.1, z=-4.0), coefficient("q3", z=3.0),
        coefficient("q4", z=0.1) | {"by": "sex", "group": "m"},
    ]  # fmt: skip
    found = coefficient_facts(rows, {"q2": "q2: Why?"})
    assert [(row["item"], row["verdict"]) for row in found["points"]] == [
        ("q2", "flipped"), ("q3", "different"), ("q1", "alike"), ("q4", "alike"),
    ]  # fmt: skip
    assert found["points"][0]["label"] == "q2: Why?"
    area, sex = found["by"]
    assert [area[name] for name in ("by", "coefficients", "alike", "different", "flipped")] == ["area", 3, 1, 1, 1]
    assert (area["human"], area["synthetic"]) == pytest.approx(((0.1 + 0.3 + 0.1) / 3, (0.2 + 0.1 + 0.2) / 3))
    assert (sex["by"], sex["coefficients"]) == ("sex", 1)


def test_of_many_points_a_chart_draws_the_most_different_and_others_evenly():
    rows = [coefficient(f"q{place:04d}", z=place / 500) for place in range(4 * MAX_POINTS)]
    found = coefficient_facts(rows, {})
    assert (len(found["points"]), found["total"], found["listed"]) == (MAX_POINTS, 4 * MAX_POINTS, LISTED)
    assert sum(found["counts"].values()) == 4 * MAX_POINTS
    assert [row["z"] for row in found["points"][:LISTED]] == [row["z"] for row in rows[: -LISTED - 1 : -1]]
    drawn = np.mean([row["verdict"] == "different" for row in found["points"]])
    assert drawn == pytest.approx(found["counts"]["different"] / found["total"], abs=0.02)


def test_the_points_of_the_charts_are_the_rows_of_their_tables():
    rng = np.random.default_rng(1)
    rows = [
        coefficient(f"q{place}", human=a, synthetic=b, z=(b - a) / 0.1)
        for place, (a, b) in enumerate(rng.normal(0, 0.2, (40, 2)).tolist())
    ]
    pairs = [pair(f"q{place}", "r", a, b) for place, (a, b) in enumerate(rng.random((30, 2)).tolist())]
    empty = {"items": [], "groups": [], "metric": "total_variation", "collapsed": []}
    human = {**empty, "coefficients": coefficient_facts(rows, {}), "pairs": pair_facts(pairs, {}, {"n": 30})}
    nothing = {"domains": [], "lengths": {"rows": []}, "floor_by_domain": None, "curves": None, "bias": None,
               "ratings": None, "beside": None, "table_ii": {"scores": [None]}}  # fmt: skip
    charts = draw_charts({**nothing, "human": human})
    looks = {"alike": "muted", "different": "chart-1", "flipped": "bad"}
    for verdict, colour in looks.items():
        wanted = [
            (row["human"], row["synthetic"]) for row in human["coefficients"]["points"] if row["verdict"] == verdict
        ]
        assert wanted
        assert_drawn(marks(charts["people_coefficients"])[colour], wanted)
    places = [(row["human"], row["synthetic"]) for row in human["pairs"]["points"]]
    assert_drawn(marks(charts["people_pairs"])["chart-2"], places[:LISTED])
    assert_drawn(marks(charts["people_pairs"])["muted"], places[LISTED:])


def assert_drawn(drawn, wanted):
    """Each wanted point is drawn, one after the other, both axes on one scale; one mark more is the legend's."""
    *found, _ = drawn
    assert len(found) == len(wanted)
    scales = []
    for axis in (0, 1):
        values, places = np.array(wanted)[:, axis], np.array(found)[:, axis]
        scale, start = np.polyfit(values, places, 1)
        assert places == pytest.approx(scale * values + start, abs=0.01)
        scales.append(scale)
    assert scales[0] == pytest.approx(-scales[1], rel=1e-3)
    assert scales[0] > 0


def test_one_point_is_a_chart_too():
    svg = scatter_chart([Points("only", "filled", [(0.2, 0.2)])], "one", "people", "run")
    assert len(marks(svg)["chart-1"]) == 2
    assert "nan" not in svg
