"""A lab of fakes for tests of experiments: colours as categories, a fake encoder, an MLLM that follows a script."""

from __future__ import annotations

from dataclasses import replace

from colour_world import COLOURS, Pictures
from rarvision.experiments import Axis, Claim, Column, Lab, Metric, Row, Spec, Task, World
from rarvision.testing.chat import FakeChat
from rarvision.testing.encoders import FakeEncoder


class ColourWorld(World):
    """Pictures of colours; ``wrong`` of the queries have the next colour's label."""

    edition = "field-guide"

    def __init__(self, *, queries=12, wrong=2):
        self.queries, self.wrong, self.asked = queries, wrong, []

    @property
    def settings(self):
        return {"world": "colours", "queries": self.queries}

    def task(self, column, settings, seed):
        self.asked.append((column.key, seed))
        colours = [COLOURS[i % len(COLOURS)] for i in range(self.queries)]
        labels = [COLOURS[(i + (i < self.wrong)) % len(COLOURS)] for i in range(self.queries)]
        return Task(
            names=COLOURS,
            templates=("{}",),
            known=lambda shots, _seed: Pictures(list(COLOURS) * (shots or 3)),
            queries=Pictures(colours, labels),
        )

    def regions(self, column, settings, seed, folder):
        raise AssertionError("no boxes here")


def colours_spec(**changes):
    spec = Spec(
        name="table-7",
        title="Colours",
        question="Are colours told apart?",
        kind="classification",
        columns=(Column(key="one", title="One"), Column(key="two", title="Two")),
        rows=(
            Row(key="clip", title="CLIP", method="clip", once=True, extra=True),
            Row(key="knn", title="CLIP + kNN", method="knn"),
            Row(key="rar", title="RAR", method="rar"),
            Row(key="mllm", title="MLLM alone", method="mllm", once=True),
        ),
        metrics=(Metric(key="top1", title="top-1"),),
        axis=Axis(key="shots", title="shots", values=(1, 2)),
        settings={"k": 3},
        claims=(Claim(text="Ranking gains.", kind="gain", first="rar", second="knn"),),
    )
    return replace(spec, **changes)


def colour_lab(folder, *, world=None, chat=None, **options):
    usual = {
        "open_chat": lambda _adapter: chat or FakeChat({"blue": -0.1, "red": -1.0}),
        "ranker": {"strategy": "likelihood"},
    }
    return Lab(
        folder=folder,
        world=world or ColourWorld(),
        open_encoder=lambda which: FakeEncoder(seed=which == "better"),
        **{**usual, **options},
    )
