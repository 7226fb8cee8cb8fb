"""An experiment from its spec to outcomes on disk: cell by cell, resumable, and only what is not done yet."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rarvision.errors import InputError, OptionError
from rarvision.experiments.kinds import carry_out
from rarvision.experiments.lab import Cell, Lab
from rarvision.experiments.outcomes import Outcome, append_outcome, read_outcomes
from rarvision.experiments.spec import Spec
from rarvision.runs import check_configuration

__all__ = ["EXPERIMENT", "OUTCOMES", "cells_of", "check_folder", "read_configuration", "run_experiment"]

EXPERIMENT, OUTCOMES = "experiment.json", "outcomes.jsonl"
_ADVICE = "give another folder with --out, or --no-resume to start this one anew"


def cells_of(spec: Spec, seeds: Sequence[int]) -> Iterator[Cell]:
    """All cells, those of one memory together."""
    for column in spec.columns:
        for seed in seeds:
            for number, at in enumerate(spec.places):
                for row in spec.rows:
                    if not row.once:
                        yield Cell(spec=spec, column=column, row=row, at=at, seed=seed)
                    elif number == 0:
                        yield Cell(spec=_fixed(spec, at), column=column, row=row, at={}, seed=seed)


def _fixed(spec: Spec, at: Mapping[str, Any]) -> Spec:
    """For rows that the axis does not matter to, its first value is a setting like any other."""
    return replace(spec, settings={**spec.settings, **at})


def run_experiment(
    spec: Spec,
    lab: Lab,
    *,
    seeds: Sequence[int] = (0,),
    configuration: Mapping[str, Any] | None = None,
    done: Callable[[Outcome, int, int], None] = lambda _outcome, _number, _of: None,
) -> list[Outcome]:
    """Carry out all cells that are not done yet.

    Interrupted at any moment, the same call goes on: with the cell, at the image, where it was. Cells without a value
    are tried again.

    Args:
        spec: What.
        lab: With what; its folder gets ``experiment.json``, ``outcomes.jsonl``, and a line an image in ``images``.
        seeds: Of samples and images; more of them may be asked for later.
        configuration: What all cells depend on besides the spec, such as the models' names, JSON values. What is not
            given yet, such as an MLLM, is left out: a later call may add it, and none may change it.
        done: Called with each outcome, its number and the number of all; those of earlier calls included.

    Returns:
        All outcomes of these seeds, earlier calls' included.

    Raises:
        InputError: The folder holds another configuration's results, or another process is writing there.
        OptionError: No seeds.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise OptionError(f"seeds must be some, each once; got {list(seeds)}")
    lab.first_seed = seeds[0]
    lab.folder.mkdir(parents=True, exist_ok=True)
    check_folder(lab.folder, spec, {**lab.world.settings, **(configuration or {})})
    with _alone(lab):
        return _run(spec, lab, seeds, done)


@contextmanager
def _alone(lab: Lab) -> Iterator[None]:
    """Refuse a second process, as both would write the same files; the lock goes with its process however that ends."""
    lab.work.mkdir(exist_ok=True)
    lock = sqlite3.connect(lab.work / "lock", isolation_level=None, timeout=0)
    try:
        try:
            lock.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            raise InputError(
                f"{lab.folder}: another process is measuring this experiment ({error}); wait until it has finished, "
                "or give another folder with --out"
            ) from error
        yield
    finally:
        lock.close()


def _run(spec: Spec, lab: Lab, seeds: Sequence[int], done: Callable[[Outcome, int, int], None]) -> list[Outcome]:
    path = lab.folder / OUTCOMES
    known = {outcome.id: outcome for outcome in read_outcomes(path, repair=True)}
    cells = list(cells_of(spec, seeds))
    found = []
    for number, cell in enumerate(cells, start=1):
        key = Outcome(
            experiment=spec.name, column=cell.column.key, row=cell.row.key, at=dict(cell.at), seed=cell.seed
        ).id
        outcome = known.get(key)
        if outcome is None or outcome.why is not None:
            fresh = carry_out(lab, cell)
            if outcome is None or fresh.why != outcome.why:
                append_outcome(path, fresh)
            outcome = fresh
        found.append(outcome)
        done(outcome, number, len(cells))
    lab.finish()
    return found


def check_folder(folder: Path, spec: Spec, configuration: Mapping[str, Any]) -> None:
    """Write what the folder's results depend on, or refuse a folder of other results.

    Raises:
        InputError: They differ, and in what; or the file is damaged.
    """
    now: dict[str, Any] = {
        "experiment": spec.name,
        "rarvision": version("rarvision"),
        "settings": dict(spec.settings),
        "methods": {row.key: {"method": row.method, **row.options} for row in spec.rows},
        "datasets": {column.key: dict(column.options) for column in spec.columns},
        **configuration,
    }
    path = folder / EXPERIMENT
    if path.exists():
        there = read_configuration(folder)
        for part in ("methods", "datasets"):  # some of them may be asked for now, and others later
            _join(there.setdefault(part, {}), now[part])
        _join(there, now)  # so may an MLLM, without which there are no figures of it
        check_configuration(path, there, now, _ADVICE)
    elif (folder / OUTCOMES).exists():
        raise InputError(f"{folder}: has {OUTCOMES} and no {EXPERIMENT}, which says what they are; {_ADVICE}")
    fresh = path.with_name(path.name + ".part")
    fresh.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def _join(there: dict[str, Any], now: dict[str, Any]) -> None:
    """What one of them lacks is as in the other."""
    for key in there.keys() ^ now.keys():
        now.setdefault(key, there.get(key))
        there.setdefault(key, now[key])


def read_configuration(folder: Path) -> dict[str, Any]:
    """What the results in a folder depend on.

    Raises:
        InputError: There are none, or the file is damaged.
    """
    path = folder / EXPERIMENT
    if not path.is_file():
        raise InputError(f"{folder}: holds no results (no {EXPERIMENT}); expected a folder of `rarvision reproduce`")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return dict(values)
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({error}); {_ADVICE}") from error
