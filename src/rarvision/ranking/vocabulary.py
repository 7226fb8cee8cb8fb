"""Candidate names as a vocabulary: finding them in text, whatever their case, accents, hyphens and quotes.

Text is never rewritten: every character gets a *unit*, its normalised form, and names are matched unit by unit, so that
positions always count in the text as it came. All searches are linear in the text times the longest name.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any

__all__ = ["DOUBLE_QUOTES", "SINGLE_QUOTES", "Vocabulary", "units"]

SINGLE_QUOTES = "'`´‘’‚‛ʼ′＇"  # noqa: RUF001 - these look alike: that is the point
DOUBLE_QUOTES = '"“”„‟«»″「」『』《》〈〉＂'  # noqa: RUF001
_NEWLINES = "\n\r\v\f\x85\u2028\u2029"
_DASHES = "-_‐‑‒–—−"  # noqa: RUF001
_END = ""  # the trie's key for "a name ends here"; no unit's character is empty

_MIN_FUZZY_LENGTH = 4
_MIN_RATIO = 0.85
_MIN_WORD_RATIO = 0.7
_MIN_JOINED_RATIO = 0.92
_MIN_RATIO_MARGIN = 0.02
_MAX_FUZZY_COMPARISONS = 20_000
_UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF))
_UNSPACED_HIGH = ((0xAC00, 0xD7AF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))

_Trie = dict[str, Any]


@lru_cache(maxsize=8192)
def _unit(character: str) -> str:
    if character in _NEWLINES:
        return "\n"
    if character.isspace() or character in _DASHES:
        return " "
    if character in SINGLE_QUOTES:
        return "'"
    if character in DOUBLE_QUOTES:
        return '"'
    if unicodedata.category(character) == "Cf":
        return ""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    return "".join(c for c in folded if not 0x300 <= ord(c) <= 0x36F).replace(" ", "")


def units(text: str) -> list[str]:
    """The normalised form of each character: case, accents, width, quotes; a run of spaces and hyphens is one space.

    A character that carries nothing (an accent of its own, the rest of a run, a backslash before a quote) becomes the
    empty string; a run that holds a line break becomes a line break.
    """
    out = [_unit(character) for character in text]
    run: int | None = None
    for i, unit in enumerate(out):
        if text[i] == "\\" and i + 1 < len(text) and text[i + 1] in "'\"`":
            out[i] = ""
        elif unit in {" ", "\n"}:
            if run is None:
                run = i
            else:
                out[i] = ""
                if unit == "\n":
                    out[run] = "\n"
        elif unit:
            run = None
    return out


def _key(text: str) -> str:
    return "".join(units(text)).strip()


def _insert(trie: _Trie, key: Iterable[str], index: int) -> None:
    node = trie
    for character in key:
        node = node.setdefault(character, {})
    node.setdefault(_END, []).append(index)


def _is_unspaced(character: str) -> bool:
    """Whether the script runs words together (Chinese, Japanese, Korean's particles, Thai, …)."""
    code = ord(character)
    return code >= 0x0E00 and any(low <= code <= high for low, high in _UNSPACED + _UNSPACED_HIGH)


def _joins(text: str, i: int) -> bool:
    """Whether a word goes on from character ``i - 1`` to ``i``."""
    if not 0 < i < len(text):
        return False
    left, right = text[i - 1], text[i]
    if right in "-_" and i + 1 < len(text):
        right = text[i + 1]
    elif left in "-_" and i >= 2:
        left = text[i - 2]
    return left.isalnum() and right.isalnum() and not (_is_unspaced(left) or _is_unspaced(right))


def _ratio(a: str, b: str) -> float:
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    if matcher.real_quick_ratio() < _MIN_RATIO or matcher.quick_ratio() < _MIN_RATIO:
        return 0.0
    return matcher.ratio()


def _resemblance(a: str, b: str) -> float:
    """0 to 1: how alike two normalised names are; 0 where they differ by more than small typos.

    Fine-grained names differ by one number or one word (Boeing 707-320 and 707-300), so numbers must be equal and each
    word must resemble its counterpart.
    """
    if re.findall(r"\d+", a) != re.findall(r"\d+", b):
        return 0.0
    words_a, words_b = a.split(), b.split()
    if len(words_a) != len(words_b):
        ratio = _ratio("".join(words_a), "".join(words_b))
        return ratio if ratio >= _MIN_JOINED_RATIO else 0.0
    for word_a, word_b in zip(words_a, words_b, strict=True):
        if word_a != word_b and (
            min(len(word_a), len(word_b)) < 3 or SequenceMatcher(None, word_a, word_b).ratio() < _MIN_WORD_RATIO
        ):
            return 0.0
    ratio = _ratio(a, b)
    return ratio if ratio >= _MIN_RATIO else 0.0


class Vocabulary:
    """Distinct names, to be found in text exactly, up to normalisation, or up to small typos.

    Args:
        names: Distinct names; any text, empty included.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._keys = [_key(name) for name in names]
        self._raw = {name: i for i, name in enumerate(names)}
        self._by_key: dict[str, list[int]] = {}
        self._trie: _Trie = {}
        self._raw_trie: _Trie = {}
        self._comparisons = 0
        for i, (name, key) in enumerate(zip(self.names, self._keys, strict=True)):
            _insert(self._raw_trie, name, i)
            if key:
                self._by_key.setdefault(key, []).append(i)
                for form in {key, key.replace("\n", " ")}:
                    _insert(self._trie, form, i)

    def raw_matches(self, text: str, start: int) -> list[tuple[int, int]]:
        """Names that stand at ``start`` character for character: (index, end), longest first."""
        node = self._raw_trie
        found = [(i, start) for i in node.get(_END, ())]
        for position in range(start, len(text)):
            child = node.get(text[position])
            if child is None:
                break
            node = child
            found += [(i, position + 1) for i in node.get(_END, ())]
        return found[::-1]

    def matches(self, text: str, text_units: Sequence[str], start: int) -> list[tuple[int, int, bool]]:
        """Names that begin at ``start`` up to normalisation: (index, end, certain), longest first.

        ``certain`` is False where several names are the same up to normalisation and none is written exactly.
        """
        if start >= len(text) or not text_units[start]:
            return []
        node = self._trie
        ends: list[tuple[int, list[int]]] = []
        for position in range(start, len(text)):
            for character in text_units[position]:
                child = node.get(character)
                if child is None:
                    return self._resolve(text, start, ends)
                node = child
            if _END in node:
                ends.append((position + 1, node[_END]))
        return self._resolve(text, start, ends)

    def _resolve(self, text: str, start: int, ends: list[tuple[int, list[int]]]) -> list[tuple[int, int, bool]]:
        out: list[tuple[int, int, bool]] = []
        for end, indices in reversed(ends):
            exact = self._raw.get(text[start:end])
            if exact is not None and exact in indices:
                out.append((exact, end, True))
            else:
                out += [(i, end, len(indices) == 1) for i in indices]
        return out

    def mentions(self, text: str, text_units: Sequence[str]) -> list[int]:
        """Names in running text, in the order in which they occur: whole words, the longest name wins.

        Names of one or two letters must be written exactly.
        """
        found: list[int] = []
        position = 0
        while position < len(text):
            end = position + 1
            if not _joins(text, position):
                for index, stop, _ in self.matches(text, text_units, position):
                    short = len(self._keys[index]) <= 2 and text[position:stop] != self.names[index]
                    if not short and not _joins(text, stop):
                        found.append(index)
                        end = stop
                        break
            position = end
        return found

    def lookup(self, text: str) -> tuple[int, bool] | None:
        """The name that is ``text`` as a whole, exactly or up to normalisation: (index, certain)."""
        exact = self._raw.get(text)
        if exact is not None:
            return exact, True
        indices = self._by_key.get(_key(text)) or self._by_key.get(_key(text).replace("\n", " "))
        return (indices[0], len(indices) == 1) if indices else None

    def guess(self, text: str, used: set[int], *, cut: bool = False) -> int | None:
        """The one unused name that ``text`` misspells, None where there is none or more than one.

        Args:
            text: What was written.
            used: Names that are taken.
            cut: The text ends here, so it may also be the beginning of a name.
        """
        key = _key(text)
        if len(key) < _MIN_FUZZY_LENGTH or self._comparisons > _MAX_FUZZY_COMPARISONS:
            return None
        if cut:
            begun = [i for i, name in enumerate(self._keys) if i not in used and name.startswith(key)]
            if len(begun) == 1:
                return begun[0]
        best, best_ratio, second = None, 0.0, 0.0
        for i, name in enumerate(self._keys):
            if i in used or len(name) < _MIN_FUZZY_LENGTH or not 0.7 <= len(key) / len(name) <= 1.4:
                continue
            self._comparisons += 1
            ratio = _resemblance(key, name)
            if ratio > best_ratio:
                best, best_ratio, second = i, ratio, best_ratio
            elif ratio > second:
                second = ratio
        return best if best is not None and best_ratio - second >= _MIN_RATIO_MARGIN else None
