"""The loss over the steps of training, as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from rarvision.chat.loading import require
from rarvision.errors import OptionError

__all__ = ["check_plot", "draw_losses"]

_SUFFIXES = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Check that a plot can be written there, before hours of training.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OptionError: The file's name does not end like a picture's.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise OptionError(f"the plot's name must end in {', '.join(_SUFFIXES)}; got {path}")
    require("matplotlib", extra="plots", wanted="a plot")


def draw_losses(losses: Sequence[tuple[int, float]], path: Path, *, unit: str) -> None:
    """Draw each step's loss and its running mean; the file depends on the losses only.

    Args:
        losses: (step, loss).
        path: PNG, SVG or PDF.
        unit: What the loss is counted in, for the axis.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OptionError: The file's name does not end like a picture's.
    """
    check_plot(path)
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "rarvision"
    from matplotlib.figure import Figure

    steps = np.asarray([step for step, _ in losses], dtype=np.float64)
    values = np.asarray([loss for _, loss in losses], dtype=np.float64)
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, values, color="#9bb8d3", linewidth=1.0, label="each step")
    if len(values) >= 10:
        width = max(5, len(values) // 20)
        means = np.convolve(values, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], means, color="#1f4e79", linewidth=1.8, label=f"mean of {width} steps")
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, nats a {unit}")
    axes.set_ylim(bottom=0.0)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    dateless = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}, ".png": {}}
    figure.savefig(path, dpi=150, metadata=dateless[path.suffix.lower()])
