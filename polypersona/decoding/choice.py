"""Seeded draws of one option, and the numbers that all draws are made from. Knows numbers only: no token, no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_GOLDEN = 0x9E3779B97F4A7C15


def uniform(seed: int, step: int) -> float:
    """Return a number in [0, 1), a function of (seed, step): the SplitMix64 finaliser of Steele et al. (2014), twice.

    `seed` is in [0, 2**63), `step` counts a cell's draws from 0.
    """
    return float(uniforms([seed], [step])[0])


def uniforms(seeds: npt.ArrayLike, steps: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return `uniform` of every pair, (rows,)."""
    with np.errstate(over="ignore"):
        mixed = _mix(np.asarray(seeds, np.uint64))
        mixed = _mix(mixed + np.asarray(steps, np.uint64) * np.uint64(_GOLDEN))
    return (mixed >> np.uint64(11)).astype(np.float64) / 2.0**53


def choose_option(log_probs: Sequence[float], seed: int, *, is_greedy: bool) -> tuple[int, list[float]]:
    """Return the index drawn and the probabilities (softmax of the log probabilities) it is drawn from."""
    choices, probs = choose_options([log_probs], [seed], is_greedy=is_greedy)
    return choices[0], probs[0]


def choose_options(
    log_probs: Sequence[Sequence[float]], seeds: Sequence[int], *, is_greedy: bool
) -> tuple[list[int], list[list[float]]]:
    """Return for each row the index drawn and the probabilities it is drawn from, whatever rows stand beside it.

    Args:
        log_probs: rows of finite log probabilities, up to a constant each; rows may differ in length.
        seeds: one per row; the draw is the seed's step 0.
        is_greedy: take the likeliest, of equal ones the first.
    """
    lengths = {len(row) for row in log_probs}
    if len(lengths) == 1:
        return choose_in_rows(np.array(log_probs, np.float64), seeds, is_greedy=is_greedy)
    choices, probs = [0] * len(log_probs), [[0.0]] * len(log_probs)
    for length in lengths:
        places = [place for place, row in enumerate(log_probs) if len(row) == length]
        rows = np.array([log_probs[place] for place in places], np.float64)
        found = choose_in_rows(rows, [seeds[place] for place in places], is_greedy=is_greedy)
        for place, choice, row in zip(places, *found, strict=True):
            choices[place], probs[place] = choice, row
    return choices, probs


def choose_in_rows(
    log_probs: npt.NDArray[np.float64], seeds: Sequence[int], *, is_greedy: bool
) -> tuple[list[int], list[list[float]]]:
    """Return what `choose_options` does for rows of one length, (rows, options).

    Sums run from the first option to the last, so that a row's are its own.
    """
    weights = np.exp(log_probs - log_probs.max(1, keepdims=True))
    edges = weights.cumsum(1)
    probs = weights / edges[:, -1:]
    if is_greedy:
        chosen = probs.argmax(1)
    else:
        totals = edges[:, -1]
        draws = np.minimum(uniforms(seeds, [0]) * totals, np.nextafter(totals, 0.0))
        chosen = (edges <= draws[:, None]).sum(1)
    return chosen.tolist(), probs.tolist()


def _mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    values = values + np.uint64(_GOLDEN)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
