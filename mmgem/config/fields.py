"""What there is to say of a config field, at the field: meaning, range, what it needs, when it may change.

    @dataclass
    class MarginConfig:
        margin: float = setting(0.2, help="Least gap to a negative.", low=0, high=1)

A number of which no range is said has to be finite. :mod:`mmgem.config.checks` reads these facts.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

_LARGEST = sys.float_info.max  # what is infinite, or no number, is above it
_KEY = "mmgem"


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``; without the end itself where it is ``above`` or ``below``."""

    low: float = -_LARGEST
    high: float = _LARGEST
    above: bool = False
    below: bool = False
    words: str = ""
    """What a message calls it; made of the ends if not given."""

    def __contains__(self, value: float) -> bool:
        low = value > self.low if self.above else value >= self.low
        return low and (value < self.high if self.below else value <= self.high)

    def __str__(self) -> str:
        if self.words:
            return self.words
        bounded = self.high < _LARGEST
        if self.low == -_LARGEST:
            last = f"{'below' if self.below else 'at most'} {self.high:g}"
            return last if bounded else "a finite number"
        if self.above:
            last = f"{' and below' if self.below else ', at most'} {self.high:g}"
            return f"above {self.low:g}{last if bounded else ''}"
        if not bounded:
            return f"{self.low:g} or more"
        return f"from {self.low:g} to {'below ' if self.below else ''}{self.high:g}"


FINITE = Range()


@dataclass(frozen=True)
class Need:
    """A condition on the whole recipe, without which a field would do nothing or contradict another."""

    what: str
    """The condition in words that follow "needs"."""
    holds: Callable[[Any], bool]
    """Whether it holds in a :class:`mmgem.config.Recipe`."""
    reason: str
    """What an error says after the field's name."""


@dataclass(frozen=True)
class Fact:
    """What there is to say of a field beside its type and default."""

    help: str = ""
    range: Range | None = None
    needs: tuple[Need, ...] = ()
    """Asked in this order if the field has another value than its default."""
    free_on_resume: bool = False
    """It may change when a run goes on: it decides how a run is computed, or seen, not what it computes."""
    free_on_init: bool = False
    """It may differ from the model in ``init.checkpoint`` that a run starts from: it decides what the weights
    are shown, or how they train, not what they are."""

    def within(self, section: Fact) -> Fact:
        """This fact with what the whole ``section`` around the field needs and allows."""
        return dataclasses.replace(
            self,
            needs=section.needs + self.needs,
            free_on_resume=section.free_on_resume or self.free_on_resume,
            free_on_init=section.free_on_init or self.free_on_init,
        )


def setting(
    default: Any = dataclasses.MISSING,
    *,
    default_factory: Callable[[], Any] | None = None,
    help: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
    range_words: str = "",
    needs: Need | Sequence[Need] = (),
    free_on_resume: bool = False,
    free_on_init: bool = False,
) -> Any:
    """A dataclass field with its :class:`Fact`; without ``default`` and ``default_factory`` it has to be set.

    ``low`` and ``high``: the range of a number, or of each of a list, with these ends; ``above`` and
    ``below``: without them. ``high=math.inf`` allows infinity. ``needs`` of a field that is a section counts
    for all in it. Raises ``TypeError`` for a range with two lower or two upper ends, or none in between.
    """
    if (low is not None and above is not None) or (high is not None and below is not None):
        raise TypeError("a range has one lower and one upper end")
    least = low if low is not None else above
    most = high if high is not None else below
    allowed = None
    if least is not None or most is not None or range_words:
        allowed = Range(
            -_LARGEST if least is None else least,
            _LARGEST if most is None else most,
            above is not None,
            below is not None,
            range_words,
        )
        if not allowed.low < allowed.high or math.isnan(allowed.low + allowed.high):
            raise TypeError(f"a range has numbers in it, not {allowed}")
    fact = Fact(
        help,
        allowed,
        (needs,) if isinstance(needs, Need) else tuple(needs),
        free_on_resume,
        free_on_init,
    )
    if default_factory is not None:
        return dataclasses.field(default_factory=default_factory, metadata={_KEY: fact})
    return dataclasses.field(default=default, metadata={_KEY: fact})


def fact_of(field: dataclasses.Field[Any]) -> Fact:
    """What is said of a dataclass field; an empty fact for one that was not made by :func:`setting`."""
    fact: Fact = field.metadata.get(_KEY, Fact())
    return fact
