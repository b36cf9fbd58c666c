"""How questions, titles, passages and answers are laid out for the LLM.

    Question: {question}\\nTitle: {title}<end>\\nPassage: {passage}<end>     retrieving
    Title: {title}\\nPassage: {passage}\\nQuestion: {question}\\nAnswer: {answer}<end>   judging, answering

Pieces are tokenised one by one and never as one string, so a question that holds our own markers, or the
name of a special token, is a question and nothing else. Self-Retrieval (arXiv 2403.00801) judges with the
question first; with the passage first it is read once for all questions, in training and from the cache.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mmgem.data.tokens import Tokenizer

REJECTION = "cannot extract answer"
"""What is answered if the passage does not (the wording is that of Self-Retrieval's code)."""


class Prompts:
    """Token ids of every piece, as lists of int."""

    def __init__(self, tokenizer: Tokenizer):
        self._pieces, self._decode = tokenizer.pieces, tokenizer.decode
        self.end = tokenizer.end
        markers = ["Question:", "\nTitle:", "\nPassage:", "Title:", "\nQuestion:", "\nAnswer:"]
        marker_ids = tokenizer.pieces(markers)
        self.question, self.then_title, self.then_passage, self.title, self.then_question, self.answer = (
            marker_ids
        )
        self.rejection = self.ended([REJECTION])[0]

    def text(self, ids: Sequence[int]) -> str:
        """What token ids say."""
        return self._decode(ids)

    def pieces(self, texts: Iterable[str]) -> list[list[int]]:
        """Token ids of texts inside a line: white space becomes single spaces, one goes before; the
        end token is never among them."""
        token_ids = self._pieces([" " + " ".join(text.split()) for text in texts])
        return [[token for token in ids if token != self.end] for ids in token_ids]

    def ended(self, texts: Iterable[str]) -> list[list[int]]:
        """:meth:`pieces` with the end token: titles, whole passages, answers."""
        return [[*ids, self.end] for ids in self.pieces(texts)]

    def retrieving(self, questions: Sequence[str], marker: list[int]) -> list[list[int]]:
        """What a title or a passage follows; ``marker``: ``then_title`` or ``then_passage``."""
        return [[*self.question, *ids, *marker] for ids in self.pieces(questions)]

    def document(self, title: list[int], passage: list[int]) -> list[int]:
        """What questions and their answers follow, of the title's and the passage's :meth:`pieces`."""
        return [*self.title, *title, *self.then_passage, *passage]

    def asking(self, question: list[int]) -> list[int]:
        """A question behind a document, up to where its answer begins."""
        return [*self.then_question, *question, *self.answer]
