"""Which persona answers which item in the dataset: the paper's composition, or its shares scaled.

Takes ids and domains, gives for each persona the items it answers. A pure function of the seed, the persona ids and
the items; knows no teacher, no text and no file.

The paper (section III) has 3,568 records of 433 personas and 82 items in ten domains, no two of the same persona and
item, and 71.4 % of the personas in a single domain. The steps: a number of records for each domain; a home domain for
each persona; further domains for some personas; within each domain the records spread evenly over its personas and
its items.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence

from polypersona.errors import DatasetError
from polypersona.records import Item, seed_from

COMPOSITION_VERSION = 1
# Section III-C of the paper: records a domain, 3,568 in all, in the paper's order.
PAPER_RECORDS: Mapping[str, int] = {
    "demographics": 520,
    "healthcare": 416,
    "education": 416,
    "work_experience": 400,
    "technology": 384,
    "consumer_preferences": 368,
    "finance": 368,
    "social_issues": 264,
    "environment": 216,
    "lifestyle": 216,
}
# Section III-D: the share of personas that appear in one domain only.
SINGLE_DOMAIN_SHARE = 0.714
# Further domains of a persona that appears in several, on average. Not in the paper.
FURTHER_DOMAINS = 1.5

Composition = dict[str, tuple[str, ...]]


def compose(persona_ids: Sequence[str], items: Sequence[Item], records: int, seed: int) -> Composition:
    """Return persona id → ids of the items it answers, `records` pairs in all, none twice.

    Every persona is used where there are as many records as personas, and personas and items keep the order given;
    what is paired does not depend on that order.

    Raises:
        DatasetError: more records than persona × item pairs, or nobody to ask or nothing to ask.
    """
    maximum = len(persona_ids) * len(items)
    if records > maximum:
        raise DatasetError(
            f"dataset.records is {records}, but {len(persona_ids)} personas × {len(items)} items make only {maximum}.",
            f"Set dataset.records to {maximum} or less, or enlarge the panel or the instrument.",
        )
    by_domain: dict[str, list[str]] = {}
    for item in sorted(items, key=lambda item: item.item_id):
        by_domain.setdefault(item.domain, []).append(item.item_id)
    rng = random.Random(seed_from("composition", seed))
    targets = domain_targets(by_domain, records, len(persona_ids))
    members = _assign_members(sorted(persona_ids), by_domain, targets, rng)
    chosen: dict[str, set[str]] = {}
    for domain, of_domain in members.items():
        for persona_id, picked in _pick_items(of_domain, by_domain[domain], targets[domain], rng).items():
            chosen.setdefault(persona_id, set()).update(picked)
    return {
        persona_id: tuple(item.item_id for item in items if item.item_id in chosen[persona_id])
        for persona_id in persona_ids
        if persona_id in chosen
    }


def domain_targets(by_domain: Mapping[str, Sequence[str]], records: int, num_personas: int) -> dict[str, int]:
    """Return the number of records of each domain: by the paper's shares for its ten domains, else by items."""
    is_paper = set(by_domain) == set(PAPER_RECORDS)
    weights = {domain: PAPER_RECORDS[domain] if is_paper else len(of_domain) for domain, of_domain in by_domain.items()}
    limits = {domain: num_personas * len(of_domain) for domain, of_domain in by_domain.items()}
    return apportion(records, weights, limits)


def apportion(total: int, weights: Mapping[str, float], limits: Mapping[str, int]) -> dict[str, int]:
    """Divide a total by weights with the largest remainder; what a limit cuts off goes to the others.

    Ties go to the first by name. The limits must leave room for the total.
    """
    parts = dict.fromkeys(weights, 0)
    rest = total
    while rest:
        is_open = [name for name in sorted(weights) if parts[name] < limits[name]]
        scale = rest / sum(weights[name] for name in is_open)
        quotas = {name: weights[name] * scale for name in is_open}
        shares = {name: int(quotas[name] + 1e-9) for name in is_open}
        missing = rest - sum(shares.values())
        for name in sorted(is_open, key=lambda name: (shares[name] - quotas[name], name))[:missing]:
            shares[name] += 1
        for name, share in shares.items():
            taken = min(share, limits[name] - parts[name])
            parts[name] += taken
            rest -= taken
    return parts


def _assign_members(
    persona_ids: Sequence[str], by_domain: Mapping[str, Sequence[str]], targets: Mapping[str, int], rng: random.Random
) -> dict[str, list[str]]:
    """Return domain → its personas: at home in one domain each, some in further ones."""
    records = sum(targets.values())
    drawn = rng.sample(list(persona_ids), min(len(persona_ids), records))
    homes = apportion(len(drawn), targets, targets)
    home_of: dict[str, str] = {}
    queue = iter(drawn)
    for domain, count in homes.items():
        home_of.update({next(queue): domain for _ in range(count)})
    needed = {domain: max(0, -(-targets[domain] // len(by_domain[domain])) - homes[domain]) for domain in homes}
    # Personas in a fixed random order; those at its head get further domains, as many as the records need.
    order = rng.sample(drawn, len(drawn))
    wanted = len(drawn) - round(SINGLE_DOMAIN_SHARE * len(drawn))
    wanted = min(wanted, records - len(drawn)) if len(homes) > 1 else 0
    travellers = order[: _num_travellers(order, home_of, needed, wanted)]
    visits = _num_visits(travellers, home_of, needed, targets, homes)
    guests = _assign_guests(travellers, home_of, visits, rng)
    return {
        domain: sorted([*(p for p, home in home_of.items() if home == domain), *guests[domain]]) for domain in homes
    }


def _num_travellers(order: Sequence[str], home_of: Mapping[str, str], needed: Mapping[str, int], wanted: int) -> int:
    """Return how many personas at the head of the order answer in several domains: `wanted`, or more if needed."""
    away = Counter[str]()
    for number, persona_id in enumerate(order):
        if number >= wanted and all(number - away[domain] >= need for domain, need in needed.items()):
            return number
        away[home_of[persona_id]] += 1
    return len(order)


def _num_visits(
    travellers: Sequence[str],
    home_of: Mapping[str, str],
    needed: Mapping[str, int],
    targets: Mapping[str, int],
    homes: Mapping[str, int],
) -> dict[str, int]:
    """Return how many personas from elsewhere answer in each domain: what is needed, then by the domains' size."""
    at_home = Counter(home_of[persona_id] for persona_id in travellers)
    limits = {d: min(len(travellers) - at_home[d], targets[d] - homes[d]) for d in homes}
    room = {domain: limits[domain] - needed[domain] for domain in homes}
    total = max(round(FURTHER_DOMAINS * len(travellers)), len(travellers))
    further = max(0, min(total - sum(needed.values()), sum(room.values())))
    extra = apportion(further, targets, room)
    return {domain: needed[domain] + extra[domain] for domain in homes}


def _assign_guests(
    travellers: Sequence[str], home_of: Mapping[str, str], visits: Mapping[str, int], rng: random.Random
) -> dict[str, list[str]]:
    """Return domain → its personas from elsewhere; each traveller gets at least one domain where visits allow."""
    load = Counter[str]()
    guests: dict[str, list[str]] = {domain: [] for domain in visits}
    for domain in sorted(visits, key=lambda domain: (-visits[domain], domain)):
        free = [persona_id for persona_id in travellers if home_of[persona_id] != domain]
        rng.shuffle(free)
        guests[domain] = sorted(free, key=lambda persona_id: load[persona_id])[: visits[domain]]
        load.update(guests[domain])
    for persona_id in [persona_id for persona_id in travellers if not load[persona_id]]:
        _give_a_visit(persona_id, home_of[persona_id], guests, load)
    return guests


def _give_a_visit(persona_id: str, home: str, guests: dict[str, list[str]], load: Counter[str]) -> None:
    """Let a persona without a further domain take one from a persona that has two or more."""
    for domain, of_domain in guests.items():
        for index, other in enumerate(of_domain):
            if domain != home and load[other] > 1:
                of_domain[index] = persona_id
                load[other] -= 1
                load[persona_id] += 1
                return


def _pick_items(
    members: Sequence[str], item_ids: Sequence[str], records: int, rng: random.Random
) -> dict[str, list[str]]:
    """Spread a domain's records evenly over its personas and items: loads and uses differ by one at most."""
    if not members:
        return {}
    order = rng.sample(list(members), len(members))
    low, rest = divmod(records, len(members))
    uses = Counter(dict.fromkeys(item_ids, 0))
    picked: dict[str, list[str]] = {}
    for number, persona_id in enumerate(order):
        shuffled = rng.sample(list(item_ids), len(item_ids))
        picked[persona_id] = sorted(shuffled, key=lambda item_id: uses[item_id])[: low + (number < rest)]
        uses.update(picked[persona_id])
    return picked
