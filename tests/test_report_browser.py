"""The report as a reader has it: in a headless Chromium, without a network."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from attnbench import store, words
from attnbench.case import Case, Status, Workload
from attnbench.curves import length_label
from attnbench.plots import plot_run
from attnbench.report import command
from tests.reports import HOSTILE, grid, measured, written

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra: browser)")
CHROMIUM = next(
    filter(
        None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))
    ),
    None,
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt install chromium)")

TIMED_CHOICE = "(() => { const begun = performance.now(); changed(); return performance.now() - begun; })()"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def opened(chromium: Any, path: Path, **how: Any) -> Iterator[Any]:
    """A page of its own with the network cut. No error on its console, and no request but for the file itself."""
    context = chromium.new_context(offline=True, **{"viewport": {"width": 1280, "height": 900}, **how})
    page = context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector("html[data-ready]")
    yield page
    context.close()
    assert said == [path.as_uri()]


RUN = [
    *grid(["lightning2", "flash2", "sdpa"], failing={("sdpa", 1024): Status.OOM}),
    *grid(["lightning2", "flash2"], heads=(8,)),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run, and its report with figures."""
    made = tmp_path_factory.mktemp("report")
    path = written(made / "run.parquet", RUN)
    (made / "run.html").write_text(command.report([path]).html, encoding="utf-8")
    return made


@pytest.fixture
def page(chromium: Any, folder: Path) -> Iterator[Any]:
    with opened(chromium, folder / "run.html") as shown:
        yield shown


def lines(page: Any, chart: str = "tokens_per_s") -> list[str]:
    """The mechanisms that have points in a chart."""
    places = page.locator(f"#chart-{chart} g[data-mechanism]")
    return sorted(places.evaluate_all("found => found.map((each) => each.dataset.mechanism)"))


def rows_drawn(page: Any, chart: str = "tokens_per_s") -> set[int]:
    marks = page.locator(f"#chart-{chart} [data-row]")
    return {int(row) for row in marks.evaluate_all("found => found.map((each) => each.dataset.row)")}


def rows_listed(page: Any) -> list[int]:
    shown = page.locator("table.rows tbody tr:not([hidden])")
    return [int(row) for row in shown.evaluate_all("found => found.map((each) => each.dataset.i)")]


def indices(**wanted: Any) -> set[int]:
    """Places of the rows of RUN with these values."""
    return {
        place
        for place, each in enumerate(RUN)
        if all(str(getattr(each.case, name)) == str(value) for name, value in wanted.items())
    }


def test_a_mechanism_is_toggled(page: Any) -> None:
    assert lines(page) == ["flash2", "lightning2", "sdpa"]
    button = page.locator("button.toggle[data-mechanism=flash2]")
    button.click()
    assert lines(page) == ["lightning2", "sdpa"]
    assert button.get_attribute("aria-pressed") == "false"
    page.locator("button.toggle[data-mechanism=sdpa]").click(modifiers=["Shift"])
    assert lines(page) == ["sdpa"]
    page.locator("button.toggle.all").click()
    assert lines(page) == ["flash2", "lightning2", "sdpa"]


def test_workload_and_heads_are_chosen(page: Any) -> None:
    """Every row under the choice is drawn: as a point, or as a mark without a value."""
    assert rows_drawn(page) == indices(workload="fwd", heads=4)
    page.locator("#choose-workload").select_option("bwd")
    assert rows_drawn(page) == indices(workload="bwd", heads=4)
    page.locator("#choose-by_heads").select_option("8")
    assert rows_drawn(page) == indices(workload="bwd", heads=8)


def test_axes_are_logarithmic_or_linear(page: Any) -> None:
    """Lengths that double are evenly spaced on the one, and twice as far apart each time on the other."""

    def gaps() -> list[float]:
        marks = page.locator("#chart-median_ms g[data-mechanism=lightning2] g[data-row]")
        at = marks.evaluate_all("f => f.map((e) => Number(e.getAttribute('transform').match(/[\\d.]+/)[0]))")
        return [right - left for left, right in pairwise(at)]

    first, second, third = gaps()
    assert [second / first, third / second] == pytest.approx([1, 1])
    page.locator("#scale-x").select_option("linear")
    first, second, third = gaps()
    assert [second / first, third / second] == pytest.approx([2, 2])
    page.locator("#scale-y").select_option("linear")
    assert page.locator("#chart-median_ms .tick.end").first.text_content() == "0"


def test_a_point_tells_its_row(page: Any, folder: Path) -> None:
    frame = store.load_results(folder / "run.parquet")
    place = min(indices(mechanism="flash2", workload="fwd", heads=4, seq_len=512))
    row = frame.iloc[place]
    page.locator(f"#chart-tokens_per_s g[data-row='{place}']").hover()
    told = page.locator(".tip").inner_text()
    assert row["case_id"] in told
    for said in (
        words.time_text(row["median_ms"]),
        words.rate_text(row["tokens_per_s"]),
        words.bytes_text(row["peak_bytes"]),
        "1,500 MHz",
        "power-cap",
        "3.0e-03",  # the larger of two errors
    ):
        assert said in told
    page.mouse.move(5, 5)
    assert page.locator(".tip").is_hidden()


def test_a_case_without_a_value_tells_its_reason(page: Any) -> None:
    [place] = indices(mechanism="sdpa", workload="fwd", seq_len=1024)
    page.locator(f"#chart-median_ms .gap[data-row='{place}']").hover()
    assert "oom at 1024" in page.locator(".tip").inner_text()


def test_the_keyboard_reaches_a_row(page: Any, folder: Path) -> None:
    """Into the chart, along a line, to another line, into the details, and back."""
    frame = store.load_results(folder / "run.parquet")
    page.locator("#chart-median_ms svg").focus()
    page.keyboard.press("ArrowRight")
    first = page.locator(".tip strong").inner_text()
    page.keyboard.press("ArrowRight")
    second = page.locator(".tip strong").inner_text()
    lengths = [int(name.split("-N")[1].split("-")[0]) for name in (first, second)]
    assert lengths == [128, 256]
    assert first.split(".")[0] == second.split(".")[0]
    page.keyboard.press("ArrowDown")
    third = page.locator(".tip strong").inner_text()
    assert third.split(".")[0] != second.split(".")[0]
    page.keyboard.press("Enter")
    [row] = [each for _, each in frame.iterrows() if each["case_id"] == third]
    details = page.locator("dialog").inner_text()
    for said in (third, row["provider"], row["kernels"][0], row["config"], "2026-01-02T03:", "7"):
        assert said in details
    page.keyboard.press("Escape")
    assert page.locator("dialog[open]").count() == 0


def test_rows_are_filtered(page: Any) -> None:
    assert len(rows_listed(page)) == len(RUN)
    page.get_by_label("Filter rows by status").select_option("oom")
    assert set(rows_listed(page)) == indices(mechanism="sdpa", seq_len=1024)
    page.get_by_label("Filter rows by status").select_option("")
    page.get_by_label("Filter rows by words").fill("flash2 bwd n512")
    assert set(rows_listed(page)) == indices(mechanism="flash2", workload="bwd", seq_len=512)
    assert page.locator(".count").inner_text() == f"2 of {len(RUN)} rows"
    page.get_by_label("Filter rows by words").fill("")
    page.locator("#rows input[type=checkbox]").check()
    assert set(rows_listed(page)) == indices(workload="fwd", heads=4)
    page.locator("#choose-workload").select_option("bwd")
    assert set(rows_listed(page)) == indices(workload="bwd", heads=4)


def test_rows_are_sorted_with_unknown_values_last(page: Any) -> None:
    times = [math.inf if each.timing is None else each.timing.median_ms for each in RUN]
    head = page.locator("table.rows th[data-key=time] button")
    for sign, stated in ((1, "ascending"), (-1, "descending")):
        head.click()
        assert page.locator("table.rows th[data-key=time]").get_attribute("aria-sort") == stated
        found = [times[row] for row in rows_listed(page)]
        known = [time for time in found if math.isfinite(time)]
        assert known == pytest.approx(sorted(known, key=lambda time: sign * time))
        assert found[len(known) :] == [math.inf] * (len(found) - len(known))


def test_a_figure_is_taken_away_as_plot_writes_it(page: Any, folder: Path, tmp_path: Path) -> None:
    plot_run(store.load_results(folder / "run.parquet"), tmp_path, formats=("svg",))
    with page.expect_download() as waiting:
        page.locator("#chart-median_ms .download").click()
    assert waiting.value.suggested_filename == "time.fwd.svg"
    assert Path(waiting.value.path()).read_bytes() == (tmp_path / "time.fwd.svg").read_bytes()


def test_numbers_are_said_as_the_command_line_says_them(page: Any) -> None:
    numbers = [m * 10.0**e for e in range(-6, 13) for m in (1, 1.005, 2.345, 9.994, 9.996, 9.999, 123.45)]
    counts = [float(round(number)) for number in numbers if number >= 1]
    lengths = [1, 100, 512, 1000, 1024, 1536, 1792, 2048, 3000, 131072, 1 << 20, 5 << 18]
    asked = """([numbers, counts, lengths]) => ({
        three: numbers.map(three), time: numbers.map(say.time), rate: numbers.map(say.rate),
        bytes: counts.map(say.bytes), length: lengths.map(lengthLabel)})"""
    said = page.evaluate(asked, [numbers, counts, lengths])
    assert said["three"] == [words.three(number) for number in numbers]
    assert said["time"] == [words.time_text(number) for number in numbers]
    assert said["rate"] == [words.rate_text(number) for number in numbers]
    assert said["bytes"] == [words.bytes_text(number) for number in counts]
    assert said["length"] == [length_label(length) for length in lengths]


def test_dark_and_light(chromium: Any, folder: Path) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    with opened(chromium, folder / "run.html", color_scheme="dark") as page:
        assert page.evaluate(ground) == "rgb(21, 23, 27)"
        page.locator("#theme").click()
        assert page.evaluate(ground) == "rgb(255, 255, 255)"
        page.emulate_media(media="print")
        assert page.locator("#theme").is_hidden()


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_screen_is_not_left_sideways(chromium: Any, folder: Path, width: int) -> None:
    with opened(chromium, folder / "run.html", viewport={"width": width, "height": 800}) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_paper_has_all_rows_and_no_controls(chromium: Any, folder: Path) -> None:
    with opened(chromium, folder / "run.html") as page:
        page.emulate_media(media="print")
        assert page.locator("#rows .controls").is_hidden()
        assert page.pdf(format="A4").startswith(b"%PDF")
        assert len(rows_listed(page)) == len(RUN)


def test_html_in_names_does_nothing(chromium: Any, tmp_path: Path) -> None:
    cases = [*grid([HOSTILE, "lightning2"], failing={(HOSTILE, 256): Status.ERROR})]
    path = written(tmp_path / "run.parquet", cases, run=HOSTILE)
    html = tmp_path / "run.html"
    html.write_text(command.report([path], figures=False).html, encoding="utf-8")
    with opened(chromium, html) as page:
        assert lines(page) == sorted([HOSTILE, "lightning2"])
        page.locator("table.rows button.link").first.click()
        assert HOSTILE in page.locator("dialog h2").inner_text()
        page.keyboard.press("Escape")
        page.locator("#chart-median_ms svg").hover()
        assert page.locator("img").count() == 0
        assert page.title() == "made-up · attnbench"


def test_every_case_has_its_name(chromium: Any, tmp_path: Path) -> None:
    odd = Case(
        mechanism="m", workload=Workload.FWD, batch=1, heads=4, kv_heads=2, seq_len=7, head_dim=16, value_dim=32,
        dtype="fp16", causal=False,
    )  # fmt: skip
    cases = [*grid(["lightning2"]), measured(odd)]
    html = tmp_path / "run.html"
    html.write_text(
        command.report([written(tmp_path / "run.parquet", cases)], figures=False).html, encoding="utf-8"
    )
    with opened(chromium, html) as page:
        assert page.evaluate("ROWS.map(caseId)") == [each.case.case_id for each in cases]


def test_two_thousand_rows_stay_responsive(chromium: Any, tmp_path: Path) -> None:
    """First paint within a second, and a choice in half of that; others share the machine, so three tries."""
    lengths = [1 << n for n in range(8, 18)]
    cases = grid(
        [f"m{n}" for n in range(10)], lengths=lengths, heads=(1, 2, 4, 8, 16), dtypes=("bf16", "fp16")
    )
    path = written(tmp_path / "run.parquet", cases)
    html = tmp_path / "run.html"
    html.write_text(command.report([path], figures=False).html, encoding="utf-8")
    for _ in range(3):
        with opened(chromium, html) as page:
            choice_ms = page.evaluate(TIMED_CHOICE)
            page.wait_for_selector("table.rows tbody tr:nth-child(2000)", state="attached")
            assert page.locator(".count").inner_text() == "2,000 rows"
            [paint] = page.evaluate(
                "performance.getEntriesByName('first-contentful-paint').map((e) => e.startTime)"
            )
        if paint < 1000 and choice_ms < 500:
            return
    pytest.fail(f"first paint after {paint:.0f} ms, a choice takes {choice_ms:.0f} ms")


def test_a_run_without_anything_ok(chromium: Any, tmp_path: Path) -> None:
    cases = [measured(each.case, status=Status.OOM) for each in grid(["lightning2"])]
    html = tmp_path / "run.html"
    html.write_text(command.report([written(tmp_path / "run.parquet", cases)]).html, encoding="utf-8")
    with opened(chromium, html) as page:
        assert page.locator("#charts figure").count() == 0
        assert len(rows_listed(page)) == len(cases)
        assert json.loads(page.locator("#figures").text_content()) == {}


def test_verdicts_are_chosen(chromium: Any, tmp_path: Path) -> None:
    base = written(tmp_path / "base.parquet", grid(["aa"]), run="one")
    new = written(tmp_path / "new.parquet", grid(["aa"], failing={("aa", 128): Status.OOM}), run="two")
    html = tmp_path / "run.html"
    html.write_text(command.report([new], [base], figures=False, noise=0.01).html, encoding="utf-8")
    with opened(chromium, html) as page:
        shown = page.locator("#comparison table[data-filter] tbody tr:not([hidden])")
        assert shown.count() == 8
        page.get_by_label("Filter by verdict").select_option("broken")
        assert shown.count() == 2
