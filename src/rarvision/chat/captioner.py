"""Question-answering captioners without a chat template, BLIP-2 above all: they write, and nothing else."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from rarvision.chat.base import Capabilities, Chat, ChatRequest, Completion, ListConstraint
from rarvision.chat.loading import load_model, resolve_device, resolve_dtype
from rarvision.checkpoints import checkpoint_source
from rarvision.errors import ChatUnavailableError, ChatUnsupportedError, OptionError

__all__ = ["CAPTIONERS", "CaptionerChat", "is_captioner"]

CAPTIONERS = ("blip-2", "instructblip")
"""Model types that are asked this way."""

_FORM = "Question: {question} Answer:"


def is_captioner(model: str | Path, *, revision: str | None = None) -> bool:
    """Whether a checkpoint is of a model type that `CaptionerChat` serves; False where its configuration is not there.

    Args:
        model: Hub name or folder.
        revision: Of a hub model.
    """
    from transformers import PretrainedConfig

    try:
        source = checkpoint_source(model, missing=ChatUnavailableError)
        values, _ = PretrainedConfig.get_config_dict(source, revision=revision)
    except (OSError, ValueError, ChatUnavailableError):
        return False
    return values.get("model_type") in CAPTIONERS


@final
class CaptionerChat(Chat):
    """A captioner of the BLIP-2 family, asked one question about one image.

    Args:
        model: Hub name or folder; safetensors only.
        device: As of `rarvision.LocalChat`, and so the others.
        dtype: As there.
        revision: As there.
        batch_size: Questions that are answered together.
        form: How a question is put; ``{question}`` is filled in.

    Raises:
        ChatUnsupportedError: The checkpoint is of another type.
        ChatUnavailableError: There is none.

    Source: BLIP-2's question form; a baseline of the paper's Table 1.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        batch_size: int = 8,
        form: str = _FORM,
    ) -> None:
        if batch_size < 1:
            raise OptionError(f"batch_size must be at least 1, got {batch_size}")
        if "{question}" not in form:
            raise OptionError(f"form needs the field {{question}}; got {form!r}")
        from transformers import AutoProcessor

        device = resolve_device(device)
        self._source = checkpoint_source(model, missing=ChatUnavailableError)
        self._revision, self._batch_size, self._form = revision, batch_size, form
        self._lock = threading.RLock()
        self._model = load_model(
            self._source,
            device=device,
            dtype=resolve_dtype(dtype, device),
            revision=revision,
            device_map=None,
            quantization=None,
            trust_remote_code=False,
        )
        if self._model.config.model_type not in CAPTIONERS:
            raise ChatUnsupportedError(
                f"{self._source} is a {self._model.config.model_type}; expected one of {', '.join(CAPTIONERS)}. Use "
                "LocalChat"
            )
        try:
            self._processor = AutoProcessor.from_pretrained(self._source, revision=revision)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ChatUnavailableError(f"cannot load the processor of {self._source}: {str(error)[:300]}") from error
        self._processor.tokenizer.padding_side = "left"

    @property
    def name(self) -> str:
        """The hub name or folder."""
        return self._source

    @property
    def settings(self) -> Mapping[str, Any]:
        """Name, revision, dtype and form."""
        return {
            "name": self._source,
            "revision": self._revision,
            "dtype": str(self._model.dtype),
            "form": self._form,
        }

    @property
    def capabilities(self) -> Capabilities:
        """It writes."""
        return Capabilities(option_log_probs=False, continuation_log_probs=False, list_constraint=False, max_images=1)

    @property
    def context_limit(self) -> int | None:
        """Not known."""
        return None

    def generate(
        self, requests: Sequence[ChatRequest], *, max_tokens: int, constraints: Sequence[ListConstraint] | None = None
    ) -> list[Completion]:
        """Greedy answers.

        Raises:
            ChatUnsupportedError: A constraint, or a request without just one image.
            OptionError: ``max_tokens`` under 1.
        """
        if max_tokens < 1:
            raise OptionError(f"max_tokens must be at least 1, got {max_tokens}")
        if constraints is not None:
            raise ChatUnsupportedError(f"{self.name} cannot confine its answers to a list")
        if any(len(request.images) != 1 for request in requests):
            raise ChatUnsupportedError(f"{self.name} answers about one image at a time")
        with self._lock:
            found: list[Completion] = []
            for start in range(0, len(requests), self._batch_size):
                found += self._answer(requests[start : start + self._batch_size], max_tokens)
            return found

    def _answer(self, requests: Sequence[ChatRequest], max_tokens: int) -> list[Completion]:
        import torch

        texts = [self._form.replace("{question}", _question(request)) for request in requests]
        images = [request.images[0].convert("RGB") for request in requests]
        inputs = self._processor(images=images, text=texts, return_tensors="pt", padding=True)
        inputs = inputs.to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False, num_beams=1)
        prompt = inputs["input_ids"].shape[1]
        if tokens.shape[1] > prompt and torch.equal(tokens[:, :prompt], inputs["input_ids"]):
            tokens = tokens[:, prompt:]  # models that only decode repeat the question
        answers = self._processor.batch_decode(tokens, skip_special_tokens=True)
        ends = {self._processor.tokenizer.eos_token_id, self._processor.tokenizer.pad_token_id}
        return [
            Completion(
                text=answer.strip(), finish_reason="stop" if ends & set(row) or len(row) < max_tokens else "length"
            )
            for answer, row in zip(answers, tokens.tolist(), strict=True)
        ]

    def close(self) -> None:
        """Let the weights go."""
        self._model = None


def _question(request: ChatRequest) -> str:
    return " ".join(part for message in request.messages for part in message.parts if isinstance(part, str)).strip()
