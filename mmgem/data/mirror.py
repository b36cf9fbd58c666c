"""Captions of mirrored pictures: what was left is right.

A table for each language has what swaps (first and second of a pair, either way), what is left alone though
it looks the same, and for words that English has too, what tells the language. What is ambiguous stays:
French "droit" is also straight and Czech "doprava" traffic, so these swap in company only.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True)
class MirrorWords:
    """``pairs``: words or parts of words that swap; ``before`` and ``after``: what must stand around a pair's
    word, regular expressions; ``kept``: what is left alone; ``evidence``: what the text must have as well."""

    pairs: tuple[tuple[str, str], ...]
    before: str = r"\b"
    after: str = r"\b"
    kept: str = ""
    evidence: str = ""


_ENDINGS = ("e", "en", "er", "es", "em")
_CZECH_ENDINGS = ("ý", "á", "é", "ém", "ého", "ému", "ou", "ým", "ých", "ými", "í")
_MASCULINE = (
    "côté|bas-côté|bras|pied|genou|œil|coin|bord|poing|coude|doigt|pouce|flanc|gant|poignet|tiers|"
    "supérieur|inférieur"
)
_FEMININE = (
    "main|jambe|épaule|oreille|partie|moitié|chaussure|cheville|patte|joue|voie|aile|hanche|cuisse|manche|"
    "extrémité|supérieure|inférieure"
)
_GERMAN = (
    r"[äöüß]|\b(?:ein|eine[nmrs]?|der|das|dem|und|ist|sind|auf|nach|zwei|drei|vier|rechts|oben|unten|neben|steht|"
    r"sitzt|geht|mann|frau|kind|hund|katze|junge)\b"
)
"""What tells German from English, which has "links" as well: sausages, chains and golf."""

MIRROR_WORDS: dict[str, tuple[MirrorWords, ...]] = {
    "en": (MirrorWords((("left", "right"),)),),
    "de": (
        MirrorWords((("links", "rechts"),), evidence=_GERMAN),
        MirrorWords(
            (("links", "rechts"),),
            after=r"(?=(?:kurve|abbieger|herum|seitig|außen|händ|verkehr|ausleger)\w*)",
        ),
        MirrorWords(
            tuple((f"link{ending}", f"recht{ending}") for ending in _ENDINGS),
            before=r"(?:(?<=\bzur )|\b(?-i:(?=[a-z]))|^)",
            kept=r"\brecht\w+ winkel\w*",
        ),
    ),
    "fr": (
        MirrorWords((("gauche", "droite"),), before=r"(?:(?<=\bà )|(?<=\bla )|(?<=\bsa )|(?<=\bde ))"),
        MirrorWords((("gauche", "droite"),), before=rf"\b(?:{_FEMININE})s? "),
        MirrorWords((("gauche", "droit"),), before=rf"\b(?:{_MASCULINE}) "),
    ),
    "cs": (
        MirrorWords((("vlevo", "vpravo"), ("nalevo", "napravo"), ("zleva", "zprava"))),
        MirrorWords(
            (("doleva", "doprava"),),
            kept=r"^doprava\b|\b(?:městská|hromadná|veřejná|silniční|železniční|letecká|autobusová|tramvajová|"
            r"lodní|nákladní|hustá|rušná|velká|žádná|pouliční|dopravní) doprava\b",
        ),
        MirrorWords(
            tuple((f"lev{ending}", f"prav{ending}") for ending in _CZECH_ENDINGS),
            kept=r"\bprav\w+ (?:kůž\w*|kožešin\w*|poledne|lás\w*|hedváb\w*|úhe?l\w*)",
        ),
        MirrorWords((("levici", "pravici"),), before=r"(?<=\bpo )"),
    ),
    "ko": (
        MirrorWords(
            (("왼", "오른"),), before="", after=r"(?=\s?쪽|편|손|발|팔|다리|눈|귀|뺨|어깨|무릎|주먹|날개)"
        ),
        MirrorWords((("좌", "우"),), before=r"(?<![가-힣])", after=r"(?=측|회전|상단|하단)"),
    ),
}


_STEMS = re.compile("left|right|link|recht|gauche|droit|lev|prav|왼|오른|좌|우", re.IGNORECASE)  # for speed


@lru_cache(maxsize=1)
def _swaps() -> tuple[re.Pattern[str], dict[str, tuple[dict[str, str], str]]]:
    """One pattern of all tables, its groups named, and what each group's words become, with its evidence."""
    alternatives, groups = [], {}
    for language, tables in MIRROR_WORDS.items():
        for number, table in enumerate(tables):
            if table.kept:
                alternatives.append(f"(?:{table.kept})")
            name = f"{language}{number}"
            others = {one: two for pair in table.pairs for one, two in (pair, pair[::-1])}
            words = "|".join(sorted(others, key=len, reverse=True))
            alternatives.append(f"{table.before}(?P<{name}>{words}){table.after}")
            groups[name] = others, table.evidence
    return re.compile("|".join(alternatives), re.IGNORECASE), groups


def mirror_text(text: str) -> str:
    """Swap the words for left and right, as a mirrored picture asks: of English, German, French, Czech and
    Korean, where they can mean nothing else. Case is kept; other words and languages are left alone."""
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    if not _STEMS.search(text):
        return text
    pattern, groups = _swaps()
    evident: dict[str, bool] = {}

    def swap(match: re.Match[str]) -> str:
        name = next((name for name in groups if match[name] is not None), None)
        if name is None:
            return match[0]
        others, evidence = groups[name]
        if evidence:
            if name not in evident:
                evident[name] = re.search(evidence, text, re.IGNORECASE) is not None
            if not evident[name]:
                return match[0]
        word = match[name]
        other = others[word.lower()]
        other = other.upper() if word.isupper() else other.capitalize() if word[0].isupper() else other
        start = match.start()
        return match[0][: match.start(name) - start] + other + match[0][match.end(name) - start :]

    return pattern.sub(swap, text)
