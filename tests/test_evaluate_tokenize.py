from __future__ import annotations

import json
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmgem.evaluate.tokenize import caption_words, ngram_counts, ptb_words

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "captions_metrics.json").read_text("utf-8"))
SENTENCES = [
    pair
    for image in RECORDED["images"]
    for pair in [
        (image["prediction"], image["prediction_words"]),
        *zip(image["references"], image["reference_words"], strict=True),
    ]
]


@pytest.mark.parametrize(("sentence", "words"), SENTENCES)
def test_same_words_as_the_coco_evaluation(sentence: str, words: str) -> None:
    assert ptb_words(sentence) == words.split()


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("They can't, won't, shan't go", "they ca n't wo n't sha n't go"),
        ("the girls' shoes, the girl's shoe", "the girls ' shoes the girl 's shoe"),
        ("You cannot; I'm gonna, he's gotta", "you can not i 'm gon na he 's got ta"),
        ("12-year-old X-ray and/or w/o 24/7", "12-year-old x-ray and/or w/o 24/7"),
        ("1,000 or 3.5 or .5 or 5% or $5 or #5", "1,000 or 3.5 or .5 or 5 % or $ 5 or # 5"),
        ("£5 €5 5¢ 1½", "# 5 $ 5 5 cents 1 1/2"),
        ("dog. St. dept. U.S. e.g. fig. 5 fig.", "dog st. dept. u.s. e.g. fig. 5 fig"),
        ("(a) [b] {c} :)", "-lrb- a -rrb- -lsb- b -rsb- -lcb- c -rcb- :-rrb-"),
        ("what?! no... yes!", "what ?! no yes"),
        ("AT&T R&B a & b M&M's", "at&t r&b a & b m&m 's"),
        ("a@b.com https://a.b/c?d=1. www.x.org, foo.com", "a@b.com https://a.b/c?d=1 www.x.org foo.com"),
        ("Zürich 東京 हिन्दी", "zürich 東京 हिन्दी"),
        ("a 👍 b ★ c\u200bd", "a b ★ c d"),
    ],
)
def test_words(sentence: str, words: str) -> None:
    assert ptb_words(sentence) == [word for word in words.split() if word != "'"]


@given(st.text())
def test_words_are_lower_case_without_blanks(sentence: str) -> None:
    for word in ptb_words(sentence):
        assert word == word.lower()
        assert word.split() == [word]


@given(st.text(alphabet="abc'-., !?\"", max_size=30))
def test_layout_does_not_matter(sentence: str) -> None:
    assert ptb_words(f"  {sentence}\n\n".replace(" ", " \t ")) == ptb_words(sentence)


@pytest.mark.parametrize(
    "piece", ["a", "'", ".", "a.", "%", "-", "a-", "n't", "<a", "&", "1,", "a/", "@", " "]
)
def test_long_nonsense_is_not_slow(piece: str) -> None:
    start = time.perf_counter()
    ptb_words(piece * 3000)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("„Ein Hündchen“ läuft auf der Straße.", "ein hündchen läuft auf der straße"),
        ("Zu\u0308rich Štěně", "zürich štěně"),
        ("Le chien de l’homme, là !", "le chien de l'homme là"),
        ("¿Qué?", "qué"),
        ("왼쪽에 개가 있다.", "왼쪽에 개가 있다"),
        ("一只狗在跑。", "一 只 狗 在 跑"),
        ("犬が走る！Red犬", "犬 が 走 る red 犬"),
        ("สุนัขวิ่ง", "สุ นั ข วิ่ ง"),
        ("كلب يجري؟ نعم، هنا", "كلب يجري نعم هنا"),
        ("कुत्ता दौड़ता है।", "कुत्ता दौड़ता है"),
        ("𠮷野家 👍 𝐚b", "𠮷 野 家 𝐚 b"),
    ],
)
def test_words_of_captions_in_any_language(sentence: str, words: str) -> None:
    expected = unicodedata.normalize("NFC", words).split()
    for form in ("NFC", "NFD"):
        assert caption_words(unicodedata.normalize(form, sentence)) == expected


@pytest.mark.parametrize(("sentence", "words"), SENTENCES)
def test_captions_in_english_keep_their_words(sentence: str, words: str) -> None:
    assert caption_words(sentence) == words.split()


def test_ngram_counts() -> None:
    counts = ngram_counts(["a", "b", "a", "b"], 2)
    assert counts == {("a",): 2, ("b",): 2, ("a", "b"): 2, ("b", "a"): 1}
    assert not ngram_counts([])
