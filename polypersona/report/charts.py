"""Numbers → SVG text that stands in a page: drawn by matplotlib, coloured by the page's own variables.

Every colour and font is a placeholder that becomes a CSS variable, so a chart follows light, dark and print. Text stays
text. Knows the content's rows and no HTML beyond its own `<svg>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import matplotlib
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, PercentFormatter

from polypersona.report.canvas import (
    BAD,
    FIRST,
    GOOD,
    INK,
    LINE,
    MUTED,
    PAPER,
    SECOND,
    SERIES,
    SOFT,
    STYLE,
    add_legend,
    name_rows,
    new_canvas,
    plain_axes,
    render_svg,
    short_label,
    value_of,
)  # fmt: skip
from polypersona.report.numbers import render_count, render_kind, render_share, render_words

# A label, and what belongs to it.
Series: TypeAlias = tuple[str, Sequence[float | None], Sequence[int]]
Curve: TypeAlias = tuple[str, Sequence[tuple[int, float]]]

_DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1, 1.4)), (0, (6, 2, 1, 2)), (0, (2, 2)))
_POINTS = ("o", "s", "^", "D", "v")
_HATCHES = ("", "////", "\\\\\\\\", "----", "||||")
_MAX_MARKED = 40
_MARKS = {"open": "◆", "likert": "●", "yesno": "▲", "agreement": "■"}  # the paper's own


def domains_chart(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return Figure 1: answers by domain, beside the records of the dataset where there is one."""
    names = [render_words(row["domain"]) for row in rows]
    series = [("Answers of this run", [row["share_answers"] for row in rows], [row["answers"] for row in rows])]
    if any(row["records"] for row in rows):
        series.append(("Dataset", [row["share_records"] for row in rows], [row["records"] for row in rows]))
    return bars_chart(key, names, series, "share of all rows (number at the bar)")


def types_chart(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return Figure 2: answers and questions by response type, with the paper's marks."""
    names = [f"{_MARKS.get(row['type'], '')} {render_kind(row['type'])}".strip() for row in rows]
    series = [
        ("Answers", [row["share_answers"] for row in rows], [row["answers"] for row in rows]),
        ("Questions", [row["share_questions"] for row in rows], [row["questions"] for row in rows]),
    ]
    return bars_chart(key, names, series, "share (number at the bar)")


def lengths_chart(runs: Sequence[tuple[str, Sequence[Mapping[str, Any]]]], key: str) -> str:
    """Return Figure 5: box plots of answer lengths in characters by domain.

    Args:
        runs: a name and the rows of each run; with several, boxes of one domain stand together, without outliers.
        key: the beginning of the chart's ids.
    """
    domains = list(dict.fromkeys(row["domain"] for _, rows in runs for row in rows))
    height = 0.8 / len(runs)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_canvas(len(domains), row_height=12 + 16 * len(runs), extra=30 if len(runs) > 1 else 0)
        for index, (label, rows) in enumerate(runs):
            color = SERIES[index % len(SERIES)]
            shift = (index - (len(runs) - 1) / 2) * height
            drawn = axes.bxp(
                [_box(row, has_outliers=len(runs) == 1) for row in rows],
                positions=[domains.index(row["domain"]) + shift for row in rows],
                orientation="horizontal",
                widths=height * 0.72,
                patch_artist=True,
                manage_ticks=False,
                boxprops={"facecolor": SOFT if index == 0 else PAPER, "edgecolor": color, "linewidth": 1.3},
                medianprops={"color": INK, "linewidth": 2.2},
                whiskerprops={"color": color, "linewidth": 1.3, "linestyle": _DASHES[index % len(_DASHES)]},
                capprops={"color": color, "linewidth": 1.3},
                flierprops={"marker": "o", "markersize": 2.6, "markerfacecolor": MUTED, "markeredgecolor": "none"},
            )
            drawn["boxes"][0].set_label(short_label(label))
        name_rows(axes, [render_words(domain) for domain in domains])
        axes.set_xlim(left=0)
        axes.set_xlabel("characters")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        plain_axes(axes)
        if len(runs) > 1:
            add_legend(figure, axes)
        return render_svg(figure, key)


def _box(row: Mapping[str, Any], *, has_outliers: bool) -> dict[str, Any]:
    names = {"med": "median", "q1": "first", "q3": "third", "whislo": "low", "whishi": "high"}
    return {**{ours: row[theirs] for ours, theirs in names.items()}, "fliers": row["outliers"] if has_outliers else []}


def floors_chart(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return a dumbbell chart: floor (hollow) and score (filled, with interval) per domain."""
    return dumbbell_chart([{**row, "name": render_words(str(row["group"]))} for row in rows], key)


def dumbbell_chart(
    rows: Sequence[Mapping[str, Any]],
    key: str,
    xlabel: str = "",
    mark: float | None = None,
    limits: tuple[float, float] | None = None,
) -> str:
    """Return a dumbbell chart: each row's floor (hollow) and score (filled, with interval), and its ceiling (diamond).

    Args:
        rows: `name`, `score`, and `low`, `high`, `floor`, `ceiling` where known; `score_label` and so on name them,
            `is_alarm` colours the score, `is_printed` draws it as a number of somebody else.
        key: the beginning of the chart's ids.
        xlabel: what the axis shows.
        mark: a value that a line stands at.
        limits: the ends of the axis; unless given, what the rows need.
    """
    with matplotlib.rc_context(STYLE):
        figure, axes = new_canvas(len(rows), row_height=30, extra=30)
        if mark is not None:
            axes.axvline(mark, color=MUTED, linewidth=1.4, linestyle=(0, (4, 3)), zorder=0)
        for place, row in enumerate(rows):
            _draw_dumbbell(axes, place, row)
        name_rows(axes, [str(row["name"]) for row in rows])
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if xlabel:
            axes.set_xlabel(xlabel)
        if limits:
            axes.set_xlim(*limits)
        plain_axes(axes)
        add_legend(figure, axes)
        return render_svg(figure, key)


def _draw_dumbbell(axes: Axes, place: int, row: Mapping[str, Any]) -> None:
    score, floor, low, high, ceiling = (value_of(row, name) for name in ("score", "floor", "low", "high", "ceiling"))
    color = BAD if row.get("is_alarm") else FIRST
    if score is not None and floor is not None:
        axes.plot([floor, score], [place, place], color=LINE, linewidth=4, solid_capstyle="round", zorder=1)
    if low is not None and high is not None:
        axes.plot([low, high], [place, place], color=color, linewidth=1.8, zorder=3)
    if floor is not None:
        axes.plot(floor, place, "o", markersize=11, markerfacecolor="none", markeredgecolor=SECOND, markeredgewidth=2,
                  zorder=5, label=row.get("floor_label") or "floor")  # fmt: skip
    if ceiling is not None:
        axes.plot(ceiling, place, "D", markersize=6, color=GOOD, zorder=2, label=row.get("ceiling_label") or "ceiling")
    if score is not None:
        label = row.get("score_label") or "score, 95\N{NO-BREAK SPACE}% interval"
        if row.get("is_printed"):
            axes.plot(score, place, "x", markersize=8, markeredgewidth=2, color=MUTED, zorder=4, label=label)
        else:
            axes.plot(
                score, place, "s" if row.get("is_alarm") else "o", markersize=8, color=color, zorder=4, label=label
            )


def curves_chart(lines: Sequence[Curve], key: str, ylabel: str = "") -> str:
    """Return curves by step. Lines differ in colour, dash and mark, so that they can be told apart in grey."""
    with matplotlib.rc_context(STYLE):
        figure, axes = new_canvas(1, row_height=190, extra=30)
        for index, (label, points) in enumerate(lines):
            steps, values = zip(*points, strict=True)
            axes.plot(
                steps, values, color=SERIES[index % len(SERIES)], linestyle=_DASHES[index % len(_DASHES)],
                marker=_POINTS[index % len(_POINTS)] if len(points) <= _MAX_MARKED else "", markersize=5, linewidth=1.8,
                label=short_label(label),
            )  # fmt: skip
        axes.set_xlabel("step")
        if ylabel:
            axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="y", color=LINE, linewidth=0.7)
        plain_axes(axes)
        if len(lines) > 1:
            add_legend(figure, axes)
        return render_svg(figure, key)


def bars_chart(key: str, names: Sequence[str], series: Sequence[Series], xlabel: str) -> str:
    """Return horizontal bars of shares, a group of bars per name; counts stand at the bars.

    Args:
        key: the beginning of the chart's ids.
        names: the groups.
        series: (label, shares, counts), each as long as `names`.
        xlabel: what the axis shows.
    """
    height = 0.8 / len(series)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_canvas(len(names), row_height=14 + 15 * len(series), extra=30)
        largest = max((share or 0.0 for _, shares, _ in series for share in shares), default=0.0) or 1.0
        for index, (label, shares, counts) in enumerate(series):
            places = [place + (index - (len(series) - 1) / 2) * height for place in range(len(names))]
            widths = [share or 0.0 for share in shares]
            color, hatch = SERIES[index % len(SERIES)], _HATCHES[index % len(_HATCHES)]
            look: dict[str, Any] = {"facecolor": PAPER if hatch else color, "edgecolor": color, "linewidth": 1.2}
            with matplotlib.rc_context({"hatch.color": color}):
                axes.barh(places, widths, height=height * 0.86, label=short_label(label), hatch=hatch, **look)
            for place, width, count in zip(places, widths, counts, strict=True):
                text = f"{render_count(count)} ({render_share(width)})"
                axes.text(width + largest * 0.015, place, text, va="center", fontsize=11, color=MUTED)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, largest * 1.62)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.set_xticks([tick for tick in MaxNLocator(3).tick_values(0, largest) if 0 <= tick <= 1.001])
        axes.set_xlabel(xlabel)
        plain_axes(axes)
        if len(series) > 1:
            add_legend(figure, axes)
        return render_svg(figure, key)
