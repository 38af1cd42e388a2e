"""The ground every chart is drawn on: matplotlib figures whose colours and fonts become the page's own variables.

Every colour is a placeholder that turns into a CSS variable, so a chart follows light, dark and print. Text stays text.
Knows no numbers of a run.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from polypersona.report.numbers import is_defined

# Placeholder colours: no chart draws in a colour of its own.
INK, MUTED, LINE, PAPER, FIRST, SECOND, SOFT, THIRD, FOURTH, FIFTH, GOOD, BAD = (
    f"#0000{index:02x}" for index in range(0xA0, 0xAC)
)
_VARIABLES = {
    INK: "--ink", MUTED: "--muted", LINE: "--line", PAPER: "--card", FIRST: "--chart-1", SECOND: "--chart-2",
    SOFT: "--chart-soft", THIRD: "--chart-3", FOURTH: "--chart-4", FIFTH: "--chart-5", GOOD: "--good", BAD: "--bad",
}  # fmt: skip
SERIES = (FIRST, SECOND, THIRD, FOURTH, FIFTH)
WIDTH = 390  # points, which are CSS pixels here: narrow, so that text stays legible on a phone
STYLE: dict[Any, Any] = {
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
_MAX_LABEL = 46
_LINE_LABEL = 24
_LEGEND_CHARACTERS = 62


def value_of(row: Mapping[str, Any], key: str) -> float | None:
    """Return a row's number, None where it is undefined."""
    return float(row[key]) if is_defined(row.get(key)) else None


def short_label(text: str) -> str:
    """Return a label for an axis: on two lines at most, the rest left out."""
    if len(text) > _MAX_LABEL:
        text = text[: _MAX_LABEL - 1].rstrip() + "…"
    return "\n".join(textwrap.wrap(text, max(_LINE_LABEL, (len(text) + 1) // 2 + 4)) or [""])


def name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Write a label at each row of a chart, the first row on top. What comes from a run is text, never a formula."""
    axes.set_yticks(range(len(labels)), [short_label(label) for label in labels], parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)


def new_canvas(num_rows: int, row_height: float, extra: float = 0) -> tuple[Figure, Axes]:
    """Return a figure with room for some rows, and its axes. Call it inside `rc_context(STYLE)`."""
    figure = Figure(figsize=(WIDTH / 72, (num_rows * row_height + 52 + extra) / 72), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def plain_axes(axes: Axes) -> None:
    """Leave of the frame what carries meaning: the axis below, and faint lines to read by."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    if not axes.yaxis.get_gridlines()[0].get_visible():
        axes.grid(axis="x", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)


def add_legend(figure: Figure, axes: Axes) -> None:
    """Write each series' name once, above the axes, in as many lines as they need."""
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    columns, widest = len(unique), max(map(len, unique), default=0)
    while columns > 1 and columns * (widest + 5) > _LEGEND_CHARACTERS:
        columns -= 1
    figure.legend(
        unique.values(), unique.keys(), loc="outside upper left", ncols=columns, fontsize=11, borderpad=0.1,
        columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip


def render_svg(figure: Figure, key: str) -> str:
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
