"""Occupations by kind: who can hold them, and how often a kind occurs at each level of education.

The kinds and their shares are the PolyPersona paper's persona types; which kind goes with which education is this
project's assumption, fitted so that over all sampled personas the kinds stand to each other as in the paper. Their
shares of a panel are smaller than the paper's, because sampled personas who are retired have no occupation. An
occupation is held from a lowest education and a lowest age on; those of public service and of the factory floor are
never self-employed. Knows no sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

# Shares of all personas in percent that the paper reports; the other 33.5 % are the rest, with and without work.
PAPER_SHARES: Mapping[str, float] = {
    "professional": 17.8,
    "educator": 14.2,
    "student": 12.5,
    "healthcare worker": 11.3,
    "technical specialist": 10.7,
}


@dataclass(frozen=True, slots=True)
class Occupation:
    """One occupation. `education` (index into `margins.EDUCATION`) and `age` are the lowest it is held with."""

    name: str
    kind: str
    education: int
    age: int
    self_employed: bool = True


def _kind(kind: str, *rows: tuple[str, int, int, bool]) -> tuple[Occupation, ...]:
    return tuple(Occupation(name, kind, education, age, own) for name, education, age, own in rows)


OCCUPATIONS: tuple[Occupation, ...] = (
    *_kind(
        "professional",
        ("lawyer", 4, 26, True), ("accountant", 3, 22, True), ("architect", 3, 24, True), ("journalist", 3, 22, True),
        ("manager", 2, 24, False), ("project manager", 2, 23, True), ("consultant", 3, 24, True),
        ("designer", 2, 20, True), ("civil servant", 2, 21, False), ("insurance agent", 1, 20, True),
        ("real estate agent", 1, 21, True), ("bookkeeper", 1, 20, True),
    ),
    *_kind(
        "educator",
        ("teacher", 3, 22, False), ("lecturer", 4, 26, False), ("librarian", 4, 25, False),
        ("school counselor", 4, 25, False), ("music teacher", 2, 20, True), ("tutor", 2, 19, True),
        ("preschool teacher", 2, 20, True), ("teaching assistant", 1, 18, False), ("sports coach", 1, 20, True),
    ),
    *_kind(
        "healthcare worker",
        ("nurse", 2, 21, False), ("doctor", 4, 28, True), ("dentist", 4, 27, True), ("pharmacist", 4, 25, True),
        ("physiotherapist", 4, 25, True), ("paramedic", 2, 20, False), ("medical assistant", 1, 19, False),
        ("caregiver", 0, 18, True),
    ),
    *_kind(
        "technical specialist",
        ("software engineer", 2, 21, True), ("data analyst", 3, 22, True), ("engineer", 3, 23, True),
        ("lab technician", 2, 20, False), ("network technician", 2, 20, True), ("electrician", 1, 20, True),
        ("mechanic", 1, 18, True),
    ),
    *_kind(
        "other",
        ("shop assistant", 0, 18, False), ("cleaner", 0, 18, True), ("factory worker", 0, 18, False),
        ("farmer", 0, 18, True), ("bus driver", 0, 21, False), ("carpenter", 0, 18, True), ("plumber", 1, 20, True),
        ("chef", 1, 20, True), ("hairdresser", 1, 19, True), ("receptionist", 1, 18, False),
        ("security guard", 1, 18, False), ("police officer", 1, 21, False), ("musician", 1, 18, True),
        ("social worker", 3, 22, False),
    ),
)  # fmt: skip

# Weight of each kind among those with an occupation, by education; fitted to the proportions of PAPER_SHARES.
KIND_BY_EDUCATION: Mapping[str, Mapping[str, float]] = {
    "less than high school": {"healthcare worker": 15.8, "other": 84.2},
    "high school": {
        "professional": 14.5, "educator": 8.6, "healthcare worker": 12.0, "technical specialist": 12.1, "other": 52.8,
    },
    "some college": {
        "professional": 25.5, "educator": 16.5, "healthcare worker": 17.3, "technical specialist": 16.4, "other": 24.4,
    },
    "bachelor's degree": {
        "professional": 35.8, "educator": 26.9, "healthcare worker": 7.4, "technical specialist": 18.6, "other": 11.3,
    },
    "graduate degree": {
        "professional": 28.0, "educator": 37.8, "healthcare worker": 23.1, "technical specialist": 11.1,
    },
}  # fmt: skip
