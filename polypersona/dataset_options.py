"""Refuses options of the dataset that its source leaves without a meaning. Takes a recipe's section; gives nothing."""

from __future__ import annotations

from polypersona import records_loader
from polypersona.errors import DatasetError
from polypersona.recipe_sections import DatasetRecipe, SurveyRecipe


def refuse_idle_options(dataset: DatasetRecipe) -> None:
    """Refuse an option that has no meaning beside the others.

    Raises:
        DatasetError: names it and says why.
    """
    _refuse_survey_without_codebook(dataset)
    if dataset.survey.codebook is not None:
        _refuse_idle_survey_options(dataset)
    elif dataset.source is not None:
        _refuse_idle_record_options(dataset, dataset.source)


def _refuse_idle_record_options(dataset: DatasetRecipe, source: str) -> None:
    """Refuse options of the dataset that records made elsewhere leave without a meaning."""
    names = ["teacher", "records"]
    if records_loader.SINGLE_FILE not in records_loader.source_files(source):
        names += ["split_by", "splits"]
    default = DatasetRecipe()
    for name in names:
        if getattr(dataset, name) != getattr(default, name):
            what = "brings its own records" if name in ("teacher", "records") else "brings its own splits"
            raise DatasetError(
                f"dataset.{name} has no meaning here: dataset.source ({source}) {what}.",
                f"Leave out dataset.{name} or dataset.source.",
            )


def _refuse_survey_without_codebook(dataset: DatasetRecipe) -> None:
    idle = [name for name in SurveyRecipe.model_fields if getattr(dataset.survey, name)]
    if idle and dataset.survey.codebook is None:
        raise DatasetError(
            f"dataset.survey.{idle[0]} has no meaning without dataset.survey.codebook.",
            "Name the codebook of the survey in dataset.source, or leave out dataset.survey.",
        )


def _refuse_idle_survey_options(dataset: DatasetRecipe) -> None:
    """Refuse a codebook without data, and options that answers of people leave without a meaning."""
    if dataset.source is None:
        raise DatasetError(
            "dataset.survey.codebook is there, but dataset.source does not name the answers it describes.",
            "Set dataset.source to the survey's file.",
        )
    default = DatasetRecipe()
    for name in ("teacher", "records", "split_by"):
        if getattr(dataset, name) != getattr(default, name):
            raise DatasetError(
                f"dataset.{name} has no meaning here: the answers are those of people, who are divided as a whole.",
                f"Leave out dataset.{name}.",
            )
