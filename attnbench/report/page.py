"""The page itself: everything of a run in one HTML file that loads nothing else.

What comes from a run is text: escaped on its way into HTML, set as text by the scripts, and kept from executing by the
page's own policy, which admits the report's script by its hash and nothing from any network.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import importlib.resources
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attnbench.report.answer import Head
from attnbench.version import __version__

_SCRIPTS = ("model.js", "chart.js", "table.js", "main.js")


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page below the charts: its anchor, its title, and its HTML."""

    anchor: str
    title: str
    html: str


def page(
    head: Head,
    *,
    data: Mapping[str, Any],
    figures: Mapping[str, str],
    before: Sequence[Section],
    after: Sequence[Section],
) -> str:
    """The document. figures: SVG texts by file name. before, after: sections on either side of charts and rows."""
    style, script = _style(data["mechanisms"]), _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    charts = Section(anchor="charts-part", title="Charts", html=_CHARTS)
    rows = Section(anchor="rows-part", title="Every row", html='<div id="rows"></div>')
    sections = [*before, charts, *after, rows]
    links = "".join(f'<a href="#{each.anchor}">{text(each.title)}</a>' for each in sections)
    parts = "".join(
        f'<section id="{each.anchor}"><h2>{text(each.title)}</h2>{each.html}</section>' for each in sections
    )
    answer = "".join(f'<p class="answer">{text(sentence)}</p>' for sentence in head.answer)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="attnbench {__version__}">
<title>{text(head.title)} · attnbench</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header class="page">
<div class="top"><h1>{text(head.title)}</h1><button id="theme" type="button">☾ dark</button></div>
<p class="asked">{text(head.asked)}</p>
{answer}
<nav aria-label="Parts of the report">{links}</nav>
</header>
<main>
<noscript><p class="alarm">Charts and rows need JavaScript, which is switched off here.</p></noscript>
{parts}
</main>
<footer class="small">attnbench {__version__}. Numbers to three digits; times are medians of all samples.</footer>
<script type="application/json" id="data">{_json(data)}</script>
<script type="application/json" id="figures">{_json({name: packed(svg) for name, svg in figures.items()})}</script>
<script>{script}</script>
</body>
</html>
"""


def plain_page(title: str, *, asked: str, answer: Sequence[str], sections: Sequence[Section]) -> str:
    """A document of words, tables and pictures that lie beside it: in the same style, without scripts and rows."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file: data:"
    links = "".join(f'<a href="#{each.anchor}">{text(each.title)}</a>' for each in sections)
    parts = "".join(
        f'<section id="{each.anchor}"><h2>{text(each.title)}</h2>{each.html}</section>' for each in sections
    )
    said = "".join(f'<p class="answer">{text(sentence)}</p>' for sentence in answer)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="attnbench {__version__}">
<title>{text(title)} · attnbench</title>
<style>{_static("page.css")}</style>
</head>
<body>
<header class="page">
<h1>{text(title)}</h1>
<p class="asked">{text(asked)}</p>
{said}
<nav aria-label="Parts of the page">{links}</nav>
</header>
<main>
{parts}
</main>
<footer class="small">attnbench {__version__}</footer>
</body>
</html>
"""


def text(value: object) -> str:
    """Plain text as HTML."""
    return html.escape(str(value))


def items(sentences: Iterable[str]) -> str:
    """Sentences as a list."""
    return f"<ul>{''.join(f'<li>{text(sentence)}</li>' for sentence in sentences)}</ul>"


def facts(pairs: Mapping[str, object]) -> str:
    """Names with values, unknown ones left out."""
    known = {name: value for name, value in pairs.items() if value not in (None, "")}
    inner = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in known.items())
    return f'<dl class="facts">{inner}</dl>'


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of a table: its HTML, the value it sorts by, and a class."""

    html: str
    value: object = None
    kind: str = ""


def plain(value: object, *, kind: str = "") -> Cell:
    """A cell of plain text."""
    return Cell(html=text(value), kind=kind)


def table(
    headings: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    *,
    numbers: Iterable[str] = (),
    filter_by: str | None = None,
) -> str:
    """A table that sorts by its heads; columns in `numbers` sort, and stand, as numbers.

    filter_by: the column whose values a reader may choose from; such a table scrolls in itself.
    """
    right = set(numbers)
    heads = "".join(
        f'<th scope="col"{_class("number" if name in right else "")}>{text(name)}</th>' for name in headings
    )
    body = "".join(f"<tr>{''.join(map(_cell, headings, row, [right] * len(headings)))}</tr>" for row in rows)
    around, chosen = (
        ("overflow", "") if filter_by is None else ("scroll part", f' data-filter="{text(filter_by)}"')
    )
    return (
        f'<div class="{around}"><table class="sortable"{chosen}><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def packed(svg: str) -> str:
    """A text, compressed, in the letters of base64; equal texts give equal letters."""
    return base64.b64encode(gzip.compress(svg.encode(), compresslevel=9, mtime=0)).decode()


# ------------------------------------------------------------------------------------------------------------

_CHARTS = """
<div class="bar"><div id="choose"></div><div id="legend" role="group" aria-label="Mechanisms"></div></div>
<div id="charts"></div>
<p class="small">Marks below a chart are cases without a value: × out of memory, ▷ timeout, ! incorrect output,
– unsupported, ✶ crashed, □ error. Point at a mark, or move with the arrow keys, to read its row; click or press
Enter for all of it.</p>
"""


def _cell(heading: str, cell: Cell, right: set[str]) -> str:
    kinds = " ".join(filter(None, ("number" if heading in right else "", cell.kind)))
    value = "" if cell.value is None else f' data-v="{text(cell.value)}"'
    return f"<td{_class(kinds)}{value}>{cell.html}</td>"


def _class(names: str) -> str:
    return f' class="{names}"' if names else ""


def _json(value: object) -> str:
    """JSON that ends no script element, whatever is in it."""
    dense = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return dense.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _style(mechanisms: Sequence[Mapping[str, Any]]) -> str:
    """The stylesheet, with a colour for each mechanism in either theme, and the light ones on paper."""
    light, dark = (
        "".join(f"--m{place}:{look[theme]};" for place, look in enumerate(mechanisms))
        for theme in ("light", "dark")
    )
    themes = (
        f":root{{{light}}}"
        f'@media (prefers-color-scheme:dark){{:root:not([data-theme="light"]){{{dark}}}}}'
        f':root[data-theme="dark"]{{{dark}}}'
        f'@media print{{:root,:root:not([data-theme="light"]),:root[data-theme="dark"]{{{light}}}}}'
    )
    return _static("page.css") + themes


def _script() -> str:
    return "\n".join(_static(name) for name in _SCRIPTS)


def _static(name: str) -> str:
    return (importlib.resources.files("attnbench.report") / "static" / name).read_text(encoding="utf-8")
