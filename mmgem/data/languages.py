"""Which language a caption is in, guessed from its script and its commonest words.

A guess is made of what is sure: a script that one language or a few have, or at least two different ones of
the commonest words of a language, twice as many as of any other. It is no judge of single words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache

from mmgem.data.scripts import CJK, SOUTHEAST_ASIAN

_SCRIPTS = {
    "kana": "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\uff66-\uff9f",
    "hangul": "\u1100-\u11ff\u3130-\u318f\uac00-\ud7af",
    "han": CJK,
    "thai": "\u0e01-\u0e4e",
    "southeast asian": SOUTHEAST_ASIAN,
    "cyrillic": "\u0400-\u052f",
    "greek": "\u0370-\u03ff\u1f00-\u1fff",
    "arabic": "\u0600-\u06ff\u0750-\u077f",
    "hebrew": "\u0590-\u05ff",
    "devanagari": "\u0900-\u097f",
    "bengali": "\u0980-\u09ff",
    "tamil": "\u0b80-\u0bff",
    "armenian": "\u0530-\u058f",
    "georgian": "\u10a0-\u10ff",
}
_FOUND = [(name, re.compile(f"[{characters}]")) for name, characters in _SCRIPTS.items()]
_LETTERS = re.compile(r"[^\W\d_]")
_WORDS = re.compile(r"[^\W\d_]+")
_LEAST = 2  # common words
_AHEAD = 2  # times as many as of another language

_COMMON = {
    "en": "a an the of and is are in on at with to his her their from while by two near it this for "
    "do no s t one some another through over up down out into",
    "de": "ein eine einer einem einen der die das den dem und ist sind auf mit im zwei von vor zu sich "
    "während bei neben nicht auch wird",
    "fr": "un une des le les du et est sont dans sur avec deux au aux près pour qui en devant elle il "
    "d l pas ce",
    "es": "un una unos el los las y es son está están en con del dos por se sobre para su al que mientras",
    "pt": "um uma uns o os as e é são está estão em no na nos nas com do da dois duas por sobre para ao que",
    "it": "un una uno il lo gli di e è sono in su con del della dei due da sul sulla nel nella per che "
    "mentre al",
    "nl": "een de het en is zijn op in met van aan twee voor bij naar door zit staat te die niet",
    "sv": "en ett och är på i med av två för som till en den det sitter står inte vid",
    "da": "en et og er på i med af to for som til den det sidder står ikke ved",
    "pl": "i w na z jest są do od dwa dwie przez obok się nie to po dla który która",
    "cs": "a v na s je jsou do od dva dvě přes vedle se ne to po pro který která u ve",
    "tr": "bir ve iki ile için üzerinde olan bu da de yanında adam kadın var çok",
    "fi": "ja on ovat kaksi mies nainen joka kun sekä vieressä ei se tai",
    "hu": "egy és a az van vannak két mellett nem hogy egyik aki miközben",
    "ro": "un o și este sunt în pe cu doi două din la care de lângă nu",
    "id": "seorang sebuah dan di yang dengan dua sedang pada ke dari itu ini",
    "vi": "một và là trên với trong hai của đang người những các có",
}
_LANGUAGES_OF: dict[str, list[str]] = {}
for _language, _words in _COMMON.items():
    for _word in dict.fromkeys(_words.split()):
        _LANGUAGES_OF.setdefault(_word, []).append(_language)


def guess_language(text: str) -> str | None:
    """The code of the language of ``text`` ("de"), or the name of its script where that is not Latin
    ("cyrillic"); None: it cannot be told."""
    script = _script(text)
    if script != "latin":
        return script
    counts = _counts(text)
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    if not ranked or ranked[0][1] < _LEAST:
        return None
    second = ranked[1][1] if len(ranked) > 1 else 0
    return ranked[0][0] if ranked[0][1] >= _AHEAD * second else None


def is_other_language(text: str, usual: str) -> str | None:
    """The language that ``text`` is in for sure, if it is none that may be ``usual``."""
    guess = guess_language(text)
    if guess is None or guess == usual:
        return None
    return guess if _counts(text).get(usual, 0) * _AHEAD <= _counts(text).get(guess, _AHEAD) else None


def usual_language(counts: Mapping[str, int]) -> str | None:
    """The language of most texts, of how many were guessed to be in each; None: none has more than half."""
    if not counts:
        return None
    language = max(counts, key=lambda name: (counts[name], name))
    return language if 2 * counts[language] > sum(counts.values()) else None


@lru_cache(maxsize=1024)
def _counts(text: str) -> dict[str, int]:
    """How many different common words of each language are in ``text``."""
    words = {word.lower() for word in _WORDS.findall(text)}
    return Counter(language for word in words for language in _LANGUAGES_OF.get(word, ()))


def _script(text: str) -> str | None:
    """The script of most letters; Japanese if there is any kana."""
    letters = len(_LETTERS.findall(text))
    if not letters:
        return None
    if text.isascii():
        return "latin"
    for name, characters in _FOUND:
        found = len(characters.findall(text))
        if found and (2 * found > letters or name == "kana"):
            return name
    return "latin"
