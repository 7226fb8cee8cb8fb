"""Write the catalogue in docs/datasets.md from the benchmarks themselves: ``make docs``. A test compares them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rarvision.datasets import BENCHMARKS, Benchmark

TARGET = Path(__file__).with_name("datasets.md")
MARK = "<!-- From here on written by docs/generate_datasets.py; do not edit. -->\n"


def sizes(counts: dict[str, int | None]) -> str:
    """Images a split, in words."""
    return ", ".join(f"{split} {'?' if images is None else format(images, ',')}" for split, images in counts.items())


def short(known: Benchmark) -> str:
    """The default splits."""
    return f"@{known.default}: {sizes(known.counts()[known.default])}" if known.splits else "boxes"


def section(known: Benchmark) -> Iterator[str]:
    """All there is to know of one."""
    yield f"### {known.name}"
    yield f"{known.title}. {known.about} {known.classes:,} classes, {known.images:,} images; download {known.size}."
    yield f"```text\n{known.tree}\n```"
    facts = [f"licence: {known.licence}", f"homepage: {known.homepage}"]
    facts += [f"files: {line}" for line in known.download]
    facts += [f"template: `{template}`" for template in known.templates]
    for way, counts in known.counts().items():
        if way.startswith("official-"):
            continue
        what = known.splits[way].about if way in known.splits else f"a copy from the hub, `{known.table.repository}`"
        facts.append(f"`@{way}`: {sizes(counts)}; {what}")
    more = [way for way in known.splits if way.startswith("official-")]
    if more:
        facts.append(f"`@{more[0]}` to `@{more[-1]}`: the authors' other partitions")
    facts += [f"mind: {caution}" for caution in known.cautions]
    facts += [f"cite: {known.citation}", f"tried on: {known.tried}"]
    yield "\n".join(f"- {fact}" for fact in facts)


def render() -> str:
    """The generated part of the page."""
    rows = [
        "| name | dataset | classes | images | splits by default | licence | readers tried on |",
        "|---|---|---|---|---|---|---|",
    ]
    for known in BENCHMARKS.values():
        cells = (f"[{known.name}](#{known.name})", known.title, f"{known.classes:,}", f"{known.images:,}", short(known))
        rows.append("| " + " | ".join((*cells, known.licence, known.tried)) + " |")
    parts = ["## The benchmarks", "\n".join(rows)]
    for known in BENCHMARKS.values():
        parts += section(known)
    return MARK + "\n" + "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    head = TARGET.read_text(encoding="utf-8").split(MARK)[0]
    TARGET.write_text(head + render(), encoding="utf-8")
    print(f"wrote {TARGET.name}")
