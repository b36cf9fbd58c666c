"""Sentences, and texts of several of them embedded as their mean."""

from __future__ import annotations

import numpy as np
import pytest
import toys
from hypothesis import given
from hypothesis import strategies as st

from mmgem import MMGEM, DataError
from mmgem.data.scripts import join_units, text_units
from mmgem.data.sentences import passage_sentences, split_sentences


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
        (
            "Ein Hund, z. B. ein Pudel, rennt. Er bellt bzw. knurrt sehr.",
            ["Ein Hund, z. B. ein Pudel, rennt.", "Er bellt bzw. knurrt sehr."],
        ),
        ("Am 3. Mai kam ein Hund. Er blieb lange.", ["Am 3. Mai kam ein Hund.", "Er blieb lange."]),
        ("Le chien, p. ex. Médor, court. Il est brun.", ["Le chien, p. ex. Médor, court.", "Il est brun."]),
        ("Pes přišel 3. května. Je to tzv. jezevčík.", ["Pes přišel 3. května.", "Je to tzv. jezevčík."]),
        ("개가 뛴다. 고양이가 잔다.", ["개가 뛴다.", "고양이가 잔다."]),
        ("一只狗在跑。两只猫在睡觉！真的吗？是的。", ["一只狗在跑。", "两只猫在睡觉！", "真的吗？是的。"]),
        ("「行く。」と言った。彼は帰った。", ["「行く。」と言った。", "彼は帰った。"]),
        ("एक कुत्ता दौड़ता है। दो बिल्लियाँ सो रही हैं।", ["एक कुत्ता दौड़ता है।", "दो बिल्लियाँ सो रही हैं।"]),
        ("هذا كلب كبير؟ قطة تنام هنا۔", ["هذا كلب كبير؟", "قطة تنام هنا۔"]),
    ],
)
def test_split(text: str, expected: list[str]) -> None:
    assert split_sentences(text) == expected


@given(st.text(st.sampled_from("ab .!?\n'\""), max_size=60))
def test_no_words_are_lost(text: str) -> None:
    plain = str.maketrans("", "", "\"')] ")
    assert "".join(split_sentences(text)).translate(plain) == "".join(text.split()).translate(plain)


@given(st.text(st.sampled_from("ab개狗か。！？…「」»« .\n"), max_size=60))
def test_no_words_of_other_scripts_are_lost(text: str) -> None:
    plain = str.maketrans("", "", "\"')]«»」 ")
    assert "".join(split_sentences(text)).translate(plain) == "".join(text.split()).translate(plain)


@given(st.text(st.sampled_from("a 개狗か。！ส็，"), max_size=60))
def test_units_joined_are_the_text(text: str) -> None:
    assert join_units(text_units(text)).replace(" ", "") == "".join(text.split())


def test_text_without_spaces_is_cut_by_characters() -> None:
    assert [len(s) for s in passage_sentences("狗" * 100)] == [33, 33, 34]
    assert passage_sentences("一只黑狗在跑。" * 2) == ["一只黑狗在跑。", "一只黑狗在跑。"]
    thai = passage_sentences("สุนัขวิ่งเล่นบนชายหาด" * 20)
    assert len(thai) > 1 and "".join(thai) == "สุนัขวิ่งเล่นบนชายหาด" * 20


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
