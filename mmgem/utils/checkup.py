"""What a look at everything that lies under a path has found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with ``file``, and what to do about it."""

    file: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return " ".join(f"{self.file}: {self.problem}; {self.remedy}".split())


@dataclass
class Checkup:
    """What was looked at: ``kind`` says what it is, ``counts`` how much of it there is, ``notes`` what is no
    fault but could not be checked."""

    kind: str
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, file: Path | str, problem: str, remedy: str) -> None:
        """Report a problem."""
        self.problems.append(Problem(str(file), problem, remedy))

    def include(self, other: Checkup) -> None:
        """Take over what was found in a part."""
        self.counts |= {name: self.counts.get(name, 0) + count for name, count in other.counts.items()}
        self.problems += other.problems
        self.notes += other.notes

    def to_json(self) -> dict[str, Any]:
        """Plain form."""
        return {
            "kind": self.kind,
            "ok": not self.problems,
            "counts": self.counts,
            "problems": [asdict(problem) for problem in self.problems],
            "notes": self.notes,
        }
