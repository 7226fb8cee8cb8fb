"""Recipes of training: the presets, what goes together, how batches are split."""

from __future__ import annotations

import pytest

from rarvision.errors import OptionError
from rarvision.tuning import PRESETS, recipe
from rarvision.tuning.recipes import Recipe


def test_recipes():
    assert PRESETS["lora"] == Recipe(
        method="lora", rank=128, alpha=256, learning_rate=2e-4, projector_learning_rate=2e-5, batch_size=16, warmup=0.03
    )
    paper = PRESETS["paper"]
    assert (paper.method, paper.learning_rate, paper.epochs) == ("full", 1e-5, 1.0)
    assert recipe("lora", rank=8).alpha == 16
    assert recipe("lora", rank=8, alpha=8).alpha == 8
    assert recipe("lora", projector=False).projector_learning_rate is None
    assert [recipe("lora", batch_size=size).micro_batch(2) for size in (2, 6, 8, 10)] == [1, 3, 4, 1]


@pytest.mark.parametrize(
    ("preset", "changes", "message"),
    [
        ("qlora", {}, "unknown preset 'qlora'; expected one of lora, paper"),
        ("lora", {"lr": 1}, "unknown setting 'lr'"),
        ("lora", {"learning_rate": 0.0}, "learning_rate must be above 0; got 0"),
        ("lora", {"learning_rate": float("nan")}, "learning_rate"),
        ("lora", {"dropout": 1.5}, "dropout must be at least 0, at most 1; got 1.5"),
        ("lora", {"rank": 0}, "rank"),
        ("lora", {"micro_batch_size": 32}, "micro_batch_size"),
        ("lora", {"objective": "write"}, "objective must be one of generate, likelihood, choice; got 'write'"),
        ("lora", {"listwise": True}, "listwise goes with the objective 'choice'"),
        ("paper", {"rank": 8}, "rank goes with the method 'lora'"),
        ("paper", {"targets": ("q_proj",)}, "targets go with"),
        ("lora", {"projector": False, "projector_learning_rate": 1.0}, "projector=True"),
    ],
)
def test_recipes_that_make_no_sense(preset, changes, message):
    with pytest.raises(OptionError, match=message):
        recipe(preset, **changes)


def test_batches_that_cannot_be_split():
    with pytest.raises(OptionError, match="multiple of the 3 processes, got 16"):
        recipe("lora").micro_batch(3)
    with pytest.raises(OptionError, match="must divide the batch of one process, which is 4; got 3"):
        recipe("lora", batch_size=8, micro_batch_size=3).micro_batch(2)
