"""The network before step 0: base weights of encoder and LLM, or an earlier checkpoint."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from mmgem.checkpoints.download import SOURCES, base_folder
from mmgem.checkpoints.model_folder import build, check_size, load_model
from mmgem.checkpoints.resolve import own_folder, read_config, resolve
from mmgem.checkpoints.rounded import GROUP_OF_4_BITS
from mmgem.checkpoints.tensors import dequantize, quantize
from mmgem.config import EncoderConfig, InitConfig, ModelConfig, Preprocessing, Recipe, to_dict
from mmgem.config.checks import entries, free_on_init
from mmgem.config.compare import difference
from mmgem.data.tokens import Tokenizer
from mmgem.encoders import encoder_class
from mmgem.encoders.base import BaseWeights
from mmgem.errors import CheckpointError, ConfigError
from mmgem.models.llm import truncate
from mmgem.models.network import MMGEMNetwork
from mmgem.models.networks import make_network, network_class
from mmgem.models.packing_check import check_packing
from mmgem.utils.hf_config import export_config
from mmgem.utils.pretrained import load_pretrained, local_folder, refuse_missing

C = TypeVar("C", ModelConfig, Preprocessing)


def init_network(recipe: Recipe) -> tuple[MMGEMNetwork, Tokenizer]:
    """Build the network of ``recipe`` with its starting weights.

    Raises ``ConfigError`` for settings that exclude each other and for language models that packed rows are
    not right for, ``CheckpointError`` for weights that do
    not fit.
    """
    torch.manual_seed(recipe.train.seed)
    network, tokenizer = _from_checkpoint(recipe) if recipe.init.checkpoint else _from_bases(recipe)
    if network.encoder.sees_images:
        network.encoder.check_maps()
    check_packing(network.llm)
    longest, positions = network.prefix_length + 1 + tokenizer.prep.max_text_tokens, network.llm.positions
    if longest > positions:
        raise ConfigError(
            f"preprocessing.max_text_tokens: image and text are up to {longest} tokens, "
            f"more than the {positions} that the LLM reads"
        )
    return network, tokenizer


def source_folder(name: str) -> Path:
    """A base model's folder: a pulled name, or a path; a hub id is resolved by what reads the folder."""
    return base_folder(name) if name in SOURCES else Path(name)


def _from_bases(recipe: Recipe) -> tuple[MMGEMNetwork, Tokenizer]:
    lm, old = None, None
    if network_class(recipe.model).own_text:
        llm_folder = _llm_folder(recipe.init.llm)[0]
    else:
        lm, llm_folder, old = _language_model(recipe.init)
        _agree(recipe.model.llm.config, lm, "model.llm.config")
    kind, source = encoder_class(recipe.model.encoder), recipe.init.encoder
    seen = own_folder(source)
    if seen is not None:
        base = BaseWeights({}, recipe.model.encoder)
    else:
        source = str(base_folder(source)) if source in kind.pulled_weights else source
        base = kind.load_base(source, recipe.model.encoder)
        if kind.aligned:
            source = str(local_folder(source))
    config, prep = config_from_encoder(recipe, source, base.config)
    if lm is not None:
        config.llm = dataclasses.replace(config.llm, config=export_config(lm.config))
    network = make_network(config)
    check_size(network, prep)
    if lm is not None:
        network.load_base_llm(lm)
    if base.tensors:
        network.encoder.load_state_dict(base.tensors)
    if network.embeds and base.alignment is not None:
        network.take_alignment(base.alignment)
    network.init_special_embeddings()
    if old is not None:
        _take_side(network, old, _TEXT_SIDE, "init.llm")
    if seen is not None:
        _take_side(network, load_model(seen)[0], _IMAGE_SIDE, "init.encoder")
    tokenizer = Tokenizer.from_folder(llm_folder, prep)
    tokenizer.check_vocabulary(network.llm.vocabulary, f"init.llm: {llm_folder}")
    return network, tokenizer


def _from_checkpoint(recipe: Recipe) -> tuple[MMGEMNetwork, Tokenizer]:
    assert recipe.init.checkpoint is not None
    old, tokenizer = load_model(resolve(recipe.init.checkpoint))
    config, tokenizer.prep = config_from_checkpoint(recipe, old.config, tokenizer.prep)
    network = build(config)
    network.load_state_dict(old.state_dict())
    return network, tokenizer


def config_from_checkpoint(
    recipe: Recipe, old: ModelConfig, prep: Preprocessing
) -> tuple[ModelConfig, Preprocessing]:
    """What a checkpoint's model and preprocessing are when ``recipe`` goes on from it.

    Raises ``ConfigError`` for fields that the checkpoint decides."""
    _keep(recipe.model, old, "model")
    _keep(recipe.preprocessing, prep, "preprocessing")
    free = entries(recipe.preprocessing)
    changed = {e.name: e.value for e in free if e.fact.free_on_init and e.value != e.default}
    config = dataclasses.replace(old, dropout=recipe.model.dropout)
    config.encoder = _cut_as_asked(config.encoder, recipe)
    return config, dataclasses.replace(prep, **changed)


def config_from_encoder(
    recipe: Recipe, source: str, encoder: EncoderConfig
) -> tuple[ModelConfig, Preprocessing]:
    """What model and preprocessing are where the base weights ``source`` of an encoder that is aligned with
    texts, or a model of ours, decide of them: the width of the space and what is done to images.

    Raises ``ConfigError`` for fields that a recipe sets otherwise."""
    if folder := own_folder(source):
        return _own_image_side(recipe, *read_config(folder))
    kind, space = encoder_class(encoder), encoder_class(encoder).own_space(encoder)
    config = dataclasses.replace(recipe.model, encoder=encoder)
    prep = _fixed(recipe.preprocessing, kind.own_preprocessing(source, encoder), "preprocessing")
    if space is not None:
        config = _fixed(config, {"dim": space}, "model")
        for name in ("logit_scale", "logit_bias"):
            if getattr(config, name) != getattr(ModelConfig(), name):
                raise ConfigError(f"model.{name}: init.encoder brings its own; leave it out")
    return config, prep


def _own_image_side(
    recipe: Recipe, old: ModelConfig, prep: Preprocessing
) -> tuple[ModelConfig, Preprocessing]:
    encoder, model = _cut_as_asked(old.encoder, recipe), recipe.model
    if model.encoder == _cut_as_asked(EncoderConfig(), recipe) and encoder.freeze_until is not None:
        model = dataclasses.replace(model, encoder=EncoderConfig())  # which says where it is cut alone
    own = {"encoder": encoder, "dim": old.dim, "projection": old.projection}
    images = {name: getattr(prep, name) for name in _IMAGE_PREPROCESSING}
    return _fixed(model, own, "model"), _fixed(recipe.preprocessing, images, "preprocessing")


def _cut_as_asked(encoder: EncoderConfig, recipe: Recipe) -> EncoderConfig:
    """``encoder`` cut where ``recipe`` says, if it has stages to cut at: that changes what is cached and
    trained, not the function."""
    if not encoder_class(encoder).can_freeze_stages:
        return encoder
    return dataclasses.replace(encoder, freeze_until=recipe.model.encoder.freeze_until)


def _fixed(asked: C, own: dict[str, Any], where: str) -> C:
    """``asked`` with the values ``own``; refuses another that a recipe sets (other than the default)."""
    usual = type(asked)()
    for name, value in own.items():
        if getattr(asked, name) not in (value, getattr(usual, name)):
            told = f"{getattr(asked, name)!r}, but init.encoder has {value!r}"
            raise ConfigError(f"{where}.{name}: {told}; leave it out")
    return dataclasses.replace(asked, **own)


def _keep(asked: Any, kept: Any, where: str) -> None:
    """Refuse what a recipe sets (other than the default) against the checkpoint it starts from."""
    plain, free = to_dict(asked), free_on_init(asked, where)
    set_here = difference(to_dict(type(asked)()), plain, where)
    if wrong := sorted(set(set_here) & set(difference(to_dict(kept), plain, where)) - free):
        raise ConfigError(f"{wrong[0]}: differs from init.checkpoint, which keeps its own; leave it out")


def _agree(asked: dict[str, Any], net: nn.Module, where: str) -> None:
    """Refuse config fields of a recipe that the base weights contradict."""
    for key, value in asked.items():
        own = getattr(net.config, key, None)
        if own != value:
            raise ConfigError(f"{where}.{key}: {value!r}, but the base weights have {own!r}")


def _llm_folder(name: str) -> tuple[Path, bool]:
    """The folder that ``init.llm`` means, and whether it is one of our models."""
    if folder := own_folder(name):
        return folder, True
    try:
        return local_folder(source_folder(name)), False
    except CheckpointError as error:
        raise CheckpointError(f"init.llm: {error}") from error


def _language_model(options: InitConfig) -> tuple[nn.Module, Path, MMGEMNetwork | None]:
    """The LLM that training starts from, the folder of its tokenizer, and our own model it is of, if any."""
    from transformers import AutoModelForCausalLM

    old = None
    folder, ours = _llm_folder(options.llm)
    try:
        if ours:
            old, _ = load_model(folder)
            lm = old.llm.lm
        else:
            lm, found = load_pretrained(AutoModelForCausalLM, folder)
            refuse_missing(found, str(folder), spare="pooler")
    except CheckpointError as error:
        raise CheckpointError(f"init.llm: {error}") from error
    if options.layers is not None or options.keep_layers:
        truncate(lm, options.keep_layers or range(options.layers or 0))
    if options.quantize_embeddings:
        table = lm.get_input_embeddings().weight
        if table.shape[1] % GROUP_OF_4_BITS:
            width = f"the LLM's width {table.shape[1]} is no multiple of {GROUP_OF_4_BITS}"
            raise ConfigError(f"init.quantize_embeddings: {width}")
        with torch.no_grad():
            table.copy_(dequantize(quantize(table, 4), 4))
    return lm, folder, old


_TEXT_SIDE = ("text_projection.", "visual_connector.", "emb_token", "cap_token", "logit_scale")
_IMAGE_SIDE = ("encoder.", "visual_projection.", "logit_scale", "logit_bias")
_IMAGE_PREPROCESSING = ("size", "mean", "std", "resize", "interpolation", "scales", "region_scales")


def _take_side(network: MMGEMNetwork, old: MMGEMNetwork, side: tuple[str, ...], where: str) -> None:
    """Copy into ``network`` what ``old`` has learned on one side: of texts, beside its LLM and without what
    reads its encoder (h1), or of images.

    Raises ``ConfigError`` for shapes that differ."""
    values = network.state_dict()
    for name, value in old.state_dict().items():
        if not name.startswith(side) or name not in values:
            continue
        if value.shape != values[name].shape:
            sizes = f"its {name} is {tuple(value.shape)}, that of the recipe {tuple(values[name].shape)}"
            raise ConfigError(f"{where}: {sizes}; set [model] as it is there")
        values[name].copy_(value)
