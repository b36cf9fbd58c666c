"""Token ids of texts in the form the model reads them, without silent truncation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmgem.config import Preprocessing
from mmgem.data.scripts import CJK, SENTENCE_MARKS
from mmgem.data.sentences import split_sentences
from mmgem.data.texts import check_texts, query_sentence
from mmgem.data.transforms import join_sentences, normalise_text
from mmgem.errors import CheckpointError, DataError
from mmgem.utils.pretrained import load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor


class NoEndToken(CheckpointError):
    """A tokenizer that cannot end a text."""


class Tokenizer:
    """A transformers tokenizer with our text normalisation around it. Every method that takes texts raises as
    :func:`mmgem.data.texts.check_texts` for what is none."""

    def __init__(self, hf: Any, prep: Preprocessing):
        self.hf, self.prep = hf, prep
        end = hf.eos_token_id if hf.eos_token_id is not None else hf.sep_token_id
        if end is None:
            raise NoEndToken("the tokenizer has no end-of-text token")
        self.end: int = end
        self.rows: float = float("inf")

    @classmethod
    def from_folder(cls, folder: Path, prep: Preprocessing) -> Tokenizer:
        """Read the tokenizer files of a checkpoint or base-model folder. Raises ``CheckpointError``."""
        try:
            return cls(load_tokenizer(folder), prep)
        except NoEndToken as error:
            raise CheckpointError(f"{folder}: no usable tokenizer ({error})") from error

    def check_vocabulary(self, rows: int, where: str) -> None:
        """Raise ``CheckpointError`` that begins with ``where`` if a text may have an id beyond a table of
        ``rows``. Tokens that were added (Gemma 3 has one for images) are refused when a text has one."""
        self.rows = rows
        added = self.hf.get_added_vocab()
        token, last = max(
            (item for item in self.hf.get_vocab().items() if item[0] not in added),
            key=lambda item: item[1],
            default=("", -1),
        )
        if last >= rows:
            raise CheckpointError(
                f"{where}: tokenizer: {token[:40]!r} has id {last}, the model's table {rows} rows"
            )

    def encode_all(self, texts: Sequence[str]) -> list[Tensor]:
        """Token ids (1-D int64) of each text. Raises ``DataError`` for an empty text or one over the
        model's ``max_text_tokens``."""
        encoded = self._encode(texts)
        for text, tokens in zip(texts, encoded, strict=True):
            self._check_length(text, len(tokens))
        return encoded

    def _check_length(self, text: str, tokens: int) -> None:
        if tokens > self.prep.max_text_tokens:
            raise DataError(
                f"text of {tokens} tokens is over the model's {self.prep.max_text_tokens}: {text[:60]!r}…"
            )

    def query_texts(self, texts: Sequence[str], regions: bool = False) -> list[str]:
        """What is embedded of searches for ``texts`` (:func:`mmgem.data.texts.query_sentence`); ``regions``:
        among boxes, for which names are read as they are."""
        prefix = "" if regions else self.prep.query_prefix
        return [query_sentence(text, prefix) for text in check_texts(texts)]

    def encode_short(self, texts: Sequence[str]) -> list[Tensor | None]:
        """As :meth:`encode_all`, but None in the place of a text over ``max_text_tokens``."""
        limit = self.prep.max_text_tokens
        return [tokens if len(tokens) <= limit else None for tokens in self._encode(texts)]

    def _encode(self, texts: Sequence[str]) -> list[Tensor]:
        import torch

        return [torch.tensor(tokens) for tokens in self._token_lists(texts)]

    def _token_lists(self, texts: Sequence[str]) -> list[list[int]]:
        texts = check_texts(texts)
        if not texts:
            return []
        plain = [normalise_text(t, self.prep) for t in texts]
        ids = self.hf(plain, add_special_tokens=False)["input_ids"]
        for text, form, tokens in zip(texts, plain, ids, strict=True):
            if not form.strip() or not tokens:
                raise DataError(f"empty text: {text!r}")
            if max(tokens) >= self.rows:
                raise DataError(f"text with a token that the model's table lacks: {text[:60]!r}")
        return [list(tokens) for tokens in ids]

    def pieces(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of ``texts`` as they are: nothing added, nothing normalised, and the name of a special
        token is text like any other."""
        texts = check_texts(texts)
        if not texts:
            return []
        found = self.hf(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [list(ids) for ids in found]

    def encode_parts(self, texts: Sequence[str]) -> tuple[list[Tensor], list[int]]:
        """Token ids (1-D int64) of the pieces each text is embedded in, and the number of each piece's text.

        With ``long_text = "mean"`` a piece is a sentence, or an even share of one over ``max_text_tokens``;
        with ``"joined"`` it is the text. Raises ``DataError`` as :meth:`encode_all` does."""
        import torch

        pieces, owners = self.token_parts(texts)
        return [torch.tensor(tokens) for tokens in pieces], owners

    def token_parts(self, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
        """:meth:`encode_parts` in lists, without torch."""
        texts = check_texts(texts)
        limit = self.prep.max_text_tokens
        if self.prep.long_text == "joined":
            pieces = self._token_lists(texts)
            for text, tokens in zip(texts, pieces, strict=True):
                self._check_length(text, len(tokens))
            return pieces, list(range(len(texts)))
        sentences = [(n, s) for n, text in enumerate(texts) for s in split_sentences(text) or [text]]
        pieces, owners = [], []
        for (n, _), tokens in zip(sentences, self._token_lists([s for _, s in sentences]), strict=True):
            shares = even_shares(tokens, -(-len(tokens) // limit))
            pieces += shares
            owners += [n] * len(shares)
        return pieces, owners

    def join(self, texts: Sequence[str]) -> tuple[str, int]:
        """One text of several, and how many were left out: where long texts are read as a whole, as many as
        the model's ``max_text_tokens`` allow.

        Raises ``DataError`` if not even the first fits."""
        kept = list(texts)
        if self.prep.long_text == "mean":
            return join_sentences(kept), 0
        while True:
            text = join_sentences(kept)
            try:
                self.encode_all([text])
            except DataError:
                if len(kept) == 1:
                    raise
                kept.pop()
            else:
                return text, len(texts) - len(kept)

    def text_of(self, ids: Sequence[int]) -> str:
        """The text that token ``ids`` stand for, as it was written; special tokens are left out.

        Raises ``DataError`` for an id that is not in the vocabulary."""
        size = len(self.hf)
        unknown = next((i for i in ids if not 0 <= i < size), None)
        if unknown is not None:
            raise DataError(f"token id {unknown} is not one of the {size} of this model's tokenizer")
        kept = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return str(self.hf.decode(list(ids), **kept))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of token ids, special tokens left out; a sentence again where training texts were not."""
        text = " ".join(self.hf.decode(list(ids), skip_special_tokens=True).split())
        # As people write, not as corpora do.
        text = re.sub(r" (?='(?:s|re|ve|ll|d|m)\b|n't\b|[,;:])", "", text)
        if self.prep.lowercase and text:
            text = text[0].upper() + text[1:]
            if text[-1] not in SENTENCE_MARKS or text[-1] == "\u2026":
                text += "\u3002" if re.search(rf"[{CJK}]$", text) else "."
        return text


def even_shares(tokens: list[int], count: int) -> list[list[int]]:
    """``tokens`` in ``count`` pieces, of which the first ones may have one more."""
    size, more = divmod(len(tokens), count)
    starts = [n * size + min(n, more) for n in range(count + 1)]
    return [tokens[start:end] for start, end in pairwise(starts)]
