"""The sentences of the report: what was run, what can and what cannot be concluded, what each metric says.

Takes the numbers `content` gathered; gives plain sentences. Every sentence follows from a number or from the recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polypersona.recipe import Recipe
from polypersona.report.numbers import (
    is_defined,
    plain_key,
    render_count,
    render_interval,
    render_number,
    render_share,
)

SYNTHETIC = "Synthetic data: every answer in this report was written by a program, none by a person."
SIMULATOR = (
    "Agreement with a simulator: the references were written by rules, so the scores say how well the model follows "
    "the rules, and this concludes nothing about people."
)
IGNORES_CARDS = (
    "The model ignores these cards. Giving every respondent another respondent's card leaves the scores as they are, "
    "so differences between respondents in these answers mean nothing."
)

# Shown first, in this order: first whether answers are valid and follow the card, then how the texts look.
HEADLINE_METRICS = (
    "stanceagreement", "exactagreement", "nearagreement", "quadratickappa", "stanceconsistency", "contradictionrate",
    "factfaithfulness", "cardsimilarity", "retestdrawskappa", "retestwaveskappa", "validity", "bleu", "rouge1",
    "rougel", "distinct2", "lengthsimilarity", "sentimentsimilarity", "bertscoref1", "surveyquality",
)  # fmt: skip
MAX_CARDS = 12

_MEANINGS = {
    "stanceagreement": "how often the answer takes the reference's side: for, against or neither",
    "exactagreement": "how often the chosen option is the reference's",
    "nearagreement": "how often the chosen option is the reference's or its neighbour",
    "quadratickappa": "agreement of the options beyond chance: 1 is perfect, 0 is chance",
    "validity": "how often a closed question got one of its options as the answer",
    "bleu": "word sequences shared with the reference answers",
    "rouge1": "single words shared with the reference answer",
    "rouge2": "word pairs shared with the reference answer",
    "rougel": "longest common word sequence with the reference answer",
    "bertscoref1": "similarity of meaning to the reference answer, judged by a language model",
    "distinct1": "share of different words among all words: variety",
    "distinct2": "share of different word pairs among all pairs: variety",
    "lengthsimilarity": "how close the answer's length is to the reference's",
    "sentencesimilarity": "how close the number of sentences is to the reference's",
    "sentimentsimilarity": "how close the tone is to the reference's",
    "stanceconsistency": "how often a respondent takes the same side on questions of one construct",
    "contradictionrate": "how often a respondent takes opposite sides on questions of one construct",
    "interitemcorrelation": "how far a respondent's answers to questions of one construct go together",
    "factfaithfulness": "how often a fact that an answer states about its speaker is the card's",
    "cardsimilarity": "how near an answer's words stand to the respondent's card, and as the floor to another's card",
    "factrate": "how often an answer states a fact about its speaker that a card can judge",
    "retestdrawskappa": "agreement of a respondent with itself when asked again, beyond chance",
    "retestwaveskappa": "agreement of a respondent with itself in another wave, beyond chance",
    "surveyquality": "mean of the named checks of a well-formed answer",
}


def meaning(metric: str) -> str:
    """Return what a metric says, in half a sentence; empty for one that is not known here."""
    return _MEANINGS.get(plain_key(metric), "")


def is_simulated(recipe: Recipe, reference: str) -> bool:
    """Return whether the reference's answers come from the rules, by the teacher or by the dataset it wrote."""
    return reference == "teacher" or (
        reference == "dataset" and recipe.dataset.source is None and recipe.dataset.teacher == "rules"
    )


def what_was_run(recipe: Recipe, summary: Mapping[str, Any]) -> list[str]:
    """Return two or three sentences: who was asked what, by which model, with what outcome."""
    domains = "one domain" if summary["num_domains"] == 1 else f"{summary['num_domains']} domains"
    asked = (
        f"{render_count(summary['num_personas'])} synthetic respondents were asked {summary['num_items']} questions of "
        f"{domains}: {render_count(summary['num_rows'])} answers, of which {render_count(summary['num_complete'])} "
        f"({render_share(summary['share_complete'])}) are complete."
    )
    if skipped := summary["num_not_asked"]:
        asked += (
            f" A further {render_count(skipped)} cells were not asked, because an earlier answer routes past them; no "
            "share or score below counts them."
        )
    sentences = [asked, _who_answered(recipe, summary)]
    if recipe.generate.on == "test":
        sentences.append(f"The respondents are those of the dataset's test split{_what_was_unseen(recipe)}.")
    return sentences


def _what_was_unseen(recipe: Recipe) -> str:
    is_tuned_here = recipe.model.adapter == "run" and recipe.generate.engine not in ("rules", "fake", "endpoint")
    return f"; the model was tuned on {_UNSEEN[recipe.dataset.split_by]}" if is_tuned_here else ""


_UNSEEN = {
    "persona": "answers of other respondents to the same questions",
    "item": "the same respondents' answers to other questions",
    "both": "other respondents and other questions",
    "neither": "rows drawn from the same respondents and questions, so the scores flatter it",
}


def served_model(recipe: Recipe) -> str:
    """Return the model behind the endpoint that answered; empty where another engine did."""
    return recipe.generate.endpoint.model or "" if recipe.generate.engine == "endpoint" else ""


def _who_answered(recipe: Recipe, summary: Mapping[str, Any]) -> str:
    if recipe.generate.engine == "rules":
        return "The answers were written by rules, not by a language model."
    if recipe.generate.engine == "fake":
        return "The answers were written by the fake engine, which exists for tests: they carry no meaning."
    if model := served_model(recipe):
        return (
            f"They were written by the language model {model} behind {recipe.generate.endpoint.url}, which may change "
            "at any time: a second run would not give the same answers."
        )
    adapter = summary["adapter"]
    tuned = f"with the adapter {adapter}" if adapter not in ("", "none") else "without an adapter"
    if adapter == "run":
        tuned = "with an adapter tuned in this run"
    return f"They were written by the language model {recipe.model.base} {tuned}, under one seed ({recipe.seed})."


def warnings_of(recipe: Recipe, scores: Mapping[str, Any], summary: Mapping[str, Any]) -> list[str]:
    """Return what a reader must know before anything else, as plain sentences."""
    warnings = []
    conditioning = scores.get("conditioning") or {}
    if conditioning.get("ignores_cards"):
        warnings.append(f"{IGNORES_CARDS}{_gain_sentence(conditioning)}")
    if not summary["num_rows"]:
        warnings.append("There are no answers yet: the generate stage has not written any.")
    share = summary["share_quarantined"]
    if is_defined(share) and share > recipe.generate.max_quarantined:
        warnings.append(
            f"{render_share(share)} of the planned answers failed and were set aside; the recipe allows "
            f"{render_share(recipe.generate.max_quarantined)}."
        )
    if recipe.generate.engine == "fake":
        warnings.append("The fake engine answered: the numbers below test the machinery and mean nothing else.")
    if recipe.generate.engine == "rules" and is_simulated(recipe, str(scores.get("reference"))):
        warnings.append(
            "The rules wrote both the answers and the references: the scores compare the rules with themselves."
        )
    return warnings


_MACHINERY = "Whether the machinery runs: every cell was planned, answered and counted."
_INSTRUMENT = (
    "Whether the instrument runs through: which questions get valid answers, refusals or nothing, and how long the "
    "answers are."
)


def conclusions(
    recipe: Recipe, scores: Mapping[str, Any], summary: Mapping[str, Any], screens: Sequence[Mapping[str, Any]] = ()
) -> tuple[list[str], list[str]]:
    """Return (what can be concluded, what cannot), as sentences; `screens` bring their own as `can` and `cannot`."""
    reference = str(scores.get("reference", "none"))
    can = [_INSTRUMENT if recipe.generate.engine != "fake" else _MACHINERY]
    if not scores and not screens:
        can.append(
            "No scores were computed for this run, so nothing can be said about the answers' agreement with anything."
        )
    elif not scores:
        can.append(
            "No scores were computed for this run: what is known of the answers comes from what else was measured."
        )
    elif reference == "none":
        can.append("There is no reference: only properties of the answers themselves were measured.")
    elif is_simulated(recipe, reference):
        can.append("How well the model reproduces what written rules make of the respondents' cards.")
    else:
        can.append("How close the answers are to the reference answers of the dataset, each score beside its floor.")
    can.extend(_conditioning(scores.get("conditioning") or {}))
    can.extend(text for screen in screens for text in screen["can"])
    cannot = [
        "What people think. No person answered: shares and averages estimate nothing in any population.",
        "Whether groups of people differ. Differences between groups come from the model and the cards.",
    ]
    cannot.extend(text for screen in screens for text in screen["cannot"])
    cannot.append("How this run compares with the paper's printed scores: those come from other data.")
    return can, cannot


def _conditioning(conditioning: Mapping[str, Any]) -> list[str]:
    if not conditioning or conditioning.get("ignores_cards") is not False:
        return []
    return [f"That the answers depend on the cards.{_gain_sentence(conditioning)}"]


def _gain_sentence(conditioning: Mapping[str, Any]) -> str:
    gain = conditioning.get("gain")
    if not is_defined(gain):
        return ""
    interval = render_interval(conditioning.get("low"), conditioning.get("high"))
    label = str(conditioning.get("metric") or "the score").replace("_", " ")
    return (
        f" With their own reference they agree by {render_number(gain)} {interval} more than with another's ({label})."
    )


def telling(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows of the metrics that get a card."""
    return [row for row in rows if plain_key(str(row["metric"])) in HEADLINE_METRICS]


def headline(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the rows that get a card, in order of weight; where none is known, the first defined ones."""
    defined = [row for row in rows if is_defined(row["score"])]
    keys = [plain_key(str(row["metric"])) for row in defined]
    known = [defined[keys.index(name)] for name in HEADLINE_METRICS if name in keys]
    return (known or defined)[:MAX_CARDS]
