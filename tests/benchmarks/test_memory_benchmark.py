"""What the memory benchmark trains on."""

from __future__ import annotations

import pytest
from toy_models import make_toy_tokenizer

from benchmarks.memory import CASES, GPU_CASES, Case, _examples
from polypersona.training.encoding import encode_examples, num_shared_tokens


@pytest.mark.parametrize("case", [*CASES.values(), *GPU_CASES.values()], ids=lambda case: case.name)
def test_the_rows_have_the_longest_length_and_share_no_beginning(case: Case) -> None:
    rows = encode_examples(make_toy_tokenizer(), _examples(case), case.tokens).rows
    assert {len(row.ids) for row in rows} == {case.tokens}
    assert num_shared_tokens(rows) == 0
    assert len({row.num_answer for row in rows}) == 1
