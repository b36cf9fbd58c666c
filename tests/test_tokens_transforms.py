"""Pictures and texts in the form the model reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmgem.config import Preprocessing
from mmgem.data.mirror import mirror_text
from mmgem.data.tokens import Tokenizer
from mmgem.data.transforms import (
    Geometry,
    normalise,
    normalise_text,
    to_square,
    view_geometry,
)
from mmgem.errors import CheckpointError, DataError


def gradient(width: int, height: int) -> Image.Image:
    """Red grows to the right, green downwards."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width)[None]
    pixels[..., 1] = np.linspace(0, 255, height)[:, None]
    return Image.fromarray(pixels)


def test_views() -> None:
    assert view_geometry(0, "a.jpg") == Geometry()
    assert view_geometry(1, "a.jpg") == Geometry(flip=True)
    crops = [view_geometry(v, "a.jpg") for v in range(2, 12)]
    assert len(set(crops)) == 10
    assert {g.flip for g in crops} == {True, False}
    assert crops == [view_geometry(v, "a.jpg") for v in range(2, 12)]
    assert view_geometry(2, "a.jpg") != view_geometry(2, "b.jpg")


@settings(deadline=None, max_examples=100)
@given(st.integers(2, 1000), st.text(max_size=10), st.floats(0.1, 1.0))
def test_crops_stay_inside_and_keep_their_share(view: int, key: str, scale: float) -> None:
    x0, y0, x1, y1 = view_geometry(view, key, scale).crop
    assert -1e-9 <= x0 < x1 <= 1 + 1e-9
    assert -1e-9 <= y0 < y1 <= 1 + 1e-9
    ratio = (x1 - x0) / (y1 - y0)
    assert 0.8 - 1e-6 <= ratio <= 1.25 + 1e-6
    # A side that would stick out is cut, at most by the square root of the ratio.
    assert (x1 - x0) * (y1 - y0) >= scale * 0.8 - 1e-6


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from(["squash", "crop", "shortest"]),
    st.sampled_from(["bilinear", "bicubic"]),
    st.integers(0, 20),
)
def test_any_picture_becomes_a_square(width: int, height: int, resize: str, filter_: str, view: int) -> None:
    prep = toys.prep(16, resize=resize, interpolation=filter_)
    out = to_square(gradient(width, height), prep, view_geometry(view, "key"))
    assert (out.shape, out.dtype) == ((16, 16, 3), np.uint8)


def test_squash_and_crop() -> None:
    squashed = to_square(gradient(200, 100), toys.prep(32, resize="squash")).astype(int)
    cropped = to_square(gradient(200, 100), toys.prep(32, resize="crop")).astype(int)
    assert (squashed[:, 0, 0] < 10).all()
    assert (squashed[:, -1, 0] > 245).all()
    # The centre square of a 2:1 picture spans a quarter to three quarters of its width.
    np.testing.assert_allclose(cropped[:, 0, 0], 64, atol=5)
    np.testing.assert_allclose(cropped[:, -1, 0], 191, atol=5)
    assert cropped[-1, 0, 1] > 245


@pytest.mark.parametrize("resize", ["squash", "crop", "shortest"])
def test_the_mirror_is_the_mirror(resize: str) -> None:
    prep = toys.prep(24, resize=resize)
    plain, mirrored = (to_square(gradient(60, 40), prep, Geometry(flip=flip)) for flip in (False, True))
    assert np.array_equal(mirrored, plain[:, ::-1])
    assert np.array_equal(to_square(gradient(60, 40), prep), plain)


def test_a_crop_shows_its_part() -> None:
    out = to_square(gradient(200, 200), toys.prep(16), Geometry(crop=(0.5, 0.0, 1.0, 0.5))).astype(int)
    assert out[0, 0, 0] > 120
    assert out[0, -1, 0] > 245
    assert out[-1, 0, 1] < 135


def test_normalise() -> None:
    prep = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    out = normalise(pixels, prep)
    assert (out.shape, out.dtype) == ((2, 3, 4, 4), torch.float32)
    expected = (pixels / 255 - np.array(prep.mean)) / np.array(prep.std)
    np.testing.assert_allclose(out.permute(0, 2, 3, 1).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("a man on the left of a dog", "a man on the right of a dog"),
        ("Left, then RIGHT!", "Right, then LEFT!"),
        ("the right-hand side", "the left-hand side"),
        ("bright leftovers and rights", "bright leftovers and rights"),
        ("no sides here", "no sides here"),
        ("sausage links on a plate", "sausage links on a plate"),
        ("ein Mann links von einem Baum", "ein Mann rechts von einem Baum"),
        ("Links ein Hund, rechts die linke Hand", "Rechts ein Hund, links die rechte Hand"),
        ("zur Rechten, im rechten Winkel", "zur Linken, im rechten Winkel"),
        ("die Rechten und ein Rechtsanwalt", "die Rechten und ein Rechtsanwalt"),
        ("un homme à gauche lève la main droite", "un homme à droite lève la main gauche"),
        ("le bras gauche tout droit", "le bras droit tout droit"),
        ("de gauche à droite, une ligne droite", "de droite à gauche, une ligne droite"),
        ("muž vlevo se dívá doprava", "muž vpravo se dívá doleva"),
        ("hustá doprava v levé části", "hustá doprava v pravé části"),
        ("왼쪽에 있는 남자의 오른손", "오른쪽에 있는 남자의 왼손"),
        ("산에 오른 사람, 좌측 상단", "산에 오른 사람, 우측 상단"),
    ],
)
def test_mirrored_text_swaps_sides(text: str, mirrored: str) -> None:
    assert mirror_text(text) == mirrored
    assert mirror_text(mirrored) == text


def test_text_form() -> None:
    assert normalise_text("  A  dog\n runs .", Preprocessing()) == "A dog runs."
    assert normalise_text("A dog , a cat . ", Preprocessing(lowercase=True)) == "a dog, a cat"
    assert normalise_text("A dog.", Preprocessing(lowercase=True, text_prefix=" ")) == " a dog"
    assert normalise_text("Une e\u0301toile !", Preprocessing()) == "Une \u00e9toile!"
    assert normalise_text("\u1100\u1162 。", Preprocessing(lowercase=True)) == "\uac1c"
    once = normalise_text("A dog , runs .", Preprocessing(lowercase=True))
    assert normalise_text(once, Preprocessing(lowercase=True)) == once


def test_encode_and_decode() -> None:
    tokenizer = toys.tokenizer(toys.prep(lowercase=True))
    ids = tokenizer.encode_all(["The dog runs .", "a cat"])
    assert [t.tolist() for t in ids] == [[3, 4, 9], [2, 5]]
    assert all(t.dtype == torch.int64 for t in ids)
    assert tokenizer.end == 0
    assert tokenizer.encode_all([]) == []
    assert tokenizer.decode([3, 4, 9, 0]) == "The dog runs."
    assert tokenizer.decode([]) == ""
    assert toys.tokenizer().decode([3, 4, 9]) == "the dog runs"


def test_texts_the_model_cannot_read_are_errors() -> None:
    tokenizer = toys.tokenizer(toys.prep(max_text_tokens=5))
    for text in ("", "  \n"):
        with pytest.raises(DataError, match="empty text"):
            tokenizer.encode_all(["a dog", text])
    assert len(tokenizer.encode_all(["a dog runs on grass"])[0]) == 5
    with pytest.raises(DataError, match=r"text of 6 tokens is over the model's 5: 'a dog runs on the grass'"):
        tokenizer.encode_all(["a dog runs on the grass"])


def test_a_text_of_nothing_but_a_full_stop_is_empty() -> None:
    tokenizer = toys.tokenizer(toys.prep(lowercase=True, text_prefix=" "))
    with pytest.raises(DataError, match="empty text"):
        tokenizer.encode_all(["."])


def test_tokenizer_files(tmp_path: Path) -> None:
    toys.hf_tokenizer().save_pretrained(tmp_path)
    assert Tokenizer.from_folder(tmp_path, toys.prep()).encode_all(["a dog"])[0].tolist() == [2, 4]
    with pytest.raises(CheckpointError, match="no usable tokenizer"):
        Tokenizer.from_folder(tmp_path / "none", toys.prep())
    endless = toys.hf_tokenizer()
    endless.eos_token = None
    with pytest.raises(CheckpointError, match="no end-of-text token"):
        Tokenizer(endless, toys.prep())


def test_decoded_text_is_written_as_people_write() -> None:
    class Corpus:
        eos_token_id = 0

        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return " a man 's dog does n't run , it 's asleep"

    text = Tokenizer(Corpus(), Preprocessing(lowercase=True)).decode([1])
    assert text == "A man's dog doesn't run, it's asleep."
