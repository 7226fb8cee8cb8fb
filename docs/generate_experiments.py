"""Write what experiments on the field guide measured into docs/experiments.md, from a folder of results.

    rarvision reproduce all --field-guide --quick --out results
    python docs/generate_experiments.py results

The page's parts between the comments ``field guide: begin`` and ``field guide: end`` are replaced, and the figures
beside it.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator
from pathlib import Path

from rarvision.experiments import (
    EXPERIMENT,
    EXPERIMENTS,
    OUTCOMES,
    read_configuration,
    read_outcomes,
    rebuild_report,
    spec_of,
)

PAGE = Path(__file__).with_name("experiments.md")
BEGIN, END = "<!-- field guide: begin -->", "<!-- field guide: end -->"
FIGURES = ("table-7", "figure-10", "vocabulary")


def section(name: str, folder: Path) -> Iterator[str]:
    """An experiment: question, verdicts, table."""
    spec = spec_of(name, "field-guide")
    found = rebuild_report(folder, spec)
    outcomes = read_outcomes(folder / OUTCOMES)
    source = f" ({spec.source})" if spec.source else ""
    yield f"### {spec.name}: {spec.title}{source}"
    yield spec.question
    if found.verdicts:
        yield "\n".join(f"- **{each.verdict}**: {each.text} {each.evidence}" for each in found.verdicts)
    if name in FIGURES and (folder / "figure.svg").exists():
        target = PAGE.with_name(f"experiments-{name}.svg")
        shutil.copyfile(folder / "figure.svg", target)
        yield f"![{spec.title}]({target.name})"
    yield found.table.to_markdown()
    seeds = sorted({outcome.seed for outcome in outcomes})
    counts = sorted({outcome.n for outcome in outcomes if outcome.n})
    images = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    seen = ", ".join(map(str, seeds))
    yield (
        f"{images} images a cell, seeds {seen}, {len(outcomes):,} cells: "
        f"`rarvision reproduce {name} --field-guide{' --quick' if seeds == [0] else ''}`."
    )


def main() -> None:
    """Replace the page's part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="what `rarvision reproduce --field-guide --out` was given")
    results = parser.parse_args().results
    names = [name for name in EXPERIMENTS if (results / name / EXPERIMENT).exists()]
    for name in names:
        world = read_configuration(results / name).get("world")
        if world != "field guide":
            parser.error(f"{results / name} is no experiment on the field guide, but on {world}")
    text = "\n\n".join(part for name in names for part in section(name, results / name))
    page = PAGE.read_text(encoding="utf-8")
    before, rest = page.split(BEGIN, 1)
    PAGE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{rest.split(END, 1)[1]}", encoding="utf-8")
    print(f"wrote {len(names)} experiments to {PAGE.name}")


if __name__ == "__main__":
    main()
