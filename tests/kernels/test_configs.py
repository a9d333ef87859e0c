"""The tables of launch configurations: whole, sound, and small enough for the devices that they are for."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from attnbench.kernels._configs import (
    ARCHITECTURES,
    ELEMENT_SIZES,
    KERNELS,
    KEY_DIMS,
    VARIABLE,
    Row,
    ScanConfig,
    TableError,
    architecture_of,
    parse,
    scan_configs,
    table,
    tile_config,
    write,
)
from attnbench.kernels._plan import fitted, plan
from attnbench.kernels.lightning1 import tiles

# Bytes that one program may use: sm_86 and sm_89, sm_80, sm_90, and the least that is expected elsewhere.
SHARED_MEMORY = [("ampere", 101_376), ("ampere", 166_912), ("hopper", 232_448), ("default", 65_536)]


def packaged(architecture: str) -> str:
    folder = importlib.resources.files("attnbench.kernels") / "configs"
    return (folder / f"{architecture}.toml").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def fresh_tables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(VARIABLE, raising=False)
    caches = (table, scan_configs, tile_config, plan)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


def rows_on_devices() -> list[Any]:
    """Every row of every packaged table, on each of its architecture's devices."""
    return [
        pytest.param(row, architecture, size, id=f"{architecture}-{size}-{row.kernel}-{numbers(row)}")
        for architecture, size in SHARED_MEMORY
        for row in parse(packaged(architecture), source=architecture).rows
    ]


def numbers(row: Row) -> str:
    special = "-specialised" if row.specialised else ""
    return f"{row.element_size}-{row.key_dim}-{row.programs}{special}"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_packages_tables_serve_everything(architecture: str) -> None:
    found = table(architecture)
    assert found.architecture == architecture
    served = {(row.kernel, row.element_size, row.key_dim) for row in found.rows}
    assert served == set(itertools.product(KERNELS, ELEMENT_SIZES, KEY_DIMS))
    for row, config in found.rows.items():
        assert isinstance(config, KERNELS[row.kernel])
        if isinstance(config, ScanConfig):
            assert row.programs == config.programs == len(config.chunk_us)
            # Another program on a multiprocessor makes none of them faster.
            assert list(config.chunk_us) == sorted(config.chunk_us)


@pytest.mark.parametrize(("row", "architecture", "shared_memory"), rows_on_devices())
def test_rows_fit_their_architecture_as_they_stand(row: Row, architecture: str, shared_memory: int) -> None:
    config = table(architecture).rows[row]
    # A value tile is no wider than the values.
    expected = dataclasses.replace(config, block_e=min(config.block_e, row.key_dim))
    dims: dict[str, Any] = {"key_dim": row.key_dim, "value_dim": row.key_dim}
    dims["element_size"] = row.element_size
    if isinstance(config, ScanConfig):
        assert fitted(config, **dims, shared_memory=shared_memory) == expected
    else:
        assert tiles(**dims, shared_memory=shared_memory, architecture=architecture) == expected


@pytest.mark.parametrize("head_dim", range(16, 257, 16))
@pytest.mark.parametrize("element_size", [2, 4])
def test_every_dim_has_its_rows(head_dim: int, element_size: int) -> None:
    for architecture in ARCHITECTURES:
        assert scan_configs(architecture, element_size=element_size, key_dim=head_dim)
        assert tile_config(architecture, element_size=element_size, key_dim=head_dim)
        for kernel in KERNELS:
            rows = table(architecture).rows_for(kernel, element_size=element_size, key_dim=head_dim)
            (rounded,) = {row.key_dim for row in rows}
            assert head_dim <= rounded <= max(64, 2 * head_dim - 1)


def test_the_values_found_on_an_h200() -> None:
    config = functools.partial(ScanConfig, num_warps=4)
    found = {
        (size, dim): scan_configs("hopper", element_size=size, key_dim=dim)
        for size, dim in ((2, 64), (2, 96), (2, 128), (2, 256), (4, 256))
    }
    assert found == {
        (2, 64): (
            config(block_c=64, block_e=64, num_stages=4, programs=2),
            config(block_c=64, block_e=64, num_stages=3, programs=2, specialised=True),
        ),
        (2, 96): found[2, 128],
        # Rows for one key dim: by programs, and those whose warps specialise.
        (2, 128): (
            config(block_c=32, block_e=64, num_stages=5, programs=2),
            config(block_c=32, block_e=64, num_stages=3, programs=3),
            config(block_c=64, block_e=128, num_stages=4, programs=1, specialised=True),
        ),
        (2, 256): (
            config(block_c=32, block_e=128, num_warps=8, num_stages=5, programs=1),
            config(block_c=64, block_e=128, num_stages=2, programs=1, specialised=True),
        ),
        (4, 256): (config(block_c=16, block_e=32, num_stages=1, programs=1),),
    }
    # Groups of warps that specialise count: two that keep states and the one that feeds them.
    assert [c.max_registers for c in found[2, 128]] == [None, 168, 168]
    assert [c.max_registers for c in found[2, 64]] == [None, 128]


@pytest.mark.parametrize(
    ("programs", "num_warps", "most"),
    [(1, 4, None), (2, 4, None), (3, 4, 168), (4, 4, 128), (1, 8, None), (2, 8, 128), (3, 8, 80), (8, 8, 32)],
)
def test_registers_are_limited_where_the_programs_would_not_share(
    programs: int, num_warps: int, most: int | None
) -> None:
    config = ScanConfig(block_c=32, block_e=64, num_warps=num_warps, num_stages=2, programs=programs)
    assert config.max_registers == most
    assert most is None or (most % 8 == 0 and programs * 32 * num_warps * most <= 65_536)


def test_chunk_times_are_no_part_of_what_a_configuration_is() -> None:
    config = table("hopper").rows[Row(kernel="lightning2", element_size=2, key_dim=128, programs=3)]
    assert isinstance(config, ScanConfig)
    other = dataclasses.replace(config, chunk_us=(9.0, 9.0, 9.0))
    assert (other, hash(other)) == (config, hash(config))


@pytest.mark.parametrize(
    ("major", "name"), [(7, "default"), (8, "ampere"), (9, "hopper"), (10, "default"), (12, "default")]
)
def test_architectures_by_compute_capability(major: int, name: str) -> None:
    assert architecture_of(major) == name


# ---------------------------------------------------------------- a table of one's own


def test_a_written_table_reads_back() -> None:
    found = table("hopper")
    notes = {next(iter(found.rows)): "8 % faster"}
    text = write(found, header="by hand\n\non Tuesday", notes=notes)
    assert text.startswith("# by hand\n#\n# on Tuesday\n")
    assert "    # 8 % faster\n" in text
    again = parse(text, source="text")
    assert again == found
    # Which does not compare the chunk times.
    assert repr(sorted(again.rows.items(), key=repr)) == repr(sorted(found.rows.items(), key=repr))


def test_a_table_of_ones_own_replaces_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(packaged("hopper").replace("block_c = 64", "block_c = 128"), encoding="utf-8")
    monkeypatch.setenv(VARIABLE, str(mine))
    assert [c.block_c for c in scan_configs("hopper", element_size=2, key_dim=64)] == [128, 128]
    with pytest.raises(TableError, match=r"is for the architecture 'hopper', this device needs one for 'amp"):
        table("ampere")


def test_an_unreadable_table_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "nowhere.toml"))
    with pytest.raises(TableError, match=r"ATTNBENCH_CONFIGS: cannot read the table .*nowhere\.toml"):
        table("default")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('architecture = "hopper"', 'architecture = "volta"', "architecture must be one of ampere, hopper"),
        ("lightning2 =", "lightning3 =", "unknown key 'lightning3'"),
        ("lightning2 = [", "lightning2 = 5 #", "t.toml: "),
        ("block_c = 64", "block_c = 48", "lightning2, row 1: block_c must be a power of two from 16 to 256"),
        ("block_c = 64", "block_c = true", "block_c must be a power of two from 16 to 256, got True"),
        ("num_stages = 4", "num_stages = 0", "num_stages must be from 1 to 8, got 0"),
        ("num_stages = 4", "num_stage = 4", "row 1: expected exactly the fields element_size, key_dim"),
        ("num_warps = 4", "num_warps = 3", "num_warps must be a power of two up to 16, got 3"),
        ("element_size = 2", "element_size = 8", "element_size must be one of 2, 4, got 8"),
        ("key_dim = 64", "key_dim = 96", "key_dim must be one of 64, 128, 256, got 96"),
        ("key_dim = 64", "key_dim = 128", "two rows for element_size 2, key_dim 128, programs 2"),
        (
            "programs = 3, chunk_us = [0.77, 1.41, 1.96]",
            "programs = 2, chunk_us = [0.77, 1.41]",
            "has two rows for",
        ),
        ("programs = 2", "programs = 0", "row 1: programs must be from 1 to 8, got 0"),
        ("specialised = false", "specialised = 0", "row 1: specialised must be true or false, got 0"),
        ("programs = 1, chunk_us = [2.62]", "programs = 1, chunk_us = [2.62, 3.0]", "programs, got 2"),
        (", programs = 2", "", "row 1: expected exactly the fields .*, programs, chunk_us"),
        ("[0.65, 1.77]", "[0.65]", r"row 1: chunk_us must have a time for each of 1 to 2 programs, got 1"),
        ("[0.65, 1.77]", "[]", r"chunk_us must have a time for each of 1 to 2 programs, got 0"),
        ("[0.65, 1.77]", "[0.65, 1.77, 2]", r"a time for each of 1 to 2 programs, got 3"),
        ("[0.65, 1.77]", "[0.65, 0]", r"chunk_us must be a list of positive microseconds, got \[0.65, 0\]"),
        ("[0.65, 1.77]", "[0.65, -1.0]", "row 1: chunk_us must be a list of positive microseconds"),
        ("[0.65, 1.77]", "[0.65, nan]", "row 1: chunk_us must be a list of positive microseconds"),
        ("[0.65, 1.77]", "[0.65, true]", "row 1: chunk_us must be a list of positive microseconds"),
        ("[0.65, 1.77]", "0.65", "row 1: chunk_us must be a list of positive microseconds, got 0.65"),
        ("block_m = 128, block_n = 64", "block_m = 32, block_n = 64", "block_m must be at least block_n"),
        ("]", "", "not valid TOML"),
    ],
)
def test_a_malformed_table_is_told_where(old: str, new: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        parse(packaged("hopper").replace(old, new, 1), source="t.toml")


@pytest.mark.parametrize(
    ("architecture", "old", "named"),
    [
        ("ampere", "element_size = 2, key_dim = 64", "ampere, element_size 2, key_dim 64"),
        ("hopper", "element_size = 4, key_dim = 64", "hopper, element_size 4, key_dim 64"),
    ],
)
def test_warps_specialise_where_there_is_a_kernel_for_it(architecture: str, old: str, named: str) -> None:
    text = packaged(architecture)
    line = next(line for line in text.splitlines() if old in line and "block_m" not in line)
    other = line.replace("specialised = false", "specialised = true")
    with pytest.raises(
        TableError, match=f"only hopper has a kernel whose warps specialise.*got one for {named}"
    ):
        parse(text.replace(line, f"{line}\n{other}"), source="t.toml")


def test_a_table_needs_a_row_for_inputs_that_do_not_suit_warps_that_specialise() -> None:
    text = packaged("hopper")
    gone = [
        line
        for line in text.splitlines()
        if "key_dim = 64, specialised = false" in line and "= 2, key" in line
    ]
    with pytest.raises(TableError, match="lightning2 has no row for element_size 2, key_dim 64"):
        parse(text.replace(gone[0] + "\n", ""), source="t.toml")


def test_a_missing_row_is_told() -> None:
    lines = [line for line in packaged("hopper").splitlines() if "block_m" not in line or "= 256" not in line]
    with pytest.raises(TableError, match="lightning1 has no row for element_size 2, key_dim 256"):
        parse("\n".join(lines), source="t.toml")


def test_a_process_follows_the_variable(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(packaged("default").replace("block_c = 32", "block_c = 64"), encoding="utf-8")
    code = """
from attnbench.kernels._plan import plan
dims = dict(batch=1, heads=1, seq_len=256, key_dim=64, value_dim=64, element_size=2)
device = dict(multiprocessors=1, shared_memory=65536, architecture="default")
print(plan(**dims, **device, remembered=(100.0,)).block_c)
"""
    variables = {**os.environ, VARIABLE: str(mine), "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=variables
    )
    assert (done.returncode, done.stdout) == (0, "64\n"), done.stderr
