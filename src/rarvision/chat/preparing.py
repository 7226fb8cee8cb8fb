"""Requests as a model's inputs: rendered, tokenised, padded on the left; the same for answering and for training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

from rarvision.chat.base import ChatRequest
from rarvision.chat.prompts import Prompts, common_start
from rarvision.chat.rendering import control_pattern, conversation
from rarvision.errors import ChatUnsupportedError, ImageError, OptionError

__all__ = ["RequestEncoder", "context_limit", "end_tokens"]

_NO_LIMIT = 10**9


@final
class RequestEncoder:
    """Turns requests and answers' texts into tokens; holds no weights and can be sent to another process.

    Args:
        processor: A checkpoint's, from `rarvision.chat.loading.load_processor`.
        name: The model's, for messages.
    """

    def __init__(self, processor: Any, *, name: str) -> None:
        self._processor = processor
        self._name = name
        self.tokenizer = processor.tokenizer
        self._control = control_pattern(self.tokenizer.all_special_tokens)

    def prompts(self, requests: Sequence[ChatRequest]) -> Prompts:
        """Render requests up to where the model is to answer, on the CPU; all with images, or all without.

        Raises:
            ChatUnsupportedError: The chat template refuses them.
            ImageError: The image processor refuses an image.
        """
        from jinja2 import TemplateError

        turns = [conversation(request, self._control) for request in requests]
        try:
            batch = self._processor.apply_chat_template(
                turns,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
            )
        except TemplateError as error:
            raise ChatUnsupportedError(f"the chat template of {self._name} refuses the messages: {error}") from error
        except ValueError as error:
            sizes = ", ".join(f"{image.width}x{image.height}" for request in requests for image in request.images)
            raise ImageError(
                f"the processor of {self._name} refuses images or prompt (image sizes: {sizes or 'none'}): {error}"
            ) from error
        return Prompts(inputs=dict(batch), pad_id=self.tokenizer.pad_token_id)

    def text_tokens(self, requests: Sequence[ChatRequest]) -> list[list[int]]:
        """Tokens of the rendered requests in which one token stands for an image; as the processors tokenise texts."""
        turns = [conversation(request, self._control) for request in requests]
        texts = self._processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        begun = self.tokenizer.bos_token is not None and texts[0].startswith(self.tokenizer.bos_token)
        ids: list[list[int]] = self.tokenizer(texts, add_special_tokens=not begun, padding=False)["input_ids"]
        return ids

    def encode(self, text: str) -> list[int]:
        """Tokens of an answer's text on its own; sentencepiece puts its leading space itself."""
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        if not ids:
            raise OptionError(f"a continuation must hold at least one token, got {text!r}")
        return ids

    def option_tokens(self, options: Sequence[str]) -> list[list[int]]:
        """Each option's tokens up to the first that tells it from the others.

        Raises:
            OptionError: Two begin with the same token; names them.
        """
        encoded = [self.encode(option) for option in options]
        shared = common_start(encoded) if len(encoded) > 1 else 0
        cut = [ids[: shared + 1] for ids in encoded]
        seen: dict[tuple[int, ...], str] = {}
        for option, ids in zip(options, cut, strict=True):
            if tuple(ids) in seen or len(ids) <= shared:
                other = seen.get(tuple(ids)) or next(text for text in options if text != option)
                raise OptionError(
                    f"options must differ in their first token: {other!r} and {option!r} begin alike for {self._name}; "
                    f"use letters, or the strategy 'likelihood', which reads whole texts"
                )
            seen[tuple(ids)] = option
        return cut

    def answer_end(self, end_ids: Sequence[int]) -> list[int]:
        """Tokens that end an answer: what the chat template writes after one, up to the first of ``end_ids``.

        Args:
            end_ids: Tokens on which generation stops.

        Returns:
            At least one token; the tokenizer's end of text where the template writes none of them.
        """
        mark = "rarvision"
        turns = [
            {"role": "user", "content": [{"type": "text", "text": mark}]},
            {"role": "assistant", "content": [{"type": "text", "text": mark}]},
        ]
        rendered = str(self._processor.apply_chat_template([turns], tokenize=False)[0])
        tail: list[int] = self.tokenizer.encode(rendered.rpartition(mark)[2], add_special_tokens=False)
        ends = [at for at, token in enumerate(tail) if token in set(end_ids)]
        return tail[: ends[0] + 1] if ends else [int(self.tokenizer.eos_token_id)]


def context_limit(config: Any, tokenizer: Any) -> int | None:
    """Tokens of prompt and answer together, from a model's config, else its tokenizer's; None where neither tells."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) or tokenizer.model_max_length
    return int(limit) if limit and limit < _NO_LIMIT else None


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The ids on which a loaded model stops to write: its generation config's and its tokenizer's."""
    configured = model.generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({i for i in [*ids, tokenizer.eos_token_id] if i is not None})
