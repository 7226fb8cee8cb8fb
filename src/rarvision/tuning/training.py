"""Training an MLLM to rank: a manifest of ranking examples -> an adapter or a model, and what it was good for."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rarvision.checkpoints import checkpoint_source
from rarvision.errors import ChatUnavailableError, InputError, OptionError
from rarvision.plots import check_plot, draw_losses
from rarvision.ranking.forms import Strategy
from rarvision.tuning.fitting import Fitted, Job, fit
from rarvision.tuning.heldout import HeldOutTable, check_strategies, rank_held_out, spread_out
from rarvision.tuning.lessons import lessons_of
from rarvision.tuning.manifest import TuningExample, read_manifest
from rarvision.tuning.recipes import Recipe
from rarvision.tuning.recipes import recipe as preset

__all__ = ["PHASES", "Progress", "TrainingReport", "loss_unit", "train"]

Progress = Callable[[str, int, int], None]
"""Told the phase (one of `PHASES`), and how many of its steps or examples are done, of how many."""

PHASES = ("training", "ranking before", "ranking after")

DEFAULT_STRATEGIES: tuple[Strategy, ...] = ("generate", "choice", "likelihood")


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """What came of a training.

    Attributes:
        result: The adapter's folder, or the model's, for ``LocalChat(model, adapter=result)`` or ``LocalChat(result)``.
        method: ``lora`` or ``full``.
        objective: What was learned.
        examples: Number of ranking examples.
        losses: Mean loss of each step of the optimiser: (step, nats a learned token; with ``choice``, a question).
        trained: Numbers that were trained.
        total: Numbers of the base model.
        resumed_from: The step that this call went on after; None where it began at the first.
        held_out: Ranking before and after; None where no held-out examples were given.
        version: Of this package.
        settings: All that the outcome depends on.
    """

    result: Path
    method: str
    objective: str
    examples: int
    losses: tuple[tuple[int, float], ...]
    trained: int
    total: int
    resumed_from: int | None
    held_out: HeldOutTable | None
    version: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def loss_start(self) -> float | None:
        """Mean loss of the first tenth of the steps."""
        return _mean(self.losses[: _tenth(self.losses)])

    @property
    def loss_end(self) -> float | None:
        """Mean loss of the last tenth of the steps."""
        return _mean(self.losses[-_tenth(self.losses) :])

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {key: value for key, value in asdict(self).items() if key not in ("losses", "result")}
        ends = {"loss_start": self.loss_start, "loss_end": self.loss_end}
        return {"result": str(self.result), "steps": len(self.losses), **ends, **values}

    def table(self) -> list[tuple[str, str]]:
        """Rows for people: what, and its value with its unit."""
        unit = loss_unit(self.objective)
        rows = [
            ("result", str(self.result)),
            ("trained", f"{self.trained:,} of {self.total:,} numbers ({self.method})"),
            ("objective", self.objective),
            ("examples", f"{self.examples:,}"),
            ("steps", f"{len(self.losses):,}"),
        ]
        if self.loss_start is not None and self.loss_end is not None:
            rows.append(("loss", f"{self.loss_start:.4f} -> {self.loss_end:.4f} nats a {unit}"))
        return [*rows, ("rarvision", self.version)]

    def held_out_rows(self) -> list[tuple[str, str, str, str]]:
        """For people: the strategy, top-1 before and after, and how many answers needed repair or could not be read."""
        if self.held_out is None:
            return []
        rows = [
            ("as retrieved", f"{self.held_out.retrieved:.1%}", "", ""),
            ("as shown", f"{self.held_out.shown:.1%}", "", ""),
        ]
        for strategy, before in self.held_out.before.items():
            after = self.held_out.after[strategy]
            mended = f"{before.repaired + before.fallback:.1%} -> {after.repaired + after.fallback:.1%}"
            rows.append((strategy, f"{before.top1:.1%}", f"{after.top1:.1%}", mended))
        return rows

    def to_markdown(self) -> str:
        """Both tables in Markdown."""
        lines = ["| | |", "|---|---|", *(f"| {what} | {_cell(value)} |" for what, value in self.table())]
        if self.held_out is not None:
            lines += ["", "| held out | before | after | repaired or unread |", "|---|---|---|---|"]
            lines += [f"| {' | '.join(map(_cell, row))} |" for row in self.held_out_rows()]
        return "\n".join(lines)


def loss_unit(objective: str) -> str:
    """What the loss of an objective is counted by."""
    return "question" if objective == "choice" else "learned token"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _tenth(losses: Sequence[object]) -> int:
    return max(1, len(losses) // 10)


def _mean(losses: Sequence[tuple[int, float]]) -> float | None:
    return sum(loss for _, loss in losses) / len(losses) if losses else None


def train(
    manifest: Path | str,
    *,
    model: str | Path,
    out: Path | str,
    recipe: Recipe | str = "lora",
    held_out: Path | str | None = None,
    held_out_limit: int | None = None,
    strategies: Sequence[Strategy] = DEFAULT_STRATEGIES,
    plot: Path | str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str = "auto",
    checkpoint_steps: int = 100,
    workers: int = 0,
    resume: bool = True,
    progress: Progress | None = None,
) -> TrainingReport:
    """Train a multimodal LLM to rank.

    The same call goes on after an interruption: from the last checkpoint, or at what is left of the ranking before and
    after. With other settings the folder is refused. For a seed the result is the same on the same machine, up to what
    a GPU's own arithmetic leaves open.

    Args:
        manifest: Ranking examples.
        model: Hub name or folder; safetensors only.
        out: The run's folder: settings, checkpoints (removed once it is finished), then ``adapter`` or ``model``,
            ``losses.json`` and ``held_out.json``.
        recipe: What and how; the name of a preset, or `rarvision.tuning.recipe` with changes.
        held_out: Ranking examples of other images: the base model and the trained one rank them in the end.
        held_out_limit: How many of them, taken evenly; None for all.
        strategies: How both are asked.
        plot: Also draw the loss: PNG, SVG or PDF.
        revision: Branch, tag or commit of the model on the hub.
        trust_remote_code: Run code from the model's repository.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``mps``.
        checkpoint_steps: Steps of the optimiser from one checkpoint to the next.
        workers: Processes that open images ahead; 0 opens them in between.
        resume: Whether to go on with a run in ``out``; False removes it.
        progress: Told how far it is.

    Returns:
        The report. With several processes (``accelerate launch``) only the first one's is complete.

    Raises:
        MissingExtraError: peft, accelerate, or matplotlib for a plot, is not installed.
        DatasetError: A manifest is malformed, or an image's file is missing.
        InputError: ``out`` holds a run with other settings; or a held-out image is trained on.
        ImageError: An image cannot be read; training stops there, and goes on from its last checkpoint.
        ChatError: The model cannot be loaded, or an example does not fit its context.
        TrainingError: A loss is no finite number, or the memory is not enough.
        KeyboardInterrupt: Ctrl-C: the step at hand is finished, and a checkpoint written; again, to end at once.

    Source: section 3.3 and appendix of the paper; the ``choice`` objective is not the paper's.
    """
    recipe = preset(recipe) if isinstance(recipe, str) else recipe
    check_strategies(strategies)
    if plot is not None:
        check_plot(Path(plot))
    examples = read_manifest(manifest)
    kept = [] if held_out is None else spread_out(read_manifest(held_out), held_out_limit)
    if held_out is not None and not strategies:
        raise OptionError("held-out examples need at least one strategy to be ranked by")
    _check_apart(examples, kept)
    job = Job(
        model=checkpoint_source(model, missing=ChatUnavailableError),
        revision=revision,
        trust_remote_code=trust_remote_code,
        device=device,
        out=Path(out),
        recipe=recipe,
        checkpoint_steps=checkpoint_steps,
        workers=workers,
        resume=resume,
    )
    data = {"manifest_sha256": _sha256(Path(manifest)), "examples": len(examples)}
    fitted = fit(job, lessons_of(examples, recipe), data=data, progress=_phase(progress, PHASES[0]))
    table = None
    if kept and held_out is not None and fitted.main:
        table = _before_and_after(job, kept, strategies, file=Path(held_out), progress=progress)
    if plot is not None and fitted.main:
        draw_losses(fitted.losses, Path(plot), unit=loss_unit(recipe.objective))
    return _report(fitted, recipe, len(examples), table)


def _report(fitted: Fitted, recipe: Recipe, examples: int, table: HeldOutTable | None) -> TrainingReport:
    return TrainingReport(
        result=fitted.result,
        method=recipe.method,
        objective=recipe.objective,
        examples=examples,
        losses=fitted.losses,
        trained=fitted.trained,
        total=fitted.total,
        resumed_from=fitted.resumed_from,
        held_out=table,
        version=version("rarvision"),
        settings=fitted.settings,
    )


def _phase(progress: Progress | None, phase: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(phase, done, total)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_apart(examples: Sequence[TuningExample], held_out: Sequence[TuningExample]) -> None:
    """Refuse to measure on what was trained on: the same file, or one of the same bytes."""
    trained = {example.image.resolve() for example in examples}
    asked = {example.image.resolve() for example in held_out}
    sizes = {path.stat().st_size for path in asked if path.is_file()}
    alike = {path for path in trained - asked if sizes and path.is_file() and path.stat().st_size in sizes}
    known = {_sha256(path) for path in alike}
    both = sorted(
        str(path) for path in asked if path in trained or (known and path.is_file() and _sha256(path) in known)
    )
    if both:
        raise InputError(
            f"{len(both)} held-out images are trained on as well, such as {both[0]}; make the held-out manifest of "
            "other images ('rarvision tune check' finds look-alikes, too)"
        )


def _before_and_after(
    job: Job,
    examples: Sequence[TuningExample],
    strategies: Sequence[Strategy],
    *,
    file: Path,
    progress: Progress | None,
) -> HeldOutTable:
    """Both models as anybody loads them: what is measured is what was saved."""
    from rarvision.chat.local import LocalChat

    after: dict[str, Any] = {"model": job.model, "revision": job.revision, "adapter": job.result}
    if job.recipe.method == "full":
        after = {"model": job.result}
    before = {"model": job.model, "revision": job.revision}
    results = []
    for stage, phase, named in (("before", PHASES[1], before), ("after", PHASES[2], after)):
        chat = LocalChat(**named, device=job.device, trust_remote_code=job.trust_remote_code)
        try:
            results.append(
                rank_held_out(
                    chat,
                    examples,
                    strategies,
                    recipe=job.recipe,
                    file=job.out / "held_out.json",
                    data={"manifest_sha256": _sha256(file), "examples": len(examples)},
                    stage=stage,
                    progress=_phase(progress, phase),
                )
            )
        finally:
            chat.close()
    return HeldOutTable(
        retrieved=sum(example.retrieved[0] == example.label for example in examples) / len(examples),
        shown=sum(example.candidates[0] == example.label for example in examples) / len(examples),
        before=results[0],
        after=results[1],
    )
