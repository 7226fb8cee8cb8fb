"""A multimodal LLM in this process, through transformers."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, final

import numpy as np
from jaxtyping import Float

from rarvision.chat.adapters import Adapter
from rarvision.chat.base import Capabilities, Chat, ChatRequest, Completion, ListConstraint
from rarvision.chat.constraint import ListAutomaton, ListLogitsProcessor, TokenBytes, TokenSpeller
from rarvision.chat.loading import Quantization, load_model, load_processor, require, resolve_device, resolve_dtype
from rarvision.chat.preparing import RequestEncoder, context_limit, end_tokens
from rarvision.chat.prompts import BranchedPrompts, Prompts, image_groups
from rarvision.chat.scoring import ContinuationScorer
from rarvision.checkpoints import checkpoint_source
from rarvision.errors import ChatUnavailableError, ChatUnsupportedError, ContextLengthError, OptionError

__all__ = ["LocalChat"]


@final
class LocalChat(Chat):
    """Any ``AutoModelForImageTextToText`` with a chat template: LLaVA, Qwen-VL, and their kin.

    Answers are greedy, whatever sampling the checkpoint's generation config asks for. Requests are batched with padding
    on the left. Works with and without torchvision.

    Log-probabilities: requests of one call about the same image objects share its computation. The image is prepared
    and encoded once, and so are all tokens up to the first in which the prompts differ; put the image first, and what
    differs last. The first such call checks itself against a computation from scratch; where they differ, `image_reuse`
    turns False and a warning is logged.

    Args:
        model: Hub name or folder; safetensors only.
        device: ``auto`` (a GPU if there is one), ``cpu``, ``cuda``, ``cuda:1``, ``mps``, …
        dtype: ``auto`` (float32 on the CPU, the checkpoint's on a GPU), ``float32``, ``float16``, ``bfloat16``.
        revision: Branch, tag or commit on the hub; pin it for results that stay.
        device_map: Spread the model over devices (``auto`` or a map); needs the extra ``device-map``.
        quantization: ``4bit`` or ``8bit``, needs the extra ``quantized``; None for none.
        trust_remote_code: Run code from the model's repository.
        batch_size: Requests in one forward pass; of those about the same image, different images.
        adapter: Folder of an adapter that was trained on this model (`rarvision.tuning.train`); needs the extra
            ``tune``.

    Raises:
        AdapterError: the adapter is missing, damaged, or of another model.
        ChatUnavailableError: there is no such model.
        ChatUnsupportedError: it needs remote code, or is no model of images and text.
        MissingExtraError: an option needs an extra.
        OptionError: an option's value is not one of the above.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        device_map: str | dict[str, Any] | None = None,
        quantization: Quantization | None = None,
        trust_remote_code: bool = False,
        batch_size: int = 8,
        adapter: str | Path | None = None,
    ) -> None:
        if batch_size < 1:
            raise OptionError(f"batch_size must be at least 1, got {batch_size}")
        device = resolve_device(device)
        self._source = checkpoint_source(model, missing=ChatUnavailableError)
        self._revision = revision
        self._quantization = quantization
        self._batch_size = batch_size
        self._lock = threading.RLock()
        self._adapter = None if adapter is None else self._open_adapter(adapter)
        self._model = load_model(
            self._source,
            device=device,
            dtype=resolve_dtype(dtype, device),
            revision=revision,
            device_map=device_map,
            quantization=quantization,
            trust_remote_code=trust_remote_code,
        )
        self._processor = load_processor(
            self._source, self._model.config, revision=revision, trust_remote_code=trust_remote_code
        )
        if self._adapter is not None:
            self._model = self._adapter.attach(self._model)
        self._tokenizer = self._processor.tokenizer
        self._encoder = RequestEncoder(self._processor, name=self.name)
        self._eos_ids = self._make_greedy()
        self._tokens: TokenBytes | None = None
        self._scorer = ContinuationScorer(self._model)

    @property
    def name(self) -> str:
        """The hub name or folder, and the adapter's folder."""
        return self._source if self._adapter is None else f"{self._source} + {self._adapter.folder}"

    @property
    def settings(self) -> Mapping[str, Any]:
        """Name, revision, dtype, quantisation, and the hash of the adapter where there is one."""
        values = {
            "name": self._source,
            "revision": self._revision,
            "dtype": str(self._model.dtype),
            "quantization": self._quantization,
        }
        return values if self._adapter is None else {**values, "adapter": self._adapter.identity}

    @property
    def capabilities(self) -> Capabilities:
        """Everything; lists only where the tokenizer's tokens can be spelled in bytes."""
        return Capabilities(
            option_log_probs=True, continuation_log_probs=True, list_constraint=self._token_bytes().spells
        )

    @property
    def context_limit(self) -> int | None:
        """Tokens of prompt and answer together, from the model's config, else its tokenizer's."""
        return context_limit(self._model.config, self._tokenizer)

    @property
    def prefix_reuse(self) -> bool:
        """Whether continuations share their prompt's computation; False once that was found not to work here."""
        return self._scorer.prefix_reuse

    @property
    def image_reuse(self) -> bool:
        """Whether prompts about one image share its computation; False once that was found not to work here."""
        return self._scorer.image_reuse

    def generate(
        self, requests: Sequence[ChatRequest], *, max_tokens: int, constraints: Sequence[ListConstraint] | None = None
    ) -> list[Completion]:
        """Greedy answers; with ``constraints`` (one a request), confined to them.

        A constrained answer is always a complete list: it is given the tokens that it needs, however small
        ``max_tokens`` is.

        Raises:
            ContextLengthError: prompt and answer do not fit.
            ChatUnsupportedError: a constraint that the tokenizer cannot write.
            OptionError: ``max_tokens`` under 1, or not one constraint a request.
        """
        if max_tokens < 1:
            raise OptionError(f"max_tokens must be at least 1, got {max_tokens}")
        if constraints is not None and len(constraints) != len(requests):
            raise OptionError(f"expected one constraint a request: {len(requests)}, got {len(constraints)}")
        automata = None if constraints is None else [self._automaton(constraint) for constraint in constraints]
        answers: dict[int, Completion] = {}
        for rows in self._batches(requests):
            chosen = None if automata is None else [automata[row] for row in rows]
            lists = None if constraints is None else [constraints[row] for row in rows]
            reserve = [max_tokens] * len(rows) if lists is None else [self._list_tokens(item) for item in lists]
            prompts = self._prompts([requests[row] for row in rows], rows=rows, reserve=reserve)
            answers.update(zip(rows, self._generate(prompts, chosen, max_tokens), strict=True))
        return [answers[row] for row in range(len(requests))]

    def option_log_probs(
        self, requests: Sequence[ChatRequest], options: Sequence[Sequence[str]]
    ) -> list[Float[np.ndarray, " options"]]:
        """Log-probability (natural, over the whole vocabulary) that the answer begins with each option.

        One forward pass a batch. Options are told apart by their first token; tokens that all of a request's options
        begin with (the bare ``▁`` of some tokenizers, an opening bracket) are counted in.

        Raises:
            OptionError: two options of a request begin with the same token; names them.
        """
        self._check_lengths(requests, options, "options")
        tokens = {texts: self._encoder.option_tokens(texts) for texts in dict.fromkeys(map(tuple, options))}
        return self._score(requests, [tokens[tuple(texts)] for texts in options], cached=False)

    def continuation_log_probs(
        self, requests: Sequence[ChatRequest], continuations: Sequence[Sequence[str]]
    ) -> list[tuple[Float[np.ndarray, " n"], tuple[int, ...]]]:
        """Log-likelihood of each continuation after its request, and its number of tokens.

        A batch of prompts is computed once, and its key-value cache is shared by all continuations. The first call
        checks one value against a computation from scratch; where they differ, the model is scored from scratch from
        then on: a warning is logged and `prefix_reuse` turns False.

        Raises:
            ContextLengthError: a prompt with its longest continuation does not fit.
            OptionError: an empty continuation.
        """
        self._check_lengths(requests, continuations, "continuations")
        tokens = [[self._encoder.encode(text) for text in texts] for texts in continuations]
        scored = self._score(requests, tokens, cached=True)
        return [(values, tuple(map(len, item))) for values, item in zip(scored, tokens, strict=True)]

    def count_tokens(self, request: ChatRequest) -> int:
        """Tokens of the rendered request, image tokens included."""
        return self._prepare([request]).lengths[0]

    def close(self) -> None:
        """Free the model's memory; the chat cannot be used after."""
        import torch

        del self._model, self._scorer
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _open_adapter(self, folder: str | Path) -> Adapter:
        """Find an adapter and check it against the base model, before that is loaded."""
        require("peft", extra="tune", wanted="an adapter")
        adapter = Adapter.read(folder)
        adapter.check_base(self._source, revision=self._revision)
        return adapter

    def _make_greedy(self) -> list[int]:
        """Replace the checkpoint's sampling defaults; returns the ids that end an answer."""
        from transformers import GenerationConfig

        eos = end_tokens(self._model, self._tokenizer)
        self._model.generation_config = GenerationConfig(
            do_sample=False, num_beams=1, eos_token_id=eos, pad_token_id=self._tokenizer.pad_token_id
        )
        return eos

    def _batches(self, requests: Sequence[ChatRequest]) -> Iterator[list[int]]:
        """Row numbers of each batch: alike in having images or not, which processors want, and in order."""
        for group in (True, False):
            rows = [row for row, request in enumerate(requests) if bool(request.images) is group]
            for start in range(0, len(rows), self._batch_size):
                yield rows[start : start + self._batch_size]

    def _image_batches(self, requests: Sequence[ChatRequest]) -> Iterator[list[int]]:
        """The same, but ``batch_size`` counts different images, and all requests about an image are in one batch."""
        for group in (True, False):
            rows = [row for row, request in enumerate(requests) if bool(request.images) is group]
            asked = [requests[row] for row in rows]
            alike = image_groups(asked) if group else [[at] for at in range(len(rows))]
            for start in range(0, len(alike), self._batch_size):
                yield [rows[at] for members in alike[start : start + self._batch_size] for at in members]

    def _score(
        self, requests: Sequence[ChatRequest], tokens: Sequence[Sequence[Sequence[int]]], *, cached: bool
    ) -> list[Float[np.ndarray, " n"]]:
        """Summed log-probabilities of each request's token sequences.

        Args:
            requests: n conversations.
            tokens: For each, its continuations.
            cached: Whether the continuations of a request may differ in more than their last tokens.
        """
        results: dict[int, Float[np.ndarray, " n"]] = {}
        for batch in self._image_batches(requests):
            scored = self._score_by_image(requests, tokens, batch)
            if scored is not None:
                results.update(zip(batch, scored, strict=True))
                continue
            for start in range(0, len(batch), self._batch_size):
                rows = batch[start : start + self._batch_size]
                asked, wanted = [requests[row] for row in rows], [tokens[row] for row in rows]
                prompts = self._prompts(asked, rows=rows, reserve=[max(map(len, item)) for item in wanted])
                single = partial(self._prepare_one, asked) if cached else None
                with self._running():
                    results.update(zip(rows, self._scorer.score(prompts, wanted, single=single), strict=True))
        return [results[row] for row in range(len(requests))]

    def _score_by_image(
        self, requests: Sequence[ChatRequest], tokens: Sequence[Sequence[Sequence[int]]], rows: Sequence[int]
    ) -> list[Float[np.ndarray, " n"]] | None:
        """The same for a batch in which several requests are about one image; None where there is nothing to share."""
        asked, wanted = [requests[row] for row in rows], [tokens[row] for row in rows]
        groups = image_groups(asked)
        image_token = getattr(self._model.config, "image_token_id", None)
        if not asked[0].images or len(groups) == len(asked) or image_token is None or not self._scorer.image_reuse:
            return None
        heads = self._prepare([asked[group[0]] for group in groups])
        texts = self._text_tokens(asked)
        prompts = BranchedPrompts.of(heads, groups, texts, image_token=image_token)
        if prompts is None:
            return None
        self._check_room(prompts.lengths, rows=rows, reserve=[max(map(len, item)) for item in wanted])
        with self._running():
            return self._scorer.score_branched(prompts, wanted, single=partial(self._prepare_one, asked))

    def _text_tokens(self, requests: Sequence[ChatRequest]) -> list[list[int]]:
        """Tokens of the rendered requests in which one token stands for an image; as the processors tokenise texts."""
        with self._lock:
            return self._encoder.text_tokens(requests)

    @staticmethod
    def _check_lengths(requests: Sequence[ChatRequest], lists: Sequence[Sequence[str]], what: str) -> None:
        if len(requests) != len(lists):
            raise OptionError(f"expected one list of {what} a request: {len(requests)}, got {len(lists)}")
        for row, texts in enumerate(lists):
            if not texts:
                raise OptionError(f"request {row} has no {what}: give at least one")

    def _prepare(self, requests: Sequence[ChatRequest]) -> Prompts:
        """Render, tokenise and pad requests, on the model's device."""
        with self._lock:  # fast tokenizers keep their padding as state
            prompts = self._encoder.prompts(requests)
        return prompts.to(self._model.device, self._model.dtype)

    @contextmanager
    def _running(self) -> Iterator[None]:
        """One forward pass at a time; out of memory is said with what helps."""
        import torch

        with self._lock:
            try:
                yield
            except torch.OutOfMemoryError as error:
                raise ChatUnavailableError(
                    f"{self.name} ran out of memory: lower batch_size ({self._batch_size}), take dtype='bfloat16', or "
                    f"load it with quantization='4bit'"
                ) from error

    def _prepare_one(self, requests: Sequence[ChatRequest], row: int) -> Prompts:
        return self._prepare([requests[row]])

    def _prompts(self, requests: Sequence[ChatRequest], *, rows: Sequence[int], reserve: Sequence[int]) -> Prompts:
        """The same, after checking that prompt and answer fit."""
        prompts = self._prepare(requests)
        self._check_room(prompts.lengths, rows=rows, reserve=reserve)
        return prompts

    def _check_room(self, lengths: Sequence[int], *, rows: Sequence[int], reserve: Sequence[int]) -> None:
        """Refuse prompts that do not fit the context with so many tokens of answer."""
        limit = self.context_limit
        if limit is not None:
            for row, length, answer in zip(rows, lengths, reserve, strict=True):
                if length + answer > limit:
                    raise ContextLengthError(
                        f"request {row} needs {length + answer} tokens (prompt {length}, answer {answer}), but the "
                        f"context of {self.name} holds {limit}: ask about fewer candidates (a smaller k), shorten the "
                        f"prompt, or use a model with a longer context"
                    )

    def _generate(
        self, prompts: Prompts, automata: Sequence[ListAutomaton] | None, max_tokens: int
    ) -> list[Completion]:
        import torch
        from transformers import LogitsProcessorList

        width = prompts.inputs["input_ids"].shape[1]
        options: dict[str, Any] = {"max_new_tokens": max_tokens}
        if automata is not None:
            spellers = [TokenSpeller(self._token_bytes(), automaton) for automaton in automata]
            confine = ListLogitsProcessor(spellers, prompt_tokens=width, eos_ids=self._eos_ids)
            options["logits_processor"] = LogitsProcessorList([confine])
            options["max_new_tokens"] = max(automaton.longest for automaton in automata) + 1
        with self._running(), torch.inference_mode():
            produced = self._model.generate(**prompts.inputs, **options)[:, width:].tolist()
        completions = []
        for tokens in produced:
            end = next((at for at, token in enumerate(tokens) if token in self._eos_ids), None)
            text = self._tokenizer.decode(
                tokens if end is None else tokens[:end], skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            completions.append(Completion(text=text, finish_reason="length" if end is None else "stop"))
        return completions

    def _token_bytes(self) -> TokenBytes:
        if self._tokens is None:
            self._tokens = TokenBytes(self._tokenizer)
        return self._tokens

    def _automaton(self, constraint: ListConstraint) -> ListAutomaton:
        tokens = self._token_bytes()
        if not tokens.spells:
            raise ChatUnsupportedError(
                f"the tokenizer of {self.name} does not write texts byte by byte, so answers cannot be confined to a "
                f"list: ask without constraints, or use the strategies 'choice' and 'likelihood'"
            )
        return ListAutomaton.of(constraint, tokens.lead)

    def _list_tokens(self, constraint: ListConstraint) -> int:
        """About how many tokens the finished list takes, its end included."""
        text = constraint.opening + constraint.separator.join(constraint.names) + constraint.closing
        return len(self._encoder.encode(text)) + 1
