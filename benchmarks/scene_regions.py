"""What the benchmarks of regions share: the field guide's scenes on disk, and results that are resumed."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rarvision.datasets.fieldguide import FieldGuideScenes
from rarvision.detection import Annotations, read_annotations

__all__ = ["Results", "written"]


def written(folder: Path, scenes: FieldGuideScenes) -> Annotations:
    """The annotations of scenes that are written to a folder, unless they are there already."""
    file = folder / f"lvis_{scenes.split}.json"
    if not file.exists() or json.loads(file.read_text(encoding="utf-8"))["info"] != scenes.description:
        folder.mkdir(parents=True, exist_ok=True)
        if file.exists():
            raise SystemExit(f"{file} has other scenes than {scenes.description}: give another --folder")
        scenes.export(folder, progress=lambda done, of: _say(f"{scenes.name}: {done} of {of} scenes drawn"))
    return read_annotations(file, images=folder)


class Results:
    """What was measured so far, in a file of JSON lines that is resumed; one with other settings is refused.

    The first line has the settings, each other one a result, added as it is found. What follows the last whole line
    (an interrupted one) is dropped.

    Args:
        path: The file.
        settings: What the results depend on.
        quiet: Do not tell of each result.
    """

    def __init__(self, path: Path, settings: dict[str, Any], *, quiet: bool = False) -> None:
        self.path, self._quiet = path, quiet
        self.known: dict[str, Any] = {}
        now = json.loads(json.dumps(settings))
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        first, *lines = text[: text.rfind("\n") + 1].splitlines() or [""]
        there = json.loads(first) if first else now
        if there != now:
            different = {
                key: (there.get(key), now.get(key)) for key in {*there, *now} if there.get(key) != now.get(key)
            }
            raise SystemExit(f"{path} was made with other settings (there, now): {different}; give another --json")
        for line in lines:
            self.known.update(json.loads(line))
        fresh = path.with_name(path.name + ".part")
        fresh.write_text("\n".join([json.dumps(now), *lines, ""]), encoding="utf-8")
        fresh.replace(path)

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """The result of that key: the kept one, or a fresh one, which is kept."""
        if key not in self.known:
            self.known[key] = json.loads(json.dumps(measure()))
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({key: self.known[key]}) + "\n")
            if not self._quiet:
                _say(f"{key}: {json.dumps(self.known[key])[:200]}")
        return self.known[key]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
