"""Mechanisms from outside: an installed package, a file with no packaging, one provider of several, and a row more."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import attnbench
from attnbench import cli, mechanism_files, store
from attnbench.case import Case, Protocol, Status, Workload
from attnbench.catalogue import BUILT_IN
from attnbench.errors import UserError
from attnbench.measure.runner import measure
from attnbench.registry import find, mechanisms
from attnbench.sweeps.values import parse_mechanisms

PACKAGE = Path(attnbench.__file__).parent
ROOT = PACKAGE.parent
EXAMPLE = ROOT / "examples" / "attnbench-tiled-softmax"
CHECKOUT = pytest.mark.skipif(not EXAMPLE.is_dir(), reason="installed, not a checkout")
SMALL = (
    *("--seq-len", "160", "--tokens", "160", "--heads", "2", "--head-dim", "16", "--device", "cpu"),
    *("--cap-s", "0.02", "--no-plot"),
)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """`run("list", "--json")`: a command in this process, in the folder `tmp_path`; its workers are real."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def command(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["attnbench", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0

    return command


@pytest.fixture(autouse=True)
def _own_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Files that a test names are forgotten after it."""
    monkeypatch.setenv(mechanism_files.VARIABLE, "")
    mechanisms.cache_clear()
    yield
    monkeypatch.undo()
    mechanisms.cache_clear()


# ---------------------------------------------------------------- a package


@CHECKOUT
def test_the_example_is_installed_listed_and_swept(
    tmp_path: Path,
    run: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy, site = tmp_path / "example", tmp_path / "site"
    shutil.copytree(EXAMPLE, copy)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*pip, "--target", str(site), str(copy)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    mechanisms.cache_clear()

    run("list", "-m", "tiled-softmax", "--device", "cpu", "--json")
    (row,) = json.loads(capsys.readouterr().out)["mechanisms"]
    assert (row["mechanism"], row["provider"]) == ("tiled-softmax", "attnbench-tiled-softmax 0.1.0")

    run("sweep", "quick", "-m", "tiled-softmax", "-m", "sdpa", *SMALL, "-o", "run")
    frame = store.load_results(tmp_path / "run")
    own = frame[frame["mechanism"] == "tiled-softmax"]
    assert len(own) == 2  # forward and backward
    assert set(own["status"]) == {"ok"}
    assert set(own["provider"]) == {"attnbench-tiled-softmax 0.1.0"}
    assert (own["rel_err_o"] < 2e-5).all()
    assert own["median_ms"].notna().all()


# ---------------------------------------------------------------- a file

MINE = '''
"""A kernel under development."""
from attnbench.registry import Mechanism, Provider

def mine(q, k, v, *, slopes, scale, causal):
    """The left product, three lines.

    And more to read.
    """
    return (scale * q @ k.mT).tril() @ v

row = Mechanism(name="my-row", semantics="linear", summary="its own row", cost="N^2", providers=(
    Provider(target=f"{__name__}:mine", distribution="torch", devices=("cpu",)),))

number = 7
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    return file


def test_a_function_in_a_file_becomes_a_mechanism(mine: Path) -> None:
    assert parse_mechanisms(f"{mine}:mine:linear,sdpa") == ("mine", "sdpa")
    found = find("mine")
    assert (found.semantics, found.cost, found.summary) == ("linear", "N", "The left product, three lines.")
    (provider,) = found.providers
    assert provider.label.startswith("mine.py ")
    q = torch.ones(1, 1, 3, 2)
    assert provider.load()(q, q, q, slopes=None, scale=0.5, causal=True)[0, 0, :, 0].tolist() == [1, 2, 3]


def test_the_label_of_a_file_changes_with_its_content(mine: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "mine.py"
    other.parent.mkdir()
    other.write_text(MINE + "\n# a change\n")
    first, second = (
        mechanism_files.remember(f"{file}:mine:linear").providers[0].label for file in (mine, other)
    )
    assert first != second
    assert first.split()[0] == second.split()[0] == "mine.py"


def test_a_row_in_a_file_is_taken_as_it_is(mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mine.parent)
    assert parse_mechanisms(["./mine.py:row"]) == ("my-row",)
    assert find("my-row").summary == "its own row"
    assert os.environ[mechanism_files.VARIABLE] == f"{mine}:row"
    assert parse_mechanisms(["mine.py:row"]) == ("my-row",)  # the same again
    assert os.environ[mechanism_files.VARIABLE].count(",") == 0


BAD: dict[str, tuple[str, str]] = {
    "no-file": ("nowhere.py:mine", "there is no file .*nowhere.py"),
    "no-name": ("mine.py:nine", "mine.py has no 'nine'; did you mean 'mine'"),
    "no-colon": ("mine.py", "expected path/to/file.py:name or path/to/file.py:name:semantics, got 'mine.py'"),
    "no-semantics": ("mine.py:mine", "'mine' is a function: say what it computes, e.g. mine.py:mine:softmax"),
    "semantics": ("mine.py:mine:softmux", "unknown semantics 'softmux'; did you mean 'softmax'"),
    "neither": (
        "mine.py:number",
        "mine.py:number: expected a Mechanism or a function, 'number' is of type int",
    ),
    "broken": ("broken.py:mine", ".*broken.py cannot be loaded: ZeroDivisionError"),
    "leaves": ("leaves.py:mine", ".*leaves.py cannot be loaded: SystemExit: 0"),
    "taken": ("taken.py:sdpa:softmax", ".* is called 'sdpa', as a mechanism that is there: rename it"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_one_sentence(
    name: str, mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mine.parent)
    (mine.parent / "broken.py").write_text("1 / 0\n")
    (mine.parent / "leaves.py").write_text("import sys\nprint('needs CUDA')\nsys.exit(0)\n")
    (mine.parent / "taken.py").write_text(MINE.replace("def mine", "def sdpa"))
    text, words = BAD[name]
    with pytest.raises(UserError, match=f"--mechanism: {words}"):
        parse_mechanisms(text, axis="--mechanism")
    assert os.environ[mechanism_files.VARIABLE] == ""
    assert capsys.readouterr().out == ""  # what a file prints is no result


# ---------------------------------------------------------------- one provider


def test_one_provider_of_a_mechanism_can_be_asked_for() -> None:
    both = parse_mechanisms("flash2@flash-attn,flash2@torch,flash2")
    assert both == ("flash2@flash-attn", "flash2@torch", "flash2")
    package, copy, either = (find(name) for name in both)
    assert [p.distribution for p in package.providers] == ["flash-attn"]
    assert [p.distribution for p in copy.providers] == ["torch"]
    assert either.providers == (*package.providers, *copy.providers)
    assert (package.name, package.semantics) == ("flash2@flash-attn", "softmax")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("flash2@tork", "mechanism: flash2 has no provider 'tork'; did you mean 'torch'"),
        ("flash2@", "mechanism: flash2 has no provider ''; choose from: flash-attn, torch"),
        ("flush2@torch", "mechanism: unknown mechanism 'flush2'; did you mean 'flash2'"),
    ],
)
def test_a_bad_provider_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_mechanisms(text)


# ---------------------------------------------------------------- a row more

ADAPTER = '''"""Linear attention, once more."""

from __future__ import annotations

from torch import Tensor


def one_more(q: Tensor, k: Tensor, v: Tensor, *, slopes: Tensor | None, scale: float, causal: bool) -> Tensor:
    """o_t = scale * sum_{s<=t} (q_t . k_s) v_s."""
    return (scale * q @ k.mT).tril() @ v
'''

ROW = """    Mechanism(
        name="one-more",
        semantics="linear",
        summary="linear attention once more",
        cost="N^2",
        providers=(
            Provider(
                target="attnbench.baselines.one_more:one_more",
                distribution="torch",
                devices=("cuda", "cpu"),
            ),
        ),
    ),
)
"""


def _python_files(package: Path) -> dict[Path, str]:
    return {file.relative_to(package): file.read_text() for file in package.rglob("*.py")}


def test_a_mechanism_more_touches_two_files(tmp_path: Path) -> None:
    """One adapter and one row: with these alone it is listed, asked for by a preset, checked and timed."""
    copy = tmp_path / "attnbench"
    shutil.copytree(PACKAGE, copy)
    before = _python_files(copy)
    (copy / "baselines" / "one_more.py").write_text(ADAPTER)
    table = copy / "catalogue" / "linear.py"
    table.write_text(table.read_text().rstrip().removesuffix(")") + ROW)

    after = _python_files(copy)
    touched = {str(name) for name in after if after[name] != before.get(name)}
    assert touched == {"baselines/one_more.py", "catalogue/linear.py"}

    code = (
        "import json, torch; from attnbench import listing; from attnbench.case import Case, Protocol;"
        "from attnbench.measure.runner import measure; from attnbench.sweeps.layers import Overrides;"
        "from attnbench.sweeps.loader import load;"
        "asked = Overrides(mechanism='one-more', seq_len='32', tokens='64', head_dim='16');"
        "cases = load('quick', device='cpu', overrides=asked).cases();"
        "rows = [measure(c, protocol=Protocol(cap_s=0.02), device=torch.device('cpu'), ceilings=None) for c in cases];"
        "names = [row['mechanism'] for row in listing.rows('cpu')];"
        "print(json.dumps([listing.__file__, names, [[r.status, r.tokens_per_s] for r in rows]]))"
    )
    variables = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path, env=variables
    )
    assert done.returncode == 0, done.stderr
    place, names, rows = json.loads(done.stdout)
    assert Path(place).is_relative_to(copy)
    assert "one-more" in names
    assert len(rows) == 2  # forward and backward
    assert all(status == "ok" and rate > 0 for status, rate in rows)


def test_no_branch_anywhere_asks_for_a_mechanism_by_name() -> None:
    """A row says all there is to say of it. The tuner's kernels, named alike, are its subject."""
    names = {mechanism.name for mechanism in BUILT_IN}
    asking = {
        (str(file), constant.value)
        for file, text in _python_files(PACKAGE).items()
        if file.parts[0] != "tuning"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Compare)
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant) and constant.value in names
    }
    assert asking == set()


def test_what_a_file_imports_from_its_folder_is_part_of_its_version(tmp_path: Path) -> None:
    (tmp_path / "top.py").write_text("import torch\nfrom helper import attend\nimport attnbench.registry\n")
    (tmp_path / "helper.py").write_text("from deeper import scale\n\ndef attend(): ...\n")
    (tmp_path / "deeper.py").write_text("scale = 1\n")
    (tmp_path / "another.py").write_text("")
    found = mechanism_files.sources(tmp_path / "top.py")
    assert [path.name for path in found] == ["top.py", "deeper.py", "helper.py"]


def test_a_file_finds_those_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv(mechanism_files.VARIABLE, "")
    (tmp_path / "top_of_two.py").write_text("from beside_the_top import mine\n")
    (tmp_path / "beside_the_top.py").write_text("def mine(q, k, v, *, scale, causal, **_): ...\n")
    assert mechanism_files.remember(f"{tmp_path}/top_of_two.py:mine:softmax").name == "mine"


def test_what_a_call_wrote_into_is_named_where_its_output_is_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oracle sees what was left there: o is right, and the bug is elsewhere."""
    (tmp_path / "idem.py").write_text(
        "import torch.nn.functional as F\n\n"
        "def idem(q, k, v, *, scale, causal, **_):\n"
        "    o = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scale)\n"
        "    k.zero_(); v.zero_()\n"
        "    return o\n"
    )
    monkeypatch.setenv(mechanism_files.VARIABLE, "")
    (name,) = parse_mechanisms(f"{tmp_path}/idem.py:idem:softmax")
    case = Case(mechanism=name, workload=Workload.FWD, batch=1, heads=2, seq_len=16, head_dim=8, dtype="fp32")
    found = measure(case, protocol=Protocol(), device=torch.device("cpu"), ceilings=None)
    assert found.status is Status.INCORRECT
    assert str(found.reason).endswith("; the call wrote into k and v, and is judged by what it left there")
