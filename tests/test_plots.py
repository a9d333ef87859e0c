"""The figures: which files, what is in them, and that equal results give equal bytes."""

from __future__ import annotations

import html
import random
import re
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image, ImageChops

import attnbench.plots
from attnbench.case import Case, Status
from attnbench.catalogue import BUILT_IN
from attnbench.curves import curves as make_curves
from attnbench.errors import UserError
from attnbench.plots import canvas, curves, plot_run
from attnbench.plots.looks import STYLES, style_of
from attnbench.plots.notes import flatness_words
from attnbench.plots.page import pages_of
from attnbench.plots.quantities import QUANTITIES
from attnbench.plots.signs import SIGNS
from attnbench.store import COLUMNS, SCHEMA

Row = dict[str, Any]


def row(mechanism: str, seq_len: int, ms: float | None = None, **given: Any) -> Row:
    """A row with every column of the schema; without a time it ran out of memory unless told otherwise."""
    axes: Row = {"workload": "fwd", "batch": 1, "heads": 16, "head_dim": 128, "dtype": "bf16"}
    axes |= {name: given.pop(name) for name in tuple(given) if name in axes}
    case = Case(mechanism=mechanism, seq_len=seq_len, **axes)
    values: Row = dict.fromkeys(COLUMNS) | case.as_dict()
    values |= {"workload": str(case.workload), "case_id": case.case_id, "run_id": "run-1"}
    values |= {
        "device": "NVIDIA H200",
        "provider": "torch 2.11.0+cu130 x",
        "status": "oom",
        "reason": "memory",
    }
    if ms is not None:
        values |= {"median_ms": ms, "ci_low_ms": ms * 0.97, "ci_high_ms": ms * 1.02, "peak_bytes": 1 << 28}
        values |= {"tokens_per_s": case.tokens / ms * 1e3, "status": "ok", "reason": None}
    return values | given


def frame(*rows: Row, **protocol: str) -> pd.DataFrame:
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    result: pd.DataFrame = table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    result.attrs = {"runs": {"run-1": {"protocol": protocol}}}
    return result


def sweep(*, workload: str = "fwd", **given: Any) -> list[Row]:
    lengths = (512, 1024, 2048)
    flat = [row("lightning2", n, n / 1e3, workload=workload, **given) for n in lengths]
    steep = [row("flash2", n, n * n / 1e6, workload=workload, **given) for n in lengths]
    return [*flat, *steep, row("linear-cumsum", 512, workload=workload, **given)]


def words(path: Path) -> str:
    """The texts of an SVG: letters are drawn as paths, and each text stands before them in a comment."""
    return html.unescape("\n".join(re.findall(r"<!-- (.*?) -->", path.read_text(encoding="utf-8"))))


def drawn(tmp_path: Path, *rows: Row, kind: str = "tokens-per-s", **protocol: str) -> str:
    """The texts of one kind of figure; the others are not drawn, for the sake of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "QUANTITIES", [each for each in QUANTITIES if each.stem == kind])
        (path,) = plot_run(frame(*rows, **protocol), tmp_path, formats=("svg",))
    return words(path)


def test_files_in_order(tmp_path: Path) -> None:
    rows = [r for w in ("bwd", "fwd", "fwd-bwd") for r in sweep(workload=w)]
    paths = plot_run(frame(*rows), tmp_path / "new" / "folder", formats=("svg",))
    expected = [
        f"{kind}.{w}.svg" for w in ("fwd", "bwd", "fwd-bwd") for kind in ("tokens-per-s", "time", "memory")
    ]
    assert [path.name for path in paths] == expected
    assert all(path.stat().st_size > 5000 for path in paths)


def test_decode_is_named(tmp_path: Path) -> None:
    text = drawn(tmp_path, *sweep(workload="decode", batch=4))
    assert "Decode: speed against sequence length" in text
    assert "batch 4" in text
    assert (tmp_path / "tokens-per-s.decode.svg").is_file()


def test_formats(tmp_path: Path) -> None:
    paths = plot_run(frame(row("a", 512, 1.0)), tmp_path, formats=("png", "svg", "pdf"))
    assert [path.suffix for path in paths[:3]] == [".png", ".svg", ".pdf"]
    assert paths[0].read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="unknown figure format 'jpg'"):
        plot_run(frame(*sweep()), tmp_path, formats=("jpg",))


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_equal_results_give_equal_bytes(tmp_path: Path, kind: str) -> None:
    rows = sweep()
    first = plot_run(frame(*rows), tmp_path / "1", formats=(kind,))
    random.Random(1).shuffle(rows)
    mpl.rcParams["font.size"] = 30  # nothing of the caller's settings may show
    try:
        second = plot_run(frame(*rows), tmp_path / "2", formats=(kind,))
        assert mpl.rcParams["font.size"] == 30
    finally:
        mpl.rcdefaults()
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_no_date_and_no_version_in_the_files(tmp_path: Path) -> None:
    for path in plot_run(frame(*sweep()), tmp_path, formats=("png", "svg")):
        data = path.read_bytes()
        assert b"dc:date" not in data
        assert b"matplotlib version" not in data.lower()


def test_pyplot_is_never_imported(tmp_path: Path) -> None:
    code = (
        "import sys, attnbench.plots; sys.exit('matplotlib.pyplot' in sys.modules or 'torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    modules = [*Path(attnbench.plots.__file__).parent.glob("*.py")]
    assert len(modules) > 10
    assert not [module.name for module in modules if "pyplot" in module.read_text(encoding="utf-8")]


def test_title_says_what_is_fixed(tmp_path: Path) -> None:
    text = drawn(tmp_path, *sweep(), cache="cold", launch="eager")
    assert "Forward: speed against sequence length" in text
    assert "batch 1, 16 heads, head dim 128, bf16, causal, NVIDIA H200, cold L2" in text
    assert "L2" not in drawn(tmp_path, *sweep(), kind="memory", cache="cold"), "memory is not timed"
    assert "launch: graph" in drawn(tmp_path, *sweep(), launch="graph")


def test_legend_gives_flatness(tmp_path: Path) -> None:
    text = drawn(tmp_path, *sweep())
    assert "lightning2 (flat within 1.00×)" in text
    assert "flash2 (varies 4.0×)" in text
    assert "flat " not in drawn(tmp_path, *sweep(), kind="time")


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ([(1.0, 1024.0)], "flat within 1.00×"),
        ([(1.0, 1.0)], "flat within 1.00×"),
        ([(1.041, 1024.0), (1.02, 2.0)], "flat within 1.05×"),
        ([(1.041, 1024.0), (1.38, 2.0)], "varies 1.4×"),  # over one doubling 1/N is a factor of two
        ([(1.38, 16.0)], "flat within 1.38×"),
        ([(2.0, 1024.0)], "varies 2.0×"),
        ([(1310.0, 1024.0)], "varies 1,310×"),
    ],
)
def test_flatness_words(known: list[tuple[float, float]], text: str) -> None:
    assert flatness_words(known) == text


def test_constant_tokens_in_the_title(tmp_path: Path) -> None:
    rows = [row("lightning2", n, 1.0, batch=4096 // n) for n in (512, 1024, 2048)]
    assert "4k tokens a call, 16 heads" in drawn(tmp_path, *rows)


def test_statuses_are_drawn_apart(tmp_path: Path) -> None:
    others = [status for status in Status if status is not Status.OK]
    lengths = {status: 512 * 2**i for i, status in enumerate(others)}
    rows = [row("flash2", n, status=str(s), reason=f"because {s}") for s, n in lengths.items()]
    text = drawn(tmp_path, row("flash2", 256, 1.0), *rows)
    assert "no value:" in text
    for status in others:
        assert SIGNS[status].words in text
    assert len({str(sign.marker) for sign in SIGNS.values()}) == len(SIGNS)


def test_only_statuses_that_occur_are_explained(tmp_path: Path) -> None:
    text = drawn(tmp_path, *sweep())
    assert "out of memory" in text
    assert "timeout" not in text
    assert "no value" not in drawn(tmp_path / "clean", row("flash2", 512, 1.0))


def test_incorrect_is_no_speed(tmp_path: Path) -> None:
    """A wrong result a thousand times faster changes nothing but the strip; the axis stays as it is."""
    right = [row("flash2", n, 1.0) for n in (512, 1024)]
    wrong = row("lightning1", 512, 1e-3, status="incorrect", reason="wrong")
    plain = drawn(tmp_path / "1", *right, row("lightning1", 512))
    text = drawn(tmp_path / "2", *right, wrong)
    ticks = re.compile(r"^[\d.]+[kMG]$", re.MULTILINE)
    assert ticks.findall(plain) == ticks.findall(text)
    assert "incorrect output" in text


def test_unsupported_everywhere_is_a_note(tmp_path: Path) -> None:
    rows = [row("xformers", n, status="unsupported", reason="not installed") for n in (512, 1024)]
    text = drawn(tmp_path, *sweep(), *rows)
    assert "not here: xformers (not installed)" in text
    assert "unsupported" not in text


def test_providers_are_named_when_short(tmp_path: Path) -> None:
    assert "torch 2.11.0 x" in drawn(tmp_path, *sweep())
    assert "what ran" not in drawn(
        tmp_path, *sweep(provider="a very long name of a provider, and its version")
    )


def test_groups_become_panels(tmp_path: Path) -> None:
    rows = [r for b in (1, 2) for d in ("bf16", "fp16") for r in sweep(batch=b, dtype=d)]
    text = drawn(tmp_path, *rows)
    for title in ("batch 1, bf16", "batch 2, bf16", "batch 1, fp16", "batch 2, fp16"):
        assert title in text
    assert "16 heads, head dim 128, causal, NVIDIA H200" in text
    assert "the largest of all panels" in text


def test_many_groups_become_pages(tmp_path: Path) -> None:
    rows = [row("lightning2", 512, 1.0, heads=h, peak_bytes=None) for h in range(1, 14)]
    names = [path.name for path in plot_run(frame(*rows), tmp_path, formats=("svg",))]
    assert names[:2] == ["tokens-per-s.fwd.svg", "tokens-per-s.fwd-2.svg"]
    texts = [words(tmp_path / name) for name in names[:2]]
    panels = [re.findall(r"^\d+ heads?$", text, re.MULTILINE) for text in texts]
    assert sum(map(len, panels)) == 13


def test_a_panel_without_values_says_so(tmp_path: Path) -> None:
    assert "no value" in drawn(tmp_path, *sweep(), row("flash2", 512, heads=32)).split("\n")


def test_memory_is_left_out_when_unknown(tmp_path: Path) -> None:
    paths = plot_run(frame(row("a", 512, 1.0, peak_bytes=None)), tmp_path, formats=("svg",))
    assert [path.name for path in paths] == ["tokens-per-s.fwd.svg", "time.fwd.svg"]


def test_memory_ticks_have_units(tmp_path: Path) -> None:
    assert "256 MiB" in drawn(tmp_path, *sweep(), kind="memory")


@pytest.mark.parametrize(
    "name",
    ["$x^2$ and $", "_hidden", "a_b", "<b>&amp;</b>", "[bold]x[/]", "two\nlines", "-- > --", "x" * 200],
)
def test_names_are_literal(tmp_path: Path, name: str) -> None:
    text = drawn(tmp_path, row(name, 512, 1.0, device=name), row(name, 1024, device=name))
    shown = name.replace("\n", " ").replace("--", "- -")  # as XML writes it inside a comment
    assert text.count(shown[:20]) >= 3, "in the title, the strip and the legend"


def test_without_intervals_or_device(tmp_path: Path) -> None:
    bare = row("a", 512, 1.0) | dict.fromkeys(("ci_low_ms", "ci_high_ms", "device", "provider"))
    results = frame(bare)
    results.attrs = {}
    assert len(plot_run(results, tmp_path, formats=("png",))) == 3


def test_bands_stay_inside_of_their_axis() -> None:
    wide = {"ci_low_ms": 0.001, "ci_high_ms": 900.0}
    rows = [row("lightning2", n, 1.0, **(wide if n == 512 else {})) for n in (512, 1024)]
    found = make_curves(frame(*rows))
    for quantity in QUANTITIES:
        (page,) = pages_of(found, quantity=quantity, providers={}, protocol="")
        ends = [float(end[0]) for end in (quantity.ends(found[0]) if quantity.ends else ())]
        if not ends:  # memory has no interval
            continue
        assert page.y[0] < min(ends) < max(ends) < page.y[1]


def test_nothing_to_draw(tmp_path: Path) -> None:
    rows = [row("a", 512), row("a", 1024), row("b", 512, status="unsupported", reason="x")]
    with pytest.raises(UserError, match=r"nothing to draw: .*3 rows: 2 oom, 1 unsupported"):
        plot_run(frame(*rows), tmp_path)
    with pytest.raises(UserError, match="the results hold no row"):
        plot_run(frame(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        plot_run(frame(*sweep()), tmp_path / "file", formats=("svg",))


def test_styles_differ_without_colour() -> None:
    """In greyscale two mechanisms of one figure are told apart by marker or dashes, also one without a style here."""
    for a, b in combinations({**STYLES, **{mechanism.name: None for mechanism in BUILT_IN}}, 2):
        one, other = style_of(a), style_of(b)
        assert one.colour != other.colour
        assert (one.marker, str(one.dash)) != (other.marker, str(other.dash)), (a, b)


def test_one_provider_and_one_window_keep_the_colour_of_their_mechanism() -> None:
    for name in ("flash2@torch", "streaming-llm W1k", "streaming-llm W4k"):
        assert style_of(name).colour == STYLES[name.split("@")[0].split(" ")[0]].colour
        assert style_of(name) not in STYLES.values()
    assert style_of("streaming-llm W1k") != style_of("streaming-llm W4k")


def test_unknown_names_keep_their_style() -> None:
    assert style_of("mine") == style_of("mine")
    assert len({style_of(f"mine-{i}") for i in range(40)}) > 30


def test_a_png_has_a_palette_and_looks_like_what_was_drawn(tmp_path: Path) -> None:
    ramp = Image.linear_gradient("L").convert("RGB")
    ramp.paste((255, 255, 255), (0, 0, 256, 128))
    canvas.save_with_palette(ramp, tmp_path / "ramp.png")
    with Image.open(tmp_path / "ramp.png") as found:
        assert found.mode == "P"
        again = found.convert("RGB")
    assert again.getpixel((0, 0)) == (255, 255, 255)  # a page's white has no edge
    apart = ImageChops.difference(ramp, again).convert("L").histogram()
    assert not any(apart[3:])
