"""How a cell is carried out, by the kind of its experiment."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL.Image import Image

from rarvision.errors import ContextLengthError, NoNamesError, OptionError
from rarvision.evaluate import Report, evaluate
from rarvision.experiments.lab import Cell, Lab
from rarvision.experiments.methods import METHODS, Method, crop_rule
from rarvision.experiments.outcomes import Outcome
from rarvision.experiments.spec import Kind
from rarvision.experiments.worlds import Task
from rarvision.images import load_image
from rarvision.pipeline import Recognizer
from rarvision.ranking import Ranker
from rarvision.retrieval import Retriever

__all__ = ["KINDS", "carry_out"]

_KS = (1, 3, 4, 5, 6, 7, 10, 15, 20, 25, 30)


def carry_out(lab: Lab, cell: Cell) -> Outcome:
    """Measure a cell, going on where an interrupted one was.

    What cannot be measured for a reason that lies in the method, such as names that do not fit the MLLM's context, is
    an outcome without values that says why.
    """
    started = time.perf_counter()
    outcome = KINDS[cell.spec.kind](lab, cell)
    return replace(outcome, seconds=round(time.perf_counter() - started, 3))


def _outcome(cell: Cell, **values: Any) -> Outcome:
    kept = {key: value for key, value in cell.settings.items() if key not in cell.at}
    common: dict[str, Any] = {
        "experiment": cell.spec.name,
        "column": cell.column.key,
        "row": cell.row.key,
        "at": dict(cell.at),
        "seed": cell.seed,
        "version": version("rarvision"),
        "settings": kept,
    }
    return Outcome(**{**common, **values})


def _none(cell: Cell, why: str, **values: Any) -> Outcome:
    """Nothing could be measured."""
    return _outcome(cell, values={metric.key: None for metric in cell.spec.metrics}, why=why, **values)


def _prompt_hash(ranker: Ranker | None) -> str | None:
    if ranker is None:
        return None
    return hashlib.sha256(str(ranker.settings["prompt"]).encode()).hexdigest()[:12]


def _called(name: str | None) -> str | None:
    """A model's name; of one in a folder its last part, as folders differ from machine to machine."""
    if name is None:
        return None
    model, bracket, rest = name.partition(" (")
    return f"{Path(model).name if Path(model).is_absolute() else model}{bracket}{rest}"


def _too_long(names: int, ranker: Ranker | None, error: ContextLengthError) -> str:
    limit = None if ranker is None else ranker.chat.context_limit
    return f"{names:,} names do not fit the MLLM's context" + (f" of {limit:,} tokens" if limit else f" ({error})")


def _unavailable(lab: Lab, method: Method) -> str | None:
    """Why a method cannot be carried out here."""
    if method.other and not lab.has_other:
        return "no other MLLM was given (--other-ranker)"
    if (method.ranked or method.tuned) and not method.other and not lab.has_ranker:
        return "no MLLM was given (--ranker)"
    if method.tuned and lab.tunable is None:
        return "the MLLM cannot be trained here: it is a server's"
    return None


# Classification -----------------------------------------------------------------------------------------------------


def classification(lab: Lab, cell: Cell) -> Outcome:
    """Evaluate a preset of the one pipeline on a column's test images."""
    method = METHODS[cell.row.method]
    why = _unavailable(lab, method)
    if why:
        return _none(cell, why)
    task = lab.world.task(cell.column, cell.settings, cell.seed)
    if method.tuned == "shots":
        return _tuned_alone(lab, cell, task)
    memory = lab.memory(cell, task)
    categories = len(memory.categories())
    options = _retrieval(cell, method)
    if options.get("aggregate") == "tip":
        options["neighbours"] = memory.count("image")  # its authors' cache is summed as a whole
    distinct = options.get("distinct", True)  # else k images, of however many categories
    most = categories if distinct else memory.count("image")
    k = categories if method.every_name else min(int(cell.settings.get("k", 5)), most)
    ranker = _ranker(lab, cell, method) if method.ranked else None
    recognizer = Recognizer(
        memory,
        ranker=ranker,
        retriever=Retriever(memory, k=k, **options),
        ranker_weight="replace" if method.replace else None,
        calibration=lab.calibration,
        batch_size=lab.batch_size,
    )
    stem = _outcome(cell).id
    name = f"images/{stem}.jsonl"
    try:
        report = evaluate(
            recognizer,
            task.queries,
            out=lab.folder / name,
            progress=lambda done, total: lab.tell(stem, done, total),
            ks=_KS,
        )
    except ContextLengthError as error:
        with suppress(FileNotFoundError):
            (lab.folder / name).unlink()
        return _none(
            cell, _too_long(categories, ranker, error), ranker=_called(None if ranker is None else ranker.name)
        )
    outcome = _outcome(
        cell,
        n=report.n,
        values=_values(report, bound=method.bound, whole=distinct and k == categories),
        images=name,
        encoder=_called(report.encoder) or "",
        ranker=_called(report.ranker),
        prompt_hash=_prompt_hash(ranker),
        dataset=report.dataset,
        dataset_fingerprint=str(report.configuration["dataset_fingerprint"]),
        retrieval_ms=report.retrieval_ms,
        ranking_ms=report.ranking_ms,
        statuses=dict(report.statuses),
        failures=report.failures,
    )
    if ranker is not None and not method.every_name and lab.gallery and cell.seed == lab.first_seed:
        _keep_gallery(lab, cell, outcome, task)
    return outcome


def _retrieval(cell: Cell, method: Method) -> dict[str, Any]:
    """Options of the retriever; with ``distinct`` off as the paper's authors did."""
    options = dict(method.retrieval)
    if options.get("source") == "image" and cell.settings.get("distinct") is False:
        options["distinct"] = False
    return options


def _ranker(lab: Lab, cell: Cell, method: Method) -> Ranker:
    adapter = _adapter(lab, cell) if method.tuned == "source" else None
    changes = {"worked_example": True} if method.worked_example else {}
    return lab.ranker(adapter=adapter, other=method.other, **changes)


def _values(report: Report, *, bound: bool, whole: bool) -> dict[str, float | None]:
    """Figures by name; where ``whole``, k is the number of categories, and more of them find no more."""
    k = max(report.recall)
    values: dict[str, float | None] = {}
    for name, found_at in (("top", report.topk), ("recall", report.recall)):
        more = {at: found_at[k] for at in _KS if at > k} if whole else {}
        values |= {f"{name}{at}": value for at, value in {**found_at, **more}.items()}
    found = report.recall[k]
    values |= {
        "top1": found if bound else report.top1,
        "given": report.top1 / found if found else None,
        "retrieval_top1": report.retrieval_top1,
        "mean_per_class": report.mean_per_class,
        "cacc": report.cacc,
        "sacc": report.sacc,
        "ms": report.retrieval_ms + report.ranking_ms,
    }
    return values


def _keep_gallery(lab: Lab, cell: Cell, outcome: Outcome, task: Task) -> None:
    """Keep pictures of what went wrong, and right, for the report."""
    from rarvision.experiments.gallery import make_gallery

    rows = {item.source: row for row, item in enumerate(task.queries.items)}
    shots = cell.settings.get("shots", 4)
    known = None if shots == 0 else task.known(None if shots == "all" else int(shots), cell.seed)
    first: dict[str, int] = {}
    for row, item in enumerate(() if known is None else known.items):
        first.setdefault(str(item.label), row)

    def query(source: str) -> Image | None:
        return load_image(task.queries[rows[source]].image) if source in rows else None

    def exemplar(category: str) -> Image | None:
        return load_image(known[first[category]].image) if known is not None and category in first else None

    make_gallery(lab.folder, outcome, query=query, exemplar=exemplar, limit=lab.gallery)


# Tuned MLLMs --------------------------------------------------------------------------------------------------------


def _recipe(lab: Lab, objective: str, seed: int, changes: Mapping[str, Any] | None = None) -> Any:
    from rarvision.tuning import recipe

    return recipe("lora", **{"seed": seed, **lab.tuning, **(changes or {}), "objective": objective})


def _tuned_alone(lab: Lab, cell: Cell, task: Task) -> Outcome:
    """The MLLM tuned on the few shots, all names in its prompt."""
    from rarvision.tuning import few_shot_baseline

    assert lab.tunable is not None  # noqa: S101 - `_unavailable` has said so otherwise
    shots = int(cell.settings["shots"])
    stem = _outcome(cell).id
    most = cell.settings.get("most_names")
    if most is not None and len(task.names) > most:
        return _none(cell, f"not trained with more than {most} names here, for time")
    report = few_shot_baseline(
        task.known(shots, cell.seed),
        task.queries,
        model=lab.tunable,
        out=lab.work / "tuned" / stem,
        shots=shots,
        recipe=_recipe(lab, "generate", cell.seed, cell.settings.get("recipe", {})),
        progress=lambda phase, done, total: lab.tell(f"{stem}: {phase}", done, total),
    )
    common: dict[str, Any] = {
        "n": report.n,
        "dataset": task.queries.name,
        "dataset_fingerprint": task.queries.fingerprint,
        "ranker": f"{Path(lab.tunable).name}, tuned on the shots",
    }
    if report.top1 is None:
        return _none(cell, str(report.reason), **common)
    return _outcome(cell, values={"top1": report.top1, "unread": report.unread}, **common)


def _adapter(lab: Lab, cell: Cell) -> Path:
    """Train on ranking examples of another dataset, once."""
    from rarvision.datasets.fieldguide import FieldGuide
    from rarvision.tuning import build_tuning_data, train

    assert lab.tunable is not None  # noqa: S101 - `_unavailable` has said so otherwise
    source = str(cell.row.options["tuned_on"])
    folder = lab.work / "adapters" / source.replace(":", "-").replace("@", "-")
    folder.mkdir(parents=True, exist_ok=True)
    if lab.world.edition == "field-guide":
        size = int(cell.settings.get("tuning_categories", 200))
        images: Any = FieldGuide(source, split="train", categories=size, images_per_category=10, seed=100)
    else:
        images = lab.world.task(_source_column(source), {}, cell.seed).known(None, 0)
    build_tuning_data(
        images,
        folder / "examples.jsonl",
        encoder=lab.encoder(),
        fill=lab.world.edition == "field-guide",
        max_windows=2 if lab.world.edition == "field-guide" else None,
    )
    strategy = lab.ranker().strategy
    objective = "generate" if strategy == "pointwise" else strategy  # which no recipe trains
    return train(
        folder / "examples.jsonl",
        model=lab.tunable,
        out=folder / "run",
        recipe=_recipe(lab, objective, 0),
        progress=lambda phase, done, total: lab.tell(f"tuning on {source}: {phase}", done, total),
    ).result


def _source_column(source: str) -> Any:
    from rarvision.experiments.spec import Column

    return Column(key=source, title=source)


# Regions ------------------------------------------------------------------------------------------------------------


def regions(lab: Lab, cell: Cell) -> Outcome:
    """Average precision on annotated boxes."""
    from rarvision.detection import RANKED, RETRIEVAL, evaluate_regions

    method = METHODS[cell.row.method]
    why = _unavailable(lab, method)
    if why:
        return _none(cell, why)
    if method.given and lab.region_scores is None:
        return _none(cell, "no text-region scores were given (--region-scores)")
    boxes = lab.regions(cell)
    if method.given:
        return _given_scores(lab, cell, boxes)
    vocabulary = boxes.annotations.vocabulary
    template = str(cell.settings.get("template", "a photo of a {}."))
    task = Task(names=tuple(vocabulary.names), templates=(template,), known=_no_images, queries=boxes)
    memory = lab.memory(cell, task)
    ranker = lab.ranker() if method.ranked else None
    recognizer = Recognizer(
        memory,
        ranker=ranker,
        retriever=Retriever(memory, k=int(cell.settings.get("k", 5)), **method.retrieval),
        ranker_weight="replace" if method.replace else None,
        calibration=lab.calibration,
        crop=crop_rule(cell.settings),
        batch_size=lab.batch_size,
    )
    stem = _outcome(cell).id
    report = evaluate_regions(
        recognizer,
        boxes,
        preset=str(cell.settings.get("preset", "lvis")),
        rules=cell.settings.get("rules", "lvis"),
        out=lab.folder / "boxes" / f"{stem}.jsonl",
        progress=lambda done, total: lab.tell(stem, done, total),
    )
    name = RANKED if method.ranked else RETRIEVAL
    values = dict(report.rows[name].metrics)
    if name in report.top1:
        values["top1"] = report.top1[name]
    return _outcome(
        cell,
        n=report.regions,
        values=values,
        images=f"boxes/{stem}.jsonl",
        encoder=_called(recognizer.memory.encoder_name) or "",
        ranker=_called(report.ranker),
        prompt_hash=_prompt_hash(ranker),
        dataset=boxes.name,
        dataset_fingerprint=boxes.fingerprint,
        retrieval_ms=report.retrieval_ms,
        ranking_ms=report.ranking_ms,
        statuses=dict(report.statuses),
        failures=report.failures,
    )


def _given_scores(lab: Lab, cell: Cell, boxes: Any) -> Outcome:
    """Published scores, as detections, by the same rules."""
    from rarvision.detection import evaluate_detections, read_detections

    assert lab.region_scores is not None  # noqa: S101 - `regions` has said so otherwise
    found = read_detections(lab.region_scores, vocabulary=boxes.annotations.vocabulary)
    report = evaluate_detections(boxes.annotations, found, rules=cell.settings.get("rules", "lvis"))
    return _outcome(
        cell,
        n=report.objects,
        values=dict(report.metrics),
        encoder=lab.region_scores.name,
        dataset=boxes.name,
        dataset_fingerprint=boxes.fingerprint,
    )


def _no_images(_shots: int | None, _seed: int) -> Any:
    raise OptionError("experiments with boxes keep names alone in the memory: shots must be 0")


# Naming -------------------------------------------------------------------------------------------------------------


def naming(lab: Lab, cell: Cell) -> Outcome:
    """Name unlabelled images, build a memory of the names, recognise the test images: a row of Table 1."""
    from rarvision.experiments.naming import sources_of
    from rarvision.naming import NAMING_PRESETS, evaluate_preset

    preset = NAMING_PRESETS[cell.row.method]
    asks = preset.ranked or preset.namer in ("direct", "attributes")
    if asks and not lab.has_ranker:
        return _none(cell, "no MLLM was given (--ranker)")
    task = lab.world.task(cell.column, {**cell.settings, "naming": True}, cell.seed)
    embedded = lab.world.edition == "field-guide"
    if preset.namer == "words" and not task.words:
        return _none(cell, "no vocabulary was given (--words)")
    if preset.namer == "captions" and not task.captions:
        return _none(cell, "no captions were given (--captions)")
    sources = sources_of(
        task,
        encoder=lab.encoder(str(cell.settings.get("encoder", "default"))),
        chat=lab.chat() if asks else None,
        embedded=embedded,
    )
    ranker = lab.ranker() if preset.ranked else None
    stem = _outcome(cell).id
    folder = lab.work / "naming" / stem
    try:
        report = evaluate_preset(
            cell.row.method,
            sources,
            unlabelled=task.known(int(cell.settings["shots"]), cell.seed),
            test=task.queries,
            folder=folder,
            ranker=ranker,
            k=int(cell.settings.get("k", 5)),
            calibration=lab.calibration,
            name_encoder=lab.name_encoder(sources.encoder),
            progress=lambda what, done, of: lab.tell(f"{stem}: {what}", done, of),
        )
    except NoNamesError as error:
        return _none(cell, str(error))
    name = f"naming/{stem}.jsonl"
    (lab.folder / "naming").mkdir(exist_ok=True)
    (folder / "test.jsonl").replace(lab.folder / name)
    return _outcome(
        cell,
        n=report.n,
        values={"cacc": report.cacc, "sacc": report.sacc, "top1": report.top1, "names": float(report.names)},
        images=name,
        encoder=_called(report.encoder) or "",
        ranker=_called(
            report.ranker or report.method.replace(sources.encoder.name, str(_called(sources.encoder.name)))
        ),
        prompt_hash=_prompt_hash(ranker),
        dataset=report.dataset,
        dataset_fingerprint=report.dataset_fingerprint,
        retrieval_ms=report.retrieval_ms,
        ranking_ms=report.ranking_ms,
        statuses=dict(report.statuses),
        failures=report.failures,
        settings={**_outcome(cell).settings, "name_encoder": _called(report.name_encoder)},
    )


# Facts --------------------------------------------------------------------------------------------------------------


def facts(lab: Lab, cell: Cell) -> Outcome:
    """Count a dataset's categories and images."""
    task = lab.world.task(cell.column, {**cell.settings, "limit": None}, cell.seed)
    train = task.known(None, cell.seed)
    values: dict[str, float | None] = {
        "categories": float(len(task.names)),
        "train": float(len(train)),
        "test": float(len(task.queries)),
    }
    return _outcome(
        cell,
        n=len(task.queries),
        values=values,
        dataset=task.queries.name,
        dataset_fingerprint=task.queries.fingerprint,
    )


KINDS: Mapping[Kind, Callable[[Lab, Cell], Outcome]] = {
    "classification": classification,
    "naming": naming,
    "regions": regions,
    "facts": facts,
}
