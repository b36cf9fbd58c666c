"""What `import mmgem` offers: the same names to people, editors and Python, and nothing heavy before use."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import mmgem

ROOT = Path(mmgem.__file__).parent


def test_one_list_of_names() -> None:
    assert sorted(mmgem.__all__) == dir(mmgem) == sorted(["__version__", *mmgem._EXPORTS])
    for name in mmgem.__all__:
        assert getattr(mmgem, name) is not None
    scope: dict[str, object] = {}
    exec("from mmgem import *", scope)
    assert set(mmgem.__all__) - {"__version__"} <= set(scope)
    with pytest.raises(AttributeError, match="module 'mmgem' has no attribute 'nothing'"):
        mmgem.nothing  # noqa: B018


def test_editors_see_what_python_does() -> None:
    (block,) = (
        node for node in ast.parse((ROOT / "__init__.py").read_text()).body if isinstance(node, ast.If)
    )
    seen = {}
    for line in block.body:
        assert isinstance(line, ast.ImportFrom) and line.module
        for alias in line.names:
            seen[alias.asname or alias.name] = (line.module, alias.name)
    assert seen.keys() == mmgem._EXPORTS.keys()
    for name, (module, defined) in seen.items():
        where = mmgem._EXPORTS[name]
        assert where == module.removeprefix("mmgem.") + (f":{defined}" if defined != name else "")
        assert getattr(mmgem, name) is getattr(import_module(module), defined)


def test_no_name_hides_a_package() -> None:
    rooms = {path.stem for path in ROOT.iterdir()}
    assert not rooms & set(mmgem.__all__)


def test_importing_is_light() -> None:
    code = (
        "import json, sys\nbefore = set(sys.modules)\nimport mmgem\ndir(mmgem)\nmmgem.UsageError\n"
        "mmgem.Record\nmmgem.load_recipe\n"
        "print(json.dumps([m.partition('.')[0] for m in set(sys.modules) - before]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "transformers", "PIL", "rich"} & set(json.loads(done.stdout))
