"""A world of colours for tests of the pipeline: a fake encoder, a memory, and rankers that follow a script."""

from __future__ import annotations

from PIL import Image

from rarvision.datasets.base import Dataset, Item
from rarvision.errors import ChatProtocolError
from rarvision.memory import LocalMemory
from rarvision.ranking import BaseRanker
from rarvision.testing.encoders import FakeEncoder
from rarvision.types import Ranking, Sample

COLOURS = ("red", "green", "blue", "yellow", "black", "white")


def picture(colour, size=16):
    return Image.new("RGB", (size, size), colour)


def make_memory(path, *, encoder=None, shots=2):
    memory = LocalMemory.create(path, encoder=encoder or FakeEncoder())
    memory.add(
        Sample(source=f"{colour} {shot}", image=picture(colour, 8 + shot), label=colour)
        for colour in COLOURS
        for shot in range(shots)
    )
    return memory


class ScriptedRanker(BaseRanker):
    """Puts ``first`` first; fails on pictures of the colours in ``failing``."""

    def __init__(self, first="blue", *, failing=(), error=ChatProtocolError, scores=None, status="ranked"):
        self.first, self.failing, self.error, self.scores, self.status = first, failing, error, scores, status
        self.batches = []

    name = "scripted"

    def _rank_distinct(self, images, names):
        self.batches.append(len(images))
        bad = {Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in self.failing}
        if any(image.getpixel((0, 0)) in bad for image in images):
            raise self.error("the server is tired")
        rankings = []
        for candidates in names:
            order = sorted(range(len(candidates)), key=lambda i: candidates[i] != self.first)
            scores = None if self.scores is None else tuple(self.scores.get(name, -9.0) for name in candidates)
            if scores is not None:
                order = sorted(range(len(candidates)), key=lambda i: -scores[i])
            reason = None if self.status == "ranked" else "scripted"
            rankings.append(Ranking(order=tuple(order), log_scores=scores, strategy="scripted", status=self.status,
                                    reason=reason))  # fmt: skip
        return rankings


class Pictures(Dataset):
    """Pictures of the given colours; a label of its own where one is given."""

    def __init__(self, colours, labels=None, *, broken=()):
        self._colours, self._labels, self._broken = list(colours), list(labels or colours), set(broken)
        self.opened = []

    name = "pictures"

    @property
    def items(self):
        return [Item(source=f"{i}:{colour}", label=label)
                for i, (colour, label) in enumerate(zip(self._colours, self._labels, strict=True))]  # fmt: skip

    def _image(self, index):
        self.opened.append(index)
        if index in self._broken:
            image = Image.new("RGB", (16, 16))
            image._size = (0, 0)
            return image
        return picture(self._colours[index])
