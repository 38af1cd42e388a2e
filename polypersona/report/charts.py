"""Numbers → SVG text that stands in a page: drawn by matplotlib, coloured by the page's own variables.

Every colour and font is a placeholder that becomes a CSS variable, so a chart follows light, dark and print. Text stays
text. Knows the content's rows and no HTML beyond its own `<svg>`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from polypersona.report.numbers import is_defined, render_count, render_kind, render_share, render_words

# Placeholder colours: no chart draws in a colour of its own.
INK, MUTED, LINE, PAPER, FIRST, SECOND, SOFT = (f"#0000{index:02x}" for index in range(0xA0, 0xA7))
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--card", FIRST: "--chart-1", SECOND: "--chart-2",
    SOFT: "--chart-soft",
}  # fmt: skip
_WIDTH = 390  # points, which are CSS pixels here: narrow, so that text stays legible on a phone
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "polypersona",
    "font.family": "DejaVu Sans",  # shipped with matplotlib; the page sets its own font, which is narrower
    "font.size": 12.0,
    "figure.dpi": 72.0,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "xtick.color": MUTED,
    "ytick.color": INK,
    "hatch.color": SECOND,
    "hatch.linewidth": 1.0,
    "legend.frameon": False,
}
_MARKS = {"open": "◆", "likert": "●", "yesno": "▲", "agreement": "■"}  # the paper's own


def domains_chart(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return Figure 1: answers by domain, beside the records of the dataset where there is one."""
    names = [render_words(row["domain"]) for row in rows]
    series = [("Answers of this run", [row["share_answers"] for row in rows], [row["answers"] for row in rows])]
    if any(row["records"] for row in rows):
        series.append(("Dataset", [row["share_records"] for row in rows], [row["records"] for row in rows]))
    return _paired_bars(key, names, series, "share of all rows (number at the bar)")


def types_chart(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return Figure 2: answers and questions by response type, with the paper's marks."""
    names = [f"{_MARKS.get(row['type'], '')} {render_kind(row['type'])}".strip() for row in rows]
    series = [
        ("Answers", [row["share_answers"] for row in rows], [row["answers"] for row in rows]),
        ("Questions", [row["share_questions"] for row in rows], [row["questions"] for row in rows]),
    ]
    return _paired_bars(key, names, series, "share (number at the bar)")


def lengths_chart(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return Figure 5: box plots of answer lengths in characters by domain."""
    boxes = [
        {
            "label": render_words(row["domain"]),
            "med": row["median"],
            "q1": row["first"],
            "q3": row["third"],
            "whislo": row["low"],
            "whishi": row["high"],
            "fliers": list(row["outliers"]),
        }
        for row in rows
    ]
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(len(rows), row_height=27)
        axes.bxp(
            boxes,
            orientation="horizontal",
            widths=0.55,
            patch_artist=True,
            boxprops={"facecolor": SOFT, "edgecolor": FIRST, "linewidth": 1.3},
            medianprops={"color": INK, "linewidth": 2.2},
            whiskerprops={"color": FIRST, "linewidth": 1.3},
            capprops={"color": FIRST, "linewidth": 1.3},
            flierprops={"marker": "o", "markersize": 2.6, "markerfacecolor": MUTED, "markeredgecolor": "none"},
        )
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.set_xlabel("characters")
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        _plain_axes(axes)
        return _svg(figure, key)


def floors_chart(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return a dumbbell chart: floor (hollow) and score (filled, with interval) per domain."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(len(rows), row_height=27, extra=30)
        for place, row in enumerate(rows):
            score, floor, low, high = (_value(row, key) for key in ("score", "floor", "low", "high"))
            if score is not None and floor is not None:
                axes.plot([floor, score], [place, place], color=LINE, linewidth=4, solid_capstyle="round", zorder=1)
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=FIRST, linewidth=1.6, zorder=2)
            if floor is not None:
                axes.plot(
                    floor, place, "o", markersize=8, markerfacecolor=PAPER, markeredgecolor=SECOND, markeredgewidth=2,
                    zorder=3, label="floor",
                )  # fmt: skip
            if score is not None:
                axes.plot(score, place, "o", markersize=8, color=FIRST, zorder=4, label="score, 95 % interval")
        axes.set_yticks(range(len(rows)), [render_words(str(row["group"])) for row in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        _plain_axes(axes)
        _legend(figure, axes)
        return _svg(figure, key)


def training_chart(log: Sequence[Mapping[str, Any]], key: str) -> str:
    """Return the training curve: loss by step, and the validation loss where it was measured."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(1, row_height=190, extra=30)
        lines = (("loss", "training loss", FIRST, "-", ""), ("eval_loss", "validation loss", SECOND, "--", "o"))
        for name, label, color, style, marker in lines:
            points = [(row["step"], row[name]) for row in log if is_defined(row.get(name))]
            if points:
                steps, values = zip(*points, strict=True)
                axes.plot(steps, values, color=color, linestyle=style, marker=marker, markersize=5, label=label,
                          linewidth=1.8)  # fmt: skip
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="y", color=LINE, linewidth=0.7)
        _plain_axes(axes)
        _legend(figure, axes)
        return _svg(figure, key)


Series = tuple[str, Sequence[float | None], Sequence[int]]


def _paired_bars(key: str, names: Sequence[str], series: Sequence[Series], xlabel: str) -> str:
    looks = ({"color": FIRST}, {"facecolor": PAPER, "edgecolor": SECOND, "hatch": "////", "linewidth": 1.2})
    height = 0.8 / len(series)
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(len(names), row_height=14 + 15 * len(series), extra=30)
        largest = max((share or 0.0 for _, shares, _ in series for share in shares), default=0.0) or 1.0
        for index, (label, shares, counts) in enumerate(series):
            places = [place + (index - (len(series) - 1) / 2) * height for place in range(len(names))]
            widths = [share or 0.0 for share in shares]
            look: dict[str, Any] = dict(looks[index])
            axes.barh(places, widths, height=height * 0.86, label=label, **look)
            for place, width, count in zip(places, widths, counts, strict=True):
                text = f"{render_count(count)} ({render_share(width)})"
                axes.text(width + largest * 0.015, place, text, va="center", fontsize=11, color=MUTED)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, largest * 1.62)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.set_xlabel(xlabel)
        _plain_axes(axes)
        if len(series) > 1:
            _legend(figure, axes)
        return _svg(figure, key)


def _value(row: Mapping[str, Any], key: str) -> float | None:
    return float(row[key]) if is_defined(row.get(key)) else None


def _canvas(num_rows: int, row_height: float, extra: float = 0) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH / 72, (num_rows * row_height + 52 + extra) / 72), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _plain_axes(axes: Axes) -> None:
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    if not axes.yaxis.get_gridlines()[0].get_visible():
        axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(unique.values(), unique.keys(), loc="outside upper left", ncols=len(unique), fontsize=11)


def _svg(figure: Figure, key: str) -> str:
    """Return the figure as an `<svg>` element whose ids begin with `key` and whose colours are CSS variables."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(
        r'<svg [^>]*viewBox="([^"]*)"[^>]*>', r'<svg viewBox="\1" aria-hidden="true" focusable="false">', text, count=1
    )
    text = re.sub(r'\bid="([^"]*)"', rf'id="{key}-\1"', text)
    text = re.sub(r'xlink:href="#([^"]*)"', rf'href="#{key}-\1"', text)
    text = re.sub(r"url\(#([^)]*)\)", rf"url(#{key}-\1)", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--font)", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, f"var({variable})")
    return re.sub(r"\n\s*", "\n", text)
