"""The closing words of a run: who is fastest where, how flat, where curves cross, and what is missing.

found.py                  what a run found, as data
finding.py, doubts.py     from rows to that; what there is to doubt
words.py, console.py      sentences and JSON; tables on a terminal
"""

from attnbench.summary.console import render
from attnbench.summary.finding import summarize_run
from attnbench.summary.found import Energy, Flatness, Leader, Missing, Section, Summary
from attnbench.summary.words import (
    as_json,
    closing,
    fastest_words,
    findings,
    flattest_words,
    heading,
    overtaking_words,
    sentences,
    standing_words,
)

__all__ = [
    "Energy",
    "Flatness",
    "Leader",
    "Missing",
    "Section",
    "Summary",
    "as_json",
    "closing",
    "fastest_words",
    "findings",
    "flattest_words",
    "heading",
    "overtaking_words",
    "render",
    "sentences",
    "standing_words",
    "summarize_run",
]
