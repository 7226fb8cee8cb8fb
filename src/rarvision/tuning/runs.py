"""The folder of a training run: its settings, checkpoints that are known to be whole, and results."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from rarvision.errors import InputError

__all__ = ["RunFolder", "differences", "write_json"]

_log = logging.getLogger(__name__)
_SETTINGS = "run.json"
_KEY = "rarvision_training"
_COMPLETE = "complete.json"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    fresh = path.with_name(f"{path.name}.part")
    fresh.write_text(json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    fresh.replace(path)


def differences(there: Mapping[str, Any], now: Mapping[str, Any], *, within: str = "") -> list[str]:
    """What differs between two sets of settings, a text for each."""
    found: list[str] = []
    for key in {**there, **now}:
        old, new = there.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, within=f"{within}{key}.")
        elif old != new:
            found.append(f"{within}{key}: {_short(old)} there, {_short(new)} now")
    return found


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@final
class RunFolder:
    """Where a run keeps what it has.

    Args:
        path: The folder; made where it is missing.
        settings: All that the outcome depends on, as JSON values.
        resume: Whether to go on with what is there; False removes it.
        main: Whether this is the main process; the others change nothing here.

    Raises:
        InputError: The folder holds a run with other settings, or something else.
    """

    def __init__(self, path: Path, *, settings: Mapping[str, Any], resume: bool, main: bool = True) -> None:
        self.path = path
        self.checkpoints = path / "checkpoints"
        self._settings = json.loads(json.dumps(settings))
        there = self._read()
        if there is not None and not resume:
            if main:
                self._remove()
        elif there is not None:
            changed = differences(there, self._settings)
            if changed:
                raise InputError(
                    f"{path}: holds a run with other settings ({'; '.join(changed)}); give the same ones to go on with "
                    "it, another folder, or resume=False (--no-resume) to remove it and start anew"
                )

    def _read(self) -> dict[str, Any] | None:
        """The settings of the run that is there, None where there is none."""
        file = self.path / _SETTINGS
        if not file.is_file():
            if self.path.is_dir() and any(self.path.iterdir()):
                raise InputError(f"{self.path}: is not empty and no training run; give another folder, or a new one")
            return None
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            there = values["settings"] if values[_KEY] == 1 else None
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}: is not the file of a training run ({error}); give another folder") from error
        if not isinstance(there, dict):
            raise InputError(f"{file}: was written by a newer rarvision; upgrade, or give another folder")
        return there

    def _remove(self) -> None:
        for name in ("adapter", "model", "checkpoints"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for name in ("answers.jsonl", "held_out.json", "losses.json", _SETTINGS):
            (self.path / name).unlink(missing_ok=True)

    def begin(self) -> None:
        """Write down the settings, and remove checkpoints that are not whole, with a warning; by one process only."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.path / _SETTINGS, {_KEY: 1, "settings": self._settings})
        for checkpoint in self._checkpoints():
            reason = self._incomplete(checkpoint)
            if reason is not None:
                _log.warning("%s is removed: %s", checkpoint, reason)
                shutil.rmtree(checkpoint)

    def mark(self, checkpoint: Path) -> None:
        """Note that a checkpoint was written whole, and how large each of its files is."""
        files = {
            file.relative_to(checkpoint).as_posix(): file.stat().st_size
            for file in sorted(checkpoint.rglob("*"))
            if file.is_file() and file.name != _COMPLETE
        }
        write_json(checkpoint / _COMPLETE, {"files": files})

    def last_checkpoint(self) -> Path | None:
        """The latest checkpoint that is whole."""
        return next((path for path in self._checkpoints() if self._incomplete(path) is None), None)

    def _checkpoints(self) -> list[Path]:
        """All checkpoints, the latest first."""
        there = self.checkpoints.iterdir() if self.checkpoints.is_dir() else ()
        steps = {int(found[1]): path for path in there if (found := _CHECKPOINT.fullmatch(path.name))}
        return [path for _, path in sorted(steps.items(), reverse=True)]

    @staticmethod
    def _incomplete(checkpoint: Path) -> str | None:
        """Why a checkpoint cannot be gone on from; None where it can."""
        try:
            files = json.loads((checkpoint / _COMPLETE).read_text(encoding="utf-8"))["files"]
            for name, size in files.items():
                found = (checkpoint / name).stat().st_size
                if found != size:
                    return f"{name} has {found:,} bytes, expected {size:,}"
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return "it was not written to its end"
        return None

    def publish(self, fresh: Path, name: str) -> Path:
        """Give a finished folder its name; what is there under it is whole."""
        return fresh.replace(self.path / name)

    def drop_checkpoints(self) -> None:
        """Remove the checkpoints of a run that is finished."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
