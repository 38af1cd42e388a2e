"""Which of a run's several adapters answers which domain: the recipe's word, else what each was tuned on.

Where several were tuned for the same, the recipe chooses by name (`generate.adapters`) or by score (`finetune.choose`);
what was chosen once is frozen in run.json. Nothing is guessed: an ambiguous or missing adapter is an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from polypersona.engines.adapter_files import base_alone
from polypersona.engines.adapter_table import AdapterEntry, AdapterTable
from polypersona.engines.settings import Weights
from polypersona.errors import EngineError, ModelError, RecipeError, nearest
from polypersona.population import Population
from polypersona.recipe import Recipe
from polypersona.roster import Member, build_roster

# Under this key the run's frozen values hold the names that answer each domain.
FROZEN_KEY = "adapters"


def choose_adapters(recipe: Recipe, weights: Weights, population: Population, frozen: Mapping[str, Any]) -> Weights:
    """Return the weights with a table of who answers what, where the run has several adapters.

    Args:
        recipe: what is asked for.
        weights: what `locate_weights` has found.
        population: who is asked what.
        frozen: the values that the run's first start has settled.

    Raises:
        RecipeError: a name that is none of the run's adapters, or several for the same and no choice.
        ModelError: an adapter that is needed is not trained yet.
        EngineError: a cell that no adapter is for, or an interview that several would have to hold.
    """
    if not weights.candidates:
        return weights
    settled = frozen.get(FROZEN_KEY, {})
    roster = {member.name: member for member in build_roster(recipe)}
    domains = list(dict.fromkeys(item.domain for item in population.items))
    _refuse_strangers(recipe, roster, domains)
    by_domain = {domain: _names(recipe, roster, weights.candidates, domain, settled.get(domain)) for domain in domains}
    used = {name: weights.candidates[name] for names in by_domain.values() for name in names}
    for name, entry in used.items():
        if not entry.is_trained:
            raise ModelError(
                f"The adapter {name!r} is not trained yet.",
                "Run the finetune stage, or name another one in generate.adapters.",
            )
    base = base_alone(recipe) if recipe.generate.without_adapter == "base" else None
    table = AdapterTable(used, by_domain, base)
    _refuse_cells(recipe, table, population)
    sizes = [entry.model_bytes for entry in table.answering.values()]
    size = None if None in sizes else max((one or 0 for one in sizes), default=None)
    return replace(weights, table=table, model_bytes=size)


def frozen_choice(weights: Weights, frozen: Mapping[str, Any]) -> dict[str, Any]:
    """Return what run.json is to hold of the choice: earlier domains as they were, and those that are new."""
    if weights.table is None:
        return {}
    chosen = {domain: list(names) for domain, names in weights.table.by_domain.items()}
    return {FROZEN_KEY: {**frozen.get(FROZEN_KEY, {}), **chosen}}


def _refuse_strangers(recipe: Recipe, roster: Mapping[str, Member], domains: Sequence[str]) -> None:
    known = sorted({*domains, *(domain for member in roster.values() for domain in member.scope.domains)})
    for domain, named in recipe.generate.adapters.items():
        if domain not in known:
            raise RecipeError(
                f"generate.adapters: {domain!r} is no domain of this run.{nearest(domain, known)}",
                f"Its domains are {', '.join(known)}.",
            )
        for name in [named] if isinstance(named, str) else named:
            if name not in roster:
                raise RecipeError(
                    f"generate.adapters.{domain}: {name!r} is none of the run's adapters.{nearest(name, roster)}",
                    f"They are {', '.join(roster)}.",
                )


def _names(
    recipe: Recipe,
    roster: Mapping[str, Member],
    candidates: Mapping[str, AdapterEntry],
    domain: str,
    settled: Sequence[str] | None,
) -> tuple[str, ...]:
    """Return the adapters that answer a domain: one for each group of personas that any of them is for."""
    named = recipe.generate.adapters.get(domain)
    if named is not None:
        names = [named] if isinstance(named, str) else list(named)
    elif settled is not None and all(name in roster for name in settled):
        return tuple(settled)
    else:
        names = [member.name for member in roster.values() if member.scope.has_domain(domain)]
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(repr(sorted(roster[name].scope.personas.items())), []).append(name)
    return tuple(_best(recipe, [candidates[name] for name in rivals], domain) for rivals in groups.values())


def _best(recipe: Recipe, rivals: Sequence[AdapterEntry], domain: str) -> str:
    """Return the only one, or where the recipe wants that the one of the lowest validation loss."""
    names = ", ".join(one.name for one in rivals)
    if len(rivals) == 1:
        return rivals[0].name
    if recipe.finetune.choose is None:
        raise RecipeError(
            f"{len(rivals)} adapters are for the domain {domain!r}: {names}.",
            f"Name one in generate.adapters, as in `{domain}: {rivals[0].name}`, or set finetune.choose: eval_loss.",
        )
    if missing := [one.name for one in rivals if not one.is_trained or one.eval_loss is None]:
        raise ModelError(
            f"finetune.choose compares {names} for {domain!r}, and {missing[0]!r} has no validation loss.",
            "Run the finetune stage to its end with a validation split, or name an adapter in generate.adapters.",
        )
    if len({(one.validation, one.model_hash) for one in rivals}) > 1:
        raise RecipeError(
            f"finetune.choose cannot compare {names} for {domain!r}: their losses are of other rows or another base.",
            "Name one of them in generate.adapters.",
        )
    return min(rivals, key=lambda one: one.eval_loss or 0.0).name


def _refuse_cells(recipe: Recipe, table: AdapterTable, population: Population) -> None:
    """Refuse cells that no adapter is for, that several are for, and interviews that would change hands."""
    is_interview = recipe.generate.context == "previous"
    num_without = dict.fromkeys(table.by_domain, 0)
    for persona in population.personas:
        hands = set()
        for domain, own in table.by_domain.items():
            names = table.names_for(persona, domain) if own else []
            if len(names) > 1:
                raise RecipeError(
                    f"The adapters {' and '.join(names)} are both for persona {persona.persona_id!r} in {domain!r}.",
                    "Make the personas of the adapters exclude each other, or name one in generate.adapters.",
                )
            num_without[domain] += not names
            hands.add(names[0] if names else "")
        if is_interview and len(hands) > 1:
            raise EngineError(
                "generate.context: previous makes an interview one conversation, and the run's adapters part it by "
                f"domain: {', '.join(sorted(hands - {''}))}.",
                "Set generate.context: none, or name one adapter for all domains in generate.adapters.",
            )
    if table.base is None:
        for domain, number in num_without.items():
            if number:
                raise EngineError(
                    f"No adapter is for the domain {domain!r} and {number:,} of {len(population.personas):,} personas.",
                    "Tune one in finetune.adapters, name one in generate.adapters, or set generate.without_adapter: "
                    "base.",
                )
