"""People's numbers across, the run's up: a square chart with the line on which both are the same.

Drawn like the other charts. Knows points and their looks, not what they mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib
from matplotlib.ticker import MaxNLocator

from polypersona.report.canvas import (
    BAD,
    FIRST,
    LINE,
    MUTED,
    SECOND,
    STYLE,
    add_legend,
    new_canvas,
    plain_axes,
    render_svg,
)

_SIDE = 330  # points
_MANY, _SMALLER = 200, 0.7
# Marks differ in shape as well as in colour, so that they can be told apart in grey.
LOOKS: dict[str, dict[str, Any]] = {
    "plain": {"marker": "o", "markersize": 4.5, "markerfacecolor": "none", "markeredgecolor": MUTED},
    "filled": {"marker": "o", "markersize": 5, "markerfacecolor": FIRST, "markeredgecolor": "none"},
    "listed": {"marker": "D", "markersize": 5, "markerfacecolor": SECOND, "markeredgecolor": "none"},
    "alarm": {"marker": "s", "markersize": 5.5, "markerfacecolor": BAD, "markeredgecolor": "none"},
}


class Points(NamedTuple):
    """Some points that look alike: a name for the legend, one of `LOOKS`, and (across, up) of each."""

    label: str
    look: str
    places: Sequence[tuple[float, float]]


def scatter_chart(groups: Sequence[Points], key: str, across: str, up: str, least: float | None = None) -> str:
    """Return a scatter chart with the diagonal, both axes alike, and lines at zero where values lie on both sides.

    Args:
        groups: drawn in their order, later ones on top.
        key: the beginning of the chart's ids.
        across: what the horizontal axis shows.
        up: what the vertical axis shows.
        least: where both axes begin; unless given, where the points do.
    """
    values = [value for group in groups for place in group.places for value in place]
    low, high = min(values) if least is None else least, max(values)
    margin = 0.04 * ((high - low) or 1.0)
    limits = (low - margin, high + margin)
    with matplotlib.rc_context(STYLE):
        figure, axes = new_canvas(1, row_height=_SIDE, extra=24)
        plain_axes(axes)
        axes.grid(color=LINE, linewidth=0.7)
        if limits[0] < 0 < high and least is None:
            for draw in (axes.axhline, axes.axvline):
                draw(0, color=MUTED, linewidth=1.0, zorder=1)
        axes.plot(
            limits, limits, color=MUTED, linewidth=1.4, linestyle=(0, (4, 3)), zorder=1, label="the same on both sides"
        )
        scale = _SMALLER if len(values) > 2 * _MANY else 1.0
        for place, group in enumerate(groups):
            if group.places:
                look = LOOKS[group.look]
                xs, ys = zip(*group.places, strict=True)
                axes.plot(
                    xs, ys, linestyle="none", label=group.label, zorder=2 + place,
                    **{**look, "markersize": scale * look["markersize"]},
                )  # fmt: skip
        axes.set_xlim(*limits)
        axes.set_ylim(*limits)
        axes.set_aspect("equal")
        axes.set_xlabel(across)
        axes.set_ylabel(up)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(5))
        axes.tick_params(axis="y", labelcolor=MUTED)
        add_legend(figure, axes)
        return render_svg(figure, key)
