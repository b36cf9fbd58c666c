"""Where one sentence of a text ends and the next begins.

Captions and running text are split by rules of their own. :func:`split_sentences` is for captions and
descriptions, where a line break is an end too; a model's embedding of a long text is the mean over these
pieces, so the rule may not change without the models. :func:`split_prose` is for running text, whose lines
are broken anywhere: a mark ends a sentence unless what follows goes on in lower case or what precedes is a
title ("Dr."), an initial ("J. R. Smith"), an acronym ("U.S.") or a shortened word ("Inc.", "No. 5"). Those
that can also stand at an end ("in the U.S. The ...") end a sentence where a word follows that often begins
one. So it is with German, French and Czech abbreviations and ordinals (:mod:`mmgem.data.abbreviations`); in
other languages of that punctuation an abbreviation may be taken for an end. The full stops, question and
exclamation marks of all scripts count, those of Chinese and Japanese without a space after them. Words are
what white space separates, but for scripts without it (:mod:`mmgem.data.scripts`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from mmgem.data.abbreviations import EITHER, STARTERS, goes_on
from mmgem.data.scripts import MARKS_WITHOUT_SPACE, SENTENCE_MARKS, join_units, text_units

# English closes with none of these: French and German quotes, and those and the brackets of Chinese.
_FOREIGN_CLOSING = "\u00bb\u00ab\u201c\u2018\u203a\u2039\u300d\u300f\uff09\u3011\u300b\u3009"
_OTHER_MARKS = "".join(mark for mark in SENTENCE_MARKS if mark not in ".!?\u2026" + MARKS_WITHOUT_SPACE)
_AFTER_MARK = (
    rf"(?:\s+|(?<=[{MARKS_WITHOUT_SPACE}])(?![{SENTENCE_MARKS}{_FOREIGN_CLOSING}\"'\u201d\u2019)\]]|$))"
)
_CLOSING = rf"[\"')\]]|[{_FOREIGN_CLOSING}](?!\w)|\s[\u00bb\u203a](?!\w)"
_CAPTION_END = re.compile(
    rf"(?:(?<=[.!?{_OTHER_MARKS}{MARKS_WITHOUT_SPACE}])|(?<=\u2026)(?=\s+[^\W\d_A-Za-z\u00c0-\u052f]))"
    rf"(?:{_CLOSING})*{_AFTER_MARK}|\s*\n\s*"
)
_LEAST_WORDS = 3
_HANGUL = re.compile("[\uac00-\ud7a3]{2,}")
_MARK = re.compile(
    rf"(?<![{SENTENCE_MARKS}])([{SENTENCE_MARKS}]+)"
    rf"(?:{_CLOSING}|[\u201d\u2019])*(?:\[\w{{1,3}}\])*{_AFTER_MARK}(?=(\S+))"
)
_OPENING = (
    "\"'\u201c\u2018\u00ab\u00bb\u201e\u201a\u203a\u2039([{<\u00bf\u00a1\u300c\u300e\uff08\u3010\u300a\u3008"
)
_LETTERS = re.compile(r"(?:[^\W\d_]{1,2}\.)+[^\W\d_]{1,2}")  # U.S, Ph.D, a.m
_STARTER = re.compile(r"[^\W\d_]+(?=['\u2019,]|$)")
_SEEN = 40  # characters before a mark that are looked at
_INITIAL = re.compile(r"[^\W\d_]\.")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NEVER = _words(
    "mr mrs ms messrs dr drs prof profs rev hon gen col maj capt lt cmdr adm sgt cpl pvt gov sen rep pres "
    "supt ste mt ft fr sra srta mme mlle v vs viz cf e.g i.e approx esp incl resp"
)
_BEFORE_NUMBER = _words(
    "no nos nr vol vols ch chap sec fig figs p pp art op ca c circa ver jan feb mar apr jun jul aug sep "
    "sept oct nov dec"
)
_EITHER = _words(
    "inc ltd co cos corp llc plc bros jr sr esq dept univ assn est etc al st ave blvd rd sq bldg jan feb "
    "mar apr jun jul aug sep sept oct nov dec"
)
_STARTERS = _words(
    "A According After All Also Although Among An And Another As At Because Before Between Both But By "
    "During Each Even Every Few For From Furthermore He Her His How However I If In Instead It Its Many "
    "More Moreover Most My Neither No Nor Not On One Only Or Other Our Over She Since So Some Still Such "
    "That The Their Then There Therefore These They This Those Though Three Through Thus To Today Two "
    "Under Unlike Until We What When Where Whether Which While Who Why With Within Without Yet You Your"
)


def split_sentences(text: str) -> list[str]:
    """The sentences of a caption or description in turn, white space at their ends dropped; no word is lost.

    Every full stop, question and exclamation mark and line break ends one, but for the abbreviations of
    German, French and Czech. What is left of one in fewer than three words ("Mr.", "No. 5") goes with its
    neighbour; a Korean word of two syllables or more counts twice, as it holds a particle. A text without
    words gives an empty list.
    """
    sentences: list[str] = []
    short, words = "", 0
    for piece in filter(None, map(str.strip, _caption_pieces(text))):
        words += _count_words(piece)
        piece = _joined(short, piece) if short else piece
        if words < _LEAST_WORDS:
            short = piece
        else:
            sentences.append(piece)
            short, words = "", 0
    if short:  # nothing follows
        sentences = [*sentences[:-1], _joined(sentences[-1], short)] if sentences else [short]
    return sentences


def _caption_pieces(text: str) -> list[str]:
    pieces, start = [], 0
    for end in _CAPTION_END.finditer(text):
        before = text[max(start, end.start() - _SEEN) : end.start()]
        if before.endswith(".") and "\n" not in end[0] and _goes_on(before[:-1], text[end.end() :]):
            continue
        pieces.append(text[start : end.start()])
        start = end.end()
    return [*pieces, text[start:]]


def _goes_on(before: str, after: str) -> bool:
    following = after[:_SEEN].split(maxsplit=1)[:1]
    return goes_on(unicodedata.normalize("NFC", before), unicodedata.normalize("NFC", "".join(following)))


def _joined(one: str, two: str) -> str:
    return f"{one}{'' if one[-1] in MARKS_WITHOUT_SPACE else ' '}{two}"


def _count_words(text: str) -> int:
    words = sum(any(map(str.isalnum, unit)) for unit in text_units(text))
    return words if text.isascii() else words + len(_HANGUL.findall(unicodedata.normalize("NFC", text)))


def split_prose(text: str) -> list[str]:
    """The sentences of ``text`` in turn, white space made single spaces; joined by spaces (in Chinese and
    Japanese by nothing) they are it again.

    A text without words gives an empty list.
    """
    text = " ".join(text.split())
    found, start = [], 0
    for mark in _MARK.finditer(text):
        before = text[max(start, mark.start() - _SEEN) : mark.start()]
        if _ends(before, mark[1], mark[2]):
            found.append(text[start : mark.end()].rstrip())
            start = mark.end()
    return [*found, text[start:]] if text[start:] else found


def tidy_lines(text: str) -> str:
    """``text`` with white space made single spaces in each of its lines, without empty ones."""
    return "\n".join(words for line in text.split("\n") if (words := " ".join(line.split())))


def split_lines(text: str) -> list[str]:
    """The sentences of each line of ``text`` in turn (:func:`split_prose`), where a line is a whole: a
    paragraph, a heading, an item of a list, a line of code."""
    return [sentence for line in text.split("\n") for sentence in split_prose(line)]


def passage_sentences(text: str, least: int = 6, most: int = 49) -> list[str]:
    """The sentences of a passage with ``least`` to ``most`` words.

    A longer one is cut into pieces of like length. A shorter one is joined to the one before it or, if that
    gets too long, the one after it, else dropped. Where nothing is left, the first ``most`` words of the
    text are its only sentence; a text without words has none.
    """
    joined: list[list[str]] = []
    for sentence in split_lines(text):
        for words in cut_words(text_units(sentence), most):
            short = joined and min(len(joined[-1]), len(words)) < least
            if short and len(joined[-1]) + len(words) <= most:
                joined[-1] += words
            else:
                joined.append(words)
    kept = [join_units(words) for words in joined if len(words) >= least]
    return kept or [join_units(words[:most]) for words in [text_units(text)] if words]


def cut_words(words: Sequence[str], most: int) -> list[list[str]]:
    """``words``, or the units of a text, in as few pieces of at most ``most`` as there can be, as equal as
    they can be."""
    count = -(-len(words) // most)
    return [list(words[i * len(words) // count : (i + 1) * len(words) // count]) for i in range(count)]


def _ends(before: str, mark: str, after: str) -> bool:
    """Whether ``mark`` ends the sentence that reads ``before`` so far (its end, if long); ``after``: the next
    word as it is."""
    before, after = unicodedata.normalize("NFC", before), unicodedata.normalize("NFC", after)
    following = after.lstrip(_OPENING)
    if following[:1].islower() or not any(map(str.isalnum, after)):
        return False
    if mark != ".":
        return True
    word = before.rpartition(" ")[2].lstrip(_OPENING)
    lower = word.lower()
    if lower in _NEVER or (lower in _BEFORE_NUMBER and following[:1].isdigit()):
        return False
    if before.isdigit() or goes_on(before, following):  # the number of an item, or an abbreviation
        return False
    single = len(word) == 1 and word.isalpha()
    if single and _INITIAL.match(following):
        return False
    if lower in _EITHER or (single and word.isupper()) or ("." in word and _LETTERS.fullmatch(word)):
        starter = _STARTER.match(following)
        return starter is not None and (
            starter[0] in _STARTERS or (lower == "etc" and starter[0] in STARTERS)
        )
    if lower in EITHER:
        starter = _STARTER.match(following)
        return starter is not None and starter[0] in STARTERS
    return True
