"""The command `attnbench profile`: it parses, calls and prints. What it needs is imported when it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from attnbench.errors import UserError
from attnbench.options import (
    DeviceOption,
    Dtypes,
    Exit,
    Json,
    KvHeads,
    SeqLens,
    Windows,
    make_console,
)

if TYPE_CHECKING:
    from attnbench.profiling.comparing import Beside
    from attnbench.profiling.found import Profile


def profile(
    mechanism: Annotated[
        list[str] | None, typer.Argument(help="Mechanisms (see: attnbench list), each profiled by itself.")
    ] = None,
    seq_len: SeqLens = None,
    workload: Annotated[
        list[str] | None,
        typer.Option("--workload", "-w", help="fwd, bwd, fwd-bwd, decode; default: fwd."),
    ] = None,
    batch: Annotated[
        list[str] | None, typer.Option("--batch", help="Sequences per call; default: 1.")
    ] = None,
    heads: Annotated[list[str] | None, typer.Option("--heads", help="Query heads; default: 16.")] = None,
    head_dim: Annotated[
        list[str] | None, typer.Option("--head-dim", help="Channels per query and key head; default: 128.")
    ] = None,
    kv_heads: KvHeads = None,
    window: Windows = None,
    causal: Annotated[
        bool, typer.Option("--causal/--full", help="Mask what comes after a token, or nothing.")
    ] = True,
    dtype: Dtypes = None,
    compare: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--compare",
            metavar="A B",
            help="Side by side: two mechanisms, or two folders that -o made, for example of two commits.",
        ),
    ] = None,
    counters: Annotated[
        bool, typer.Option(help="Read hardware counters with Nsight Compute (ncu), where it is there.")
    ] = True,
    replay: Annotated[
        Path | None,
        typer.Option("--replay", help="Take a folder that -o made, diagnose it anew, and measure nothing."),
    ] = None,
    limit_s: Annotated[
        float, typer.Option("--limit-s", min=1.0, help="Seconds for each process; a case takes one or two.")
    ] = 300.0,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Seed of the random inputs.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="Folder for profile.json, profile.md and the trace; default: runs/..."
        ),
    ] = None,
    json_: Json = False,
    device: DeviceOption = "auto",
) -> None:
    """See where the time of a mechanism goes: kernels, gaps, ceilings, registers, counters, and what bounds it.

    Each case is timed in a process of its own, as a sweep times it, and only then traced; counters come from a further
    process. The folder holds profile.json, a page profile.md, and trace.json.gz for Perfetto (ui.perfetto.dev). Exit
    code 3 if a case could not be profiled.
    """
    from attnbench.measure.gpus import device_kind
    from attnbench.profiling import command
    from attnbench.sweeping import folder_of

    if replay is not None and (mechanism or compare):
        raise UserError("--replay takes a recorded folder; give no mechanism and no --compare with it")
    if compare is not None and mechanism:
        raise UserError(f"give either mechanisms or --compare, not both: got {mechanism[0]} and --compare")
    live = [name for name in compare if command.known_mechanism(name)] if compare else list(mechanism or ())
    if replay is not None:
        done = command.replay(replay, tell=_tell)
        command.write(done, out=replay)
        _hand_over([each for _, each in done], (), json_=json_)
        return
    if not live and compare is None:
        raise UserError("name a mechanism to profile, for example: attnbench profile lightning2 --seq-len 8k")
    folder, found = folder_of("profile", out=out, resume=False), []
    if live:
        kind = device_kind(device)
        request = command.Request(
            cases=command.cases_of(
                live,
                workloads=workload,
                seq_lens=seq_len,
                batches=batch,
                heads=heads,
                head_dims=head_dim,
                kv_heads=kv_heads,
                dtypes=dtype,
                window=window,
                causal=causal,
                device=kind,
            ),
            device=kind,
            counters=counters,
            limit_s=limit_s,
            seed=seed,
            command=[_without_folders(word) for word in sys.argv[1:]],
        )
        found = [each for _, each in command.profile_all(request, out=folder, tell=_tell)]
    laid = _laid(compare, found, out=folder if live or out else None) if compare else []
    _hand_over(found, laid, json_=json_)
    if live:
        print(f"Profiles: {folder}", file=sys.stderr if json_ else sys.stdout)
    if any(each.timing is None for each in found):
        raise typer.Exit(Exit.INCONCLUSIVE)


def _without_folders(word: str) -> str:
    """A word of the command line as a page may tell it: of a path only its last name."""
    return Path(word).name if word.startswith(("/", "~")) else word


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _laid(names: tuple[str, str], live: list[Profile], *, out: Path | None) -> list[Beside]:
    """Both sides: what was just profiled of a mechanism, or what lies in a folder."""
    from attnbench.profiling import command, found
    from attnbench.sweeps.values import parse_mechanisms

    sides = []
    for name in names:
        if command.known_mechanism(name):
            (own,) = parse_mechanisms(name)
            sides.append((name, [each for each in live if each.case.mechanism == own]))
        else:
            sides.append((name, [found.load(path) for path in command.profiles_below(Path(name))]))
    return command.beside(sides, out=out)


def _hand_over(profiles: list[Profile], laid: list[Beside] | tuple[()], *, json_: bool) -> None:
    from attnbench.profiling import formats

    if json_:
        print(formats.json_text(profiles, laid))
        return
    console = make_console()
    for each in profiles:
        formats.show(each, console)
        console.print()
    for pair in laid:
        formats.show_beside(pair, console)
