"""Write docs/cli.md from the command line's own help: ``make docs``. A test fails where the file is out of date."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer.main
from typer.testing import CliRunner

from rarvision.cli.main import app

TARGET = Path(__file__).with_name("cli.md")
HEAD = """\
# Command line

<!-- Written by docs/generate_cli.py from the commands' own help; do not edit. -->

Everything here is also what `rarvision COMMAND --help` prints.
"""


def commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The paths of a command and all its subcommands, in the order of the help."""
    yield path
    for name, child in getattr(command, "commands", {}).items():
        yield from commands(child, (*path, name))


def render() -> str:
    """The whole page."""
    runner = CliRunner()
    parts = [HEAD]
    for path in commands(typer.main.get_command(app), ()):
        result = runner.invoke(app, [*path, "--help"], prog_name="rarvision", env={"COLUMNS": "100", "NO_COLOR": "1"})
        if result.exit_code:
            raise RuntimeError(f"{path}: {result.output}")
        text = "\n".join(line.rstrip() for line in result.stdout.strip().splitlines())
        parts.append(f"## {' '.join(('rarvision', *path))}\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
    print(f"wrote {TARGET.name}")
