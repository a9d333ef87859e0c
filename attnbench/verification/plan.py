"""Who checks which cases: groups that share what is compiled and tuned, handed out to workers one by one."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum

from attnbench.case import Case
from attnbench.measure.clock import now_s
from attnbench.registry import find


class Kind(IntEnum):
    """What the first calls of a group do, by rising time."""

    ABSENT = 0  # all of it ends as unsupported
    PLAIN = 1
    COMPILES = 2
    TUNES = 3


@dataclass(frozen=True, kw_only=True)
class Group:
    """Cases that one worker checks, as they share what is compiled and tuned: their places among all."""

    name: str
    kind: Kind
    places: tuple[int, ...]


def groups_of(wanted: Sequence[Case], *, device: str) -> list[Group]:
    """Those first that take longest, so that no worker begins with one of them when the others have ended."""
    together: dict[tuple[str, str, int, int], list[int]] = {}
    for place, case in enumerate(wanted):
        together.setdefault((case.mechanism, case.dtype, case.head_dim, case.value_dim), []).append(place)
    kinds = {mechanism: _kind(mechanism, device=device) for mechanism, *_ in together}
    # Wide heads compile for longer.
    longest = sorted(
        together.items(), key=lambda each: (kinds[each[0][0]], sum(each[0][2:]), len(each[1])), reverse=True
    )
    return [
        Group(
            name=f"{mechanism} ({dtype}, {_dims(head_dim, value_dim)})",
            kind=kinds[mechanism],
            places=tuple(places),
        )
        for (mechanism, dtype, head_dim, value_dim), places in longest
    ]


def _dims(head_dim: int, value_dim: int) -> str:
    return f"head dim {head_dim}" + (f", value dim {value_dim}" if value_dim != head_dim else "")


def _kind(mechanism: str, *, device: str) -> Kind:
    provider = find(mechanism).provider_for(device)
    if isinstance(provider, str):
        return Kind.ABSENT
    if provider.tunes_each_width:
        return Kind.TUNES
    return Kind.COMPILES if provider.compiles_each_shape else Kind.PLAIN


@dataclass
class Pace:
    """How long the rest takes, each kind of groups by those of its kind that have ended: slow ones come first."""

    left: Counter[Kind] = field(default_factory=Counter)  # cases
    _checked: Counter[Kind] = field(default_factory=Counter)
    _took_s: dict[Kind, float] = field(default_factory=dict)

    def ended(self, kind: Kind, *, cases: int, seconds: float) -> None:
        """Take note of a group: seconds of its one worker."""
        if cases:
            self._checked[kind] += cases
            self._took_s[kind] = self._took_s.get(kind, 0.0) + seconds

    def left_s(self, *, workers: int) -> float | None:
        """Seconds for what is left; None while no group of a kind that is left has ended."""
        kinds = [kind for kind, cases in self.left.items() if cases > 0 and kind is not Kind.ABSENT]
        if any(not self._checked[kind] for kind in kinds):
            return None
        busy_s = sum(self.left[kind] * self._took_s[kind] / self._checked[kind] for kind in kinds)
        return busy_s / max(workers, 1)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Seconds for the rest, None where nothing tells them yet; groups that are not done, of how many."""

    left_s: float | None
    groups: int
    of: int


@dataclass(kw_only=True)
class _Turn:
    """A group that a worker is at."""

    group: Group
    begun_s: float
    checked: int = 0


class Plan:
    """The groups that are left, for workers by their numbers. Of several threads; each method is done at once."""

    def __init__(
        self,
        groups: Iterable[Group],
        *,
        deadline_s: float | None,
        waiting: Callable[[Sequence[str]], None],
    ) -> None:
        """deadline_s: on the clock of `now_s`; what is known to last beyond it is not begun."""
        self._changed = threading.Condition()
        self._closed = False
        self._left = list(groups)
        self._deadline_s = deadline_s
        self._waiting = waiting
        self._turns: dict[int, _Turn] = {}
        self._total = len(self._left)
        self._first_s: dict[Kind, float] = {}  # the longest wait for the first row of a group
        self._workers = 0
        self._pace = Pace(left=_cases(self._left))

    def without(self, places: Iterable[int]) -> None:
        """Leave out what is done already, before anything is taken."""
        with self._changed:
            done = set(places)
            reduced = (
                replace(g, places=tuple(place for place in g.places if place not in done)) for g in self._left
            )
            self._left = [group for group in reduced if group.places]
            self._total = len(self._left)
            self._pace = Pace(left=_cases(self._left))

    def take(self, number: int) -> Group | None:
        """The next group for a worker; None: it should begin none.

        It waits while another worker may lose what it is at.
        """
        with self._changed:
            self._ended(number)
            told = False
            while not self._closed:
                group = next((group for group in self._left if self._fits(group)), None)
                if group is not None:
                    self._left.remove(group)
                    self._turns[number] = _Turn(group=group, begun_s=now_s())
                    self._workers = max(self._workers, len(self._turns))
                    return group
                if self._left or not self._turns:
                    return None
                if not told:
                    self._waiting(tuple(turn.group.name for turn in self._turns.values()))
                told = True
                self._changed.wait()
            return None

    def close(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def checked(self, number: int) -> None:
        """One more case of a worker's group is done."""
        with self._changed:
            turn = self._turns[number]
            kind = turn.group.kind
            if not turn.checked:
                self._first_s[kind] = max(self._first_s.get(kind, 0.0), now_s() - turn.begun_s)
            turn.checked += 1
            self._pace.left[kind] -= 1

    def lost(self, number: int) -> None:
        """A worker goes for good; what it leaves of its group is for the others, before all else."""
        with self._changed:
            turn = self._ended(number)
            if turn is not None and turn.checked < len(turn.group.places):
                self._left.insert(0, replace(turn.group, places=turn.group.places[turn.checked :]))

    def progress(self) -> Progress:
        """How far it is now."""
        with self._changed:
            return Progress(
                left_s=self._pace.left_s(workers=self._workers),
                groups=len(self._left) + len(self._turns),
                of=self._total,
            )

    def _ended(self, number: int) -> _Turn | None:
        turn = self._turns.pop(number, None)
        self._changed.notify_all()
        if turn is not None:
            self._pace.ended(turn.group.kind, cases=turn.checked, seconds=now_s() - turn.begun_s)
        return turn

    def _fits(self, group: Group) -> bool:
        """May its first row come before the deadline? What is under way then is lost."""
        return self._deadline_s is None or now_s() + self._first_s.get(group.kind, 0.0) < self._deadline_s


def _cases(groups: Iterable[Group]) -> Counter[Kind]:
    found: Counter[Kind] = Counter()
    for group in groups:
        found[group.kind] += len(group.places)
    return found
