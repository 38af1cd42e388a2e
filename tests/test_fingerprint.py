"""Digests of content, and how two contents differ in words."""

from polypersona.fingerprint import diff, digest_of


def test_the_digest_does_not_depend_on_the_order_of_keys_or_on_a_stored_form():
    content = {"a": 1, "b": (0.8, 0.1), "c": None}
    assert digest_of(content) == digest_of({"c": None, "b": [0.8, 0.1], "a": 1})
    assert digest_of(content) != digest_of({**content, "a": 2})


def test_a_difference_says_old_and_new():
    old = {"seed": 7, "name": "rules", "same": [1, 2], "gone": None}
    new = {"seed": 8, "name": "fake", "same": (1, 2), "here": True}
    assert diff(old, new) == [
        "gone: null → (absent)",
        "here: (absent) → true",
        "name: rules → fake",
        "seed: 7 → 8",
    ]


def test_equal_contents_do_not_differ():
    assert diff({"a": (1,)}, {"a": [1]}) == []
