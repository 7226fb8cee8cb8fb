"""The methods of Table 1: who names, how names are filtered, what the memory holds, who ranks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rarvision.calibration import Calibration
from rarvision.chat import Chat
from rarvision.datasets.base import Dataset
from rarvision.encoders import Encoder, NameEncoder, SpellingEncoder
from rarvision.errors import OptionError
from rarvision.evaluate import Report, evaluate
from rarvision.memory import LocalMemory
from rarvision.metrics import bootstrap_interval, cluster_hits, name_similarities
from rarvision.naming.base import Namer
from rarvision.naming.cleaning import name_key
from rarvision.naming.discovery import Discovery, GuessedImage, Voting, guess_names, vote_names
from rarvision.naming.namers import AttributeNamer, CaptionNamer, DirectNamer, Guesser, VocabularyNamer
from rarvision.pipeline import Recognizer
from rarvision.ranking import NAMING_PROMPT, BaseRanker
from rarvision.reporting import EvaluatedImage
from rarvision.retrieval import Retriever
from rarvision.runs import labels_by_source

__all__ = [
    "NAMING_PRESETS",
    "NamingPreset",
    "NamingReport",
    "Sources",
    "build_named_memory",
    "evaluate_namer",
    "evaluate_preset",
    "make_namer",
    "named_recognizer",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class NamingPreset:
    """A method of vocabulary-free recognition.

    Attributes:
        about: A sentence.
        namer: Who names: the MLLM ``direct``, by ``attributes``, ``captions``, or ``words``: nobody, the memory holds a
            large vocabulary.
        memory: What is searched for test images: ``discovered``: names and images of the unlabelled set; ``words``: the
            vocabulary; ``none``: the namer names each test image itself.
        voting: How names are filtered; see `vote_names`.
        names: Guesses of an image that count.
        retrieval: Options of the retriever.
        ranked: Whether an MLLM ranks what is retrieved.
    """

    about: str
    namer: Literal["direct", "attributes", "captions", "words"]
    memory: Literal["discovered", "words", "none"]
    voting: Voting = "clip"
    names: int = 1
    retrieval: Mapping[str, Any] = field(default_factory=dict)
    ranked: bool = False


NAMING_PRESETS: Mapping[str, NamingPreset] = {
    "wordnet-clip": NamingPreset(
        about="CLIP's nearest word of a large vocabulary, such as WordNet's nouns",
        namer="words",
        memory="words",
        retrieval={"source": "text"},
    ),
    "blip-2": NamingPreset(about="the MLLM names each test image itself", namer="direct", memory="none"),
    "cased": NamingPreset(
        about="CaSED: nouns of the nearest captions, scored by image and captions", namer="captions", memory="none"
    ),
    "finer": NamingPreset(
        about="FineR: attributes are described, names guessed from them and filtered by votes; CLIP recognises",
        namer="attributes",
        memory="discovered",
        names=3,
        retrieval={"aggregate": "prototype", "text_weight": 0.7},
    ),
    "rar": NamingPreset(
        about="names that the MLLM gives the unlabelled images, filtered by votes; RAR recognises",
        namer="direct",
        memory="discovered",
        voting="own",
        ranked=True,
    ),
    "rar-finer": NamingPreset(
        about="the paper's: FineR's names in the memory, RAR recognises",
        namer="attributes",
        memory="discovered",
        names=3,
        ranked=True,
    ),
}
"""By name; the rows of Table 1, and the paper's own combination."""


@dataclass(frozen=True, kw_only=True)
class Sources:
    """What presets draw on; each needs some of it.

    Attributes:
        encoder: CLIP.
        chat: The MLLM that names.
        guesser: Guesses names from attributes.
        words: A large vocabulary.
        captions: A corpus.
        kind: What all images are of, such as ``bird``; empty for anything.
        question: What an MLLM is asked for a name.
        attribute_question: What it is asked of an attribute; None for the namer's own.
        templates: How names are put to the encoder.
        most_words: Of a name in a caption.
    """

    encoder: Encoder
    chat: Chat | None = None
    guesser: Guesser | None = None
    words: Sequence[str] = ()
    captions: Sequence[str] = ()
    kind: str = ""
    question: str = NAMING_PROMPT
    attribute_question: str | None = None
    templates: tuple[str, ...] = ("a photo of a {}.",)
    most_words: int = 3


def _need(value: Any, what: str, preset: str) -> Any:
    if not value:
        raise OptionError(f"the preset {preset!r} needs {what}")
    return value


def _preset(name: str) -> NamingPreset:
    if name not in NAMING_PRESETS:
        raise OptionError(f"no preset {name!r} among {', '.join(NAMING_PRESETS)}")
    return NAMING_PRESETS[name]


def make_namer(name: str, sources: Sources, *, memory: LocalMemory | None = None) -> Namer:
    """The namer of a preset.

    Args:
        name: Of the preset.
        sources: What it draws on.
        memory: With the vocabulary's texts, for ``words``.

    Raises:
        OptionError: There is no such preset, or what it needs is missing.
    """
    preset = _preset(name)
    if preset.namer == "captions":
        nouns = frozenset(map(name_key, sources.words)) if sources.words else None
        captions = _need(sources.captions, "captions (--captions FILE)", name)
        return CaptionNamer(captions, sources.encoder, nouns=nouns, most_words=sources.most_words)
    if preset.namer == "words":
        return VocabularyNamer(_need(memory, "a memory of words", name), names=preset.names)
    chat = _need(sources.chat, "an MLLM (--ranker)", name)
    if preset.namer == "direct":
        return DirectNamer(chat, question=sources.question, kind=sources.kind, names=preset.names)
    guesser = _need(sources.guesser, "a language model (--llm), or a vocabulary (--words FILE)", name)
    more = {} if sources.attribute_question is None else {"question": sources.attribute_question}
    return AttributeNamer(chat, guesser, kind=sources.kind, names=preset.names, **more)


def build_named_memory(
    path: Path | str,
    dataset: Dataset,
    discovery: Discovery,
    encoder: Encoder,
    *,
    templates: Sequence[str] = ("a photo of a {}.",),
    metadata: Mapping[str, Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> LocalMemory:
    """A memory of discovered names: their texts, and each image under the name that it was given.

    Images without a name are left out. A folder that is there is completed.

    Args:
        path: The memory's folder.
        dataset: The images that were named, in the same order.
        discovery: Their names.
        encoder: CLIP.
        templates: How names are put to the encoder.
        metadata: Of a new memory.
        progress: Called with the number of images done.
    """
    memory = _opened(Path(path), encoder, metadata)
    named = (
        replace(dataset[place], label=image.name, metadata={"guesses": list(image.guesses)})
        for place, image in enumerate(discovery.images)
        if image.name is not None
    )
    memory.add(named, progress=progress)
    memory.add_texts(list(discovery.names), templates=tuple(templates))
    return memory


def named_recognizer(
    name: str,
    memory: LocalMemory,
    *,
    ranker: BaseRanker | None = None,
    k: int = 5,
    calibration: Calibration | None = None,
    ranker_weight: Any = None,
) -> Recognizer:
    """The one pipeline on a memory of names, with a preset's retrieval, and its ranker where it ranks.

    Raises:
        OptionError: There is no such preset, it has no memory, or it ranks and there is no ranker.
    """
    preset = _preset(name)
    if preset.memory == "none":
        raise OptionError(f"the preset {name!r} names each image itself: use its namer")
    if preset.ranked and ranker is None:
        raise OptionError(f"the preset {name!r} needs a ranker (--ranker)")
    k = min(k, len(memory.categories()))
    return Recognizer(
        memory,
        ranker=ranker if preset.ranked else None,
        retriever=Retriever(memory, k=k, **preset.retrieval),
        calibration=calibration,
        ranker_weight=ranker_weight if preset.ranked else None,
    )


def _opened(path: Path, encoder: Encoder, metadata: Mapping[str, Any] | None = None) -> LocalMemory:
    if path.exists():
        return LocalMemory.open(path, encoder=encoder)
    return LocalMemory.create(path, encoder=encoder, metadata=dict(metadata or {}))


@dataclass(frozen=True, kw_only=True, slots=True)
class NamingReport:
    """How well test images were named.

    Attributes:
        n: Images.
        failures: Without a name; they count as wrong.
        cacc: Clustering accuracy, 0 to 1.
        cacc_interval: 95 % bootstrap interval over images, the clusters' names fixed.
        sacc: Mean cosine of given and true names.
        sacc_interval: Likewise.
        name_encoder: What the names are compared by.
        top1: Share whose name is the true one, letter by letter.
        names: Distinct names that were given.
        method: Who named, or what recognised.
        dataset: The test images' name.
        dataset_fingerprint: What tells revisions of them apart.
        retrieval_ms: Milliseconds an image; of namers 0.
        ranking_ms: Likewise.
        statuses: Rankings by status.
        encoder: The encoder's name.
        ranker: The ranker's name; None without.
        version: Of this package.
    """

    n: int
    failures: int
    cacc: float
    cacc_interval: tuple[float, float]
    sacc: float
    sacc_interval: tuple[float, float]
    name_encoder: str
    top1: float
    names: int
    method: str
    dataset: str
    dataset_fingerprint: str
    retrieval_ms: float = 0.0
    ranking_ms: float = 0.0
    statuses: Mapping[str, int] = field(default_factory=dict)
    encoder: str = ""
    ranker: str | None = None
    version: str = field(default_factory=lambda: version("rarvision"))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            **asdict(self),
            "cacc_interval": list(self.cacc_interval),
            "sacc_interval": list(self.sacc_interval),
        }


def evaluate_namer(
    namer: Namer,
    dataset: Dataset,
    *,
    out: Path | str | None = None,
    resume: bool = True,
    progress: Callable[[int, int], None] | None = None,
    name_encoder: NameEncoder | None = None,
) -> tuple[NamingReport, list[EvaluatedImage]]:
    """Have a namer name labelled images one by one, and compare with their labels.

    Args:
        namer: Who names.
        dataset: Labelled images.
        out: The file of guesses; see `guess_names`.
        resume: As there.
        progress: As there.
        name_encoder: By spelling by default.

    Returns:
        The report, and a line an image as `rarvision.evaluate` has it.

    Raises:
        DatasetError: A label is missing, or as `guess_names`.
    """
    labels = labels_by_source(dataset)
    guesses = guess_names(dataset, namer, out=out, resume=resume, progress=progress)
    images = [_evaluated(guess, labels[guess.source]) for guess in guesses]
    report = _report(images, dataset, method=namer.name, name_encoder=name_encoder or SpellingEncoder())
    return report, images


def _evaluated(guess: GuessedImage, label: str) -> EvaluatedImage:
    if not guess.names:
        return EvaluatedImage(source=guess.source, label=label, error=guess.reason, raw="\n".join(guess.raw) or None)
    raw = "\n".join(guess.raw) or None
    return EvaluatedImage(source=guess.source, label=label, ranked=guess.names, retrieved=guess.names, raw=raw)


def _report(
    images: Sequence[EvaluatedImage], dataset: Dataset, *, method: str, name_encoder: NameEncoder
) -> NamingReport:
    labels = [image.label for image in images]
    given = [image.ranked[0] if image.ranked else None for image in images]
    clustered, _ = cluster_hits(given, labels)
    vectors = name_encoder.encode({*labels, *(name for name in given if name is not None)})
    alike = name_similarities(given, labels, vectors)
    return NamingReport(
        n=len(images),
        failures=sum(name is None for name in given),
        cacc=float(clustered.mean()),
        cacc_interval=bootstrap_interval(clustered),
        sacc=float(np.mean(alike)),
        sacc_interval=bootstrap_interval(alike),
        name_encoder=name_encoder.name,
        top1=sum(name == label for name, label in zip(given, labels, strict=True)) / len(images),
        names=len(set(given) - {None}),
        method=method,
        dataset=dataset.name,
        dataset_fingerprint=dataset.fingerprint,
    )


def _of_report(report: Report, dataset: Dataset, *, names: int) -> NamingReport:
    return NamingReport(
        n=report.n,
        failures=report.failures,
        cacc=report.cacc,
        cacc_interval=report.intervals["cacc"],
        sacc=report.sacc,
        sacc_interval=report.intervals["sacc"],
        name_encoder=report.name_encoder,
        top1=report.top1,
        names=names,
        method=report.ranker or f"{report.encoder}, retrieval",
        dataset=report.dataset,
        dataset_fingerprint=dataset.fingerprint,
        retrieval_ms=report.retrieval_ms,
        ranking_ms=report.ranking_ms,
        statuses=dict(report.statuses),
        encoder=report.encoder,
        ranker=report.ranker,
    )


def evaluate_preset(
    name: str,
    sources: Sources,
    *,
    unlabelled: Dataset,
    test: Dataset,
    folder: Path,
    ranker: BaseRanker | None = None,
    k: int = 5,
    min_votes: int = 1,
    calibration: Calibration | None = None,
    ranker_weight: Any = None,
    name_encoder: NameEncoder | None = None,
    resume: bool = True,
    progress: Callable[[str, int, int], None] = lambda _what, _done, _of: None,
) -> NamingReport:
    """Carry out a method of Table 1: name the unlabelled images, build a memory, recognise the test images.

    Everything is kept in the folder as it comes, and the same call goes on where it was.

    Args:
        name: One of `NAMING_PRESETS`.
        sources: What it draws on.
        unlabelled: Images to discover names with; labels are not looked at.
        test: Labelled images.
        folder: For guesses, the memory and the test images' lines (``test.jsonl``).
        ranker: Of presets that rank.
        k: Candidates of each test image.
        min_votes: See `vote_names`.
        calibration: Of the recogniser.
        ranker_weight: Of the recogniser.
        name_encoder: What the sACC is computed with; by default their spelling.
        resume: Whether to go on with what is there.
        progress: Told the phase, how many images are done, and of how many.

    Raises:
        OptionError: What the preset needs is missing.
        DatasetError: No name survives, or as `rarvision.evaluate`.
    """
    preset = _preset(name)
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "test.jsonl"
    if preset.memory == "none":
        namer = make_namer(name, sources)
        tell = _phase(progress, "naming test images")
        return evaluate_namer(namer, test, out=lines, resume=resume, progress=tell, name_encoder=name_encoder)[0]
    if preset.memory == "words":
        words = _need(sources.words, "a vocabulary (--words FILE)", name)
        memory = _opened(folder / "memory", sources.encoder)
        memory.add_texts(list(words), templates=sources.templates)
    else:
        memory = _discovered(name, sources, unlabelled, folder, min_votes=min_votes, resume=resume, progress=progress)
    with memory:
        recognizer = named_recognizer(
            name, memory, ranker=ranker, k=k, calibration=calibration, ranker_weight=ranker_weight
        )
        tell = _phase(progress, "recognising")
        report = evaluate(recognizer, test, out=lines, resume=resume, progress=tell, name_encoder=name_encoder)
        return _of_report(report, test, names=len(memory.categories()))


def _discovered(
    name: str,
    sources: Sources,
    unlabelled: Dataset,
    folder: Path,
    *,
    min_votes: int,
    resume: bool,
    progress: Callable[[str, int, int], None],
) -> LocalMemory:
    preset = _preset(name)
    namer = make_namer(name, sources)
    guesses = guess_names(
        unlabelled, namer, out=folder / "guesses.jsonl", resume=resume, progress=_phase(progress, "naming")
    )
    discovery = vote_names(
        unlabelled,
        guesses,
        sources.encoder,
        voting=preset.voting,
        most=preset.names,
        min_votes=min_votes,
        templates=sources.templates,
        namer=namer.name,
    )
    return build_named_memory(folder / "memory", unlabelled, discovery, sources.encoder, templates=sources.templates)


def _phase(progress: Callable[[str, int, int], None], what: str) -> Callable[[int, int], None]:
    return lambda done, of: progress(what, done, of)
