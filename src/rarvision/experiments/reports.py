"""The reports of an experiment: Markdown, CSV, figures and one HTML file, from what its folder holds."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rarvision.errors import InputError, MissingExtraError
from rarvision.experiments.claims import Verdict, judge
from rarvision.experiments.drawing import draw
from rarvision.experiments.gallery import GALLERY, Card, read_gallery
from rarvision.experiments.outcomes import Outcome, read_outcomes
from rarvision.experiments.paper import published
from rarvision.experiments.running import OUTCOMES, read_configuration
from rarvision.experiments.spec import Spec
from rarvision.experiments.tables import Table, measured_part

__all__ = ["Rebuilt", "rebuild_report", "write_report"]

_TEMPLATE = "report.html.jinja"


@dataclass(frozen=True, kw_only=True)
class Rebuilt:
    """A report.

    Attributes:
        outcomes: What it is of.
        table: With the paper's figures.
        verdicts: On the paper's claims.
        files: What was written.
        no_figure: Why there is no figure, where there should be one.
        left_out: Methods of which the figure lacks something: means over some of the data sets.
    """

    outcomes: tuple[Outcome, ...]
    table: Table
    verdicts: tuple[Verdict, ...]
    files: tuple[Path, ...]
    no_figure: str | None
    left_out: tuple[str, ...] = ()


def rebuild_report(folder: Path, spec: Spec) -> Rebuilt:
    """Write the report of what a folder of results holds, see `write_report`.

    Needs nothing but the folder: no models, no images.

    Args:
        folder: Of an experiment's results, finished or not.
        spec: The experiment; of its columns and places those are shown of which there is something.

    Raises:
        InputError: The folder holds no results, or damaged ones.
    """
    settings = read_configuration(folder)
    outcomes = read_outcomes(folder / OUTCOMES)
    if not outcomes:
        raise InputError(f"{folder}: nothing has been measured yet; `rarvision reproduce {spec.name}` goes on")
    part = measured_part(spec, outcomes)
    return write_report(folder, part, outcomes, verdicts=judge(part, outcomes, folder), settings=settings)


def write_report(
    folder: Path,
    spec: Spec,
    outcomes: Sequence[Outcome],
    *,
    verdicts: Sequence[Verdict],
    settings: Mapping[str, Any],
) -> Rebuilt:
    """Write ``table.md``, ``table.csv``, ``report.html`` and, of a spec with a plot, ``figure.png`` and ``figure.svg``.

    Each file is written whole or not at all. Where matplotlib is missing there is no figure, and the report says so.

    Args:
        folder: Where they go; the gallery in it is shown, see `rarvision.experiments.gallery`.
        spec: What was measured.
        outcomes: What came of it.
        verdicts: On the spec's claims.
        settings: What all of it depends on, JSON values.
    """
    usual = spec.settings.get("shots")
    shots = settings.get("settings", {}).get("shots", usual)
    paper = published(spec.paper) if spec.paper and shots == usual else None
    remarks = []
    if shots != usual:
        remarks.append(f"Of {shots} shots, where the experiment has {usual}: the paper's figures are left out.")
    if (limit := settings.get("limit")) is not None and spec.kind != "facts":
        others = "" if paper is None else ", and the paper's figures are of all"
        remarks.append(f"Of a data set at most {limit:,} test images, evenly spaced{others}.")
    table = Table(spec, outcomes, paper, remarks=remarks)
    files = [folder / "table.md", folder / "table.csv"]
    _write(files[0], _markdown(spec, table, verdicts, outcomes))
    _write(files[1], table.to_csv())
    no_figure, left_out = None, []
    figures = [folder / "figure.png", folder / "figure.svg"]
    if spec.plot is not None:
        try:
            left_out = draw(spec, outcomes, paper, figures)
            files += figures
        except MissingExtraError as error:
            no_figure = str(error)
            for stale in figures:  # of earlier outcomes
                stale.unlink(missing_ok=True)
    svg = figures[1].read_text(encoding="utf-8") if figures[1] in files else None
    page = folder / "report.html"
    found = Rebuilt(
        outcomes=tuple(outcomes),
        table=table,
        verdicts=tuple(verdicts),
        files=(*files, page),
        no_figure=no_figure,
        left_out=tuple(left_out),
    )
    _write(page, _html(spec, found, read_gallery(folder / GALLERY), settings, svg))
    return found


def _write(path: Path, text: str) -> None:
    """Whole or not at all; what is no Unicode in a file's name is escaped."""
    fresh = path.with_name(path.name + ".part")
    fresh.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
    fresh.replace(path)


def _markdown(spec: Spec, table: Table, verdicts: Sequence[Verdict], outcomes: Sequence[Outcome]) -> str:
    source = f" ({spec.source})" if spec.source else ""
    lines = [f"# {spec.name}: {spec.title}{source}", "", spec.question, "", table.to_markdown(), ""]
    lines += [f"- **{verdict.verdict}**: {verdict.text} {verdict.evidence}" for verdict in verdicts]
    return "\n".join([*lines, "", _stamp(outcomes), ""])


def _stamp(outcomes: Sequence[Outcome]) -> str:
    """Who measured what, a line."""
    counts = sorted({outcome.n for outcome in outcomes if outcome.n})
    n = "" if not counts else f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    parts = [
        f"{n} images a cell" if n else "",
        f"seeds {', '.join(map(str, sorted({outcome.seed for outcome in outcomes})))}",
        *(f"encoder {name}" for name in sorted({outcome.encoder for outcome in outcomes if outcome.encoder})),
        *(f"ranker {name}" for name in sorted({str(outcome.ranker) for outcome in outcomes if outcome.ranker})),
        *(f"rarvision {name}" for name in sorted({outcome.version for outcome in outcomes if outcome.version})),
    ]
    return "; ".join(part for part in parts if part) + "."


def _statuses(outcome: Outcome) -> str:
    counts = {**outcome.statuses, "without an answer": outcome.failures}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count)


def _html(spec: Spec, found: Rebuilt, cards: Sequence[Card], settings: Mapping[str, Any], svg: str | None) -> str:
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    titles = {column.key: column.title for column in spec.columns} | {row.key: row.title for row in spec.rows}

    def values(name: str) -> list[str]:
        return list(dict.fromkeys(titles.get(key, key) for key in (getattr(card, name) for card in cards)))

    filters = {"kind": values("kind"), "data set": values("column"), "method": values("row"), "at": values("at")}
    limit = max((sum(c.cell == card.cell and c.kind == card.kind for c in cards) for card in cards), default=0)
    return environment.get_template(_TEMPLATE).render(
        spec=spec,
        table=found.table,
        verdicts=found.verdicts,
        outcomes=found.outcomes,
        stamp=_stamp(found.outcomes),
        cards=cards,
        pictures=_pictures(cards),
        limit=limit,
        filters={name: several for name, several in filters.items() if any(several)},
        titles=titles,
        statuses=_statuses,
        link=_link,
        settings=json.dumps(settings, indent=1),
        svg=None if svg is None else _inline(svg),
        no_figure=found.no_figure,
        left_out=found.left_out,
    )


def _pictures(cards: Sequence[Card]) -> dict[str, str]:
    """An id for each picture of a category: many cards show the same ones, and the page is to hold each once."""
    found = dict.fromkeys(picture for card in cards for picture in card.exemplars.values())
    return {picture: f"picture-{place}" for place, picture in enumerate(found)}


def _link(name: str) -> str | None:
    """A file of the results' folder as an address; None for what lies elsewhere."""
    parts = name.split("/")
    return quote(name) if len(parts) > 1 and parts[0] in ("images", "boxes", "naming") and ".." not in parts else None


def _inline(svg: str) -> str:
    """The drawing without what belongs to a file of its own, and without what it says of others' addresses."""
    body = svg[svg.index("<svg") :]
    return re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
