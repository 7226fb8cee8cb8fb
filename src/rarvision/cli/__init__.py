"""The command line: adapters only. They parse, call the library, and turn its errors into one line and an exit code."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run ``rarvision``; the entry point of the installed command."""
    from rarvision.cli.main import run

    run()
