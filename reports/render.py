"""Write the report of every recorded sweep, with pictures of it in light, dark, on a phone and on paper.

    python reports/render.py [DEVICE]          # results/h200/*.parquet -> reports/h200/*/report.html and report.*.png

The pictures need a Chromium and the extra `browser`; without them only the pages are written. Records of sequence
parallelism get the figures of `attnbench parallel scaling`; other kinds of records have no report and are left out.
"""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from attnbench.models.records import kind_of, read
from attnbench.parallel.figures import plot_scaling
from attnbench.parallel.records import ParallelCase
from attnbench.parallel.scaling import fit
from attnbench.plots.canvas import save_with_palette
from attnbench.report import command

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDE = {"width": 1280, "height": 1500}
VIEWS: Mapping[str, Mapping[str, Any]] = {
    "light": {"viewport": WIDE},
    "dark": {"viewport": WIDE, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 1700}},
    "print": {"viewport": {"width": 718, "height": 1050}},  # A4 without its margins, at 96 to the inch
}


def main() -> None:
    """Render all runs of one device."""
    device = sys.argv[1] if len(sys.argv) > 1 else "h200"
    pages = []
    for path in sorted((ROOT / "results" / device).glob("*.parquet")):
        kind = kind_of(path)
        if kind is None:
            pages.append(_page(path))
        elif kind == ParallelCase.KIND:
            _scaling(path)
        else:
            print(f"{path.relative_to(ROOT)}: {kind} records have no report")
    if CHROMIUM is None:
        print("no Chromium: no pictures")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        for page in pages:
            for name, view in VIEWS.items():
                _picture(browser, page, name=name, view=view)
        browser.close()


def _scaling(path: Path) -> None:
    rows = read(path, kind=ParallelCase)
    for file in plot_scaling(rows, fit(rows), _folder(path)):
        print(file.relative_to(ROOT))


def _folder(path: Path) -> Path:
    return ROOT / "reports" / path.parent.name / path.stem


def _page(path: Path) -> Path:
    target = _folder(path) / "report.html"
    command.save(command.report([path]).html, target)
    print(target.relative_to(ROOT))
    return target


def _picture(browser: Any, page: Path, *, name: str, view: Mapping[str, Any]) -> None:
    context = browser.new_context(offline=True, **view)
    shown = context.new_page()
    shown.goto(page.as_uri())
    shown.wait_for_selector("html[data-ready]")
    if name == "print":
        shown.emulate_media(media="print")
        shown.evaluate("dispatchEvent(new Event('beforeprint'))")
    save_with_palette(Image.open(io.BytesIO(shown.screenshot())), page.with_suffix(f".{name}.png"))
    context.close()


if __name__ == "__main__":
    main()
