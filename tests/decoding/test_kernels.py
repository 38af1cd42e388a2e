"""pytest tests/decoding/test_kernels.py

Every compiled function against torch in double precision, and what happens where there is no compiler.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from toy_prompts import farthest, lively_model, make_groups, outcomes, run_flat, token_engine
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from polypersona.decoding import native
from polypersona.decoding.attention import Segment
from polypersona.decoding.cache import CacheShape, KeyValueCache
from polypersona.decoding.native import Kernels, NativeAttention, load_kernels

DTYPES = (torch.float32, torch.bfloat16)
HEADS = [(4, 4, 16), (4, 2, 16), (6, 2, 32), (40, 1, 16), (5, 5, 48)]  # heads, key heads, size
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}

needs_compiler = pytest.mark.skipif(load_kernels(torch.float32) is None, reason="there is no C compiler")


@pytest.fixture
def fresh_kernels() -> Iterator[None]:
    load_kernels.cache_clear()
    yield
    load_kernels.cache_clear()


def random_of(seed: int, *size: int) -> torch.Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


class Bench:
    """A one-layer cache filled through the kernels, and the same keys and values in plain lists."""

    def __init__(self, heads: int, key_heads: int, size: int, dtype: torch.dtype) -> None:
        library = load_kernels(dtype)
        assert library is not None
        self.heads, self.key_heads, self.size, self.dtype, self.seed = heads, key_heads, size, dtype, 0
        self.kernels = Kernels(library, heads, key_heads, size)
        self.cache = KeyValueCache(CacheShape(1, key_heads, size, dtype, "cpu"), 4, 64, 5, 96)
        # What stands in room that nobody has written must not matter, as long as it is finite.
        for part in (self.cache.keys, self.cache.values, self.cache.shared_keys, self.cache.shared_values):
            part.fill_(1e30)
        self.places: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def run(self, segments: list[Segment], factor: float = 1.0, damaged: int | None = None) -> tuple[torch.Tensor, ...]:
        """Store and attend new random tokens of the segments; return what the kernels give and what is right."""
        self.seed += 1
        count = sum(len(segment.ids) for segment in segments)
        packed = random_of(self.seed, count, (self.heads + 2 * self.key_heads) * self.size)
        packed[:, : self.heads * self.size] *= factor
        if damaged is not None:
            packed[damaged] = float("nan")
        packed = packed.to(self.dtype)
        attention = NativeAttention.of_segments(self.cache, segments)
        flat = torch.ones(count, self.size // 2), torch.zeros(count, self.size // 2)
        before = packed.clone()
        self.kernels.turn_and_store(packed, attention, 0, *flat)
        assert torch.equal(packed.nan_to_num(7), before.nan_to_num(7))
        scale = self.size**-0.5
        out = self.kernels.attend(packed, attention, 0, scale).double()
        return out, self.expected(segments, before.double(), scale)

    def expected(self, segments: list[Segment], packed: torch.Tensor, scale: float) -> torch.Tensor:
        rows = packed.view(len(packed), -1, self.size)
        queries, keys, values = rows.split([self.heads, self.key_heads, self.key_heads], 1)
        out, start = torch.empty(len(packed), self.heads * self.size, dtype=torch.float64), 0
        for segment in segments:
            new = [(keys[start + i], values[start + i]) for i in range(len(segment.ids))]
            if segment.shared_to is None:
                before = self.places.get((1, segment.group), []) if self.cache.shared_lengths[segment.group] else []
                own = self.places.setdefault((0, segment.slot or 0), [])
                del own[segment.past :]
            else:
                before, own = [], self.places.setdefault((1, segment.shared_to), [])
                del own[self.cache.shared_lengths[segment.group] :]
            held = [*before, *own]
            for i in range(len(segment.ids)):
                seen = held + [new[j] for j in range(i + 1) if self.sees(segment, i, j)]
                out[start + i] = self.attend(queries[start + i], seen, scale)
            own += new[: segment.num_kept]
            start += len(segment.ids)
        return out

    @staticmethod
    def sees(segment: Segment, token: int, other: int) -> bool:
        def branch(at: int) -> int:
            end = segment.num_kept
            for index, length in enumerate(segment.branches):
                end += length
                if at < end and at >= segment.num_kept:
                    return index
            return -1

        return other < segment.num_kept or branch(token) == branch(other)

    def attend(self, query: torch.Tensor, seen: list[tuple[torch.Tensor, torch.Tensor]], scale: float) -> torch.Tensor:
        repeat = self.heads // self.key_heads
        keys = torch.stack([key for key, _ in seen], 1).repeat_interleave(repeat, 0)
        values = torch.stack([value for _, value in seen], 1).repeat_interleave(repeat, 0)
        weights = torch.softmax((keys @ query[:, :, None])[..., 0] * scale, -1)
        return (weights[:, None] @ values)[:, 0].flatten()

    def fill(self, lengths: list[int]) -> None:
        """Write shared beginnings, the first of which (if any) stands at the head of the others."""
        root, *others = lengths
        if root:
            self.run([kept(0, 0, root, shared_to=0)])
            self.cache.shared_lengths[0] = root
            self.cache.copy_shared(0, range(1, len(lengths)))
        for place in range(1, len(lengths)):
            self.places[1, place] = list(self.places.get((1, 0), []))
        segments = [kept(0, 0, length, shared_to=place + 1) for place, length in enumerate(others) if length]
        if segments:
            self.run(segments)
        for place, length in enumerate(others):
            self.cache.shared_lengths[place + 1] = root + length


def kept(group: int, past: int, count: int, slot: int | None = None, shared_to: int | None = None) -> Segment:
    return Segment([0] * count, range(count), group, past, slot, shared_to, count)


def branched(group: int, past: int, count: int, slot: int, branches: tuple[int, ...]) -> Segment:
    total = count + sum(branches)
    return Segment([0] * total, range(total), group, past, slot, None, count, None, branches)


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "key_heads", "size"), HEADS)
@pytest.mark.parametrize("shared", [[0, 0, 0, 0], [5, 11, 0, 27], [16, 16, 1, 48], [0, 17, 33, 15]])
def test_attention_equals_torch_over_shared_own_and_branched_tokens(
    dtype: torch.dtype, heads: int, key_heads: int, size: int, shared: list[int]
) -> None:
    bench = Bench(heads, key_heads, size, dtype)
    bench.fill(shared)
    for segments in (
        [kept(1, 0, 3, 0), kept(1, 0, 16, 1), branched(2, 0, 7, 2, (2, 0, 5)), kept(3, 0, 40, 3)],
        [branched(1, 3, 1, 0, (1, 1, 1)), kept(3, 40, 17, 3)],
        [branched(1, 16, 15, 1, (17, 2)), branched(2, 7, 9, 2, (0, 0)), kept(3, 57, 1, 3)],
        [kept(1, 4, 1, 0), kept(1, 31, 1, 1), kept(2, 16, 1, 2), kept(3, 58, 1, 3), kept(3, 0, 1, 4)],
    ):
        out, expected = bench.run(segments)
        assert out.isfinite().all()
        assert (out - expected).abs().max() < TOLERANCE[dtype]
    # A step of one token a slot, in any order of slots.
    lengths = {0: (1, 5), 1: (1, 32), 3: (3, 59), 4: (3, 1)}
    step = NativeAttention.of_slots(bench.cache, [g for g, _ in lengths.values()], list(lengths))
    step.set_lengths([length for _, length in lengths.values()])
    whole = NativeAttention.of_segments(
        bench.cache, [kept(group, length, 1, slot) for slot, (group, length) in lengths.items()]
    )
    assert (step.sights == whole.sights).all()
    assert step.longest == whole.longest


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_large_scores_do_not_overflow(dtype: torch.dtype) -> None:
    for factor in (1e2, 1e4, 1e15, 1e30):
        bench = Bench(4, 2, 16, dtype)
        bench.fill([0, 20, 3])
        out, expected = bench.run([kept(1, 0, 30, 0), branched(2, 0, 5, 1, (3, 3))], factor)
        assert out.isfinite().all()
        far = (out - expected).abs().amax(-1)
        assert far.median() < TOLERANCE[dtype]  # of scores that far apart the highest takes all, in any precision


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_not_a_number_stays_in_its_own_row(dtype: torch.dtype) -> None:
    segments = [kept(1, 0, 9, 0), kept(1, 0, 21, 1), kept(1, 0, 2, 2), kept(2, 0, 6, 3)]
    benches = [Bench(4, 2, 16, dtype) for _ in range(2)]
    for bench in benches:
        bench.fill([4, 12, 20])
    whole, _ = benches[0].run(segments)
    damaged, _ = benches[1].run(segments, damaged=9)  # the first token of the second row
    assert damaged[9:30].isnan().all()
    others = [*range(9), *range(30, 38)]
    assert torch.equal(damaged[others], whole[others])


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 32, 48, 64, 128])
def test_rotation_equals_that_of_transformers_and_is_what_is_kept(dtype: torch.dtype, size: int) -> None:
    heads, key_heads, count = 4, 2, 23
    library = load_kernels(dtype)
    assert library is not None
    cache = KeyValueCache(CacheShape(1, key_heads, size, dtype, "cpu"), 1, 32, 2, 64)
    packed = random_of(1, count, (heads + 2 * key_heads) * size).to(dtype)
    angles = torch.arange(count)[:, None] * 100.0 ** -(torch.arange(size // 2) / (size // 2))
    rows = packed.view(count, -1, size).transpose(0, 1)[None].double()
    cosine, sine = (torch.cat([turn, turn], -1)[None].double() for turn in (angles.cos(), angles.sin()))
    queries, keys = apply_rotary_pos_emb(rows[:, :heads], rows[:, heads : heads + key_heads], cosine, sine)
    values = rows[0, heads + key_heads :].clone()
    attention = NativeAttention.of_segments(cache, [kept(0, 5, count, 1)])
    Kernels(library, heads, key_heads, size).turn_and_store(packed, attention, 0, angles.cos(), angles.sin())
    turned = packed.view(count, -1, size).transpose(0, 1).double()
    assert torch.allclose(
        turned[: heads + key_heads], torch.cat([queries, keys], 1)[0], atol=TOLERANCE[dtype], rtol=1e-2
    )
    assert torch.equal(turned[heads + key_heads :], values)
    # Every number is kept once, wherever the layout puts it, and nothing falls into the other slot.
    for part, rows in ((cache.keys, turned[heads : heads + key_heads]), (cache.values, values)):
        held = part[0, 1].double().flatten()
        assert torch.equal(held[held != 0].sort().values, rows.flatten().sort().values)
        assert not part[0, 0].any()


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 16, 40, 64, 200])
@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_addition_and_normalisation_equal_torch(dtype: torch.dtype, size: int, factor: float) -> None:
    library = load_kernels(dtype)
    assert library is not None
    kernels = Kernels(library, 1, 1, 16)
    states, added = ((random_of(seed, 9, size) * factor).to(dtype) for seed in (1, 2))
    weight = (1 + 0.1 * random_of(3, size)).to(dtype)
    for more in (added, None):
        mine = states.clone()
        total = states if more is None else states + more
        out = kernels.add_and_norm(mine, more, weight, 1e-5)
        assert torch.equal(mine, total)
        expected = torch.nn.functional.rms_norm(total.double(), (size,), weight.double(), 1e-5)
        assert torch.allclose(out.double(), expected, rtol=1e-5 if dtype == torch.float32 else 1e-2, atol=1e-6)
    states[4] = float("nan")
    assert kernels.add_and_norm(states, None, weight, 1e-5).isnan().any(-1).tolist() == [row == 4 for row in range(9)]


@needs_compiler
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [1, 15, 16, 37, 128])
def test_the_gate_equals_torch(dtype: torch.dtype, size: int) -> None:
    library = load_kernels(dtype)
    assert library is not None
    both = (random_of(1, 11, 2 * size) * 8).to(dtype)
    both[2, :size], both[3, :size], both[5, :size] = 3e4, -3e4, float("nan")
    out = Kernels(library, 1, 1, 16).gate(both)
    gate, up = both.double().chunk(2, -1)
    expected = torch.nn.functional.silu(gate) * up
    assert out.isnan().any(-1).tolist() == [row == 5 for row in range(11)]
    kept_rows = [row for row in range(11) if row != 5]
    near = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 1e-6}
    assert torch.allclose(out[kept_rows].double(), expected[kept_rows], **near)


@pytest.mark.usefixtures("fresh_kernels")
@pytest.mark.parametrize("trouble", ["no compiler", "compiler fails", "no folder", "broken library"])
def test_without_kernels_one_sentence_warns_and_the_answers_stay(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, groups = lively_model("llama"), make_groups(60)
    expected = run_flat(token_engine(model, "fused"), groups)
    load_kernels.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(native.SWITCH, raising=False)
    if trouble == "no compiler":
        monkeypatch.setattr(native, "find_compiler", lambda: None)
    elif trouble == "compiler fails":
        monkeypatch.setattr(native, "_FLAGS", ("-this-is-no-flag",))
    elif trouble == "no folder":
        (tmp_path / "cache").write_text("a file")
    else:
        monkeypatch.setattr(native, "_compile", lambda *args: args[-1].parent.mkdir(parents=True) or args[-1].touch())
    with caplog.at_level(logging.WARNING):
        assert load_kernels(torch.float32) is None
        assert load_kernels(torch.float32) is None
    assert len(caplog.records) == 1
    assert "without" in caplog.text
    monkeypatch.setattr("polypersona.decoding.fused.load_kernels", lambda _: load_kernels(torch.float32))
    found = run_flat(token_engine(model, "fused"), groups)
    assert outcomes(found) == outcomes(expected)
    assert farthest(found, expected) == 0


@needs_compiler
@pytest.mark.usefixtures("fresh_kernels")
def test_a_damaged_library_is_compiled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(native.SWITCH, raising=False)
    compile_whole = native._compile

    def compile_damaged(compiler: str, flags: tuple[str, ...], library: Path) -> None:
        monkeypatch.setattr(native, "_compile", compile_whole)
        library.parent.mkdir(parents=True)
        library.write_bytes(b"half a library")

    monkeypatch.setattr(native, "_compile", compile_damaged)
    assert load_kernels(torch.float32) is not None
    assert not caplog.records


@needs_compiler
@pytest.mark.usefixtures("fresh_kernels")
@pytest.mark.parametrize("word", ["off", "OFF", "0", "no"])
def test_a_variable_leaves_kernels_out(
    word: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(native.SWITCH, word)
    assert load_kernels(torch.float32) is None
    assert not caplog.records
    load_kernels.cache_clear()
    monkeypatch.setenv(native.SWITCH, "on")
    assert load_kernels(torch.float32) is not None


@needs_compiler
def test_processes_that_compile_at_once_all_get_the_kernels(tmp_path: Path) -> None:
    script = (
        "import torch; from polypersona.decoding.native import load_kernels; "
        "print(load_kernels(torch.float32).attend is not None, flush=True)"
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), native.SWITCH: "on", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", script]
    started = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=120)[0].strip() for process in started] == ["True", "True"]
    assert len(list((tmp_path / "polypersona").iterdir())) == 1
