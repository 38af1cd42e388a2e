"""The margins that sampled personas are drawn from: tables of US adults, each with where its figures are from.

What is a count and what an approximation:

- Age × sex are public counts (US Census Bureau, adult population by age band and sex, as compiled for the PRISM
  Alignment project, Kirk et al. 2024).
- Education, work and marital status by age, religion, area and political views are rounded *approximations* to the
  published tables named beside them. They are close enough to look like a population and no basis for an estimate.
- Occupations are no census: their kinds stand to each other as in the PolyPersona paper's own 433 personas
  (professionals 17.8 %, educators 14.2, healthcare workers 11.3, technical specialists 10.7). Here they hold three
  quarters of those shares of a panel, because its retired, a fifth, have no occupation. Students are as many as in
  the paper, 12.5 %, about twice as many as among US adults.
- Values, temperament and interests are uniform and independent of everything else, by assumption.

Weights in a row are relative; they need not sum to one. A table by age is a tuple of (lowest age, row), ascending: a
row holds from its lowest age on. Knows no sampling.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

MARGINS_VERSION = 2
Row: TypeAlias = Mapping[str, float]
ByAge: TypeAlias = tuple[tuple[int, Row], ...]

MIN_AGE = 18
MAX_AGE = 90

# Shares of all adults in percent: (lowest age, highest age, male, female). The last band is open in the source; within
# it the sampler lets the weight fall linearly to MAX_AGE, within the others ages are equally likely.
AGE_BY_SEX: tuple[tuple[int, int, float, float], ...] = (
    (18, 24, 6.41, 6.09),
    (25, 34, 9.10, 8.71),
    (35, 44, 8.81, 8.51),
    (45, 54, 7.93, 7.84),
    (55, 64, 7.73, 8.01),
    (65, MAX_AGE, 9.34, 11.52),
)

# Share of adults who are nonbinary, in percent: Pew Research Center, June 2022 (3.0 under 30, 1.3 to 49, 0.1 above).
NONBINARY_BY_AGE: tuple[tuple[int, float], ...] = ((18, 3.0), (30, 1.3), (50, 0.1))

EDUCATION = ("less than high school", "high school", "some college", "bachelor's degree", "graduate degree")


def _education(*weights: float) -> Row:
    return dict(zip(EDUCATION, weights, strict=True))


# Approximation to the Census Bureau's Educational Attainment tables, 2022. No bachelor's degree under 21, no graduate
# degree under 23.
EDUCATION_BY_AGE: ByAge = (
    (18, _education(14, 48, 38, 0, 0)),
    (21, _education(7, 34, 45, 14, 0)),
    (23, _education(6, 30, 32, 30, 2)),
    (25, _education(6, 26, 26, 30, 12)),
    (35, _education(9, 26, 24, 26, 15)),
    (45, _education(10, 27, 25, 23, 15)),
    (55, _education(9, 31, 26, 20, 14)),
    (65, _education(11, 31, 26, 18, 14)),
)
# Of those whose work is to study.
EDUCATION_OF_STUDENTS: ByAge = (
    (18, _education(4, 44, 52, 0, 0)),
    (21, _education(0, 14, 64, 22, 0)),
    (23, _education(0, 10, 44, 42, 4)),
    (25, _education(0, 12, 36, 40, 12)),
)

# Approximation to the Current Population Survey's employment status by age, 2022, with students raised to 12.5 %
# of all. Nobody is retired under 50.
WORK_BY_AGE: ByAge = (
    (18, {"full time": 20, "part time": 10, "self-employed": 1, "student": 63, "unemployed": 4, "keeping house": 2}),
    (23, {"full time": 40, "part time": 9, "self-employed": 3, "student": 40, "unemployed": 4, "keeping house": 4}),
    (25, {"full time": 51, "part time": 7, "self-employed": 5, "student": 28, "unemployed": 4, "keeping house": 5}),
    (30, {"full time": 59, "part time": 8, "self-employed": 7, "student": 16, "unemployed": 4, "keeping house": 6}),
    (35, {"full time": 64, "part time": 9, "self-employed": 9, "student": 7, "unemployed": 4, "keeping house": 7}),
    (45, {"full time": 66, "part time": 10, "self-employed": 11, "student": 2, "unemployed": 4, "keeping house": 7}),
    (
        50,
        {
            "full time": 62, "part time": 10, "self-employed": 11, "student": 2, "unemployed": 3.5,
            "keeping house": 7, "retired": 4.5,
        },
    ),
    (55, {"full time": 56, "part time": 10, "self-employed": 11, "unemployed": 3, "keeping house": 7, "retired": 13}),
    (60, {"full time": 43, "part time": 10, "self-employed": 10, "unemployed": 2, "keeping house": 6, "retired": 29}),
    (65, {"full time": 15, "part time": 9, "self-employed": 7, "unemployed": 1, "keeping house": 4, "retired": 64}),
    (70, {"full time": 4, "part time": 5, "self-employed": 4, "keeping house": 3, "retired": 84}),
    (80, {"part time": 1.5, "self-employed": 1.5, "keeping house": 2, "retired": 95}),
)  # fmt: skip
# About four in five of those who keep house are women.
KEEPING_HOUSE_BY_GENDER: Row = {"female": 1.6, "male": 0.4, "nonbinary": 1.0}
# Who is retired has no occupation either: a card that names one reads as if its persona still worked.
WORK_WITHOUT_OCCUPATION = frozenset({"student", "unemployed", "keeping house", "retired"})

# Approximation to the Census Bureau's marital status tables, 2022. Nobody under 25 is widowed.
MARITAL_BY_AGE: ByAge = (
    (18, {"never married": 95, "living with partner": 4, "married": 1}),
    (21, {"never married": 80, "living with partner": 12, "married": 7.5, "divorced": 0.3, "separated": 0.2}),
    (
        25,
        {
            "never married": 46, "living with partner": 14, "married": 36, "divorced": 3, "separated": 0.8,
            "widowed": 0.2,
        },
    ),
    (
        35,
        {"never married": 22, "living with partner": 9, "married": 57, "divorced": 9, "separated": 2.3, "widowed": 0.7},
    ),
    (45, {"never married": 14, "living with partner": 6, "married": 60, "divorced": 15, "separated": 3, "widowed": 2}),
    (55, {"never married": 11, "living with partner": 4, "married": 60, "divorced": 17, "separated": 2, "widowed": 6}),
    (65, {"never married": 7, "living with partner": 3, "married": 61, "divorced": 16, "separated": 1, "widowed": 12}),
    (75, {"never married": 5, "living with partner": 2, "married": 50, "divorced": 10, "separated": 1, "widowed": 32}),
)  # fmt: skip
# Women outlive their husbands.
WIDOWED_BY_GENDER: Row = {"female": 1.4, "male": 0.55, "nonbinary": 1.0}
PARTNERED = frozenset({"married", "living with partner"})

# Approximation to the Pew Research Center's surveys of religion by age, 2023.
RELIGIONS = ("none", "Protestant", "Catholic", "Jewish", "Muslim", "Hindu", "Buddhist", "other")


def _religion(*weights: float) -> Row:
    return dict(zip(RELIGIONS, weights, strict=True))


RELIGION_BY_AGE: ByAge = (
    (18, _religion(42, 27, 18, 2, 2, 1.5, 1.5, 6)),
    (30, _religion(34, 34, 19, 2, 1.5, 1.5, 1, 7)),
    (50, _religion(22, 46, 22, 2, 0.7, 0.6, 0.7, 6)),
    (65, _religion(15, 53, 22, 3, 0.3, 0.4, 0.5, 5.8)),
)

# Approximation to self-described places of living in Pew Research Center surveys, 2018 to 2021.
AREA_BY_AGE: ByAge = (
    (18, {"rural": 15, "small town": 16, "suburb": 35, "city": 34}),
    (35, {"rural": 19, "small town": 18, "suburb": 40, "city": 23}),
    (65, {"rural": 23, "small town": 22, "suburb": 37, "city": 18}),
)

# Approximation to the General Social Survey's seven points, 2022 (6, 14, 12, 36, 13, 15 and 4 % from left to right). A
# persona's row is this one, tilted by exp(t × point), point −3 … 3, where t is POLITICS_TILT_PER_YEAR × (age − 47) plus
# the religion's tilt; the row is steeper than the survey's, because the tilts flatten it again.
POLITICS: Row = {
    "very liberal": 4.6, "liberal": 13.2, "slightly liberal": 12.6, "moderate": 39,
    "slightly conservative": 13.7, "conservative": 14, "very conservative": 3.2,
}  # fmt: skip
POLITICS_TILT_PER_YEAR = 0.006
POLITICS_TILT: Row = {
    "none": -0.35, "Protestant": 0.22, "Catholic": 0.08, "Jewish": -0.25, "Muslim": -0.1, "Hindu": -0.15,
    "Buddhist": -0.3, "other": 0.05,
}  # fmt: skip

# Income is a sum of effects and N(0, INCOME_NOISE_SD²), cut at INCOME_CUTS: the quintiles of that sum over 400,000
# sampled personas, so that each level holds a fifth. The effects are assumptions with well-known signs.
INCOMES = ("very low", "low", "middle", "high", "very high")
INCOME_EDUCATION: Row = dict(zip(EDUCATION, (-0.9, -0.45, -0.1, 0.4, 0.75), strict=True))
INCOME_WORK: Row = {
    "full time": 0.45, "self-employed": 0.35, "part time": -0.35, "student": -0.5, "retired": -0.25,
    "unemployed": -1.0, "keeping house": -0.2,
}  # fmt: skip
INCOME_PARTNERED = 0.3
INCOME_NOISE_SD = 0.8
INCOME_CUTS = (-0.9, -0.255, 0.305, 0.95)

VALUES = ("sustainability", "tradition", "innovation", "security", "community", "independence", "achievement", "family")
TEMPERAMENTS = ("cautious", "curious", "outgoing", "reserved", "optimistic", "anxious")
INTERESTS = (
    "gardening", "chess", "hiking", "painting", "cycling", "cooking", "football", "reading", "fishing", "photography",
    "running", "knitting", "music", "birdwatching", "swimming", "board games", "yoga", "baking", "woodwork",
    "video games", "dancing", "camping",
)  # fmt: skip
