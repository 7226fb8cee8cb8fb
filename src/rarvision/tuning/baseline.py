"""The baseline without retrieval: an MLLM tuned on few-shot examples, with every category's name in its prompt."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal

from rarvision.chat.base import Chat, ChatRequest
from rarvision.checkpoints import checkpoint_source
from rarvision.datasets.base import Dataset
from rarvision.errors import ChatUnavailableError, ContextLengthError, DatasetError, InputError, OptionError
from rarvision.ranking.strategies import Ranker
from rarvision.tuning.fitting import Job, fit
from rarvision.tuning.lessons import ALL_NAMES_PROMPT, naming_lessons, picture_of
from rarvision.tuning.recipes import Recipe
from rarvision.tuning.recipes import recipe as preset
from rarvision.tuning.training import Progress

__all__ = ["BASELINE_PHASES", "BaselineReport", "few_shot_baseline"]

BASELINE_PHASES = ("training", "naming")

_BATCH = 8
_LONGEST = 8


@dataclass(frozen=True, kw_only=True)
class BaselineReport:
    """What an MLLM that was tuned on a few examples names, without retrieval.

    Attributes:
        top1: Share of the n images that are named right; None (shown as ``-``) where the names do not fit the model's
            context. An answer that holds no name is wrong.
        reason: Why there is no ``top1``.
        unread: Share of the answers that held no name.
        n: Test images.
        names: Categories, all of which stand in every prompt.
        shots: Examples a category.
        examples: Training images.
        losses: As in `rarvision.tuning.TrainingReport`.
        result: The adapter's folder, or the model's; None where nothing could be trained.
        version: Of this package.
        settings: All that the training depends on.
    """

    top1: float | None
    reason: str | None
    unread: float | None
    n: int
    names: int
    shots: int
    examples: int
    losses: tuple[tuple[int, float], ...] = ()
    result: Path | None = None
    version: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {key: value for key, value in asdict(self).items() if key != "losses"}
        return values | {"result": None if self.result is None else str(self.result), "steps": len(self.losses)}

    def table(self) -> list[tuple[str, str]]:
        """Rows for people: what, and its value with its unit."""
        rows = [
            ("top-1", "-" if self.top1 is None else f"{self.top1:.1%} of {self.n:,} images"),
            ("names in the prompt", f"{self.names:,}"),
            ("training images", f"{self.examples:,} ({self.shots} of each)"),
        ]
        if self.reason is not None:
            rows.insert(1, ("why", self.reason))
        if self.unread is not None:
            rows.append(("answers without a name", f"{self.unread:.1%}"))
        if self.result is not None:
            rows.append(("result", str(self.result)))
        return [*rows, ("rarvision", self.version)]


def few_shot_baseline(
    examples: Dataset,
    test: Dataset,
    *,
    model: str | Path,
    out: Path | str,
    shots: int = 4,
    order: Literal["random", "first"] = "random",
    recipe: Recipe | str = "lora",
    limit: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    device: str = "auto",
    checkpoint_steps: int = 100,
    workers: int = 0,
    resume: bool = True,
    progress: Progress | None = None,
) -> BaselineReport:
    """Tune an MLLM on a few examples of each category and let it name test images, all names in the prompt.

    The question is ``ALL_NAMES_PROMPT``, the answer one name. The same call goes on after an interruption.

    Args:
        examples: Labelled images; all their categories stand in the prompt.
        test: Labelled images of the same categories.
        model: Hub name or folder; safetensors only.
        out: The run's folder, as in `rarvision.tuning.train`; the answers stand in ``answers.jsonl``.
        shots: Examples of each category that are trained on.
        order: How they are chosen: see `Dataset.few_shot`; the seed is the recipe's.
        recipe: What and how, with the objective ``generate``; the name of a preset, or a recipe.
        limit: How many test images, taken evenly; None for all.
        revision: As in `rarvision.tuning.train`, and so the others.
        trust_remote_code: As there.
        device: As there.
        checkpoint_steps: As there.
        workers: As there.
        resume: As there.
        progress: Told the phase (one of `BASELINE_PHASES`), and how far it is.

    Returns:
        The report; its ``top1`` is None where the names do not fit the model's context, with the reason.

    Raises:
        DatasetError: A label is missing, or a test image's category is not among the examples'.
        OptionError: The recipe has another objective or a prompt of its own.
        InputError: As in `rarvision.tuning.train`, and so the others.

    Source: "LLaVA1.5 + fine-tuning" in sections 4.1 and 4.3 and Table 7 of the paper, whose prompt is not given;
    "-" stands there where the names exceed the context.
    """
    recipe = preset(recipe) if isinstance(recipe, str) else recipe
    if recipe.objective != "generate" or recipe.prompt is not None:
        raise OptionError("the baseline has a prompt and an objective of its own; give neither")
    names = examples.categories
    rows = _test_rows(test, set(names), limit)
    few = examples.few_shot(shots=shots, seed=recipe.seed, order=order)
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
    data = {"all_names": len(names), "dataset": few.fingerprint, "shots": shots, "order": order}
    common: dict[str, Any] = {
        "n": len(rows),
        "names": len(names),
        "shots": shots,
        "examples": len(few),
        "version": version("rarvision"),
    }
    try:
        tell = None if progress is None else (lambda done, total: progress(BASELINE_PHASES[0], done, total))
        fitted = fit(job, naming_lessons(few, names), data=data, progress=tell)
        if not fitted.main:
            return BaselineReport(top1=None, reason="the first process names the images", unread=None, **common)
        right, unread = _name_all(job, test, rows, names, progress=progress)
    except ContextLengthError as error:
        return BaselineReport(top1=None, reason=f"{len(names):,} names: {error}", unread=None, **common)
    return BaselineReport(
        top1=right / len(rows),
        reason=None,
        unread=unread / len(rows),
        losses=fitted.losses,
        result=fitted.result,
        settings=fitted.settings,
        **common,
    )


def _test_rows(test: Dataset, names: set[str], limit: int | None) -> list[int]:
    """Which test images are named."""
    for item in test.items:
        if item.label not in names:
            raise DatasetError(
                f"{item.source}: its label {item.label!r} is none of the {len(names):,} categories of the examples"
            )
    total = len(test)
    if not total:
        raise DatasetError(f"{test.name}: there are no images to name")
    if limit is not None and limit < 1:
        raise OptionError(f"limit must be at least 1, got {limit}")
    count = total if limit is None else min(limit, total)
    return [i * total // count for i in range(count)]


def _name_all(
    job: Job, test: Dataset, rows: Sequence[int], names: Sequence[str], *, progress: Progress | None
) -> tuple[int, int]:
    """Name the test images; how many are right, and how many answers held no name. Goes on with those on disk."""
    from rarvision.chat.local import LocalChat

    header = {"test": test.fingerprint, "images": len(rows)}
    path = job.out / "answers.jsonl"
    done, end = _read_answers(path, header)
    named = {"model": job.result} if job.recipe.method == "full" else {"model": job.model, "adapter": job.result}
    revision = None if job.recipe.method == "full" else job.revision
    chat = LocalChat(**named, revision=revision, device=job.device, trust_remote_code=job.trust_remote_code)
    try:
        ranker = Ranker(chat, strategy="generate", prompt=ALL_NAMES_PROMPT, max_tokens=_room(chat, names))
        with path.open("a", encoding="utf-8", newline="\n") as file:
            os.truncate(file.fileno(), end)
            if not end:
                _write(file, header)
            for start in range(len(done), len(rows), _BATCH):
                batch = rows[start : start + _BATCH]
                rankings = ranker.rank_batch([picture_of(test, row) for row in batch], [names] * len(batch))
                for row, ranking in zip(batch, rankings, strict=True):
                    item = test.items[row]
                    read = ranking.status != "fallback"
                    right = read and names[ranking.order[0]] == item.label
                    done.append({"source": item.source, "right": right, "read": read, "answer": ranking.raw})
                    _write(file, done[-1])
                if progress is not None:
                    progress(BASELINE_PHASES[1], len(done), len(rows))
    finally:
        chat.close()
    return sum(answer["right"] for answer in done), sum(not answer["read"] for answer in done)


def _write(file: IO[str], record: Mapping[str, Any]) -> None:
    file.write(json.dumps(record) + "\n")
    file.flush()


def _read_answers(path: Path, header: Mapping[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """The answers of an interrupted run, and where the last whole line ends; none where they are of other images."""
    if not path.is_file():
        return [], 0
    lines = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    try:
        records = [json.loads(line) for line in lines]
        if not records or records[0] != header:
            return [], 0
        answers = [{key: record[key] for key in ("source", "right", "read", "answer")} for record in records[1:]]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{path}: is damaged ({error}); remove it, and give the same command again") from error
    return answers, sum(map(len, lines))


def _room(chat: Chat, names: Sequence[str]) -> int:
    """Tokens for the longest name, with what may stand around it."""
    longest = sorted(names, key=len)[-_LONGEST:]
    return max(chat.count_tokens(ChatRequest.of(name)) or len(name.encode()) for name in longest)
