"""pytest tests/engines/test_token_questions.py"""

from __future__ import annotations

import numpy as np
import vllm_double
from hypothesis import given
from hypothesis import strategies as st

from polypersona.engines.token_questions import option_log_probs, token_questions


def softmax(logits):
    weights = np.exp(np.asarray(logits) - max(logits))
    return weights / weights.sum()


def test_letters_that_begin_alike_are_scored_whole():
    together = [[7, 1, 9], [7, 1, 8, 3]]
    (question,) = token_questions(together, by_first_token=True, max_tokens=128)
    assert (question.path, question.tokens, question.is_exclusive) == ((7, 1), (9, 8), True)
    inside = [[7, 1], [7, 1, 8], [7, 2]]  # the first is the beginning of the second
    assert not any(q.is_exclusive for q in token_questions(inside, by_first_token=True, max_tokens=128))


@given(
    st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), min_size=1, max_size=7),
    st.integers(1, 4),
    st.lists(st.integers(0, 5), max_size=2),
)
def test_questions_give_the_ratios_of_whole_texts(tails, size, start):
    options = [[*start, *tail] for tail in tails]

    def log_prob(path, token):
        return float(vllm_double.toy_log_probs([99, *path], 6, 0)[token])

    questions = token_questions(options, by_first_token=False, max_tokens=size)
    assert all(len(question.tokens) <= size for question in questions)
    asked = [(question.path, token) for question in questions for token in question.tokens]
    assert len(asked) == len(set(asked))
    got = option_log_probs(options, questions, {key: log_prob(*key) for key in asked})
    whole = [sum(log_prob(option[:place], token) for place, token in enumerate(option)) for option in options]
    np.testing.assert_allclose(softmax(got), softmax(whole), rtol=1e-9)
