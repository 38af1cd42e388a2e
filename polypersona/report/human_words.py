"""The sentences about a comparison with people. Every sentence follows from a number of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polypersona.report.numbers import is_defined, render_count, render_interval, render_number, render_share

MEANINGS = {
    "w1_alignment": "1 − the distance that answers would have to move along the scale, as a share of it; 1 is the same "
    "distribution",
    "total_variation": "the share of answers that would have to change for the distributions to be the same",
    "js_distance": "Jensen–Shannon distance of the distributions, in bits; 0 is the same distribution",
    "ks_similarity": "1 − the largest gap between the cumulative distributions",
    "rank_correlation": "whether the options come in the same order of popularity",
    "variance_ratio": "variance of the synthetic answers over that of people's; below 1 they agree too much",
    "entropy_difference": "how much more (+) or less (−) evenly the synthetic answers spread over the options, in bits",
    "effective_human_n": "the size of a random sample of people that would say as much",
}


def sentences(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return `lead`, `findings` (by weight, each with a head), `warnings`, `can` and `cannot` for the first screen."""
    findings = [{"head": head, "text": text} for head, find in _FINDINGS for text in find(facts)]
    return {
        "lead": _lead(facts),
        "findings": findings,
        "warnings": _warnings(facts),
        "can": [f"How far the run is from people on these questions. {one}" for one in _closeness(facts)[:1]],
        "cannot": [
            f"Anything about questions, groups or times that were not compared: {render_count(len(facts['items']))} "
            "questions were."
        ],
    }


def _lead(facts: Mapping[str, Any]) -> str:
    human = facts["human"]
    title = human.get("title") or human.get("source") or human.get("file")
    text = (
        f"The run stands beside {render_count(human['respondents'])} people of “{title}” (effective n "
        f"{render_count(human['effective_n'])}) on {_questions(len(facts['items']))}."
    )
    left = [
        f"{_questions(count)} {where}"
        for count, where in ((facts["only_human"], "that only the people were asked"),
                             (facts["only_run"], "that only the run was asked"))
        if count
    ]  # fmt: skip
    return f"{text} Left out: {' and '.join(left)}." if left else text


def _closeness(facts: Mapping[str, Any]) -> list[str]:
    row = _measure(facts, facts["metric"])
    if row is None:
        return []
    with_order = " with ordered options" if facts["metric"] == "w1_alignment" else ""
    text = (
        f"Mean {row['label']} over {_questions(row['items'])}{with_order}: {render_number(row['score'])} "
        f"{render_interval(row['low'], row['high'])}; choosing options blindly gets {render_number(row['uniform'])}, "
        f"one random half of the people against the other {render_number(row['split_half'])}."
    )
    span = _span(row)
    if span is None:
        return [text]
    if span <= 0:
        return [f"{text} The run is no closer to people than blind choice."]
    return [f"{text} The run covers {render_number(100 * min(span, 1.0), 0)} % of the way from the one to the other."]


def _variance(facts: Mapping[str, Any]) -> list[str]:
    row, collapsed = _measure(facts, "variance_ratio"), len(facts["collapsed"])
    if row is None:
        return []
    text = (
        f"On the median question the synthetic answers have {render_number(facts['median_variance_ratio'], 2)} of "
        f"people's variance, on average {render_number(row['score'], 2)}."
    )
    if collapsed:
        return [
            f"{text} It collapses on {collapsed} of {_questions(row['items'])}: less than half of people's variance, "
            "and certainly less than all of it."
        ]
    return [f"{text} It collapses on no question."]


def _effective(facts: Mapping[str, Any]) -> list[str]:
    value = facts["median_effective_n"]
    if not is_defined(value):
        return []
    return [
        f"On the median question the run says as much about these people as a random sample of "
        f"{render_number(value, 0 if value >= 10 else 1)} of them would (effective human sample size)."
    ]


def _subgroups(facts: Mapping[str, Any]) -> list[str]:
    rows = [row for group in facts["groups"] for row in group["rows"] if row["is_closer"] is not None]
    if not rows:
        return []
    closer = sum(row["is_closer"] for row in rows)
    return [
        f"In {closer} of {len(rows)} subgroups the run's answers of the group are closer to the group's own "
        "people than the answers of all its personas are (the shuffled floor); elsewhere the group's cards make them "
        "no closer."
    ]


def _differences(facts: Mapping[str, Any]) -> list[str]:
    rows: Sequence[Mapping[str, Any]] = facts["stereotyping"]
    if not rows:
        return []
    total, more, less = (sum(row[name] for row in rows) for name in ("questions", "exaggerated", "flattened"))
    return [
        f"Differences between groups (η²) are larger than among people in {more} and smaller in {less} of {total} "
        "pairs of question and demographic, each for certain (95 %)."
    ]


def _prediction(facts: Mapping[str, Any]) -> list[str]:
    found = facts["prediction"] or {}
    if not (is_defined(found.get("synthetic")) and is_defined(found.get("back_off"))):
        return []
    gain = found["synthetic"] - found["back_off"]
    verdict = "more" if gain > 0 else "no more"
    return [
        f"The run predicts a person's own answer with an agreement of {render_number(found['synthetic'])}, a table of "
        f"answers by demographics with {render_number(found['back_off'])}: it says {verdict} than demographics do."
    ]


def _people(facts: Mapping[str, Any]) -> list[str]:
    rows = [row for row in facts["individuals"] if is_defined(row["accuracy"]) and is_defined(row["r"])]
    if not rows:
        return []
    accuracy, floor, r = (
        sum(row[name] for row in rows) / len(rows) for name in ("accuracy", "accuracy_shuffled", "r")
    )  # fmt: skip
    return [
        f"On {_questions(len(rows))}: mean accuracy {render_number(accuracy)} (another person's "
        f"twin: {render_number(floor)}), mean correlation r = {render_number(r)}."
    ]


def _association(facts: Mapping[str, Any]) -> list[str]:
    pattern = facts["pattern"] or {}
    if not is_defined(pattern.get("correlation")):
        return []
    text = (
        f"Over {render_count(pattern['n'])} pairs of questions, Cramér's V of run and people correlate "
        f"with r = {render_number(pattern['correlation'])} {render_interval(pattern['low'], pattern['high'])} (one "
        f"half of the people against the other: {render_number(pattern['split_half'])}). Mean V is "
        f"{render_number(pattern['mean_synthetic'])} in the run, {render_number(pattern['mean_human'])} among people."
    )
    if count := pattern.get("one_sided"):
        text += f" {render_count(count)} further pairs have no V on one side, where a question does not vary."
    return [text]


def _regressions(facts: Mapping[str, Any]) -> list[str]:
    found = facts["regression"] or {}
    if not (found.get("coefficients") and is_defined(found["share_different"])):
        return []
    text = (
        f"Linear models of the questions on demographics have {render_count(found['coefficients'])} coefficients; "
        f"{render_share(found['share_different'])} differ for certain between run and people (|z| > 1.96), and "
        f"{render_share(found['expected_different'])} would between two samples of one population."
    )
    if is_defined(found["share_flipped"]):
        text += f" Of those that differ, {render_share(found['share_flipped'])} have the opposite sign."
    return [text]


def _warnings(facts: Mapping[str, Any]) -> list[str]:
    warnings = []
    collapsed = len(facts["collapsed"])
    if collapsed:
        row = _measure(facts, "variance_ratio") or {"items": collapsed}
        warnings.append(
            f"Variance collapse on {collapsed} of {_questions(row['items'])} that people answered too: the synthetic "
            "respondents agree with each other far more than people do, so shares look more certain than they are."
        )
    if facts["is_stale"]:
        warnings.append("The comparison with people rests on other responses than these: run compare again.")
    return warnings


def _measure(facts: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    return next((row for row in facts["measures"] if row["metric"] == name), None)


def _span(row: Mapping[str, Any]) -> float | None:
    """Return where the score stands between blind choice (0) and people's own halves (1)."""
    if not all(is_defined(row.get(name)) for name in ("score", "uniform", "split_half")):
        return None
    width = float(row["split_half"] - row["uniform"])
    return float(row["score"] - row["uniform"]) / width if width else None


def _questions(count: int) -> str:
    return "one question" if count == 1 else f"{render_count(count)} questions"


_FINDINGS = (
    ("Closeness", _closeness),
    ("Variance", _variance),
    ("Effective n", _effective),
    ("Subgroups", _subgroups),
    ("Differences between groups", _differences),
    ("Regressions", _regressions),
    ("Prediction", _prediction),
    ("Person by person", _people),
    ("Association", _association),
)
