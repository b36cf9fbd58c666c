"""Captions for photos that have a label only: the nearest of many texts that say it.

A name alone ("a cannon.") teaches a captioner to end there. A text that says the name among others, and fits
the photo by the model's cosine, teaches the sentence too. Where few texts say it, those that say a kind above
it are taken, with the name in its place (WordNet's kinds, of a file of labels); where the best of them fits
the photo much less than the name alone does, "A close up of NAME." stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mmgem.api import MMGEM
from mmgem.data.images import attempt
from mmgem.data.labels import LabelSet
from mmgem.data.records import Record
from mmgem.errors import ImageError, UsageError
from mmgem.tasks.image_text.label_captions import label_caption
from mmgem.utils.progress import track

WORDS = (5, 13)
"""Of a text: fewer say too little, more say what is not in the photo."""
_ENOUGH, _MOST = 8, 200
_OF_A_KIND, _OF_KINDS = 60, 30
_LARGEST_KIND = 130  # classes: what is above is an object, an artifact, a thing
_CHUNK = 16
_WORSE, _WORD = 0.06, 0.004  # cosine


@dataclass
class LabelSentences:
    """What became of labelled photos. ``records``: with their captions; ``said``, ``by_kind``, ``unsaid``:
    names that enough texts say, that texts say by a kind above, and that none says; ``captioned``: photos
    with captions that had none; ``problems``: one line for each that could not be read."""

    records: list[Record] = field(default_factory=list)
    said: int = 0
    by_kind: int = 0
    unsaid: list[str] = field(default_factory=list)
    captioned: int = 0
    problems: list[str] = field(default_factory=list)


def label_sentences(
    records: Sequence[Record],
    texts: Iterable[str],
    model: MMGEM,
    labels: LabelSet | None = None,
    per_photo: int = 3,
    seed: int = 0,
) -> LabelSentences:
    """``records``, those with a label and no caption now with up to ``per_photo`` of ``texts`` that say it,
    the best by ``model``'s cosine less 0.004 a word. ``labels``: classes and the kinds above them. ``seed``:
    of which texts are looked at where more than 200 say a name. Raises ``UsageError`` if ``model`` does not
    embed."""
    if not model.network.embeds:
        raise UsageError("the model has no embeddings to compare texts with photos by")
    said = SaidTexts(texts)
    rng = np.random.default_rng(seed)
    open_ = [i for i, r in enumerate(records) if r.label is not None and not r.captions]
    names = {i: " ".join((records[i].label or "").replace("_", " ").split()) for i in open_}
    kinds = _kinds(labels)
    found = LabelSentences(list(records))
    candidates: dict[str, list[tuple[int, str]]] = {}
    for name in sorted(set(names.values())):
        candidates[name], enough = _candidates(name, said, kinds.get(name.lower(), ()), rng)
        found.said += enough
        found.by_kind += bool(candidates[name]) and not enough
        if not candidates[name]:
            found.unsaid.append(name)
    numbers = sorted({n for pairs in candidates.values() for n, _ in pairs})
    rows = {n: row for row, n in enumerate(numbers)}
    vectors = model.embed_texts([said.texts[n] for n in numbers])
    alone = {name: f"A close up of {with_article(name)}." for name in candidates}
    alone_vectors = dict(zip(alone, model.embed_texts(list(alone.values())), strict=True))
    for i, image in _embedded(model, records, open_, found.problems):
        name = names[i]
        bar = float(alone_vectors[name] @ image) - _WORSE
        scored = [
            (cosine - _WORD * len(text.split()), text)
            for n, text in candidates[name]
            if (cosine := float(vectors[rows[n]] @ image)) > bar
        ]
        chosen: list[str] = []
        for _, text in sorted(scored, key=lambda pair: -pair[0]):
            if len(chosen) < per_photo and text not in chosen:
                chosen.append(text)
        if len(chosen) < min(2, per_photo):
            chosen.append(alone[name])
        found.records[i] = replace(records[i], captions=tuple(chosen))
        found.captioned += 1
    return found


def _embedded(
    model: MMGEM, records: Sequence[Record], open_: Sequence[int], problems: list[str]
) -> Iterator[tuple[int, np.ndarray]]:
    """The embeddings ``(D,)`` of the photos of the records ``open_`` that can be read."""
    chunks = [open_[at : at + _CHUNK] for at in range(0, len(open_), _CHUNK)]
    for chunk in track(chunks, "looking", sizes=[len(chunk) for chunk in chunks], unit=" photos"):
        photos = [records[i].image for i in chunk]
        rows = attempt(lambda batch: list(model.embed_images(batch)), photos)
        for i, image in zip(chunk, rows, strict=True):
            if isinstance(image, ImageError):
                problems.append(str(image))
            else:
                yield i, image


class SaidTexts:
    """Texts by the words that they say; those of a usual length, each once, with a full stop."""

    def __init__(self, texts: Iterable[str]):
        kept = {
            " ".join(text.split()).rstrip(" .,!") + "."
            for text in texts
            if WORDS[0] <= len(text.split()) <= WORDS[1]
        }
        self.texts = sorted(kept)
        self._plain = [f" {' '.join(_words(text))} " for text in self.texts]
        self._by_word: dict[str, set[int]] = {}
        for n, text in enumerate(self._plain):
            for word in text.split():
                self._by_word.setdefault(word, set()).add(n)

    def that_say(self, name: str) -> list[int]:
        """Numbers of the texts with ``name`` in them, in one or more (an s behind it or not)."""
        *first, last = _words(name) or [""]
        found: set[int] = set()
        for form in {last, last + "s", last.removesuffix("s")}:
            phrase = [*first, form]
            holders = [self._by_word.get(word, set()) for word in phrase]
            text = f" {' '.join(phrase)} "
            found |= {n for n in set.intersection(*holders) if text in self._plain[n]}
        return sorted(found)

    def with_name(self, n: int, kind: str, name: str) -> str | None:
        """Text ``n`` with ``name`` where it says "a KIND", if it does so once."""
        pattern = re.compile(rf"\b(?:an?|the|one) {re.escape(kind)}\b", re.IGNORECASE)
        replaced, count = pattern.subn(with_article(name), self.texts[n])
        return replaced if count == 1 else None


def _words(text: str) -> list[str]:
    return re.sub(r"[^\w' ]", " ", text.lower()).split()


def _candidates(
    name: str, said: SaidTexts, kinds: Sequence[str], rng: np.random.Generator
) -> tuple[list[tuple[int, str]], bool]:
    """Number and sentence of the texts for ``name``, and whether enough say it themselves."""
    found = _some([(n, said.texts[n]) for n in said.that_say(name)], _MOST, rng)
    if len(found) >= _ENOUGH:
        return [(n, _capital(text)) for n, text in found], True
    for kind in kinds:
        pairs = [
            (n, text) for n in said.that_say(kind) if (text := said.with_name(n, kind, name)) is not None
        ]
        found += _some(pairs, _OF_A_KIND, rng)
        if len(found) >= _OF_KINDS:
            break
    return [(n, _capital(text)) for n, text in found], False


def _some(pairs: list[tuple[int, str]], most: int, rng: np.random.Generator) -> list[tuple[int, str]]:
    if len(pairs) <= most:
        return pairs
    return [pairs[i] for i in rng.choice(len(pairs), most, replace=False)]


def with_article(name: str) -> str:
    """``name`` as the subject of a sentence."""
    return label_caption(name).removesuffix(".")


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _kinds(labels: LabelSet | None) -> Mapping[str, list[str]]:
    """By the names of the classes, in small letters, those of the kinds above, the smallest kind first."""
    if labels is None:
        return {}
    sizes = labels.kind_members.sum(1)
    found: dict[str, list[str]] = {}
    for c, names in enumerate(labels.names):
        above = [k for k in np.flatnonzero(labels.kind_members[:, c]) if sizes[k] <= _LARGEST_KIND]
        above.sort(key=lambda k: int(sizes[k]))
        kind_names = [name for k in above for name in labels.kind_names[k]]
        for name in names:
            found[name.lower()] = kind_names
    return found
