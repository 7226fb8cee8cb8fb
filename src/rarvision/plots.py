"""Plots of what was measured; needs the extra ``plots`` (matplotlib)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rarvision.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from rarvision.calibration import RankerFit

__all__ = ["check_plot", "draw_losses", "plot_gate", "plot_risk_coverage", "save_figure", "subplots"]

_SMOOTHED_FROM = 10  # steps


def subplots(
    columns: int = 1, *, size: tuple[float, float] = (5.0, 3.6), wrap: int | None = None
) -> tuple[Any, list[Any]]:
    """A figure and its axes, side by side; ``size`` in inches, of one of them; from ``wrap`` on they go on below.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingExtraError("a plot needs matplotlib: pip install 'rarvision[plots]'")
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "rarvision"  # the same plot gives the same file
    wide = min(columns, wrap or columns)
    high = -(-columns // wide)
    figure = Figure(figsize=(size[0] * wide, size[1] * high), layout="constrained")
    found = list(figure.subplots(high, wide, squeeze=False).flat)
    for empty in found[columns:]:
        empty.remove()
    return figure, found[:columns]


def check_plot(path: Path) -> None:
    """What a long job calls before it begins.

    Raises:
        OptionError: A suffix other than .png and .svg.
        MissingExtraError: matplotlib is not installed.
    """
    if path.suffix.lower() not in (".png", ".svg"):
        raise OptionError(f"a plot is written as .png or .svg; got the name {str(path)!r}")
    subplots()


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as .png or .svg; the errors are those of `check_plot`."""
    check_plot(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Date": None} if path.suffix.lower() == ".svg" else None)


def plot_gate(fit: RankerFit, path: Path) -> None:
    """Accuracy against the share of images for which the ranker is asked; the gate's place is marked.

    Raises:
        OptionError: There is no curve; the message says why.
    """
    if fit.curve is None:
        raise OptionError(f"there is no curve to draw: {fit.gate_reason}")
    figure, (axes,) = subplots()
    rates, accuracies = ([100 * value for value in values] for values in (fit.curve.call_rate, fit.curve.accuracy))
    axes.plot(rates, accuracies, label="least sure first")
    axes.plot([0, 100], [accuracies[0], accuracies[-1]], ":", color="gray", label="at random")
    if fit.gate is not None:
        asked = 100 * fit.gate.call_rate
        place = min(range(len(rates)), key=lambda i: abs(rates[i] - asked))
        axes.plot(rates[place], accuracies[place], "o", color="tab:red", label=f"gate: {rates[place]:.0f} % of calls")
    axes.set(xlabel="images for which the ranker is asked, %", ylabel="right, %", title="What asking the ranker brings")
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def plot_risk_coverage(
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path, *, title: str = "Risk and coverage"
) -> None:
    """Share of wrong answers among those that are given, against the share that is given.

    Args:
        curves: By name: coverage and risk, 0 to 1 (see `rarvision.metrics.risk_coverage`).
        path: Where to write it.
        title: Above the plot.
    """
    figure, (axes,) = subplots()
    for name, (coverage, risk) in curves.items():
        axes.step([100 * c for c in coverage], [100 * r for r in risk], where="post", label=name)
    axes.set(xlabel="images answered, surest first, %", ylabel="wrong among them, %", title=title, ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    save_figure(figure, path)


def draw_losses(losses: Sequence[tuple[int, float]], path: Path, *, unit: str) -> None:
    """Draw each step's loss and its running mean; the file depends on the losses only.

    Args:
        losses: (step, loss).
        path: Where to write it.
        unit: What the loss is counted in, for the axis.
    """
    figure, (axes,) = subplots(size=(7.0, 4.0))
    steps, values = np.array(losses, dtype=np.float64).reshape(-1, 2).T
    axes.plot(steps, values, color="#9bb8d3", linewidth=1.0, label="each step")
    if len(values) >= _SMOOTHED_FROM:
        width = max(_SMOOTHED_FROM // 2, len(values) // 20)
        means = np.convolve(values, np.ones(width) / width, mode="valid")
        axes.plot(steps[width - 1 :], means, color="#1f4e79", linewidth=1.8, label=f"mean of {width} steps")
    axes.set(xlabel="step", ylabel=f"loss, nats a {unit}", ylim=(0.0, None))
    axes.legend(frameon=False)
    save_figure(figure, path)
