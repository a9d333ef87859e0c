"""The published numbers: equal to an independent transcription, consistent with each other, and nothing filled in."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from attnbench.errors import UserError
from attnbench.paper.claims import Floor, Ratio, by_series
from attnbench.paper.figures import ORDER, Figure, figures, find, folder
from attnbench.paper.lines import Line, Origin
from attnbench.paper.published import borrowed, corrected, published
from attnbench.registry import mechanisms
from attnbench.sweeps.files import preset_names

MIB = 2.0**20
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 81920, 94208)
# Table 1 of arXiv:2401.04658 as it is printed, a line of cells by size and model; None: OOM.
TABLE1: Mapping[str, Mapping[str, tuple[int | None, ...]]] = {
    "0.4B": {
        "LLaMA-FA2": (35931, 32453, 28184, 21996, 15479, 9715, 5643, 4604, 4078),
        "TNL-LA1": (41789, 39043, 34894, 28627, 21112, 13852, 8247, 6824, 6012),
        "TNL-LA2": (38615, 38680, 38714, 38172, 37755, 37364, 38278, 38457, 38596),
    },
    "1B": {
        "LLaMA-FA2": (14897, 13990, 12644, 10887, 8468, 5836, 3820, 3167, None),
        "TNL-LA1": (21195, 20128, 18553, 16012, 12594, 8848, 5611, 4625, None),
        "TNL-LA2": (20052, 19967, 20009, 19841, 19805, 19691, 20077, 20186, None),
    },
    "3B": {
        "LLaMA-FA2": (7117, 6708, 6008, 4968, 3755, 2558, None, None, None),
        "TNL-LA1": (8001, 7649, 7117, 6152, 4859, 3512, None, None, None),
        "TNL-LA2": (7524, 7593, 7599, 7559, 7545, 7545, None, None, None),
    },
}


def _by(figure: str) -> dict[tuple[str, str, str], Line]:
    return {(each.edition, each.panel, each.series): each for each in published(find(figure))}


def _transcribed() -> dict[tuple[str, str, str, str], dict[float, float]]:
    """The tables of OpenNLPLab/lightning-attention as printed: values over length by edition, panel, unit, column."""
    found: dict[tuple[str, str, str, str], dict[float, float]] = {}
    edition = panel = unit = ""
    columns: list[str] = []
    text = (Path(__file__).parent / "readme-tables.txt").read_text(encoding="utf-8")
    for words in (line.split() for line in text.splitlines()):
        if words[0] == "#":
            edition = words[1]
        elif words[0] == "n":
            columns = words[1:]
        elif len(words) == 1:
            panel, unit = words[0].split("_")
        else:
            for column, value in zip(columns, words[2:], strict=True):
                found.setdefault((edition, panel, unit, column), {})[float(words[1])] = float(value)
    return found


def test_table_1_is_the_printed_one() -> None:
    lines = _by("table1")
    assert len(lines) == 9
    for size, models in TABLE1.items():
        for model, cells in models.items():
            line = lines["Table 1", size, model]
            known = {n: cell for n, cell in zip(LENGTHS, cells, strict=True) if cell is not None}
            assert dict(zip(line.x, line.value, strict=True)) == known
            assert {gap.x: gap.status for gap in line.gaps} == dict.fromkeys(set(LENGTHS) - set(known), "oom")


@pytest.mark.parametrize(
    ("figure", "unit", "scale"), [("readme-speed", "ms", 1.0), ("readme-memory", "mib", MIB)]
)
def test_the_repositorys_tables_are_the_printed_ones(figure: str, unit: str, scale: float) -> None:
    printed = {key: column for key, column in _transcribed().items() if key[2] == unit}
    lines = _by(figure)
    assert len(lines) == len(printed) == 14
    for (edition, panel, _, column), values in printed.items():
        line = lines[edition, f"{panel}-{'time' if unit == 'ms' else 'memory'}", column]
        assert dict(zip(line.x, line.value / scale, strict=True)) == values


def test_the_other_numbers() -> None:
    speeds = {each.series: each.at(512) for each in published(find("tnl-fig5"))}
    assert speeds == {
        "Pythia": 252.12, "Baichuan": 506.77, "Baichuan2": 455.36, "LLaMA": 537.8, "LLaMA2": 537.97,
        "ChatGLM2": 967.17, "ChatGLM3": 961.93, "TNL": 2819.6,
    }  # fmt: skip
    assert {each.series: each.at(100_000) for each in published(find("table2"))} == {
        "TNL-LA1": 2.229,
        "TNL-LA2": 2.228,
    }


@pytest.mark.parametrize("name", ["fig3", "tnl-fig4", "constant-speed", "decode", "model-decode"])
def test_where_no_value_is_printed_none_is_there(name: str) -> None:
    assert published(find(name)) == ()
    assert all(each.origin is Origin.PUBLISHED for each in borrowed(find(name)))


def test_benchmarks_readme_measured_xformers_three_times() -> None:
    lines = _by("readme-memory")
    for panel in ("fwd-memory", "bwd-memory"):
        columns = [
            lines["benchmarks/README.md", panel, name].value for name in ("Lightning2", "Flash2", "Xformers")
        ]
        np.testing.assert_array_equal(columns[0], columns[2])
        np.testing.assert_array_equal(columns[1], columns[2])
        right = lines["README.md", panel, "Lightning2"]
        np.testing.assert_array_equal(
            lines["benchmarks/README.md", panel, "Lightning2NoDecay"].value, right.value
        )
        assert (right.value < columns[0]).all()


def test_corrected_memory_is_what_the_tensors_take() -> None:
    """4 x 32 x 128 x 2 bytes a token and tensor; a mean over 20 repetitions, of which 19 hold the gradients twice."""
    tensor = 4 * 32 * 128 * 2
    right = {(each.panel, each.series): each for each in corrected(find("readme-memory"))}
    printed = _by("readme-memory")
    ours, n = right["bwd-memory", "Lightning2"], right["bwd-memory", "Lightning2"].x
    np.testing.assert_allclose(ours.value, 8 * tensor * n, rtol=1e-5)
    np.testing.assert_allclose(right["fwd-memory", "Lightning2"].value, 4 * tensor * n, rtol=1e-5)
    np.testing.assert_allclose(
        printed["README.md", "bwd-memory", "Lightning2"].value,
        (8 * tensor * n + 19 * 11 * tensor * n) / 20,
        rtol=1e-5,
    )
    log_sum_exp = 4 * 32 * 4  # fp32, a row of each head
    flash = right["fwd-memory", "Flash2"]
    np.testing.assert_allclose(flash.value, (4 * tensor + log_sum_exp) * n, rtol=2e-5)
    assert ours.origin is Origin.CORRECTED


def test_what_is_derived_for_figure_3_follows_from_the_tables() -> None:
    """16 and 43 GiB, linear in N, and 2.6 and 7.5 s, quadratic in N, at 131,072 tokens, four times the longest."""
    memory, speed = _by("readme-memory"), _by("readme-speed")
    gib = {
        panel: memory["README.md", panel, "Lightning2"].value[-1] * 4 / 2**30
        for panel in ("fwd-memory", "bwd-memory")
    }
    assert {panel: round(value) for panel, value in gib.items()} == {"fwd-memory": 16, "bwd-memory": 43}
    seconds = [speed["README.md", panel, "Flash2"].value[-1] * 16e-3 for panel in ("fwd-time", "bwd-time")]
    assert [round(value, 1) for value in seconds] == [2.6, 7.5]
    said = " ".join(find("fig3").derived)
    assert all(number in said for number in ("16 GiB", "43 GiB", "2.6 s", "7.5 s"))


@pytest.mark.parametrize("figure", figures().values(), ids=lambda figure: figure.name)
def test_what_is_claimed_is_true_of_what_is_published(figure: Figure) -> None:
    """Of the printed numbers each claim holds, and a ratio that it names is theirs to the digits given."""
    right = corrected(figure)
    there = [
        *right,
        *(each for each in published(figure) if each.panel not in {line.panel for line in right}),
    ]
    for claim in figure.claim:
        for panel in {claim.published_panel or each for each in claim.panels}:
            lines = [each for each in there if each.panel == panel]
            first = [each for each in lines if each.edition == lines[0].edition]
            judged = claim.judge(by_series(first), quantity=figure.panel_of(panel).quantity)
            assert judged.holds or (judged.holds is None and not lines), (claim.text, judged)
            if isinstance(claim, Ratio) and lines:
                assert judged.value == pytest.approx(claim.published, rel=0.02)


@pytest.mark.parametrize("figure", figures().values(), ids=lambda figure: figure.name)
def test_a_figure_names_what_exists(figure: Figure) -> None:
    panels, series = {each.key for each in figure.panel}, {each.key for each in figure.series}
    assert len(panels) == len(figure.panel)
    assert len(series) == len(figure.series)
    for claim in figure.claim:
        assert {*claim.panels, *filter(None, [claim.published_panel])} <= panels
        assert set(claim.needed()) <= series
    assert set(figure.sweeps) <= set(preset_names())
    assert {name for each in figure.series for name in each.mechanism} <= set(mechanisms())
    assert figure.not_stated
    assert figure.hardware
    for claim in figure.claim:
        if isinstance(claim, Floor) and figure.shape is not None and figure.shape.batch is not None:
            tensor = figure.shape.batch * figure.shape.heads * figure.shape.head_dim * 2
            assert claim.per_token % tensor == 0


def test_every_data_file_is_a_figure_or_one_figures_numbers() -> None:
    files = {entry.name for entry in (importlib.resources.files("attnbench.paper") / "data").iterdir()}
    named = {f"{name}.toml" for name in ORDER} | {each.data for each in figures().values() if each.data}
    assert files == named
    assert folder().is_dir()


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("fig33", "did you mean 'fig3'?"), ("tabel1", "did you mean 'table1'?"), ("al", "'all'")],
)
def test_a_typo_is_answered_with_the_nearest_figure(typed: str, hint: str) -> None:
    with pytest.raises(UserError) as refused:
        find(typed)
    assert hint in str(refused.value)


def test_aliases_find_their_figure() -> None:
    assert find("fig1") is find("table1") is find("TABLE1")
    assert find("t-fig4").name == "tnl-fig4"
