"""What `attnbench profile` does: from the words of a command to processes, folders and pages."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.case import DTYPES, Case, Status, Workload
from attnbench.errors import UserError
from attnbench.executors.lock import Descriptors, device_lock
from attnbench.measure.clock import now_s
from attnbench.profiling import counters, formats, found
from attnbench.profiling.comparing import Beside, pair
from attnbench.profiling.diagnosis import diagnose
from attnbench.profiling.found import Profile
from attnbench.profiling.process import Ended, run
from attnbench.registry import find
from attnbench.sweeps.defaults import value_dim_of, windows_of
from attnbench.sweeps.values import parse_mechanisms, parse_names, parse_sizes
from attnbench.words import duration

INDEX, BESIDE = "profiles.md", "beside.md"
Tell = Callable[[str], None]

_REQUEST, _LOG = "request.json", "profile.log"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to profile, on "cuda" or "cpu"; limit_s: for each process, of which a case takes one or two."""

    cases: Sequence[Case]
    device: str
    counters: bool
    limit_s: float
    seed: int
    command: Sequence[str]


def cases_of(
    mechanisms: Sequence[str],
    *,
    workloads: Sequence[str] | None,
    seq_lens: Sequence[str] | None,
    batches: Sequence[str] | None,
    heads: Sequence[str] | None,
    head_dims: Sequence[str] | None,
    kv_heads: Sequence[str] | None,
    dtypes: Sequence[str] | None,
    window: Sequence[str] | None,
    causal: bool,
    device: str,
) -> list[Case]:
    """Cases from what was typed, shape by shape; None: the default.

    Raises UserError for a value that is not what it should be, with the nearest name.
    """
    names = parse_mechanisms(mechanisms)
    if not seq_lens:
        raise UserError("give --seq-len, the tokens of a sequence, for example: --seq-len 8k")
    known = parse_names(list(workloads or ["fwd"]), kind="workload", choices=[*Workload], axis="--workload")
    usual = "bf16" if device == "cuda" else "fp32"
    kinds = parse_names(list(dtypes or [usual]), kind="dtype", choices=DTYPES, axis="--dtype")
    asked = parse_sizes(list(window), axis="--window") if window else ()
    counts = parse_sizes(list(heads or ["16"]), axis="--heads")
    shared = parse_sizes(list(kv_heads), axis="--kv-heads") if kv_heads else (0,)
    uneven = [(h, kv) for h in counts for kv in shared if kv and h % kv]
    if uneven:
        raise UserError(f"--kv-heads: expected a divisor of --heads {uneven[0][0]}, got {uneven[0][1]}")
    return [
        Case(
            mechanism=name, workload=Workload(workload), batch=batch, heads=head, seq_len=seq_len,
            head_dim=head_dim, dtype=dtype, kv_heads=kv, causal=causal, window=width,
            value_dim=value_dim_of(name, head_dim=head_dim),
        )
        for dtype in kinds
        for head_dim in parse_sizes(list(head_dims or ["128"]), axis="--head-dim")
        for head in counts
        for kv in shared
        for batch in parse_sizes(list(batches or ["1"]), axis="--batch")
        for seq_len in parse_sizes(list(seq_lens), axis="--seq-len")
        for workload in known
        for name in names
        for width in windows_of(name, asked=asked)
    ]  # fmt: skip


def profile_all(wanted: Request, *, out: Path, tell: Tell) -> list[tuple[Path, Profile]]:
    """Profile every case, each in processes of its own, into folders below `out`; a single one into `out` itself.

    Raises UserError when another attnbench times on the device, or a folder cannot be written or holds a run or a
    profile already.
    """
    done: list[tuple[Path, Profile]] = []
    folders = folders_of(wanted.cases, out=out)
    for name in (found.FILE, "run.json"):
        for folder in dict.fromkeys((out, *folders)):
            if (folder / name).exists():
                what = "a profile" if name == found.FILE else "a run"
                raise UserError(f"the output folder {folder} already holds {what}; choose another")
    with device_lock(wanted.device) as lock:
        start = now_s()
        for number, (case, folder) in enumerate(zip(wanted.cases, folders, strict=True)):
            left = ""
            if number:
                left = f", about {duration((now_s() - start) / number * (len(folders) - number))} left"
            tell(f"[{number + 1}/{len(folders)}{left}] {case.case_id}")
            done.append((folder, _profile(case, wanted, folder=folder, lock=lock, tell=tell)))
            write(done, out=out)  # each at once: what is killed later leaves it
    return done


def replay(folder: Path, *, tell: Tell) -> list[tuple[Path, Profile]]:
    """Recorded profiles, each diagnosed anew, with the counters that lie beside it; nothing is measured.

    Raises UserError where there is none.
    """
    done = []
    for path in profiles_below(folder):
        profile = found.load(path)
        recorded = path.parent / counters.FILE
        if recorded.is_file():
            told = counters.parse(recorded.read_text(encoding="utf-8", errors="replace"))
            if told:
                profile = dataclasses.replace(profile, counters=told, counters_note=None)
        done.append((path.parent, _concluded(profile)))
        tell(f"read {path}")
    return done


def write(done: Sequence[tuple[Path, Profile]], *, out: Path) -> None:
    """Write each profile's files, and a page over all where there are several.

    Raises UserError where they cannot be written.
    """
    try:
        for folder, profile in done:
            found.save(profile, folder / found.FILE)
            (folder / formats.PAGE).write_text(formats.markdown(profile), encoding="utf-8")
        if len(done) > 1:
            pages = [(folder.relative_to(out).as_posix(), profile) for folder, profile in done]
            (out / INDEX).write_text(formats.index(pages), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write into {out}: {error.strerror or error}") from error


def profiles_below(path: Path) -> list[Path]:
    """The profiles of a folder: its own, or those of the folders in it.

    Raises UserError where there are none.
    """
    if path.is_file():
        return [path]
    files = sorted(path.rglob(found.FILE))
    if not files:
        raise UserError(f"{path}: no profile there: expected a folder with {found.FILE}, or of such folders")
    return files


def beside(
    sides: Mapping[str, Sequence[Profile]] | Sequence[tuple[str, Sequence[Profile]]], *, out: Path | None
) -> list[Beside]:
    """Two sides of named profiles laid side by side, and written to `out` where that is given."""
    (one, first), (two, second) = sides.items() if isinstance(sides, Mapping) else sides
    laid = pair(first, second, names=(one, two))
    if out is not None:
        text = "\n".join(formats.markdown_beside(each) for each in laid)
        try:
            out.mkdir(parents=True, exist_ok=True)
            (out / BESIDE).write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write into {out}: {error.strerror or error}") from error
    return laid


def folders_of(cases: Sequence[Case], *, out: Path) -> list[Path]:
    """A folder for each case: `out` for a single one, else by mechanism and workload, where that suffices."""
    if len(cases) == 1:
        return [out]
    brief = [f"{case.mechanism}.{case.workload}" for case in cases]
    names = brief if len(set(brief)) == len(brief) else [case.case_id for case in cases]
    return [out / re.sub(r"[^A-Za-z0-9._@-]+", "-", name) for name in names]


# ------------------------------------------------------------------------------------------------------------


def _profile(case: Case, wanted: Request, *, folder: Path, lock: Descriptors, tell: Tell) -> Profile:
    """One case: a process that times and traces it, another under Nsight Compute, and what both say."""
    import sys

    request = folder / _REQUEST
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for earlier in (found.FILE, found.TRACE, counters.FILE, counters.LOG, _LOG):
            (folder / earlier).unlink(missing_ok=True)
        content = {
            "case": case.as_dict(),
            "device": wanted.device,
            "seed": wanted.seed,
            "command": list(wanted.command),
        }
        request.write_text(json.dumps(content), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror or error}") from error
    words = [sys.executable, "-m", "attnbench.profiling.subject", str(request), str(folder)]
    ended = run(words, log=folder / _LOG, limit_s=wanted.limit_s, inherit=lock)
    profile = _gathered(case, ended, folder=folder, limit_s=wanted.limit_s)
    if profile.status is Status.OK:
        profile = _counted(profile, wanted, request=request, folder=folder, lock=lock, tell=tell)
    request.unlink()
    if ended.code == 0:
        (folder / _LOG).unlink()
    if profile.counters:
        (folder / counters.LOG).unlink(missing_ok=True)
    return _concluded(profile)


def _gathered(case: Case, ended: Ended, *, folder: Path, limit_s: float) -> Profile:
    """What the process left, with how it ended where that was not well."""
    path = folder / found.FILE
    profile = (
        found.load(path) if path.is_file() else Profile(case=case, status=Status.ERROR, reason="unknown")
    )
    if ended.code == 0:
        return profile
    if ended.code is None:
        status, how = Status.TIMEOUT, f"the profiling process did not end within {limit_s:.0f} s"
    else:
        status, how = Status.CRASHED, f"the profiling process ended with code {ended.code}"
        how += f"; last output: {ended.last_line}" if ended.last_line else ""
    if profile.timing is not None:  # timed before it died
        return dataclasses.replace(profile, notes=(*profile.notes, f"{how} (see {_LOG})."))
    return dataclasses.replace(profile, status=status, reason=how)


def _counted(
    profile: Profile, wanted: Request, *, request: Path, folder: Path, lock: Descriptors, tell: Tell
) -> Profile:
    if wanted.device != "cuda":
        return profile
    if not wanted.counters:
        return dataclasses.replace(profile, counters_note="Hardware counters were not asked for.")
    tell("    counters")
    told, note = counters.count(request, folder=folder, limit_s=wanted.limit_s, inherit=lock)
    return dataclasses.replace(profile, counters=told, counters_note=note)


def _concluded(profile: Profile) -> Profile:
    return dataclasses.replace(profile, diagnosis=diagnose(profile))


def known_mechanism(name: str) -> bool:
    """Whether a side of a comparison names a mechanism; else it is a path.

    Raises UserError where it is neither.
    """
    if Path(name).exists():
        return False
    if "/" in name and ".py:" not in name:
        raise UserError(f"{name}: no profile there: expected a folder with {found.FILE}")
    if ".py:" not in name:
        find(name)
    return True
