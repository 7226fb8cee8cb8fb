"""An encoder that is not at hand, as a memory or a file remembers it: to make memories of it and to compare them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, final

import numpy as np
from jaxtyping import Float
from PIL import Image

from rarvision.encoders import Encoder, probe_matches
from rarvision.errors import EncoderError, EncoderMismatchError
from rarvision.memory.base import Memory
from rarvision.memory.local import LocalMemory

__all__ = ["EncoderRecord"]


@dataclass(frozen=True, kw_only=True, eq=False)
class EncoderRecord:
    """What a memory knows of its encoder.

    Attributes:
        dim: Dimensions of its vectors.
        fingerprint: See `Encoder.fingerprint`.
        name: See `Encoder.name`; empty where unknown.
        revision: See `Encoder.revision`.
        probe: What `Encoder.probe` gave, float32; None where unknown.
    """

    dim: int
    fingerprint: str
    name: str = ""
    revision: str | None = None
    probe: Float[np.ndarray, "n dim"] | None = None

    @classmethod
    def of(cls, memory: Memory) -> Self:
        """A memory's."""
        return cls(
            dim=memory.dim,
            fingerprint=memory.encoder_fingerprint,
            name=memory.encoder_name,
            revision=memory._encoder_revision,  # noqa: SLF001 - the package's own
            probe=memory._stored_probe(),  # noqa: SLF001
        )

    @classmethod
    def declared(cls, encoder: Encoder) -> Self:
        """A loaded encoder's."""
        return cls(
            dim=encoder.dim,
            fingerprint=encoder.fingerprint,
            name=encoder.name,
            revision=encoder.revision,
            probe=encoder.probe(),
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The reverse of `to_dict`; raises `KeyError`, `TypeError` or `ValueError` where it is none."""
        dim, probe = int(values["dim"]), values["encoder_probe"]
        if dim < 1:
            raise ValueError(f"dim must be at least 1, got {dim}")
        if probe is not None:
            probe = np.frombuffer(base64.b64decode(probe, validate=True), dtype="<f4").reshape(-1, dim)
        revision = values["encoder_revision"]
        return cls(
            dim=dim,
            fingerprint=str(values["encoder_fingerprint"]),
            name=str(values["encoder_name"]),
            revision=None if revision is None else str(revision),
            probe=probe,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values; the probe as base64 of little-endian float32."""
        probe = None if self.probe is None else base64.b64encode(self.probe.astype("<f4").tobytes()).decode("ascii")
        return {
            "dim": self.dim,
            "encoder_fingerprint": self.fingerprint,
            "encoder_name": self.name,
            "encoder_revision": self.revision,
            "encoder_probe": probe,
        }

    @property
    def known(self) -> bool:
        """Whether anybody can say which encoder it is; those of vectors without an origin are not."""
        return bool(self.name) or self.probe is not None

    def __str__(self) -> str:
        return f"{self.name or 'an unknown encoder'} ({self.fingerprint}, {self.dim} dimensions)"

    def same(self, other: EncoderRecord) -> bool:
        """Whether their vectors may be compared: equal fingerprints, or probes that agree to within rounding."""
        if self.dim != other.dim:
            return False
        if self.fingerprint == other.fingerprint:
            return True
        return self.probe is not None and other.probe is not None and probe_matches(self.probe, other.probe)

    def check(self, other: EncoderRecord, *, ours: str, theirs: str) -> None:
        """Raise `EncoderMismatchError`, in these words for the two, unless they are the same."""
        if not self.same(other):
            raise EncoderMismatchError(
                f"expected vectors of one encoder; {ours} is {self}'s, {theirs} {other}'s. Encode the images again for "
                "the other encoder instead"
            )

    def create(
        self,
        path: str | Path,
        *,
        thumbnails: int | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> LocalMemory:
        """Make an empty memory of this encoder.

        Raises:
            MemoryExistsError: Something is there already.
        """
        if self.probe is None:
            return LocalMemory.create_unbound(path, dim=self.dim, fingerprint=self.fingerprint, metadata=metadata)
        made = LocalMemory.create(path, encoder=_Absent(self), thumbnails=thumbnails, metadata=metadata)
        made.close()
        return LocalMemory.open(path)  # which does not take the stand-in for the encoder


@final
class _Absent(Encoder):
    """Stands for an encoder where only what is known of it is asked."""

    def __init__(self, record: EncoderRecord) -> None:
        self._record = record

    @property
    def name(self) -> str:
        return self._record.name

    @property
    def dim(self) -> int:
        return self._record.dim

    @property
    def fingerprint(self) -> str:
        return self._record.fingerprint

    @property
    def revision(self) -> str | None:
        return self._record.revision

    def probe(self) -> Float[np.ndarray, "n dim"]:
        if self._record.probe is None:
            raise EncoderError(f"{self._record} left no probe")
        return self._record.probe

    def _encode_images(self, images: list[Image.Image]) -> Float[np.ndarray, "n dim"]:
        raise EncoderError(f"{self._record} is not loaded; {len(images)} images cannot be encoded")

    def _encode_texts(self, texts: list[str]) -> Float[np.ndarray, "n dim"]:
        raise EncoderError(f"{self._record} is not loaded; {len(texts)} texts cannot be encoded")
