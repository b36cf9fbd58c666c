"""A photo shown where it lies: its folder in the file manager of this machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mmgem.serve.errors import APIError

_SECONDS = 2.0  # within which a file manager that cannot open says so


def reveal(path: Path) -> None:
    """Open the folder of ``path``, with the file marked where the system can do that. Raises ``APIError``:
    404 for a folder that is gone, 422 where no file manager opens it."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise APIError(404, "not_found", f"{folder}: the folder is gone")
    try:
        manager = subprocess.Popen(
            _command(path.absolute()),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        failed = manager.wait(_SECONDS) != 0 and sys.platform != "win32"  # Explorer always says 1
    except subprocess.TimeoutExpired:
        return  # it is open
    except OSError:
        failed = True
    if failed:
        raise APIError(422, "no_file_manager", f"{folder}: no file manager of this machine opens it")


def _command(path: Path) -> list[str]:
    if sys.platform == "darwin":
        return ["open", "-R", str(path)]
    if sys.platform == "win32":
        return ["explorer", f"/select,{path}"]
    return ["xdg-open", str(path.parent)]
