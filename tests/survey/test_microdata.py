"""Human data: the published tables, every file format, and what contradicts the codebook."""

import csv
import json

import numpy as np
import openpyxl
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pyreadstat
import pytest

from polypersona.errors import SurveyError
from polypersona.panel.sources import load_panel
from polypersona.recipe_sections import PanelRecipe
from polypersona.survey.codebook_checks import parse_codebook
from polypersona.survey.inference import kish_of
from polypersona.survey.microdata import Outcome, load_survey
from polypersona.survey.personas import build_personas, render_personas

HEADER = ["id", "w", "age", "sex", "q1", "q2", "q3_1", "q3_2"]
ROWS = [
    ["a", "1.0", "20", "f", "1", "", "1", "-1"],
    ["b", "2.0", "45", "m", "3", "1", "-1", "1"],
    ["c", "0.5", "60", "m", "2", "NA", "1", "-1"],
    ["d", "1.5", "33", "f", "-1", "2", "-1", "1"],
    ["e", "1.0", "71", "f", "-2", "", "-1", "-1"],
]


def table(survey, item, *, weighted=True, rows=None):
    answers = survey.answers[item]
    kept = answers.is_answered if rows is None else answers.is_answered & rows
    weights = survey.weights[kept] if weighted else np.ones(int(kept.sum()))
    counts = np.bincount(answers.options[kept], weights=weights)
    return (100 * counts / counts.sum()).round(2).tolist()


def write(folder, rows=ROWS, header=HEADER, name="data.csv"):
    path = folder / name
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])
    return str(path)


def parsed(book):
    codebook, problems = parse_codebook(book)
    assert problems == []
    return codebook


# Computed from the file by others: shared/data/README.md.
PUBLISHED = {
    "Q5": [81.21, 18.79],
    "Q6": [3.85, 25.96, 45.26, 24.92],
    "Q16": [52.66, 31.95, 12.48, 2.91],
    "Q3_1": [43.66, 28.93, 14.84, 12.57],
}


@pytest.mark.parametrize(("item", "expected"), PUBLISHED.items())
def test_the_nonvoters_weighted_tables_are_reproduced(nonvoters, item, expected):
    assert table(nonvoters, item) == expected


def test_the_unweighted_table_differs_as_published(nonvoters):
    assert table(nonvoters, "Q3_1", weighted=False) == [46.27, 27.5, 13.85, 12.39]


@pytest.mark.parametrize(
    ("race", "expected"), [("Black", 75.99), ("Hispanic", 49.08), ("Other/Mixed", 51.73), ("White", 36.12)]
)
def test_the_nonvoters_differ_by_race_as_published(nonvoters, race, expected):
    assert table(nonvoters, "Q3_1", rows=np.array(nonvoters.traits["race"]) == race)[0] == expected


def test_the_nonvoters_effective_size_is_as_published(nonvoters):
    assert nonvoters.num_respondents == 5836
    assert round(kish_of(nonvoters.weights)) == 5205


def test_a_minus_one_is_a_refusal_or_an_empty_box_as_the_codebook_says(nonvoters):
    box, question = nonvoters.answers["Q19_1"], nonvoters.answers["Q23"]
    assert (box.count(Outcome.REFUSED), int((box.options == 1).sum())) == (0, 4139)
    assert (question.count(Outcome.REFUSED), question.count(Outcome.NOT_ASKED)) == (109, 0)


def test_an_empty_cell_was_not_asked(nonvoters):
    assert nonvoters.answers["Q31"].count(Outcome.NOT_ASKED) == 5836 - 1592
    assert nonvoters.answers["Q33"].count(Outcome.NOT_ASKED) == 1592 + 2002
    assert nonvoters.notes == ()


def test_answers_refusals_other_missing_codes_and_unasked_cells_stay_apart(tmp_path, book):
    survey = load_survey(write(tmp_path), parsed(book))
    assert survey.answers["q1"].outcomes.tolist() == [0, 0, 0, 1, 2]
    assert survey.answers["q1"].options.tolist() == [0, 2, 1, -1, -1]
    assert survey.answers["q2"].outcomes.tolist() == [3, 0, 3, 0, 3]
    assert survey.weights.tolist() == [1.0, 2.0, 0.5, 1.5, 1.0]


def as_numbers(rows):
    return [
        [row[0], float(row[1]), int(row[2]), row[3], *(int(c) if c not in ("", "NA") else None for c in row[4:])]
        for row in rows
    ]


@pytest.mark.parametrize("suffix", [".tsv", ".parquet", ".xlsx", ".sav", ".jsonl"])
def test_every_format_gives_the_same_survey(tmp_path, book, suffix):
    expected = load_survey(write(tmp_path), parsed(book))
    path = tmp_path / f"data{suffix}"
    rows = as_numbers(ROWS)
    if suffix == ".tsv":
        path.write_text("\n".join("\t".join(row) for row in [HEADER, *ROWS]) + "\n", encoding="utf-8")
    elif suffix == ".parquet":
        pq.write_table(pa.table({name: [row[place] for row in rows] for place, name in enumerate(HEADER)}), path)
    elif suffix == ".xlsx":
        book_ = openpyxl.Workbook()
        for row in [HEADER, *rows]:
            book_.active.append(row)
        book_.save(path)
    elif suffix == ".sav":
        frame = pd.DataFrame(rows, columns=HEADER)
        labels = {"q1": {1: "Agree", 2: "Neither", 3: "Disagree", -1: "refused"}}
        pyreadstat.write_sav(frame, str(path), variable_value_labels=labels, missing_ranges={"q1": [-1, -2]})
    else:
        path.write_text(
            "".join(json.dumps(dict(zip(HEADER, row, strict=True))) + "\n" for row in rows), encoding="utf-8"
        )
    found = load_survey(str(path), parsed(book))
    assert found.respondent_ids == expected.respondent_ids
    assert found.weights.tolist() == expected.weights.tolist()
    assert found.traits["age"] == expected.traits["age"]
    for item, answers in expected.answers.items():
        assert found.answers[item].options.tolist() == answers.options.tolist(), item
        assert found.answers[item].outcomes.tolist() == answers.outcomes.tolist(), item


def test_labels_in_place_of_codes_are_read(tmp_path, book):
    rows = [[*row[:4], {"1": "Agree", "2": "neither", "3": "Disagree"}.get(row[4], row[4]), *row[5:]] for row in ROWS]
    survey = load_survey(write(tmp_path, rows), parsed(book))
    assert survey.answers["q1"].options.tolist() == [0, 2, 1, -1, -1]


def test_lines_of_question_text_below_the_header_are_skipped(tmp_path, book):
    book["header_rows"] = 3
    rows = [["The id?", *[""] * 7], ['{"ImportId":"x"}', *[""] * 7], *ROWS]
    assert load_survey(write(tmp_path, rows), parsed(book)).num_respondents == 5


def replaced(row, column, value):
    rows = [list(one) for one in ROWS]
    rows[row][HEADER.index(column)] = value
    return rows


WRONG = [
    (replaced(0, "q1", "7"), ["item 'q1'", "'7' (1 times)"]),
    (replaced(2, "q1", "1"), ["item 'q1'", "no respondent has the code 2", "unused"]),
    (replaced(0, "w", "x"), ["weights", "'x'"]),
    (replaced(0, "w", "-1"), ["weights", "'-1'"]),
    (replaced(0, "id", "b"), ["'b' stands in rows 1 and 2"]),
    (replaced(0, "id", ""), ["row 1 has no id"]),
    (replaced(0, "sex", "F"), ["item 'sex'", "'F'"]),
    (replaced(0, "age", "old"), ["item 'age'", "'old'"]),
    (replaced(0, "q2", "1"), ["item 'q2'", "routes past"]),
]


@pytest.mark.parametrize(("rows", "named"), WRONG)
def test_what_contradicts_the_codebook_is_named_by_item(tmp_path, book, rows, named):
    with pytest.raises(SurveyError) as caught:
        load_survey(write(tmp_path, rows), parsed(book))
    assert all(word in caught.value.message for word in named), caught.value.message


def test_all_contradictions_come_at_once(tmp_path, book):
    rows = [[*row[:4], "9" if row[0] == "a" else row[4], *row[6:]] for row in ROWS]
    header = [name for name in HEADER if name != "q2"]
    with pytest.raises(SurveyError) as caught:
        load_survey(write(tmp_path, rows, header), parsed(book))
    message = caught.value.message
    assert "'q1': the data hold '9'" in message
    assert "'q2': the data have no column 'q2'" in message
    assert "'q1': no respondent has the code 1" in message


def test_an_option_that_may_be_unused_is_no_problem(tmp_path, book):
    book["items"]["q1"]["unused"] = [2]
    assert load_survey(write(tmp_path, replaced(2, "q1", "1")), parsed(book)).num_respondents == 5


def test_a_select_all_column_whose_empty_box_was_declared_missing_is_found_in_the_data(tmp_path, test_data):
    book = json.loads((test_data / "nonvoters" / "codebook.json").read_text(encoding="utf-8"))
    book["items"]["Q19_4"] |= {"options": {"1": "ticked"}, "missing": {"-1": "refused"}}
    problems = [str(problem) for problem in parse_codebook(book)[1]]
    assert len(problems) == 1
    assert "item 'Q19_4'" in problems[0]
    assert "-1 is declared missing as 'refused'" in problems[0]


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("data.csv", b"id,id\n1,2\n", "occurs twice"),
        ("data.csv", b"\xff\xfe", "not UTF-8"),
        ("data.csv", b"id,w\n", "no respondent"),
        ("data.csv", b"id,w\n1,2,3\n", "not valid CSV"),
        ("data.parquet", b"PAR", "not a Parquet file"),
        ("data.sav", b"nothing", "not an SPSS file"),
        ("data.docx", b"", "human data end in"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, book, name, content, named):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(SurveyError, match=named):
        load_survey(str(path), parsed(book))


def test_a_missing_file_is_one_sentence(tmp_path, book):
    with pytest.raises(SurveyError, match="cannot be read"):
        load_survey(str(tmp_path / "none.csv"), parsed(book))


def test_personas_have_the_respondents_demographics_ids_and_weights(tmp_path, book):
    survey = load_survey(write(tmp_path), parsed(book))
    first = build_personas(survey)[0]
    assert (first.persona_id, dict(first.attributes), first.weight) == ("a", {"age": 20, "sex": "f"}, 1.0)


def test_written_personas_are_read_back_as_a_panel(tmp_path, nonvoters):
    path = tmp_path / "panel.jsonl"
    path.write_bytes(render_personas(nonvoters))
    panel = load_panel(PanelRecipe(source=str(path)), seed=1)
    assert len(panel.personas) == 5836
    assert panel.personas[0] == build_personas(nonvoters)[0]
