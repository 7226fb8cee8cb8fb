"""Any answer of an MLLM -> a full permutation of the candidates, with a status that says how it was obtained.

The candidates are known, so the answer is not parsed and then looked up: the names are looked for where an item may
begin. That is why commas, quotes, brackets, apostrophes and line breaks inside names do no harm. Readings are tried
from the strictest to the loosest:

1. a list exactly as `format_list` writes it;
2. JSON;
3. bracketed lists, with any quoting or none, also cut short: of several, the last of those that name most;
4. items separated by line breaks, commas, ``>`` and the like, numbered or not;
5. names in running text, in the order in which they are first mentioned;
6. option letters or numbers, where the answer consists of those only.

Small typos are repaired in 2 to 4. What is missing is appended in retrieval's order. Only the given candidates are ever
used; nothing is remembered from answer to answer.

What cannot be told apart: names that hold ``', '`` may allow two readings of a list (``repaired``, the first name as
long as possible); names equal up to case, accents, hyphens and spaces are told apart only where one is written exactly;
negations ("not a tulip") count as mentions.

Source: the paper, Appendix B; the faults of its authors' parser are what `tests/test_parsing.py` guards against.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from rarvision.ranking.vocabulary import DOUBLE_QUOTES, SINGLE_QUOTES, Vocabulary, units
from rarvision.types import RankingStatus

__all__ = ["ParsedRanking", "parse_ranking"]

_OPENING, _SEPARATOR, _CLOSING = "['", "', '", "']"
_MAX_STEPS = 50_000
_QUOTES = re.escape(SINGLE_QUOTES + DOUBLE_QUOTES)
_THINKING = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>", re.IGNORECASE)
_SPECIAL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>|</?s>|<(?:eos|bos|end_of_turn)>")
_ANSWER_MARK = re.compile(r"\b(?:final )?(?:answer|ranking)(?: is)?\s{0,3}[:：]", re.IGNORECASE)  # noqa: RUF001
_DECORATION = re.compile(
    rf"[\s{_QUOTES}*_#<>\-–—•·●◦‣▪|,;.({{\[→⇒、，；]"  # noqa: RUF001
    r"|\(?\d{1,4}[.):\]](?!\d)|\(?[A-Za-z][.):\]](?=\s)"
    r"|(?:the|an?|and|then|or)\s(?=\S)"
    r"|(?:first|second|third|fourth|fifth|next|last|final)(?:ly)?[,:]?\s"
    r"|[A-Za-z][\w \-]{0,30}[:：]\s",  # noqa: RUF001
    re.IGNORECASE,
)
_ITEM_END = re.compile(
    rf"[ \t{_QUOTES})\]}}*.!]{{0,20}}"
    r"(?:$|[,;|>\n\]}…→⇒、，；(:=（：]|(?<=\s)(?:and\b|then\b|or\b|&|[-–—]\s|\(?\d{1,3}[.):\]]))"  # noqa: RUF001
)
_ANNOTATION = re.compile(rf"[{_QUOTES}*_]{{0,4}}[ \t]{{0,4}}(?:[(:=（：]|(?<=\s)[-–—]\s)")  # noqa: RUF001
_NEXT_SEPARATOR = re.compile(r"[,;|>\n\]→⇒、，；]")  # noqa: RUF001
_QUOTE_CLOSES = re.compile(rf"[{_QUOTES}]\s{{0,5}}(?=[,;\]}}:\n]|$)")
_MAX_QUOTED = 300
_OPTION_TOKEN = re.compile(r"[A-Za-z]+|\d+")
_OPTION_PUNCTUATION = re.compile(r"[\s,.;:<>()\[\]{}'\"`*=|\-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedRanking:
    """A full permutation read from an answer.

    Attributes:
        order: Permutation of ``range(n)``: positions in the list of names, best first.
        status: ``ranked`` as answered, ``repaired`` where something was completed or corrected, ``fallback`` where
            nothing was recognised (the given order).
        reason: Why it is not ``ranked``; None for ``ranked``.
    """

    order: tuple[int, ...]
    status: RankingStatus
    reason: str | None


@dataclass(slots=True)
class _Reading:
    """What one way of reading found: distinct names in order, and what had to be overlooked."""

    found: list[int] = field(default_factory=list)
    doubled: int = 0
    unknown: int = 0
    misspelt: int = 0
    notes: list[str] = field(default_factory=list)

    def add(self, index: int) -> None:
        if index in self.found:
            self.doubled += 1
        else:
            self.found.append(index)


@dataclass(frozen=True, slots=True)
class _Item:
    """One item of a list: a name, or text that is none; ``counts`` where that text claims to be an item."""

    index: int | None
    text: str
    certain: bool = True
    counts: bool = True
    cut: bool = False


def parse_ranking(answer: str, names: Sequence[str], *, missing_order: Sequence[int] | None = None) -> ParsedRanking:
    r"""Read a ranking of ``names`` from any text whatever; never raises.

    Args:
        answer: What the MLLM wrote.
        names: The candidates as the MLLM saw them. A repeated name is looked for once; its places stay together.
        missing_order: Permutation of ``range(len(names))`` in which names missing from the answer are appended; None
            where ``names`` are in retrieval's order already.

    Returns:
        A full permutation of ``range(len(names))``, its status and the reason.

    Example:
        >>> parse_ranking("1. Bird's eye\n2. black-eyed susan", ["Black-eyed Susan", "Bird's eye", "Rose"])
        ParsedRanking(order=(1, 0, 2), status='repaired', reason='1 of 3 candidates missing')
    """
    places: dict[str, list[int]] = {}
    for place, name in enumerate(names):
        places.setdefault(name, []).append(place)
    distinct = list(places)
    if not distinct:
        return ParsedRanking(order=(), status="ranked", reason=None)
    reading, failure = _read(answer, Vocabulary(distinct))
    problems = list(reading.notes)
    missing = len(distinct) - len(reading.found)
    for count, text in (
        (missing, f"{missing} of {len(distinct)} candidates missing"),
        (reading.doubled, f"{reading.doubled} named more than once"),
        (reading.unknown, f"{reading.unknown} not among the candidates"),
        (reading.misspelt, f"{reading.misspelt} misspelt"),
    ):
        if count:
            problems.append(text)
    status: RankingStatus = "repaired" if problems else "ranked"
    reason: str | None = "; ".join(problems) or None
    if not reading.found:
        status, reason = "fallback", failure
    ranked = [distinct[i] for i in reading.found]
    ranked += [names[place] for place in (missing_order if missing_order is not None else range(len(names)))]
    order = tuple(place for name in dict.fromkeys(ranked) for place in places[name])
    return ParsedRanking(order=order, status=status, reason=reason)


def _read(answer: str, vocabulary: Vocabulary) -> tuple[_Reading, str]:
    """The best reading, and why there is none (for the case that it found nothing)."""
    text, unfinished = _without_thinking(answer)
    for exact in dict.fromkeys((answer, answer.strip(), text.strip())):
        reading = _read_exact(exact, vocabulary)
        if reading is not None:
            return reading, ""
    text = _SPECIAL_TOKEN.sub(" ", text).strip()
    if not text:
        return _Reading(), "the answer ended inside its thinking" if unfinished else "the answer is empty"
    reading = _read_json(text, vocabulary) or _read_lists(text, vocabulary) or _read_loosely(text, vocabulary)
    return reading, f"no candidate recognised in the answer ({len(text)} characters)"


def _without_thinking(answer: str) -> tuple[str, bool]:
    """The answer without its thinking, and whether the thinking was left open."""
    kept: list[str] = []
    start, depth = 0, 0
    for tag in _THINKING.finditer(answer):
        if not tag[1]:
            if depth == 0:
                kept.append(answer[start : tag.start()])
            depth += 1
        elif depth <= 1:
            if depth == 0:  # the opening tag stood in the prompt
                kept.clear()
            depth, start = 0, tag.end()
        else:
            depth -= 1
    if depth == 0:
        kept.append(answer[start:])
    return " ".join(kept), depth > 0


def _read_exact(text: str, vocabulary: Vocabulary) -> _Reading | None:
    """A list exactly as `format_list` writes it, every name once."""
    if not (text.startswith(_OPENING) and text.endswith(_CLOSING)):
        return None
    solutions = list(islice(_segmentations(text, vocabulary), 2))
    if not solutions:
        return None
    reading = _Reading(found=solutions[0])
    if len(solutions) > 1:
        reading.notes.append("the list can be read in more than one way")
    return reading


def _segmentations(text: str, vocabulary: Vocabulary) -> Iterator[list[int]]:
    """All ways to read ``text`` as a list of every name once, long names first; gives up after many steps."""
    n = len(vocabulary.names)
    used, path = [False] * n, list[int]()
    choices = [iter(vocabulary.raw_matches(text, len(_OPENING)))]
    for _ in range(_MAX_STEPS):
        choice = next(choices[-1], None)
        if choice is None:
            choices.pop()
            if not choices:
                return
            used[path.pop()] = False
            continue
        index, end = choice
        if used[index]:
            continue
        if len(path) + 1 == n:
            if text[end:] == _CLOSING:
                yield [*path, index]
        elif text.startswith(_SEPARATOR, end):
            used[index] = True
            path.append(index)
            choices.append(iter(vocabulary.raw_matches(text, end + len(_SEPARATOR))))


def _read_json(text: str, vocabulary: Vocabulary) -> _Reading | None:
    """JSON: a list of names, objects, or an object of names with ranks or scores."""
    if '"' not in text:
        return None
    for start in sorted(i for i in (text.find("{"), text.find("[")) if i >= 0):
        try:
            value, _ = json.JSONDecoder().raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, list) and "\\" not in text and all(isinstance(item, str) for item in value):
            continue  # a plain list, and perhaps not the only one
        items = [_Item(None, string, counts=is_item) for string, is_item in _json_strings(value)]
        reading = _settle(items, vocabulary)
        if reading.found:
            return reading
    return None


def _json_strings(value: Any) -> Iterator[tuple[str, bool]]:
    """All strings in order of the ranking that they express, and whether each stands as an item of a list."""
    stack: list[tuple[Any, bool]] = [(value, False)]
    while stack:
        node, in_list = stack.pop()
        if isinstance(node, str):
            yield node, in_list
        elif isinstance(node, list):
            stack += [(child, isinstance(child, str)) for child in reversed(node)]
        elif isinstance(node, dict):
            pairs = list(node.items())
            numbers = [v for v in node.values() if isinstance(v, int | float) and not isinstance(v, bool)]
            if len(numbers) == len(pairs) > 1 and all(v == v for v in numbers):  # noqa: PLR0124 - NaN is not itself
                is_rank = sorted(numbers) == list(range(1, len(pairs) + 1))
                pairs.sort(key=lambda pair: pair[1] if is_rank else -pair[1])
            elif all(key.isdecimal() and len(key) < 10 for key in node):
                pairs.sort(key=lambda pair: int(pair[0]))
            stack += [(part, False) for pair in reversed(pairs) for part in reversed(pair)]


def _read_lists(text: str, vocabulary: Vocabulary) -> _Reading | None:
    """Bracketed lists; of several, the last of those that name most."""
    text_units = units(text)
    readings: list[_Reading] = []
    start = text.find("[")
    while start >= 0:
        items, end = _split(text, text_units, start + 1, vocabulary, bracketed=True)
        reading = _settle(items, vocabulary)
        quoted = text[start + 1 : start + 2] in {*SINGLE_QUOTES, *DOUBLE_QUOTES}
        if len(reading.found) > 1 or (reading.found and (quoted or len(vocabulary.names) == 1)):
            readings.append(reading)
        start = text.find("[", max(end, start + 1))
    if not readings:
        return None
    most = max(len(reading.found) for reading in readings)
    best = [reading for reading in readings if len(reading.found) == most]
    if any(reading.found != best[-1].found for reading in best):
        best[-1].notes.append("several lists, the last one taken")
    return best[-1]


def _read_loosely(text: str, vocabulary: Vocabulary) -> _Reading:
    """Items or running text, from an "answer:" mark on where there is one; then options."""
    marks = list(_ANSWER_MARK.finditer(text))
    whole = _read_items_or_prose(text, vocabulary)
    if marks:
        tail = _read_items_or_prose(text[marks[-1].end() :], vocabulary)
        if 0 < len(tail.found) < len(whole.found):
            tail.notes.append("named before the answer only, or not at all")
            tail.found += [i for i in whole.found if i not in tail.found]
        if tail.found:
            return tail
    return whole if whole.found else _read_options(text, len(vocabulary.names))


def _read_items_or_prose(text: str, vocabulary: Vocabulary) -> _Reading:
    text_units = units(text)
    items = _settle(_split(text, text_units, 0, vocabulary, bracketed=False)[0], vocabulary)
    prose = _Reading(found=list(dict.fromkeys(vocabulary.mentions(text, text_units))))
    return prose if len(prose.found) > len(items.found) else items


def _split(
    text: str, text_units: Sequence[str], start: int, vocabulary: Vocabulary, *, bracketed: bool
) -> tuple[list[_Item], int]:
    """Items from ``start`` on, to the bracket that closes or to the end, and where that is."""
    items: list[_Item] = []
    position, depth, length = start, 1, len(text)
    remark_end = -1  # where the line ends on which the last name is followed by a remark
    while position < length:
        match = _match_item(text, text_units, position, vocabulary)
        if match is not None:
            items.append(_Item(match[0], text[position : match[1]], certain=match[2]))
            position = match[1]
            remark_end = -1
            if _ANNOTATION.match(text, position):
                remark_end = end_of_line if (end_of_line := text.find("\n", position)) >= 0 else length
            while position < length and text[position] in SINGLE_QUOTES + DOUBLE_QUOTES:
                position += 1
            continue
        character = text[position]
        if character == "[":
            depth += 1
        elif character == "]":
            depth -= 1
            position += 1
            if bracketed and depth == 0:
                return items, position
            continue
        decoration = _DECORATION.match(text, position)
        if decoration is not None or character in ")}":
            position = decoration.end() if decoration is not None else position + 1
            continue
        end = _item_end(text, position)
        items.append(_other(text, position, end, bracketed=bracketed, remark=position < remark_end))
        position = end
    return items, length


def _match_item(
    text: str, text_units: Sequence[str], position: int, vocabulary: Vocabulary
) -> tuple[int, int, bool] | None:
    """The longest name that begins here and ends where an item may end."""
    for index, end, certain in vocabulary.matches(text, text_units, position):
        if _ITEM_END.match(text, end):
            return index, end, certain
    return None


def _item_end(text: str, position: int) -> int:
    """Where an item that is no name ends: at its closing quote, or before the next separator."""
    if position and text[position - 1] in SINGLE_QUOTES + DOUBLE_QUOTES:
        closing = _QUOTE_CLOSES.search(text, position, min(len(text), position + _MAX_QUOTED))
        if closing is not None:
            return max(closing.start(), position + 1)
    separator = _NEXT_SEPARATOR.search(text, position + 1)
    return separator.start() if separator is not None else len(text)


def _other(text: str, position: int, end: int, *, bracketed: bool, remark: bool) -> _Item:
    """Text that is no name; it counts as an item unless it is a remark, a number, a key or a sentence."""
    content = text[position:end].strip().strip(SINGLE_QUOTES + DOUBLE_QUOTES + "*.)}] ")
    follows = text[end : end + 2].lstrip(SINGLE_QUOTES + DOUBLE_QUOTES)[:1]
    is_name_like = any(c.isalpha() for c in content) and follows != ":" and not remark
    if not bracketed:
        is_name_like = is_name_like and len(content.split()) <= 5 and text[end - 1] not in ".!?:"
    return _Item(None, content, counts=is_name_like, cut=end == len(text))


def _settle(items: Sequence[_Item], vocabulary: Vocabulary) -> _Reading:
    """Items -> distinct names in order: misspelt ones guessed, doubled and unknown ones counted."""
    reading = _Reading()
    used = {item.index for item in items if item.index is not None}
    for item in items:
        index, certain = item.index, item.certain
        if index is None:
            index, certain = vocabulary.lookup(item.text) or (vocabulary.guess(item.text, used, cut=item.cut), False)
        if index is None:
            reading.unknown += item.counts
            continue
        used.add(index)
        reading.misspelt += not certain and index not in reading.found
        reading.add(index)
    return reading


def _read_options(text: str, n: int) -> _Reading:
    """Letters (A is the first candidate) or numbers from 1, where the answer holds nothing else."""
    reading = _Reading()
    tokens = _OPTION_TOKEN.findall(text)
    if not tokens or len(tokens) > 4 * n + 4 or _OPTION_PUNCTUATION.fullmatch(_OPTION_TOKEN.sub("", text)) is None:
        return reading
    numbers = [int(token) for token in tokens if token.isdecimal() and len(token) < 6]
    letters = [ord(token.upper()) - ord("A") for token in tokens if len(token) == 1 and not token.isdecimal()]
    if len(numbers) + len(letters) != len(tokens):
        return reading
    if (
        letters and tokens[0].isdecimal() and numbers == list(range(1, len(numbers) + 1))
    ):  # "1. B 2. A": the numbers count
        numbers = []
    if letters and numbers:
        return reading
    if 0 in numbers and set(numbers) == set(range(n)):
        indices = numbers
    else:
        indices = letters or [number - 1 for number in numbers]
    if all(0 <= index < n for index in indices):
        for index in indices:
            reading.add(index)
    return reading
