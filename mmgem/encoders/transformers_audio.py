"""Audio encoders of transformers that read log-mel spectrograms: AST, and the encoder of Whisper.

A sound comes as the picture of itself (:mod:`mmgem.data.sound`), squashed to a square as any picture; here it
is brought to the bands and steps that the model reads. Its map is frequency by time (one row where the model
keeps no frequencies), so pooling is that of pictures: the mean of the whole, RoIAlign over a box in time.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from mmgem.config import EncoderConfig
from mmgem.encoders.base import BaseWeights, ConfiguredEncoder, refuse_contradictions, take_base_config
from mmgem.errors import CheckpointError, ConfigError
from mmgem.utils.hf_config import export_config, make_config
from mmgem.utils.pretrained import build_model, load_config, load_pretrained, local_folder, refuse_missing

_WHERE = "model.encoder.config"
_AST, _WHISPER = "audio-spectrogram-transformer", "whisper"
_STRIDE = 2  # of Whisper's convolutions, in steps


class SpectrogramEncoder(ConfiguredEncoder):
    """An audio encoder of transformers, whole in ``frozen_stem``.

    ``config``: the model's own, with its ``model_type``, and optionally ``size``, the side of the square that
    a spectrogram comes in. Raises ``ConfigError`` for a model of another type.
    """

    media: ClassVar[tuple[str, ...]] = ("sound",)

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        options = dict(config)
        self.model_type = options.pop("model_type", None)
        if self.model_type not in (_AST, _WHISPER):
            raise ConfigError(
                f"{_WHERE}.model_type: {self.model_type!r} is neither {_AST!r} nor {_WHISPER!r}"
            )
        self.size = options.pop("size", 512)
        made = make_config(self.model_type, options, _WHERE)
        self.net = build_model(_model_class(self.model_type), made, _WHERE)
        self.bands: int = made.num_mel_bins
        if self.model_type == _AST:
            self.steps, self.channels = made.max_length, made.hidden_size
            self.grid = self.net.embeddings.get_shape(made)
        else:
            self.steps, self.channels = _STRIDE * made.max_source_positions, made.d_model
            self.grid = 1, made.max_source_positions

    @classmethod
    def base_config(cls, source: str, config: EncoderConfig) -> EncoderConfig:
        """``config`` with the configuration of ``source``, unless it names its own ``model_type``."""
        return take_base_config(
            config, _WHERE, lambda: export_config(load_config(local_folder(source, config_only=True)))
        )

    @classmethod
    def load_base(cls, source: str, config: EncoderConfig) -> BaseWeights:
        """Weights of a transformers folder or a hub id, of Whisper those of its encoder. Raises
        ``CheckpointError`` for weights that are incomplete, ``ConfigError`` for fields that they
        contradict."""
        from transformers import AutoModel

        try:
            net, found = load_pretrained(AutoModel, local_folder(source))
        except CheckpointError as error:
            raise CheckpointError(f"init.encoder: {error}") from error
        refuse_missing(found, f"init.encoder: {source}")
        refuse_contradictions(config, net.config, _WHERE, "size")
        size = {"size": config.config["size"]} if "size" in config.config else {}
        own = net.encoder if net.config.model_type == _WHISPER else net
        weights = {f"net.{name}": value for name, value in own.state_dict().items()}
        return BaseWeights(weights, dataclasses.replace(config, config=export_config(net.config) | size))

    @classmethod
    def own_preprocessing(cls, source: str, config: EncoderConfig) -> dict[str, Any]:
        """The loudest is 1 and what is 80 dB below it -1, as Whisper has it and AST nearly."""
        return {"mean": (0.5,) * 3, "std": (0.5,) * 3, "resize": "squash"}

    def frozen_stem(self, pixels: Tensor) -> Tensor:
        """The whole model, ``(B, 3, S, S)`` -> ``(B, frequencies, times, C)``, the highest first."""
        grey = pixels.mean(1, keepdim=True).flip(2)
        read = F.interpolate(grey, (self.bands, self.steps), mode="bilinear", antialias=True)[:, 0]
        states = self.net(read.transpose(1, 2) if self.model_type == _AST else read).last_hidden_state
        # AST's class and distillation tokens come first.
        return states[:, -self.grid[0] * self.grid[1] :].unflatten(1, self.grid).flip(1)


def _model_class(model_type: str) -> Any:
    from transformers import ASTModel
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    return ASTModel if model_type == _AST else WhisperEncoder
