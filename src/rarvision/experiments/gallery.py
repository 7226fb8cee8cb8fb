"""Pictures of what went wrong, and right: kept in the results' folder, so that a report needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from PIL import Image

from rarvision.errors import InputError, RarvisionError
from rarvision.experiments.outcomes import Outcome
from rarvision.reporting import EvaluatedImage
from rarvision.runs import read_run

__all__ = ["GALLERY", "Card", "Kind", "kind_of", "make_gallery", "read_gallery"]

GALLERY = "gallery.jsonl"
_SIDE = 160  # pixels, at most
_SHOWN = 7  # candidates with a picture

Kind = Literal["not retrieved", "lost by ranking", "not rescued", "rescued by ranking"]
"""What happened: the truth was not among the candidates; retrieval had it first and ranking not; it was among them and
neither had it first; ranking alone had it first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """An image of the gallery.

    Attributes:
        cell: The outcome's id.
        column: Its data set.
        row: Its method.
        at: Where on the axis, for people.
        kind: What happened.
        source: The image's.
        label: The truth.
        retrieved: Candidates in retrieval's order.
        ranked: The same, most probable first.
        probability: Of the first of these.
        raw: The MLLM's answer, where it wrote one.
        status: The ranking's.
        reason: Why it is not as answered.
        picture: A data URI; None where it could not be had.
        exemplars: Data URIs, one of each candidate, by name; those that could not be had are missing.
        trouble: Why the image's picture could not be had.
        troubles: Why a candidate's could not be had, by name.
    """

    cell: str
    column: str
    row: str
    kind: Kind
    source: str
    label: str
    retrieved: tuple[str, ...]
    ranked: tuple[str, ...]
    probability: float
    raw: str | None = None
    status: str | None = None
    reason: str | None = None
    picture: str | None = None
    exemplars: Mapping[str, str]
    at: str = ""
    trouble: str | None = None
    troubles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for picture in (self.picture, *self.exemplars.values()):
            if picture is not None and not picture.startswith("data:image/"):
                raise InputError(f"{self.source}: a picture must be a data URI of an image, got {picture:.40}")


def kind_of(image: EvaluatedImage) -> Kind | None:
    """What happened to an image; None where retrieval and ranking were right, or there is no answer."""
    if not image.ranked:
        return None
    if image.label not in image.retrieved:
        return "not retrieved"
    before, after = image.retrieved[0] == image.label, image.ranked[0] == image.label
    if before and after:
        return None
    return "lost by ranking" if before else "rescued by ranking" if after else "not rescued"


def chosen_images(images: Iterable[EvaluatedImage], limit: int) -> dict[Kind, list[EvaluatedImage]]:
    """So many of each kind, in an order that depends on the sources alone, each of another category where it can be."""
    by_kind: dict[Kind, list[EvaluatedImage]] = {kind: [] for kind in get_args(Kind)}
    for image in sorted(images, key=lambda each: hashlib.sha256(each.source.encode("utf-8", "surrogatepass")).digest()):
        kind = kind_of(image)
        if kind is not None:
            by_kind[kind].append(image)
    found: dict[Kind, list[EvaluatedImage]] = {}
    for kind, every in by_kind.items():
        seen: dict[str, int] = {}
        turns: list[tuple[int, int, EvaluatedImage]] = []
        for image in every:
            seen[image.label] = seen.get(image.label, 0) + 1
            turns.append((seen[image.label], len(turns), image))
        found[kind] = [image for _, _, image in sorted(turns, key=lambda each: each[:2])[:limit]]
    return found


def make_gallery(
    folder: Path,
    outcome: Outcome,
    *,
    query: Callable[[str], Image.Image | None],
    exemplar: Callable[[str], Image.Image | None],
    limit: int = 6,
) -> int:
    """Keep pictures of a cell's errors, and of what ranking rescued, instead of those that are kept of it.

    Args:
        folder: Of the results.
        outcome: With a file of images.
        query: The image of a source; None where there is none.
        exemplar: An image of a category of the memory; None where it has none.
        limit: Images of each kind.

    Returns:
        How many are kept.

    Raises:
        InputError: The outcome has no file of images, or it is no such file.
    """
    if not outcome.images:
        raise InputError(f"{outcome.id}: has no file with a line an image, which a gallery is chosen from")
    file = folder / outcome.images
    by_kind = chosen_images(read_run(file, EvaluatedImage.read)[1].values(), limit)
    kinds = {image.source: kind for kind, several in by_kind.items() for image in several}
    whole = read_run(file, lambda line: _whole(line) if line["source"] in kinds else None)[1] if kinds else {}
    pictures = {name: _picture(exemplar, name) for name in _shown(whole.values())}
    cards = []
    for source, kind in kinds.items():
        image = whole[source]
        picture, trouble = _picture(query, source)
        known: dict[str, str] = {}
        troubles: dict[str, str] = {}
        for place, name in enumerate(dict.fromkeys(image.retrieved)):
            found, why = pictures[name] if place < _SHOWN else (None, f"only the first {_SHOWN} are shown")
            known |= {} if found is None else {name: found}
            troubles |= {} if why is None else {name: why}
        cards.append(
            Card(
                cell=outcome.id,
                column=outcome.column,
                row=outcome.row,
                at=", ".join(f"{key} {value}" for key, value in outcome.at.items()),
                kind=kind,
                source=source,
                label=image.label,
                retrieved=image.retrieved,
                ranked=image.ranked,
                probability=image.probability,
                raw=image.raw,
                status=image.status,
                reason=image.reason,
                picture=picture,
                exemplars=known,
                trouble=trouble,
                troubles=troubles,
            )
        )
    path = folder / GALLERY
    others = [card for card in read_gallery(path) if card.cell != outcome.id]
    fresh = path.with_name(path.name + ".part")
    lines = [json.dumps(asdict(card), allow_nan=False) + "\n" for card in (*others, *cards)]
    fresh.write_text("".join(lines), encoding="utf-8")
    fresh.replace(path)
    return len(cards)


def _whole(line: Mapping[str, Any]) -> EvaluatedImage:
    """An image with the MLLM's words, which a report over many of them does without."""
    return replace(EvaluatedImage.read(line), raw=line.get("raw"), reason=line.get("reason"))


def _shown(images: Iterable[EvaluatedImage]) -> list[str]:
    """The candidates that get a picture, each once."""
    return list(dict.fromkeys(name for image in images for name in list(dict.fromkeys(image.retrieved))[:_SHOWN]))


def read_gallery(path: Path) -> list[Card]:
    """What is kept; nothing where there is no such file.

    Raises:
        InputError: It is no such file.
    """
    if not path.exists():
        return []
    cards = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            values: dict[str, Any] = json.loads(line)
            names: Sequence[str] = ("retrieved", "ranked")
            cards.append(Card(**{**values, **{name: tuple(values[name]) for name in names}}))
        except (InputError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path}, line {number}: is no picture of a gallery ({error}); remove the file") from error
    return cards


def _picture(get: Callable[[str], Image.Image | None], key: str) -> tuple[str | None, str | None]:
    """A thumbnail, or why there is none."""
    try:
        image = get(key)
    except (RarvisionError, OSError) as error:
        return None, f"{type(error).__name__}: {error}"
    if image is None:
        return None, "there is no such image any more"
    return thumbnail(image), None


def thumbnail(image: Image.Image) -> str:
    """A data URI of it, at most so large."""
    small = image.convert("RGB")
    kind = "png" if max(small.size) <= _SIDE else "jpeg"
    small.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    if kind == "png":
        small.quantize(64).save(file, "PNG", optimize=True)
    else:
        small.save(file, "JPEG", quality=80)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
