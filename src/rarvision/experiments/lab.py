"""What experiments are carried out with: models, a world of images, a folder; memories are made as they are needed."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, final

from rarvision.calibration import Calibration
from rarvision.chat import Chat
from rarvision.detection import RegionDataset
from rarvision.encoders import Encoder, NameEncoder
from rarvision.errors import OptionError
from rarvision.experiments.spec import Column, Row, Spec
from rarvision.experiments.worlds import Task, World
from rarvision.memory import LocalMemory
from rarvision.ranking import Ranker

__all__ = ["Cell", "Lab", "Tell", "embedded_lab"]

Tell = Callable[[str, int, int], None]
"""Told what is under way, how many are done, and of how many."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one dataset at one place of the axis with one seed."""

    spec: Spec
    column: Column
    row: Row
    at: Mapping[str, Any]
    seed: int

    @property
    def settings(self) -> dict[str, Any]:
        """Of the spec, the dataset, the place and the method; the later ones prevail."""
        return {**self.spec.settings, **self.column.options, **self.at, **self.row.options}


@final
class Lab:
    """Models, images and a folder; closes what it opened.

    Args:
        folder: Of an experiment's results; memories, scenes and adapters lie in its ``work`` until it is finished.
        world: Where images come from.
        open_encoder: Loads an encoder: ``default``, or ``better`` for experiments that compare two.
        open_chat: Loads the MLLM, with an adapter if one is given; None where there is none.
        ranker: Options of every `Ranker`, such as its strategy.
        open_other: Loads another MLLM, for rows that ask one; None where there is none.
        tunable: The MLLM's name or folder, for rows that train it; None where it cannot be trained here.
        tuning: Changes of the recipe ``lora`` for such rows.
        calibration: Of mixed rankings; None for the shipped one.
        open_names: Loads what the likeness of names is computed with, for an encoder; None for their spelling.
        batch_size: Images that are encoded and ranked together.
        region_scores: Detections that rows of published scores are measured from; None where there are none.
        gallery: Images of each kind of error that are kept for the report, a cell.
        keep: Whether memories and adapters stay when the experiment is finished.
        tell: See `Tell`.
    """

    def __init__(
        self,
        *,
        folder: Path,
        world: World,
        open_encoder: Callable[[str], Encoder],
        open_chat: Callable[[Path | None], Chat] | None,
        ranker: Mapping[str, Any] | None = None,
        open_other: Callable[[], Chat] | None = None,
        tunable: str | Path | None = None,
        tuning: Mapping[str, Any] | None = None,
        calibration: Calibration | None = None,
        open_names: Callable[[Encoder], NameEncoder] | None = None,
        batch_size: int = 32,
        region_scores: Path | None = None,
        gallery: int = 6,
        keep: bool = False,
        tell: Tell = lambda _what, _done, _total: None,
    ) -> None:
        self.folder, self.world, self.calibration = folder, world, calibration
        self.tunable, self.tuning, self.batch_size, self.gallery, self.tell = (
            tunable,
            dict(tuning or {}),
            batch_size,
            gallery,
            tell,
        )
        self.region_scores = region_scores
        self._boxes: tuple[tuple[str, int], RegionDataset] | None = None
        self.first_seed = 0
        """Whose images the gallery shows."""
        self._open_encoder, self._open_chat, self._open_other = open_encoder, open_chat, open_other
        self._ranker, self._keep = dict(ranker or {}), keep
        self._open_names, self._names = open_names, dict[str, NameEncoder]()
        self._encoders: dict[str, Encoder] = {}
        self._chats: dict[str, Chat] = {}
        self._memory: tuple[str, LocalMemory] | None = None

    @property
    def work(self) -> Path:
        """For what is not a result."""
        return self.folder / "work"

    @property
    def has_ranker(self) -> bool:
        """Whether there is an MLLM."""
        return self._open_chat is not None

    @property
    def has_other(self) -> bool:
        """Whether there is another one."""
        return self._open_other is not None

    @property
    def ranker_options(self) -> Mapping[str, Any]:
        """Of every ranker."""
        return self._ranker

    def encoder(self, which: str = "default") -> Encoder:
        """``default`` or ``better``, loaded once."""
        if which not in self._encoders:
            self._encoders[which] = self._open_encoder(which)
        return self._encoders[which]

    def name_encoder(self, encoder: Encoder) -> NameEncoder | None:
        """What compares names, loaded once an encoder; None for their spelling."""
        if self._open_names is None:
            return None
        if encoder.fingerprint not in self._names:
            self._names[encoder.fingerprint] = self._open_names(encoder)
        return self._names[encoder.fingerprint]

    def chat(self, *, adapter: Path | None = None, other: bool = False) -> Chat:
        """The MLLM, loaded once; one with an adapter is kept until another is asked for."""
        key = "other" if other else str(adapter or "")
        if key not in self._chats:
            for loaded in [each for each in self._chats if each not in ("", "other")]:
                self._chats.pop(loaded).close()
            opener = self._open_other if other else self._open_chat
            if opener is None:
                raise OptionError("this experiment ranks: say who, with --ranker")
            self._chats[key] = opener() if other else self._open_chat(adapter)  # type: ignore[misc,call-arg]  # as its kind is
        return self._chats[key]

    def ranker(self, *, adapter: Path | None = None, other: bool = False, **changes: Any) -> Ranker:
        """A ranker by the options of all rankers and what a row changes."""
        return Ranker(self.chat(adapter=adapter, other=other), **{**self._ranker, **changes})

    def memory(self, cell: Cell, task: Task) -> LocalMemory:
        """Images and names of a task; kept open until another one is asked for, and completed if it was interrupted."""
        settings = cell.settings
        shots = settings.get("shots", 4)
        which = str(settings.get("encoder", "default"))
        key = _hash([cell.column.key, cell.seed, shots, list(task.names), which, settings.get("texts", True)])
        if self._memory is not None:
            if self._memory[0] == key:
                return self._memory[1]
            self._drop_memory()
        path = self.work / "memories" / key
        encoder = self.encoder(which)
        memory = (
            LocalMemory.open(path, encoder=encoder)
            if path.exists()
            else LocalMemory.create(path, encoder=encoder, thumbnails=None)
        )
        self._memory = (key, memory)
        if shots != 0:
            known = task.known(None if shots == "all" else int(shots), cell.seed)
            total = len(known)
            memory.add(known, progress=lambda done: self.tell(f"{cell.column.key}: memory", done, total))
        memory.add_texts(list(task.names), templates=task.templates)
        return memory

    def regions(self, cell: Cell) -> RegionDataset:
        """A cell's annotated boxes, read once for all cells that share them."""
        key = (cell.column.key, cell.seed)
        if self._boxes is None or self._boxes[0] != key:
            self._boxes = (key, self.world.regions(cell.column, cell.settings, cell.seed, self.work))
        return self._boxes[1]

    def _drop_memory(self) -> None:
        if self._memory is not None:
            key, memory = self._memory
            self._memory = None
            memory.close()
            if not self._keep:
                _remove(self.work / "memories" / key)

    def finish(self) -> None:
        """Remove what is not a result."""
        self._drop_memory()
        if not self._keep:
            _remove(self.work)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._memory is not None:  # what was interrupted goes on with it
            self._memory[1].close()
            self._memory = None
        for chat in self._chats.values():
            chat.close()


def _remove(folder: Path) -> None:
    """Move it away first: what an interruption leaves half removed must not be taken for a memory."""
    gone = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


def _hash(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


@contextmanager
def embedded_lab(folder: Path, world: World, *, threads: int | None = None, **options: Any) -> Iterator[Lab]:
    """The embedded models: ``clip-16``, the better ``clip-32``, and the MLLM, which ranks by likelihood.

    Args:
        folder: Of the results.
        world: Usually a `FieldGuideWorld`.
        threads: Of the arithmetic; None leaves it as it is.
        options: Of `Lab`, instead of these.
    """
    from rarvision.chat import LocalChat
    from rarvision.demo import CALIBRATION
    from rarvision.embedded import weights_path
    from rarvision.encoders import TransformersEncoder

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    usual: dict[str, Any] = {
        "open_encoder": lambda which: TransformersEncoder(weights_path("clip-32" if which == "better" else "clip-16")),
        "open_chat": lambda adapter: LocalChat(weights_path("mllm"), adapter=adapter, batch_size=32),
        "ranker": {"strategy": "likelihood"},
        "tunable": weights_path("mllm"),
        "tuning": {"learning_rate": 2e-4, "batch_size": 16, "rank": 32, "alpha": 64},
        "calibration": CALIBRATION,
    }
    with ExitStack() as stack:
        yield stack.enter_context(Lab(folder=folder, world=world, **{**usual, **options}))
