"""Connectors: shapes, scale, rotation, and configs that cannot be built; encoders by name as well."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import toys

from mmgem.config import ConnectorConfig, EncoderConfig, ModelConfig, from_dict, to_dict
from mmgem.encoders import encoder_class
from mmgem.encoders.base import Encoder
from mmgem.encoders.feature_cache import encoder_fingerprint
from mmgem.errors import ConfigError, UsageError
from mmgem.export.rotate import rotate_embedding_space
from mmgem.models.connectors import CONNECTORS, connector_class
from mmgem.models.connectors.base import Connector

KINDS = ("linear", "mlp")


@pytest.mark.parametrize("kind", KINDS)
def test_a_connector_makes_vectors_like_the_llms(kind: str) -> None:
    torch.manual_seed(0)
    connector = CONNECTORS[kind].build(64, 32, 3, {})
    connector.init_weights(0.05)
    with torch.no_grad():
        vectors = connector(torch.randn(200, 2, 64))
    assert vectors.shape == (200, 6, 32)
    assert 0.03 < float(vectors.std()) < 0.07
    each = connector(torch.randn(2, 64)[:, None])  # k vectors of an embedding lie beside each other
    assert each.shape == (2, 3, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rotated_space_is_read_as_before(kind: str) -> None:
    network = toys.network(visual_tokens=2, connector=ConnectorConfig(kind))
    maps = torch.randn(3, 4, 4, 16)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0].astype(np.float32)
    with torch.no_grad():
        visual = network.encode_image(maps)
        before = network.project_visual_prefix(visual)
        rotate_embedding_space(network, rotation)
        turned = network.encode_image(maps)
        torch.testing.assert_close(turned, visual @ torch.from_numpy(rotation), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(network.project_visual_prefix(turned), before, atol=1e-5, rtol=1e-4)


def test_a_connector_that_cannot_be_rotated_says_so_and_leaves_the_model_alone() -> None:
    network = toys.network()
    network.visual_connector = Connector()
    before = network.text_projection[-1].weight.clone()
    with pytest.raises(UsageError, match="cannot be rotated under a Connector"):
        rotate_embedding_space(network, np.eye(8, dtype=np.float32)[::-1].copy())
    assert torch.equal(network.text_projection[-1].weight, before)


def test_a_model_without_a_connector_in_its_config_has_the_linear_one() -> None:
    plain = to_dict(toys.network().config)
    del plain["connector"]
    assert from_dict(ModelConfig, plain).connector == ConnectorConfig("linear")


def test_names_and_configs_that_are_none() -> None:
    with pytest.raises(
        ConfigError, match=r"model\.connector\.kind: .*'q' \(known: .*linear, mlp, unit_mlp\)"
    ):
        connector_class(ConnectorConfig("q"))
    with pytest.raises(ConfigError, match=r"model\.encoder\.kind: .*'q' \(known: .*none, transformers\)"):
        encoder_class(EncoderConfig("q"))
    for kind in KINDS:
        with pytest.raises(ConfigError, match=r"model\.connector\.config: .*'deep'"):
            CONNECTORS[kind].build(4, 4, 1, {"deep": 2})
    with pytest.raises(ConfigError, match=r"model\.connector\.config\.hidden: 0 is not 1 or more"):
        CONNECTORS["mlp"].build(4, 4, 1, {"hidden": 0})
    for kind in ("efficientnet_lite0", "none"):
        config = EncoderConfig(kind, config={"deep": 2})
        with pytest.raises(ConfigError, match=r"model\.encoder\.config: .*'deep'"):
            encoder_class(config).build(config)
    for kind, fields in (("none", {}), ("transformers", toys.ENCODERS["clip"].config)):
        config = EncoderConfig(kind, 3, fields)
        with pytest.raises(ConfigError, match=rf"model\.encoder\.freeze_until: .*'{kind}' has no stages"):
            encoder_class(config).build(config)


class _Fixed(Encoder):
    channels, size = 3, 8

    def __init__(self, cells: int):
        super().__init__()
        self.cells = cells


def test_encoders_without_weights_do_not_share_a_cache() -> None:
    assert encoder_fingerprint(_Fixed(2)) == encoder_fingerprint(_Fixed(2).eval())
    assert encoder_fingerprint(_Fixed(2)) != encoder_fingerprint(_Fixed(3))
