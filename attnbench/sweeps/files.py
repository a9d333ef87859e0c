"""Sweep files: presets and files of one's own, found, read, and asked for the line of a key."""

from __future__ import annotations

import importlib.resources
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from attnbench.errors import UserError, unknown
from attnbench.sweeps.values import shown

Where = Callable[[str], str]  # a key's place as an error sentence names it: "my.toml, line 4: seq_len"
Places = Callable[..., Where]  # the same for the keys of a table: places("cpu", "protocol")("limit_s")


def preset_names() -> tuple[str, ...]:
    """The sweeps that come with attnbench, in alphabetical order."""
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in _presets() if entry.name.endswith(".toml"))
    )


@dataclass(frozen=True, kw_only=True)
class SweepFile:
    """The text of a sweep, and where its keys stand."""

    label: str  # as error sentences name it
    stem: str
    text: str

    def parse(self) -> dict[str, Any]:
        """The document. Raises UserError, with the line, for what is no TOML."""
        try:
            return tomllib.loads(self.text)
        except RecursionError:
            raise UserError(f"{self.label}: malformed TOML: nested too deeply") from None
        except tomllib.TOMLDecodeError as error:
            problem, _, position = str(error).partition(" (at ")
            found = re.match(r"line (\d+)", position)
            line = found[1] if found else self.text.rstrip().count("\n") + 1  # "(at end of document)"
            raise UserError(f"{self.label}, line {line}: malformed TOML: {problem}") from None
        except ValueError:  # from int(): more than 4300 digits
            raise UserError(f"{self.label}: malformed TOML: a number of thousands of digits") from None

    def places(self, *table: str) -> Where:
        """Names the keys of a table with file and line."""

        def place(key: str) -> str:
            path = (*table, key)
            line = self.line_of(path)
            name = ".".join(part if part.isprintable() else ascii(part) for part in path)
            return f"{self.label}, line {line}: {name}" if line else f"{self.label}: {name}"

        return place

    def line_of(self, path: tuple[str, ...]) -> int | None:
        """The line on which a key starts: all above it parses and lacks the key, with it that ends."""
        lines = self.text.split("\n")
        for number, line in enumerate(lines, start=1):
            if (
                path[-1] in line
                and _has(lines[: number - 1], path) is False
                and _has(lines[:number], path) is not False
            ):
                return number
        return None


def _has(lines: list[str], path: tuple[str, ...]) -> bool | None:
    """Do these lines define the key? None when they are no complete document."""
    try:
        value: Any = tomllib.loads("\n".join(lines))
    except ValueError:
        return None
    for part in path:
        if not isinstance(value, dict) or part not in value:
            return False
        value = value[part]
    return True


def _presets() -> Iterator[Traversable]:
    return (importlib.resources.files("attnbench.sweeps") / "presets").iterdir()


def open_sweep(name_or_path: str | Path) -> SweepFile:
    """The preset of that name, or the file at that path. Raises UserError where there is none."""
    text = str(name_or_path)
    separators = [separator for separator in (os.sep, os.altsep) if separator]
    if isinstance(name_or_path, Path) or text.endswith(".toml") or any(s in text for s in separators):
        return _read(Path(name_or_path))
    for entry in _presets():
        if entry.name == f"{text}.toml":
            return SweepFile(label=f"preset '{text}'", stem=text, text=entry.read_text(encoding="utf-8"))
    raise unknown("preset", text, preset_names())


def _read(path: Path) -> SweepFile:
    name = shown(path, longest=200)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        hint = f"; did you mean the preset '{path.stem}'?" if path.stem in preset_names() else ""
        raise UserError(f"there is no sweep file {name}{hint}") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a directory, not a sweep file") from None
    except (OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UserError(f"cannot read the sweep file {name}: {reason}") from None
    try:
        text = data.decode("utf-8-sig")  # editors on Windows put a byte order mark first
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}, line {line}: the file is not UTF-8 text") from None
    return SweepFile(label=str(path), stem=path.stem, text=text.replace("\r\n", "\n"))
