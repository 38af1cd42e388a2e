"""The files of a run's shards: commits rows, and reads back what other shards and earlier rounds hold.

The quarantined rows are written first and the response file last, in one step: its footer names the quarantine file
that counts, so whatever is killed in between, the shard is as it was. Knows no engine, no attempt and no Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from polypersona.answering import OUTCOME_COLUMNS, collect_outcomes
from polypersona.events import EventLog
from polypersona.gates import Outcome
from polypersona.ledger import QUARANTINE, RESPONSES, Ledger, Shard, quarantine_name, shard_name
from polypersona.response_table import AskedCell, ShardRows
from polypersona.rounds import read_committed_footer
from polypersona.routing import missing_gates
from polypersona.shardfile import QUARANTINE_SCHEMA, Footer, file_hash, read_shard, render_shard
from polypersona.storage import RunDirectory

# A commit's event names so many of its reasons.
MAX_REASONS = 5


@dataclass(frozen=True)
class ShardStore:
    """The shards of one run.

    Args:
        run: the run directory.
        fingerprint: the run's.
        ledger: which shard holds which cells.
        log: gets an event for each commit.
    """

    run: RunDirectory
    fingerprint: str
    ledger: Ledger
    log: EventLog

    def footer(self, number: int) -> Footer | None:
        """Return the footer of a shard that is committed; None where it is not."""
        if not self.run.exists(f"{RESPONSES}/{shard_name(number, self.fingerprint)}"):
            return None
        return read_committed_footer(self.run, number, self.fingerprint)

    def read(self, number: int) -> tuple[ShardRows, Footer]:
        """Return the rows of a committed shard, and the footer of its response file.

        Raises:
            StorageError: a file is missing or damaged.
        """
        name = f"{RESPONSES}/{shard_name(number, self.fingerprint)}"
        committed, footer = read_shard(self.run.read(name), self.run.path(name))
        quarantined = QUARANTINE_SCHEMA.empty_table()
        if footer.quarantined:
            name = f"{QUARANTINE}/{quarantine_name(number, self.fingerprint, footer.round)}"
            quarantined, _ = read_shard(self.run.read(name), self.run.path(name))
        return ShardRows(committed, quarantined), footer

    def commit(
        self,
        number: int,
        rows: ShardRows,
        before: Footer | None = None,
        round: int = 0,
        spent: Mapping[str, float] | None = None,
    ) -> dict[str, int]:
        """Write the shard's files, the quarantined rows first, and return the counts.

        Args:
            number: the shard's.
            rows: all of its rows.
            before: the footer of the rows that these replace, in a retry.
            round: the retry's number.
            spent: what the process has spent so far, for the commit's event.
        """
        committed, quarantined = rows.committed.num_rows, rows.quarantined.num_rows
        footer = Footer(self.fingerprint, number, committed + quarantined, committed, quarantined, round=round)
        facts: dict[str, Any] = {"round": round} if round else {}
        if quarantined:
            data = render_shard(rows.quarantined, footer)
            facts["quarantine_hash"] = file_hash(data)
            self.run.write(f"{QUARANTINE}/{quarantine_name(number, self.fingerprint, round)}", data)
        else:  # what an attempt at this round left that died before its commit
            self.run.delete(f"{QUARANTINE}/{quarantine_name(number, self.fingerprint, round)}")
        data = render_shard(rows.committed, footer)
        self.run.write(f"{RESPONSES}/{shard_name(number, self.fingerprint)}", data)
        if before is not None:
            self.run.delete(f"{QUARANTINE}/{quarantine_name(number, self.fingerprint, before.round)}")
        self.log.write(
            "commit",
            shard=number,
            rows=committed,
            quarantined=quarantined,
            reasons=dict(Counter(rows.quarantined.column("reason").to_pylist()).most_common(MAX_REASONS)),
            file_hash=file_hash(data),
            file_bytes=len(data),
            **facts,
            **_token_counts(rows),
            **(spent or {}),
        )
        return {"rows": committed, "quarantined": quarantined}

    def known_outcomes(
        self, shard: Shard, cells: Sequence[AskedCell], own: ShardRows | None = None
    ) -> dict[Hashable, dict[str, Outcome]]:
        """Return the answers to the cells' gates that are not among them: in earlier layers, or in `own` rows."""
        found: dict[Hashable, dict[str, Outcome]] = {}
        if not any(asked.cell.item.asked_if for asked in cells):
            return found
        missing = missing_gates([asked.cell for asked in cells], [asked.interview for asked in cells])
        if not missing:
            return found
        for number in self.ledger.earlier_shards(shard):
            _collect(self.read(number)[0], missing, found)
        if own is not None:
            _collect(own, missing, found)
        return found


def _collect(rows: ShardRows, missing: Mapping[Hashable, set[str]], found: dict[Hashable, dict[str, Outcome]]) -> None:
    for table in (rows.committed, rows.quarantined):
        collect_outcomes(table.select(OUTCOME_COLUMNS).to_pylist(), missing, found)


def _token_counts(rows: ShardRows) -> dict[str, Any]:
    """Return the tokens of all rows, by which `status` tells how fast the run is."""
    names, tables = ("prompt_tokens", "new_tokens"), (rows.committed, rows.quarantined)
    return {name: sum(pc.sum(table.column(name)).as_py() or 0 for table in tables) for name in names}
