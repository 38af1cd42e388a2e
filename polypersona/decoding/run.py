"""One pass of packed continuous batching, from the first prompt that begins to the last that ends.

Groups are begun in order, as many prompts as there are free slots and room in a chunk; what is begun is computed, then
all slots write token by token until enough of them are free again. Knows token ids, a decoder and a cache.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from polypersona.decoding.attention import PrefillAttention, Segment, StepAttention
from polypersona.decoding.cache import KeyValueCache
from polypersona.decoding.choice import choose_option
from polypersona.decoding.decoder import Decoder
from polypersona.decoding.native import NativeAttention
from polypersona.decoding.option_tree import option_tree
from polypersona.decoding.prompts import NOT_FINITE, Prompt, PromptGroup, Written
from polypersona.decoding.sampling import TokenSampler
from polypersona.errors import EngineError

ROOT = 0  # the place of what all groups share


@dataclass(frozen=True, slots=True)
class Machine:
    """What computes: a decoder, how it draws, and how much at once. Sizes are those of `BatchSettings`."""

    decoder: Decoder
    sampler: TokenSampler
    is_greedy: bool
    ends: frozenset[int]
    is_stopped: Callable[[list[int]], bool]
    chunk_tokens: int
    refill: float

    def prefill(self, cache: KeyValueCache, segments: Sequence[Segment], needed: Sequence[int]) -> torch.Tensor:
        """Return logits after the needed ones of the segments' tokens."""
        shape = self.decoder.shape
        ids = torch.tensor([token for segment in segments for token in segment.ids], device=shape.device)
        places = torch.tensor([at for segment in segments for at in segment.positions], device=shape.device)
        attention = (
            NativeAttention.of_segments(cache, segments)
            if self.decoder.is_native
            else PrefillAttention(cache, segments, shape.dtype)
        )
        hidden = self.decoder.hidden(ids, places, attention, torch.tensor(needed, device=shape.device))
        return self.decoder.logits(hidden)

    def step(
        self, ids: Sequence[int], places: Sequence[int], attention: StepAttention | NativeAttention
    ) -> torch.Tensor:
        """Return logits after one new token a slot."""
        device = self.decoder.shape.device
        tokens, positions = torch.tensor(ids, device=device), torch.tensor(places, device=device)
        return self.decoder.logits(self.decoder.hidden(tokens, positions, attention, None))


@dataclass(slots=True, eq=False)
class _Row:
    """A conversation on its way.

    `own` are its tokens beyond the `base` tokens that its group shares; the first `length` of them are in the cache.
    """

    prompt: Prompt
    written: Written
    group: _Open
    own: list[int]
    base: int
    length: int = 0
    slot: int | None = None

    @property
    def is_scored(self) -> bool:
        """Return whether the options of the turn are still to be scored."""
        return bool(self.prompt.options) and self.written.choice is None

    @property
    def needs_slot(self) -> bool:
        """Return whether anything follows the scores."""
        return bool(self.prompt.max_new_tokens or self.prompt.follow)

    def history(self) -> list[int]:
        """Return all tokens of the conversation."""
        return self.group.group.shared + self.own


@dataclass(slots=True, eq=False)
class _Open:
    """A group some of whose prompts are not done; `place` is that of its shared beginning."""

    group: PromptGroup
    place: int
    waiting: deque[_Row]
    num_left: int
    is_damaged: bool = False


class Run:
    """One pass over some groups: slots that end are filled again until nothing is left.

    It uses `num_slots` slots and `num_places` shared beginnings of the cache, however many that has.
    """

    def __init__(
        self,
        machine: Machine,
        cache: KeyValueCache,
        sizes: tuple[int, int],
        groups: Sequence[PromptGroup],
        results: list[list[Written]],
    ) -> None:
        self._machine, self._cache = machine, cache
        self._num_slots, num_places = sizes
        self._coming = deque(zip(groups, results, strict=True))
        self._open: deque[_Open] = deque()
        self._free_places = list(range(num_places - 1, ROOT, -1))
        self._free_slots = list(range(self._num_slots - 1, -1, -1))
        self._unfinished: list[_Row] = []  # hold a slot, with tokens to compute before they write on
        self._writing: list[_Row] = []
        self._attention: StepAttention | NativeAttention | None = None
        self._num_root = cache.shared_lengths[ROOT]

    def finish(self) -> None:
        """Compute everything."""
        least = max(1, int(self._num_slots * self._machine.refill))
        while True:
            can_admit = bool(self._coming and self._free_places) or any(opened.waiting for opened in self._open)
            if self._unfinished or (can_admit and (len(self._free_slots) >= least or not self._writing)):
                self._admit()
            elif self._writing:
                self._step()
            else:
                return

    def _admit(self) -> None:
        """Compute one chunk of tokens: of rows that are not finished, then of as many new ones as there is room for."""
        rows, self._unfinished = self._unfinished, []
        num_tokens = sum(len(row.own) - row.length for row in rows)
        new: list[_Open] = []
        while num_tokens < self._machine.chunk_tokens:
            opened = next((opened for opened in self._open if opened.waiting), None) or self._begin(new)
            if opened is None:
                break
            row = opened.waiting[0]
            if row.needs_slot or self._machine.decoder.is_native:
                if not self._free_slots:
                    break
                row.slot = self._free_slots.pop()
            rows.append(opened.waiting.popleft())
            num_tokens += len(row.own)
        if new:
            self._compute_shared(new)
        if rows:
            rows.sort(key=lambda row: row.group.place)
            self._compute(rows)

    def _begin(self, new: list[_Open]) -> _Open | None:
        """Open the next group, if there is one and a place for it."""
        if not self._coming or not self._free_places:
            return None
        group, results = self._coming.popleft()
        opened = _Open(group, self._free_places.pop(), deque(), len(group.prompts))
        base = group.num_shared
        for index, (prompt, written) in enumerate(zip(group.prompts, results, strict=True)):
            written.num_reused = base if index else self._num_root
            opened.waiting.append(_Row(prompt, written, opened, list(prompt.ids[base:]), base))
            _check_room(opened.waiting[-1])
        self._open.append(opened)
        new.append(opened)
        return opened

    def _compute_shared(self, new: Sequence[_Open]) -> None:
        """Compute the shared beginnings of groups behind what all groups share."""
        root, segments = self._num_root, []
        for opened in new:
            rest = opened.group.shared[root:]
            self._cache.shared_lengths[opened.place] = root + len(rest)
            if rest:
                positions = range(root, root + len(rest))
                segments.append(Segment(rest, positions, ROOT, shared_to=opened.place, num_kept=len(rest)))
        if root:
            self._cache.copy_shared(ROOT, [opened.place for opened in new])
        for chunk in _chunks(segments, self._machine.chunk_tokens):
            self._machine.prefill(self._cache, chunk, [0])

    def _compute(self, rows: Sequence[_Row]) -> None:
        """Compute the rows' own tokens: options are scored, texts get their first token."""
        segments: list[Segment] = []
        needed: list[int] = []
        wanted: list[tuple[int, list[tuple[int, int]]]] = []
        start = 0
        for row in rows:
            segment, scored = _segment(row)
            places = sorted({at for at, _ in scored}) or [len(segment.ids) - 1]
            index = {at: len(needed) + order for order, at in enumerate(places)}
            wanted.append((index[places[0]], [(index[at], token) for at, token in scored]))
            needed += [start + at for at in places]
            segments.append(segment)
            start += len(segment.ids)
        logits = self._machine.prefill(self._cache, segments, needed)
        for row, segment in zip(rows, segments, strict=True):
            row.length += segment.num_kept
        scored_rows = [(row, pairs) for row, (_, pairs) in zip(rows, wanted, strict=True) if pairs]
        writers = [(row, first) for row, (first, pairs) in zip(rows, wanted, strict=True) if not pairs]
        if scored_rows:
            self._choose(scored_rows, logits)
        if writers:
            picked = logits if len(writers) == len(needed) else logits[[first for _, first in writers]]
            self._writing += self._draw([row for row, _ in writers], picked)
            self._attention = None

    def _choose(self, scored: Sequence[tuple[_Row, list[tuple[int, int]]]], logits: torch.Tensor) -> None:
        """Give rows the log-probabilities of their options, and draw one for each."""
        places = sorted({at for _, pairs in scored for at, _ in pairs})
        index = {at: order for order, at in enumerate(places)}
        picked = logits if len(places) == len(logits) else logits[places]
        picked = picked.float()
        where = torch.tensor([index[at] for _, pairs in scored for at, _ in pairs], device=picked.device)
        tokens = torch.tensor([token for _, pairs in scored for _, token in pairs], device=picked.device)
        values = iter((picked[where, tokens] - picked.logsumexp(-1)[where]).double().tolist())
        for row, _ in scored:
            prompt, written = row.prompt, row.written
            totals = [sum(next(values) for _ in option) for option in prompt.options]
            if not all(map(math.isfinite, totals)):
                written.error = NOT_FINITE
                self._end_turn(row)
                continue
            written.log_probs = totals
            weighed = totals
            if prompt.length_norm:
                weighed = [total / len(option) for total, option in zip(totals, prompt.options, strict=True)]
            written.choice, written.probs = choose_option(weighed, prompt.seed, is_greedy=self._machine.is_greedy)
            if prompt.max_new_tokens:
                row.own += prompt.chosen(written.choice)
                self._unfinished.append(row)
            else:
                row.own += prompt.chosen(written.choice) if prompt.follow else ()
                self._end_turn(row)

    def _step(self) -> None:
        """Write one token in every slot."""
        if self._attention is None:
            self._attention = self._by_group() if self._machine.decoder.is_native else self._settled()
        rows, attention = self._writing, self._attention
        attention.set_lengths([row.length for row in rows])
        logits = self._machine.step([row.own[-1] for row in rows], [row.base + row.length for row in rows], attention)
        for row in rows:
            row.length += 1
        left = self._draw(rows, logits)
        if len(left) < len(rows):
            self._writing, self._attention = left, None

    def _by_group(self) -> NativeAttention:
        """Order rows by group, so that a shared beginning is read once for all of them."""
        self._writing.sort(key=lambda row: (row.group.place, row.slot or 0))
        places = [row.group.place for row in self._writing]
        return NativeAttention.of_slots(self._cache, places, [row.slot or 0 for row in self._writing])

    def _settled(self) -> StepAttention:
        """Move rows so that those that write hold the first slots."""
        count, rows = len(self._writing), self._writing
        used = {row.slot for row in rows}
        holes = [slot for slot in range(count) if slot not in used]
        movers = [row for row in rows if row.slot is not None and row.slot >= count]
        if movers:
            sources = [row.slot for row in movers if row.slot is not None]
            self._cache.move(sources, holes, max(row.length for row in movers))
            for row, hole in zip(movers, holes, strict=True):
                row.slot = hole
        rows.sort(key=lambda row: row.slot or 0)
        self._free_slots = list(range(self._num_slots - 1, count - 1, -1))
        return StepAttention(self._cache, [row.group.place for row in rows], self._cache.shape.dtype)

    def _draw(self, rows: Sequence[_Row], logits: torch.Tensor) -> list[_Row]:
        """Give every row its next token and return those that write on."""
        machine, left = self._machine, []
        tokens, are_finite = machine.sampler.draw(
            logits,
            [row.prompt.seed for row in rows],
            [len(row.written.tokens) + 1 for row in rows],
            [row.history() for row in rows] if machine.sampler.needs_history else None,
        )
        for row, token, is_finite in zip(rows, tokens, are_finite, strict=True):
            written = row.written
            if not is_finite:
                written.error = NOT_FINITE
                self._end_turn(row)
                continue
            written.tokens.append(token)
            row.own.append(token)
            written.is_ended = token in machine.ends or machine.is_stopped(written.tokens)
            if written.is_ended or len(written.tokens) >= row.prompt.max_new_tokens:
                self._end_turn(row)
            else:
                left.append(row)
        return left

    def _end_turn(self, row: _Row) -> None:
        """Begin the next turn of the conversation, or let the row go."""
        if row.prompt.follow and row.written.tokens and row.written.tokens[-1] in self._machine.ends:
            row.own.pop()  # what follows begins with an end of turn of its own
        follow = row.prompt.follow(row.written) if row.prompt.follow else None
        if follow is None or row.written.error:
            self._retire(row)
            return
        del row.own[len(row.own) - follow.num_taken_back :]
        row.length = min(row.length, len(row.own))
        row.own += follow.ids
        row.prompt, row.written = follow, Written(num_reused=row.base + row.length)
        _check_room(row)
        self._unfinished.append(row)

    def _retire(self, row: _Row) -> None:
        opened = row.group
        if row.slot is not None:
            self._free_slots.append(row.slot)
            if row.written.error:
                self._cache.clear(row.slot)
        opened.is_damaged |= bool(row.written.error)
        opened.num_left -= 1
        if not opened.num_left:
            if opened.is_damaged:
                self._cache.clear_shared(opened.place)
            self._open.remove(opened)
            self._free_places.append(opened.place)


def _check_room(row: _Row) -> None:
    """Refuse a turn that its group left no room for; tokens beyond would fall into another conversation's room."""
    need, room = len(row.own) + row.prompt.num_kept_tokens, row.group.group.max_tokens
    if need > room:
        raise EngineError(
            f"A conversation needs room for {need} tokens behind its shared beginning; its group allows {room}.",
            "Give the group a larger max_tokens.",
        )


def _segment(row: _Row) -> tuple[Segment, list[tuple[int, int]]]:
    """Return the row's next tokens, and (place among them, token) for every token of its options."""
    own, begin, prompt = row.own[row.length :], row.base + row.length, row.prompt
    if not row.is_scored:
        return Segment(own, range(begin, begin + len(own)), row.group.place, row.length, row.slot, None, len(own)), []
    tree = option_tree(own, prompt.options)
    visible = tree.visible if len(tree.ids) > len(own) else None
    branches = tuple(len(option) - 1 for option in prompt.options)
    places = [begin + at for at in tree.positions]
    segment = Segment(tree.ids, places, row.group.place, row.length, row.slot, None, len(own), visible, branches)
    return segment, [pair for option in tree.options for pair in option]


def _chunks(segments: Sequence[Segment], limit: int) -> Iterator[list[Segment]]:
    chunk: list[Segment] = []
    for segment in segments:
        if chunk and sum(len(part.ids) for part in chunk) + len(segment.ids) > limit:
            yield chunk
            chunk = []
        chunk.append(segment)
    if chunk:
        yield chunk
