"""Writes the locks of `make install`, `make demo` and the container: every package by version and sha256, for
every system.

    pip install uv && python constraints/lock.py [--upgrade]

uv resolves what pyproject.toml asks for under constraints.txt, for Python from 3.11 on. What is locked
stays as it is, unless that no longer fits or --upgrade is given. PyTorch is in a file of its own, of which
there are two: torch.lock, its build on PyPI, which on Linux brings the libraries of CUDA, and torch-cpu.lock,
its build without. run.lock is the part of requirements.lock that the commands, the server and its page need.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK, RUN, TORCH, CPU = (
    ROOT / name
    for name in (
        "requirements.lock",
        "constraints/run.lock",
        "constraints/torch.lock",
        "constraints/torch-cpu.lock",
    )
)
RUN_EXTRAS = ("serve", "heif")
"""Beside what every command needs: the server, and the photos of phones."""
BUILD = "hatchling>=1.26\neditables>=0.5\n"
"""What installs the package itself, without fetching more."""

_TORCH = re.compile(r"(torch==|nvidia-|cuda-|triton==)")
_CPU_BUILDS = (("2.13.0+cpu", "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"),)
"""Of PyTorch for Python 3.11 on Linux x86-64, from PyTorch's own index."""

_HEAD = "# Written by constraints/lock.py from pyproject.toml and constraints.txt."


def blocks(text: str) -> list[str]:
    """The requirements of a lock with their hashes, each several lines."""
    found: list[str] = []
    for line in text.splitlines():
        if line.startswith("#") or not line.strip():
            continue
        if line[0].isspace():
            found[-1] += f"\n{line.split('  # via')[0].rstrip()}"
        else:
            found.append(line)
    return found


def split(text: str) -> tuple[str, str]:
    """What uv resolved without PyTorch and its libraries, and these."""
    parts: tuple[list[str], list[str]] = ([_HEAD], [_HEAD])
    for block in blocks(text):
        parts[bool(_TORCH.match(block))].append(block)
    return "\n".join([*parts[0], ""]), "\n".join([*parts[1], ""])


def resolve(extras: Sequence[str], build: Path, constraints: Path, out: Path, *more: str) -> None:
    """Write to ``out`` what the package with ``extras`` needs under ``constraints``."""
    command = ["uv", "pip", "compile", "pyproject.toml", str(build), "--constraint", str(constraints)]
    command += [part for extra in extras for part in ("--extra", extra)]
    command += ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-header"]
    command += ["--no-emit-index-url", "--no-annotate", "--output-file", str(out), *more]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Resolve anew and write all files."""
    with tempfile.TemporaryDirectory() as folder:
        out, part, build = (Path(folder) / name for name in ("all.lock", "run.lock", "build.in"))
        build.write_text(BUILD)
        out.write_text("".join(file.read_text() for file in (LOCK, TORCH) if file.exists()))
        resolve(["dev"], build, ROOT / "constraints.txt", out, *sys.argv[1:])
        general, torch = split(out.read_text())
        resolve(RUN_EXTRAS, build, out, part)
        needed = {block.split("==")[0] for block in blocks(part.read_text())}
    run = [block for block in blocks(general) if block.split("==")[0] in needed]
    LOCK.write_text(general)
    RUN.write_text("\n".join([_HEAD, *run, ""]))
    TORCH.write_text(torch)
    builds = [f"torch=={version} \\\n    --hash=sha256:{digest}" for version, digest in _CPU_BUILDS]
    CPU.write_text("\n".join([_HEAD, *builds, ""]))


if __name__ == "__main__":
    main()
