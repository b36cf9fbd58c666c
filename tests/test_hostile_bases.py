"""Base weights, teachers, corpora and calibrations that are hostile or damaged; and the one loader of all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hostile
import huggingface_hub
import numpy as np
import pytest
import torch
import toys
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertModel

from mmgem import MMGEM
from mmgem.checkpoints.resolve import resolve
from mmgem.config import EncoderConfig, Preprocessing
from mmgem.data.labels import read_labels
from mmgem.data.tokens import Tokenizer
from mmgem.encoders.efficientnet import EfficientNetLite0
from mmgem.encoders.transformers_vision import TransformersEncoder
from mmgem.errors import CheckpointError, ConfigError, DataError, MMGEMError
from mmgem.inference.calibration import CALIBRATION_FILE, MatchCalibration
from mmgem.models.sentence_encoder import default_prompt, sentence_encoder
from mmgem.self_retrieval.corpus import Corpus
from mmgem.self_retrieval.prompts import Prompts
from mmgem.utils.checksums import CHECKSUMS_FILE
from mmgem.utils.pretrained import HUB_FILES, load_pretrained, local_folder

PACKAGE = Path(__file__).parents[1] / "mmgem"
Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    lm, clip = toys.base_models(folder)
    _, net = toys.base_models(folder, encoder="efficientnet_lite0", seed=1)
    teacher = folder / "teacher"
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(toys.WORDS), **sizes)).save_pretrained(teacher)
    tokenizer = toys.hf_tokenizer()
    tokenizer.pad_token = "<end>"
    tokenizer.save_pretrained(teacher)
    for kind, path in (("lm", lm), ("clip", clip), ("net", net)):
        path.rename(folder / kind)
    return folder


@pytest.fixture
def copies(bases: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bases, tmp_path / "bases"))


def load_lm(folder: Path) -> Any:
    model, _ = load_pretrained(AutoModelForCausalLM, folder)
    tokenizer = Tokenizer.from_folder(folder, Preprocessing())
    tokenizer.check_vocabulary(model.config.vocab_size, str(folder))
    return model


def load_clip(folder: Path) -> Any:
    return TransformersEncoder.load_base(str(folder), EncoderConfig("transformers"))


def load_net(folder: Path) -> Any:
    encoder = toys.ENCODERS["efficientnet_lite0"]
    return EfficientNetLite0.load_base(str(folder), encoder), EfficientNetLite0.load_classifier(str(folder))


def embed(folder: Path) -> Any:
    return sentence_encoder(folder)(["a dog", "a red ball"])


LOADERS: dict[str, Callable[[Path], Any]] = {"lm": load_lm, "clip": load_clip, "net": load_net}
LOADERS["teacher"] = embed


def fields(**values: Any) -> hostile.Damage:
    return lambda folder: hostile.config(folder, lambda data: data.update(values))


EVERYWHERE: dict[str, tuple[hostile.Damage, str]] = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: missing"),
    "weights cut": (lambda f: _cut(f / "model.safetensors"), "model.safetensors: damaged"),
    "weights of text": (hostile.write("model.safetensors", "hello, I am no weights"), "damaged"),
    "NaN": (lambda f: _spoil(f), "not finite"),
    "pipe": (hostile.instead("model.safetensors", hostile.os.mkfifo), "is a pipe"),
    "pipe as config": (hostile.instead("config.json", hostile.os.mkfifo), "is a pipe"),
    "link outside": (lambda f: hostile._outside(f / "model.safetensors"), "link out of"),
    "deep config": (hostile.write("config.json", "[" * 10**6), "nested too deeply|not JSON"),
    "list as config": (hostile.write("config.json", "[]"), "expected an object"),
}
BY_KIND: dict[str, dict[str, tuple[hostile.Damage, str]]] = {
    "lm": {
        "layers": (fields(num_hidden_layers=10**7), "num_hidden_layers"),
        "more layers": (fields(num_hidden_layers=1000), "larger model than its weights"),
        "vocabulary": (fields(vocab_size=2**30), "larger model than its weights"),
        "sizes as text": (fields(hidden_size="16"), "hidden_size"),
        "code alone": (fields(model_type="evil", auto_map={"AutoConfig": "evil.Evil"}), "model_type 'evil'"),
        "quantised": (fields(quantization_config={"quant_method": "evil"}), "quantization_config"),
        "index that leads out": (
            hostile.both(
                lambda f: (f / "model.safetensors").rename(f / "part.safetensors"),
                hostile.write("model.safetensors.index.json", '{"weight_map": {"a": "../x.safetensors"}}'),
            ),
            "weight_map",
        ),
        "pickles alone": (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            "model.safetensors: missing",
        ),
        "ids beyond": (hostile.tokenizer(lambda d: hostile._vocabulary(d, 10**6)), "has id 1000000"),
    },
    "clip": {
        "layers": (fields(num_hidden_layers=10**7), "num_hidden_layers"),
        "width": (fields(hidden_size=2**20), "larger model than its weights"),
        "unknown": (fields(model_type="evil"), "model_type 'evil'"),
        "wrapper of another library": (fields(model_type="timm_wrapper"), "model_type|timm"),
    },
    "net": {
        "no classifier": (
            lambda f: save_file({"weight": torch.ones(2, 2)}, f / "classifier.safetensors"),
            "bias is missing",
        ),
        "cut classifier": (lambda f: _cut(f / "classifier.safetensors"), "classifier.safetensors: damaged"),
        "other shape": (lambda f: _reshape(f), "do not fit the model"),
    },
    "teacher": {
        "layers": (fields(num_hidden_layers=10**7), "num_hidden_layers"),
        "vocabulary": (fields(vocab_size=2**30), "larger model than its weights"),
        "no words": (hostile.tokenizer(lambda d: d["model"].update(vocab={})), "no usable tokenizer"),
        "prompts": (
            hostile.write("config_sentence_transformers.json", "[" * 10**5),
            "nested too deeply|not JSON",
        ),
        "prompt of a list": (
            hostile.write("config_sentence_transformers.json", '{"default_prompt_name": [1]}'),
            "no prompt called",
        ),
    },
}
CASES = [(kind, name, *case) for kind in LOADERS for name, case in (EVERYWHERE | BY_KIND[kind]).items()]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def _spoil(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    next(t for t in tensors.values() if t.is_floating_point()).view(-1)[0] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _reshape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = min(tensors)
    save_file({**tensors, name: torch.ones(3)}, folder / "model.safetensors")


@pytest.mark.parametrize(("kind", "name", "damage", "line"), CASES, ids=[f"{c[0]}-{c[1]}" for c in CASES])
def test_base_folders_say_what_is_wrong(kind, name, damage, line, copies, tmp_path):
    folder = copies / kind
    damage(folder)
    wanted = (CheckpointError, ConfigError)
    with hostile.guarded(tmp_path / "canary"), pytest.raises(wanted, match=line) as caught:
        LOADERS[kind](folder)
    assert kind in str(caught.value) and "\n" not in str(caught.value)


AUTO_MAP = {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil", "AutoModel": "evil.Evil"}


@pytest.mark.parametrize("kind", ["lm", "clip", "teacher"])
def test_code_beside_base_weights_is_not_run(kind, copies, tmp_path, monkeypatch):
    expected = LOADERS[kind](copies / kind)
    folder = copies / kind
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\nclass Evil: pass\n")
    fields(auto_map=AUTO_MAP, _attn_implementation="evil/kernel", attn_implementation="evil/kernel")(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "evil/evil"}')
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate" / "generate.py")
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    if (folder / "tokenizer_config.json").exists():
        auto_map = {"AutoTokenizer": ["evil.Evil", None]}
        hostile.config(folder, lambda d: d.update(auto_map=auto_map), "tokenizer_config.json")
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with hostile.guarded(tmp_path / "canary"):
        loaded = LOADERS[kind](folder)
    if kind == "lm":
        assert all(torch.equal(v, loaded.state_dict()[n]) for n, v in expected.state_dict().items())
        assert loaded.config._attn_implementation in ("sdpa", "eager")
    elif kind == "clip":
        assert loaded[1] == expected[1]
        assert all(torch.equal(value, loaded[0][name]) for name, value in expected[0].items())
    else:
        assert np.array_equal(loaded, expected)


def test_a_model_in_several_files_loads_as_in_one(copies):
    one = load_lm(copies / "lm")
    AutoModelForCausalLM.from_pretrained(copies / "lm").save_pretrained(
        copies / "parts", max_shard_size="8KB"
    )
    assert len(list((copies / "parts").glob("*.safetensors"))) > 1
    parts, _ = load_pretrained(AutoModelForCausalLM, copies / "parts")
    assert all(torch.equal(v, parts.state_dict()[n]) for n, v in one.state_dict().items())
    index = copies / "parts" / "model.safetensors.index.json"
    first = next(iter(json.loads(index.read_text())["weight_map"].values()))
    (copies / "parts" / first).unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load_pretrained(AutoModelForCausalLM, copies / "parts")


def test_links_of_the_hubs_cache_are_followed(copies, tmp_path):
    """Every file of a version there is a link to its content, beside the versions."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "1", tmp_path / "models--a--b" / "blobs"
    for folder in (snapshot, blobs):
        folder.mkdir(parents=True)
    for file in (copies / "lm").iterdir():
        file.rename(blobs / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    assert load_lm(snapshot).config.vocab_size == len(toys.WORDS)


def test_from_the_hub_come_data_of_one_revision(monkeypatch, tmp_path, tiny_model_folder):
    asked: list[Any] = []

    def snapshot(repo: str, **options: Any) -> str:
        asked.append((repo, options))
        return str(tiny_model_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert resolve("owner/name@v1.0") == tiny_model_folder
    ((repo, options),) = asked
    assert (repo, options["revision"]) == ("owner/name", "v1.0")
    assert options["allow_patterns"] == [*HUB_FILES]
    assert not {f.rpartition(".")[2] for f in HUB_FILES} & {"py", "bin", "pt", "pth", "pkl", "onnx", "jinja"}
    assert MMGEM.from_pretrained("owner/name@v1.0").name == "owner/name@v1.0"
    assert local_folder("owner/name", config_only=True) == tiny_model_folder
    assert asked[-1][1]["allow_patterns"] == ["config.json"] and asked[-1][1]["revision"] is None


def test_a_base_that_is_nowhere_is_one_line(tmp_path):
    for name in ("owner/name", "gpt2-no-such"):
        with pytest.raises(CheckpointError, match=f"{name}: not on the hub: "):
            local_folder(name)
    for name in (str(tmp_path / "no"), "./no"):
        with pytest.raises(CheckpointError, match="no: no such folder"):
            local_folder(name)


BAD_CORPORA: dict[str, tuple[hostile.Damage, str]] = {
    "no list": (hostile.write("corpus.json", "[]"), "expected an object"),
    "deep": (hostile.write("corpus.json", "[" * 10**5), "nested too deeply|not JSON"),
    "other format": (hostile.write("corpus.json", '{"format": 9}'), "format 9"),
    "no titles": (hostile.write("corpus.json", '{"format": 1}'), "titled"),
    "scoring": (
        hostile.write("corpus.json", '{"format": 1, "titled": true, "scoring": {"x": 1}}'),
        "scoring",
    ),
    "pickle": (lambda f: np.save(f / "vectors.npy", np.array([{}] * 9), allow_pickle=True), "vectors.npy"),
    "cut": (lambda f: _cut(f / "vectors.npy"), "vectors.npy: damaged"),
    "NaN": (lambda f: np.save(f / "vectors.npy", np.full((9, 8), np.nan, np.float32)), "not rows of finite"),
    "pipe": (lambda f: _pipe(f / "vectors.npy"), "is a pipe"),
}


def _pipe(path: Path) -> None:
    path.unlink()
    hostile.os.mkfifo(path)


@pytest.mark.parametrize("name", BAD_CORPORA)
def test_corpora_say_what_is_wrong(name, tmp_path):
    corpus = Corpus.build(toys.passages(), Prompts(toys.tokenizer()))
    corpus.vectors = np.eye(9, 8, 1, np.float32) + np.eye(9, 8, -7, np.float32)
    corpus.save(tmp_path / "corpus")
    assert len(Corpus.open(tmp_path / "corpus").passages) == 9
    damage, line = BAD_CORPORA[name]
    (tmp_path / "corpus" / CHECKSUMS_FILE).unlink()  # else all of it is "damaged"
    damage(tmp_path / "corpus")
    wanted = (CheckpointError, ConfigError)
    with hostile.guarded(tmp_path / "canary"), pytest.raises(wanted, match=line):
        Corpus.open(tmp_path / "corpus")


@pytest.mark.parametrize(
    "text", ["[" * 10**5, "1", '{"names": [[]]}', '{"names": "\\ud800"', '{"id": 1}', ""]
)
def test_labels_say_what_is_wrong(text, tmp_path):
    (tmp_path / "labels.jsonl").write_text(text)
    with hostile.guarded(tmp_path / "canary"), pytest.raises(DataError, match=r"labels\.jsonl"):
        read_labels(tmp_path / "labels.jsonl")


@pytest.mark.parametrize(
    "about", ["{", "[" * 10**5, "[]", '{"format": 1}', '{"format": 1, "residual": "x"}', None, b"\x00" * 40]
)
def test_calibrations_say_what_is_wrong(about, tmp_path):
    path = tmp_path / CALIBRATION_FILE
    if isinstance(about, bytes):
        path.write_bytes(about)
    else:
        tensors = {"mean": torch.zeros(8), "components": torch.zeros(8, 2)}
        save_file(tensors, path, None if about is None else {"calibration": about})
    with hostile.guarded(tmp_path / "canary"), pytest.raises(CheckpointError, match=CALIBRATION_FILE):
        MatchCalibration.load(tmp_path, 8)


def test_prompts_of_a_folder_without_any(tmp_path):
    assert default_prompt(tmp_path) == ""


CALLS = re.compile(
    r"\b(snapshot_download|hf_hub_download|torch\.load|safe_open|load_file|hf_api|AutoConfig|AutoTokenizer|"
    r"for_model|get_class_from_dynamic_module)\b|\bAuto\w+\.from|\.from_config\(|\._from_config\(|"
    r"^\s*(?:import|from) (?:pickle|dill|joblib|cloudpickle|marshal|shelve)\b",
    re.MULTILINE,
)
LOADER = {"utils/pretrained.py", "utils/safetensors_files.py"}


def test_one_loader_reads_what_others_made():
    """No other module calls the libraries that read models; and it says each time that no code is trusted."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        if str(path.relative_to(PACKAGE)) in LOADER:
            continue
        code = re.sub(r'""".*?"""|#[^\n]*', "", text, flags=re.DOTALL)
        found = [match.group() for match in CALLS.finditer(code)]
        assert not found, (path, found)
        for line in code.splitlines():
            if ".from_pretrained(" in line:
                assert re.search(r"(MMGEM|SelfRetrieval)\.from_pretrained\(", line), (path, line)
    loader = (PACKAGE / "utils" / "pretrained.py").read_text()
    calls = re.findall(r"\.from_pretrained\((?:[^()]|\([^()]*\))*\)", loader)
    assert len(calls) >= 4
    for call in calls:
        assert "trust_remote_code=False" in call or "**options" in call, call
        assert "local_files_only=True" in call or "**options" in call, call
    assert (
        'options = {"gguf_file": file.name, "trust_remote_code": False, "local_files_only": True}' in loader
    )
    assert "trust_remote_code=True" not in "".join(p.read_text() for p in PACKAGE.rglob("*.py")).replace(
        "SentenceTransformer(folder, trust_remote_code=True)", ""
    )


def test_errors_are_one_tree():
    assert issubclass(CheckpointError, MMGEMError)
