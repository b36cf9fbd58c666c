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
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from mmgem.config import ModelConfig
from mmgem.encoders import encoder_class
from mmgem.encoders.base import Alignment, Encoder
from mmgem.errors import ConfigError, UsageError
from mmgem.models.connectors import connector_class
from mmgem.models.connectors.base import Connector
from mmgem.models.llm import LLM
from mmgem.models.packing import PackedOutput, Packing, Segment, pack_shared_prefix
from mmgem.models.pooling import pool_boxes, pool_full

_ALIGNED = ("visual_projection.", "logit_scale", "logit_bias")


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
    """The assembled network. Build it from a config; weights come from a checkpoint or from base models.

    Other networks (``model.kind``, :data:`mmgem.models.networks.NETWORKS`) are subclasses that say below what
    they can and override what they do otherwise.
    """

    embeds: ClassVar[bool] = True
    """Whether it has embeddings of images and texts."""
    captions: ClassVar[bool] = True
    """Whether it predicts texts from images."""
    regions: ClassVar[bool] = True
    """Whether boxes of an image are what whole images are."""
    captions_from_embedding: ClassVar[bool] = True
    """Whether an image's embedding is all that captions see of it; else they are made from its map."""
    keeps_features: ClassVar[bool] = False
    """Whether pooled features are kept of an image, from which the embedding is made when asked for, and not
    the embedding itself."""
    own_text: ClassVar[bool] = False
    """Whether its text transformer is its own, random at first: of ``init.llm`` the tokenizer alone is
    taken."""
    frozen: ClassVar[tuple[str, ...]] = ()
    """Groups of the optimiser that never train: ``llm``, ``embeddings``, ``encoder``."""
    plain_blocks: ClassVar[bool] = True
    """Whether nothing is between the LLM's blocks: else they cannot be sharded, compiled, adapted or computed
    again."""
    plain_embedding: ClassVar[bool] = True
    """Whether its embeddings are those of the formulas above: else they are neither exported as graphs nor
    rotated."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.encoder: Encoder = encoder_class(config.encoder).build(config.encoder)
        self.llm = LLM(config.llm.config)
        width = self.llm.width
        self.visual_projection: nn.Module = nn.Identity()
        self.visual_connector: Connector | nn.Identity = nn.Identity()
        if self.encoder.sees_images:
            if self.embeds:
                self.visual_projection = projection(
                    config.projection, self.encoder.channels, config.dim, config.dropout
                )
            if self.captions and self.connects:
                self.visual_connector = connector_class(config.connector).build(
                    self.visual_width, width, config.visual_tokens, config.connector.config
                )
        self.text_projection: nn.Module = nn.Identity()
        if self.embeds:
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

    @property
    def connects(self) -> bool:
        """Whether images are put before the LLM by a connector."""
        return True

    @property
    def visual_width(self) -> int:
        """W: numbers in each vector that is kept of an image."""
        return self.encoder.channels if self.keeps_features else self.config.dim

    def trains(self, name: str) -> bool:
        """Whether the parameter ``name`` has a part in what is learned, if its group trains."""
        return True

    def parameter_group(self, name: str, parameter: nn.Parameter) -> str:
        """The group of the optimiser that a parameter is in: ``encoder`` (with h1, temperature and bias where
        they are the encoder's own), ``llm``, ``embeddings`` or ``heads``."""
        if name.startswith("encoder.") or (self.encoder.aligned and name.startswith(_ALIGNED)):
            return "encoder"
        if name.startswith("llm."):
            table = self.llm.lm.get_input_embeddings().weight
            return "embeddings" if parameter is table else "llm"
        return "heads"

    def load_base_llm(self, lm: nn.Module) -> None:
        """Take the weights of the transformers model that ``init.llm`` names."""
        self.llm.lm.load_state_dict(lm.state_dict())

    @torch.no_grad()
    def take_alignment(self, alignment: Alignment) -> None:
        """Take h1, temperature and bias of a checkpoint whose vision tower is the encoder. Raises
        ``ConfigError`` where there is no linear h1 of that shape."""
        last = self.visual_projection[-1] if isinstance(self.visual_projection, nn.Sequential) else None
        if len(list(self.visual_projection.parameters())) != 2 or not isinstance(last, nn.Linear):
            raise ConfigError(
                'model.projection: an encoder that is aligned with texts has h1 of its own: "linear", in a '
                "network with embeddings"
            )
        last.weight.copy_(alignment.projection)
        last.bias.zero_()
        self.logit_scale.copy_(alignment.logit_scale)
        self.logit_bias.copy_(alignment.logit_bias)

    def refuse(self, what: str) -> UsageError:
        """The error for ``what`` this network cannot do."""
        return UsageError(f"this model {what} (it is of kind {self.config.kind!r})")

    def loss_parameters(self) -> list[nn.Parameter]:
        """What belongs to losses alone, scalars all: the contrastive temperature and bias."""
        return [self.logit_scale, self.logit_bias]

    def to_inference_dtype(self, dtype: torch.dtype | str) -> MMGEMNetwork:
        """Put the encoder and the LLM into ``dtype`` (or one by its name), for use, not for training; the
        projections, embeddings and similarities stay float32. bfloat16 is faster where there is hardware for
        it (AVX512-BF16, AMX, a GPU)."""
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.encoder.to(dtype)
        for llm in self.llms:
            llm.to(dtype)
        return self

    @property
    def llms(self) -> list[LLM]:
        """The LLM, and others that a network of another kind has."""
        return [module for module in self.modules() if isinstance(module, LLM)]

    @property
    def prefix_length(self) -> int:
        """P: LLM positions one image or region takes, [CAP] not counted."""
        grid = self.config.visual_grid
        return self.config.visual_tokens * (1 + (grid * grid if grid > 1 else 0))

    def encode_image(self, maps: Tensor, boxes: Tensor | None = None) -> Tensor:
        """Embeddings of whole images or boxes, not normalised; pooled features where ``keeps_features``.

        ``maps``: ``(B, H, W, C)``. ``boxes``: ``(B, K, 4)`` in pixels of the encoder's input. Returns
        ``(B, 1 + g*g or 1, D)`` for whole images, ``(B, K, 1 + g*g or 1, D)`` for boxes: the embedding
        itself first, then its tiles where ``visual_grid`` > 1 (they only feed captions). Raises
        ``UsageError`` for boxes where it has no ``regions``.
        """
        pooled = self.pool_image(maps, boxes)
        return pooled if self.keeps_features else self.visual_projection(pooled)

    def pool_image(self, maps: Tensor, boxes: Tensor | None = None) -> Tensor:
        """As :meth:`encode_image`, features ``(..., 1 + g*g or 1, C)``."""
        if boxes is not None and not self.regions:
            raise self.refuse("has no regions")
        grid, side = self.config.visual_grid, float(self.encoder.size)
        places, whole = self.encoder.split_map(maps)
        if boxes is None:
            pooled = whole[:, None]
            if grid > 1:
                pooled = torch.cat([pooled, pool_full(places, grid)], 1)
        else:
            pooled = pool_boxes(places, boxes, (side, side))
            if grid > 1:
                pooled = torch.cat([pooled, pool_boxes(places, boxes, (side, side), grid)], 2)
        return pooled

    def image_embeddings(self, visual: Tensor) -> Tensor:
        """The embeddings ``(B, D)``, not normalised, in :meth:`encode_image` output ``(B, n, W)``. Raises
        ``UsageError`` where it has none."""
        if not self.embeds:
            raise self.refuse("has no embeddings")
        first = visual[:, 0]
        return self.visual_projection(first) if self.keeps_features else first

    def window_embeddings(self, pooled: Tensor) -> Tensor:
        """Embeddings ``(..., D)`` of pooled features ``(..., C)`` of windows of a map. Raises ``UsageError``
        where it has no ``regions``."""
        if not (self.regions and self.embeds):
            raise self.refuse("has no regions")
        return self.visual_projection(pooled)

    def project_visual_prefix(self, visual: Tensor) -> Tensor:
        """V_in: :meth:`encode_image` output ``(B, 1 + tiles, W)`` -> LLM input vectors ``(B, P, H)``; or
        whatever else captions are shown of an image. Raises ``UsageError`` where there are none."""
        if not self.captions:
            raise self.refuse("writes no captions")
        return self.visual_connector(visual)

    def project_text_prefix(self, texts: Tensor) -> Tensor:
        """:meth:`project_visual_prefix` of embeddings of texts ``(B, 1, D)`` in the place of images'. Raises
        ``UsageError`` where captions see more of an image than its embedding."""
        if not self.captions_from_embedding or not isinstance(self.visual_connector, Connector):
            raise self.refuse("captions no embeddings")
        return self.visual_connector.from_text(texts)

    def caption_start(self, prefixes: Tensor) -> Tensor:
        """What the LLM reads before the first word of a caption: ``(B, P, H)`` of
        :meth:`project_visual_prefix` -> ``(B, P + 1, H)``, with ``[CAP]``."""
        return torch.cat([prefixes, self.cap_token.expand(len(prefixes), 1, -1).to(prefixes)], 1)

    def caption_states(
        self,
        inputs: Tensor,
        positions: Tensor,
        allowed: Tensor | None,
        cache: Any,
        prefixes: Tensor,
        rows: Tensor | None = None,
    ) -> Tensor:
        """The LLM over captions that are being written: arguments and result of :meth:`LLM.forward`.
        ``prefixes``: of :meth:`project_visual_prefix`, ``rows`` ``(B,)``: which of them each row has; None:
        its own."""
        return self.llm(inputs, positions, allowed, cache)

    def match_scores(self, visual: Tensor, ids: Sequence[Tensor]) -> Tensor | None:
        """How well each of B images ``(B, n, W)`` and the text beside it match: logits ``(B,)`` of a head
        made for that; None: there is none."""
        return None

    def encode_text(self, ids: Sequence[Tensor]) -> Tensor:
        """Text embeddings ``(B, D)``, not normalised, of B token sequences (each 1-D int64)."""
        if self.text_graph is not None:
            return self.text_graph(ids)
        return self.read(ids).embeddings

    def read(
        self, texts: Sequence[Tensor], captions: Sequence[Tensor] = (), visual: Tensor | None = None
    ) -> PackedOutput:
        """Texts to embed and captions to predict in one pass. ``visual``: :meth:`encode_image` output
        ``(M, n, W)``, one a caption; None: there are no captions to predict. ``token_indices`` has the texts
        first. Raises ``UsageError`` for what it cannot do."""
        segments = self.text_segments(texts)
        before = sum(len(s.ids) + 1 for s in segments if s.prefix is not None)
        if visual is not None:
            segments += self.caption_segments(captions, self.project_visual_prefix(visual))
        output = self.forward_packed(segments)
        return replace(output, prediction_states=output.prediction_states[before:]) if before else output

    def text_segments(self, ids: Sequence[Tensor]) -> list[Segment]:
        """Texts to embed, each 1-D int64 on the CPU, for :meth:`forward_packed`."""
        if not self.embeds and ids:
            raise self.refuse("has no embeddings")
        causal = self.config.attention == "causal"
        return [Segment(tokens, pool=True, causal=causal) for tokens in ids]

    def caption_segments(self, ids: Sequence[Tensor], prefixes: Tensor) -> list[Segment]:
        """Captions to predict, each 1-D int64 on the CPU, for :meth:`forward_packed`; ``prefixes``:
        ``(M, P, H)``, one a caption (see :meth:`project_visual_prefix`), behind which ``[CAP]`` is put.
        Raises ``ValueError`` for another number of them."""
        if len(prefixes) != len(ids):
            raise ValueError(f"{len(ids)} captions need as many prefixes, not {len(prefixes)}")
        if not ids:
            return []
        heads = self.caption_start(prefixes)
        return [Segment(tokens, prefix) for tokens, prefix in zip(ids, heads.unbind(), strict=True)]

    def forward_packed(self, segments: Sequence[Segment], row_length: int = 64) -> PackedOutput:
        """One pass of the LLM over sequences of any kind, packed into rows of ``row_length`` positions (more
        where one is longer): none is padded, and none sees another but the one it continues.

        Raises ``ValueError`` if one continues a segment that continues another.
        """
        device = self.emb_token.device
        counts = torch.tensor([len(s.ids) for s in segments])
        prefixes = [s.prefix for s in segments if s.prefix is not None]
        offsets = torch.tensor([0 if s.prefix is None else len(s.prefix) for s in segments])
        pool = torch.tensor([s.pool for s in segments])
        parents = torch.tensor([s.parent for s in segments])
        packing = pack_shared_prefix((offsets + counts + pool).tolist(), parents, row_length)

        tokens = self.llm.embed(torch.cat([s.ids for s in segments]).to(device))
        token_indices = packing.span(offsets, counts)
        inputs = tokens.new_zeros(packing.segments.numel(), self.llm.width)
        inputs = inputs.index_copy(0, token_indices.to(device), tokens)
        pooled = pool.nonzero()[:, 0]
        ends = packing.flat((offsets + counts)[pooled], pooled).to(device)
        inputs = inputs.index_copy(0, ends, self.emb_token.expand(len(ends), -1).to(tokens.dtype))
        prefixed = torch.tensor([i for i, s in enumerate(segments) if s.prefix is not None], dtype=torch.long)
        if prefixes:
            at = packing.span(torch.zeros_like(prefixed), offsets[prefixed], prefixed).to(device)
            inputs = inputs.index_copy(0, at, torch.cat(prefixes).to(tokens.dtype))

        causal = torch.tensor([s.causal for s in segments])
        allowed = packing.allowed(True if causal.all() else causal).to(device)
        states, pool_states = self.run_packed(
            inputs.view(*packing.segments.shape, -1), packing, allowed, segments
        )

        predicting = packing.span(offsets[prefixed] - 1, counts[prefixed] + 1, prefixed).to(device)
        return PackedOutput(
            hidden_states=states,
            packing=packing,
            embeddings=self._pool_text(pool_states, packing, offsets + counts, pooled, ends),
            token_indices=token_indices,
            prediction_states=states[predicting],
        )

    def run_packed(
        self, inputs: Tensor, packing: Packing, allowed: Tensor, segments: Sequence[Segment]
    ) -> tuple[Tensor, Tensor]:
        """The LLM over packed rows ``(R, L, H)``, of which ``allowed`` ``(R, L, L)`` is the mask: hidden
        states ``(R * L, H)`` that predict tokens, and those that embeddings are made of."""
        states = self.llm(inputs, packing.positions.to(inputs.device), allowed).flatten(0, 1)
        return states, states

    def _pool_text(
        self, states: Tensor, packing: Packing, lengths: Tensor, pooled: Tensor, ends: Tensor
    ) -> Tensor:
        """Embeddings of the segments ``pooled``, which have ``lengths`` positions before ``[EMB]`` at
        ``ends``; what a segment continues belongs to its mean."""
        if self.config.text_pool == "emb":
            return self.text_projection(states[ends])
        owner, counts, segments = torch.arange(len(pooled)), lengths[pooled] + 1, pooled
        if packing.parents is not None and (packing.parents[pooled] >= 0).any():
            continuing = (packing.parents[pooled] >= 0).nonzero()[:, 0]
            before = packing.parents[pooled[continuing]]
            whole = lengths + torch.isin(torch.arange(len(lengths)), pooled)
            owner = torch.cat([owner, continuing])
            counts, segments = torch.cat([counts, whole[before]]), torch.cat([segments, before])
        at = packing.span(torch.zeros_like(counts), counts, segments).to(states.device)
        sizes = torch.zeros(len(pooled), dtype=torch.long).index_add(0, owner, counts)
        owner = torch.repeat_interleave(owner, counts).to(states.device)
        total = states.new_zeros(len(pooled), states.shape[-1]).index_add(0, owner, states[at])
        return self.text_projection(total / sizes[:, None].to(states))
