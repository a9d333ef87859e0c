"""The search for the first bad commit, on histories whose truth is known."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from attnbench.gate.bisecting import Commit, Step, first_bad

Histories = st.integers(1, 40).flatmap(
    lambda count: st.tuples(
        st.integers(0, count - 1), st.lists(st.booleans(), min_size=count, max_size=count)
    )
)


def _commits(count: int) -> list[Commit]:
    return [Commit(name=str(place), subject="") for place in range(count)]


@given(Histories)
def test_the_first_bad_commit_is_among_the_suspects_and_only_what_cannot_be_judged_beside_it(
    history: tuple[int, list[bool]],
) -> None:
    """From commit `first` on everything is bad; some cannot be judged, the last one always can."""
    first, unknown = history
    count = len(unknown)
    unknown[-1] = False
    tried: list[int] = []

    def judge(commit: Commit) -> Step:
        place = int(commit.name)
        tried.append(place)
        return Step.SKIPPED if unknown[place] else Step.BAD if place >= first else Step.GOOD

    suspects = [int(each.name) for each in first_bad(_commits(count), judge)]
    assert first in suspects
    assert suspects == list(range(suspects[0], suspects[-1] + 1))
    assert all(unknown[place] for place in suspects[:-1])
    assert not unknown[suspects[-1]]
    assert len(tried) == len(set(tried))
    if not any(unknown):
        assert suspects == [first]
        assert len(tried) <= 1 + max(count - 1, 1).bit_length()


def test_a_last_commit_that_is_not_bad_ends_the_search() -> None:
    for step in (Step.GOOD, Step.SKIPPED):
        assert first_bad(_commits(5), lambda commit, step=step: step) == []  # type: ignore[misc]
