from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgem.errors import UsageError
from mmgem.evaluate.bleu import bleu
from mmgem.evaluate.captions import caption_scores, grouped_caption_scores
from mmgem.evaluate.cider import cider_d
from mmgem.evaluate.rouge import common_length, rouge_l

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "captions_metrics.json").read_text("utf-8"))
PREDICTIONS = [image["prediction"] for image in RECORDED["images"]]
REFERENCES = [image["references"] for image in RECORDED["images"]]

word_lists = st.lists(st.sampled_from("abcd"), max_size=12)


def test_same_scores_as_the_coco_evaluation() -> None:
    scores = caption_scores(PREDICTIONS, REFERENCES)
    assert list(scores) == ["BLEU@1", "BLEU@2", "BLEU@3", "BLEU@4", "ROUGE_L", "CIDEr", "images"]
    assert scores == pytest.approx(RECORDED["scores"], abs=1e-3)


def test_perfect_captions() -> None:
    captions = ["A dog runs on the beach.", "Two children eat ice cream outside."]
    scores = caption_scores(captions, [[caption] for caption in captions])
    assert scores == pytest.approx(
        {"BLEU@1": 100, "BLEU@2": 100, "BLEU@3": 100, "BLEU@4": 100}
        | {"ROUGE_L": 100, "CIDEr": 1000, "images": 2},
        abs=1e-4,
    )


def test_case_and_punctuation_do_not_count() -> None:
    changed = [caption.upper().rstrip(".") + " !" for caption in PREDICTIONS[:3]]
    assert caption_scores(changed, REFERENCES[:3]) == caption_scores(PREDICTIONS[:3], REFERENCES[:3])


def test_empty_predictions_score_nothing() -> None:
    scores = caption_scores(["", " "], [["a dog"], ["a cat", "cats"]])
    assert all(scores[key] < 1e-6 for key in scores if key != "images")


def test_short_captions_pay_the_brevity_penalty() -> None:
    assert bleu([["a"]], [[["a", "b", "c"]]])[0] == pytest.approx(math.exp(1 - 3))


def test_bleu_takes_the_closest_reference_length_and_clips() -> None:
    words, refs = ["a", "a", "b"], [["a", "b"], ["b"] * 4, ["a"] * 9]
    assert bleu([words], [refs])[0] == pytest.approx(1)  # length 2, not 4: equally close, the shorter
    assert bleu([["a", "a", "a"]], [[["a", "b", "c"]]])[0] == pytest.approx(1 / 3)


def test_rouge_of_a_hand_computed_case() -> None:
    # LCS "a c" with the first reference (P 2/3, R 2/4), "b" with the second (P 1/3, R 1/1).
    score = rouge_l([["a", "b", "c"]], [[["a", "x", "c", "y"], ["b"]]])
    assert score == pytest.approx((1 + 1.44) * (2 / 3) * 1 / (1 + 1.44 * 2 / 3))


def test_cider_of_a_hand_computed_case() -> None:
    # Two images; "a" is in both (weight 0), "b" and "c" in one each. Prediction 0 has the same bigram too.
    scores = cider_d([["a", "b"], ["b"]], [[["a", "b"]], [["a", "c"]]])
    assert scores == pytest.approx([10 * 2 / 4, 0])
    assert cider_d([["a", "b"]], [[["a", "b"]]]) == [0]


@given(word_lists, word_lists)
def test_common_length_equals_the_table(a: list[str], b: list[str]) -> None:
    row = [0] * (len(b) + 1)
    for x in a:
        above = row[:]
        for j, y in enumerate(b):
            row[j + 1] = above[j] + 1 if x == y else max(above[j + 1], row[j])
    assert common_length(a, b) == row[-1]


@given(st.lists(st.tuples(word_lists, st.lists(word_lists, min_size=1, max_size=3)), min_size=1, max_size=4))
def test_scores_are_in_range(images: list[tuple[list[str], list[list[str]]]]) -> None:
    predictions, references = [p for p, _ in images], [r for _, r in images]
    assert all(
        0 <= score <= 1 + 1e-9 for score in [*bleu(predictions, references), rouge_l(predictions, references)]
    )
    assert all(-1e-9 <= score <= 10 + 1e-9 for score in cider_d(predictions, references))


def test_groups_are_scored_as_sets_of_their_own() -> None:
    groups = ["far" if i % 3 else "near" for i in range(len(PREDICTIONS))]
    scores = grouped_caption_scores(PREDICTIONS, REFERENCES, groups)
    assert list(scores) == ["far", "near", "all"]
    assert scores["all"] == caption_scores(PREDICTIONS, REFERENCES)
    assert scores["near"] == caption_scores(PREDICTIONS[::3], REFERENCES[::3])
    with pytest.raises(UsageError, match="2 groups for 1"):
        grouped_caption_scores(["a"], [["a"]], ["x", "y"])
    with pytest.raises(UsageError, match="all"):
        grouped_caption_scores(["a"], [["a"]], ["all"])


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a"], [["a"], ["b"]], "1 predicted captions for 2 images"),
        ([], [], "no captions"),
        (["a", "b"], [["a"], []], r"references\[1\] is empty"),
        (["a"], [["", " "]], r"references\[0\] is empty"),
        (["a"], ["a dog"], r"references\[0\] is a string"),
    ],
)
def test_errors(predictions: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        caption_scores(predictions, references)
