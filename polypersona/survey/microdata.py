"""Coded human data and their codebook → respondents × items: codes, how each cell ended, weights, demographics.

A column is kept as its item's option indices beside outcomes, so that an answer, a refusal, another missing code and a
cell that was not asked stay apart. Where the data contradict the codebook, every contradiction is named by item, in one
error. Knows no run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from polypersona.errors import nearest
from polypersona.location import mask_secrets
from polypersona.survey.codebook import Codebook, Demographic, Question, says_not
from polypersona.survey.codebook_checks import read_codebook
from polypersona.survey.columns import Columns, read_columns
from polypersona.survey.problems import Problem, refusal

FloatArray: TypeAlias = npt.NDArray[np.float64]
IntArray: TypeAlias = npt.NDArray[np.int64]

# Answers of people whom `asked_if` routes past: more than this share of an item's answers is a wrong codebook.
MAX_STRAYS = 0.01
_SHOWN_VALUES = 5


class Outcome(IntEnum):
    """How a cell ended. `MISSING` is any missing code that is no refusal, or an empty cell that means nothing else."""

    ANSWERED = 0
    REFUSED = 1
    MISSING = 2
    NOT_ASKED = 3


@dataclass(frozen=True, slots=True)
class Answers:
    """One item of all respondents: the index of the option chosen (−1 where none), and how each cell ended."""

    options: IntArray
    outcomes: npt.NDArray[np.int8]
    missing_codes: IntArray

    def count(self, outcome: Outcome) -> int:
        """Return how many cells ended so."""
        return int(np.count_nonzero(self.outcomes == outcome))

    @property
    def is_answered(self) -> npt.NDArray[np.bool_]:
        """Where there is an option."""
        return self.options >= 0


@dataclass(frozen=True, slots=True)
class Survey:
    """Human data, read. `answers` are those of closed items by id; `traits` the demographic columns as texts.

    `notes` say what was found that keeps nobody from going on.
    """

    codebook: Codebook
    location: str
    respondent_ids: tuple[str, ...]
    weights: FloatArray
    answers: Mapping[str, Answers]
    traits: Mapping[str, tuple[str, ...]]
    notes: tuple[str, ...] = field(default=())

    @property
    def num_respondents(self) -> int:
        """How many people there are."""
        return len(self.respondent_ids)


def load_human(location: str, codebook: str | Path) -> Survey:
    """Read human data and their codebook from paths or URLs.

    Raises:
        SurveyError: as `load_survey`; what is wrong in the codebook itself is listed with the rest.
        MissingExtraError: the library that reads the format is not installed.
    """
    book, problems = read_codebook(codebook)
    return load_survey(location, book, problems)


def load_survey(location: str, codebook: Codebook, known: Sequence[Problem] = ()) -> Survey:
    """Read the data that a codebook describes; `known` are problems found before.

    Raises:
        SurveyError: the file cannot be read, or contradicts the codebook; every contradiction is in the message.
        MissingExtraError: the library that reads the format is not installed.
    """
    closed = [question for question in codebook.questions if question.is_closed]
    wanted = [codebook.respondent_id, codebook.weight, *(one.column for one in codebook.demographics)]
    wanted += [question.column for question in closed]
    read = read_columns(str(location), [name for name in wanted if name], codebook.header_rows)
    problems = [*known, *_missing_columns(codebook, closed, read)]
    answers: dict[str, Answers] = {}
    for question in closed:
        if question.column in read.columns:
            answers[question.item_id], found = _decode(question, read.columns[question.column], codebook.not_asked)
            problems += found
    notes = _check_routing(closed, answers, problems)
    ids, weights = _ids(codebook, read, problems), _weights(codebook, read, problems)
    traits = {
        one.column: tuple(read.columns[one.column].to_pylist())
        for one in codebook.demographics
        if one.column in read.columns
    }
    for one in codebook.demographics:
        problems += _check_trait(one, traits.get(one.column, ()), codebook.not_asked)
    if problems:
        raise refusal(f"The codebook of {mask_secrets(str(location))}", problems)
    left_out = [question.item_id for question in codebook.questions if not question.is_closed]
    if left_out:
        notes.append(f"{len(left_out)} items without options are not read: {', '.join(left_out[:_SHOWN_VALUES])}")
    return Survey(codebook, mask_secrets(str(location)), ids, weights, answers, traits, tuple(notes))


def _missing_columns(codebook: Codebook, closed: Sequence[Question], read: Columns) -> list[Problem]:
    named = [("", "respondent_id", codebook.respondent_id), ("", "weight", codebook.weight)]
    named += [(one.column, "demographics", one.column) for one in codebook.demographics]
    named += [(question.item_id, "items", question.column) for question in closed]
    return [
        Problem(item, f"the data have no column {column!r} ({where}).{nearest(column, read.names)}")
        for item, where, column in named
        if column and column not in read.columns
    ]


def _decode(question: Question, column: pa.Array, not_asked: frozenset[str]) -> tuple[Answers, list[Problem]]:
    """Return the answers of one column and what in it the codebook does not know."""
    coded = column.dictionary_encode()
    cells = [str(cell) for cell in coded.dictionary.to_pylist()]
    counts = np.bincount(coded.indices.to_numpy(), minlength=len(cells))
    place = {code: index for index, code in enumerate(question.codes)}
    by_label = {label.casefold(): code for code, label in (*question.options.items(), *question.missing.items())}
    options, outcomes, missing = (np.full(len(cells) + 1, start, np.int64) for start in (-1, Outcome.MISSING, 0))
    strays: dict[str, int] = {}
    for index, cell in enumerate(cells):
        number = whole_number(cell)
        code = by_label.get(cell.casefold()) if number is None else number
        if cell in not_asked:
            outcomes[index] = Outcome.NOT_ASKED
        elif code is not None and code in place:
            options[index], outcomes[index] = place[code], Outcome.ANSWERED
        elif code is not None and code in question.missing:
            missing[index] = code
            outcomes[index] = Outcome.REFUSED if "refus" in question.missing[code].casefold() else Outcome.MISSING
        elif cell:
            strays[cell] = int(counts[index])
    indices = coded.indices.to_numpy()
    answers = Answers(options[indices], outcomes[indices].astype(np.int8), missing[indices])
    return answers, _contradictions(question, answers, strays)


def _contradictions(question: Question, answers: Answers, strays: Mapping[str, int]) -> list[Problem]:
    problems = [
        Problem(question.item_id, f"the data hold {cell!r} ({count:,} times), which the codebook does not know")
        for cell, count in list(strays.items())[:_SHOWN_VALUES]
    ]
    chosen = np.bincount(answers.options[answers.is_answered], minlength=len(question.codes))
    for code, label, count in zip(question.codes, question.options.values(), chosen, strict=True):
        if not count and code not in question.unused:
            remedy = f'if nobody chose it, add `"unused": [{code}]`'
            problems.append(Problem(question.item_id, f"no respondent has the code {code} ({label!r}); {remedy}"))
    if question.response_type == "multiple" and not strays and answers.count(Outcome.REFUSED):
        empty = next(code for code, label in question.options.items() if says_not(label))
        if not chosen[question.codes.index(empty)]:
            problems.append(Problem(question.item_id, "its missing code stands where an empty box is expected"))
    return problems


def whole_number(cell: str) -> int | None:
    """Return a cell as a code: "3", "3.0" and "-1" are; None for anything else."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return int(value) if math.isfinite(value) and value.is_integer() else None


def _check_routing(questions: Sequence[Question], answers: Mapping[str, Answers], problems: list[Problem]) -> list[str]:
    """Add a problem where answers and `asked_if` contradict each other; return a note for a few strays."""
    notes = []
    by_id = {question.item_id: question for question in questions}
    for question in questions:
        if not question.asked_if or question.item_id not in answers:
            continue
        gates = [gate for gate in question.asked_if if gate.item_id in answers]
        is_open = np.ones(len(answers[question.item_id].options), dtype=bool)
        for gate in gates:
            is_open &= _holds(answers[gate.item_id], by_id[gate.item_id], gate.codes)
        own = answers[question.item_id]
        strays = int(np.count_nonzero(own.is_answered & ~is_open))
        skipped = int(np.count_nonzero((own.outcomes == Outcome.NOT_ASKED) & is_open))
        for count, of, what in (
            (strays, own.is_answered.sum(), "answers of respondents whom `asked_if` routes past it"),
            (skipped, is_open.sum(), "cells say not asked, though `asked_if` lets the item be asked"),
        ):
            if count > MAX_STRAYS * max(1, int(of)):
                problems.append(Problem(question.item_id, f"{count:,} {what}"))
            elif count:
                notes.append(f"{question.item_id}: {count:,} {what}")
    return notes


def _holds(answers: Answers, question: Question, codes: Sequence[int]) -> npt.NDArray[np.bool_]:
    wanted = [question.codes.index(code) for code in codes if code in question.options]
    missing = [code for code in codes if code in question.missing]
    is_missing = (answers.outcomes == Outcome.REFUSED) | (answers.outcomes == Outcome.MISSING)
    return np.asarray(np.isin(answers.options, wanted) | (is_missing & np.isin(answers.missing_codes, missing)))


def _ids(codebook: Codebook, read: Columns, problems: list[Problem]) -> tuple[str, ...]:
    if codebook.respondent_id not in read.columns:
        return tuple(str(place) for place in range(1, read.num_rows + 1))
    ids = [str(cell) for cell in read.columns[codebook.respondent_id].to_pylist()]
    seen: dict[str, int] = {}
    for row, name in enumerate(ids, start=1):
        if not name:
            problems.append(Problem("", f"row {row} has no {codebook.respondent_id}"))
            break
        if name in seen:
            problems.append(Problem("", f"the {codebook.respondent_id} {name!r} stands in rows {seen[name]} and {row}"))
            break
        seen[name] = row
    return tuple(ids)


def _weights(codebook: Codebook, read: Columns, problems: list[Problem]) -> FloatArray:
    if codebook.weight not in read.columns:
        return np.ones(read.num_rows)
    weights = np.empty(read.num_rows)
    for row, cell in enumerate(read.columns[codebook.weight].to_pylist()):
        try:
            weights[row] = float(cell)
        except ValueError:
            weights[row] = math.nan
    wrong = np.flatnonzero(~(np.isfinite(weights) & (weights >= 0)))
    if wrong.size or not weights.sum() > 0:
        cell = read.columns[codebook.weight][int(wrong[0]) if wrong.size else 0].as_py()
        problems.append(
            Problem(
                "", f"{wrong.size:,} weights ({codebook.weight}) are no number of at least 0, the first is {cell!r}"
            )
        )
    return weights


def _check_trait(one: Demographic, cells: Sequence[str], not_asked: frozenset[str]) -> list[Problem]:
    found = {cell for cell in set(cells) if cell and cell not in not_asked}
    if one.is_integer:
        strays = sorted(cell for cell in found if whole_number(cell) is None)
        return [Problem(one.column, f"the data hold {strays[0]!r}, which is no whole number")] if strays else []
    strays = sorted(found - set(one.values))
    problems = [
        Problem(one.column, f"the data hold {cell!r}, which `values` lack.{nearest(cell, one.values)}")
        for cell in strays[:_SHOWN_VALUES]
    ]
    if cells:
        problems += [Problem(one.column, f"no respondent is {value!r}") for value in one.values if value not in found]
    return problems
