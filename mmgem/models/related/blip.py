"""BLIP (Li et al. 2022, arXiv 2201.12086): one text transformer in three modes that share all but attention.

    texts       encoder, both ways, alone; [EMB] at the end: contrasted with images (ITC)
    pairs       encoder, both ways, looking at the image; [MATCH] before the text: do they match (ITM)
    captions    decoder, causal, looking at the image: predicts the text (LM)

Encoder and decoder are the LLM's blocks twice, their self-attention apart, everything else the same tensors.
Cross-attention lies behind each block (not inside of it, before the feed-forward layer, as in BERT).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mmgem.config import ModelConfig
from mmgem.errors import ConfigError
from mmgem.models.cross_attention import CrossAttention, ImageLayers, showing, shown_in
from mmgem.models.llm import LLM
from mmgem.models.packing import PackedOutput, Packing, Segment
from mmgem.models.related.base import ImageReader, options, starts

_ATTENTION = ("self_attn", "attn", "attention", "self_attention")


class BLIP(ImageReader):
    """``llm``: the decoder, ``text_encoder``: the encoder; ``model.config``: ``heads`` of cross-attention."""

    def __init__(self, config: ModelConfig):
        chosen = options(config, {"heads": 8})
        super().__init__(config)
        width = self.llm.width
        self.text_encoder = LLM(config.llm.config)
        _share(self.llm, self.text_encoder)
        self.image_layers = ImageLayers(
            range(len(self.llm.blocks)),
            lambda: CrossAttention(width, self.encoder.channels, chosen["heads"], dense=False),
        )
        for llm in (self.llm, self.text_encoder):
            self.image_layers.attach(llm.blocks)
        self.match_token = nn.Parameter(torch.randn(width) * 0.02)
        self.match_head = nn.Linear(width, 2)

    def trains(self, name: str) -> bool:
        """All but the bias of another loss."""
        return name != "logit_bias"

    def parameter_group(self, name: str, parameter: nn.Parameter) -> str:
        """The encoder trains as the LLM does."""
        return "llm" if name.startswith("text_encoder.") else super().parameter_group(name, parameter)

    def load_base_llm(self, lm: nn.Module) -> None:
        """Both begin with the same self-attention."""
        super().load_base_llm(lm)
        for ours, theirs in zip(self.text_encoder.blocks, self.llm.blocks, strict=True):
            for name in _attention_of(theirs):
                getattr(ours, name).load_state_dict(getattr(theirs, name).state_dict())

    def project_visual_prefix(self, visual: Tensor) -> Tensor:
        """The map's tiles ``(B, n, C)``."""
        return self.tiles(visual)

    def text_segments(self, ids: Sequence[Tensor]) -> list[Segment]:
        """Texts seen both ways, ``[EMB]`` at the end."""
        return [Segment(tokens, pool=True, causal=False) for tokens in ids]

    def read(
        self, texts: Sequence[Tensor], captions: Sequence[Tensor] = (), visual: Tensor | None = None
    ) -> PackedOutput:
        """Texts by the encoder, captions by the decoder."""
        if visual is None or not texts:
            return super().read(texts, captions, visual)
        read, written = super().read(texts), super().read([], captions, visual)
        return replace(read, prediction_states=written.prediction_states)

    def run_packed(
        self, inputs: Tensor, packing: Packing, allowed: Tensor, segments: Sequence[Segment]
    ) -> tuple[Tensor, Tensor]:
        """What is causal by the decoder, else by the encoder; never both at once."""
        causal = {segment.causal for segment in segments}
        assert len(causal) == 1
        llm = self.llm if causal.pop() else self.text_encoder
        with showing(shown_in(packing, segments, inputs.device)):
            states = llm(inputs, packing.positions.to(inputs.device), allowed).flatten(0, 1)
        return states, states

    def match(self, visual: Tensor, ids: Sequence[Tensor], of: Sequence[int] | None = None) -> Tensor:
        """Logits ``(n, 2)`` that image and text do not, and do, belong together (ITM): text i and image
        ``of[i]`` of ``visual`` ``(m, ..., W)``, None: the i-th."""
        images, marker = self.project_visual_prefix(visual), self.match_token[None]
        segments = [
            Segment(tokens, marker, causal=False, image=(images, n))
            for tokens, n in zip(ids, range(len(images)) if of is None else of, strict=True)
        ]
        states = self.forward_packed(segments).prediction_states
        return self.match_head(states[starts(ids).to(states.device)])

    def match_scores(self, visual: Tensor, ids: Sequence[Tensor]) -> Tensor:
        """The logit of "they match", which BLIP adds to the cosine to rerank."""
        return self.match(visual, ids)[:, 1]


def _share(decoder: LLM, encoder: LLM) -> None:
    """Let ``encoder`` have all modules of ``decoder`` but the self-attention of its blocks. They are the
    decoder's: the encoder uses them, and does not list them as parts of its own. Raises ``ConfigError`` for
    blocks in which self-attention is not found."""
    for ours, theirs in zip(encoder.blocks, decoder.blocks, strict=True):
        names = [name for name, _ in theirs.named_children()]
        if not _attention_of(theirs):
            raise ConfigError(f"model.llm.config: no self-attention in its blocks ({', '.join(names)})")
        for name in names:
            if name not in _ATTENTION:
                _borrow(ours, name, getattr(theirs, name))
    for ours, theirs in ((encoder.body, decoder.body), (encoder.lm, decoder.lm)):
        for name, child in list(theirs.named_children()):
            holds_blocks = any(module is decoder.blocks for module in child.modules())
            if not holds_blocks:
                _borrow(ours, name, child)


def _attention_of(block: nn.Module) -> list[str]:
    return [name for name, _ in block.named_children() if name in _ATTENTION]


def _borrow(module: nn.Module, name: str, part: nn.Module) -> None:
    """Let ``module`` use ``part`` in the place of its own ``name``."""
    del module._modules[name]
    module.__dict__[name] = part
