"""Which charts a page has, by name: the content's numbers → SVG text. Knows what is charted, not how it is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from polypersona.report import charts
from polypersona.report.human import MAX_CHARTED
from polypersona.report.numbers import render_count, render_kind, render_words
from polypersona.report.paper import FIGURE_4
from polypersona.report.scatter import Points, scatter_chart

Content: TypeAlias = Mapping[str, Any]


def draw_charts(content: Content) -> dict[str, str]:
    """Return the charts that the content has numbers for."""
    drawn: dict[str, str] = {}
    if content["domains"]:
        drawn["domains"] = charts.domains_chart(content["domains"], "domains")
        drawn["types"] = charts.types_chart(content["types"], "types")
    if content["lengths"]["rows"]:
        drawn["lengths"] = charts.lengths_chart([("", content["lengths"]["rows"])], "lengths")
    if content["floor_by_domain"]:
        drawn["floors"] = charts.floors_chart(content["floor_by_domain"]["rows"], "floors")
    if printed_bleu := _bleu(content["table_ii"]):
        drawn["bleu"] = charts.dumbbell_chart(printed_bleu, "bleu", "BLEU")
    for index, chart in enumerate(content["curves"]["charts"] if content["curves"] else ()):
        drawn[f"training_{index}"] = charts.curves_chart(chart["lines"], f"training{index}", chart["unit"])
    if content["human"]:
        drawn |= _people(content["human"])
    if content["bias"]:
        drawn |= _bias(content["bias"])
    if content["ratings"]:
        drawn |= _ratings(content["ratings"])
    if content["beside"]:
        drawn |= _runs(content["beside"])
    return drawn


def _bleu(table: Content) -> list[dict[str, Any]]:
    """Figure 4: this run's BLEU above its floor, and those of the models that the paper's figure has, as printed."""
    own = table["scores"][0]
    if not isinstance(own, Mapping) or not own["n"]:
        return []
    printed = [
        {"name": name, "score": table["paper"][name][0], "is_printed": True, "score_label": "paper, other data"}
        for name in FIGURE_4
    ]
    return [{**own, "name": f"This run ({table['name']})"}, *printed]


def _people(human: Content) -> dict[str, str]:
    drawn, metric = {}, human["metric"]
    close = [
        _question(row, row["measures"][metric], ceiling="split_half")
        for row in human["items"] if metric in row["measures"]
    ]  # fmt: skip
    if close:
        close.sort(key=lambda row: row["score"], reverse=metric == "total_variation")
        drawn["people_items"] = charts.dumbbell_chart(close[:MAX_CHARTED], "people-items", _axis(metric))
    spread = [
        {**_question(row, row["measures"]["variance_ratio"]),
         **({"is_alarm": True, "score_label": "variance collapse"} if row["item"] in human["collapsed"] else {})}
        for row in human["items"] if "variance_ratio" in row["measures"]
    ]  # fmt: skip
    if spread:
        spread.sort(key=lambda row: row["score"])
        label = "variance ratio, run over people"
        drawn["people_variance"] = charts.dumbbell_chart(spread[:MAX_CHARTED], "people-variance", label, mark=1.0)
    for index, group in enumerate(human["groups"]):
        rows = [
            {**row, "name": row["group"], "floor": row["shuffled"], "floor_label": "floor: shuffled cards",
             "ceiling": row["split_half"], "ceiling_label": "people, half against half"}
            for row in group["rows"]
        ]  # fmt: skip
        drawn[f"people_group_{index}"] = charts.dumbbell_chart(rows, f"people-group{index}", _axis(metric))
    if human["coefficients"]:
        drawn["people_coefficients"] = _coefficients(human["coefficients"])
    if human["pairs"]:
        drawn["people_pairs"] = _pairs(human["pairs"])
    return drawn


def _coefficients(found: Content) -> str:
    looks = {"alike": ("no certain difference", "plain"), "different": ("differs for certain", "filled"),
             "flipped": ("differs, and the sign flips", "alarm")}  # fmt: skip
    groups = [
        Points(f"{name} ({render_count(found['counts'][verdict])})", look,
               [_place(row) for row in found["points"] if row["verdict"] == verdict])
        for verdict, (name, look) in looks.items()
    ]  # fmt: skip
    return scatter_chart(groups, "people-coefficients", "people: coefficient", "run: coefficient")


def _pairs(found: Content) -> str:
    listed, others = found["points"][: found["listed"]], found["points"][found["listed"] :]
    groups = [
        Points("a pair of questions", "plain", [_place(row) for row in others]),
        Points("most different, listed below", "listed", [_place(row) for row in listed]),
    ]
    return scatter_chart(groups, "people-pairs", "people: Cramér's V", "run: Cramér's V", least=0.0)


def _place(row: Content) -> tuple[float, float]:
    return row["human"], row["synthetic"]


def _question(row: Content, measure: Content, ceiling: str = "") -> dict[str, Any]:
    found = {"name": row["label"], **{name: measure[name] for name in ("score", "low", "high")}}
    if ceiling:
        found |= {"floor": measure["uniform"], "floor_label": "floor: blind choice"}
        found |= {"ceiling": measure[ceiling], "ceiling_label": "people, half against half"}
    return found


def _axis(metric: str) -> str:
    return "W₁ alignment, 1 is the same" if metric == "w1_alignment" else "total variation, 0 is the same"


def _bias(bias: Content) -> dict[str, str]:
    rows = [
        {**row, "name": row["label"], "score_label": "effect, 95\N{NO-BREAK SPACE}% interval",
         **({"is_alarm": True, "score_label": "control that is not zero"}
            if row["is_control"] and row["verdict"] == "clear" else {})}
        for row in bias["effects"] if not row["is_level"]
    ]  # fmt: skip
    return {"bias": charts.dumbbell_chart(rows, "bias", "effect, 0 is none", mark=0.0)} if rows else {}


def _ratings(ratings: Content) -> dict[str, str]:
    drawn = {
        f"ratings_{scale['name']}": charts.dumbbell_chart(
            _named(scale["rows"]), f"ratings-{scale['name']}", "mean rating", limits=(1, 5.15)
        )
        for scale in ratings["scales"]
        if scale["rows"]
    }
    if ratings["told"]:
        label = "share taken for synthetic"
        drawn["ratings_told"] = charts.dumbbell_chart(
            _named(ratings["told"]), "ratings-told", label, mark=0.5, limits=(0, 1.03)
        )
    return drawn


def _named(rows: Sequence[Content]) -> list[dict[str, Any]]:
    return [{**row, "name": row["label"], "score": row["value"]} for row in rows]


def _runs(beside: Content) -> dict[str, str]:
    drawn = {}
    for key, name in (("domains", "domain"), ("types", "type")):
        rows = beside[key]
        if rows:
            labels = [render_words(row[name]) if name == "domain" else render_kind(row[name]) for row in rows]
            series = [
                (run, [row["runs"][index]["share"] for row in rows], [row["runs"][index]["answers"] for row in rows])
                for index, run in enumerate(beside["names"])
            ]
            drawn[f"runs_{key}"] = charts.bars_chart(f"runs-{key}", labels, series, "share of a run's answers")
    if beside["bleu"]:
        drawn["runs_bleu"] = charts.dumbbell_chart(beside["bleu"], "runs-bleu", "BLEU")
    lengths = [(name, rows) for name, rows in beside["lengths"] if rows]
    if lengths:
        drawn["runs_lengths"] = charts.lengths_chart(lengths, "runs-lengths")
    return drawn
