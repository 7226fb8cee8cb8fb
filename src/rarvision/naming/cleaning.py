"""From what a model or a caption says to names: reading answers, joining spellings, finding nouns."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["canonical_names", "name_key", "phrases_of", "read_names"]

_MOST_WORDS = 8
_LEADS = re.compile(
    r"^(?:answer\s*:|(?:the|this)\s+(?:image|picture|photo)\s+(?:shows|depicts|is\s+of|contains)|(?:it|this|that)\s+is"
    r"|(?:it|this|that)\s+(?:appears|seems)\s+to\s+be|(?:a|the)\s+(?:photo|picture|image)\s+of|i\s+(?:see|think\s+it\s+is))\s+",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"^(?:an?|the)\s+", re.IGNORECASE)
_ITEM = re.compile(r"^\s*(?:[-*•]|\(?\d{1,2}[.):]|[a-z][.)])\s*")
_QUOTES = "\"'`“”„‘’«»[]{}*"  # noqa: RUF001 - quotes as models write them
_REFUSAL = re.compile(r"\b(?:cannot|can['’]t|unable|sorry|not\s+(?:able|sure|possible))\b", re.IGNORECASE)  # noqa: RUF001 - as models write it
_NOTHING = {"unknown", "none", "n/a", "i don't know", "not sure", "unsure", "no", "yes"}
_SENTENCE = re.compile(r"^(?:(?:i|we)\s|there\s+(?:is|are)\s|as\s+an\s+ai\b)", re.IGNORECASE)
_ENDINGS = (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("xes", "x"), ("ses", "s"))


def read_names(answer: str, most: int = 1) -> tuple[str, ...]:
    r"""The names in an answer: one a line, numbered, or with commas; without articles, quotes and what leads to them.

    Refusals ("I cannot tell"), whole sentences and answers without letters hold no name.

    Args:
        answer: As a model wrote it.
        most: How many are kept; with 1, a comma is a part of the name only in so far as what comes before it counts.

    Example:
        >>> read_names("This is a Tree Sparrow.")
        ('Tree Sparrow',)
        >>> read_names("1. house finch\n2. Cassin's finch\n3. purple finch", most=2)
        ('house finch', "Cassin's finch")
    """
    found: dict[str, str] = {}
    for line in answer.strip().strip("[]").splitlines():
        for part in re.split(r"[,;]\s+|,(?=['\"])", line):
            name = _one(part)
            if name is not None:
                found.setdefault(name_key(name), name)
    return tuple(found.values())[:most]


def _one(text: str) -> str | None:
    text = _ITEM.sub("", text).strip().strip(_QUOTES).strip()
    before = None
    while before != text:
        before = text
        text = _ARTICLE.sub("", _LEADS.sub("", text)).strip()
    text = re.sub(r"\s+", " ", text).strip(" .!?:;,").strip(_QUOTES).strip()
    words = text.split()
    if (
        not words
        or len(words) > _MOST_WORDS
        or _REFUSAL.search(text)
        or _SENTENCE.match(text)
        or text.casefold() in _NOTHING
        or not any(map(str.isalpha, text))
    ):
        return None
    return text


def name_key(name: str) -> str:
    """What spellings of one name share: no case, hyphens or underscores, the last word in the singular.

    Example:
        >>> name_key("Tree-Sparrows") == name_key("tree sparrow")
        True
    """
    words = re.sub(r"[-_\s]+", " ", name.casefold()).strip().split(" ")
    last = words[-1]
    for plural, singular in _ENDINGS:
        if len(last) > len(plural) + 1 and last.endswith(plural):
            last = last.removesuffix(plural) + singular
            break
    else:
        if len(last) > 3 and last.endswith("s") and not last.endswith(("ss", "us", "is")):
            last = last[:-1]
    return " ".join([*words[:-1], last])


def canonical_names(names: Iterable[str]) -> dict[str, str]:
    """For each spelling the one that stands for all of them: the most frequent, of several the first."""
    counts: dict[str, Counter[str]] = {}
    for name in names:
        counts.setdefault(name_key(name), Counter())[name] += 1
    return {name: spellings.most_common(1)[0][0] for spellings in counts.values() for name in spellings}


_STOP = frozenset(
    re.findall(
        r"\w+",
        """
        a an and are as at be been being but by can could did do does during each few for from had has have he her
        here his how i if in into is it its just like looking made many may me more most my near next no not of off
        on one or other our out over own photo photograph picture image images shot view closeup close up background
        isolated stock free royalty sale new best top very she so some such than that the their them then there
        these they this those through to too two three under until us was we were what when where which while who
        will with you your sitting standing walking flying eating running lying holding wearing showing seen taken
        against front back side around behind above below between along across http https www com jpg png html
        """,
    )
)


def phrases_of(
    caption: str, *, most_words: int = 3, nouns: Mapping[str, str] | frozenset[str] | None = None
) -> list[str]:
    """Candidate names in a caption: runs of words that are no function words, and all parts of them up to a length.

    Without a tagger of parts of speech, what is a noun is told by a list: with ``nouns`` a phrase counts where the
    list holds it, or its last word where it has several.

    Args:
        caption: A text.
        most_words: Of a phrase.
        nouns: Names by `name_key`, or a set of such keys; None lets all phrases count.

    Example:
        >>> phrases_of("a photo of a tree sparrow on the fence")
        ['tree', 'tree sparrow', 'sparrow', 'fence']
    """
    plain = re.sub(r"https?://\S+|\S+@\S+|<[^>]*>|[#@]\w+", " . ", caption)
    found: dict[str, None] = {}
    for part in re.split(r"[^\w\s'-]+", plain.casefold()):
        run: list[str] = []
        for word in [*part.split(), ""]:
            if word and word not in _STOP and not word.isdigit() and len(word) > 1:
                run.append(word)
                continue
            for start in range(len(run)):
                for end in range(start + 1, min(len(run), start + most_words) + 1):
                    phrase = " ".join(run[start:end])
                    if (
                        nouns is None
                        or name_key(phrase) in nouns
                        or (end - start > 1 and name_key(run[end - 1]) in nouns)
                    ):
                        found[phrase] = None
            run = []
    return list(found)


def distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Without repeated spellings; the first one of each stays."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(name_key(name), name)
    return tuple(found.values())
