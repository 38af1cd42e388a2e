import pytest

from polypersona.survey.codebook_checks import load_codebook
from polypersona.survey.microdata import load_survey


@pytest.fixture(scope="session")
def nonvoters(test_data):
    """Why Many Americans Don't Vote: Ipsos for FiveThirtyEight 2020, CC BY 4.0."""
    folder = test_data / "nonvoters"
    return load_survey(str(folder / "nonvoters_data.csv"), load_codebook(folder / "codebook.json"))


@pytest.fixture
def book():
    """The content of a small sound codebook."""
    return {
        "title": "Toy survey",
        "source": "made up, CC0",
        "respondent_id": "id",
        "weight": "w",
        "not_asked": "empty cell or NA",
        "demographics": {
            "age": {"label": "Age in years", "type": "integer", "bands": [18, 40]},
            "sex": {"label": "Sex", "values": ["f", "m"]},
        },
        "items": {
            "q1": {
                "stem": "I trust people.",
                "response_type": "agreement",
                "options": {"1": "Agree", "2": "Neither", "3": "Disagree"},
                "missing": {"-1": "refused", "-2": "don't know"},
            },
            "q2": {
                "stem": "Why?",
                "response_type": "yesno",
                "options": {"1": "Yes", "2": "No"},
                "missing": {"-1": "refused"},
                "asked_if": {"q1": [3, -1]},
            },
            "q3_1": {
                "stem": "Which of these?",
                "part": "Cats",
                "response_type": "multiple",
                "options": {"1": "ticked", "-1": "not ticked"},
            },
            "q3_2": {
                "stem": "Which of these?",
                "part": "Dogs",
                "response_type": "multiple",
                "options": {"1": "ticked", "-1": "not ticked"},
            },
        },
    }
