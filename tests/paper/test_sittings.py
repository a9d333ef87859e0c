"""How long measuring took is kept run by run, added up over sittings, and told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from attnbench.errors import UserError
from attnbench.paper import sittings
from attnbench.paper.sittings import Sitting, Stopwatch, took_table, words


@pytest.fixture
def take(monkeypatch: pytest.MonkeyPatch) -> Callable[[Stopwatch, str, float], None]:
    """Measures something for so many seconds."""
    clock = [100.0]
    monkeypatch.setattr(sittings, "now_s", lambda: clock[0])

    def measure(stopwatch: Stopwatch, what: str, seconds: float) -> None:
        with stopwatch(what):
            clock[0] += seconds

    return measure


def test_each_sitting_is_kept_with_what_it_measured(
    take: Callable[[Stopwatch, str, float], None], tmp_path: Path
) -> None:
    first = Stopwatch(folder=tmp_path / "runs", began="2030-01-01T10:00:00+00:00")
    take(first, "paper-fig3", 180.0)
    take(first, "decode", 0.9)  # it was there already
    take(first, "model losses", 61.0)
    take(first, "paper-fig3", 20.0)  # another figure has it too
    second = Stopwatch(folder=tmp_path / "runs", began="2030-01-02T10:00:00+00:00")
    take(second, "decode", 33.0)
    found = sittings.sittings(tmp_path / "runs")
    assert found == [
        Sitting(began=first.began, seconds={"paper-fig3": 200.0, "model losses": 61.0}),
        Sitting(began=second.began, seconds={"decode": 33.0}),
    ]
    assert words(found[:1]) == "Measuring took 4 min 21 s, on 2030-01-01."
    assert words(found) == "Measuring took 4 min 54 s, in 2 sittings (2030-01-01, 2030-01-02)."
    assert took_table(found).rows == (
        ("sweep paper-fig3", "3 min 20 s"),
        ("model losses", "1 min 1 s"),
        ("sweep decode", "33 s"),
    )


def test_what_was_cut_off_counts(take: Callable[[Stopwatch, str, float], None], tmp_path: Path) -> None:
    stopwatch = Stopwatch(folder=tmp_path)

    def cut_off() -> None:
        with stopwatch("decode"):
            take(stopwatch, "inside", 5.0)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_off()
    (found,) = sittings.sittings(tmp_path)
    assert found.seconds == {"inside": 5.0, "decode": 5.0}


def test_where_nothing_was_measured_nothing_is_said(
    take: Callable[[Stopwatch, str, float], None], tmp_path: Path
) -> None:
    take(Stopwatch(folder=tmp_path), "decode", 0.1)
    assert list(tmp_path.iterdir()) == []
    assert words(sittings.sittings(tmp_path)) == ""


@pytest.mark.parametrize(
    "content", ["", "{}", '{"sittings": [1]}', '{"sittings": [{"began": "x", "seconds": 3}]}']
)
def test_a_damaged_file_is_a_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / sittings.FILE).write_text(content)
    with pytest.raises(UserError, match=r"sittings\.json is not what attnbench paper wrote"):
        sittings.sittings(tmp_path)
