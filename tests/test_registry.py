"""The table of mechanisms: every name in it leads somewhere, and every absence comes with a reason."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import attnbench
from attnbench.case import Case, Workload
from attnbench.catalogue import BUILT_IN
from attnbench.errors import UserError
from attnbench.registry import Mechanism, Provider, find, load_target, mechanisms, support
from attnbench.semantics import KEPT, SEMANTICS

PACKAGE = Path(attnbench.__file__).parent
ABSENT = "attnbench_no_such_package"

TARGETS = sorted(
    {
        target
        for mechanism in BUILT_IN
        for provider in mechanism.providers
        for target in (
            provider.target,
            provider.describe,
            provider.state_bytes,
            None if provider.decode is None else provider.decode.target,
        )
        if target is not None
    }
)


@pytest.fixture(autouse=True)
def _fresh_table() -> Iterator[None]:
    """The table is cached: no test may see or leave another's entry points."""
    mechanisms.cache_clear()
    yield
    mechanisms.cache_clear()


def _case(mechanism: str = "flash2", **changes: Any) -> Case:
    fields: dict[str, Any] = {"batch": 1, "heads": 8, "seq_len": 64, "head_dim": 64, "dtype": "bf16"}
    return Case(**{"mechanism": mechanism, "workload": Workload.FWD, **fields, **changes})


def _provider(**changes: Any) -> Provider:
    return Provider(
        **{"target": "attnbench.errors:nearest", "distribution": "torch", "devices": ("cpu",), **changes}
    )


def _mechanism(*providers: Provider, name: str = "third-party", **changes: Any) -> Mechanism:
    fields = {"semantics": "linear", "summary": "a test's own", "cost": "N"}
    return Mechanism(**{"name": name, "providers": providers or (_provider(),), **fields, **changes})


# ---------------------------------------------------------------- the table


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_a_function_in_a_file_of_the_package(target: str) -> None:
    """Read, not imported: the library behind an adapter is not everywhere."""
    module, _, function = target.partition(":")
    file = PACKAGE.parent / (module.replace(".", "/") + ".py")
    assert file.is_relative_to(PACKAGE / "baselines")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = {node.name: node.args for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert function in found
    by_position = [a.arg for a in found[function].args]
    by_name = [a.arg for a in found[function].kwonlyargs]
    is_question = by_position == ["case", "device"] and by_name == []
    calls = {provider.target for mechanism in BUILT_IN for provider in mechanism.providers}
    named = {
        SEMANTICS[mechanism.semantics].names
        for mechanism in BUILT_IN
        for provider in mechanism.providers
        if provider.target == target
    }
    kept = {
        KEPT[SEMANTICS[mechanism.semantics].kept]
        for mechanism in BUILT_IN
        for provider in mechanism.providers
        if provider.decode is not None and provider.decode.target == target
    }
    is_call = by_position == ["q", "k", "v"] and by_name == [
        "slopes",
        "scale",
        "causal",
        *min(named, default=()),
    ]
    assert len(named) <= 1
    if kept:
        assert by_position == ["q", "k", "v", *kept.pop()]
        assert by_name == ["slopes", "scale"]
    else:
        assert is_call if target in calls else is_question


def test_names_are_unique_and_semantics_known() -> None:
    names = [mechanism.name for mechanism in BUILT_IN]
    assert len(set(names)) == len(names)
    assert {mechanism.semantics for mechanism in BUILT_IN} == set(SEMANTICS)


def test_the_contract_names_are_there() -> None:
    assert {"lightning1", "lightning2", "linear-cumsum", "linear-quadratic", "flash2"} <= set(mechanisms())


def test_a_missing_package_always_has_an_install_line() -> None:
    for mechanism in BUILT_IN:
        for provider in mechanism.providers:
            assert (provider.package is None) == (provider.install is None), provider.target


@pytest.mark.parametrize(
    ("mechanism", "distribution"),
    [
        ("lightning2-official", "lightning-attn"),
        ("fla-simple-gla", "fla-core"),
        ("tfla", "mlstm-kernels"),
        ("xformers", "xformers"),
        ("gla", "fla-core"),
        ("fla-linear", "fla-core"),
        ("fla-retention", "fla-core"),
    ],
)
def test_a_library_that_is_not_here_is_named_with_its_install_line(
    mechanism: str, distribution: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    reason = f"{distribution} is not installed: pip install {distribution}"
    assert find(mechanism).provider_for("cuda") == reason


def test_without_any_library_every_mechanism_runs_or_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for mechanism in BUILT_IN:
        known = mechanism.provider_for("cuda")
        ways = [p.install for p in mechanism.providers if p.install is not None]
        if isinstance(known, Provider):
            assert known.package is None, mechanism.name
        else:
            assert ways, mechanism.name
            assert all(way in known for way in ways)
        elsewhere = mechanism.provider_for("cpu")
        if isinstance(elsewhere, str) and len(ways) == len(mechanism.providers):
            assert elsewhere == f"no provider for cpu; it runs on cuda and needs {' or '.join(ways)}"


def test_both_copies_of_flash_attention_can_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    package, copy = find("flash2").providers
    assert find("sdpa-flash").providers == (copy,)
    assert (package.distribution, copy.distribution) == ("flash-attn", "torch")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert find("flash2").provider_for("cuda") == copy


def test_linear_mechanisms_run_without_a_gpu() -> None:
    for name in ("lightning1", "lightning2", "linear-cumsum", "linear-quadratic", "sdpa"):
        assert isinstance(find(name).provider_for("cpu"), Provider), name


def test_importing_the_registry_imports_no_torch() -> None:
    # A package within a package is left out: looking for it imports its parents.
    code = (
        "import sys, attnbench.registry as r; r.mechanisms(); [p.available for m in r.mechanisms().values()"
        " for p in m.providers if '.' not in (p.package or '')];"
        " assert 'torch' not in sys.modules, 'torch was imported'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("lightening2", "lightning2"), ("flash-2", "flash2"), ("linear_cumsum", "linear-cumsum")],
)
def test_an_unknown_mechanism_names_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"unknown mechanism '{typed}'; did you mean '{meant}'"):
        find(typed)


def test_a_name_like_none_lists_them_all() -> None:
    with pytest.raises(UserError, match=r"choose from: cosformer, .*xformers"):
        find("zzzz")


# ---------------------------------------------------------------- providers


def test_the_first_available_provider_is_taken() -> None:
    absent = _provider(package=f"{ABSENT}.inner", install="pip install absent", variant="first")
    present = _provider(package="json", variant="second")
    assert _mechanism(absent, present).provider_for("cpu") == present
    assert _mechanism(present, absent).provider_for("cpu") == present
    assert _mechanism(absent, _provider(variant="third"), present).provider_for("cpu") == _provider(
        variant="third"
    )


def test_a_provider_of_another_device_is_passed_over() -> None:
    on_gpu, on_cpu = _provider(devices=("cuda",)), _provider(devices=("cpu",))
    mechanism = _mechanism(on_gpu, on_cpu)
    assert mechanism.provider_for("cpu") == on_cpu
    assert mechanism.provider_for("cuda") == on_gpu


def test_a_missing_package_gives_its_install_line() -> None:
    absent = _provider(package=ABSENT, distribution="absent-dist", install="pip install absent --now")
    assert _mechanism(absent).provider_for("cpu") == "absent-dist is not installed: pip install absent --now"
    bare = _provider(package=ABSENT, distribution="absent-dist")
    assert "pip install absent-dist" in str(_mechanism(bare).provider_for("cpu"))


def test_a_device_without_provider_says_where_it_runs() -> None:
    reason = _mechanism(_provider(devices=("cuda",))).provider_for("cpu")
    assert reason == "no provider for cpu; it runs on cuda"


def test_a_package_whose_lookup_fails_is_absent() -> None:
    assert not _provider(package=f"{ABSENT}.a.b").available
    assert not _provider(package="json.no_such_module").available
    assert _provider(package="json.decoder").available


def test_looking_for_a_package_does_not_import_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "attnbench_booby_trap.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert _provider(package="attnbench_booby_trap").available


def test_the_label_states_library_version_and_variant() -> None:
    version = importlib.metadata.version("torch")
    assert _provider(variant="sdpa-flash").label == f"torch {version} sdpa-flash"
    assert _provider().label == f"torch {version}"
    assert _provider(distribution=ABSENT).label == f"{ABSENT} (not installed)"


def test_a_target_loads_as_the_function_itself() -> None:
    from attnbench.errors import nearest

    assert load_target("attnbench.errors:nearest") is nearest
    with pytest.raises(ImportError):
        load_target(f"{ABSENT}:call")


# ---------------------------------------------------------------- why not


WHY_NOT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "dtype": ({"dtypes": ("fp16",)}, {"dtype": "fp32"}, "dtype fp32 is not supported by .* (it takes fp16)"),
    "head-dim": ({"max_head_dim": 32}, {}, "head dim 64 is over the limit of .* (32)"),
    "value-dim": ({"max_head_dim": 64}, {"value_dim": 128}, "head dim 128 is over the limit"),
    "multiple": ({"head_dim_multiple": 48}, {}, "head dim 64 is not a multiple of 48"),
    "value-multiple": ({"head_dim_multiple": 16}, {"value_dim": 24}, "value dim 24 is not a multiple of 16"),
    "head-dims": ({"head_dims": (32, 128)}, {}, "head dim 64 is not supported by .* (it takes 32, 128)"),
    "value-dims": ({"head_dims": (64,)}, {"value_dim": 96}, "value dim 96 is not supported by"),
    "equal-dims": ({"equal_value_dim": True}, {"value_dim": 32}, "value dim 32 differs from head dim 64"),
    "grouped": ({}, {"kv_heads": 2}, "grouped-query heads (2 for 8) are not supported"),
    "causal": ({}, {"causal": False}, "is causal only"),
}


@pytest.mark.parametrize("name", WHY_NOT)
def test_a_refused_case_has_its_reason(name: str) -> None:
    limits, changes, reason = WHY_NOT[name]
    pieces = reason.split(" .* ")
    told = _provider(**limits).why_not(_case(**changes))
    assert told is not None
    assert all(piece in told for piece in pieces), told


def test_a_provider_without_limits_takes_all() -> None:
    wide = _provider(grouped_heads=True, non_causal=True)
    assert wide.why_not(_case(kv_heads=2, causal=False, value_dim=40, head_dim=512, dtype="fp32")) is None
    assert _provider(max_head_dim=64, head_dim_multiple=16, equal_value_dim=True).why_not(_case()) is None


def test_support_is_the_provider_or_the_reason() -> None:
    assert isinstance(support(_case("sdpa", dtype="fp32"), device="cpu"), Provider)
    assert "no provider for cpu" in str(support(_case("sdpa-cudnn"), device="cpu"))
    assert "causal only" in str(support(_case("lightning2", causal=False), device="cpu"))


def test_a_workload_that_a_mechanism_lacks_is_unsupported(register: Register) -> None:
    register(_mechanism(workloads=(Workload.FWD,)))
    assert isinstance(support(_case("third-party"), device="cpu"), Provider)
    reason = support(_case("third-party", workload=Workload.BWD), device="cpu")
    assert reason == "workload bwd is not defined for third-party"


def test_decode_is_served_by_a_function_of_its_own() -> None:
    case = _case("lightning2", workload=Workload.DECODE, dtype="fp32")
    whole, step = find("lightning2").provider_for("cpu"), support(case, device="cpu")
    assert isinstance(whole, Provider)
    assert isinstance(step, Provider)
    assert step.target == "attnbench.baselines.lightning_torch:lightning2_decode"
    assert (whole.label.split()[-1], step.label.split()[-1]) == ("chunked", "recurrence")
    assert (step.state_bytes, step.describe) == (
        None,
        None,
    )  # what is said of whole sequences is not said of a step
    assert whole.serving(Workload.FWD) is whole
    assert "head dim 24 is not a multiple of 16" in str(
        support(_case("lightning2", workload=Workload.DECODE, head_dim=24), device="cuda")
    )


def test_a_mechanism_without_decode_says_so() -> None:
    case = _case("lightning1", workload=Workload.DECODE, dtype="fp32")
    assert support(case, device="cpu") == "workload decode is not defined for lightning1"
    with pytest.raises(ValueError, match="has no decode"):
        _provider().serving(Workload.DECODE)


def test_decode_is_listed_where_a_provider_has_it() -> None:
    has = {m.name for m in BUILT_IN for p in m.providers if Workload.DECODE in m.workloads_of(p)}
    assert {"lightning2", "flash2", "sdpa"} <= has
    assert not {"lightning1", "linear-cumsum", "linear-quadratic", "sdpa-cudnn", "xformers"} & has


# ---------------------------------------------------------------- entry points

Register = Callable[..., None]


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Register:
    """Pretend that an installed package registers these objects."""

    class Entry:
        def __init__(self, registered: object) -> None:
            self.name, self.value, self._registered = "theirs", "their_package:mechanism", registered

        def load(self) -> object:
            return self._registered

    def pretend(*registered: object) -> None:
        def entry_points(*, group: str) -> list[Entry]:
            return [Entry(r) for r in registered] if group == "attnbench.mechanisms" else []

        monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)
        mechanisms.cache_clear()

    return pretend


def test_a_third_party_joins_the_table(register: Register) -> None:
    theirs = _mechanism()
    register(theirs)
    assert find("third-party") is theirs
    assert len(mechanisms()) == len(BUILT_IN) + 1


def test_a_third_party_cannot_take_a_name_in_use(register: Register) -> None:
    register(_mechanism(name="lightning2"))
    with pytest.raises(UserError, match="'theirs' registers 'lightning2', which is already registered"):
        mechanisms()


def test_an_entry_point_that_yields_something_else_is_named(register: Register) -> None:
    register("a string")
    with pytest.raises(
        UserError, match="entry point 'theirs' of their_package:mechanism is no attnbench Mechanism"
    ):
        mechanisms()


def test_a_list_names_what_was_asked_for_a_provider_of_its_own_too(
    run: Callable[..., tuple[int, str, str]],
) -> None:
    code, out, _ = run("list", "-m", "lightning2", "-m", "flash2@torch", "--json", "--device", "cpu")
    assert code == 0
    assert [row["mechanism"] for row in json.loads(out)["mechanisms"]] == ["lightning2", "flash2@torch"]
