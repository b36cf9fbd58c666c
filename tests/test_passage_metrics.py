"""Scores of rankings and of answers, against sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest

from mmgem.errors import UsageError
from mmgem.evaluate.answers import answer_scores
from mmgem.evaluate.ranking import ranking_scores


def test_rankings_by_hand() -> None:
    ranked = [
        ["a", "b", "c"],  # first: 1
        ["b", "c", "a"],  # third: 1/3
        ["b", "c", "d", "e", "a"],  # fifth: 1/5
        ["b", "c", "d", "e", "f", "a"],  # sixth: 0
        [],  # 0
        ["c", "b", "a"],  # the second is one of two: 1/2
    ]
    positives: list[Any] = [("a",), ["a"], {"a"}, {"a"}, {"a"}, ("a", "b")]
    reciprocal = [1, 1 / 3, 1 / 5, 0, 0, 1 / 2]

    def error(values: list[float]) -> float:
        mean = sum(values) / 6
        return 100 * (sum((v - mean) ** 2 for v in values) / 5 / 6) ** 0.5

    assert ranking_scores(ranked, positives) == {
        "H@1": pytest.approx(100 / 6),
        "H@5": pytest.approx(400 / 6),
        "H@20": pytest.approx(500 / 6),
        "MRR@5": pytest.approx(100 * sum(reciprocal) / 6),
        "H@1 error": pytest.approx(error([1, 0, 0, 0, 0, 0])),
        "H@5 error": pytest.approx(error([1, 1, 1, 1, 0, 0])),
        "H@20 error": pytest.approx(error([1, 1, 1, 1, 1, 0])),
        "MRR@5 error": pytest.approx(error(reciprocal)),
        "queries": 6,
    }


def test_an_id_that_is_ranked_again_takes_no_place() -> None:
    scores = ranking_scores([["b", "b", "c", "b", "d", "e", "a"]], [["a"]])
    assert [scores[name] for name in ("H@1", "H@5", "MRR@5", "queries")] == [0, 100, 20, 1]


@pytest.mark.parametrize(
    ("ranked", "positives", "message"),
    [
        ([], [], "0 rankings for 0 queries"),
        ([["a"]], [["a"], ["b"]], "1 rankings for 2 queries"),
        ([["a"], ["a"]], [["a"], []], "query 1 has no positives"),
        ([["a"]], ["abc"], "query 0: a ranking and its positives must be lists"),
        (["abc"], [["a"]], "query 0: a ranking and its positives must be lists"),
    ],
)
def test_ranking_errors(ranked: Any, positives: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ranking_scores(ranked, positives)


@pytest.mark.parametrize(
    ("said", "gold", "exact", "f1"),
    [
        ("the Panthers.", ["Panthers"], 100, 100),
        (" A  dog,an owl ", ["dogan owl"], 100, 100),  # signs go without a trace, as in SQuAD's script
        ("Luke Kuechly", ["Thomas Davis", "Kuechly"], 0, 200 / 3),  # 1/2 and 1/1
        ("in the year 1990", ["1990", "the year of 1990"], 0, 200 * 2 / 6),  # in year 1990; year of 1990
        ("dog dog cat", ["dog"], 0, 50),  # 1/3 and 1/1
        ("dog", ["cat"], 0, 0),
        ("", ["dog"], 0, 0),
        ("", [""], 100, 100),
        ("the", ["a"], 100, 100),
        ("\u201c23\u201316\u201d", ["2316"], 100, 100),
        ("STRASSE", ["stra\u00dfe"], 100, 100),
        ("cafe\u0301", ["CAF\u00c9"], 100, 100),
        ("\u4e2d\u56fd\u3002", ["\u4e2d\u56fd"], 100, 100),
        ("theatre", ["atre"], 0, 0),
    ],
)
def test_answers_by_hand(said: str, gold: list[str], exact: float, f1: float) -> None:
    assert answer_scores([said], [gold]) == {"EM": exact, "F1": pytest.approx(f1)}


def test_answers_are_averaged() -> None:
    scores = answer_scores(["dog", "a b c d", "no"], [["dog"], ["b c"], ["yes"]])
    assert scores == {"EM": pytest.approx(100 / 3), "F1": pytest.approx(100 * (1 + 4 / 5) / 3)}


@pytest.mark.parametrize(
    ("said", "gold", "message"),
    [
        ([], [], "0 answers for 0 questions"),
        (["a"], [], "1 answers for 0 questions"),
        (["a", "b"], [["a"], []], "question 1 has no gold answers"),
        (["a"], ["a"], "question 0: gold answers must be a list"),
    ],
)
def test_answer_errors(said: Any, gold: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        answer_scores(said, gold)
