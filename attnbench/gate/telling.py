"""What a user sees while a gate measures: a line for each process with the time left, and the case at hand."""

from __future__ import annotations

import math
import re
from types import TracebackType

from rich.console import Console
from rich.status import Status
from rich.text import Text

from attnbench.case import Case
from attnbench.errors import UserError


class Teller:
    """Prints lines; on a terminal the case that is being measured stands below them."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._status: Status | None = None

    def __enter__(self) -> Teller:
        if self._console.is_terminal:
            self._status = self._console.status("starting a process")
            self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    def case(self, case: Case) -> None:
        if self._status is not None:
            self._status.update(case.case_id)


def seconds(text: str, *, option: str) -> float:
    """`90`, `90s`, `5m` or `1.5h` in seconds.

    Raises UserError for anything else, and for no time at all.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([smh]?)\s*", text, re.ASCII)
    found = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else math.nan
    if not 0 < found < math.inf:
        raise UserError(f"{option} expects a span of time such as 90s or 5m, not '{text}'")
    return found
