"""What typer refuses is one sentence: what was expected, what came, the nearest name, where the help is."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable

import pytest

Call = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("sweep quick --cap-s x", "--cap-s: expected a number, got 'x' (see: attnbench sweep -h)"),
        ("sweep quick --gpus=1.5", "--gpus: expected an integer, got '1.5' (see: attnbench sweep -h)"),
        (
            "model train-step --steps 3 --steps 0",
            "--steps: expected a number greater than or equal to 1, got '0' (see: attnbench model train-step -h)",
        ),
        ("list --devce cpu", "unknown option '--devce'; did you mean '--device'? (see: attnbench list -h)"),
        (
            "model train-step --no-compil",
            "unknown option '--no-compil'; did you mean '--no-compile'? (see: attnbench model train-step -h)",
        ),
        ("sweep quick --ful", "unknown option '--ful'; did you mean '--full'? (see: attnbench sweep -h)"),
        ("model --hepl", "unknown option '--hepl'; did you mean '--help'? (see: attnbench model -h)"),
        ("swep quick", "no such command 'swep'. Did you mean 'sweep'? (see: attnbench -h)"),
        ("model losess", "no such command 'losess'. Did you mean 'losses'? (see: attnbench model -h)"),
        ("sweep", "missing argument 'preset' (see: attnbench sweep -h)"),
        (
            "paper fig3 fig4",
            "unexpected argument 'fig4': paper takes FIGURE and nothing more (see: attnbench paper -h)",
        ),
        (
            "verify sdpa flash2",
            "unexpected argument 'sdpa': verify takes no argument; -m names mechanisms (see: attnbench verify -h)",
        ),
        ("check ci --time-budget", "option '--time-budget' requires an argument"),
    ],
    ids=lambda value: value if len(value) < 40 else "",
)
def test_it_is_one_sentence(run: Call, line: str, sentence: str) -> None:
    assert run(*line.split()) == (2, "", f"error: {sentence}\n")


def test_an_option_that_is_near_to_none_has_all_of_them(run: Call) -> None:
    code, out, err = run("env", "--wibble")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: unknown option '--wibble'; choose from: ")
    assert "--json" in err


@pytest.mark.parametrize("words", [(), ("model",)], ids=["attnbench", "model"])
def test_no_arguments_are_answered_by_the_help(run: Call, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert code == 2
    assert "Usage: attnbench" in out + err
    assert "error" not in err


@pytest.mark.parametrize("words", [("--version",), ("sweep", "--help"), ("paper", "list")], ids=" ".join)
def test_what_is_fine_ends_with_0(run: Call, words: tuple[str, ...]) -> None:
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert out


@pytest.mark.parametrize("signalled", [True, False])
def test_what_a_library_makes_of_ctrl_c_is_an_interruption_too(
    signalled: bool, run: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """matplotlib's renderer, in the middle of a marker, raises a ValueError of its own."""

    def draw(*_: object, **__: object) -> object:
        if signalled:
            with contextlib.suppress(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
        raise ValueError("Invalid bounding box")

    monkeypatch.setattr("attnbench.listing.rows", draw)
    # What runs in the background of a shell has it ignored, and is not to be interrupted then.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        if signalled:
            assert run("list", "--device", "cpu") == (130, "", "")
        else:
            with pytest.raises(ValueError, match="Invalid bounding box"):
                run("list", "--device", "cpu")
    finally:
        signal.signal(signal.SIGINT, before)
