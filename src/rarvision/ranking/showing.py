"""What an MLLM is shown beside the candidates' names: exemplar images, descriptions, and a worked example before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, final, get_args

from PIL import Image as Pillow
from PIL import ImageDraw
from PIL.Image import Image

from rarvision.chat.base import Chat, ChatRequest, Message
from rarvision.errors import ChatUnsupportedError, InputError, OptionError
from rarvision.ranking.forms import QuestionForm
from rarvision.ranking.prompts import DESCRIBED, exemplar_note, query_note
from rarvision.ranking.worked import NoExample, WorkedExample, example_images, worked_turns

__all__ = ["Layout", "Presenter", "Showing", "Shown", "Subject", "context_request", "joined", "subjects_of"]

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
    """What a ranker wants to be given beside names.

    Attributes:
        exemplars: At most so many images of each candidate.
        descriptions: Whether each candidate's description.
        worked_example: Whether an example of another image that is answered, for each image.
    """

    exemplars: int = 0
    descriptions: bool = False
    worked_example: bool = False

    def __post_init__(self) -> None:
        if self.exemplars < 0:
            raise OptionError(f"exemplars must be at least 0, got {self.exemplars}")

    def __bool__(self) -> bool:
        return self.exemplars > 0 or self.descriptions or self.worked_example


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """The image that is asked about, what is shown of its candidates, by name, and the example that comes before.

    ``worked`` is None where none was given.
    """

    image: Image
    shown: Mapping[str, Shown] = field(default_factory=dict)
    worked: WorkedExample | NoExample | None = None

    @property
    def key(self) -> tuple[int, int]:
        """Tells subjects apart that live at the same time: by their image and their example, as objects."""
        return id(self.image), id(self.example)

    @property
    def example(self) -> WorkedExample | None:
        """The example, where there is one."""
        return self.worked if isinstance(self.worked, WorkedExample) else None


def subjects_of(
    images: Sequence[Image],
    names: Sequence[Sequence[str]],
    shown: Sequence[Sequence[Shown]] | None,
    worked: Sequence[WorkedExample | NoExample] | None,
) -> list[Subject]:
    """What `rarvision.ranking.BaseRanker.rank_batch` is given, image by image.

    Raises:
        InputError: The counts differ.
    """
    if len(images) != len(names):
        raise InputError(f"expected one list of names for each image: {len(images)} images, {len(names)} lists")
    if shown is not None and [len(each) for each in shown] != [len(each) for each in names]:
        raise InputError("expected one record of what is shown for each name")
    if worked is not None and len(worked) != len(images):
        raise InputError(f"expected one worked example for each image: {len(images)} images, {len(worked)} examples")
    return [
        Subject(
            image,
            {} if shown is None else dict(zip(names[row], shown[row], strict=True)),
            None if worked is None else worked[row],
        )
        for row, image in enumerate(images)
    ]


def joined(subjects: Sequence[Subject]) -> dict[tuple[int, int], Subject]:
    """Those of the same image and example as one, with all that is shown of its candidates; by `Subject.key`."""
    found: dict[tuple[int, int], Subject] = {}
    for subject in subjects:
        known = found.get(subject.key)
        found[subject.key] = subject if known is None else replace(known, shown={**known.shown, **subject.shown})
    return found


@final
class Presenter:
    """Makes the questions, with as many exemplars as the model takes.

    Args:
        chat: Whose limits hold: images in a question, tokens.
        showing: What is to be shown.
        layout: ``auto`` is ``images`` where the model takes the image and an exemplar of each candidate, else
            ``montage``.
        form: In which a worked example is asked.

    Raises:
        OptionError: An unknown layout.
        ChatUnsupportedError: The model takes too few images for a worked example.
    """

    def __init__(self, chat: Chat, showing: Showing, layout: Layout, form: QuestionForm) -> None:
        if layout not in get_args(Layout):
            raise OptionError(f"layout must be one of {', '.join(get_args(Layout))}, got {layout!r}")
        most, needed = chat.capabilities.max_images, 1 + example_images(form)
        if showing.worked_example and most is not None and most < needed:
            raise ChatUnsupportedError(
                f"{chat.name} takes at most {most} image{'s' * (most != 1)} in a conversation, and with a worked "
                f"example {form.strategy!r} shows {needed}; leave worked_example out, or use an MLLM that takes more"
            )
        self._chat = chat
        self._showing = showing
        self.layout: Layout = layout
        self._form = form
        # by candidates with exemplars, and images in earlier turns
        self._fits: dict[tuple[int, int], tuple[int, Literal["images", "montage"]]] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """What is shown, as JSON values; empty for names alone."""
        found: dict[str, Any] = {"descriptions": True} if self._showing.descriptions else {}
        if self._showing.exemplars:
            found |= {"exemplars": self._showing.exemplars, "layout": self.layout}
        return found | ({"worked_example": True} if self._showing.worked_example else {})

    def request(self, text: str, subject: Subject, names: Sequence[str]) -> ChatRequest:
        """A question about an image, after its worked example where that is wanted and there.

        Raises:
            ChatUnsupportedError: With the layout ``images``, the model takes too few images.
        """
        earlier: tuple[Message, ...] = ()
        if self._showing.worked_example and subject.example is not None:
            earlier = worked_turns(subject.example, self._form)
        pictured = sum(1 for name in names if name in subject.shown and subject.shown[name].exemplars)
        fit = pictured, len(ChatRequest(messages=earlier).images)
        if pictured and fit not in self._fits:
            self._fits[fit] = self._fitting(text, subject, names, pictured, earlier)
        exemplars, layout = self._fits.get(fit, (0, "images"))
        return context_request(text, subject, names, exemplars=exemplars, layout=layout, earlier=earlier)

    def _fitting(
        self, text: str, subject: Subject, names: Sequence[str], pictured: int, earlier: tuple[Message, ...]
    ) -> tuple[int, Literal["images", "montage"]]:
        """How many exemplars of each candidate the model takes, tried on the first question of so many candidates."""
        wanted, most = self._showing.exemplars, self._chat.capabilities.max_images
        before = len(ChatRequest(messages=earlier).images)
        if self.layout == "montage":
            return wanted, "montage"
        count = wanted if most is None else min(wanted, (most - before - 1) // pictured)
        if count < 1 and self.layout == "images":
            example = " that of the worked example," if before else ""
            raise ChatUnsupportedError(
                f"{self._chat.name} takes {most} images a question, less than the image,{example} and an exemplar of "
                f"each of {pictured} candidates; use layout='montage', or lower k"
            )
        while count > 0:
            request = context_request(text, subject, names, exemplars=count, layout="images", earlier=earlier)
            limit, used = self._chat.context_limit, self._chat.count_tokens(request)
            if limit is None or used is None or used + _ANSWER_TOKENS <= limit:
                return count, "images"
            count -= 1
        return wanted, "montage"


def context_request(
    text: str,
    subject: Subject,
    names: Sequence[str],
    *,
    exemplars: int,
    layout: Literal["images", "montage"],
    earlier: tuple[Message, ...] = (),
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
        earlier: Turns before it, in which nothing is shown but an image and names.
    """
    before = len(ChatRequest(messages=earlier).images)
    parts = _parts(text, subject, names, exemplars=exemplars, layout=layout, before=before)
    return ChatRequest(messages=(*earlier, Message(role="user", parts=parts)))


def _parts(
    text: str,
    subject: Subject,
    names: Sequence[str],
    *,
    exemplars: int,
    layout: Literal["images", "montage"],
    before: int,
) -> tuple[str | Image, ...]:
    """What the turn is made of; ``before`` images were shown in earlier ones, which count."""
    ordered = sorted(names)
    known = [(name, subject.shown[name]) for name in ordered if name in subject.shown]
    described = "".join(f"{name}: {shown.description}\n" for name, shown in known if shown.description)
    pictured = [(name, shown.exemplars[:exemplars]) for name, shown in known if shown.exemplars[:exemplars]]
    if described:
        described = f"{DESCRIBED}{described}"
    if not pictured:
        return subject.image, f"{described}{text}"
    if layout == "montage":
        labels = "; ".join(f"{number}: {name}" for number, (name, _) in enumerate(pictured, start=1))
        head = f"The large picture is the image to classify. The small ones below are examples: {labels}.\n"
        return montage(subject.image, [images for _, images in pictured]), f"{head}{described}{text}"
    number = before + 1
    parts: list[str | Image] = [subject.image, query_note(number)]
    number += 1
    for name, images in pictured:
        parts += [*images, exemplar_note(number, len(images), name)]
        number += len(images)
    # one text after the last image, for templates that put something between two
    parts[-1] = f"{parts[-1]}{described}{text}"
    return tuple(parts)


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
