"""Vocabularies of thousands of categories as a memory of texts: names, synonyms, definitions, and the official ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rarvision.detection.vocabulary import Vocabulary, clean_names, said
from rarvision.encoders import Encoder
from rarvision.errors import DatasetError, OptionError
from rarvision.memory import AddReport, Memory

__all__ = ["CategoryText", "VocabularyReport", "VocabularyTexts", "add_vocabulary", "category_ids", "vocabulary_texts"]

_ID = "category_id"  # keys of an entry's metadata
_KIND = "text_kind"


@dataclass(frozen=True, kw_only=True, slots=True)
class CategoryText:
    """A text that stands for a category.

    Attributes:
        category: The category's name in the memory, one of `Vocabulary.names`.
        category_id: Its number in annotations and results.
        text: What is encoded, to be put into templates.
        kind: Where it comes from.
    """

    category: str
    category_id: int
    text: str
    kind: Literal["name", "synonym", "definition"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabularyTexts:
    """The texts of a vocabulary, and what a reader of results should know of them.

    Attributes:
        texts: By category in the order of the ids; of one category the name, then synonyms, then the definition.
        disambiguated: The raw and the chosen name of categories that simple cleaning would have made one with another:
            they keep their parentheses, their raw name, or have their id behind it.
        same_but_for_case: Groups of names that differ in upper and lower case alone, which most encoders cannot tell
            apart.
        shared_synonyms: Synonyms that belong to several categories, or are another's name: left out.
        without_definition: Categories of which no definition is known, where definitions were wanted.
    """

    texts: tuple[CategoryText, ...]
    disambiguated: tuple[tuple[str, str], ...]
    same_but_for_case: tuple[tuple[str, ...], ...]
    shared_synonyms: tuple[str, ...]
    without_definition: tuple[str, ...]

    @property
    def notes(self) -> tuple[str, ...]:
        """The same in sentences; none where there is nothing to say."""
        parts: tuple[tuple[Sequence[object], str], ...] = (
            (
                [f"{raw} as {name}" for raw, name in self.disambiguated],
                "names would have become one with another and are told apart",
            ),
            (
                [" / ".join(group) for group in self.same_but_for_case],
                "groups of names differ in upper and lower case alone; most encoders cannot tell them apart",
            ),
            (self.shared_synonyms, "synonyms belong to several categories and are left out"),
            (self.without_definition, "categories have no definition"),
        )
        return tuple(
            f"{len(found):,} {what}: {', '.join(map(str, found[:3]))}{', …' if len(found) > 3 else ''}"
            for found, what in parts
            if found
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabularyReport:
    """What `add_vocabulary` did.

    Attributes:
        added: What was stored and skipped; its counts are of texts.
        categories: How many categories the vocabulary has.
        texts: What was found out about the names.
    """

    added: AddReport
    categories: int
    texts: VocabularyTexts


def vocabulary_texts(vocabulary: Vocabulary, *, synonyms: bool = False, definitions: bool = False) -> VocabularyTexts:
    """Texts that stand for the categories of a vocabulary.

    Args:
        vocabulary: As `read_vocabulary` gives it.
        synonyms: Also a text for each synonym that belongs to one category alone.
        definitions: Also the text "name, definition".

    Raises:
        OptionError: Synonyms or definitions are wanted and the vocabulary has none at all.

    Example:
        >>> from rarvision.detection import Category
        >>> cans = [Category(id=7, name="aerosol_can", synonyms=("aerosol_can", "spray_can"), definition="a dispenser")]
        >>> [text.text for text in vocabulary_texts(Vocabulary(cans), synonyms=True, definitions=True).texts]
        ['aerosol can', 'spray can', 'aerosol can, a dispenser']
    """
    if synonyms and not any(category.synonyms for category in vocabulary):
        raise OptionError(f"{vocabulary.name}: no category has synonyms; leave them out, or take a file that has them")
    if definitions and not any(category.definition for category in vocabulary):
        raise OptionError(f"{vocabulary.name}: no category has a definition; leave them out, or take a file with some")
    spoken = clean_names([category.name for category in vocabulary])  # without the ids that tell equal names apart
    others, shared = _own_synonyms(vocabulary, spoken) if synonyms else ([()] * len(spoken), ())
    texts: list[CategoryText] = []
    undefined: list[str] = []
    lowered: defaultdict[str, list[str]] = defaultdict(list)
    for name in vocabulary.names:
        lowered[name.lower()].append(name)
    for category, name, text, more in zip(vocabulary, vocabulary.names, spoken, others, strict=True):
        found = [("name", text), *(("synonym", synonym) for synonym in more)]
        if definitions and category.definition and category.definition.strip():
            found.append(("definition", f"{text}, {category.definition.strip()}"))
        elif definitions:
            undefined.append(name)
        texts += [CategoryText(category=name, category_id=category.id, text=t, kind=kind) for kind, t in found]  # type: ignore[arg-type]  # the three above
    return VocabularyTexts(
        texts=tuple(texts),
        disambiguated=tuple(
            (category.name, name)
            for category, name in zip(vocabulary, vocabulary.names, strict=True)
            if name != said(category.name)
        ),
        same_but_for_case=tuple(tuple(group) for group in lowered.values() if len(group) > 1),
        shared_synonyms=shared,
        without_definition=tuple(undefined),
    )


def _own_synonyms(vocabulary: Vocabulary, spoken: Sequence[str]) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """Each category's synonyms that mean no other one, and those that do."""
    cleaned = [tuple(dict.fromkeys(clean_names(category.synonyms))) for category in vocabulary]
    owners: defaultdict[str, set[int]] = defaultdict(set)
    for place, (name, more) in enumerate(zip(spoken, cleaned, strict=True)):
        for text in (name, *more):
            owners[text.lower()].add(place)
    shared = dict.fromkeys(text for more in cleaned for text in more if len(owners[text.lower()]) > 1)
    names = [name.lower() for name in spoken]
    own = [
        tuple(text for text in more if text not in shared and text.lower() != name)
        for more, name in zip(cleaned, names, strict=True)
    ]
    return own, tuple(shared)


def add_vocabulary(
    memory: Memory,
    vocabulary: Vocabulary,
    *,
    templates: str | Sequence[str] = ("{}",),
    synonyms: bool = False,
    definitions: bool = False,
    encoder: Encoder | None = None,
    batch_size: int | None = None,
    cache: bool | Path = True,
    progress: Callable[[int], None] | None = None,
) -> VocabularyReport:
    """Store a vocabulary as text entries: section 3.2 of the paper, where no images are at hand.

    Categories have the names of `Vocabulary.names`, and each entry's metadata the official id (``category_id``), so
    that `category_ids` gives the way back. Vectors are kept between runs, see `Memory.add_texts`; a call that was
    interrupted goes on where it stopped.

    Args:
        memory: Where to.
        vocabulary: As `read_vocabulary` gives it.
        templates: As of `Memory.add_texts`: sentences with ``{}``, or names of sets, such as ``clip-7``.
        synonyms: Also an entry for each synonym, see `vocabulary_texts`. A category's text score is the similarity to
            the mean of its entries.
        definitions: Also an entry for each definition. Encoders cut long texts (CLIP after 77 tokens).
        encoder: As of `Memory.add_texts`, as are the following.
        batch_size: Texts in one forward pass.
        cache: Whether, or where, vectors are kept between runs.
        progress: Called with the number of texts dealt with so far.

    Raises:
        DatasetError: The memory holds another vocabulary, in which an id or a name means something else.
        EncoderMismatchError: Another encoder than the memory's.
        OptionError: A template is none; synonyms or definitions are wanted and there are none.
    """
    found = vocabulary_texts(vocabulary, synonyms=synonyms, definitions=definitions)
    _check_same(category_ids(memory), vocabulary)
    added = memory.add_texts(
        [each.category for each in found.texts],
        texts=[each.text for each in found.texts],
        metadata=[{_ID: each.category_id, _KIND: each.kind} for each in found.texts],
        templates=templates,
        encoder=encoder,
        batch_size=batch_size,
        cache=cache,
        progress=progress,
    )
    return VocabularyReport(added=added, categories=len(vocabulary), texts=found)


def category_ids(memory: Memory) -> dict[str, int]:
    """The official id of each category that has one: what detections are written with.

    Args:
        memory: Filled by `add_vocabulary`; only its texts are looked at.

    Raises:
        DatasetError: Its texts give a category two ids, or two categories one.
    """
    ids: dict[str, int] = {}
    names: dict[int, str] = {}
    for entry in memory.entries(modality="text"):
        given: Any = entry.metadata.get(_ID)
        if given is None:
            continue
        if ids.setdefault(entry.category, given) != given or names.setdefault(given, entry.category) != entry.category:
            raise DatasetError(
                f"the memory's texts mix vocabularies: {entry.category!r} has id {ids[entry.category]}, and an entry "
                f"with id {given}, which is {names.get(given, entry.category)!r}; use a memory for each vocabulary"
            )
    return ids


def _check_same(held: dict[str, int], vocabulary: Vocabulary) -> None:
    names = {id_: name for name, id_ in held.items()}
    for id_, name in zip(vocabulary.ids.tolist(), vocabulary.names, strict=True):
        if held.get(name, id_) != id_ or names.get(id_, name) != name:
            meant = f"{name!r} with id {held[name]}" if held.get(name, id_) != id_ else f"{id_} for {names[id_]!r}"
            raise DatasetError(
                f"{vocabulary.name}: the memory holds another vocabulary: here {id_} is {name!r}, there is {meant}; "
                "use a memory for each vocabulary"
            )
