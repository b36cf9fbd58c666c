"""What every encoder is: pixels in, a feature map ``(B, H, W, C)`` out (behind whose channels one that is
aligned with texts packs what it says of the whole image).

An encoder is cut in two: ``frozen_stem`` (pixels to features that never change while it is frozen, so they
are computed once and cached) and ``trainable_head`` (the rest, which may train); one after the other they are
the encoder. To add one, subclass :class:`Encoder` in a file of its own and register the class in
:data:`mmgem.encoders.ENCODERS`; what it does not say itself has the defaults below.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmgem.config import EncoderConfig
from mmgem.errors import CheckpointError, ConfigError, UsageError


@dataclass
class Alignment:
    """How the images of a checkpoint of two towers lie in a space with texts. ``projection``: ``(D, C)``;
    logits are ``cosines * exp(logit_scale) + logit_bias``, both scalars."""

    projection: Tensor
    logit_scale: Tensor
    logit_bias: Tensor


class BaseWeights(NamedTuple):
    """What base weights bring: ``tensors`` by the encoder's own names (none: it starts as it is built),
    ``config`` completed by them, and their ``alignment`` with texts if the encoder is aligned."""

    tensors: dict[str, Tensor]
    config: EncoderConfig
    alignment: Alignment | None = None


def take_base_config(config: EncoderConfig, where: str, read: Callable[[], dict[str, Any]]) -> EncoderConfig:
    """``config`` completed by what ``read`` finds of base weights, unless it names its own ``model_type``.
    ``where``: the table of a recipe that describes it. Raises ``ConfigError`` for a ``CheckpointError``."""
    if "model_type" in config.config:
        return config
    try:
        base = read()
    except CheckpointError as error:
        raise ConfigError(f"init.encoder: {error}; or describe {where}") from error
    return dataclasses.replace(config, config=base | config.config)


def refuse_contradictions(config: EncoderConfig, base: Any, where: str, ours: str) -> None:
    """Raise ``ConfigError`` for a field of ``config``, but for ``ours``, that the config ``base`` of base
    weights has another value of."""
    for key, value in config.config.items():
        if key != ours and (there := getattr(base, key, None)) != value:
            raise ConfigError(f"{where}.{key}: {value!r}, but the base weights have {there!r}")


def pack_whole(patches: Tensor, whole: Tensor) -> Tensor:
    """A map ``(B, H, W, C)`` with a feature ``(B, C)`` of the whole image behind its channels: each place
    holds as many of its numbers as it takes, in reading order."""
    count, height, width, channels = patches.shape
    each = -(-channels // (height * width))
    padded = F.pad(whole, (0, each * height * width - channels))
    return torch.cat([patches, padded.view(count, height, width, each)], -1)


class Encoder(nn.Module):
    """A vision encoder cut in two. ``channels`` is C of the map, ``size`` its input side in pixels.

    The constructor takes the fields of ``model.encoder.config``, and ``freeze_until`` if
    ``can_freeze_stages``.
    """

    channels: int
    size: int
    media: ClassVar[tuple[str, ...]] = ("image", "video")
    """Kinds of media that it sees."""
    sees_images: ClassVar[bool] = True
    """False: it stands in for an encoder in a model of texts only."""
    can_freeze_stages: ClassVar[bool] = False
    """Whether ``model.encoder.freeze_until`` says where it is cut."""
    aligned: bool = False
    """Whether its base weights lie in a space with texts: they bring a projection, a temperature and a bias,
    which train only if it does, and its map has the whole image packed behind (:func:`pack_whole`)."""
    pulled_weights: ClassVar[tuple[str, ...]] = ()
    """Names of base weights that ``mmgem pull`` brings, for ``init.encoder``."""
    training_dtype = torch.float32
    """What it computes in while it trains; its weights and its map stay in float32."""

    @classmethod
    def build(cls, config: EncoderConfig) -> Self:
        """The encoder of ``config``, with random weights. Raises ``ConfigError`` naming the field."""
        options = dict(config.config)
        if cls.can_freeze_stages:
            options["freeze_until"] = config.freeze_until
        cls.check_freezing(config)
        try:
            inspect.signature(cls).bind(**options)
        except TypeError as error:
            raise ConfigError(f"model.encoder.config: {error}") from error
        return cls(**options)

    @classmethod
    def check_freezing(cls, config: EncoderConfig) -> None:
        """Raise ``ConfigError`` if ``config`` cuts an encoder that has no stages."""
        if config.freeze_until is not None and not cls.can_freeze_stages:
            raise ConfigError(
                f"model.encoder.freeze_until: an encoder of kind {config.kind!r} has no stages to cut at"
            )

    @classmethod
    def base_config(cls, source: str, config: EncoderConfig) -> EncoderConfig:
        """``config`` with what only the base weights ``source`` (a folder or a hub id) say of it; weights are
        not read. Raises ``ConfigError``."""
        return config

    @classmethod
    def load_base(cls, source: str, config: EncoderConfig) -> BaseWeights:
        """The base weights ``source``. Raises ``CheckpointError`` or ``ConfigError``."""
        return BaseWeights({}, config)

    @classmethod
    def own_space(cls, config: EncoderConfig) -> int | None:
        """D of the space that it is ``aligned`` with. Raises ``ConfigError``."""
        return None

    @classmethod
    def own_preprocessing(cls, source: str, config: EncoderConfig) -> dict[str, Any]:
        """Fields of ``preprocessing`` that the base weights ``source`` fix. Raises ``ConfigError``."""
        return {}

    @classmethod
    def load_classifier(cls, source: str) -> tuple[Tensor, Tensor, list[str] | None]:
        """Weight ``(classes, C)``, bias ``(classes,)`` and, if known, the names of the classes of the linear
        classifier on the mean of the map that the base weights ``source`` have. Raises ``ConfigError`` if
        they have none, ``CheckpointError`` for damaged weights."""
        raise ConfigError(f"{source}: an encoder of this kind has no classifier")

    @classmethod
    def trains_when_cached(cls, config: EncoderConfig) -> bool:
        """Whether something of it lies above what is cached, so that it can train all the same."""
        if cls.can_freeze_stages:
            return config.freeze_until is not None
        return cls.trainable_head is not Encoder.trainable_head

    def check_media(self, kind: str) -> None:
        """Raise ``UsageError`` for a kind of media that it does not see."""
        if kind not in self.media:
            raise UsageError(f"this model's encoder reads no {kind}, only {' and '.join(self.media)}")

    def frozen_stem(self, pixels: Tensor) -> Tensor:
        """``(B, 3, S, S)`` float, normalised -> features ``(B, h, w, c)``, the part that can be cached."""
        raise NotImplementedError

    def trainable_head(self, features: Tensor) -> Tensor:
        """Features of :meth:`frozen_stem` -> map ``(B, H, W, C)``."""
        return features

    def split_map(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """The map of places ``(B, H, W, C)`` and the feature of the whole image ``(B, C)`` in what
        :meth:`forward` gives: the mean of the map, or what an encoder that is ``aligned`` says of it."""
        if not self.aligned:
            return maps, maps.mean((1, 2))
        patches, packed = maps[..., : self.channels], maps[..., self.channels :]
        return patches, packed.flatten(1)[:, : self.channels]

    def forward(self, pixels: Tensor) -> Tensor:
        """``(B, 3, S, S)`` float -> ``(B, H, W, C)`` float32, whatever the weights are in."""
        dtype = next((p.dtype for p in self.parameters()), pixels.dtype)
        return self.trainable_head(self.frozen_stem(pixels.to(dtype))).float()

    @torch.no_grad()
    def check_maps(self) -> None:
        """Read two random images at once and the first of them alone. Raises ``ConfigError`` unless that
        gives each its own map of finite numbers, which is square where it sees images; other random numbers
        stay as they would be."""
        training, device = self.training, next((p.device for p in self.parameters()), torch.device("cpu"))
        generator = torch.Generator().manual_seed(0)
        pixels = torch.randn(2, 3, self.size, self.size, generator=generator).to(device)
        with torch.random.fork_rng(devices=[]):
            self.eval()
            both, alone = self.split_map(self(pixels))[0], self.split_map(self(pixels[:1]))[0]
            self.train(training)
        height, width = both.shape[1:3] if both.ndim == 4 else (0, 0)
        square = height == width or "image" not in self.media
        if both.shape != (2, height, width, self.channels) or alone.shape[1:] != both.shape[1:] or not square:
            raise ConfigError(
                f"model.encoder: two images of {self.size} pixels became {tuple(both.shape)}, "
                f"not (2, H, H, {self.channels})"
            )
        if not both.isfinite().all():
            raise ConfigError("model.encoder: its map of an image has numbers that are not finite")
        if (both[0] - alone[0]).abs().max() > 1e-2 * both.abs().max():
            raise ConfigError("model.encoder: its map of an image depends on the other images beside it")

    def frozen_parameters(self) -> list[nn.Parameter]:
        """Parameters used by :meth:`frozen_stem`; frozen whenever its output is cached."""
        return list(self.parameters())


class ConfiguredEncoder(Encoder):
    """An encoder whose constructor takes ``model.encoder.config`` whole, a config of transformers with fields
    of its own, and checks it."""

    @classmethod
    def build(cls, config: EncoderConfig) -> Self:
        """The encoder of ``config``, with random weights. Raises ``ConfigError`` naming the field."""
        cls.check_freezing(config)
        return cls(config.config)
