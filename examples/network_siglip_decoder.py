"""A system of one's own, to be compared with the others: SigLIP with a captioning decoder, as SigLIP 2 has.

    mmgem --plugin examples/network_siglip_decoder.py compare recipes/related/*.toml my_siglip2.toml --data D

A network is a class that says what it can and overrides what it does otherwise. This one is SigLIP's two
encoders, and a decoder of half as many blocks as the text transformer that looks at the cells of the map, as
LocCa's does (arXiv 2502.14786). In its recipe: model.kind = "siglip_decoder", a text transformer in
model.llm.config, model.visual_grid for the cells, image_text.contrastive.loss = "sigmoid". Its losses are
there already.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from mmgem import NETWORKS
from mmgem.config import ModelConfig
from mmgem.models.cross_attention import CrossAttention, ImageLayers, showing, shown_in, shown_rows
from mmgem.models.llm import LLM
from mmgem.models.packing import Packing, Segment
from mmgem.models.related.base import ImageReader


@NETWORKS.register("siglip_decoder")
class SigLIPDecoder(ImageReader):
    """A text transformer that embeds, and a decoder that looks at the image and predicts."""

    own_text = True  # of init.llm only the tokenizer is taken

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        layers = "n_layer" if "n_layer" in config.llm.config else "num_hidden_layers"
        half = max(1, config.llm.config[layers] // 2)
        self.decoder = LLM(config.llm.config | {layers: half})
        table = self.llm.lm.get_input_embeddings()  # both read, and say, the same words
        self.decoder.lm.set_input_embeddings(table)
        self.decoder.lm.set_output_embeddings(self.llm.lm.get_output_embeddings())
        width, channels = self.llm.width, self.encoder.channels
        self.image_layers = ImageLayers(range(half), lambda: CrossAttention(width, channels, heads=8))
        self.image_layers.attach(self.decoder.blocks)

    def project_visual_prefix(self, visual: Tensor) -> Tensor:
        return self.tiles(visual)  # what captions are shown: the cells of the map

    def text_segments(self, ids: Sequence[Tensor]) -> list[Segment]:
        return [Segment(tokens, pool=True, causal=False) for tokens in ids]

    def read(self, texts: Any, captions: Any = (), visual: Tensor | None = None) -> Any:
        if visual is None or not texts:
            return super().read(texts, captions, visual)
        written = super().read([], captions, visual)
        return replace(super().read(texts), prediction_states=written.prediction_states)

    def run_packed(
        self, inputs: Tensor, packing: Packing, allowed: Tensor, segments: Sequence[Segment]
    ) -> tuple[Tensor, Tensor]:
        llm = self.decoder if segments[0].causal else self.llm
        with showing(shown_in(packing, segments, inputs.device)):
            states = llm(inputs, packing.positions.to(inputs.device), allowed).flatten(0, 1)
        return states, states

    def caption_states(
        self, inputs: Any, positions: Any, allowed: Any, cache: Any, prefixes: Tensor, rows: Any = None
    ) -> Tensor:
        with showing(shown_rows(prefixes, rows, cache)):
            return self.decoder(inputs, positions, allowed, cache)
