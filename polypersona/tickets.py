"""Tickets: how several pools share one list of shards, so that a fast pool takes more of them.

Each pool has as many tickets as there are shards; an actor exchanges a ticket for the next shard when it begins it. A
ticket that is shown again, because its actor died, gets the same shard again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

Ticket = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Turn:
    """What a ticket is good for: a place in the list of shards, else to wait, else nothing because all are answered."""

    place: int | None
    must_wait: bool = False


class TicketQueue:
    """The shards that nobody has begun, and who holds those that somebody has.

    Args:
        count: how many shards there are; they are handed out by their place in the list, first to last.
    """

    def __init__(self, count: int) -> None:
        self._free = deque(range(count))
        self._held: dict[Ticket, int] = {}

    def take(self, pool: str, ticket: int) -> Turn:
        """Exchange a ticket for a shard. Where none is free but some are not answered yet, the ticket must wait."""
        key = (pool, ticket)
        if key not in self._held:
            if not self._free:
                return Turn(None, must_wait=bool(self._held))
            self._held[key] = self._free.popleft()
        return Turn(self._held[key])

    def settle(self, pool: str, ticket: int) -> None:
        """Note that a ticket's shard is answered."""
        self._held.pop((pool, ticket), None)

    def release(self, pool: str) -> int:
        """Give the shards that a pool holds to whoever asks next, and return how many: none of its nodes is left."""
        lost = [key for key in self._held if key[0] == pool]
        self._free.extendleft(self._held.pop(key) for key in reversed(lost))
        return len(lost)
