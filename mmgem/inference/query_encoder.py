"""Texts to embeddings without torch: what a search from the shell needs of a model, in a fifth of the time.

    t = h2(LLM(x, [EMB])_[EMB])        :mod:`mmgem.models.network`, for one text at a time

Importing torch and transformers and turning all weights back into float32 takes seconds; a query is a dozen
tokens. So for models whose LLM is a plain Llama (RMSNorm, rotary positions, grouped-query attention, SwiGLU,
all by its config) numpy computes it from the model's folder: of the token table the rows that are needed, and
of the image encoder nothing. Any other model, or one with exported graphs, is loaded as always. Weights are
the same to the bit, sums are in another order: embeddings agree to 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.checkpoints.resolve import complete, fingerprint, read_config, resolve
from mmgem.checkpoints.rounded import StoredArrays
from mmgem.config import ModelConfig
from mmgem.data.images import ImageSource
from mmgem.data.records import Box
from mmgem.data.tokens import NoEndToken, Tokenizer
from mmgem.errors import CheckpointError, UsageError
from mmgem.inference.calibration import MatchCalibration
from mmgem.utils.checksums import verify_file, warn_of_edits
from mmgem.utils.files import read_again_if_replaced
from mmgem.utils.model_files import check_file, read_json_object

_LLM_KEYS = frozenset(
    "model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads "  # noqa: SIM905
    "num_key_value_heads head_dim hidden_act rms_norm_eps rope_parameters attention_bias mlp_bias "
    "tie_word_embeddings max_position_embeddings initializer_range use_cache pad_token_id bos_token_id "
    "eos_token_id unk_token_id pretraining_tp attention_dropout architectures dtype "
    "transformers_version".split()
)
_DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "attention_bias": False,
    "mlp_bias": False,
}
"""Of a Llama whose config does not say."""

_NEEDED = (
    *("hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim"),
)
_TOKENIZERS = ("TokenizersBackend", "PreTrainedTokenizerFast")
_REMEDY = "copy or make its folder again"
_LM = "llm.lm.model"


class QueryEncoder:
    """The text side of a model, on one CPU; made by :meth:`load`."""

    def __init__(
        self,
        arrays: StoredArrays,
        config: ModelConfig,
        tokenizer: Tokenizer,
        calibration: MatchCalibration | None,
        fingerprint: str,
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.calibration, self.fingerprint = calibration, fingerprint
        self._arrays, self._read = arrays, dict[str, np.ndarray]()
        self._llm = _DEFAULTS | config.llm.config

    @classmethod
    def load(cls, name: str) -> QueryEncoder | None:
        """That of a model by its name; None if it is of a kind that only torch runs. Raises
        ``CheckpointError`` if there is no such model, or its files are damaged."""
        return _load(resolve(name))

    @property
    def dim(self) -> int:
        """D, the width of the embeddings."""
        return self.config.dim

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """``(n, D)`` float32 of unit length, as :meth:`mmgem.api.MMGEM.embed_texts`; it raises the same."""
        pieces, owners = self.tokenizer.token_parts(texts)
        rows = np.empty((len(pieces), self.dim), np.float32)
        for row, ids in zip(rows, pieces, strict=True):
            with np.errstate(over="ignore"):  # exp of what is far below 0
                row[:] = _unit(self._embed(np.array(ids, np.int64)))
        if len(rows) == len(texts):
            return rows
        sums = np.zeros((len(texts), self.dim), np.float32)
        np.add.at(sums, owners, rows)
        return _unit(sums)

    def embed_queries(self, texts: Sequence[str], regions: bool = False) -> np.ndarray:
        """What is searched for, as :meth:`mmgem.api.MMGEM.embed_queries`."""
        return self.embed_texts(self.tokenizer.query_texts(texts, regions))

    def embed_images(
        self, images: Sequence[ImageSource], boxes: Sequence[Box | None] | None = None, /
    ) -> np.ndarray:
        """Raises UsageError: images need the whole model."""
        raise UsageError("the text side of a model sees no images")

    def _weight(self, name: str) -> np.ndarray:
        if name not in self._read:
            self._read[name] = self._arrays.read(name)
        return self._read[name]

    def _embed(self, ids: np.ndarray) -> np.ndarray:
        """``(L,)`` int64 -> ``(D,)`` float32, not normalised."""
        llm = self._llm
        table = self._arrays.read(f"{_LM}.embed_tokens.weight", ids)
        states = np.concatenate([table, self._weight("emb_token")[None]])
        cosines, sines = _rotations(len(states), llm["head_dim"], float(llm["rope_parameters"]["rope_theta"]))
        for layer in range(llm["num_hidden_layers"]):
            name = f"{_LM}.layers.{layer}"
            hidden = self._normed(states, f"{name}.input_layernorm")
            states = states + self._attend(name, hidden, cosines, sines)
            hidden = self._normed(states, f"{name}.post_attention_layernorm")
            gate = hidden @ self._weight(f"{name}.mlp.gate_proj.weight").T
            up = hidden @ self._weight(f"{name}.mlp.up_proj.weight").T
            gated = gate / (1 + np.exp(-gate)) * up
            states = states + gated @ self._weight(f"{name}.mlp.down_proj.weight").T
        states = self._normed(states, f"{_LM}.norm")
        pooled = states[-1] if self.config.text_pool == "emb" else states.mean(axis=0)
        return self._weight("text_projection.1.weight") @ pooled + self._weight("text_projection.1.bias")

    def _normed(self, states: np.ndarray, name: str) -> np.ndarray:
        squares = np.square(states).mean(axis=-1, keepdims=True, dtype=np.float32)
        scale = np.float32(self._llm["rms_norm_eps"])
        return self._weight(f"{name}.weight") * (states / np.sqrt(squares + scale))

    def _attend(self, name: str, x: np.ndarray, cosines: np.ndarray, sines: np.ndarray) -> np.ndarray:
        """Grouped-query attention of ``(L, H)``, causal unless the model's texts are not."""
        llm, length = self._llm, len(x)
        heads, groups = llm["num_attention_heads"], llm["num_key_value_heads"]

        def project(kind: str, count: int) -> np.ndarray:
            weight = self._weight(f"{name}.self_attn.{kind}_proj.weight")
            return (x @ weight.T).reshape(length, count, llm["head_dim"]).transpose(1, 0, 2)

        query = _rotated(project("q", heads), cosines, sines)
        key, value = _rotated(project("k", groups), cosines, sines), project("v", groups)
        key, value = (np.repeat(part, heads // groups, axis=0) for part in (key, value))
        scores = query @ key.transpose(0, 2, 1) * np.float32(llm["head_dim"] ** -0.5)
        if self.config.attention == "causal":
            scores = np.where(np.tri(length, dtype=bool), scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        seen = (weights @ value).transpose(1, 0, 2).reshape(length, -1)
        return seen @ self._weight(f"{name}.self_attn.o_proj.weight").T


@read_again_if_replaced
def _load(folder: Path) -> QueryEncoder | None:
    folder = complete(folder)
    config, prep = read_config(folder)
    if not _is_plain(config) or (folder / "graphs").exists():
        return None
    words = _words(folder)
    if words is None:
        return None
    weights = folder / "model.safetensors"
    verify_file(weights, _REMEDY)
    arrays = StoredArrays(weights)
    try:
        tokenizer = Tokenizer(words, prep)
    except NoEndToken:
        return None
    tokenizer.rows = arrays.shapes.get(f"{_LM}.embed_tokens.weight", (0,))[0]
    if words.rows > tokenizer.rows or not _fits(arrays.shapes, config):
        return None  # what is wrong with it is said by who reads all of it
    warn_of_edits(folder)
    calibration = MatchCalibration.load(folder, config.dim)
    return QueryEncoder(arrays, config, tokenizer, calibration, fingerprint(folder))


def _is_plain(config: ModelConfig) -> bool:
    """Whether the text side of a model is what this file computes."""
    llm = _DEFAULTS | config.llm.config
    rope = llm["rope_parameters"]
    return (
        config.kind == "mmgem"
        and llm.get("model_type") == "llama"
        and llm.keys() <= _LLM_KEYS
        and all(type(llm.get(key)) is int and llm[key] > 0 for key in _NEEDED)
        and llm["num_attention_heads"] % llm["num_key_value_heads"] == 0
        and llm["head_dim"] % 2 == 0
        and isinstance(rope, dict)
        and rope.keys() == {"rope_theta", "rope_type"}
        and rope["rope_type"] == "default"
        and isinstance(rope["rope_theta"], int | float)
        and isinstance(llm["rms_norm_eps"], float)
        and llm["hidden_act"] == "silu"
        and not llm["attention_bias"]
        and not llm["mlp_bias"]
    )


def _fits(shapes: dict[str, tuple[int, ...]], config: ModelConfig) -> bool:
    """Whether all tensors that are read are there, in the shapes that the config says."""
    llm = config.llm.config
    width, inner, size = llm["hidden_size"], llm["intermediate_size"], llm["head_dim"]
    wide, narrow = llm["num_attention_heads"] * size, llm["num_key_value_heads"] * size
    expected: dict[str, tuple[Any, ...]] = {
        "emb_token": (width,),
        "text_projection.1.weight": (config.dim, width),
        "text_projection.1.bias": (config.dim,),
        f"{_LM}.norm.weight": (width,),
    }
    for layer in range(llm["num_hidden_layers"]):
        name = f"{_LM}.layers.{layer}"
        expected |= {f"{name}.{norm}_layernorm.weight": (width,) for norm in ("input", "post_attention")}
        expected |= {f"{name}.mlp.{kind}_proj.weight": (inner, width) for kind in ("gate", "up")}
        expected |= {f"{name}.self_attn.{kind}_proj.weight": (narrow, width) for kind in ("k", "v")}
        expected[f"{name}.mlp.down_proj.weight"] = (width, inner)
        expected[f"{name}.self_attn.q_proj.weight"] = (wide, width)
        expected[f"{name}.self_attn.o_proj.weight"] = (width, wide)
    table = shapes.get(f"{_LM}.embed_tokens.weight", ())
    return table[1:] == (width,) and all(shapes.get(name) == shape for name, shape in expected.items())


class _Words:
    """A tokenizer file read by the package tokenizers alone, in the form of one of transformers."""

    def __init__(self, file: Path, end: str) -> None:
        from tokenizers import Tokenizer as Fast

        check_file(file)
        try:
            self._fast = Fast.from_file(str(file))
        except Exception as error:  # all that it raises
            raise CheckpointError(f"{file}: no usable tokenizer ({error})") from error
        self._fast.no_truncation()
        self._fast.no_padding()
        self.eos_token_id: int | None = self._fast.token_to_id(end)
        self.sep_token_id: int | None = None
        self.rows = self._fast.get_vocab_size(with_added_tokens=False)

    def __call__(self, texts: Sequence[str], add_special_tokens: bool) -> dict[str, list[list[int]]]:
        encoded = self._fast.encode_batch(list(texts), add_special_tokens=add_special_tokens)
        return {"input_ids": [text.ids for text in encoded]}


def _words(folder: Path) -> _Words | None:
    """The tokenizer of a folder; None if transformers would make another of its files."""
    file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not file.is_file() or not settings.is_file():
        return None
    plain = read_json_object(settings)
    end = plain.get("eos_token")
    if plain.get("tokenizer_class") not in _TOKENIZERS or not isinstance(end, str):
        return None
    if plain.keys() & {"added_tokens_decoder", "extra_special_tokens", "additional_special_tokens"}:
        return None
    return _Words(file, end)


def _rotations(length: int, size: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines ``(L, size)`` of rotary positions (RoFormer, arXiv 2104.09864), halves alike."""
    frequencies = 1.0 / base ** (np.arange(0, size, 2, dtype=np.float32) / np.float32(size))
    angles = np.arange(length, dtype=np.float32)[:, None] * frequencies.astype(np.float32)
    angles = np.concatenate([angles, angles], axis=1)
    return np.cos(angles), np.sin(angles)


def _rotated(x: np.ndarray, cosines: np.ndarray, sines: np.ndarray) -> np.ndarray:
    half = x.shape[-1] // 2
    return x * cosines + np.concatenate([-x[..., half:], x[..., :half]], axis=-1) * sines


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.float32(1e-12))
