"""What is written beside the pictures: a Markdown file for each figure, and a summary of all as Markdown and HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.errors import UserError
from attnbench.paper.deviations import Deviation, Verdict, hardware_words, verdict_words
from attnbench.paper.figures import Figure
from attnbench.paper.lines import Line
from attnbench.paper.sittings import Sitting, took_table, words
from attnbench.paper.tables import Table, claims_table, value_tables
from attnbench.report.page import Section, items, plain, plain_page, table, text
from attnbench.words import count_text

_KINDS = {
    Verdict.HOLDS: "verdict-faster", Verdict.FAILS: "verdict-slower", Verdict.OPEN: "verdict-unclear",
    Verdict.UNMEASURED: "verdict-same",
}  # fmt: skip
_SHARDED = (
    "The same commands train on several GPUs (FSDP2) under torchrun, with tokens of a step for each of them: "
    "`torchrun --nproc-per-node 2 -m attnbench model train-step --size 3B --seq-len 1k,32k --tokens 128k`."
)
_TOOK = "What measuring took"
_WIDE = dict.fromkeys((0, 3, 4), "wide")  # columns of sentences


@dataclass(frozen=True, kw_only=True)
class Reproduced:
    """One figure as it was drawn: its pictures, its lines, its claims, and what a reader must know of them."""

    figure: Figure
    pictures: tuple[Path, ...]  # empty: nothing is printed and nothing was measured
    lines: tuple[Line, ...]
    deviations: tuple[Deviation, ...]
    device: str  # empty: published points alone
    remarks: tuple[str, ...]
    details: tuple[Table, ...]  # what more is known of the measured points
    left: tuple[str, ...]  # what the budget did not reach

    @property
    def sentence(self) -> str:
        """How it stands, in words."""
        if not self.device:
            alone = "published points alone" if self.pictures else "nothing to draw, as no value is printed"
            return f"{alone}: {self.remarks[0]}" if self.remarks else alone
        return f"on {self.device} {verdict_words(self.deviations)}"

    @property
    def notes(self) -> tuple[str, ...]:
        """The remarks that the sentence does not have."""
        return self.remarks if self.device else self.remarks[1:]

    @property
    def failing(self) -> list[str]:
        """The claims that do not hold here, with what is shown instead."""
        several = len({each.device for each in self.deviations if each.device}) > 1
        return [
            f"{each.claim} ({each.panel}{f', {each.device}' if several else ''}): here {each.here}"
            for each in self.deviations
            if each.verdict is Verdict.FAILS
        ]


def write(path: Path, content: str) -> Path:
    """Write a text file. Raises UserError when that cannot be done."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def figure_markdown(done: Reproduced) -> str:
    """The page of one figure."""
    figure = done.figure
    pictures = [f"![{figure.title}]({path.name})" for path in done.pictures if path.suffix == ".png"]
    failing = (
        ["What does not hold here:", "", *(f"- {said}" for said in done.failing), ""] if done.failing else []
    )
    values = [part for each in value_tables(figure, done.lines) for part in (each.markdown(), "")]
    return "\n".join(
        [
            f"# {figure.title}",
            "",
            f"{figure.paper}. {_level(figure)} {done.sentence[:1].upper()}{done.sentence[1:]}.",
            "",
            *[part for picture in pictures for part in (picture, "")],
            *([hardware_words(figure, done.device), ""] if done.device else []),
            *[f"- {remark}" for remark in done.notes],
            "",
            "## Claims",
            "",
            claims_table(done.deviations).markdown() if done.deviations else "None is checked.",
            "",
            *failing,
            "## Values",
            "",
            "Beside a measured value, in brackets: over the published one (the corrected one, where there is one).",
            "",
            *values,
            *[part for each in done.details for part in (each.markdown(), "")],
            "To measure it:",
            "",
            *[f"    attnbench {command}" for command in how(figure)],
            "",
            *([_SHARDED, ""] if figure.records == "train-step" else []),
            "## What is published",
            "",
            f"- Published: {figure.published}.",
            f"- Hardware: {figure.hardware}.",
            *[f"- Stated: {each}." for each in figure.stated],
            f"- Not stated: {', '.join(figure.not_stated)}.",
            *([f"- Assumed here: {figure.assumed}."] if figure.assumed else []),
            *[f"- Erratum: {each}" for each in figure.errata],
            *[f"- Derived: {each}" for each in figure.derived],
            *[f"- Corrected: {each.why}." for each in figure.correction],
            "",
        ]
    )


def summary_markdown(done: Sequence[Reproduced], *, command: str, measured: Sequence[Sitting] = ()) -> str:
    """One page of all figures. measured: in which sittings, where it is known."""
    rows = tuple(
        (f"[{each.figure.name}]({each.figure.name}.md)", each.figure.title, each.figure.paper, each.sentence)
        for each in done
    )
    failing = [
        f"- [{each.figure.name}]({each.figure.name}.md): {said}" for each in done for said in each.failing
    ]
    pictures = [
        f"[![{each.figure.title}]({each.pictures[0].with_suffix('.png').name})]({each.figure.name}.md)"
        for each in done
        if each.pictures
    ]
    return "\n".join(
        [
            "# The papers' figures, published and measured",
            "",
            f"`{command}`. {overall(done)}",
            "",
            *([words(measured), ""] if measured else []),
            Table(title="", headings=("figure", "what", "from", "here"), rows=rows).markdown(),
            "",
            *(["## What does not hold here", "", *failing, ""] if failing else []),
            *(["## Where it differs", ""]),
            *[
                f"- {each.figure.name}: {hardware_words(each.figure, each.device)}"
                for each in done
                if each.device
            ],
            "",
            *[part for picture in pictures for part in (picture, "")],
            *([f"## {_TOOK}", "", took_table(measured).markdown(), ""] if measured else []),
        ]
    )


def summary_html(done: Sequence[Reproduced], *, command: str, measured: Sequence[Sitting] = ()) -> str:
    """The same page for a browser, with the claims of each figure."""
    return plain_page(
        "The papers' figures, published and measured",
        asked=command,
        answer=[overall(done), *([words(measured)] if measured else [])],
        sections=[*map(_section, done), *([_took(measured)] if measured else [])],
    )


def overall(done: Sequence[Reproduced]) -> str:
    """How all figures stand, in one sentence or two."""
    claims = [claim for each in done for claim in each.deviations]
    said = verdict_words(claims)
    left = list(dict.fromkeys(said for each in done for said in each.left))
    more = f" {left_words(left)[:1].upper()}{left_words(left)[1:]}." if left else ""
    return f"{count_text(len(done), 'figure')}; {said}.{_counted(done)}{more}"


def _counted(done: Sequence[Reproduced]) -> str:
    """Why there are more claims than the papers make, where that is so."""
    claims = sum(len(each.deviations) for each in done)
    made = sum(len(claim.panels) for each in done for claim in each.figure.claim)
    if claims <= made:
        return ""
    return f" The papers make {made:,}; one counts again for each setting that it was measured with."


def how(figure: Figure) -> list[str]:
    """The commands that measure a figure's points; `paper` itself runs them."""
    return [*(f"sweep {preset}" for preset in figure.sweeps), *figure.record_by, *figure.record_more]


def left_words(left: Sequence[str]) -> str:
    """What a budget did not reach, without a full stop."""
    return f"left by the budget, for the same command to go on with: {'; '.join(left)}"


# ------------------------------------------------------------------------------------------------------------


def _level(figure: Figure) -> str:
    if figure.level == "operator":
        return "Operator level: one attention call, not a model."
    return "Model level: a whole model, of which attention is a part."


def _section(done: Reproduced) -> Section:
    figure = done.figure
    pictures = "".join(
        f'<p><img src="{text(path.name)}" alt="{text(figure.title)}" style="max-width:100%;background:#fff"></p>'
        for path in done.pictures
        if path.suffix == ".png"
    )
    claims = claims_table(done.deviations)
    shown = [place for place, name in enumerate(claims.headings) if name != "from"]
    rows = [
        [
            plain(row[place], kind=_KINDS[each.verdict] if place == shown[-1] else _WIDE.get(place, ""))
            for place in shown
        ]
        for row, each in zip(claims.rows, done.deviations, strict=True)
    ]
    notes = {"Errata": figure.errata, "Derived": figure.derived}
    errata = "".join(f"<h3>{name}</h3>{items(given)}" for name, given in notes.items() if given)
    return Section(
        anchor=figure.name,
        title=figure.title,
        html="".join(
            [
                f'<p class="small">{text(figure.paper)}. {text(_level(figure))}</p>',
                f"<p>{text(done.sentence[:1].upper() + done.sentence[1:])}.</p>",
                pictures,
                f"<p>{text(hardware_words(figure, done.device))}</p>" if done.device else "",
                items(done.notes) if done.notes else "",
                table([claims.headings[place] for place in shown], rows) if rows else "",
                errata,
            ]
        ),
    )


def _took(measured: Sequence[Sitting]) -> Section:
    took = took_table(measured)
    rows = [[plain(cell) for cell in row] for row in took.rows]
    return Section(anchor="took", title=_TOOK, html=table(took.headings, rows))
