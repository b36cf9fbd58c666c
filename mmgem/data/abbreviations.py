"""Shortened words and numbers after which a full stop ends no sentence: a table for German, French and Czech.

English has its own in :mod:`mmgem.data.sentences`. No word here is an English one, so that English texts are
split as if these tables were not there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Abbreviations:
    """Words in lower case: after ``never`` there is no end, after ``before_number`` none if a number follows,
    after ``either`` one if one of ``starters`` does. Regular expressions: ``spaced``, abbreviations of
    several parts; ``ordinal``, number and what stands before it; ``after_ordinal``, what follows one."""

    never: str
    before_number: str
    either: str
    starters: str
    spaced: str
    ordinal: str = ""
    after_ordinal: str = ""


LANGUAGES: dict[str, Abbreviations] = {
    "de": Abbreviations(
        never="bzw vgl evtl ggf inkl zzgl sog frl z.b d.h u.a z.t i.d.r dipl bspw insb österr bzgl einschl "
        "ehem",
        before_number="nr nrn bd kap mio mrd str aufl",
        either="usw usf mio mrd jh jhd jhdt str tsd chr",
        starters="Der Die Das Ein Eine Einer Er Sie Es Wir Ihr Ich Im In Am An Auf Bei Mit Nach Vor Zum Zur "
        "Dann Da Dort Hier Danach Doch Aber Und Als Wenn Weil Dieser Diese Dieses Zwei Drei Viele Alle",
        spaced=r"z\. (?:B|T|Z|Hd)|d\. h|u\. (?:a|U|ä|Ä)|i\. d\. R|i\. d|o\. (?:g|ä|Ä)|[vn]\. Chr",
        ordinal=r"(?:vom|zum|beim|im|der|das|dem|des|jede[nmrs]?|seine[nmrs]?|ihre[nmrs]?) \d{1,3}",
        after_ordinal=r"Januar|Jänner|Februar|März|Mai|Juni|Juli|Oktober|Dezember|Jahrhundert|Weltkrieg|Etage|"
        r"Geburtstag",
    ),
    "fr": Abbreviations(
        never="p.ex c.-à-d éd env janv févr juil rens",
        before_number="n° nº déc",
        either="",
        starters="Il Elle Ils Elles Le La Les Un Une Des Cette Ces Ce On Nous Vous Je Deux Puis Dans Sur À",
        spaced=r"p\. ex|c\. -à-d|av\. J|apr\. J",
    ),
    "cs": Abbreviations(
        never="např tzv tj mgr mudr judr phdr rndr kpt čl tzn tř něm cca",
        before_number="č odst obr roč čís ul",
        either="apod atd",
        starters="Ten Ta To Ti Je Na V Ve Pak Potom Jeden Jedna Dva Dvě Muž Žena Pes Když Ale On Ona Oni",
        spaced=r"př\. n|n\. l|t\. [rjčm]|s\. r|r\. o",
        after_ordinal=r"ledna|února|března|dubna|května|června|července|srpna|září|října|listopadu|prosince|"
        r"století|patře|patro|místo|místě|tříd\w|ročník",
    ),
}


def _words(name: str) -> frozenset[str]:
    return frozenset(word for table in LANGUAGES.values() for word in getattr(table, name).split())


def _alternatives(name: str) -> str:
    return "|".join(pattern for table in LANGUAGES.values() if (pattern := getattr(table, name)))


_NEVER, _BEFORE_NUMBER, EITHER, STARTERS = map(_words, ("never", "before_number", "either", "starters"))
_SPACED = re.compile(rf"(?:^|[\s(])(?:{_alternatives('spaced')})$")
_NUMBER = re.compile(r"(?:^|[\s(])\d{1,3}$")
_ORDINAL = re.compile(rf"(?:^|\s)(?:{_alternatives('ordinal')})$", re.IGNORECASE)
_AFTER_ORDINAL = re.compile(_alternatives("after_ordinal"))
_DAY = re.compile(r"(?:^|\s)(?:(?<!\bI )am|ab|bis|seit|vom|zum) \d{1,2}$", re.IGNORECASE)
_MONTH = re.compile(r"(?:April|August|September|November)\b")  # as in English
_KOREAN_DATE = re.compile(r"(?:^|\s)\d{4}(?:\. \d{1,2})?$")
_KOREAN_DAY = re.compile(r"(?:^|\s)\d{4}\. \d{1,2}\. \d{1,2}$")
_DATE_PART = re.compile(r"\d{1,2}\.")


def goes_on(before: str, following: str) -> bool:
    """Whether the full stop after ``before`` is of a shortened word or of a number's; ``following``: the next
    word. Both in NFC."""
    word = before.rpartition(" ")[2].lstrip("(\"'\u201e\u201a\u00ab\u00bb").lower()
    if word in _NEVER or (word in _BEFORE_NUMBER and following[:1].isdigit()):
        return True
    if _SPACED.search(before) or _SPACED.search(f"{before}. {following.rstrip('.,')}"):
        return True
    if _NUMBER.search(before) and (_AFTER_ORDINAL.match(following) or _ORDINAL.search(before)):
        return True
    if _DAY.search(before) and _MONTH.match(following):
        return True
    if _KOREAN_DATE.search(before) and _DATE_PART.match(following):
        return True
    return bool(_KOREAN_DAY.search(before) and "\uac00" <= following[:1] <= "\ud7a3")
