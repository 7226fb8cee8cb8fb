"""Trees over categories from files, from metadata, and from the field guide's names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rarvision.datasets.files import csv_rows, read_text
from rarvision.errors import DatasetError, InputError
from rarvision.taxonomy import Taxonomy

__all__ = ["field_guide_taxonomy", "open_taxonomy", "taxonomy_of_metadata"]

_CATEGORY_COLUMNS = ("label", "category")  # not "class", which is a level of real taxonomies
_FORMS = (
    "expected a .csv or .tsv file with a column a level, the coarsest first and the categories last (or in a column "
    f"named {' or '.join(_CATEGORY_COLUMNS)}); or a .json file: a list of such rows, or "
    '{"levels": ["family", "genus", "species"], "tree": {"Corvidae": {"Corvus": ["raven", "crow"]}}}'
)


def field_guide_taxonomy() -> Taxonomy:
    """The field guide's tree, over all its categories: domain, kind, shape, pattern, species.

    A name is read from its end: ``crimson amber barred forktail finch`` is a bird, a finch, a forktail finch and a
    barred forktail finch.

    Example:
        >>> field_guide_taxonomy().path("crimson amber barred forktail finch")[:4]
        ('birds', 'finch', 'forktail finch', 'barred forktail finch')
    """
    from rarvision.datasets.fieldguide.vocabulary import DOMAINS

    paths = {
        name: (domain.name, *(" ".join(name.split(" ")[-words:]) for words in (1, 2, 3)))
        for domain in DOMAINS.values()
        for name in domain.codes_to_names(domain.all_codes())
    }
    return Taxonomy(paths, levels=("domain", "kind", "shape", "pattern", "species"), name="fieldguide")


def taxonomy_of_metadata(
    entries: Iterable[tuple[str, Mapping[str, Any]]], levels: Sequence[str], *, name: str = "metadata"
) -> Taxonomy:
    """A tree whose groups stand in the metadata of images, such as the columns of the CSV file they came from.

    Args:
        entries: Category and metadata, of a dataset's items or of a memory's entries. What lacks all of the levels
            says nothing, as a memory's texts do.
        levels: Keys of the metadata, the coarsest first.
        name: For reports.

    Raises:
        InputError: A category has no value, a blank one, or two of them; or the tree is none, see `Taxonomy`.
    """
    found: dict[str, list[str]] = {}
    categories: dict[str, None] = {}
    for category, metadata in entries:
        categories[category] = None
        given = [str(metadata[level]) if metadata.get(level) is not None else "" for level in levels]
        if any(given) and found.setdefault(category, given) != given:
            raise InputError(f"{name}: {category!r} lies in {found[category]} and in {given} ({', '.join(levels)})")
    bare = [category for category in categories if category not in found]
    if bare:
        raise InputError(f"{name}: nothing says the {', '.join(levels)} of {bare[0]!r} ({len(bare)} categories)")
    return Taxonomy(found, levels=(*levels, "category"), name=name)


def open_taxonomy(path: str | Path) -> Taxonomy:
    """Read a tree from a CSV or JSON file.

    A CSV file has a header and a column a level, the coarsest first and the categories last; or in a column named
    ``label`` or ``category``, wherever that stands. A JSON file holds a list of such rows, or ``levels`` and a nested
    ``tree``, whose innermost values are lists of categories. Groups may also stand in the metadata of
    images: `taxonomy_of_metadata`.

    Raises:
        DatasetError: There is no such file, or it is not as documented; names the line or the group.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".tsv", ".json"):
        raise DatasetError(f"{path}: {_FORMS}")
    try:
        if suffix == ".json":
            return _from_json(path)
        return _from_rows(path, csv_rows(path))
    except DatasetError:
        raise
    except InputError as error:
        raise DatasetError(str(error)) from error


def _from_json(path: Path) -> Taxonomy:
    try:
        values = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON: {error}; {_FORMS}") from error
    if isinstance(values, list):
        return _from_rows(path, enumerate(values, start=1))
    if not isinstance(values, dict) or set(values) != {"levels", "tree"} or not isinstance(values["levels"], list):
        raise DatasetError(f"{path}: {_FORMS}")
    levels = [str(level) for level in values["levels"]]
    paths: dict[str, tuple[str, ...]] = {}
    for names in _leaves(path, values["tree"], (), len(levels)):
        if names[-1] in paths:
            raise DatasetError(f"{path}: the category {names[-1]!r} stands in two places of the tree")
        paths[names[-1]] = names[:-1]
    return Taxonomy(paths, levels=levels, name=path.stem)


def _leaves(path: Path, node: Any, above: tuple[str, ...], depth: int) -> Iterator[tuple[str, ...]]:
    where = " > ".join(above) or "the top"
    if len(above) == depth - 1:
        if not isinstance(node, list) or not all(isinstance(name, str) for name in node):
            raise DatasetError(f"{path}: {where}: expected a list of categories, got {node!r:.60}; {_FORMS}")
        yield from ((*above, name) for name in node)
        return
    if not isinstance(node, dict):
        raise DatasetError(f"{path}: {where}: expected an object of groups, got {node!r:.60}; {_FORMS}")
    for name, below in node.items():
        yield from _leaves(path, below, (*above, name), depth)


def _from_rows(path: Path, rows: Iterable[tuple[int, Any]]) -> Taxonomy:
    paths: dict[str, list[str]] = {}
    levels: list[str] = []
    for number, row in rows:
        where = f"{path}, {'row' if path.suffix.lower() == '.json' else 'line'} {number}"
        if not isinstance(row, Mapping) or not all(isinstance(value, str) and value.strip() for value in row.values()):
            raise DatasetError(f"{where}: expected a name for each level, got {row!r:.80}")
        if not levels:
            usual = [key for key in row if key.strip().lower() in _CATEGORY_COLUMNS]
            last = usual[0] if usual else list(row)[-1]
            levels = [*(key for key in row if key != last), last]
        if set(row) != set(levels):
            raise DatasetError(f"{where}: expected the levels {', '.join(levels)}, got {', '.join(row)}")
        *groups, category = (row[level].strip() for level in levels)
        if paths.setdefault(category, groups) != groups:
            before = ", ".join(paths[category])
            raise DatasetError(f"{where}: {category!r} lies in {', '.join(groups)}; before in {before}")
    if not paths:
        raise DatasetError(f"{path}: no rows in it; {_FORMS}")
    return Taxonomy(paths, levels=levels, name=path.stem)
