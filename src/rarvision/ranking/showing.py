"""What an MLLM is shown of the candidates beside their names: exemplar images, and descriptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, final, get_args

from PIL import Image as Pillow
from PIL import ImageDraw
from PIL.Image import Image

from rarvision.chat.base import Chat, ChatRequest, Message
from rarvision.errors import ChatUnsupportedError, OptionError
from rarvision.ranking.prompts import DESCRIBED, FIRST_IMAGE, exemplar_note

__all__ = ["Layout", "Presenter", "Showing", "Shown", "Subject", "context_request"]

Layout = Literal["auto", "images", "montage"]

_SIDE = 448  # of a montage, at least, pixels
_GAP = 4
_ANSWER_TOKENS = 256  # room that is left for the answer
_GREY = (128, 128, 128)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shown:
    """What may be shown of one candidate.

    Attributes:
        exemplars: RGB images of the category, the closest first.
        description: A sentence about it; None for none.
    """

    exemplars: tuple[Image, ...] = ()
    description: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Showing:
    """What a ranker wants to be given of each candidate.

    Attributes:
        exemplars: At most so many images.
        descriptions: Whether its description.
    """

    exemplars: int = 0
    descriptions: bool = False

    def __post_init__(self) -> None:
        if self.exemplars < 0:
            raise OptionError(f"exemplars must be at least 0, got {self.exemplars}")

    def __bool__(self) -> bool:
        return self.exemplars > 0 or self.descriptions


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The image that is asked about, and what is shown of its candidates, by name."""

    image: Image
    shown: Mapping[str, Shown] = field(default_factory=dict)


@final
class Presenter:
    """Makes the questions, with as many exemplars as the model takes.

    Args:
        chat: Whose limits hold: images in a question, tokens.
        showing: What is to be shown.
        layout: ``auto`` is ``images`` where the model takes the image and an exemplar of each candidate, else
            ``montage``.

    Raises:
        OptionError: An unknown layout.
    """

    def __init__(self, chat: Chat, showing: Showing, layout: Layout) -> None:
        if layout not in get_args(Layout):
            raise OptionError(f"layout must be one of {', '.join(get_args(Layout))}, got {layout!r}")
        self._chat = chat
        self._showing = showing
        self.layout: Layout = layout
        self._fits: dict[int, tuple[int, Literal["images", "montage"]]] = {}  # by candidates with exemplars

    @property
    def settings(self) -> dict[str, Any]:
        """What is shown, as JSON values; empty for names alone."""
        found: dict[str, Any] = {"descriptions": True} if self._showing.descriptions else {}
        if self._showing.exemplars:
            found |= {"exemplars": self._showing.exemplars, "layout": self.layout}
        return found

    def request(self, text: str, subject: Subject, names: Sequence[str]) -> ChatRequest:
        """A question about an image.

        Raises:
            ChatUnsupportedError: With the layout ``images``, the model takes too few images.
        """
        pictured = sum(1 for name in names if name in subject.shown and subject.shown[name].exemplars)
        if pictured and pictured not in self._fits:
            self._fits[pictured] = self._fitting(text, subject, names, pictured)
        exemplars, layout = self._fits.get(pictured, (0, "images"))
        return context_request(text, subject, names, exemplars=exemplars, layout=layout)

    def _fitting(
        self, text: str, subject: Subject, names: Sequence[str], pictured: int
    ) -> tuple[int, Literal["images", "montage"]]:
        """How many exemplars of each candidate the model takes, tried on the first question of so many candidates."""
        wanted, most = self._showing.exemplars, self._chat.capabilities.max_images
        if self.layout == "montage":
            return wanted, "montage"
        count = wanted if most is None else min(wanted, (most - 1) // pictured)
        if count < 1 and self.layout == "images":
            raise ChatUnsupportedError(
                f"{self._chat.name} takes {most} images a question, less than the image and an exemplar of each of "
                f"{pictured} candidates; use layout='montage', or lower k"
            )
        while count > 0:
            request = context_request(text, subject, names, exemplars=count, layout="images")
            limit, used = self._chat.context_limit, self._chat.count_tokens(request)
            if limit is None or used is None or used + _ANSWER_TOKENS <= limit:
                return count, "images"
            count -= 1
        return wanted, "montage"


def context_request(
    text: str, subject: Subject, names: Sequence[str], *, exemplars: int, layout: Literal["images", "montage"]
) -> ChatRequest:
    """One user turn: the image, the candidates' exemplars, and the text after what says which is which.

    Candidates are explained in alphabetical order, whatever the order in which the text names them: so it tells nothing
    of retrieval's opinion, and questions about the same image in other orders begin alike.

    Args:
        text: The prompt.
        subject: What is asked about.
        names: The candidates that the text names.
        exemplars: At most so many of each candidate.
        layout: ``images``: each on its own, before the words that say which they are (and count them, since some chat
            templates put all images first); ``montage``: all in one picture, for models of one image.
    """
    ordered = sorted(names)
    known = [(name, subject.shown[name]) for name in ordered if name in subject.shown]
    described = "".join(f"{name}: {shown.description}\n" for name, shown in known if shown.description)
    pictured = [(name, shown.exemplars[:exemplars]) for name, shown in known if shown.exemplars[:exemplars]]
    if described:
        described = f"{DESCRIBED}{described}"
    if not pictured:
        return ChatRequest.of(f"{described}{text}", subject.image)
    if layout == "montage":
        labels = "; ".join(f"{number}: {name}" for number, (name, _) in enumerate(pictured, start=1))
        head = f"The large picture is the image to classify. The small ones below are examples: {labels}.\n"
        return ChatRequest.of(f"{head}{described}{text}", montage(subject.image, [images for _, images in pictured]))
    parts: list[str | Image] = [subject.image, FIRST_IMAGE]
    number = 2
    for name, images in pictured:
        parts += [*images, exemplar_note(number, len(images), name)]
        number += len(images)
    # one text after the last image, for templates that put something between two
    parts[-1] = f"{parts[-1]}{described}{text}"
    return ChatRequest(messages=(Message(role="user", parts=tuple(parts)),))


def montage(image: Image, exemplars: Sequence[Sequence[Image]]) -> Image:
    """The image above, and below it a numbered column of exemplars for each candidate, in one picture."""
    side = max(_SIDE, *image.size)
    rows = max(map(len, exemplars))
    cell = (side - _GAP * (len(exemplars) - 1)) // len(exemplars)
    canvas = Pillow.new("RGB", (side, side + _GAP + rows * (cell + _GAP)), _GREY)
    _paste(canvas, image, 0, 0, side)
    draw = ImageDraw.Draw(canvas)
    for column, images in enumerate(exemplars):
        left = column * (cell + _GAP)
        for row, each in enumerate(images):
            _paste(canvas, each, left, side + _GAP + row * (cell + _GAP), cell)
        size = max(12, cell // 6)
        place = (left + 2, side + _GAP + 2)
        draw.text(place, str(column + 1), fill="white", stroke_fill="black", stroke_width=2, font_size=size)
    return canvas


def _paste(canvas: Image, image: Image, left: int, upper: int, side: int) -> None:
    """Fit into a square, proportions kept, in its middle."""
    scale = side / max(image.size)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    fitted = image.resize((width, height), Pillow.Resampling.BICUBIC)
    canvas.paste(fitted, (left + (side - width) // 2, upper + (side - height) // 2))
