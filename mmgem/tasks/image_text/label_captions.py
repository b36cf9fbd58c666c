"""Sentences that name a label."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from mmgem.data.records import Record
from mmgem.evaluate.classify import PROMPTS, fill_prompt

TEMPLATES = ("{}", *PROMPTS)
_ARTICLE = re.compile(r"(?:an?|the) ", re.IGNORECASE)
_PLURAL = re.compile(r"[^\Wsui]s$", re.IGNORECASE)


def name_sentences(name: str, templates: Sequence[str] = TEMPLATES) -> list[str]:
    """``name`` in every template (:func:`mmgem.evaluate.classify.fill_prompt`); an article that it begins
    with takes the place of the template's own."""
    if article := _ARTICLE.match(name):
        rest = name[article.end() :]
        return [re.sub(r"\b(?:an?|the) \{\}", f"{article[0]}{{}}", t).replace("{}", rest) for t in templates]
    return [fill_prompt(template, name) for template in templates]


def label_caption(name: str) -> str:
    """``name`` as a whole caption: an article unless it has one or looks like a plural, and a full stop."""
    if _ARTICLE.match(name) or _PLURAL.search(name):
        return f"{name}."
    return fill_prompt("a {}.", name)


def with_label_captions(records: Sequence[Record]) -> tuple[list[Record], dict[str, str]]:
    """``records``, those with a label now with sentences that name it before their own captions; and for each
    such sentence the caption that is learned in its place where there are no others
    (:func:`label_caption`)."""
    learned: dict[str, str] = {}
    sentences: dict[str, tuple[str, ...]] = {}
    filled: list[Record] = []
    for record in records:
        if record.label is None:
            filled.append(record)
            continue
        if record.label not in sentences:
            name = " ".join(record.label.replace("_", " ").split())
            sentences[record.label] = tuple(name_sentences(name))
            learned |= dict.fromkeys(sentences[record.label], label_caption(name))
        own = tuple(caption for caption in record.captions if caption not in learned)
        filled.append(replace(record, captions=sentences[record.label] + own))
    return filled, learned
