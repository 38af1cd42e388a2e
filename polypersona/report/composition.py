"""What the run is composed of: its rows by domain and question type, lengths of answers, answers per closed item.

Takes counts, gives plain JSON values: the numbers behind Figures 1, 2 and 5 and the items' distributions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from polypersona.records import RESPONSE_TYPES, Item
from polypersona.report.numbers import KINDS, plain_key
from polypersona.report.paper import domain_rank
from polypersona.report.source import Source
from polypersona.report.tally import ItemTally, Tally, box_statistics
from polypersona.survey.cells import MIN_CELL

MAX_ITEMS = 300
_ITEM_METRICS = frozenset({"stanceagreement", "exactagreement", "nearagreement", "validity"})


def by_domain(tally: Tally, source: Source) -> list[dict[str, Any]]:
    """Return records and answers per domain, with their shares (Figure 1)."""
    answers = tally.by(0)
    return [
        {
            "domain": domain,
            "records": source.domains[domain],
            "share_records": _share(source.domains[domain], source.num_records),
            "answers": answers[domain],
            "share_answers": _share(answers[domain], tally.num_rows),
        }
        for domain in sorted({*answers, *source.domains}, key=domain_rank)
    ]


def by_type(tally: Tally, source: Source) -> list[dict[str, Any]]:
    """Return questions and answers per response type, with their shares (Figure 2)."""
    questions = Counter(kind for _, kind in tally.item_types.values())
    answers = tally.by(1)
    order = dict.fromkeys((*KINDS, *RESPONSE_TYPES))
    return [
        {
            "type": kind,
            "questions": questions[kind],
            "share_questions": _share(questions[kind], sum(questions.values())),
            "records": source.types[kind],
            "answers": answers[kind],
            "share_answers": _share(answers[kind], tally.num_rows),
        }
        for kind in order
        if answers[kind] or source.types[kind]
    ]


def lengths(tally: Tally) -> dict[str, Any]:
    """Return the box-plot figures of answer lengths in characters by domain (Figure 5).

    Open answers where the run has any: a closed answer is as long as its option's label.
    """
    is_open = any(kind for _, kind in tally.lengths)
    rows = []
    for domain in sorted({name for name, kind in tally.lengths if kind == is_open}, key=domain_rank):
        box = box_statistics(tally.lengths[domain, is_open])
        if box is not None:
            rows.append({"domain": domain, **box._asdict()})
    return {"of": "open" if is_open else "closed", "rows": rows}


def closed_items(tally: Tally, source: Source, scores: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the distribution of answers of each closed item, by domain, then id; at most `MAX_ITEMS`."""
    by_item: dict[str, list[Mapping[str, Any]]] = {}
    for row in scores:
        if plain_key(str(row["metric"])) in _ITEM_METRICS:
            by_item.setdefault(str(row["group"]), []).append(row)
    order = sorted(tally.items, key=lambda key: (domain_rank(tally.item_types[key][0]), key))
    rows = []
    for key in order[:MAX_ITEMS]:
        item = source.items.get(key) or source.items.get(key.split(" · ")[0])
        domain, kind = tally.item_types[key]
        references = _references(source, key)
        rows.append(
            {
                "item": key,
                "domain": domain,
                "type": kind,
                "stem": item.stem if item else key,
                "scale": item.scale if item else "ordered",
                "n": tally.items[key].counts.total(),
                "n_reference": references.counts.total(),
                "options": _options(tally.items[key], item, references),
                "scores": by_item.get(key, []),
            }
        )
    return rows


class _References(NamedTuple):
    """The references to an item: how many of each code, their weights, and the codes that are not shown."""

    counts: Counter[int]
    weights: Counter[int]
    hidden: set[int]


def _references(source: Source, key: str) -> _References:
    """Return the references to an item; of people's answers, none where fewer than five people gave one.

    An option that one to four people chose is hidden, and where it is the only one, the next rarest too, for it could
    be had by subtraction.
    """
    counts, weights = source.reference_codes.get(key, Counter()), source.reference_weights.get(key, Counter())
    if not source.is_human:
        return _References(counts, weights, set())
    if counts.total() < MIN_CELL:
        return _References(Counter(), Counter(), set())
    by_count = sorted(counts, key=lambda code: (counts[code], code))
    hidden = [code for code in by_count if counts[code] < MIN_CELL]
    return _References(counts, weights, set(by_count[:2] if len(hidden) == 1 else hidden))


def _options(entry: ItemTally, item: Item | None, references: _References) -> list[dict[str, Any]]:
    labels = dict(zip(item.codes, item.options, strict=False)) if item else dict(sorted(entry.labels.items()))
    found = entry.mean_probabilities
    probabilities = found if found is not None and len(found) == len(labels) else [None] * len(labels)
    return [
        {
            "code": code,
            "label": label,
            "count": entry.counts[code],
            "share": _share(entry.weights[code], entry.weights.total()),
            "probability": probabilities[index],
            "reference": None if code in references.hidden else references.counts[code],
            "share_reference": (
                None if code in references.hidden else _share(references.weights[code], references.weights.total())
            ),
        }
        for index, (code, label) in enumerate(labels.items())
    ]


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None
