"""Vocabulary-free recognition: images are named, a memory is built of the names, and the one pipeline recognises."""

from __future__ import annotations

from rarvision.naming.base import Guess, Namer
from rarvision.naming.cleaning import name_key, phrases_of, read_names
from rarvision.naming.discovery import Discovery, GuessedImage, NamedImage, Voting, guess_names, vote_names
from rarvision.naming.evaluating import NamingReport, evaluate_namer, evaluate_preset
from rarvision.naming.memories import NamedMemory, build_named_memory, discover, named_recognizer
from rarvision.naming.namers import (
    AttributeNamer,
    CaptionNamer,
    ChatGuesser,
    DirectNamer,
    Guesser,
    VocabularyNamer,
    WordGuesser,
)
from rarvision.naming.presets import NAMING_PRESETS, NamingPreset, Sources, make_namer
from rarvision.naming.wordlists import read_captions, read_words, wordnet_nouns

__all__ = [
    "NAMING_PRESETS",
    "AttributeNamer",
    "CaptionNamer",
    "ChatGuesser",
    "DirectNamer",
    "Discovery",
    "Guess",
    "GuessedImage",
    "Guesser",
    "NamedImage",
    "NamedMemory",
    "Namer",
    "NamingPreset",
    "NamingReport",
    "Sources",
    "VocabularyNamer",
    "Voting",
    "WordGuesser",
    "build_named_memory",
    "discover",
    "evaluate_namer",
    "evaluate_preset",
    "guess_names",
    "make_namer",
    "name_key",
    "named_recognizer",
    "phrases_of",
    "read_captions",
    "read_names",
    "read_words",
    "vote_names",
    "wordnet_nouns",
]
