"""Queries of several terms: how they are read, and what they find."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import save_photo

from mmgem import MMGEM
from mmgem.errors import MMGEMError, UsageError
from mmgem.search.query_terms import AVOIDED, QueryTerm, combined_vector, embed_terms, parse_terms


@pytest.mark.parametrize(
    ("query", "terms"),
    [
        ('"a dog" -"snow"', [("a dog", 1), ("snow", AVOIDED)]),
        ('a dog -"snow"^2 "a cat"^0.5', [("a dog", 1), ("snow", 2 * AVOIDED), ("a cat", 0.5)]),
        ("a dog -snow in the grass", [("a dog in the grass", 1), ("snow", AVOIDED)]),
        ('"a dog"^.5', [("a dog", 0.5)]),
        ('+"two words" +one^3', [("two words", 1), ("one", 3)]),
        ('x "a ^ b"', [("x", 1), ("a ^ b", 1)]),
    ],
)
def test_terms(query: str, terms: list[tuple[str, float]]) -> None:
    found = parse_terms(query)
    assert found is not None and [(term.text, term.weight) for term in found] == terms


@pytest.mark.parametrize(
    "query", ["a dog", 'a 24" screen', "a t-shirt", "one - two", "2^3", "a + b", "", "it's", "C++"]
)
def test_plain_words_are_no_terms(query: str) -> None:
    assert parse_terms(query) is None


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ('a "dog', "query, character 3: the quote is not closed"),
        ('a -"dog', "query, character 4: the quote is not closed"),
        ('"a" ""', "query, character 5: there is nothing between the quotes"),
        ('"a dog"^x', r"query, character 9: \^x: a weight is a number up to 100"),
        ('"a dog"^', r"query, character 9: \^: a weight"),
        ('"a"^0', r"character 5: \^0: a weight"),
        ('"a"^101', r"character 5: \^101: a weight"),
        ('"a"b', "query, character 1: '\"a\"b' is no term; write"),
        ("a +no.jpg", r"query, character 3: no\.jpg: no such file"),
        ('"a" - "b"', "query, character 5: a lone -; write it right before"),
        (" ".join(["+x"] * 40), "query: more than 32 terms"),
    ],
)
def test_errors_name_the_place(query: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        parse_terms(query)


@given(st.text(st.sampled_from('ab "^+-.1\\\t'), max_size=20))
def test_any_text_is_read_or_refused_in_a_line(query: str) -> None:
    try:
        found = parse_terms(query)
    except MMGEMError as error:
        assert "\n" not in str(error)
    else:
        assert found is None or all(term.text for term in found)


def test_files_are_photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_photo(tmp_path / "a photo.jpg")
    save_photo(tmp_path / "b.png")
    found = parse_terms('"b.png" +b.png^2 -"a photo.jpg"')
    assert found is not None
    assert [(term.text, term.image, term.weight) for term in found] == [
        ("b.png", None, 1),
        (None, Path("b.png"), 2),
        (None, Path("a photo.jpg"), AVOIDED),
    ]


def test_the_vector_is_the_weighted_sum(tiny_model_folder: Path, tiny_photos: list[Path]) -> None:
    model = MMGEM.from_pretrained(tiny_model_folder)
    terms = [
        QueryTerm("a red dog"),
        QueryTerm(image=tiny_photos[1], weight=2),
        QueryTerm("the sea", weight=-0.5),
    ]
    vector = embed_terms(model, terms)
    texts, image = model.embed_queries(["a red dog", "the sea"]), model.embed_images([tiny_photos[1]])[0]
    expected = texts[0] + 2 * image - 0.5 * texts[1]
    np.testing.assert_allclose(vector, expected / np.linalg.norm(expected), atol=1e-6)
    assert vector.dtype == np.float32
    np.testing.assert_allclose(embed_terms(model, [QueryTerm("a red dog")]), texts[0], atol=1e-6)
    index = model.index(tiny_photos[0].parent, tiny_photos[0].parent.with_name("terms.idx"))
    hits = index.search_terms(terms, 100)
    assert [hit.path for hit in hits] == [
        hit.path for hit in index.search(vector, 100) if hit.path != tiny_photos[1]
    ]


@pytest.mark.parametrize(
    ("vectors", "weights", "problem"),
    [
        ([[1, 0]], [-1], "something to look for"),
        ([], [], "something to look for"),
        ([[1, 0], [1, 0]], [1, -1], "cancel out"),
    ],
)
def test_no_query(vectors: Sequence[Sequence[float]], weights: list[float], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        combined_vector([np.array(vector, np.float32) for vector in vectors], weights)


def test_no_terms() -> None:
    for options, problem in (
        ({}, "one of the two"),
        ({"text": "a", "image": "b.png"}, "one of the two"),
        ({"text": "a", "box": (0, 0, 1, 1)}, "a box needs an image"),
        ({"text": "a", "weight": 0}, "weight 0"),
        ({"text": "a", "weight": float("nan")}, "weight nan"),
    ):
        with pytest.raises(UsageError, match=problem):
            QueryTerm(**options)  # type: ignore[arg-type]
