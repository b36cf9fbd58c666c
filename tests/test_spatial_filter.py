"""Place words: what they mean, and what is left alone."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from mmgem.errors import UsageError
from mmgem.search.spatial_filter import SpatialFilter, parse_spatial_filter, split_query


@pytest.mark.parametrize(
    ("query", "what", "place"),
    [
        ("a dog at the bottom left", "a dog", SpatialFilter(-1, 1)),
        ("a dog, at bottom-left", "a dog", SpatialFilter(-1, 1)),
        ("A dog in the top right corner of the photo.", "A dog", SpatialFilter(1, -1)),
        ("two men on the left", "two men", SpatialFilter(-1, None)),
        ("two men on the left side", "two men", SpatialFilter(-1, None)),
        ("a kite at the top", "a kite", SpatialFilter(None, -1)),
        ("a kite in the upper half of the image", "a kite", SpatialFilter(None, -1)),
        ("a kite in the middle", "a kite", SpatialFilter(0, 0)),
        ("a kite in the middle left", "a kite", SpatialFilter(-1, 0)),
        ("a kite at the bottom centre", "a kite", SpatialFilter(0, 1)),
        ("top left: a red car", "a red car", SpatialFilter(-1, -1)),
        ("in the lower right corner: a red car", "a red car", SpatialFilter(1, 1)),
        # Not places in the photo.
        ("a man on the left of a tree", "a man on the left of a tree", None),
        ("a man turning left", "a man turning left", None),
        ("a woman in a red top", "a woman in a red top", None),
        ("a bottom", "a bottom", None),
        ("top", "top", None),
        ("a dog on the left right", "a dog on the left right", None),
        ("golf links", "golf links", None),
        ("people on the dole", "people on the dole", None),
    ],
)
def test_queries(query: str, what: str, place: SpatialFilter | None) -> None:
    assert split_query(query) == (what, place)


PLACES = [
    ("ein Hund links", "ein Hund", SpatialFilter(-1, None)),
    ("ein Hund unten links.", "ein Hund", SpatialFilter(-1, 1)),
    ("ein Hund auf der linken Seite", "ein Hund", SpatialFilter(-1, None)),
    ("ein Hund in der rechten oberen Ecke des Bildes", "ein Hund", SpatialFilter(1, -1)),
    ("ein Hund, oben in der Mitte", "ein Hund", SpatialFilter(0, -1)),
    ("ein Hund im Bild rechts", "ein Hund", SpatialFilter(1, None)),
    ("eine Frau am unteren Bildrand", "eine Frau", SpatialFilter(None, 1)),
    ("oben rechts: ein rotes Auto", "ein rotes Auto", SpatialFilter(1, -1)),
    ("ein Hund läuft oben rechts", "ein Hund läuft", SpatialFilter(1, -1)),
    ("un chien à gauche", "un chien", SpatialFilter(-1, None)),
    ("un chien en haut à droite", "un chien", SpatialFilter(1, -1)),
    ("un chat au milieu", "un chat", SpatialFilter(0, 0)),
    ("un chat au centre de l’image", "un chat", SpatialFilter(0, 0)),
    ("un chien dans le coin inférieur gauche", "un chien", SpatialFilter(-1, 1)),
    ("en bas à gauche : un vélo", "un vélo", SpatialFilter(-1, 1)),
    ("pes vlevo", "pes", SpatialFilter(-1, None)),
    ("pes vpravo nahoře", "pes", SpatialFilter(1, -1)),
    ("kočka nalevo", "kočka", SpatialFilter(-1, None)),
    ("pes v levém horním rohu", "pes", SpatialFilter(-1, -1)),
    ("muž na pravé straně fotky", "muž", SpatialFilter(1, None)),
    ("dítě uprostřed", "dítě", SpatialFilter(0, 0)),
    ("pes dole", "pes", SpatialFilter(None, 1)),
    ("왼쪽에 있는 개", "개", SpatialFilter(-1, None)),
    ("개가 왼쪽에 있다", "개", SpatialFilter(-1, None)),
    ("사진 오른쪽 아래의 자전거", "자전거", SpatialFilter(1, 1)),
    ("왼쪽에 서 있는 남자", "서 있는 남자", SpatialFilter(-1, None)),
    ("가운데에 있는 고양이", "고양이", SpatialFilter(0, 0)),
    ("왼쪽 위: 빨간 차", "빨간 차", SpatialFilter(-1, -1)),
]


@pytest.mark.parametrize(("query", "what", "place"), PLACES)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_places_in_other_languages(query: str, what: str, place: SpatialFilter, form: str) -> None:
    assert split_query(unicodedata.normalize(form, query)) == (what, place)


@pytest.mark.parametrize(
    "query",
    [
        "ein Mann blickt nach links",
        "ein Mann biegt rechts",
        "ein Mann links von einem Baum",
        "ein Ring in der rechten Hand",
        "ein Haus von oben",
        "ein Hund links rechts",
        "rechts",
        "un homme avec la main droite",
        "un homme qui tourne à gauche",
        "un homme regarde vers la gauche",
        "un homme marche tout droit",
        "une fille la tête en bas",
        "une femme avec un haut",
        "une rue vue d'en haut",
        "lecture de gauche à droite",
        "muž se dívá doleva",
        "muž se dívá vpravo",
        "prsten v levé ruce",
        "muž vlevo od stromu",
        "pes uprostřed lesa",
        "왼쪽으로 가는 남자",
        "오른쪽 신발",
        "나무 왼쪽에 있는 남자",
        "왼쪽에 나무가 있는 집",
        "책상 위에 있는 고양이",
        "위에서 본 도시",
    ],
)
def test_what_is_no_place_in_other_languages(query: str) -> None:
    assert split_query(query) == (query, None)


@pytest.mark.parametrize(
    ("words", "place"),
    [
        ("unten links", SpatialFilter(-1, 1)),
        ("Mitte", SpatialFilter(0, 0)),
        ("en haut à gauche", SpatialFilter(-1, -1)),
        ("vlevo nahoře", SpatialFilter(-1, -1)),
        ("오른쪽 아래", SpatialFilter(1, 1)),
        ("우하단", SpatialFilter(1, 1)),
    ],
)
def test_places_by_name(words: str, place: SpatialFilter) -> None:
    assert parse_spatial_filter(unicodedata.normalize("NFD", words)) == place


@pytest.mark.parametrize(
    "words",
    [
        "links rechts",
        "à gauche à droite",
        "nahoře dole",
        "",
        "north",
        "left right",
        "top bottom",
        "left-left",
        "middle top left",
    ],
)
def test_no_places(words: str) -> None:
    with pytest.raises(UsageError, match="is no place"):
        parse_spatial_filter(words)


def test_fit() -> None:
    near, far = (0, 0.4), (0.6, 1)
    ends = [(near, near), (far, near), (near, far), (far, far), ((0.4, 0.6), (0.4, 0.6))]
    corners = np.array([(x0, y0, x1, y1) for (x0, x1), (y0, y1) in ends])
    places = [
        SpatialFilter(-1, -1),
        SpatialFilter(1, -1),
        SpatialFilter(-1, 1),
        SpatialFilter(1, 1),
        SpatialFilter(0, 0),
    ]
    for best, place in enumerate(places):
        fits = place.scores(corners)
        assert int(fits.argmax()) == best
        assert (fits > 0).sum() == 1
    assert (SpatialFilter(across=-1).scores(corners) > 0).tolist() == [True, False, True, False, False]
    assert SpatialFilter().scores(corners).tolist() == [1] * 5
