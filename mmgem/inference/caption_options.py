"""How captions are decoded, and the defaults that the API, the commands and the server share.

A file of its own without torch: commands read the defaults before they load a model.
"""

from __future__ import annotations

from dataclasses import dataclass

from mmgem.errors import UsageError


@dataclass(frozen=True, slots=True)
class CaptionOptions:
    """Beam search, and the choice among what it finds. Raises ``UsageError`` for what cannot be."""

    beams: int = 3
    """Live hypotheses; 1: greedy decoding."""
    max_tokens: int = 30
    """Where none has ended by then, the best is cut there."""
    length_penalty: float = 0.7
    """Finished hypotheses rank by log P / length ** length_penalty."""
    clip_rescore_weight: float = 0.15
    """How much the model's own embedding of a finished hypothesis counts beside its rank: a multiple of its
    cosine with the image over the trained temperature, added to the score (nats a token); 0: not at all."""

    no_repeat_ngram_size: int = 3
    """So many tokens in a row come once in a caption (1: every token); 0: however often."""

    def __post_init__(self) -> None:
        if self.beams < 1 or self.max_tokens < 1:
            raise UsageError("beams and max_tokens must be at least 1")
        if self.no_repeat_ngram_size < 0:
            raise UsageError("no_repeat_ngram_size must be 0 or more")


CAPTION_DEFAULTS = CaptionOptions()
