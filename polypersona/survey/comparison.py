"""Humans and a tallied run → rows of scores by item and subgroup: value, n, effective n, interval, floors, ceiling.

Floors of a distribution: `uniform` options; for a subgroup `marginal`, the humans' distribution over all groups, and
`shuffled`, the synthetic distribution over all groups, which is what handing every persona another one's answers leaves
of a subgroup in expectation. The ceiling is `split_half`: the mean score of one random half of the humans against the
other. Fewer than five people in a cell are not shown. Knows no file and no response.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from polypersona.survey.cells import MIN_CELL, Cell, Row
from polypersona.survey.distribution import METRICS, DistributionMetric, effective_human_n
from polypersona.survey.inference import UNDEFINED, Interval

FloatArray: TypeAlias = npt.NDArray[np.float64]

EFFECTIVE_SIGNATURE = "effective_human_n|definition:equal_mse_srs(Meng2018)|cap:human_effective_n|clusters:persona"


def score_rows(cell: Cell) -> list[Row]:
    """Return one row per measure; undefined ones have n = 0 and no score."""
    is_ordered = cell.aligned.question.is_ordered
    defined = [metric for metric in METRICS if metric.applies(is_ordered=is_ordered)]
    names = {metric.name for metric in defined}
    missing = [metric for metric in METRICS if metric.name not in names]
    rows = [_score_row(cell, metric) for metric in defined]
    rows += [_undefined_row(cell, metric) for metric in missing]
    return [*rows, _effective_row(cell)]


def _score_row(cell: Cell, metric: DistributionMetric) -> Row:
    probe = cell.probe
    found, rest = probe.interval(metric.measure(probe.p, probe.q, cell.values), metric.low, metric.high)
    if not metric.is_smooth and not math.isnan(found.value):
        found = cell.drawn(metric, found.value)
    if math.isnan(found.value):
        return _undefined_row(cell, metric)
    uniform, marginal, shuffled = (float(value) for value in rest[:3])
    if cell.group.is_all:
        marginal = shuffled = math.nan
    ceiling = _mean(rest[3:])
    return {
        **cell.head,
        "metric": metric.name,
        "label": metric.label,
        **_interval(found),
        "uniform": uniform,
        "marginal": marginal,
        "shuffled": shuffled,
        "split_half": ceiling,
        "gain_over_marginal": abs(marginal - metric.best) - abs(found.value - metric.best),
        "gain_over_shuffled": abs(shuffled - metric.best) - abs(found.value - metric.best),
        "higher_is_better": metric.higher_is_better,
        "best": metric.best,
        "basis": cell.basis,
        "signature": metric.signature,
    }


def _undefined_row(cell: Cell, metric: DistributionMetric) -> Row:
    return {
        **cell.head,
        "n": 0,
        "n_effective": 0.0,
        "metric": metric.name,
        "label": metric.label,
        **_interval(UNDEFINED),
        **dict.fromkeys(("uniform", "marginal", "shuffled", "split_half"), math.nan),
        **dict.fromkeys(("gain_over_marginal", "gain_over_shuffled"), math.nan),
        "higher_is_better": metric.higher_is_better,
        "best": metric.best,
        "basis": cell.basis,
        "signature": metric.signature,
    }


def _effective_row(cell: Cell) -> Row:
    """Return the effective human sample size, capped by what the benchmark itself can tell; its interval is of 1/n."""
    error, cap = np.array(np.trace(cell.human.share_covariance)), cell.human.effective_n
    measured = effective_human_n(cell.probe.p, cell.probe.q, error)
    found, _ = cell.probe.interval(1 / measured, 1 / cap if cap else 0.0, math.inf)
    value = min(cap, 1 / found.value) if found.value > 0 else (math.nan if math.isnan(found.value) else cap)
    low = 1 / found.high if found.high > 0 else math.nan
    high = cap if math.isnan(found.low) or found.low <= 0 else min(cap, 1 / found.low)
    rest = cell.probe.rest(measured)
    floor = {name: min(cap, float(rest[place])) for place, name in enumerate(("uniform", "marginal", "shuffled"))}
    if cell.group.is_all:
        floor |= {"marginal": math.nan, "shuffled": math.nan}
    return {
        **cell.head,
        "n": 0 if math.isnan(value) else cell.synthetic.num_answers,
        "metric": "effective_human_n",
        "label": "Effective human sample size",
        "score": value,
        "low": min(low, value) if not math.isnan(low) else low,
        "high": high if not math.isnan(value) else math.nan,
        **floor,
        "split_half": cap / 2,
        "gain_over_marginal": value - floor["marginal"],
        "gain_over_shuffled": value - floor["shuffled"],
        "higher_is_better": True,
        "best": math.inf,
        "basis": cell.basis,
        "signature": EFFECTIVE_SIGNATURE,
    }


def share_rows(cell: Cell) -> list[Row]:
    """Return one row per option: its share among people and in the run, in percent, with intervals.

    The humans' share of an option that one to four people chose is blank, and with a single such option that of the
    next rarest too, for it could be had by subtraction.
    """
    question, count = cell.aligned.question, cell.human.totals.shape[1]
    hidden = _hidden_options(cell)
    rows = []
    sides = zip(cell.human.share_intervals(), cell.synthetic.share_intervals(), strict=True)
    for option, ((code, label), (human, synthetic)) in enumerate(zip(question.options.items(), sides, strict=True)):
        rows.append(
            {
                **cell.head,
                "code": code,
                "label": label,
                **_interval(UNDEFINED if option in hidden else human, "human"),
                **_interval(synthetic, "synthetic"),
                "uniform": 100 / count,
                "basis": cell.basis,
            }
        )
    return rows


def _hidden_options(cell: Cell) -> set[int]:
    # Kish's effective count of an option is at most its count, so nothing too small slips through.
    totals, squares = cell.human.totals[0], np.diagonal(cell.human.squares[0])
    counts = np.divide(totals * totals, squares, out=np.zeros_like(totals), where=squares > 0)
    hidden = set(np.flatnonzero((counts > 0) & (counts < MIN_CELL)).tolist())
    if len(hidden) == 1:
        others = [option for option in np.argsort(counts, kind="stable").tolist() if option not in hidden]
        hidden.update(next(([option] for option in others if counts[option] > 0), []))
    return hidden


def summary_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the mean over items of every measure, by group.

    The interval is that of the mean if all items' errors went together, an upper bound: items share their people.
    """
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["n"] and math.isfinite(row["score"]):
            found.setdefault((row["by"], row["group"], row["metric"]), []).append(row)
    summary = []
    for (by, group, metric), members in found.items():
        first = members[0]
        means = {
            name: _mean(np.array([row[name] for row in members], dtype=float))
            for name in ("score", "uniform", "marginal", "shuffled", "split_half", "n_effective", "human_n_effective")
        }
        reach = {
            name: _mean(np.array([abs(row[name] - row["score"]) for row in members], dtype=float))
            for name in ("low", "high")
        }
        summary.append(
            {
                "by": by,
                "group": group,
                "metric": metric,
                "label": first["label"],
                "items": len(members),
                "n": sum(row["n"] for row in members),
                **means,
                "low": means["score"] - reach["low"],
                "high": means["score"] + reach["high"],
                "higher_is_better": first["higher_is_better"],
                "signature": f"mean_over_items|{first['signature']}",
            }
        )
    return summary


def _interval(found: Interval, prefix: str = "") -> Row:
    name = f"{prefix}_" if prefix else ""
    return {prefix or "score": found.value, f"{name}low": found.low, f"{name}high": found.high}


def _mean(values: FloatArray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan
