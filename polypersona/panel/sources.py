"""Panels: the personas of a run, sampled or read from a file.

`load_panel` is what the stages call; `read_personas` also says what was kept aside and what was not taken over. Bad
rows never end a run; a source without a single persona does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from polypersona.errors import PersonaError
from polypersona.location import mask_secrets
from polypersona.panel.identity import content_digest, identify
from polypersona.panel.mapping import ID_COLUMNS, IGNORED_COLUMNS, Columns, Draft, draft_personas, resolve_columns
from polypersona.panel.numbers import Strays
from polypersona.panel.rows import parse_table, read_bytes
from polypersona.panel.sampler import sample_personas, sampler_hash
from polypersona.panel.table import Reject, Table
from polypersona.recipe_sections import PanelRecipe
from polypersona.records import Persona

PERSONA_HUB_LICENSE = "CC-BY-NC-SA-4.0"


@dataclass(frozen=True, slots=True)
class Panel:
    """The personas of a run. `source_hash` is of the whole source, so a larger panel of it has the same.

    `is_human`: they are respondents of a survey, of whom no page shows a card.
    """

    personas: tuple[Persona, ...]
    source_hash: str
    license: str = ""
    is_human: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """What a file gave: personas in file order, and all that did not become one.

    `repeats` counts personas left out because their content had occurred (`distinct`); `unmapped` has, by attribute,
    the values a recoding did not name, kept as they were; `unused` are columns the recipe does not name; `skipped`
    counts, by column, cells of a kind no attribute can be; `strays`, by attribute, are the few values that keep it
    from being numeric; `notes` say what else of the file was not taken. `is_synthetic`: the file says so of every row;
    `is_human`: it says of one that it is a respondent of a survey.
    `location` shows no secrets.
    """

    location: str
    personas: tuple[Persona, ...]
    rejects: tuple[Reject, ...]
    source_hash: str
    license: str = ""
    is_synthetic: bool = False
    is_human: bool = False
    repeats: int = 0
    unmapped: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    skipped: Mapping[str, int] = field(default_factory=dict)
    strays: Mapping[str, Strays] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_panel(panel: PanelRecipe, seed: int) -> Panel:
    """Return the panel a recipe names; `seed` is the run's and matters to a sampled panel only.

    Raises:
        PersonaError: the file is missing, unreadable or empty, a named column is not there, the licence is not
            accepted, the source has fewer personas than asked for, or an option does not fit the source.
    """
    if panel.source == "sampled":
        _refuse_file_options(panel)
        if panel.size is None:
            raise PersonaError(
                "panel.size is missing: a sampled panel needs one.", "Write `size: 433`, as in the paper."
            )
        return Panel(sample_personas(panel.size, seed), sampler_hash())
    reading = read_personas(panel)
    return Panel(reading.personas, reading.source_hash, reading.license, reading.is_human)


def read_personas(panel: PanelRecipe) -> Reading:
    """Read the file that `panel.source` names, by its mapping; `panel.size` takes the first so many personas.

    Raises:
        PersonaError: as `load_panel`.
    """
    data = read_bytes(panel.source)
    location = mask_secrets(panel.source)
    table = parse_table(location, data)
    if not table.rows:
        raise _empty(location, table.rejects)
    license_ = _accepted_license(panel, table, location)
    columns = resolve_columns(panel, table, location)
    drafts, bad_rows, tally = draft_personas(columns, table, location)
    personas, duplicates, repeats = _name_personas(drafts, columns, location, distinct=panel.distinct)
    rejects = tuple(sorted((*table.rejects, *bad_rows, *duplicates), key=lambda reject: reject.row))
    if not personas:
        raise _empty(location, rejects)
    if panel.size is not None and panel.size > len(personas):
        raise PersonaError(
            f"{location} has {len(personas)} usable personas ({len(rejects)} rows kept aside), panel.size asks for "
            f"{panel.size}.",
            f"Write `size: {len(personas)}`, or leave it out to take all.",
        )
    return Reading(
        location=location,
        personas=tuple(personas[: panel.size]),
        rejects=rejects,
        source_hash=hashlib.blake2b(data, digest_size=16).hexdigest(),
        license=license_,
        is_synthetic=all(row.get("synthetic") is True for row in table.rows),
        is_human=any(row.get("is_human") is True for row in table.rows),
        repeats=repeats,
        unmapped={name: dict(counts.most_common()) for name, counts in tally.unmapped.items()},
        unused=columns.unused,
        skipped=dict(tally.skipped),
        strays=tally.strays,
        notes=table.notes,
    )


def _refuse_file_options(panel: PanelRecipe) -> None:
    for name in ("mapping", "id", "text", "weight", "accept_license", "distinct"):
        if getattr(panel, name):
            raise PersonaError(
                f"panel.{name} is for personas from a file; this panel is sampled.",
                f"Remove {name}, or name a file as panel.source.",
            )


def _empty(location: str, rejects: Iterable[Reject]) -> PersonaError:
    rejects = tuple(rejects)
    if not rejects:
        return PersonaError(f"{location} holds no persona.", "Name a file with at least one record.")
    first = rejects[0]
    where = f"row {first.row}" + (f", {first.field!r}" if first.field else "")
    return PersonaError(
        f"{location} yields no persona: all {len(rejects)} rows were kept aside, the first ({where}) because "
        f"{first.reason}.",
        "Mend the file or the mapping.",
    )


def _accepted_license(panel: PanelRecipe, table: Table, location: str) -> str:
    """Return the source's licence: PersonaHub's by its shape, else what the rows or the recipe state."""
    accepted = "-".join((panel.accept_license or "").split())
    is_hub = all(_is_persona_hub(row.fields) for row in table.rows)
    stated = sorted({str(row.outer["license"]) for row in table.rows if row.is_own and row.outer.get("license")})
    found = PERSONA_HUB_LICENSE if is_hub or PERSONA_HUB_LICENSE in stated else " AND ".join(stated)
    if found and accepted and accepted.casefold() != found.casefold():
        raise PersonaError(
            f"{location} is under {found}, the recipe accepts {panel.accept_license}.",
            f"Write `accept_license: {found}` if you accept it.",
        )
    if found == PERSONA_HUB_LICENSE and not accepted:
        raise PersonaError(
            f"{location} has the shape of PersonaHub (records of one text, `persona`), whose licence is "
            "CC BY-NC-SA 4.0: attribution, no commercial use, what is made from it is shared under the same licence.",
            f"Write `accept_license: {PERSONA_HUB_LICENSE}` under panel (--accept-license on the command line) if you "
            "accept it, or rename the column to `text` if the personas are your own.",
        )
    return found or accepted


def _is_persona_hub(fields: Mapping[str, object]) -> bool:
    names = set(fields) - set(ID_COLUMNS) - IGNORED_COLUMNS
    return names == {"persona"} and isinstance(fields["persona"], str)


def _name_personas(
    drafts: Iterable[Draft], columns: Columns, location: str, *, distinct: bool
) -> tuple[list[Persona], list[Reject], int]:
    """Return the personas with their ids, the rows whose id had occurred, and how many repeats were left out."""
    personas: list[Persona] = []
    rejects: list[Reject] = []
    repeats = 0
    contents: set[str] = set()
    first_row: dict[str, int] = {}
    for row, persona in _drafted(drafts, is_numbered=len(columns.texts) > 1):
        if distinct:
            content = content_digest(persona)
            if content in contents:
                repeats += 1
                continue
            contents.add(content)
        if persona.persona_id in first_row:
            reason = f"the id {persona.persona_id!r} occurs in row {first_row[persona.persona_id]} already"
            rejects.append(Reject(location, row, columns.identity or "", reason))
            continue
        if columns.identity is not None:
            first_row[persona.persona_id] = row
        personas.append(persona)
    return (personas if columns.identity is not None else list(identify(personas))), rejects, repeats


def _drafted(drafts: Iterable[Draft], *, is_numbered: bool) -> Iterator[tuple[int, Persona]]:
    """Yield each draft's personas: one for each of its texts, one where it has none."""
    for draft in drafts:
        for number, text in enumerate(draft.texts or ("",), start=1):
            name = f"{draft.identity}.{number}" if is_numbered and draft.identity else draft.identity
            yield draft.row, Persona(name, draft.attributes, text, draft.weight)
