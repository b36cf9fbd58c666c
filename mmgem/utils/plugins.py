"""Plugins: Python files or modules that register things of one's own when they are imported.

Only who starts a process names them, by ``mmgem --plugin`` or the variable ``MMGEM_PLUGINS``, which processes
that are started from there inherit. A recipe or a model folder never does: data are not programs.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType

from mmgem.errors import MMGEMError, UsageError

_PREFIX = "mmgem_plugin_"  # of the modules that files become

VARIABLE = "MMGEM_PLUGINS"
"""Plugins to load, separated as the folders of ``PATH`` are."""


def load_plugin(plugin: str | os.PathLike[str]) -> ModuleType:
    """Import a Python file (``*.py``) or a module by its name, once, and name it in ``MMGEM_PLUGINS`` for the
    processes that this one starts. Raises ``UsageError`` with what is wrong with it."""
    name = os.fspath(plugin)
    if name.endswith(".py"):
        name = str(Path(name).resolve())
    module = _load(name)
    known = _named()
    if name not in known:
        os.environ[VARIABLE] = os.pathsep.join([*known, name])
    return module


def load_named_plugins() -> None:
    """Load what ``MMGEM_PLUGINS`` names. Raises ``UsageError`` as :func:`load_plugin` does."""
    for name in _named():
        _load(name)


def plugin_line(error: BaseException) -> str | None:
    """``file:line`` of a plugin where ``error`` was raised, or passed last; None where no plugin had part in
    it."""
    files = {
        getattr(module, "__file__", None) for name, module in list(sys.modules.items()) if _is_plugin(name)
    }
    found, trace = None, error.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        found = f"{file}:{trace.tb_lineno}" if file in files else found
        trace = trace.tb_next
    return found


def _is_plugin(module: str) -> bool:
    return module.startswith(_PREFIX) or module in _named()


def _named() -> list[str]:
    return [name for name in os.environ.get(VARIABLE, "").split(os.pathsep) if name]


def _load(name: str) -> ModuleType:
    try:
        return _import_file(Path(name)) if name.endswith(".py") else importlib.import_module(name)
    except MMGEMError as error:
        raise UsageError(f"plugin {name}: {error}") from error
    except Exception as error:
        raise UsageError(f"plugin {name}: {type(error).__name__}: {error}") from error


def _import_file(path: Path) -> ModuleType:
    import hashlib  # here: `mmgem --help` goes without
    import importlib.util

    name = f"{_PREFIX}{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    if not path.is_file():
        raise UsageError("no such file")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
