"""MM-GEM: one vision encoder, one LLM and three small projections that embed and generate (arXiv 2405.19333).

    v = h1(P(V, box))            image or region embedding
    t = h2(LLM(x, [EMB])_[EMB])  text embedding
    V_in = h3(v)                 what the LLM sees of the image when it captions after [CAP]

This file is tensors only; files, images and strings are handled by :mod:`mmgem.api`.
Shapes: B images or sequences, K boxes, D embedding width, H LLM width, P visual prefix length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from mmgem.config import ModelConfig
from mmgem.encoders import encoder_class
from mmgem.encoders.base import Encoder
from mmgem.models.connectors import connector_class
from mmgem.models.connectors.base import Connector
from mmgem.models.llm import LLM
from mmgem.models.packing import Packing, pack, pack_shared_prefix
from mmgem.models.pooling import pool_boxes, pool_full


def projection(kind: str, width_in: int, width_out: int, dropout: float = 0.0) -> nn.Module:
    """h1 or h2: ``linear``, or ``mlp`` with one hidden layer."""
    # Dropout stays in place at rate 0: the names of the weights must not depend on it.
    drop = nn.Dropout(dropout)
    if kind == "linear":
        return nn.Sequential(drop, nn.Linear(width_in, width_out))
    hidden = 2 * width_out
    layers = [nn.LayerNorm(width_in), drop, nn.Linear(width_in, hidden), nn.GELU()]
    return nn.Sequential(*layers, drop, nn.Linear(hidden, width_out))


class MMGEMNetwork(nn.Module):
    """The assembled network. Build it from a config; weights come from a checkpoint or from base models."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.encoder: Encoder = encoder_class(config.encoder).build(config.encoder)
        self.llm = LLM(config.llm.config)
        width = self.llm.width
        self.visual_projection: nn.Module = nn.Identity()
        self.visual_connector: Connector | nn.Identity = nn.Identity()
        if self.encoder.sees_images:
            self.visual_projection = projection(
                config.projection, self.encoder.channels, config.dim, config.dropout
            )
            self.visual_connector = connector_class(config.connector).build(
                config.dim, width, config.visual_tokens, config.connector.config
            )
        self.text_projection = projection("linear", width, config.dim)
        self.emb_token = nn.Parameter(torch.empty(width))
        self.cap_token = nn.Parameter(torch.empty(width))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(config.logit_scale)))
        self.logit_bias = nn.Parameter(torch.tensor(float(config.logit_bias)))
        self.text_graph: Callable[[Sequence[Tensor]], Tensor] | None = None
        """Runs in the place of :meth:`encode_text` where there is one (:mod:`mmgem.export`)."""
        self.init_special_embeddings()

    def init_special_embeddings(self) -> None:
        """Start ``[EMB]``, ``[CAP]`` and ``h3`` at the scale of the LLM's own token vectors."""
        if self.emb_token.is_meta:
            return
        with torch.no_grad():
            # As the blocks see them: some models (Gemma 3) scale the rows of their table.
            std = float(self.llm.embed(torch.arange(min(self.llm.vocabulary, 4096))).std())
        nn.init.normal_(self.emb_token, std=std)
        nn.init.normal_(self.cap_token, std=std)
        if isinstance(self.visual_connector, Connector):
            self.visual_connector.init_weights(std)

    def loss_parameters(self) -> list[nn.Parameter]:
        """What belongs to losses alone, scalars all: the contrastive temperature and bias."""
        return [self.logit_scale, self.logit_bias]

    def to_inference_dtype(self, dtype: torch.dtype) -> MMGEMNetwork:
        """Put the encoder and the LLM into ``dtype``, for use, not for training; the projections, embeddings
        and similarities stay float32. bfloat16 is faster where there is hardware for it (AVX512-BF16, AMX,
        a GPU)."""
        self.encoder.to(dtype)
        self.llm.to(dtype)
        return self

    @property
    def prefix_length(self) -> int:
        """P: LLM positions one image or region takes, [CAP] not counted."""
        grid = self.config.visual_grid
        return self.config.visual_tokens * (1 + (grid * grid if grid > 1 else 0))

    def encode_image(self, maps: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Embeddings of whole images or boxes, not normalised.

        ``maps``: ``(B, H, W, C)``. ``boxes``: ``(B, K, 4)`` in pixels of the encoder's input. Returns
        ``(B, 1 + g*g or 1, D)`` for whole images, ``(B, K, 1 + g*g or 1, D)`` for boxes: the embedding
        itself first, then its tiles where ``visual_grid`` > 1 (they only feed captions).
        """
        grid, side = self.config.visual_grid, float(self.encoder.size)
        if boxes is None:
            pooled = pool_full(maps)
            if grid > 1:
                pooled = torch.cat([pooled, pool_full(maps, grid)], 1)
        else:
            pooled = pool_boxes(maps, boxes, (side, side))
            if grid > 1:
                pooled = torch.cat([pooled, pool_boxes(maps, boxes, (side, side), grid)], 2)
        return self.visual_projection(pooled)

    def project_visual_prefix(self, visual: Tensor) -> Tensor:
        """V_in: :meth:`encode_image` output ``(B, 1 + tiles, D)`` -> LLM input vectors ``(B, P, H)``."""
        return self.visual_connector(visual)

    def encode_text(self, ids: list[Tensor]) -> Tensor:
        """Text embeddings ``(B, D)``, not normalised, of B token sequences (each 1-D int64)."""
        return self.run(texts=ids)[0] if self.text_graph is None else self.text_graph(ids)

    def run(
        self,
        texts: Sequence[Tensor] = (),
        captions: Sequence[Tensor] = (),
        prefixes: Tensor | None = None,
        row_length: int = 128,
    ) -> tuple[Tensor, Tensor]:
        """One pass of the LLM over texts (``x, [EMB]``) and captions (``V_in, [CAP], x``) packed together.

        ``texts``, ``captions``: token ids, each 1-D int64 on the CPU. ``prefixes``: ``(M, P, H)``, one a
        caption.
        Returns the text embeddings ``(len(texts), D)``, not normalised, and the hidden states ``(T, H)``
        that predict ``x_1 .. x_n, end`` of each caption in turn (T = sum of n + 1): the head is worth
        running at no other position.
        """
        n, m, head = len(texts), len(captions), self.prefix_length + 1
        counts = torch.tensor([len(t) for t in [*texts, *captions]])
        offsets = torch.tensor([0] * n + [head] * m)
        packing = pack((counts + offsets + torch.tensor([1] * n + [0] * m)).tolist(), row_length)
        device = self.emb_token.device

        tokens = self.llm.embed(torch.cat([*texts, *captions]).to(device))
        inputs = tokens.new_zeros(packing.segments.numel(), self.llm.width)
        inputs = inputs.index_copy(0, packing.span(offsets, counts).to(device), tokens)
        ends = packing.flat(counts[:n], torch.arange(n)).to(device)
        inputs = inputs.index_copy(0, ends, self.emb_token.expand(n, -1).to(tokens.dtype))
        captioned = torch.arange(n, n + m)
        if m:
            if prefixes is None:
                raise ValueError("captions need prefixes")
            heads = torch.cat([prefixes, self.cap_token.expand(m, 1, -1)], 1).flatten(0, 1).to(tokens.dtype)
            at = packing.span(torch.zeros(m).long(), torch.full((m,), head), captioned).to(device)
            inputs = inputs.index_copy(0, at, heads)

        causal: bool | Tensor = True
        if self.config.attention == "bidirectional":
            causal = torch.arange(n + m) >= n
        allowed = packing.allowed(causal).to(device)
        states = self.llm(
            inputs.view(*packing.segments.shape, -1), packing.positions.to(device), allowed
        ).flatten(0, 1)

        predicting = packing.span(offsets[n:] - 1, counts[n:] + 1, captioned).to(device)
        return self._pool_text(states, packing, counts[:n], ends), states[predicting]

    def read(
        self, sequences: Sequence[Tensor], embed: Tensor, parents: Tensor | None = None, row_length: int = 128
    ) -> tuple[Tensor, Packing]:
        """One pass over texts, some of which continue others: a passage is read once for all that is asked
        of it.

        ``sequences``: N token id sequences, 1-D int64 on the CPU; ``embed`` ``(N,)`` bool: with ``[EMB]`` at
        the end; ``parents`` ``(N,)`` int64: the sequence it continues and may look at, -1 for none (which
        all have to be that are continued). Returns the hidden states ``(R * L, H)`` and where they lie.
        """
        counts = torch.tensor([len(s) for s in sequences])
        packing = pack_shared_prefix((counts + embed.long()).tolist(), parents, row_length)
        device = self.emb_token.device
        tokens = self.llm.embed(torch.cat([*sequences]).to(device))
        inputs = tokens.new_zeros(packing.segments.numel(), self.llm.width)
        inputs = inputs.index_copy(0, packing.span(torch.zeros_like(counts), counts).to(device), tokens)
        ends = packing.flat(counts[embed], embed.nonzero()[:, 0]).to(device)
        inputs = inputs.index_copy(0, ends, self.emb_token.expand(len(ends), -1).to(tokens.dtype))
        allowed = packing.allowed().to(device)
        states = self.llm(
            inputs.view(*packing.segments.shape, -1), packing.positions.to(device), allowed
        ).flatten(0, 1)
        return states, packing

    def _pool_text(self, states: Tensor, packing: Packing, counts: Tensor, ends: Tensor) -> Tensor:
        if self.config.text_pool == "emb":
            return self.text_projection(states[ends])
        lengths = counts + 1
        owner = torch.repeat_interleave(torch.arange(len(counts)), lengths).to(states.device)
        at = packing.span(torch.zeros_like(counts), lengths, torch.arange(len(counts))).to(states.device)
        total = states.new_zeros(len(counts), states.shape[-1]).index_add(0, owner, states[at])
        return self.text_projection(total / lengths[:, None].to(states))
