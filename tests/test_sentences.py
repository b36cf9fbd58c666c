"""Sentences, and texts of several of them embedded as their mean."""

from __future__ import annotations

import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from mmgem import MMGEM, DataError
from mmgem.data.sentences import split_sentences


@pytest.mark.parametrize(
    "text,expected",
    [
        ("A dog runs. Two cats sleep!  Is it late?", ["A dog runs.", "Two cats sleep!", "Is it late?"]),
        ("A dog runs on grass", ["A dog runs on grass"]),
        ("Mr. Smith walks his dog. Now.", ["Mr. Smith walks his dog. Now."]),
        ("a dog runs\n\ntwo cats sleep here", ["a dog runs", "two cats sleep here"]),
        ("It is 3.5 m long", ["It is 3.5 m long"]),
        ("Stop!", ["Stop!"]),
        ("A dog runs fast. . . .", ["A dog runs fast. . . ."]),
        (" . ", ["."]),
        ("", []),
        (" \n ", []),
    ],
)
def test_split(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@given(st.text(st.sampled_from("ab .!?\n'\""), max_size=60))
def test_no_words_are_lost(text: str) -> None:
    plain = str.maketrans("", "", "\"')] ")
    assert "".join(split_sentences(text)).translate(plain) == "".join(text.split()).translate(plain)


def model(**prep: object) -> MMGEM:
    return MMGEM(toys.network(), toys.tokenizer(toys.prep(**prep)), batch=2)


def test_a_long_text_is_the_mean_of_its_sentences() -> None:
    mmgem = model(max_text_tokens=6)
    one, two = "a dog runs on the grass", "a cat left of a dog"
    vectors = mmgem.embed_texts([one, f"{one}. {two}", two])
    mean = vectors[0] + vectors[2]
    # The full stop is a word of its own to the toy tokenizer, so both ways are not quite the same text.
    parts, owners = mmgem.tokenizer.encode_parts([one, f"{one}. {two}"])
    assert owners[:2] == [0, 1]
    assert all(len(part) <= 6 for part in parts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert float(vectors[1] @ mean / np.linalg.norm(mean)) > 0.5


def test_sentences_without_marks_are_the_mean_exactly() -> None:
    mmgem = model()
    one, two = "a dog runs on the grass", "a cat left of a dog"
    vectors = mmgem.embed_texts([one, two, f"{one}\n{two}"])
    mean = vectors[0] + vectors[1]
    np.testing.assert_allclose(vectors[2], mean / np.linalg.norm(mean), atol=1e-5)


def test_nothing_of_a_long_sentence_is_lost() -> None:
    tokenizer = toys.tokenizer(toys.prep(max_text_tokens=4))
    text = "a dog runs on the grass left of a cat"
    parts, owners = tokenizer.encode_parts([text])
    assert owners == [0, 0, 0]
    assert [len(p) for p in parts] == [4, 3, 3]
    whole = toys.tokenizer().encode_all([text])[0]
    assert [int(t) for p in parts for t in p] == whole.tolist()


def test_read_as_a_whole_a_long_text_is_an_error() -> None:
    mmgem = model(max_text_tokens=6, long_text="joined")
    with pytest.raises(DataError, match="over the model's 6"):
        mmgem.embed_texts(["a dog runs\na cat left of a dog"])
