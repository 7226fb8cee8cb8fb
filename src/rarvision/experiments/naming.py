"""What naming draws on in each world, and one method of Table 1 on the field guide, with models as given."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rarvision.calibration import Calibration
from rarvision.chat import Chat
from rarvision.encoders import Encoder, NameEncoder
from rarvision.experiments.spec import Column
from rarvision.experiments.worlds import FieldGuideWorld, Task
from rarvision.naming import ChatGuesser, Guesser, NamingReport, Sources, WordGuesser, evaluate_preset
from rarvision.naming.memories import Progress, quiet
from rarvision.ranking import NAMING_PROMPT, BaseRanker

__all__ = ["field_guide_naming", "sources_of"]


def sources_of(task: Task, *, encoder: Encoder, chat: Chat | None, embedded: bool) -> Sources:
    """What the presets draw on.

    The embedded MLLM was taught to name, not to describe: it is asked for the name where FineR asks for attributes, and
    the words of its answer are looked up in the vocabulary. The field guide's names have up to five words.

    Args:
        task: A world's.
        encoder: CLIP.
        chat: The MLLM; it is also the language model, except for the embedded one.
        embedded: Whether the models are the embedded ones.
    """
    guesser: Guesser | None = None
    if embedded and task.words:
        guesser = WordGuesser(task.words)
    elif chat is not None and not embedded:
        guesser = ChatGuesser(chat)
    return Sources(
        encoder=encoder,
        chat=chat,
        guesser=guesser,
        words=task.words,
        captions=task.captions,
        kind=task.kind,
        templates=task.templates,
        attribute_question=NAMING_PROMPT if embedded else None,
        most_words=5 if embedded else 3,
    )


def field_guide_naming(
    preset: str,
    *,
    encoder: Encoder,
    chat: Chat | None = None,
    ranker: BaseRanker | None = None,
    domain: str = "birds",
    categories: int = 50,
    shots: int = 3,
    queries: int = 500,
    seed: int = 0,
    k: int = 5,
    calibration: Calibration | None = None,
    ranker_weight: Any = None,
    folder: Path | str | None = None,
    name_encoder: NameEncoder | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress = quiet,
) -> NamingReport:
    """Carry out a method of Table 1 on the field guide.

    Args:
        preset: One of `rarvision.naming.NAMING_PRESETS`.
        encoder: CLIP; usually an embedded one.
        chat: The MLLM that names, for presets that ask one.
        ranker: For presets that rank.
        domain: ``birds``, ``fish``, ``flowers``, ``butterflies`` or ``aircraft``.
        categories: Of the domain, none of which was trained on.
        shots: Unlabelled images of each category.
        queries: Test images.
        seed: Chooses categories, images, the vocabulary and the captions.
        k: Candidates of each test image.
        calibration: Of the recogniser.
        ranker_weight: Of the recogniser; ``"replace"`` lets the ranker alone decide, as the paper does.
        folder: For guesses, the memory and the test images' lines, so that the same call goes on; None keeps nothing.
        name_encoder: What the sACC is computed with; by default the spelling of names.
        settings: Fields of `Sources` instead of the field guide's.
        progress: Told the phase, how many images are done, and of how many.

    Raises:
        OptionError: What the preset needs is missing, or an option is out of range.
        NoNamesError: No name survives.

    Source: Table 1, sections 4.2 and C.1; the world is this package's.
    """
    world = FieldGuideWorld(queries=queries)
    task = world.task(Column(key=domain, title=domain), {"categories": categories, "naming": True}, seed)
    sources = sources_of(task, encoder=encoder, chat=chat, embedded=True)
    if settings:
        sources = Sources(**{**{name: getattr(sources, name) for name in Sources.__dataclass_fields__}, **settings})
    with ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="rarvision-naming-"))
        return evaluate_preset(
            preset,
            sources,
            unlabelled=task.known(shots, seed),
            test=task.queries,
            folder=Path(folder),
            ranker=ranker,
            k=k,
            calibration=calibration,
            ranker_weight=ranker_weight,
            name_encoder=name_encoder,
            progress=progress,
        )
