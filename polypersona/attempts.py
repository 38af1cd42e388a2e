"""What has been tried on the shards of a run, in files that outlive the driver."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from polypersona.ledger import shard_name
from polypersona.storage import RunDirectory

FOLDER = "attempts"


@dataclass(frozen=True, slots=True)
class Attempts:
    """What has been tried on a shard: the confirmed failures, and the session that has begun an attempt, if any.

    An attempt that was begun and has no outcome counts as a failure when the same session begins the next one: then the
    process died and its driver did not. One begun by an earlier session says nothing, because its driver may have
    been killed with it. Confirmed failures outlive the driver.
    """

    failures: tuple[str, ...] = ()
    begun_by: str = ""


@dataclass(frozen=True)
class AttemptCounter:
    """The attempts of shards, one small file a shard, there only while a shard is in flight or failing."""

    run: RunDirectory
    fingerprint: str
    session: str
    max_attempts: int = field(default=3)

    def begin(self, number: int) -> Attempts:
        """Record that an attempt begins, and return what is known of the earlier ones."""
        known = self.read(number)
        failures = known.failures
        if known.begun_by == self.session:
            failures = (*failures, "the process died while it answered the shard")
        attempts = Attempts(failures, self.session)
        self._write(number, attempts)
        return attempts

    def fail(self, number: int, reason: str) -> Attempts:
        """Record that the attempt has failed, and return all failures."""
        attempts = Attempts((*self.read(number).failures, reason))
        self._write(number, attempts)
        return attempts

    def is_exhausted(self, attempts: Attempts) -> bool:
        """Whether the shard has failed as often as it may."""
        return len(attempts.failures) >= self.max_attempts

    def clear(self, number: int) -> None:
        """Forget a shard that is committed."""
        self.run.delete(self._name(number))

    def read(self, number: int) -> Attempts:
        """Return what is known of a shard."""
        if not self.run.exists(self._name(number)):
            return Attempts()
        stored = self.run.read_json(self._name(number))
        return Attempts(tuple(stored["failures"]), stored["begun_by"])

    def _name(self, number: int) -> str:
        return f"{FOLDER}/{shard_name(number, self.fingerprint).removesuffix('.parquet')}.json"

    def _write(self, number: int, attempts: Attempts) -> None:
        content = {"synthetic": True, "failures": attempts.failures, "begun_by": attempts.begun_by}
        self.run.write(self._name(number), (json.dumps(content) + "\n").encode())
