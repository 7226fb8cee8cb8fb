"""Confines an answer to a list of given names: which tokens may come next, for any tokenizer that spells bytes.

A permutation of names is written byte by byte by a small automaton; the tokens allowed at a step are those whose bytes
are the start of what the automaton may still write. The work a step is a few hundred binary searches, whatever the
size of the vocabulary.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from rarvision.chat.base import ListConstraint
from rarvision.errors import ChatUnsupportedError, OptionError

__all__ = ["ListAutomaton", "TokenBytes", "TokenSpeller", "token_bytes"]

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>\Z")
_PROBE = "['gold finch', \"Wilson's b\"]"


@lru_cache(maxsize=1)
def _byte_level_alphabet() -> dict[str, int]:
    """The 256 printable characters by which byte-level BPE writes bytes (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + n): byte for n, byte in enumerate(others)})
    return table


def token_bytes(tokenizer: Any) -> dict[int, bytes]:
    """What each token adds to the decoded text, in bytes; special tokens and tokens that add nothing are left out.

    Byte-level BPE (GPT-2, Qwen, Llama 3), and pieces with ``▁`` for spaces and ``<0x..>`` bytes (Llama 2, Gemma,
    Mistral) are read from the vocabulary; anything else is decoded token by token behind an anchor.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    decoder = json.dumps(json.loads(backend.to_str())["decoder"], ensure_ascii=False) if backend is not None else ""
    added = tokenizer.added_tokens_decoder
    vocab = {index: token for token, index in tokenizer.get_vocab().items() if index not in added}
    if '"ByteLevel"' in decoder:
        table = {index: _from_byte_level(token) for index, token in vocab.items()}
    elif "▁" in decoder:
        table = {index: _from_pieces(token) for index, token in vocab.items()}
    else:
        anchor = tokenizer.encode("x", add_special_tokens=False)
        start = tokenizer.decode(anchor)
        texts = {index: tokenizer.decode([*anchor, index]) for index in vocab}
        table = {
            index: text[len(start) :].encode()
            for index, text in texts.items()
            if text.startswith(start) and "\ufffd" not in text
        }
    table.update((index, token.content.encode()) for index, token in added.items())
    special = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
    return {index: text for index, text in table.items() if text and index not in special}


def _from_byte_level(token: str) -> bytes:
    alphabet = _byte_level_alphabet()
    return bytes(alphabet[char] for char in token) if all(char in alphabet for char in token) else b""


def _from_pieces(token: str) -> bytes:
    byte = _BYTE_TOKEN.match(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace("▁", " ").encode()


class TokenBytes:
    """A tokenizer's tokens by their bytes, sorted, so that "which tokens start like this?" is a binary search.

    Attributes:
        lead: Bytes that the tokenizer puts in front of a text (a space, for sentencepiece's ``▁``), else empty.
        spells: Whether encoding and joining the tokens' bytes gives the text back; without it nothing can be
            constrained.
        complete: Whether every single byte is a token, so that any text can be written to its end.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.by_id: Mapping[int, bytes] = token_bytes(tokenizer)
        by_bytes: dict[bytes, list[int]] = {}
        for index, text in self.by_id.items():
            by_bytes.setdefault(text, []).append(index)
        self.by_bytes: Mapping[bytes, list[int]] = by_bytes
        self.sorted: list[bytes] = sorted(by_bytes)
        self.complete = all(bytes([byte]) in by_bytes for byte in range(0xF5) if byte not in (0xC0, 0xC1))
        spelled = b"".join(self.by_id.get(i, b"\xff") for i in tokenizer.encode(_PROBE, add_special_tokens=False))
        self.spells = spelled.endswith(_PROBE.encode()) and not spelled.removesuffix(_PROBE.encode()).strip()
        self.lead = spelled.removesuffix(_PROBE.encode()) if self.spells else b""

    def any_starts_with(self, start: bytes) -> bool:
        """Whether a token begins with these bytes."""
        at = bisect_left(self.sorted, start)
        return at < len(self.sorted) and self.sorted[at].startswith(start)


_Config = tuple[int, bytes]
"""What may still be written: the names used so far (a bit each), and the bytes due before the next choice."""

_DONE: bytes = b""


@dataclass(frozen=True, kw_only=True)
class ListAutomaton:
    """Writes the names of a constraint, each once, in any order.

    A state is a set of configurations: names may begin alike ("gold finch", "gold finch's"), and only what follows
    tells which is meant.

    Attributes:
        opening: What comes before the first name; several where a leading space is optional.
        names: The names.
        separator: What comes between two names.
        closing: What comes after the last.
    """

    opening: tuple[bytes, ...]
    names: tuple[bytes, ...]
    separator: bytes
    closing: bytes

    @classmethod
    def of(cls, constraint: ListConstraint, lead: bytes = b"") -> ListAutomaton:
        """Encode a constraint; raises `OptionError` for no, empty or repeated names."""
        names = constraint.names
        if not names or len(set(names)) != len(names) or not all(names):
            raise OptionError(f"a list constraint needs distinct, non-empty names, got {list(names)!r}")
        if not constraint.separator or not constraint.closing:
            raise OptionError("a list constraint needs a separator and a closing: without, its end cannot be told")
        opening = constraint.opening.encode()
        return cls(
            opening=tuple(dict.fromkeys([opening, lead + opening])),
            names=tuple(name.encode() for name in names),
            separator=constraint.separator.encode(),
            closing=constraint.closing.encode(),
        )

    @property
    def longest(self) -> int:
        """Bytes of the finished list: no answer needs more tokens."""
        gaps = len(self.separator) * (len(self.names) - 1)
        return len(self.opening[-1]) + sum(map(len, self.names)) + gaps + len(self.closing)

    def stretches(self) -> Iterable[tuple[bytes, ...]]:
        """Every stretch between two choices, in its alternative spellings: all of them must be writable."""
        for name in self.names:
            yield tuple(opening + name for opening in self.opening)
            if len(self.names) > 1:
                yield (self.separator + name,)
        yield (self.closing,)

    def start(self) -> frozenset[_Config]:
        """The state before the first byte."""
        return frozenset((1 << i, opening + name) for i, name in enumerate(self.names) for opening in self.opening)

    def following(self, used: int) -> Iterable[_Config]:
        """The choices after a name has been written."""
        if used == 1 << len(self.names):
            yield used, _DONE
        elif used == (1 << len(self.names)) - 1:
            yield 1 << len(self.names), self.closing
        else:
            for i, name in enumerate(self.names):
                if not used >> i & 1:
                    yield used | 1 << i, self.separator + name

    def advance(self, state: frozenset[_Config], text: bytes) -> frozenset[_Config]:
        """The state after these bytes; empty where they do not fit."""
        reached: set[_Config] = set()
        todo = [(config, text) for config in state]
        while todo:
            (used, due), rest = todo.pop()
            if len(rest) < len(due):
                if due.startswith(rest):
                    reached.add((used, due[len(rest) :]))
            elif due and rest.startswith(due):
                for config in self.following(used):
                    if config[1] is _DONE and rest == due:
                        reached.add(config)
                    else:
                        todo.append((config, rest[len(due) :]))
        return frozenset(reached)

    def done(self, state: frozenset[_Config]) -> bool:
        """Whether the list is complete."""
        return any(due == _DONE for _, due in state)


class TokenSpeller:
    """The tokens that may come next, of one answer under construction.

    Raises:
        ChatUnsupportedError: the tokenizer cannot write a name (a vocabulary of words meets an unknown one).
    """

    def __init__(self, tokens: TokenBytes, automaton: ListAutomaton) -> None:
        self._tokens = tokens
        self._automaton = automaton
        self._spellable: dict[bytes, bool] = {_DONE: True}
        if not tokens.complete:
            for spellings in automaton.stretches():
                if not any(self._can_spell(text) for text in spellings):
                    raise ChatUnsupportedError(
                        f"the model's vocabulary cannot write {spellings[0].decode()!r}, so no answer can be confined "
                        f"to it; ask without a constraint, or use the strategy 'choice'"
                    )
        self._allowed: tuple[frozenset[_Config], list[int]] | None = None
        self.state = automaton.start()

    @property
    def done(self) -> bool:
        """Whether only the end of the answer may follow."""
        return self._automaton.done(self.state)

    def push(self, token: int) -> None:
        """Take the token that was chosen."""
        self.state = self._automaton.advance(self.state, self._tokens.by_id.get(token, b""))

    def allowed(self) -> list[int]:
        """Ids of the tokens that may come next, ascending; empty once the list is complete."""
        if self._allowed is None or self._allowed[0] != self.state:
            self._allowed = (self.state, sorted(self._search()))
        return self._allowed[1]

    def _search(self) -> set[int]:
        """Walk every way on for as long as a token begins like it."""
        tokens, automaton = self._tokens, self._automaton
        allowed: set[int] = set()
        todo: list[tuple[bytes, int, bytes]] = [(b"", used, due) for used, due in self.state]
        while todo:
            written, used, due = todo.pop()
            for end in range(1, len(due) + 1):
                text = written + due[:end]
                if not tokens.any_starts_with(text):
                    break
                if text in tokens.by_bytes and (tokens.complete or self._can_spell(due[end:])):
                    allowed.update(tokens.by_bytes[text])
            else:
                todo.extend((written + due, *config) for config in automaton.following(used) if config[1] != _DONE)
        return allowed

    def _can_spell(self, text: bytes) -> bool:
        """Whether tokens exist that write exactly this (needed only where single bytes are not tokens)."""
        known = self._spellable
        if text in known:
            return known[text]
        for start in range(len(text) - 1, -1, -1):
            rest = text[start:]
            if rest not in known:
                known[rest] = any(
                    rest[:end] in self._tokens.by_bytes and known[rest[end:]] for end in range(1, len(rest) + 1)
                )
        return known[text]


class ListLogitsProcessor:
    """A transformers logits processor: keeps the scores of allowed tokens, sets all others to minus infinity."""

    def __init__(self, spellers: Sequence[TokenSpeller | None], *, prompt_tokens: int, eos_ids: Sequence[int]) -> None:
        self._spellers = spellers
        self._prompt_tokens = prompt_tokens
        self._eos_ids = list(eos_ids)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        import torch

        masked = torch.full_like(scores, -torch.inf)
        latest = input_ids[:, -1].tolist() if input_ids.shape[1] > self._prompt_tokens else None
        for row, speller in enumerate(self._spellers):
            if speller is None:
                masked[row] = scores[row]
                continue
            if latest is not None and not speller.done:
                speller.push(latest[row])
            ids = torch.as_tensor(
                np.asarray(self._eos_ids if speller.done else speller.allowed(), dtype=np.int64), device=scores.device
            )
            masked[row, ids] = scores[row, ids]
        return masked
