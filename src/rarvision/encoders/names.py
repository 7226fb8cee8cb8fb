"""Names as vectors, to say how alike two names are: by spelling, by a sentence encoder, by an encoder's text tower."""

from __future__ import annotations

import abc
import json
import unicodedata
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float

from rarvision.checkpoints import checkpoint_file, checkpoint_source, without_weight_bars
from rarvision.encoders.base import Encoder, batch_size_of
from rarvision.encoders.transformers import device_of
from rarvision.errors import EncoderError, InputError

__all__ = ["NameEncoder", "SentenceEncoder", "SpellingEncoder", "TextTower", "open_name_encoder"]

_SPELLING_DIM = 2048
_PLAIN_MODULES = ("Transformer", "Pooling", "Normalize")


class NameEncoder(abc.ABC):
    """Turns names into vectors whose cosine says how alike they are: what the sACC is computed with.

    An author writes `name` and `_encode`; checks and normalising follow.
    """

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """What is printed beside a figure: figures by different encoders are not comparable."""

    @abc.abstractmethod
    def _encode(self, names: list[str]) -> Float[np.ndarray, "n dim"]:
        """A vector for each name, of any length but 0."""

    def encode(self, names: Iterable[str]) -> dict[str, Float[np.ndarray, " dim"]]:
        """A float32 unit vector for each distinct name.

        Raises:
            InputError: A name is blank.
            EncoderError: The encoder returned something else than a finite vector a name.
        """
        distinct = sorted(set(names))
        blank = [name for name in distinct if not name.strip()]
        if blank:
            raise InputError(f"expected names, got a blank one: {blank[0]!r}")
        if not distinct:
            return {}
        vectors = np.asarray(self._encode(distinct), dtype=np.float32)
        if vectors.ndim != 2 or len(vectors) != len(distinct):
            raise EncoderError(f"{self.name}: expected {len(distinct)} vectors, got shape {vectors.shape}")
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not np.isfinite(vectors).all() or not (norms > 0).all():
            raise EncoderError(f"{self.name} returned a vector that is zero or not finite")
        return dict(zip(distinct, vectors / norms, strict=True))


@final
class SpellingEncoder(NameEncoder):
    """Counts of the groups of three letters that a name is written with; needs no model, and knows no meaning.

    ``tree sparrow`` and ``Tree_Sparrow`` are equal, ``field sparrow`` is near, and ``cat`` says nothing of ``tabby``.
    Letter case, accents and punctuation do not count. Groups are hashed to 2,048 places, the same on every machine.

    Example:
        >>> vectors = SpellingEncoder().encode(["Tree Sparrow", "tree_sparrow", "field sparrow", "tabby"])
        >>> [round(float(vectors["Tree Sparrow"] @ vectors[name]), 2) for name in sorted(vectors)]
        [1.0, 0.61, 0.0, 1.0]
    """

    @property
    def name(self) -> str:
        """Says that it is not the meaning."""
        return "spelling (groups of 3 letters, not meaning)"

    def _encode(self, names: list[str]) -> Float[np.ndarray, "n dim"]:
        vectors = np.zeros((len(names), _SPELLING_DIM), dtype=np.float32)
        for row, name in zip(vectors, names, strict=True):
            for group in _groups(name):
                row[zlib.crc32(group.encode()) % _SPELLING_DIM] += 1.0
        return vectors


def _groups(name: str) -> list[str]:
    """Three letters each, word by word, the space around a word being one; the name itself where it has no letters."""
    plain = unicodedata.normalize("NFKD", name.casefold())
    kept = "".join(c if c.isalnum() else " " for c in plain if not unicodedata.combining(c))
    words = [f" {word} " for word in kept.split()]
    return [word[i : i + 3] for word in words for i in range(len(word) - 2)] or [name]


@final
class TextTower(NameEncoder):
    """The text tower of an image encoder, such as the memory's own."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    @property
    def name(self) -> str:
        """The encoder's, and that it is its text tower."""
        return f"text tower of {self._encoder.name}"

    def _encode(self, names: list[str]) -> Float[np.ndarray, "n dim"]:
        return self._encoder.encode_texts(names)


@final
class SentenceEncoder(NameEncoder):
    """A sentence encoder of the sentence-transformers family, by transformers alone; safetensors, no remote code.

    Args:
        model: Hub name, or folder with a checkpoint, its tokenizer and, for a pooling that is not the mean,
            ``1_Pooling/config.json``.
        device: ``auto``, ``cpu``, ``cuda``, ….
        revision: Branch, tag or commit of a hub repository.
        batch_size: Names in one forward pass.

    Attributes:
        pooling: ``mean`` over the tokens, assumed where the checkpoint says nothing, or ``cls``, the first one's.

    Raises:
        EncoderError: No such model, or one with other parts than a transformer and one of these poolings.

    Source: FineR, and so the paper's Table 1, computes sACC with ``sentence-transformers/all-mpnet-base-v2``; CaSED
    with ``sentence-transformers/all-MiniLM-L6-v2``.
    """

    def __init__(
        self,
        model: str | Path = "sentence-transformers/all-mpnet-base-v2",
        *,
        device: str = "auto",
        revision: str | None = None,
        batch_size: int = 64,
    ) -> None:
        self._source = checkpoint_source(model, missing=EncoderError)
        self._revision = revision
        self._batch = batch_size_of(batch_size)
        place = device_of(device)
        import transformers

        options = {"revision": revision}
        try:
            with without_weight_bars():
                loaded = transformers.AutoModel.from_pretrained(self._source, use_safetensors=True, **options)
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(self._source, **options)
            stated = _pooling(self._source, revision)
            self._model: Any = loaded.to(place).eval()
        except EncoderError:
            raise
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise EncoderError(
                f"cannot load the sentence encoder {self._source}: give a folder with config.json, model.safetensors "
                f"and the tokenizer; or, where the model hub can be reached, a name such as "
                f"sentence-transformers/all-mpnet-base-v2. {type(error).__name__}: {reason}"
            ) from error
        self._assumed = stated is None
        self.pooling = stated or "mean"
        if getattr(self._model.config, "is_encoder_decoder", False) or not hasattr(self._model.config, "hidden_size"):
            raise EncoderError(
                f"{self._source} is a {self._model.config.model_type!r} model, no sentence encoder; give one such as "
                "sentence-transformers/all-mpnet-base-v2, or an image encoder's text tower"
            )

    @property
    def name(self) -> str:
        """The hub name, with its revision, or the folder; and that the pooling was assumed, where nothing says it."""
        source = self._source if self._revision is None else f"{self._source}@{self._revision}"
        return f"{source} (mean over the tokens, assumed)" if self._assumed else source

    def _encode(self, names: list[str]) -> Float[np.ndarray, "n dim"]:
        import torch

        limit = min(int(self._tokenizer.model_max_length), int(self._model.config.max_position_embeddings))
        found = []
        for start in range(0, len(names), self._batch):
            batch = self._tokenizer(
                names[start : start + self._batch], padding=True, truncation=True, max_length=limit, return_tensors="pt"
            ).to(self._model.device)
            with torch.inference_mode():
                tokens = self._model(**batch).last_hidden_state.float()
            weights = batch["attention_mask"].unsqueeze(-1).float()
            pooled = tokens[:, 0] if self.pooling == "cls" else (tokens * weights).sum(1) / weights.sum(1)
            found.append(pooled.cpu().numpy())
        return np.concatenate(found)


def _pooling(model: str, revision: str | None) -> str | None:
    """What a checkpoint says of its parts after the transformer; None where it says nothing."""
    kinds: list[str] = []
    if modules := checkpoint_file(model, "modules.json", revision):
        kinds = [str(module["type"]).rpartition(".")[2] for module in json.loads(modules.read_text(encoding="utf-8"))]
        if others := [kind for kind in kinds if kind not in _PLAIN_MODULES]:
            raise EncoderError(
                f"{model} has parts that are not known here: {', '.join(others)}; known: {', '.join(_PLAIN_MODULES)}"
            )
    settings = checkpoint_file(model, "1_Pooling/config.json", revision)
    if settings is None and "Pooling" in kinds:
        raise EncoderError(
            f"{model}: modules.json names a pooling, but 1_Pooling/config.json is not here; get the whole repository "
            f"(hf download {model})"
        )
    if settings is None:
        return None
    values = json.loads(settings.read_text(encoding="utf-8"))
    named = str(values.get("pooling_mode", ""))
    modes = [named] if named else [k.removeprefix("pooling_mode_") for k, on in values.items() if on is True]
    chosen = {"mean_tokens": "mean", "cls_token": "cls"}
    found: set[str] = {chosen.get(mode, mode) for mode in modes if mode != "include_prompt"}
    if found not in ({"mean"}, {"cls"}):
        raise EncoderError(f"{model} pools by {', '.join(sorted(found)) or 'nothing'}; known: mean, cls")
    return found.pop()


def open_name_encoder(spec: str | Path, *, encoder: Encoder | None = None, device: str = "auto") -> NameEncoder:
    """A name encoder by what a person writes.

    Args:
        spec: ``spelling``, ``memory`` (the text tower of ``encoder``), or a sentence encoder's hub name or folder.
        encoder: The memory's.
        device: Of a sentence encoder.

    Raises:
        InputError: ``memory`` without an encoder.
        EncoderError: There is no such model.
    """
    if spec == "spelling":
        return SpellingEncoder()
    if spec == "memory":
        if encoder is None:
            raise InputError("the name encoder 'memory' is a memory's text tower; there is no memory here")
        return TextTower(encoder)
    return SentenceEncoder(spec, device=device)
