"""Model folders that mean harm or are damaged, made by hand and by seeded mutation; and a guard that shows
whether anything of them was run or fetched."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

SECONDS, MEGABYTES = 2.0, 400.0

Damage = Callable[[Path], None]


@contextlib.contextmanager
def guarded(canary: Path) -> Iterator[None]:
    """Inside, nothing may connect, start a program or make ``canary``; two seconds of this process's time and
    400 MB at most."""
    tried: list[Any] = []

    def refuse(*args: Any, **_: Any) -> Any:
        tried.append(args)
        raise OSError("nothing is fetched")

    kept = socket.socket.connect, socket.getaddrinfo, subprocess.Popen.__init__, os.system
    socket.socket.connect, socket.getaddrinfo = refuse, refuse  # type: ignore[method-assign, assignment]
    subprocess.Popen.__init__, os.system = refuse, refuse  # type: ignore[method-assign, assignment]
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        yield
    finally:
        seconds = time.process_time() - started
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        socket.socket.connect, socket.getaddrinfo = kept[:2]  # type: ignore[method-assign]
        subprocess.Popen.__init__, os.system = kept[2:]  # type: ignore[method-assign]
    assert not tried, tried
    assert not canary.exists()
    assert seconds < SECONDS and grown < MEGABYTES, (seconds, grown)


def program(folder: Path, name: str = "modeling_evil.py") -> None:
    """Code that makes the canary, beside the folder, when it is imported."""
    text = f"open({str(folder.parent / 'canary')!r}, 'w').close()\nclass Evil: pass\n"
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(text)


def config(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = "config.json") -> None:
    """Change the JSON of a folder."""
    path = folder / name
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def llm(**fields: Any) -> Damage:
    """Set fields of ``model.llm.config``."""
    return lambda folder: config(folder, lambda data: data["model"]["llm"]["config"].update(fields))


def encoder(**fields: Any) -> Damage:
    """Set fields of ``model.encoder.config``."""
    return lambda folder: config(folder, lambda data: data["model"]["encoder"]["config"].update(fields))


def model(**fields: Any) -> Damage:
    """Set fields of ``model``."""
    return lambda folder: config(folder, lambda data: data["model"].update(fields))


def prep(**fields: Any) -> Damage:
    """Set fields of the preprocessing."""
    return lambda folder: config(folder, lambda data: data.update(fields), "preprocessor.json")


def write(name: str, content: str | bytes) -> Damage:
    """Put a file into the folder."""
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: void((folder / name).write_bytes(data))


def void(_: object) -> None:
    """Nothing."""


def weights(change: Callable[[dict[str, Any]], Any], metadata: dict[str, str] | None = None) -> Damage:
    """Change the tensors, or what is said beside them."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata=metadata)

    return damage


def header(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change the header of the weights as it is written, right or wrong."""

    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        data = path.read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        entries = json.loads(data[8 : 8 + length])
        change(entries)
        text = json.dumps(entries).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return damage


def instead(name: str, make: Callable[[Path], Any]) -> Damage:
    """Put something else in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def tokenizer(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change ``tokenizer.json``."""
    return lambda folder: config(folder, change, "tokenizer.json")


def both(*damages: Damage) -> Damage:
    """One after the other."""

    def damage(folder: Path) -> None:
        for one in damages:
            one(folder)

    return damage


def _outside(path: Path) -> None:
    kept = path.parent.parent / f"outside-{path.name}"
    shutil.copyfile(path, kept)
    path.unlink()
    path.symlink_to(kept)


def _first(entries: dict[str, Any]) -> dict[str, Any]:
    return entries[next(name for name in entries if name != "__metadata__")]


def _nan(tensors: dict[str, Any]) -> None:
    tensors["text_projection.1.weight"][0, 0] = torch.nan


def _infinite(tensors: dict[str, Any]) -> None:
    tensors["llm.lm.model.embed_tokens.weight"][3, 1] = torch.inf


def _vocabulary(data: dict[str, Any], last: int) -> None:
    vocab = data["model"]["vocab"]
    vocab[max(vocab, key=lambda word: vocab[word])] = last


_BIG = "9" * 400

# What is wrong, how it is made, what the line says.
HOSTILE: dict[str, tuple[Damage, str]] = {
    # sizes
    "ten million layers": (llm(num_hidden_layers=10**7), "num_hidden_layers: 10000000 layers"),
    "a few more layers": (llm(num_hidden_layers=900), "larger model than its weights"),
    "huge vocabulary": (llm(vocab_size=2**40), "vocab_size"),
    "large vocabulary": (llm(vocab_size=10**9), "larger model than its weights"),
    "another vocabulary": (llm(vocab_size=50), "wrong shape"),
    "negative width": (llm(hidden_size=-16), "hidden_size"),
    "no width": (llm(hidden_size=0), "hidden_size"),
    "fraction of a width": (llm(hidden_size=16.5), "hidden_size"),
    "width as text": (llm(hidden_size="16"), "hidden_size"),
    "width as a list": (llm(hidden_size=[16]), "config"),
    "width that is true": (llm(hidden_size=True), "hidden_size"),
    "huge width": (llm(hidden_size=2**30), "larger model than its weights"),
    "heads that do not divide": (llm(num_attention_heads=3), "num_key_value_heads|wrong shape|heads"),
    "shared heads that do not divide": (llm(num_key_value_heads=3), "num_key_value_heads: 3 does not"),
    "unknown model type": (llm(model_type="evil"), "model_type 'evil'"),
    "model type as a number": (llm(model_type=7), "model_type"),
    "epsilon as text": (llm(rms_norm_eps="small"), "config|built"),
    "rotary base below zero": (llm(rope_parameters={"rope_type": "default", "rope_theta": -1.0}), "finite"),
    "unknown rotary type": (llm(rope_parameters={"rope_type": "evil", "rope_theta": 1.0}), "rope|evil"),
    "unknown activation": (llm(hidden_act="evil.run"), "evil.run"),
    "huge number": (
        lambda f: (f / "config.json").write_text((f / "config.json").read_text().replace("256", _BIG)),
        "max_position_embeddings",
    ),
    "encoder of many layers": (encoder(num_hidden_layers=10**9), "num_hidden_layers"),
    "encoder of huge pictures": (encoder(image_size=10**9), "config|larger|pixels"),
    "encoder of no pictures": (encoder(image_size=0), "image_size"),
    "patches of nothing": (encoder(patch_size=0), "patch_size"),
    "wide encoder": (encoder(hidden_size=2**20), "larger model than its weights"),
    "unknown encoder": (lambda f: config(f, lambda d: d["model"]["encoder"].update(kind="os")), "kind"),
    "embeddings below zero": (model(dim=-8), "model.dim"),
    "huge embeddings": (model(dim=2**40), "larger model|built"),
    "many visual tokens": (model(visual_tokens=10**9), "larger model|built"),
    "temperature that is no number": (
        lambda f: (f / "config.json").write_text(
            (f / "config.json").read_text().replace('"logit_scale": 14.', '"logit_scale": NaN, "x": 14.')
        ),
        "unknown field|logit_scale",
    ),
    "fields as a list": (lambda f: config(f, lambda d: d.update(model=[1])), "model: expected a table"),
    "encoder as text": (model(encoder="clip"), "encoder: expected a table"),
    "pictures of no size": (prep(size=0), "size"),
    "huge pictures": (prep(size=10**9), "size"),
    "spread of zero": (prep(std=[0.0, 1.0, 1.0]), "std"),
    # code
    "attention from the hub": (llm(attn_implementation="evil/kernel"), "attn_implementation: 'evil/kernel'"),
    "attention by its inner name": (llm(_attn_implementation="evil/kernel"), "_attn_implementation"),
    "attention of the encoder": (encoder(attn_implementation="evil/kernel@main:run"), "attn_implementation"),
    "attention below": (llm(rope_parameters={"attn_implementation": "a/b"}), "attn_implementation"),
    "experts from the hub": (llm(experts_implementation="evil/kernel"), "experts_implementation"),
    # JSON
    "deep JSON": (
        write("config.json", '{"format": 1, "model": ' + "[" * 10**6),
        "nested too deeply|not JSON",
    ),
    "deep JSON that ends": (write("config.json", '{"a":' * 200 + "1" + "}" * 200), "nested too deeply"),
    "large JSON": (write("config.json", '{"a": "' + "b" * (5 << 20) + '"}'), "more than the"),
    "JSON list": (write("config.json", "[]"), "expected an object"),
    "JSON of other bytes": (write("config.json", b"\xff\xfe{}"), "not UTF-8"),
    "empty file": (write("preprocessor.json", ""), "not JSON"),
    # weights
    "weights cut short": (
        lambda f: os.truncate(f / "model.safetensors", (f / "model.safetensors").stat().st_size - 9),
        "end at byte",
    ),
    "empty weights": (write("model.safetensors", b""), "a header of"),
    "header longer than the file": (
        write("model.safetensors", struct.pack("<Q", 2**63) + b"{}"),
        "header of",
    ),
    "deep header": (
        write("model.safetensors", struct.pack("<Q", 10**5) + b"[" * 10**5),
        "nested too deeply|not JSON",
    ),
    "overlapping tensors": (header(lambda e: _first(e).update(data_offsets=[0, 4])), "its bytes|overlaps"),
    "offsets below zero": (header(lambda e: _first(e).update(data_offsets=[-4, 0])), "whole numbers"),
    "huge shape": (header(lambda e: _first(e).update(shape=[2**62, 2**62])), "its bytes are not"),
    "unknown numbers": (header(lambda e: _first(e).update(dtype="EVIL")), "unknown dtype"),
    "whole numbers": (
        weights(lambda t: t.update({"text_projection.1.bias": torch.ones(8, dtype=torch.int32)})),
        "text_projection.1.bias",
    ),
    "missing tensor": (weights(lambda t: t.pop("emb_token")), "missing emb_token"),
    "tensor too many": (weights(lambda t: t.update(evil=torch.ones(2))), "unexpected evil"),
    "other shape": (weights(lambda t: t.update(emb_token=torch.ones(3))), r"emb_token \(3,\) instead of"),
    "no number": (weights(_nan), "text_projection.1.weight has numbers that are not finite"),
    "infinite weight": (weights(_infinite), "has numbers that are not finite"),
    "rounding that is not JSON": (weights(lambda t: None, {"quantized": "{"}), "not JSON"),
    "rounding that is a list": (weights(lambda t: None, {"quantized": "[1]"}), "expected an object"),
    "rounding in 3 bits": (
        weights(lambda t: None, {"quantized": '{"a": {"bits": 3, "shape": [1]}}'}),
        "bits",
    ),
    "rounding of nothing": (
        weights(lambda t: None, {"quantized": '{"a": {"bits": 8, "shape": [2, 2]}}'}),
        "missing tensor 'a.q'",
    ),
    "rounding to a huge shape": (
        weights(
            lambda t: t.update(
                {
                    "a.q": torch.zeros(1, 2, dtype=torch.uint8),
                    "a.scale": torch.ones(1, 1).half(),
                    "a.low": torch.ones(1, 1).half(),
                }
            ),
            {"quantized": '{"a": {"bits": 8, "shape": [1, 2000000000]}}'},
        ),
        "its parts do not make",
    ),
    # files
    "weights are a pipe": (instead("model.safetensors", os.mkfifo), "is a pipe"),
    "config is a pipe": (instead("config.json", os.mkfifo), "is a pipe"),
    "tokenizer is a pipe": (instead("tokenizer.json", os.mkfifo), "is a pipe"),
    "weights are a folder": (instead("model.safetensors", Path.mkdir), "is a folder"),
    "config is a folder": (instead("config.json", Path.mkdir), "is a folder|no such model"),
    "tokenizer is a folder": (instead("tokenizer.json", Path.mkdir), "is a folder"),
    "weights link outside": (lambda f: _outside(f / "model.safetensors"), "link out of the model folder"),
    "config links outside": (
        instead("config.json", lambda p: p.symlink_to("/etc/hostname")),
        "link out of the model folder|missing",
    ),
    "tokenizer links outside": (lambda f: _outside(f / "tokenizer.json"), "link out of the model folder"),
    "link in a circle": (
        instead("preprocessor.json", lambda p: p.symlink_to(p.name)),
        "preprocessor.json: cannot be read|preprocessor.json: missing",
    ),
    # tokenizers
    "no words": (tokenizer(lambda d: d["model"].update(vocab={})), "tokenizer"),
    "no tokenizer in it": (write("tokenizer.json", "{}"), "no usable tokenizer"),
    "tokenizer not JSON": (write("tokenizer.json", "{"), "no usable tokenizer"),
    "deep tokenizer": (write("tokenizer.json", "[" * 10**6), "no usable tokenizer"),
    "id beyond the table": (tokenizer(lambda d: _vocabulary(d, 10**6)), "has id 1000000"),
    "id below zero": (tokenizer(lambda d: _vocabulary(d, -1)), "no usable tokenizer"),
    "unknown tokenizer model": (tokenizer(lambda d: d["model"].update(type="Evil")), "no usable tokenizer"),
    "tokenizer config is a list": (write("tokenizer_config.json", "[]"), "expected an object"),
}

# Code that nobody asks for: the folder loads, and nothing of it is run.
IGNORED: dict[str, Damage] = {
    "auto_map of the folder": both(
        program,
        lambda f: config(f, lambda d: d.update(auto_map={"AutoConfig": "modeling_evil.Evil"})),
    ),
    "auto_map of the language model": both(
        program,
        llm(auto_map={"AutoConfig": "modeling_evil.Evil", "AutoModelForCausalLM": "modeling_evil.Evil"}),
    ),
    "auto_map of the encoder": both(program, encoder(auto_map={"AutoModel": "modeling_evil.Evil"})),
    "auto_map of the tokenizer": both(
        program,
        lambda f: config(
            f,
            lambda d: d.update(auto_map={"AutoTokenizer": ["modeling_evil.Evil", "modeling_evil.Evil"]}),
            "tokenizer_config.json",
        ),
    ),
    "a tokenizer class of its own": both(
        program, lambda f: config(f, lambda d: d.update(tokenizer_class="Evil"), "tokenizer_config.json")
    ),
    "its own way to generate": both(
        lambda f: program(f, "custom_generate/generate.py"),
        write("generation_config.json", '{"custom_generate": "custom_generate"}'),
    ),
    "a chat template": write("chat_template.jinja", "{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "a tokenizer file elsewhere": lambda f: config(
        f, lambda d: d.update(vocab_file="/etc/passwd", name_or_path="evil/evil"), "tokenizer_config.json"
    ),
    "a pickle beside it": write("pytorch_model.bin", b"cos\nsystem\n(S'touch canary'\ntR."),
    "a backbone to fetch": encoder(backbone="evil/evil", use_pretrained_backbone=True),
    "kernels": llm(use_kernels=True, kernel_config={"RMSNorm": "evil/kernel"}),
    "quantised by other code": llm(quantization_config={"quant_method": "evil"}),
    "methods overwritten": llm(to_dict=1, __class__=2),
}


def mutate(folder: Path, seed: int) -> None:
    """One change by chance: of a value in a JSON file, or of bytes of a file."""
    rng = random.Random(seed)
    if rng.random() < 0.6:
        name = rng.choice(["config.json"] * 4 + ["preprocessor.json"] * 2 + ["tokenizer_config.json"])
        config(folder, lambda data: _mutate_value(data, rng), name)
        return
    path = folder / rng.choice(["config.json", "preprocessor.json", "tokenizer.json", "model.safetensors"])
    data = bytearray(path.read_bytes())
    most = min(len(data), 3000) if path.suffix == ".safetensors" else len(data)  # its header
    kind = rng.randrange(4)
    place = rng.randrange(most)
    if kind == 0:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[place : place + rng.randint(1, 40)]
    elif kind == 2:
        data[place:place] = bytes(rng.randrange(256) for _ in range(rng.randint(1, 8)))
    else:
        del data[place:]
    path.write_bytes(bytes(data))


def _mutate_value(data: dict[str, Any], rng: random.Random) -> None:
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            places.append((value, key))
            if isinstance(inner, dict | list):
                collect(inner)

    collect(data)
    holder, key = rng.choice(places)
    values = [None, -1, 0, 1, 3, 7, 2**31, 2**63, 1e308, -0.5, "", "evil", "\ud800", [], {}, [[]], True]
    if rng.random() < 0.15 and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = rng.choice(values)
