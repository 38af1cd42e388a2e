"""Run: pytest tests/metrics/test_sentences.py. Oracle: pysbd itself."""

from __future__ import annotations

import pysbd
import pytest
from benchmarks.answer_pairs import teacher_sentences
from hypothesis import given, settings
from hypothesis import strategies as st

from polypersona.metrics.sentences import split_sentences
from polypersona.metrics.structure import _count_plain

SEGMENTER = pysbd.Segmenter(language="en", clean=False)
PIECES = """I the The dog "Agree," "not me" “quite so” (or parks) (i) (mix) (see art) a) b) 1) 2) 3. 4. 12. Dr. dr.
No. no. me. etc. e.g. e.g., i.e. p.m. U.S. U.S.A. Ph.D. eng. E-g. ... .. ! ? !! ?! 'quoted' 'no it's students' $5 $5,000
50% 3.5 and/or US-West. check-up. well-being. haven't. I'd. I'm I'll I It In me Me MR. st. ſt. İd. 1990. 24/7 A. B. x.
—yes— products—they - – yes; so: (a word) ) ( " “ ” « » [1] .[2] word.3 Yahoo! Yum! a.m. Inc. Co. KG .pdf ° ok ok."""


@settings(max_examples=500, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(PIECES.split()), st.sampled_from([" "] * 9 + ["\n", "  ", ""])), max_size=16))
def test_sentences_and_the_shortcut_are_pysbds(parts):
    text = "".join(piece + space for piece, space in parts)
    expected = SEGMENTER.segment(text)
    assert split_sentences(text) == expected
    plain = _count_plain(text)
    assert plain is None or plain == sum(1 for sentence in expected if sentence.strip())


PLAIN = """the dog "Agree," "not me" “quite so” (or parks) (see the art) $5 50% and/or check-up well-being 24/7 no etc
products—they - – so; yes: me I It 12 3 st mr is inc me art fig v ok co haven't I'm I'll students dr may mar"""
ENDS = "check-up haven't me no 3 4 12 is etc st dr art fig co yes US-West mar ok I'd students"


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["The", "I", "It", "In", "I'm", "I'll", "Yes,", "No"]),
            st.lists(st.sampled_from(PLAIN.split()), max_size=6).map(" ".join),
            st.sampled_from(ENDS.split()),
            st.sampled_from(".!?"),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_the_shortcut_counts_as_pysbd_does_in_texts_it_is_made_for(parts):
    text = " ".join(" ".join(filter(None, (begin, middle, end))) + mark for begin, middle, end, mark in parts)
    plain = _count_plain(text)
    assert plain is None or plain == sum(1 for sentence in SEGMENTER.segment(text) if sentence.strip())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('I would call it "fair," but not cheap—it cost me $50 or so. I (or we) haven\'t paid.', None),
        ('I would call it "fair," but not cheap—it cost me $50 or so. I haven\'t paid.', 2),
        ("I (or we) haven't paid. It was a routine check-up.", 2),
        ("I'd rate it a 3. It was a routine check-up.", 2),
        ("I rate it a 3. Others say 4. So be it.", None),
        ("My pick is list (a) or so.", None),
        ('He said "no." I left.', None),
    ],
)
def test_the_shortcut_is_taken_for_these(text, expected):
    assert _count_plain(text) == expected


def test_the_teachers_sentences_need_no_segmenter():
    texts = [text for bank in teacher_sentences() for text in bank]
    assert sum(_count_plain(text) is not None for text in texts) > 0.8 * len(texts)
