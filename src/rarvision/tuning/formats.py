"""Ranking examples in the formats that other trainers read.

::

    authors        JSON   {"id", "image": [path], "conversations": [{"from": "user"|"assistant", "value"}]}
    llava          JSON   {"id", "image": path, "conversations": [{"from": "human"|"gpt", "value"}]}
    qwen-vl        JSON   {"id", "conversations": [{"from": "user"|"assistant", "value"}]}; the path is in the question
    ms-swift       JSONL  {"messages": [{"role": "user"|"assistant", "content"}], "images": [path]}
    llama-factory  JSON   {"conversations": [{"from": "human"|"gpt", "value"}], "images": [path]}, its "sharegpt"

JSON is one array, JSONL an object a line. ``authors`` is what the code of the paper writes (InternLM-XComposer's).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from rarvision.errors import InputError, OptionError
from rarvision.ranking.prompts import RANKING_PROMPTS, format_list, ranking_prompt
from rarvision.tuning.manifest import TuningExample, iter_manifest

__all__ = ["FORMATS", "FormatName", "convert_manifest", "to_record"]

FormatName = Literal["authors", "llava", "qwen-vl", "ms-swift", "llama-factory"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)

_Record = Callable[[TuningExample, int, str, str, str], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class _Format:
    """One trainer's: its record of (example, number, path, question, answer), and what stands for the image in it."""

    record: _Record
    marker: str
    lines: bool = False


def _turns(roles: tuple[str, str], question: str, answer: str, *, keys: tuple[str, str]) -> list[dict[str, str]]:
    who, what = keys
    return [{who: roles[0], what: question}, {who: roles[1], what: answer}]


def _authors(_: TuningExample, number: int, path: str, question: str, answer: str) -> dict[str, Any]:
    asked = f"Here is a image:<Img index=1><image></Img>. {question}"
    return {
        "id": number,
        "image": [path],
        "conversations": _turns(("user", "assistant"), asked, answer, keys=("from", "value")),
    }


def _llava(example: TuningExample, _: int, path: str, question: str, answer: str) -> dict[str, Any]:
    turns = _turns(("human", "gpt"), f"<image>\n{question}", answer, keys=("from", "value"))
    return {"id": example.id, "image": path, "conversations": turns}


def _qwen_vl(example: TuningExample, _: int, path: str, question: str, answer: str) -> dict[str, Any]:
    asked = f"Picture 1: <img>{path}</img>\n{question}"
    return {"id": example.id, "conversations": _turns(("user", "assistant"), asked, answer, keys=("from", "value"))}


def _ms_swift(_: TuningExample, __: int, path: str, question: str, answer: str) -> dict[str, Any]:
    turns = _turns(("user", "assistant"), f"<image>{question}", answer, keys=("role", "content"))
    return {"messages": turns, "images": [path]}


def _llama_factory(_: TuningExample, __: int, path: str, question: str, answer: str) -> dict[str, Any]:
    turns = _turns(("human", "gpt"), f"<image>{question}", answer, keys=("from", "value"))
    return {"conversations": turns, "images": [path]}


_KNOWN: dict[str, _Format] = {
    "authors": _Format(record=_authors, marker="<image>"),
    "llava": _Format(record=_llava, marker="<image>"),
    "qwen-vl": _Format(record=_qwen_vl, marker="<img>"),
    "ms-swift": _Format(record=_ms_swift, marker="<image>", lines=True),
    "llama-factory": _Format(record=_llama_factory, marker="<image>"),
}


def to_record(
    example: TuningExample,
    format_name: FormatName,
    *,
    number: int,
    prompt: str = "paper",
    image_root: Path | None = None,
) -> dict[str, Any]:
    """One example as another trainer's record: the ranking prompt over the names shown, the list in its right order.

    Args:
        example: The example.
        format_name: One of `FORMATS`.
        number: Its place among the others, from 0; ``authors`` count their records.
        prompt: A key of `rarvision.ranking.RANKING_PROMPTS`, or a template with ``{categories}`` (and ``{k}``). The
            same as is to be asked after training.
        image_root: Paths are written relative to this folder; None writes them absolute.

    Raises:
        OptionError: An unknown format, or a prompt without its field.
        InputError: A name or a path holds what stands for the image in this format; or the image is outside
            ``image_root``.
    """
    if format_name not in _KNOWN:
        raise OptionError(f"unknown format {format_name!r}; expected one of {', '.join(FORMATS)}")
    known = _KNOWN[format_name]
    question = ranking_prompt(example.candidates, RANKING_PROMPTS.get(prompt, prompt))
    answer = format_list(example.target)
    path = _path(example.image, image_root)
    for what, text in (("the question", question), ("the answer", answer), ("the image's path", path)):
        if known.marker in text or known.marker.replace("<", "</") in text:
            raise InputError(
                f"example {example.id!r}: {what} holds {known.marker}, which stands for the image in the format "
                f"{format_name!r}; rename the category or the file"
            )
    return known.record(example, number, path, question, answer)


def convert_manifest(
    manifest: str | Path,
    output: str | Path,
    format_name: FormatName,
    *,
    prompt: str = "paper",
    image_root: str | Path | None = None,
    check_images: bool = True,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Write a manifest's examples in another trainer's format, one at a time; the file appears once it is complete.

    Args:
        manifest: What `build_tuning_data` wrote.
        output: Replaced where it is there already.
        format_name: One of `FORMATS`.
        prompt: As for `to_record`.
        image_root: As for `to_record`.
        check_images: As for `iter_manifest`.
        progress: Called with the number of examples written.

    Returns:
        The number of examples.

    Raises:
        DatasetError: The manifest cannot be read; names the line.
        OptionError: An unknown format, or a prompt without its field.
        InputError: As for `to_record`; or ``output`` is the manifest.
    """
    if format_name not in _KNOWN:
        raise OptionError(f"unknown format {format_name!r}; expected one of {', '.join(FORMATS)}")
    source, path = Path(manifest), Path(output)
    if path.exists() and source.exists() and path.samefile(source):
        raise InputError(f"{path}: is the manifest itself; write to another file")
    root = None if image_root is None else Path(image_root)
    records = (
        to_record(example, format_name, number=number, prompt=prompt, image_root=root)
        for number, example in enumerate(iter_manifest(source, check_images=check_images))
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".part")
    try:
        count = _write(fresh, records, lines=_KNOWN[format_name].lines, progress=progress)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return count


def _write(
    path: Path, records: Iterable[dict[str, Any]], *, lines: bool, progress: Callable[[int], None] | None
) -> int:
    opening, between, closing = ("", "\n", "\n") if lines else ("[\n", ",\n", "\n]\n")
    count = 0
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(opening)
        for record in records:
            file.write((between if count else "") + json.dumps(record))
            count += 1
            if progress is not None:
                progress(count)
        file.write(closing)
    return count


def _path(image: Path, root: Path | None) -> str:
    absolute = Path(os.path.realpath(image.parent), image.name)
    if root is None:
        return absolute.as_posix()
    start = Path(os.path.realpath(root))
    if not absolute.is_relative_to(start):
        raise InputError(f"{absolute}: lies outside of {start}, which paths are to be relative to")
    return absolute.relative_to(start).as_posix()
