"""From runs to the table: medians, ratios of the packed engine over its peers, bars and shares of the ceilings.

A ratio is the median over repetitions of the ratio within a repetition. A figure that does not exist is None with its
reason beside it, never zero. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.measuring import Outcome, Run

MODES = ("text", "scored")
PEERS = ("static32", "bucketed32", "ctranslate2_int8", "openvino_bf16")
TOLERANCE = 0.01  # a mean length is a whole number
# (peer, mode) -> bar; where it depends on the model, by model.
BARS: dict[tuple[str, str], Mapping[str, float]] = {
    ("static32", "text"): {"small": 5.0, "110m": 5.0},
    ("static32", "scored"): {"small": 6.0, "110m": 6.0},
    ("bucketed32", "text"): {"small": 3.0, "110m": 3.0},
    ("bucketed32", "scored"): {"small": 4.0, "110m": 4.0},
    ("ctranslate2_int8", "text"): {"small": 1.0, "110m": 1.3},
    ("ctranslate2_int8", "scored"): {"small": 1.5, "110m": 1.8},
    ("openvino_bf16", "text"): {"small": 0.9, "110m": 0.9},
    ("openvino_bf16", "scored"): {"small": 1.5, "110m": 1.5},
}


@dataclass(frozen=True, slots=True)
class Ratio:
    """Rows per CPU-second of the packed engine over those of a peer; `low` and `high` are over repetitions."""

    name: str
    value: float | None
    low: float | None = None
    high: float | None = None
    wall: float | None = None
    bar: float | None = None
    reason: str = ""

    @property
    def is_reached(self) -> bool | None:
        """None where there is no bar or no figure."""
        return None if self.bar is None or self.value is None else self.value >= self.bar


def _by_repetition(runs: Iterable[Run], variant: str) -> dict[int, Run]:
    return {run.repetition: run for run in runs if run.variant == variant}


def ratio(name: str, outcome: Outcome, own: str, peer: str, bar: float | None) -> Ratio:
    """Compare two variants of one phase."""
    mine, theirs = _by_repetition(outcome.runs, own), _by_repetition(outcome.runs, peer)
    both = sorted(mine.keys() & theirs.keys())
    if not both:
        failed = {variant: outcome.not_run[variant] for variant in (own, peer) if variant in outcome.not_run}
        return Ratio(name, None, bar=bar, reason="; ".join(f"{key}: {why}" for key, why in failed.items()) or "not run")
    rates = [mine[repetition].rate / theirs[repetition].rate for repetition in both]
    walls = [theirs[repetition].wall_s / mine[repetition].wall_s for repetition in both]
    return Ratio(name, median(rates), min(rates), max(rates), median(walls), bar)


def ratios(model: str, phases: Mapping[str, Outcome]) -> list[Ratio]:
    """Give the table of one model, then its fp32 figures."""
    found = [
        ratio(f"{model}.{peer}.{mode}", phases["bf16"], f"packed.{mode}", peer, BARS[peer, mode][model])
        for peer in PEERS
        for mode in MODES
    ]
    if "fp32" in phases:
        same = {"static32": "static32_fp32", "bucketed32": "bucketed32_fp32"}
        found += [
            ratio(f"{model}.{peer}.{mode}.fp32", phases["fp32"], f"packed_fp32.{mode}", same.get(peer, peer), None)
            for peer in (*PEERS, "openvino_fp32")
            for mode in MODES
        ]
    return found


def rates(phases: Mapping[str, Outcome]) -> dict[str, dict[str, float]]:
    """Give each variant's medians, from the phase that knows it first."""
    found: dict[str, dict[str, float]] = {}
    for outcome in phases.values():
        for variant in dict.fromkeys(run.variant for run in outcome.runs):
            mine = [run for run in outcome.runs if run.variant == variant]
            found.setdefault(
                variant,
                {
                    "rows_per_cpu_s": median(run.rate for run in mine),
                    "cpu_s": median(run.cpu_s for run in mine),
                    "wall_s": median(run.wall_s for run in mine),
                    "tokens": mine[0].tokens,
                },
            )
    return found


def uneven(outcome: Outcome, tokens: int) -> list[str]:
    """Name the variants that wrote another number of tokens than the budget; scored ones write fewer by design."""
    written = {run.variant: run.tokens for run in outcome.runs if not run.variant.endswith("scored")}
    return [
        f"{variant} wrote {found} tokens, not {tokens}"
        for variant, found in written.items()
        if abs(found - tokens) > TOLERANCE * tokens
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def ratio_lines(found: Sequence[Ratio]) -> list[str]:
    """Print ratios as a Markdown table."""
    lines = ["| packed over | ratio | range | wall | bar | |", "|---|---|---|---|---|---|"]
    for row in found:
        word = {True: "reached", False: "missed", None: ""}[row.is_reached]
        spread = "–" if row.value is None else f"{_number(row.low)} to {_number(row.high)}"
        note = word if row.value is not None else f"not run: {row.reason}"
        lines.append(
            f"| {row.name} | {_number(row.value)} | {spread} | {_number(row.wall)} | {_number(row.bar, 1)} | {note} |"
        )
    return lines


def rate_lines(model: str, found: Mapping[str, Mapping[str, float]], not_run: Mapping[str, str]) -> list[str]:
    """Print each variant's medians as a Markdown table."""
    lines = [f"| {model} | rows per CPU-second | CPU-seconds | wall seconds | tokens |", "|---|---|---|---|---|"]
    for variant, row in found.items():
        figures = " | ".join(_number(row[key]) for key in ("rows_per_cpu_s", "cpu_s", "wall_s"))
        lines.append(f"| {variant} | {figures} | {row['tokens']:.0f} |")
    return [*lines, *(f"| {variant} | not run: {reason} | | | |" for variant, reason in not_run.items())]
