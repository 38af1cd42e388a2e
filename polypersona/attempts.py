"""What has been tried on the shards of a run, in files that outlive the driver.

A shard is asked as a whole up to `max_attempts` times; then the units that fail alone are searched for, and the shard
is asked once more without them. Where no unit is answered, or the rest fails although each of its units is answered,
the shard is given up. What is about to be asked is written down before, so a process that dies names what killed it.
Knows how the outcomes of attempts decide the next one; no cell, no engine and no Ray.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from polypersona.bisection import Found, Search, search_from
from polypersona.ledger import quarantine_name
from polypersona.storage import RunDirectory

FOLDER = "attempts"
DEATH = "the process died while it answered the shard"
LOADING_DEATH = "the process died while it loaded the model"


@dataclass(frozen=True, slots=True)
class Attempts:
    """What has been tried on a shard, and what is tried next.

    `failures` are those of the shard without its poisoned units, since the last search; `load_failures` those of
    loading the engine, since it was last loaded. `is_searched`: the last search found no unit. `verdict` is why the
    shard is given up, or empty. The rest says what has been begun: by which session, on which node, and whether only
    the loading.
    """

    failures: tuple[str, ...] = ()
    load_failures: tuple[str, ...] = ()
    poisoned: tuple[Found, ...] = ()
    search: Search | None = None
    is_searched: bool = False
    verdict: str = ""
    begun_by: str = ""
    node: str = ""
    is_loading: bool = False

    def left(self, num_units: int) -> list[int]:
        """Return the units that are not poisoned."""
        poisoned = {found.unit for found in self.poisoned}
        return [unit for unit in range(num_units) if unit not in poisoned]

    def asked(self, num_units: int) -> list[int]:
        """Return the units that are asked next: those of the search's probe, or all that are left."""
        left = self.left(num_units)
        return left if self.search is None else left[self.search.probe.begin : self.search.probe.end]

    def failed(self, reason: str, num_units: int, max_attempts: int) -> Attempts:
        """Return what is known after what was asked has failed."""
        if self.search is not None:
            return replace(self, search=self.search.failed(reason, max_attempts))._settled(reason, num_units)
        failures = (*self.failures, reason)
        if len(failures) < max_attempts:
            return replace(self, failures=failures)
        num_left = len(self.left(num_units))
        if self.is_searched or num_left < 2:
            alone = ", though each of its parts alone is answered" if self.is_searched else ""
            return replace(self, failures=failures, verdict=reason + alone)
        return replace(self, failures=failures, search=Search.among(num_left))

    def load_failed(self, reason: str, max_attempts: int) -> Attempts:
        """Return what is known after the engine could not be loaded, which says nothing of a unit."""
        failures = (*self.load_failures, reason)
        return replace(self, load_failures=failures, verdict=reason if len(failures) >= max_attempts else "")

    def answered(self, num_units: int) -> Attempts:
        """Return what is known after a probe was answered."""
        return self if self.search is None else replace(self, search=self.search.answered())._settled("", num_units)

    def _settled(self, reason: str, num_units: int) -> Attempts:
        """Return what follows from a search that is over."""
        search = self.search
        if search is None or not search.is_over:
            return self
        if search.is_hopeless:
            return replace(self, search=None, verdict=reason)
        left, shared = self.left(num_units), len(self.failures)
        found = [Found(left[one.unit], _reason(one, shared), one.tries + shared) for one in search.found]
        poisoned = (*self.poisoned, *found)
        return replace(self, failures=(), poisoned=poisoned, search=None, is_searched=not found)


@dataclass(frozen=True)
class AttemptCounter:
    """The attempts of shards, one small file a shard, there only while a shard is in flight or failing.

    An attempt that was begun and has no outcome counts as a failure when the same session begins the next one on a
    shard: then the process died and its driver did not. One begun by an earlier session says nothing, because its
    driver may have been killed with it, and neither does one whose node is gone. Confirmed failures outlive the driver.

    Args:
        run: the run directory.
        fingerprint: the run's.
        session: the driver's.
        max_attempts: how often a shard, and a unit alone, is asked.
        round: which retry of quarantined rows this is; 0 is none.
        node: where this process runs, and `is_alive` whether a node is still there.
        note: takes an event and its facts.
    """

    run: RunDirectory
    fingerprint: str
    session: str
    max_attempts: int = 3
    round: int = 0
    node: str = ""
    is_alive: Callable[[str], bool] = bool
    note: Callable[..., None] = lambda event, **facts: None

    def begin(self, number: int, num_units: int, *, is_loading: bool = False) -> Attempts:
        """Settle what an earlier process left open, record that an attempt begins, and return what is known."""
        known = self.read(number)
        if known.begun_by == self.session:
            if known.node and not self.is_alive(known.node):
                self.note("lost with its node", shard=number, node=known.node)
            elif known.is_loading:
                known = self._load_failed(number, known, LOADING_DEATH)
            else:
                known = self._failed(number, known, DEATH, num_units)
        known = _ended(known)
        if not known.verdict:
            known = replace(known, begun_by=self.session, node=self.node, is_loading=is_loading)
        self._write(number, known)
        return known

    def loaded(self, number: int) -> None:
        """Record that the engine is loaded, so that what follows is the attempt itself."""
        self._write(number, replace(self.read(number), is_loading=False, load_failures=()))

    def fail(self, number: int, reason: str, num_units: int) -> None:
        """Record that what was asked has failed."""
        self._write(number, _ended(self._failed(number, self.read(number), reason, num_units)))

    def fail_loading(self, number: int, reason: str) -> None:
        """Record that the engine could not be loaded."""
        self._write(number, _ended(self._load_failed(number, self.read(number), reason)))

    def answer(self, number: int, num_units: int) -> None:
        """Record that a probe was answered."""
        known = self.read(number)
        after = known.answered(num_units)
        self._note_found(number, known, after)
        self._write(number, _ended(after))

    def clear(self, number: int) -> None:
        """Forget a shard that is committed."""
        self.run.delete(self._name(number))

    def read(self, number: int) -> Attempts:
        """Return what is known of a shard."""
        if not self.run.exists(self._name(number)):
            return Attempts()
        stored = self.run.read_json(self._name(number))
        return Attempts(
            failures=tuple(stored["failures"]),
            load_failures=tuple(stored["load_failures"]),
            poisoned=tuple(Found(**found) for found in stored["poisoned"]),
            search=search_from(stored["search"]) if stored["search"] else None,
            **{key: stored[key] for key in ("is_searched", "verdict", "begun_by", "node", "is_loading")},
        )

    def _failed(self, number: int, known: Attempts, reason: str, num_units: int) -> Attempts:
        asked = len(known.asked(num_units))
        after = known.failed(reason, num_units, self.max_attempts)
        self.note("failure", shard=number, reason=reason, units=asked, of=num_units, is_probe=known.search is not None)
        self._note_found(number, known, after)
        return after

    def _load_failed(self, number: int, known: Attempts, reason: str) -> Attempts:
        self.note("failure", shard=number, reason=reason)
        return known.load_failed(reason, self.max_attempts)

    def _note_found(self, number: int, before: Attempts, after: Attempts) -> None:
        for found in after.poisoned[len(before.poisoned) :]:
            self.note("isolated", shard=number, unit=found.unit, reason=found.reason)

    def _name(self, number: int) -> str:
        return f"{FOLDER}/{quarantine_name(number, self.fingerprint, self.round).removesuffix('.parquet')}.json"

    def _write(self, number: int, attempts: Attempts) -> None:
        content: dict[str, Any] = {"synthetic": True, **asdict(attempts)}
        self.run.write(self._name(number), (json.dumps(content) + "\n").encode())


def _ended(attempts: Attempts) -> Attempts:
    return replace(attempts, begun_by="", node="", is_loading=False)


def _reason(found: Found, shared: int) -> str:
    """Return a unit's own reason; that of a death says how often it was seen."""
    if found.reason != DEATH:
        return found.reason
    often = f"{_times(shared)} with its shard and {_times(found.tries)} alone"
    return f"the process died each time it answered this: {often}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
