from __future__ import annotations

import numpy as np
import pytest

from mmgem.errors import UsageError
from mmgem.evaluate.classify import (
    PROMPTS,
    class_embeddings,
    classification_scores,
    classify,
    fill_prompt,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dog", "a photo of a dog."),
        ("apple", "a photo of an apple."),
        ("golden_retriever", "a photo of a golden retriever."),
        (" ice  cream_", "a photo of an ice cream."),
        ("hourglass", "a photo of an hourglass."),
        ("house", "a photo of a house."),
        ("unicycle", "a photo of a unicycle."),
        ("uninhabited island", "a photo of an uninhabited island."),
        ("European robin", "a photo of a European robin."),
        ("umbrella", "a photo of an umbrella."),
        ("urinal", "a photo of a urinal."),
        ("urn", "a photo of an urn."),
        ("one-armed bandit", "a photo of a one-armed bandit."),
        ("X-ray", "a photo of an X-ray."),
        ("SUV", "a photo of an SUV."),
        ("T-shirt", "a photo of a T-shirt."),
        ("U-boat", "a photo of a U-boat."),
        ("éclair", "a photo of an éclair."),
    ],
)
def test_article_follows_the_sound(name: str, expected: str) -> None:
    assert fill_prompt("a photo of a {}.", name) == expected


def test_only_the_article_before_the_name_changes() -> None:
    assert fill_prompt("A {}, a big one.", "owl") == "An owl, a big one."
    assert fill_prompt("the {} in a photo.", "owl") == "the owl in a photo."


def test_prompts_can_all_be_filled() -> None:
    assert len({fill_prompt(prompt, "cat") for prompt in PROMPTS}) == len(PROMPTS) >= 10


def test_class_embeddings_are_normalised_means_of_unit_vectors() -> None:
    vectors = {"a cat": [3, 0, 0], "cats": [0, 0.1, 0], "a dog": [0, 0, 1], "dogs": [0, 0, 5]}
    calls: list[list[str]] = []

    def embed(texts: list[str]) -> np.ndarray:
        calls.append(texts)
        return np.array([vectors[text] for text in texts], np.float32)

    classes = class_embeddings(embed, ["cat", "dog"], ["a {}", "{}s"])
    assert calls == [["a cat", "cats", "a dog", "dogs"]]
    assert classes.dtype == np.float32
    assert classes == pytest.approx(np.array([[0.5**0.5, 0.5**0.5, 0], [0, 0, 1]]))


def test_classify_gives_probabilities() -> None:
    classes = np.eye(3, dtype=np.float32)
    probabilities = classify(classes[[2, 0]], classes, temperature=0.5)
    assert probabilities.sum(axis=1) == pytest.approx([1, 1])
    assert probabilities.argmax(axis=1).tolist() == [2, 0]
    assert probabilities[0, 2] / probabilities[0, 0] == pytest.approx(np.exp(2))
    assert classify(classes, classes, temperature=1e-6)[0].tolist() == [1, 0, 0]


def test_classification_scores() -> None:
    classes = np.eye(6, dtype=np.float32)
    images = classes[[0, 0, 0, 1]]
    scores = classification_scores(images, classes, [0, 0, 0, 2])
    # Image 3 is classed as 1; the other five are tied, so the right one comes last.
    assert scores == {"top1": 75.0, "top5": 75.0, "mean_per_class": 50.0, "images": 4}


def test_equal_classes_find_nothing() -> None:
    same = np.ones((8, 4), np.float32) / 2
    scores = classification_scores(same, same, np.arange(8))
    assert (scores["top1"], scores["top5"]) == (0, 0)


def test_errors() -> None:
    eye = np.eye(3, dtype=np.float32)
    with pytest.raises(UsageError, match="class name is empty"):
        fill_prompt("a {}", "_")
    with pytest.raises(UsageError, match=r"must contain \{\} once"):
        fill_prompt("a photo", "cat")
    with pytest.raises(UsageError, match="no class names"):
        class_embeddings(lambda texts: eye, [])
    with pytest.raises(UsageError, match="not one string"):
        class_embeddings(lambda texts: eye, "cat")
    with pytest.raises(UsageError, match="not zero"):
        class_embeddings(lambda texts: np.zeros((len(texts), 3)), ["cat"])
    with pytest.raises(UsageError, match="temperature"):
        classify(eye, eye, 0)
    with pytest.raises(UsageError, match=r"must be \(n, D\)"):
        classify(eye, eye[:, :2])
    with pytest.raises(UsageError, match="3 integers"):
        classification_scores(eye, eye, [0, 1])
    with pytest.raises(UsageError, match="from 0 to 2"):
        classification_scores(eye, eye, [0, 1, 3])
    with pytest.raises(UsageError, match="finite"):
        classification_scores(eye * np.nan, eye, [0, 1, 2])
