"""attnbench: benchmark and profile attention mechanisms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attnbench.version import __version__

if TYPE_CHECKING:
    from attnbench.store import load_results

__all__ = ["__version__", "load_results"]


def __getattr__(name: str) -> Any:
    # Loaded on first use: `attnbench --help` must not wait for pyarrow.
    if name == "load_results":
        from attnbench.store import load_results

        return load_results
    raise AttributeError(f"module 'attnbench' has no attribute '{name}'")
