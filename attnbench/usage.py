"""What typer refuses, in one sentence like all else that is refused: its own answer is four lines, and has no value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import typer

from attnbench.errors import nearest
from attnbench.words import joined

# typer brings a click of its own, and has no public name for this one of its classes.
UsageError: Final[Any] = typer.BadParameter.__mro__[1]

_EXTRA: Final = re.compile(r"^Got unexpected extra arguments?(?:\(s\))? \((?P<words>.+)\)$")
_NUMBER: Final = re.compile(r"^Input should be (?:a valid )?(?P<what>.*?)(?:, unable to parse .*)?$")


def sentence(error: Any, words: Sequence[str]) -> str | None:
    """What was expected and what came, and where the help is; None where the error is itself the help.

    error: a `UsageError`. words: of the command line.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        return None
    help_of = "" if error.ctx is None else f" (see: {error.ctx.command_path} -h)"
    return f"{_what(error, words)}{help_of}"


def _what(error: Any, words: Sequence[str]) -> str:
    if hasattr(error, "possibilities"):
        return _unknown_option(error)
    if isinstance(error, typer.BadParameter) and error.param is not None and error.message:
        return _bad_value(error, words)
    text = str(error.format_message()).rstrip(".")
    extra = _EXTRA.match(text)
    if extra is not None and error.ctx is not None:
        return _unexpected(extra["words"], error.ctx.command)
    return text[:1].lower() + text[1:]


def _unexpected(words: str, command: Any) -> str:
    """What stands alone on the line and has no place there; that mechanisms are named by an option is easily missed."""
    arguments = [each.name.upper() for each in command.params if each.param_type_name == "argument"]
    options = [name for each in command.params for name in each.opts]
    takes = f"{joined(arguments)} and nothing more" if arguments else "no argument"
    hint = "; -m names mechanisms" if "-m" in options else ""
    return f"unexpected argument '{words.split()[0]}': {command.name} takes {takes}{hint}"


def _unknown_option(error: Any) -> str:
    parameters = [] if error.ctx is None else error.ctx.command.get_params(error.ctx)
    names = [name for each in parameters for name in (*each.opts, *each.secondary_opts)]
    long = [name for name in names if name.startswith("--")]
    return f"unknown option '{error.option_name}'; {nearest(error.option_name, long)}"


def _bad_value(error: Any, words: Sequence[str]) -> str:
    name, value = _given(error.param.opts, words)
    text = _expected(error.message.rstrip("."))
    came = "" if value is None or repr(value) in text else f", got '{value}'"
    return f"{name}: {text[:1].lower()}{text[1:]}{came}"


def _expected(message: str) -> str:
    """Of a number that is none, or is out of its bounds; other messages as they are."""
    found = _NUMBER.match(message)
    if found is None:
        return message
    kinds = {"integer": "an integer", "number": "a number"}
    return f"expected {kinds.get(found['what'], 'a number ' + found['what'])}"


def _given(names: Sequence[str], words: Sequence[str]) -> tuple[str, str | None]:
    """An option as it was written, and its last value; of an argument, or a short option run together, None."""
    name, value = max(names, key=len), None
    for word, following in zip(words, [*words[1:], None], strict=True):
        head, equals, rest = word.partition("=")
        if head in names:
            name, value = head, rest if equals else following
    return name, value
