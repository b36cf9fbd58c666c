"""The one place where transformers, the hub and torch's own files are read: as data, never as programs.

Of a folder transformers sees a copy in links: its configuration and that of its tokenizer without what
their classes do not know (``auto_map``, kernels, paths), its tokenizer's files and its safetensors. Python,
pickles, adapters, generation settings and chat templates are not in it. From the hub come JSON, text and
safetensors.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmgem.errors import CheckpointError, ConfigError
from mmgem.utils.hf_config import check_sizes, known_fields, last_line, without_implementations
from mmgem.utils.model_files import check_file, read_json_object
from mmgem.utils.safetensors_files import check_finite, read_header

HUB_FILES = ("*.json", "*.txt", "*.md", "*.model", "*.spm", "*.safetensors", "corpus/*.jsonl", "corpus/*.npy")
"""What is fetched of a model on the hub; nothing that could be run or unpickled."""

_HUB_FOLDERS = ("corpus/",)
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?")
_TOKENIZER_FILES = (".json", ".txt", ".model", ".spm", ".tiktoken", ".vocab")
_NO_TOKENIZER_FILES = {
    *("config.json", "generation_config.json", "adapter_config.json", "chat_template.json"),
    *("preprocessor_config.json", "processor_config.json", "tokenizer_config.json", "preprocessor.json"),
}
_TOKENIZER_BYTES = 128 << 20
_INDEX_BYTES = 64 << 20
_TOKENIZER_KEYS = {
    *(
        "add_bos_token",
        "add_eos_token",
        "add_prefix_space",
        "added_tokens_decoder",
        "backend",
        "byte_fallback",
    ),
    *(
        "additional_special_tokens",
        "extra_special_tokens",
        "model_specific_special_tokens",
        "errors",
        "legacy",
    ),
    *("clean_up_tokenization_spaces", "do_basic_tokenize", "do_lower_case", "do_lowercase", "extra_ids"),
    *("is_local", "keep_accents", "lang", "language", "language_codes", "local_files_only", "lowercase"),
    *("max_len", "max_length", "model_input_names", "model_max_length", "never_split", "normalize", "offset"),
    *(
        "pad_to_multiple_of",
        "pad_token_type_id",
        "padding_side",
        "remove_space",
        "sp_model_kwargs",
        "src_lang",
    ),
    *("spaces_between_special_tokens", "split_special_tokens", "stride", "strip_accents", "tgt_lang"),
    *("tokenize_chinese_chars", "tokenizer_class", "trim_offsets", "truncation_side", "truncation_strategy"),
    *("use_default_system_prompt", "wordpieces_prefix", "fix_mistral_regex", "unk_id", "num_madeup_words"),
}
_DTYPES = ("float64", "float32", "float16", "bfloat16")


def hub_folder(name: str, config_only: bool = False) -> Path:
    """The folder, in the hub's cache, of the model ``owner/name`` or ``owner/name@revision``; fetched if need
    be. ``config_only``: nothing but its ``config.json``. Raises ``CheckpointError`` if it cannot be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    repo, _, revision = name.partition("@")
    files = ["config.json"] if config_only else [*HUB_FILES]
    try:
        return Path(
            snapshot_download(
                repo, revision=revision or None, allow_patterns=files, ignore_patterns=["graphs/*", "*.py"]
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise CheckpointError(f"{name}: not on the hub: {first_line(error)}") from error


def local_folder(source: str | os.PathLike[str], config_only: bool = False) -> Path:
    """The folder ``source``, or of a hub id (with ``@revision`` or without) the one in the hub's cache,
    fetched if need be. Raises ``CheckpointError`` if there is none."""
    text = os.fspath(source)
    if Path(text).is_dir():
        return Path(text)
    if Path(text).exists():
        raise CheckpointError(f"{text}: is a file, not a folder")
    if _HUB_ID.fullmatch(text) and not text.startswith("."):
        return hub_folder(text, config_only)
    raise CheckpointError(f"{text}: no such folder")


def load_config(folder: Path) -> Any:
    """The transformers config of a folder, of its known fields only. Raises ``CheckpointError``."""
    from transformers import AutoConfig

    plain = _plain_config(folder)
    with _staged({"config.json": plain}, {}) as staged, _told(f"{folder / 'config.json'}"):
        config = AutoConfig.from_pretrained(str(staged), trust_remote_code=False, local_files_only=True)
    config._name_or_path = ""
    return config


def load_tokenizer(folder: Path) -> Any:
    """The transformers tokenizer of a folder, which has words, and no chat template. Raises
    ``CheckpointError``."""
    from transformers import AutoTokenizer

    links = {}
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.suffix in _TOKENIZER_FILES and file.name not in _NO_TOKENIZER_FILES:
            if file.name.endswith(".index.json"):
                continue
            if (size := check_file(file)) > _TOKENIZER_BYTES:
                raise CheckpointError(f"{file}: {size} bytes, more than a tokenizer has")
            links[file.name] = file
    settings = folder / "tokenizer_config.json"
    plain = read_json_object(settings) if settings.exists() else {}
    kept = {k: v for k, v in plain.items() if k in _TOKENIZER_KEYS or k.endswith("_token")}
    configs: dict[str, Any] = {"tokenizer_config.json": kept} if kept else {}
    configs["config.json"] = _plain_config(folder, needed=False)
    where = f"{folder}: no usable tokenizer"
    with _staged(configs, links) as staged, _told(where, brackets=True):
        tokenizer = AutoTokenizer.from_pretrained(str(staged), trust_remote_code=False, local_files_only=True)
        if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
            raise CheckpointError(f"{where} (it has no words)")
    tokenizer.chat_template = None
    tokenizer.name_or_path = str(folder)
    if hasattr(tokenizer, "init_kwargs"):
        tokenizer.init_kwargs |= {"name_or_path": str(folder), "local_files_only": False}
    return tokenizer


def build_model(model_class: Any, config: Any, where: str) -> Any:
    """A model of transformers with random weights. Raises ``ConfigError`` that begins with ``where``."""
    make = getattr(model_class, "from_config", None) or model_class._from_config
    options = {"trust_remote_code": False} if hasattr(model_class, "from_config") else {}
    try:
        return make(config, **options)
    except CheckpointError:
        raise
    except Exception as error:
        raise ConfigError(f"{where}: {last_line(error)}") from error


def load_pretrained(model_class: Any, folder: Path, config: Any = None) -> tuple[Any, dict[str, Any]]:
    """A model in float32 from a folder of safetensors, and what transformers says of names that did not fit.

    ``config``: if it is not the one in the folder. Headers and shapes are checked before anything is
    allocated. Raises ``CheckpointError`` for damaged files, for weights that are not those of the config and
    for numbers that are not finite.
    """
    import torch

    from mmgem.utils.bounded_build import bounded_build, check_total

    plain = _plain_config(folder)
    links, stored = _weights(folder)
    config = load_config(folder) if config is None else config
    with bounded_build(stored, str(folder / "config.json")), torch.device("meta"), torch.random.fork_rng([]):
        try:
            outline = build_model(model_class, config, str(folder / "config.json"))
        except ConfigError as error:
            raise CheckpointError(str(error)) from error
    check_total(outline, stored, str(folder / "config.json"))
    with _staged({"config.json": plain}, links) as staged, _told(str(folder)):
        model, told = model_class.from_pretrained(
            str(staged),
            config=config,
            dtype=torch.float32,
            output_loading_info=True,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    model.config._name_or_path = ""
    check_finite(model.state_dict(), str(folder))
    return model, told


def refuse_missing(told: dict[str, Any], where: str, spare: str = "") -> None:
    """Raise ``CheckpointError``, which begins with ``where``, if the weights that :func:`load_pretrained`
    tells of leave part of a model random, but for tensors with ``spare`` in their names."""
    missing = sorted(name for name in told["missing_keys"] if not spare or spare not in name)
    if missing:
        raise CheckpointError(f"{where}: {len(missing)} tensors are missing, the first is {missing[0]}")


def load_gguf(file: Path) -> tuple[Any, Any]:
    """Model (float32) and tokenizer of a GGUF file, a format of numbers and text. It is not checked as
    folders are: give it files of a known checksum."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options = {"gguf_file": file.name, "trust_remote_code": False, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
    return model, AutoTokenizer.from_pretrained(file.parent, **options)


def load_torch_weights(file: Path) -> dict[str, Any]:
    """The tensors of a ``.pth`` file by torch's unpickler of tensors and plain values alone
    (``weights_only``), which calls nothing that a file names. Give it files of a known checksum."""
    import torch

    return dict(torch.load(file, weights_only=True, map_location="cpu"))


def first_line(error: BaseException) -> str:
    """The first line of what an error says, not at length."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def _plain_config(folder: Path, needed: bool = True) -> dict[str, Any]:
    """``config.json`` of a folder with the fields that its model type knows; not ``needed``: empty if it is
    no transformers config."""
    from transformers import CONFIG_MAPPING

    path = folder / "config.json"
    if not needed and not path.exists():
        return {}
    plain = read_json_object(path)
    model_type = plain.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        if not needed:
            return {}
        raise CheckpointError(f"{path}: transformers has no model_type {str(model_type)[:60]!r}")
    if needed and plain.get("quantization_config"):
        raise CheckpointError(f"{path}: quantization_config: weights in a quantised form are not read")
    try:
        check_sizes(plain, "config.json")
        kept = known_fields(CONFIG_MAPPING[model_type], without_implementations(plain))
    except ConfigError as error:
        raise CheckpointError(f"{folder}: {error}") from error
    for name in ("dtype", "torch_dtype"):
        if plain.get(name) in _DTYPES:
            kept[name] = plain[name]
    for name, value in plain.items():
        if name == "tokenizer_class" and isinstance(value, str):
            kept[name] = value
        if name == "architectures" and isinstance(value, list) and all(map(_identifier, value)):
            kept[name] = value
    return kept | {"model_type": model_type}


def _identifier(value: Any) -> bool:
    return isinstance(value, str) and value.isidentifier()


def _weights(folder: Path) -> tuple[dict[str, Path], list[int]]:
    """The safetensors of a folder, with the index of a model in several, and the sizes of their tensors in
    numbers."""
    one, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if one.exists() or not index.exists():
        files = {one.name: one}
    else:
        names = read_json_object(index, max_bytes=_INDEX_BYTES).get("weight_map")
        if not isinstance(names, dict) or not all(
            isinstance(n, str) and n.endswith(".safetensors") and Path(n).name == n for n in names.values()
        ):
            raise CheckpointError(f"{index}: weight_map: must name safetensors files of this folder")
        files = {name: folder / name for name in sorted(set(names.values()))}
    if not one.exists() and len(files) == 1 and one.name in files:
        raise CheckpointError(f"{one}: missing; weights in other formats than safetensors are not read")
    headers = [read_header(file) for file in files.values()]
    links = files if one.name in files else {**files, index.name: index}
    return links, [math.prod(t.shape) for header in headers for t in header.tensors.values()]


@contextmanager
def _staged(configs: dict[str, Any], links: dict[str, Path]) -> Iterator[Path]:
    """A folder of its own for transformers to read: ``configs`` as JSON, and ``links`` to files."""
    with tempfile.TemporaryDirectory(prefix="mmgem-", ignore_cleanup_errors=True) as name:
        staged = Path(name)
        for file, content in configs.items():
            (staged / file).write_text(json.dumps(content), encoding="utf-8")
        for file, target in links.items():
            try:
                (staged / file).symlink_to(target.resolve())
            except OSError:  # Windows asks for a privilege
                shutil.copyfile(target, staged / file)
        yield staged


@contextmanager
def _told(where: str, brackets: bool = False) -> Iterator[None]:
    """Turn what the libraries raise into ``CheckpointError``, the panics of compiled ones among it."""
    try:
        yield
    except CheckpointError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = first_line(error) or type(error).__name__
        raise CheckpointError(f"{where} ({reason})" if brackets else f"{where}: {reason}") from error
