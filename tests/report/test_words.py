import pytest
from toy_runs import toy_items, toy_recipe, toy_scores

from polypersona.metrics.card_similarity import NAME
from polypersona.report.words import conclusions, headline, is_simulated, meaning, warnings_of, what_was_run

SUMMARY = {
    "num_personas": 44,
    "num_items": 82,
    "num_domains": 10,
    "num_rows": 357,
    "num_not_asked": 0,
    "num_complete": 350,
    "share_complete": 350 / 357,
    "share_quarantined": 0.0,
    "adapter": "run",
}


def test_what_was_run_names_counts_model_and_what_the_model_had_not_seen(tmp_path):
    text = " ".join(what_was_run(toy_recipe(tmp_path), SUMMARY))
    assert "44 synthetic respondents were asked 82 questions of 10 domains: 357 answers, of which 350 (98.0 %)" in text
    assert "the language model tiny with an adapter tuned in this run" in text
    assert "tuned on answers of other respondents" in text


def test_rules_that_answer_are_no_tuned_model(tmp_path):
    recipe = toy_recipe(tmp_path, generate={"on": "test", "engine": "rules"})
    assert "tuned" not in " ".join(what_was_run(recipe, SUMMARY))
    assert any("compare the rules with themselves" in text for text in warnings_of(recipe, toy_scores([]), SUMMARY))


@pytest.mark.parametrize(
    ("reference", "dataset", "expected"),
    [
        ("teacher", {}, True),
        ("dataset", {}, True),
        ("dataset", {"teacher": "packed"}, False),
        ("dataset", {"source": "humans.jsonl"}, False),
        ("none", {}, False),
    ],
)
def test_scores_are_agreement_with_a_simulator_only_where_rules_wrote_the_reference(
    tmp_path, reference, dataset, expected
):
    assert is_simulated(toy_recipe(tmp_path, dataset=dataset), reference) is expected


@pytest.mark.parametrize("ignores", [True, False])
def test_cards_that_are_ignored_are_a_warning_and_cards_that_count_a_conclusion(tmp_path, ignores):
    recipe, scores = toy_recipe(tmp_path), toy_scores(toy_items(1), ignores_cards=ignores)
    warned = any("ignores these cards" in text for text in warnings_of(recipe, scores, SUMMARY))
    can, cannot = conclusions(recipe, scores, SUMMARY)
    assert warned is ignores
    assert any("depend on the cards" in text for text in can) is not ignores
    assert any(text.startswith("What people think") for text in cannot)


def test_more_quarantine_than_allowed_is_a_warning(tmp_path):
    texts = warnings_of(toy_recipe(tmp_path), {}, {**SUMMARY, "share_quarantined": 0.05})
    assert any("5.0 % of the planned answers failed" in text for text in texts)


def test_the_likeness_of_answers_and_cards_has_a_card_and_is_said_in_words():
    rows = [{"metric": name, "score": 0.5} for name in ("bleu", NAME, "fact_rate", "fact_faithfulness")]
    assert [row["metric"] for row in headline(rows)] == ["fact_faithfulness", NAME, "bleu"]
    assert "respondent's card" in meaning(NAME)
