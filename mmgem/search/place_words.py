"""How German, French, Czech and Korean name a place in a photo: one table a language.

English has its own patterns in :mod:`mmgem.search.spatial_filter`. Directions ("nach links", "à gauche" after
"tourne", "doleva", "왼쪽으로"), hands and shoes ("main droite", "v levé ruce", "오른쪽 신발"), what is beside
something ("links neben", "vlevo od", "나무 왼쪽") and views ("von oben") are no places in the photo.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property

_END = r"\s*[.!\u3002]?$"


@dataclass(frozen=True, eq=False)
class PlaceWords:
    """Regular expressions, all of lower-case words in NFC.

    ``sides``: every form of the words for ``left``, ``right``, ``top``, ``bottom`` and ``middle``;
    ``phrases``: what names one or two of them; ``frame``: "in the photo", before or after; ``not_after``:
    after which the words are no place, ``moving``: nor those of a single side, as it is where something goes
    or looks; ``shared``: words that English has too, a place if ``evidence`` is in the rest. ``at_start`` and
    ``at_end``: whole queries, where those of Europe do not fit.
    """

    sides: dict[str, str]
    phrases: tuple[str, ...]
    frame: str
    boundary: str = r"\b"
    joint: str = r"(?:\s*,\s*|[\s-]+)"
    not_after: str = r"(?!)"
    moving: str = r"(?!)"
    shared: str = r"(?!)"
    evidence: str = ""
    at_start: str = r"^(?:{frame}\s+)?(?P<position>{place})(?:\s+{frame})?\s*[:\uff1a]\s*(?P<what>.*\S)\s*$"
    at_end: str = (
        r"^(?P<what>.*?\S)(?P<gap>\s*,\s*|\s+)(?:{frame}\s+)?(?P<position>{place})(?:\s+{frame})?" + _END
    )
    _flags: re.RegexFlag = field(default=re.IGNORECASE | re.DOTALL, repr=False)

    @cached_property
    def place(self) -> re.Pattern[str]:
        """A place: one phrase or two, or the bare words."""
        return re.compile(f"{self._place()}|{self._words()}", self._flags)

    @cached_property
    def _queries(self) -> tuple[re.Pattern[str], re.Pattern[str]]:
        start, end = (
            pattern.replace("{frame}", f"(?:{self.frame})").replace("{place}", self._place())
            for pattern in (self.at_start, self.at_end)
        )
        return re.compile(end, self._flags), re.compile(start, self._flags)

    @cached_property
    def _finder(self) -> re.Pattern[str]:
        groups = (f"(?P<{side}>{words})" for side, words in self.sides.items())
        return re.compile(f"{self.boundary}(?:{'|'.join(groups)}){self.boundary}", self._flags)

    def _place(self) -> str:
        one = f"(?:{'|'.join(self.phrases)})"
        return f"(?:{one}(?:{self.joint}{one})?)"

    def _words(self) -> str:
        one = f"(?:{'|'.join(self.sides.values())})"
        return f"(?:{one}(?:{self.joint}{one})?)"

    def sides_in(self, position: str) -> list[str]:
        """The sides that ``position`` names, in order."""
        return [str(match.lastgroup) for match in self._finder.finditer(position)]

    def splits(self, query: str) -> Iterator[tuple[str, list[str]]]:
        """What ``query`` (in NFC) may ask for, and the sides where."""
        for pattern in self._queries:
            if (match := pattern.match(query)) is None:
                continue
            what, position = match["what"].rstrip(" ,"), match["position"]
            sides = self.sides_in(position)
            if pattern is self._queries[0] and "," not in (match.groupdict().get("gap") or ""):
                forbidden = rf"{self.not_after}|{self.moving}" if len(sides) == 1 else self.not_after
                if re.search(rf"(?:^|[\s'\u2019])(?:{forbidden})$", what, self._flags):
                    continue
            if re.fullmatch(self.shared, position, self._flags) and not (
                re.search(self.evidence, what, self._flags)
            ):
                continue
            yield what, sides


_DE_ADJECTIVE = r"(?:link|recht|ober|unter|mittler)(?:en|er|em|es|e)"
_DE_NOUN = r"(?:bild)?(?:ecke|seite|rand|hälfte|haelfte|drittel|viertel|teil|bereich)"
_FR_ADJECTIVE = r"(?:gauche|droite?|sup[ée]rieure?|inf[ée]rieure?|haute|basse|centrale?)"
_FR_NOUN = r"(?:coin|c[ôo]té|bord|partie|moitié|tiers|quart|zone)"
_CS_ENDING = r"(?:ý|á|é|ém|ého|ou)"
_CS_ADJECTIVE = rf"(?:(?:lev|prav){_CS_ENDING}|(?:horní|dolní|spodní|vrchní|prostřední)(?:m|ho)?)"
_CS_NOUN = r"(?:rohu|straně|části|polovině|okraji|okraje|třetině|čtvrtině)"
_KO = {
    "left": "왼쪽|왼편|좌측|좌(?=[상하]단)",
    "right": "오른쪽|오른편|우측|우(?=[상하]단)",
    "top": "위쪽|위편|윗부분|윗쪽|상단|위",
    "bottom": "아래쪽|아래편|아랫부분|하단|아래|밑",
    "middle": "한가운데|가운데|정중앙|중앙|중간",
}
_KO_CORNER = r"(?:\s*(?:모서리|구석|모퉁이|귀퉁이|부분|가장자리|끝))?"
_KO_BEING = r"(?:있는|위치한|놓인|보이는)"

PLACE_WORDS: dict[str, PlaceWords] = {
    "de": PlaceWords(
        sides={
            "left": r"links|link(?:en|er|em|es|e)",
            "right": r"rechts|recht(?:en|er|em|es|e)",
            "top": r"oben|ober(?:en|er|em|es|e)",
            "bottom": r"unten|unter(?:en|er|em|es|e)",
            "middle": r"(?:bild)?mitte|mittig|mittler(?:en|er|em|es|e)",
        },
        phrases=(
            r"(?:in\s+der\s+ecke\s+)?(?:ganz\s+)?(?:links|rechts|oben|unten|mittig)",
            r"(?:in\s+der|zur)\s+(?:bild)?mitte|zur\s+(?:linken|rechten)",
            rf"(?:(?:in|an|auf)\s+(?:der|dem)|im|am)\s+{_DE_ADJECTIVE}(?:[\s,-]+{_DE_ADJECTIVE})?\s+{_DE_NOUN}",
        ),
        frame=r"(?:im|auf\s+dem|in\s+dem|des|vom)\s+(?:bild(?:e?s)?|fotos?)|in\s+der\s+(?:ecke|szene)",
        not_after="nach|von|bis|gegen|weiter|da|dort|hier|politisch|halb|mehr",
        moving=r"biegt|fährt|dreht|schaut|sieht|blickt|guckt|zeigt|geht|läuft|schwenkt|lenkt|wendet|springt|"
        r"klettert|steigt|fliegt|fällt|rennt|sich|\w+(?:end|ende[rnms]?)",
        shared="links",
        evidence=r"[äöüß]|\b(?:eine?|einen|zwei|drei|vier|viele|der|das|dem|den|und|mit|auf|hund|hunde|katze|mann|"
        r"frau|kind|kinder|haus|baum|junge)\b",
    ),
    "fr": PlaceWords(
        sides={
            "left": "gauche",
            "right": "droite?",
            "top": r"haute?|sup[ée]rieure?",
            "bottom": r"bas|basse|inf[ée]rieure?",
            "middle": r"milieu|centre|centrale?",
        },
        phrases=(
            r"(?:dans\s+le\s+coin\s+)?(?:tout\s+)?(?:[àa]\s+(?:gauche|droite)|en\s+(?:haut|bas))",
            r"sur\s+la\s+(?:gauche|droite)|au\s+(?:milieu|centre)",
            rf"(?:dans|sur|à)\s+(?:le\s+|la\s+){_FR_NOUN}\s+{_FR_ADJECTIVE}(?:\s+{_FR_ADJECTIVE})?",
            rf"(?:au|du)\s+{_FR_NOUN}\s+{_FR_ADJECTIVE}(?:\s+{_FR_ADJECTIVE})?",
        ),
        frame=r"(?:de|sur|dans)\s+(?:la\s+|le\s+|l['\u2019]\s*|cette\s+|ce\s+)(?:photo(?:graphie)?|image|cadre|scène)"
        r"|du\s+cadre",
        not_after="vers|de|d|du|haut|bas|gauche|droite|tête|jambes|jusqu|plus|là",
        moving=r"tourn\w+|regard\w+|va|vont|vire|pointe|saut\w+|pench\w+|conduit|roule|roulant|dirig\w+|all\w+|"
        r"gliss\w+|descend\w*|mont\w+|gard\w+",
    ),
    "cs": PlaceWords(
        sides={
            "left": rf"[vn]a?levo|lev{_CS_ENDING}",
            "right": rf"[vn]a?pravo|prav{_CS_ENDING}",
            "top": r"naho[řr]e|(?:horní|vrchní)(?:m|ho)?",
            "bottom": r"dole|(?:dolní|spodní)(?:m|ho)?",
            "middle": r"[uv]prost[řr]ed|prostřední(?:m|ho)?",
        },
        phrases=(
            r"(?:úplně\s+|zcela\s+)?(?:vlevo|vpravo|nalevo|napravo|naho[řr]e|dole|[uv]prost[řr]ed)",
            rf"(?:ve?|na|po|u|při)\s+{_CS_ADJECTIVE}(?:\s+{_CS_ADJECTIVE})?\s+{_CS_NOUN}",
        ),
        frame=r"(?:(?:na|ve?)\s+)?(?:obrázku|snímku|fotce|fotky|fotografi[ie]|záběru|scén[ěy])",
        not_after="od|z|ze|do|někde|tam|the|on|from|by|of|and",
        moving=r"se|dívá|kouká|hledí|zatáčí|odbočuje|jde|jdou|běží|jede|jedou|otáčí|ukazuje|skáče|míří",
        shared="dole",
        evidence=r"[ěščřžýáíéúůťďň]|\b(?:pes|psi|dva|tri|na|je|jsou|strom|auto|kluk|holka|hora|voda|lod)\b",
    ),
    "ko": PlaceWords(
        sides=_KO,
        phrases=tuple(f"(?:{words})" for words in _KO.values()),
        frame="(?:사진|그림|이미지|화면|장면)(?:의|에서|에)?",
        boundary="",
        joint=r"\s*",
        at_start=rf"^(?:{{frame}}\s*)?(?P<position>{{place}}){_KO_CORNER}"
        rf"(?:의\s+|에\s+{_KO_BEING}\s+|에\s+(?!\S+[이가]\s+(?:있|보이|놓))|\s*[:\uff1a]\s*)(?P<what>.*\S)\s*$",
        # The noun's particle goes, but for 이, in which many names of animals end.
        at_end=r"^(?P<what>.*\S(?:이(?<!고양이)(?<!아이)(?<!린이)(?<!랑이)(?<!숭이)(?<!북이)(?=\s)|(?=[가은는]\s|\s*,)))"
        + rf"(?:[가은는]|\s*,)?\s+(?:{{frame}}\s*)?(?P<position>{{place}}){_KO_CORNER}"
        + r"(?:에(?:\s*(?:있다|있음|있어요?|있습니다|있는|위치|보인다|보여요))?)?"
        + _END,
    ),
}
