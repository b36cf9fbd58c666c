"""Sentences -> Penn-Treebank-style words without punctuation, as caption metrics count them.

The rules were written from observing what the COCO evaluation's tokeniser (Stanford's, a Java program) gives
out; so were its quirks, because scores are only comparable when both sides keep them: brackets become words
(``-lrb-``), "???" is a word while "?" is none, "co-worker" and "and/or" stay whole, "dog.a" is one word,
"st." keeps its point and "dog." does not. One regular expression, its alternatives in order of precedence;
whatever none of them matches (punctuation, emoji, control characters) is dropped.

:func:`ptb_words` is that and no more. :func:`caption_words`, which the metrics use, is the same on English
and reads the scripts that the original makes nothing, or one long word, of.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

from mmgem.data.scripts import unspaced_characters

# A letter or a mark on one: not a digit, blank, ASCII or Latin-1 sign, symbol, private or astral character.
_NO_LETTER = (
    r"\s\d_\x00-\x40\x5b-\x60\x7b-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7"
    r"\u2000-\u2bff\u2e00-\u2e7f\u3000-\u3020\u30fb\ue000-\uf8ff\ufe00-\ufe0f\ufeff\uff00-\uff20\uff3b-\uff40\uff5b-\uff65"
    r"\ufff0-\U0010ffff"
)
_L = f"(?-i:[^{_NO_LETTER}])"  # minding case, or the Kelvin sign would be a k
_A = rf"(?:\d|{_L})"  # letter or digit
_END = rf"(?!{_A})"

# Words that keep the point after them: always; only before a number; only when capitalised.
_POINTED = (
    "mr mrs ms messrs dr drs prof rev hon gen col maj capt lt ltd sgt cpl pvt adm cmdr gov sen rep reps "
    "sens pres supt det insp sr jr esq bros mme mlle pfc brig comdr ens st ste ave blvd rd ct sq bldg ft "
    "mt rt jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri inc corp co "
    "cos plc cie bhd assn assoc dept univ est intl natl etc vs al cf tel ext adj adv mfg mtg pty ala ariz "
    "calif colo conn fla ga ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis wisc "
    "wyo alex jos wm asst elec invt seq govs"
)
_POINTED_BEFORE_NUMBER = "ca no nos fig figs pp art op"
_POINTED_CAPITALISED = "Ark Del Ill La Mass Miss Ore Pa Tex Wash"

_PART = rf"(?:[dol]'(?={_A}{_A}))?{_A}+"  # one part of a compound; the apostrophe is d'or's and O'Neil's
_THING = rf"{_PART}(?:[-_\u2010\u2011]{_PART})*"

_RULES = "|".join(
    (
        rf"{_L}+(?=[\s,])",  # most words, told at once
        r"<[a-z/!][^<>]*>|-[lr][rsc]b-|&(?:amp|lt|gt|quot|nbsp);",  # markup, brackets already words
        r"(?:https?://|www\.)[^\s\"<>|(){}]*[^\s\"<>|(){}.!?,;:'-]",
        r"[\w.%+-]+@[\w-]+(?:\.[\w-]+)+",  # e-mail
        r"(?:[a-z0-9_-]+\.)+(?:com|net|org|edu)\b(?:/[^\s\"<>|(){}]*[^\s\"<>|(){}.!?,;:'-])?",
        rf"@[a-z_]\w*|\#{_L}+",
        rf"[<>]?[:;=][-o*']?(?:[()|@\[\]{{}}]|[dp]{_END})|-_-|\^_\^",  # smileys
        r"[?!]{2,}|\*+|_+|\#{2,}|@+|<<|>>",
        rf"[cf]\#|c\+\+|(?-i:[A-Z]+(?:&[A-Z]+)+){_END}",
        rf"'(?:s|d|m|ll|ve|re|n'|n|em|till?|cause){_END}|'t(?=(?:is|was){_END})",
        rf"'[2-9]0s{_END}|'\d\d(?![\w\"-])",  # '90s, '57
        rf"{_L}*n['`]t{_END}",
        rf"(?:c'mon|li'l|cap'n|ev'ry|nat'l|e'er|ne'er|s'mores?|{_L}+[aeiou]'[aeiou]{_L}*){_END}",
        rf"(?:ol|somethin|dunkin)'{_END}|[jdl]'(?={_A}{_END})|y'(?={_L})",
        rf"(?:[a-z]|{_POINTED.replace(' ', '|')}|ph\.d)\.(?!{_L})",
        rf"(?:{_POINTED_BEFORE_NUMBER.replace(' ', '|')})\.(?=\s*\d)",
        rf"(?-i:{_POINTED_CAPITALISED.replace(' ', '|')})\.(?!{_L})",
        rf"{_L}{_A}*(?:-{_A}+)*\.(?=[,;:])",
        rf"[a-z](?:\.[a-z])+\.(?:-{_A}+)*(?!{_L})",  # U.S., a.m.
        rf"{_THING}(?:/{_THING}){{1,2}}",
        rf"[-+]?\d+(?:[.,]\d+)+(?:-{_A}+)+",  # 2.5-inch
        r"(?<!-)[-+]?(?:\d+(?:[.,:/]\d+)+|[.,:]\d+(?:[.,:/]\d+)*)|(?<!-)[-+]\d+(?![-\w])",
        rf"{_L}{_A}*(?:[.!?]{_L}{_A}*)+(?:-{_A}+)*",
        _THING,
        r"(?-i:[][(){}$%&+/<=>@#^~|\\\xa1-\xbf\xd7\xf7\u2016-\u2017\u201a\u201e-\u2023\u2030-\u2038\u203b"
        r"\u203e-\u2044\u2070-\u208e\u20ac\u2100-\u214f\u2190-\u2bff\u3001-\u3002\uff01-\uff65])",
    )
)
# Each match is a token or one dropped character (then the group is empty); twice as fast as skipping.
_TOKEN = re.compile(rf"\s*(?:({_RULES})|.)", re.IGNORECASE | re.DOTALL)

_BEFORE = str.maketrans(
    {"\xad": None, "\u2019": "'", "\xbd": " 1/2 ", "\xbc": " 1/4 ", "\xbe": " 3/4 "}
    | {"\u2153": " 1/3 ", "\u2154": " 2/3 ", "\xab": " ", "\xbb": " "}
)
_AFTER = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
    | {"\xa2": "cents", "\xa3": "#", "\u20ac": "$"}
)
_SPLIT = {
    "cannot": ("can", "not"),
    "gimme": ("gim", "me"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "wanna": ("wan", "na"),
    "&amp;": ("&",),
    "&lt;": ("<",),
    "&gt;": (">",),
    "&quot;": (),
    "&nbsp;": (),
}


def ptb_words(sentence: str) -> list[str]:
    """Return the lower-cased Penn-Treebank-style words of a sentence, without punctuation, as the original
    does.

    Clitics are words of their own (``isn't`` -> ``is``, ``n't``); hyphenated words stay whole.
    """
    words: list[str] = []
    for token in _TOKEN.findall(sentence.translate(_BEFORE)):
        word = token.lower()
        if word in _SPLIT:
            words.extend(_SPLIT[word])
        elif word.isalnum():
            words.append(word)
        elif not word:
            continue
        elif word[-3:] in ("n't", "n`t") and len(word) > 3:
            words += [word[:-3], word[-3:]]
        elif word[0] == "<":
            words.extend(word.split())
        else:
            words.append(word.translate(_AFTER))
    return words


_ASTRAL = re.compile("[\U00010000-\U0010ffff]+")
_TYPOGRAPHIC = range(0x2000, 0x2070)  # dashes, quotes and bullets, which the rules above know
_DROPPED = "\xa1\xbf\u201a\u201e"


def caption_words(sentence: str) -> list[str]:
    """Return the lower-cased words of a caption in any language, without punctuation.

    Composed and decomposed letters are the same. Words in Latin and all other letters are those of
    :func:`ptb_words`: whole, with their accents ("l'homme" is one word there, "j'ai" two), Korean by its
    spaces. Chinese and Japanese words are single characters, as are Thai, Lao, Burmese and Khmer ones, each
    with its marks.
    """
    sentence = unicodedata.normalize("NFC", sentence)
    if sentence.isascii():
        return ptb_words(sentence)
    sentence = "".join(" " if _is_dropped(character) else character for character in sentence)
    words: list[str] = []
    end = 0
    for found in unspaced_characters().finditer(sentence):
        words += _spaced_words(sentence[end : found.start()])
        words.append(found[0])
        end = found.end()
    return words + _spaced_words(sentence[end:])


def _spaced_words(text: str) -> list[str]:
    """The words of text with spaces; letters beyond the first 65,536 characters are letters, too."""
    words: list[str] = []
    end = 0
    for found in _ASTRAL.finditer(text):
        if any(map(str.isalnum, found[0])):  # no emoji
            words += (*ptb_words(text[end : found.start()]), found[0].lower())
            end = found.end()
    return words + ptb_words(text[end:])


@lru_cache(maxsize=4096)
def _is_dropped(character: str) -> bool:
    """Punctuation that the rules would make a word of, or leave at one, as they know Latin's only."""
    return character in _DROPPED or (
        character > "\u02ff"
        and ord(character) not in _TYPOGRAPHIC
        and unicodedata.category(character).startswith("P")
    )


def ngram_counts(words: Sequence[str], longest: int = 4) -> Counter[tuple[str, ...]]:
    """Count the n-grams of ``words`` of every length from 1 to ``longest``."""
    counts: Counter[tuple[str, ...]] = Counter()
    for n in range(1, longest + 1):
        counts.update(zip(*(words[start:] for start in range(n)), strict=False))
    return counts
