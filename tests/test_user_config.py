"""A person's own defaults, and completion by the shells themselves."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from mmgem.cli.inputs import default_index
from mmgem.cli.main import main
from mmgem.config.user import UserConfig, load_user_config
from mmgem.errors import ConfigError
from mmgem.utils.files import user_config_file


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MMGEM_CONFIG", raising=False)
    monkeypatch.delenv("MMGEM_INDEX", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "mmgem").mkdir()
    return tmp_path / "mmgem" / "config.toml"


def test_where_it_is(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_config_file() == file and load_user_config() == UserConfig()
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_config_file() == tmp_path / ".config" / "mmgem" / "config.toml"
    monkeypatch.setenv("MMGEM_CONFIG", "~/my.toml")
    assert user_config_file() == tmp_path / "my.toml"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("colour = 3", "colour: unknown field (known: "),
        ('k = "many"', "k: expected int, got 'many'"),
        ("k = 0", "k: 0"),
        ('precision = "int8"', "precision: "),
        ("k = ", ""),
    ],
)
def test_what_is_wrong_names_the_file_and_the_key(
    file: Path, text: str, problem: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        load_user_config()
    assert str(error.value).startswith(f"{file}: {problem}")
    assert main(["search", "a", "dog"]) == 2
    assert capfd.readouterr().err.startswith(f"mmgem: error: {file}: {problem}")
    assert main(["--help"]) == 0 and main(["search", "--help"]) == 0 and main(["--version"]) == 0


def test_defaults_of_commands(
    file: Path,
    tmp_path: Path,
    tiny_photos: list[Path],
    tiny_model_folder: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "my.idx"
    file.write_text(f'index = "{out}"\nmodel = "{tiny_model_folder}"\nk = 2\n')
    assert default_index() == out
    assert main(["index", str(tiny_photos[0].parent)]) == 0
    assert main(["caption", str(tiny_photos[0]), "--beams", "1"]) == 0
    capfd.readouterr()
    assert main(["search", "the", "dog", "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["hits"]) == 2
    assert main(["search", "the", "dog", "--json", "-k", "4"]) == 0, "the command line counts more"
    assert len(json.loads(capfd.readouterr().out)["hits"]) == 4
    file.write_text(f'index = "{out}"\ndevice = "abacus"\n')
    assert main(["search", "the", "dog"]) == 2
    assert "--device abacus" in capfd.readouterr().err


def complete(script: str, *words: str) -> list[str]:
    """What bash offers for the last of the words."""
    code = f'{script}\nCOMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _mmgem; printf "%s\\n" "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code, "bash", *words], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_completes(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capfd.readouterr().out
    assert complete(script, "mmgem", "sea") == ["search"]
    assert {"search", "index", "corpus"} <= set(complete(script, "mmgem", ""))
    assert complete(script, "mmgem", "search", "a", "--min-s") == ["--min-score"]
    assert complete(script, "mmgem", "search", "--precision", "b") == ["bfloat16"]
    assert set(complete(script, "mmgem", "corpus", "a")) == {"ask", "add"}
    assert "--documents" in complete(script, "mmgem", "corpus", "search", "--")
    assert complete(script, "mmgem", "search", "photo") == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_take_it(shell: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = tmp_path / "script"
    script.write_text(capfd.readouterr().out)
    assert "min-score" in script.read_text() and "corpus" in script.read_text()
    if shutil.which(shell):
        subprocess.run([shell, "-n", str(script)], check=True)
