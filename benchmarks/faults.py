"""Kills, races of two writers, full disks and damage: nothing is lost, and nothing wrong in silence.

    python benchmarks/faults.py [--kills 20] [--races 50] [--disks 10] [--damage 25] [--seed 0] [CASE ...]

Each command runs on toy models and data, in a process of its own. A kill is SIGKILL at a random moment, and
the same command again afterwards; a race two commands at once that write the same; a full disk a small tmpfs
(as root) or, elsewhere, a limit on the size of files, and the command again with room; damage some flipped
bits in a file that was written, then ``mmgem check``, where there is one, and a command that reads it. A try
is right, ends in a clear error with nothing lost (one line, no bug of ours), is wrong in silence, has lost
what was there or was said to be written, or ends in a raw error. The exit code is 1 if there was any of the
last three.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fault_cases import CLEAR, LOST, RAW, RIGHT, WRONG, Assets, Case, Verdict, cases
from forks import Forked  # of tests/, which fault_cases puts on the path

from mmgem.cli.main import app

COLUMNS = (RIGHT, CLEAR, WRONG, LOST, RAW)
SECONDS = 600
_KIND = {"races": "race", "kills": "kill", "disks": "full disk", "damage": "damage"}
_FLIPS = 8
_CAN_CHECK = "check" in {command.name for command in app.registered_commands}
_ENOUGH = 64 << 20  # bytes of a disk that is not full


def command(argv: Sequence[str], begin: float = 0, file_bytes: int = 0) -> None:
    """``mmgem ARGV`` at the time ``begin``, in a process that is ended with its exit code; ``file_bytes``:
    the largest file it can write."""
    from mmgem.cli.main import main

    time.sleep(max(0.0, begin - time.time()))
    if file_bytes:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    sys.exit(main(argv))


class Bench:
    """Places to write to, and the commands run there."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng, self.number = folder, random.Random(seed), 0
        self.environment = os.environ | {
            "MMGEM_CACHE": str(folder / "cache"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, argv: Sequence[str], begin: float = 0, file_bytes: int = 0) -> Forked:
        self.number += 1
        said = self.folder / f"said-{self.number}"
        said.touch()
        return Forked(said, command, argv, begin, file_bytes, environment=self.environment)

    def run(self, argv: Sequence[str]) -> None:
        """To its good end."""
        code, said = end(self.start(argv))
        if code:
            raise SystemExit(f"mmgem {' '.join(argv)}: {code}: {said}")

    @contextmanager
    def place(self, case: Case, folder: Path | None = None) -> Iterator[Path]:
        place = folder or self.folder / f"place-{self.number}"
        place.mkdir(exist_ok=True)
        case.prepare(place)
        try:
            yield place
        finally:
            if folder is None:
                shutil.rmtree(place)


def end(process: Forked) -> tuple[int, str]:
    """The exit code of a process and what it said."""
    process.process.join(SECONDS)
    if process.process.exitcode is None:
        process.process.kill()
        process.process.join()
    return process.process.exitcode or 0, process.said.read_text(errors="replace")


def is_raw(code: int, said: str, found_in: Path | None = None) -> bool:
    """Whether a command ended in a way that tells its user nothing. ``found_in``: what `mmgem check` was
    given, whose findings begin with a file of it."""
    begins = ("mmgem: error: ", *([str(found_in)] if found_in else []))
    clear = any(line.startswith(begins) for line in said.splitlines())
    return code != 0 and (code < 0 or not clear or "a bug in mmgem" in said or "Traceback" in said)


def judge(case: Case, place: Path, ends: Sequence[tuple[int, str]]) -> tuple[Verdict, str]:
    """What became of commands that ended by themselves, and what shows it."""
    raw = next((said for code, said in ends if is_raw(code, said)), None)
    if raw is not None:
        return RAW, raw
    verdict = case.check(place, [n for n, (code, _) in enumerate(ends) if code == 0])
    said = " | ".join(said.strip() for _, said in ends)
    if verdict == RIGHT and any(code for code, _ in ends):
        return CLEAR, said
    return verdict, said


def kill(bench: Bench, case: Case) -> tuple[Verdict, str]:
    """SIGKILL, then the same command again."""
    with bench.place(case) as place:
        began = time.monotonic()
        bench.run(case.argv(place, 0))
        seconds = time.monotonic() - began
    with bench.place(case) as place:
        process = bench.start(case.argv(place, 0)).process
        time.sleep(bench.rng.uniform(0, seconds))
        process.kill()
        process.join()
        killed = process.exitcode == -signal.SIGKILL
        if (verdict := case.check(place, [])) != RIGHT:
            return verdict, "after the kill"
        code, said = end(bench.start(case.argv(place, 0)))
        if is_raw(code, said):
            return RAW, said
        # What was written before the kill is done: the command again says so, or does nothing.
        done = case.check(place, [0])
        return (done, said) if code == 0 or not killed or done == RIGHT else (CLEAR, said)


def race(bench: Bench, case: Case) -> tuple[Verdict, str]:
    """Two writers at once."""
    with bench.place(case) as place:
        begin = time.time() + 0.3
        delays = bench.rng.choice([(0, 0), (0, 0.05), (0.05, 0), (0, 0.2)])
        writers = [bench.start(case.argv(place, n), begin + delays[n]) for n in (0, 1)]
        return judge(case, place, [end(writer) for writer in writers])


def full_disk(bench: Bench, case: Case) -> tuple[Verdict, str]:
    """A disk that is full midway; then one that is not."""
    with bench.place(case) as place:
        before = size_of(place)
        bench.run(case.argv(place, 0))
        needed, largest = size_of(place), max(f.stat().st_size for f in place.rglob("*") if f.is_file())
    share = bench.rng.uniform(0.02, 1.0)
    with small_disk(bench.folder) as disk, bench.place(case, disk) as place:
        limit = 0
        if disk is not None:
            resize(disk, before + int(share * (needed - before)) + 8192)
        else:
            limit = max(1, int(share * largest))
        ends = [end(bench.start(case.argv(place, 0), file_bytes=limit))]
        verdict, said = judge(case, place, ends)
        if verdict == CLEAR and not any(word in said for word in ("disk full", "file too large")):
            verdict = RAW
        if verdict not in (RIGHT, CLEAR):
            return verdict, said
        if disk is not None:
            resize(disk, _ENOUGH)
        again, said_again = judge(case, place, [end(bench.start(case.argv(place, 0)))])
        return (verdict, said) if again == RIGHT else (again, f"{said} | again: {said_again}")


def damage(bench: Bench, case: Case) -> tuple[Verdict, str]:
    """Flipped bits; then ``mmgem check``, and what reads it."""
    with bench.place(case) as place:
        bench.run(case.argv(place, 0))
        wanted = end(bench.start(case.use(place))) if case.use else (0, "")
        files = [f for f in (place / case.damaged).rglob("*") if f.is_file() and f.stat().st_size]
        file = bench.rng.choice(files)
        data = bytearray(file.read_bytes())
        for _ in range(_FLIPS):
            data[bench.rng.randrange(len(data))] ^= 1 << bench.rng.randrange(8)
        file.write_bytes(data)
        if _CAN_CHECK:
            code, said = end(bench.start(["check", str(place / case.damaged)]))
            if code:
                return (RAW if is_raw(code, said, place / case.damaged) else CLEAR), said
        if case.use is None:
            return WRONG, f"{file.name}: mmgem check finds nothing"
        code, said = end(bench.start(case.use(place)))
        if code:
            return (RAW if is_raw(code, said) else CLEAR), said
        return (RIGHT if said == wanted[1] else WRONG), f"{file.name}: {said}"


def size_of(folder: Path) -> int:
    """Bytes of a folder's files as a disk holds them: whole pages."""
    return sum(-(-f.stat().st_size // 4096) * 4096 for f in folder.rglob("*") if f.is_file())


@contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A tmpfs of its own; None where it cannot be mounted."""
    disk = folder / "disk"
    disk.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_ENOUGH}", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    try:
        yield disk if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", str(disk)], check=True)


def resize(disk: Path, size: int) -> None:
    """Give a tmpfs another size in bytes; at least what lies there."""
    with suppress(subprocess.CalledProcessError):
        subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True, capture_output=True)


TRIALS = {"kills": kill, "races": race, "disks": full_disk, "damage": damage}


def measure(
    folder: Path, counts: dict[str, int], names: Sequence[str] = (), seed: int = 0
) -> dict[str, Counter[Verdict]]:
    """How often each kind of fault, on each of the cases ``names`` (none: all), ended in which way. What is
    not right is said on standard error."""
    bench, results = Bench(folder, seed), {}
    for case in cases(Assets(folder), bench.run, names):
        for kind, count in counts.items():
            skipped = (kind == "kills" and "," in case.name) or (kind == "damage" and not case.damaged)
            if not count or skipped or (kind == "damage" and not case.use and not _CAN_CHECK):
                continue
            results[f"{case.name}: {_KIND[kind]}"] = found = Counter()
            for _ in range(count):
                verdict, said = TRIALS[kind](bench, case)
                found[verdict] += 1
                if verdict in (WRONG, LOST, RAW):
                    print(f"{case.name}: {_KIND[kind]}: {verdict}: {said[-2000:]}", file=sys.stderr)
    return results


def table(results: dict[str, Counter[Verdict]]) -> str:
    """Markdown, a row for each case and kind of fault."""
    rows = [["what", "tries", *COLUMNS]]
    rows += [[name, str(c.total()), *(str(c[column]) for column in COLUMNS)] for name, c in results.items()]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for kind, count in (("kills", 20), ("races", 50), ("disks", 10), ("damage", 25)):
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N", help="tries of each case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("names", nargs="*", metavar="CASE", help="only these, as the table names them")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        counts = {kind: getattr(options, kind) for kind in TRIALS}
        results = measure(Path(folder), counts, options.names, options.seed)
    print(table(results))
    return int(any(c[bad] for c in results.values() for bad in (WRONG, LOST, RAW)))


if __name__ == "__main__":
    sys.exit(main())
