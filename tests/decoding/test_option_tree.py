"""pytest tests/decoding/test_option_tree.py"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from polypersona.decoding.option_tree import option_tree

token_lists = st.lists(st.integers(0, 9), min_size=1, max_size=5)


def test_branches_see_the_suffix_and_themselves_only() -> None:
    tree = option_tree([7, 8], [[1, 2, 3], [4], [1, 5]])
    assert tree.ids == [7, 8, 1, 2, 1]
    assert tree.positions == [0, 1, 2, 3, 2]
    assert tree.options == [[(1, 1), (2, 2), (3, 3)], [(1, 4)], [(1, 1), (4, 5)]]
    assert tree.visible.int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]


@given(token_lists, st.lists(token_lists, min_size=1, max_size=5))
def test_what_a_token_sees_is_the_option_up_to_it(suffix: list[int], options: list[list[int]]) -> None:
    tree = option_tree(suffix, options)
    assert len(tree.ids) == len(suffix) + sum(len(option) - 1 for option in options)
    for option, scored in zip(options, tree.options, strict=True):
        assert [token for _, token in scored] == option
        for at, (before, _) in enumerate(scored):
            seen = [place for place, is_seen in enumerate(tree.visible[before].tolist()) if is_seen]
            assert [tree.ids[place] for place in seen] == [*suffix, *option[:at]]
            assert [tree.positions[place] for place in seen] == list(range(len(suffix) + at))
