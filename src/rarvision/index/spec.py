"""Which index: a small record that a memory can store, making one from it, and the choice by size."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rarvision.errors import OptionError

if TYPE_CHECKING:
    from rarvision.index.base import Index

__all__ = ["EXACT_UP_TO", "LISTS_UP_TO", "IndexKind", "IndexSpec", "choose_index", "graph_spec", "make_index"]

IndexKind = Literal["exact", "hnsw", "rescored"]

_PARAMETERS: dict[str, dict[str, type]] = {
    "exact": {},
    "hnsw": {"m": int, "ef_construction": int, "ef_search": int},
    "rescored": {
        "factory": str,
        "store": str,
        "k_factor": int,
        "nprobe": int,
        "ef_search": int,
        "ef_construction": int,
        "train_on": int,
        "seed": int,
    },
    "faiss": {},
}
_MADE = ("exact", "hnsw", "rescored")

EXACT_UP_TO = 10_000
"""Rows up to which `choose_index` takes the exact index: up to there others are not twice as fast in batches."""

LISTS_UP_TO = 300_000
"""Rows up to which it takes shortlists from inverted lists: beyond, those from a graph are faster at recall 0.99."""


@dataclass(frozen=True, kw_only=True)
class IndexSpec:
    """A kind of index and its parameters.

    Attributes:
        kind: ``exact``, ``hnsw`` or ``rescored``; ``faiss`` stands for an index that another program made.
        parameters: Those of its constructor; what is left out has its default.

    Raises:
        OptionError: Unknown kind or parameter, or a value of the wrong type.

    Example:
        >>> spec = IndexSpec(kind="hnsw", parameters={"m": 16})
        >>> str(spec), IndexSpec.from_json(spec.to_json()) == spec
        ('hnsw(m=16)', True)
    """

    kind: str
    parameters: Mapping[str, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in _PARAMETERS:
            near = difflib.get_close_matches(str(self.kind), _MADE, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise OptionError(
                f"unknown index {self.kind!r}; there are: {', '.join(_MADE)}, and faiss factory strings{hint}"
            )
        known = _PARAMETERS[self.kind]
        if unknown := sorted(set(self.parameters) - set(known)):
            raise OptionError(
                f"the index {self.kind!r} has no parameter {', '.join(unknown)}; "
                f"it has: {', '.join(sorted(known)) or 'none'}"
            )
        for name, value in self.parameters.items():
            if isinstance(value, bool) or not isinstance(value, known[name]):
                raise OptionError(
                    f"{name} of the index {self.kind!r} must be {'text' if known[name] is str else 'a whole number'}, "
                    f"got {value!r}"
                )

    def make(self, dim: int) -> Index:
        """An empty index of `dim` dimensions.

        Raises:
            OptionError: A parameter is out of range, or the index is another program's.
        """
        from rarvision.index.exact import ExactIndex
        from rarvision.index.hnsw import HNSWIndex
        from rarvision.index.rescored import RescoredIndex

        parameters: Any = self.parameters
        if self.kind == "exact":
            return ExactIndex(dim)
        if self.kind == "hnsw":
            return HNSWIndex(dim, **parameters)
        if self.kind == "rescored":
            return RescoredIndex(dim, **parameters)
        raise OptionError(f"an index of the kind {self.kind!r} is read from a file, not made; make: {', '.join(_MADE)}")

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {"kind": self.kind, "parameters": dict(self.parameters)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> IndexSpec:
        """What `to_json` gave.

        Raises:
            OptionError: Something else.
        """
        if not isinstance(value, Mapping) or set(value) != {"kind", "parameters"}:
            raise OptionError(f"an index is stored as an object with kind and parameters, got {value!r}")
        if not isinstance(value["parameters"], Mapping):
            raise OptionError(f"parameters must be an object, got {value['parameters']!r}")
        return cls(kind=value["kind"], parameters=dict(value["parameters"]))

    def __str__(self) -> str:
        inside = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        return f"{self.kind}({inside})" if inside else self.kind


def make_index(kind: str, dim: int, **parameters: int | str) -> Index:
    """An empty index.

    Args:
        kind: ``exact``, ``hnsw``, ``rescored``, or a faiss factory string such as ``PCA64,HNSW32_SQ8``, which is what
            ``rescored`` takes its shortlists from.
        dim: Number of dimensions.
        **parameters: Those of the index's constructor.

    Raises:
        OptionError: Unknown kind or parameter, or a value out of range.

    Example:
        >>> make_index("exact", 8).describe()
        'exact: 0 rows of 8 dimensions, 0 bytes each'
    """
    if kind not in _PARAMETERS and (any(c.isdigit() for c in kind) or "," in kind):
        return IndexSpec(kind="rescored", parameters={"factory": kind, **parameters}).make(dim)
    return IndexSpec(kind=kind, parameters=parameters).make(dim)


def choose_index(rows: int, dim: int) -> tuple[IndexSpec, str]:
    """The index for so many rows, and the reason in one line.

    The crossover was measured (``benchmarks/index.py --crossover``; the table stands in ``docs/benchmarks.md``).

    Raises:
        OptionError: Fewer than 0 rows or fewer than 1 dimension.

    Example:
        >>> spec, reason = choose_index(7_000, 512)
        >>> print(spec, "-", reason)
        exact - exact: 7,000 rows, up to 10,000 an exact search is fast enough
    """
    if rows < 0 or dim < 1:
        raise OptionError(f"expected at least 0 rows of at least 1 dimension, got {rows} rows of {dim}")
    if rows <= EXACT_UP_TO:
        return IndexSpec(kind="exact"), f"exact: {rows:,} rows, up to {EXACT_UP_TO:,} an exact search is fast enough"
    if rows <= LISTS_UP_TO:
        reason = f"rescored: {rows:,} rows, above {EXACT_UP_TO:,} shortlists of compressed vectors are faster"
        return IndexSpec(kind="rescored"), reason
    reason = f"rescored: {rows:,} rows, above {LISTS_UP_TO:,} shortlists from a graph are faster than from lists"
    return graph_spec(dim), reason


def graph_spec(dim: int) -> IndexSpec:
    """Shortlists from a graph over reduced vectors, scored again from half-precision ones.

    At 512 dimensions it takes half the bytes of a graph with 64 links over the full vectors. Dimensions are reduced to
    a multiple of 8: others are computed many times slower.

    Example:
        >>> graph_spec(512).parameters["factory"], graph_spec(100).parameters["factory"]
        ('PCA120,HNSW15_SQ8', 'PCA96,HNSW15_SQ8')
    """
    reduced = min(max(dim // 8 * 8, 1), 120)
    graph = "HNSW15_SQ8" if reduced == dim or dim < 8 else f"PCA{reduced},HNSW15_SQ8"
    return IndexSpec(
        kind="rescored", parameters={"factory": graph, "store": "fp16", "ef_search": 96, "ef_construction": 80}
    )
