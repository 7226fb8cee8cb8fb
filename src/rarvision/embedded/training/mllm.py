"""Stage 5: the language model of the MLLM, on frozen image features."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from rarvision.datasets.fieldguide import HELD_OUT_DOMAIN
from rarvision.embedded.training.clip import image_processor
from rarvision.embedded.training.config import Schedule
from rarvision.embedded.training.conversations import IGNORE, Candidates, Packed, Turn, TurnWriter, pack
from rarvision.embedded.training.images import DomainImages
from rarvision.embedded.training.optim import Optimisers, train_loop
from rarvision.embedded.training.shown import ShownMix, ShownRow, right_answers
from rarvision.embedded.training.tokenizers import CHAT_TEMPLATE, mllm_tokenizer
from rarvision.embedded.training.tower import Tower, tower_config

__all__ = ["MLLMTrainer", "Retrieved", "train_mllm"]

log = logging.getLogger(__name__)

Retrieved = np.ndarray
"""For each training image, the codes of what the small CLIP retrieved, best first; -1 for none."""

_HELD_OUT_ROWS = 8
_SHOWN_ROWS = 12
_JUDGED = 3
_COPIED = 6
_HELD_OUT_TOKENS, _COPIED_TOKENS = 44, 14 * _COPIED + 12
_TOKENS = {"ranking": (12, 15), "repeat": (12, 19), "choice": (8, 4)}
"""At most, of a question with its answer: for each name, and besides."""


def _build(schedule: Schedule, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=schedule.lm_width,
        intermediate_size=schedule.lm_mlp,
        num_hidden_layers=schedule.lm_layers,
        num_attention_heads=schedule.lm_heads,
        num_key_value_heads=schedule.lm_heads,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        text_config=text,
        vision_config=tower_config(schedule.tower),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(schedule.tower.image // schedule.tower.patch) ** 2,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return LlavaForConditionalGeneration(config)


class MLLMTrainer(nn.Module):
    """Projector, language model, and four probes that only the training has.

    Two ask, at every word of a candidate in a question, whether it fits the image, and at its last word whether the
    whole name does: dense supervision for the comparison that ranking is made of. The third asks which candidate of
    the list a word belongs to, in the question and where the answer copies it; and one head of the last layer is
    taught to look at the very word that is copied next: lists of look-alikes are else copied with parts of one in
    another.
    """

    def __init__(self, schedule: Schedule, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.schedule = schedule
        self.writer = TurnWriter(tokenizer)
        self.tokens = (schedule.tower.image // schedule.tower.patch) ** 2
        llava = _build(schedule, tokenizer)
        self.projector = llava.model.multi_modal_projector
        self.language_model = llava.model.language_model
        self.word_probe = nn.Linear(schedule.lm_width, 1)
        self.candidate_probe = nn.Linear(schedule.lm_width, 1)
        self.pointer_probe = nn.Linear(schedule.lm_width, 20)
        self.look_probe = nn.Linear(schedule.lm_width, 5)

    def states(self, packed: Packed, features: torch.Tensor, device: str) -> tuple[torch.Tensor, ...]:
        """Hidden states of all layers for a packed batch; the last is normalised.

        Args:
            packed: n rows.
            features: ``(images, tokens, width)``: of the rows' images, row by row, as they stand there.
            device: Where the model is.
        """
        ids = torch.from_numpy(packed.ids).to(device)
        embedded = self.language_model.get_input_embeddings()(ids)
        image = self.projector(features.to(device, embedded.dtype)).flatten(0, 1)
        embedded = embedded.masked_scatter((ids == self.writer.image)[..., None], image)
        output = self.language_model(
            inputs_embeds=embedded,
            attention_mask=torch.from_numpy(packed.allowed).to(device)[:, None],
            position_ids=torch.from_numpy(packed.positions).to(device),
            use_cache=False,
            output_hidden_states=True,
        )
        states: tuple[torch.Tensor, ...] = output.hidden_states
        return states

    def loss(self, packed: Packed, features: torch.Tensor, device: str) -> tuple[torch.Tensor, dict[str, float]]:
        """Weighted cross-entropy on answers plus the probes' binary cross-entropies."""
        states = self.states(packed, features, device)
        labels = torch.from_numpy(packed.labels).to(device)
        at = labels != IGNORE
        logits = states[-1][at] @ self.language_model.get_input_embeddings().weight.T
        weights = torch.from_numpy(packed.weights).to(device)[at]
        answer = (nn.functional.cross_entropy(logits, labels[at], reduction="none") * weights).sum() / weights.sum()
        loss, figures = answer, {"answer": float(answer.detach())}
        for name, probe, layer, targets in (
            ("word", self.word_probe, self.schedule.word_probe_layer, packed.word_targets),
            ("match", self.candidate_probe, self.schedule.candidate_probe_layer, packed.candidate_targets),
        ):
            target = torch.from_numpy(targets).to(device)
            where = target >= 0
            if bool(where.any()):
                value = nn.functional.binary_cross_entropy_with_logits(
                    probe(states[layer][where]).squeeze(-1), target[where].to(torch.float32)
                )
                loss = loss + 0.5 * value
                figures[name] = float(value.detach())
        target = torch.from_numpy(packed.look_targets).to(device)
        where = target >= 0
        if bool(where.any()):
            asked = self.look_probe(states[self.schedule.look_probe_layer])[where]
            value = nn.functional.binary_cross_entropy_with_logits(asked, target[where].to(torch.float32))
            loss = loss + value
            figures["look"] = float(value.detach())
        target = torch.from_numpy(packed.pointer_targets).to(device)
        where = target >= 0
        if bool(where.any()):
            known = states[self.schedule.pointer_probe_layer][where]
            # states are large: the loss of a fresh probe on them as they are would drown the others
            logits = self.pointer_probe(nn.functional.rms_norm(known, known.shape[-1:]))
            value = nn.functional.cross_entropy(logits, target[where])
            loss = loss + 0.5 * value
            figures["pointer"] = float(value.detach())
        target = torch.from_numpy(packed.copy_targets).to(device)
        where = target >= 0
        if bool(where.any()):
            value = nn.functional.cross_entropy(self.copying(states, packed, device)[where], target[where])
            loss = loss + 0.5 * value
            figures["copy"] = float(value.detach())
        return loss, figures

    def copying(self, states: tuple[torch.Tensor, ...], packed: Packed, device: str) -> torch.Tensor:
        """Attention logits ``(n, length, length)`` of the one head that is taught where to copy from."""
        layer = self.language_model.layers[self.schedule.copy_layer]
        attention, size = layer.self_attn, self.schedule.lm_width // self.schedule.lm_heads
        hidden = layer.input_layernorm(states[self.schedule.copy_layer])
        positions = torch.from_numpy(packed.positions).to(device)
        cos, sin = self.language_model.rotary_emb(hidden, positions)
        query, key = (
            nn.functional.linear(hidden, projection.weight[:size])[:, None]
            for projection in (attention.q_proj, attention.k_proj)
        )
        query, key = apply_rotary_pos_emb(query, key, cos, sin)
        scores = (query @ key.transpose(-1, -2))[:, 0] / size**0.5
        return scores.masked_fill(~torch.from_numpy(packed.allowed).to(device), -1e9)


def _list_length(rng: random.Random, *, long: bool) -> int:
    kind = rng.random()
    if long and kind < 0.6:
        return max(rng.randint(11, 20), rng.randint(11, 20))
    if kind < 0.45:
        return 5
    return rng.randint(2, 8) if kind < 0.85 else rng.randint(9, 20)


class _Mix:
    """Draws the questions of a batch."""

    def __init__(
        self, writer: TurnWriter, data: list[DomainImages], retrieved: dict[str, Retrieved], schedule: Schedule
    ) -> None:
        self.writer, self.data, self.retrieved, self.schedule = writer, data, retrieved, schedule
        self.lists = {d.domain: Candidates(d.domain) for d in data}
        self.shares = (0.33, 0.42, 0.18, 0.07)
        self.nonce = self.long = False
        self.tokens = schedule.mllm_tokens

    def codes(self, domain: str, row: int, truth: tuple[int, ...], k: int, rng: random.Random) -> list[tuple[int, ...]]:
        """Draw k candidates for an image, the truth among them: retrieved, look-alikes, or any."""
        kind = rng.random()
        if kind < 0.35 and k > 1:
            codes = [tuple(code) for code in self.retrieved[domain][row, :k].tolist() if code[0] >= 0]
            if truth not in codes:
                codes = [truth, *codes[: k - 1]]
            if len(codes) == k:
                return rng.sample(codes, k)
        if kind < 0.9:
            return self.lists[domain].cluster(truth, k, rng)
        return self.lists[domain].anywhere(truth, k, rng)

    def single_names(self, domain: str, truth: tuple[int, ...], rng: random.Random) -> list[Turn]:
        """Ask about one image of the held-out domain: its name, and whether single names fit; nothing is ranked.

        In the first phase a list of its names is also repeated, as it is.
        """
        turns = [self.writer.naming(domain, truth)]
        for _ in range(_JUDGED):
            code = truth
            if rng.random() < 0.5:
                code = next(c for c in self.lists[domain].cluster(truth, 2, rng) if c != truth)
            turns.append(self.writer.yes_no(self.writer.option(domain, code, truth)))
        k = rng.randint(2, _COPIED)
        if not self.nonce:
            codes = self.lists[domain].cluster(truth, k, rng)
            turns.append(self.writer.repeat([self.writer.name(domain, code) for code in codes]))
        return turns

    def copying(self, domain: str, codes: list[tuple[int, ...]], rng: random.Random) -> Turn:
        """A list to copy, without a look at the image.

        In the second phase its names are of nothing, and half of the lists stand in the ranking question: so copying
        is learned whatever the words, those of the held-out domain among them, and its categories are never in a list.
        """
        if not self.nonce:
            return self.writer.repeat([self.writer.name(domain, code) for code in codes])
        names = self.writer.nonce(len(codes), rng)
        if rng.random() < 0.5:
            return self.writer.repeat(names)
        return self.writer.framed(names, rng.randrange(len(names)), self.prompt(rng))

    @staticmethod
    def prompt(rng: random.Random) -> str:
        """The name of a ranking prompt, for the most part the paper's."""
        return rng.choices(("paper", "in-context", "long"), (0.7, 0.15, 0.15))[0]

    def turns(self, domain: str, row: int, truth: tuple[int, ...], rng: random.Random) -> list[Turn]:
        """Questions about one image of a ranking domain, up to the row's budget of tokens."""
        writer, budget = self.writer, self.tokens
        made = [writer.naming(domain, truth)]
        left = budget - len(made[0].ids)
        kinds = ["ranking", "choice"]
        if self.long and rng.random() < 0.3:
            kinds.reverse()  # a long list leaves no room for letters
        while left > 12:
            kind = kinds.pop(0) if kinds else rng.choices(("ranking", "choice", "yes", "repeat"), self.shares)[0]
            if kind == "yes":
                near = self.lists[domain].cluster(truth, 2, rng)
                code = truth if rng.random() < 0.5 else next(c for c in near if c != truth)
                turn = writer.yes_no(writer.option(domain, code, truth))
            else:
                each, besides = _TOKENS[kind]
                k = max(2, min(_list_length(rng, long=self.long), (left - besides) // each))
                codes = self.codes(domain, row, truth, k, rng)
                options = [writer.option(domain, code, truth) for code in codes]
                if kind == "ranking":
                    turn = writer.ranking(options, self.prompt(rng))
                elif kind == "repeat":
                    turn = self.copying(domain, codes, rng)
                else:
                    turn = writer.choice(options)
            if len(turn.ids) > left:
                break
            made.append(turn)
            left -= len(turn.ids)
        return made

    def rows(self, step: int, n: int, *, held_out: bool) -> tuple[list[tuple[int, int]], list[list[Turn]]]:
        """Choose n images and their questions: (set, row) and turns; the held-out domain never sees a list."""
        rng = random.Random(f"{self.schedule.seed}-{step}-{held_out}")  # noqa: S311 - no secret
        which = [i for i, d in enumerate(self.data) if (d.domain == HELD_OUT_DOMAIN) == held_out]
        rows, turns = [], []
        for i in range(n):
            part = which[(step * n + i) % len(which)]
            data = self.data[part]
            row = rng.randrange(len(data.codes))
            truth = tuple(int(v) for v in data.codes[row])
            rows.append((part, row))
            if held_out:
                turns.append(self.single_names(data.domain, truth, rng))
            else:
                turns.append(self.turns(data.domain, row, truth, rng))
        return rows, turns


class _Course:
    """What is learned in which phase.

    First to compare, on all kinds of questions; then, with lists in the majority, to copy as well; then, with longer
    lists, to use what is shown of the candidates.
    """

    def __init__(
        self,
        trainer: MLLMTrainer,
        data: list[DomainImages],
        features: list[torch.Tensor],
        retrieved: dict[str, Retrieved],
        schedule: Schedule,
    ) -> None:
        self._trainer, self._features, self._schedule = trainer, features, schedule
        self._device = str(next(trainer.parameters()).device)
        self._begin = 0
        self.mix = _Mix(trainer.writer, data, retrieved, schedule)
        self._shown = ShownMix(
            trainer.writer,
            data,
            [part for part, images in enumerate(data) if images.domain != HELD_OUT_DOMAIN],
            codes=self.mix.codes,
            prompt=self.mix.prompt,
            image_tokens=trainer.tokens,
        )

    def enter(self, phase: str) -> None:
        """Begin a phase; its steps count from 0 and draw other questions than the phases before."""
        schedule, mix = self._schedule, self.mix
        if phase == "mllm-lists":
            self._begin, mix.shares, mix.nonce = schedule.mllm_steps, (0.68, 0.14, 0.07, 0.11), True
        elif phase == "mllm-shown":
            self._begin, mix.long = schedule.mllm_steps + schedule.mllm_list_steps, True
            mix.shares, mix.tokens = (0.5, 0.2, 0.1, 0.2), schedule.mllm_long_tokens

    def loss_of(self, step: int) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a step of the phase, and its parts."""
        trainer, mix, schedule, device = self._trainer, self.mix, self._schedule, self._device
        step += self._begin
        rows, turns = mix.rows(step, _HELD_OUT_ROWS, held_out=True)
        length = _HELD_OUT_TOKENS + (0 if mix.nonce else _COPIED_TOKENS)
        held_out = pack(trainer.writer, turns, image_tokens=trainer.tokens, length=length)
        single_names, _ = trainer.loss(held_out, self._gather(rows), device)
        captions = step < schedule.mllm_caption_steps
        n = schedule.mllm_batch * (4 if captions else 1) * schedule.mllm_tokens // mix.tokens
        rows, turns = mix.rows(step, n // 2 if mix.long else n, held_out=False)
        if captions:
            turns = [t[:1] for t in turns]
        length = 8 if captions else mix.tokens
        packed = pack(trainer.writer, turns, image_tokens=trainer.tokens, length=length)
        loss, figures = trainer.loss(packed, self._gather(rows), device)
        loss = loss + 0.5 * single_names
        figures["held"] = float(single_names.detach())
        if mix.long:
            rng = random.Random(f"{schedule.seed}-{step}-shown")  # noqa: S311 - no secret
            shown, more = trainer.loss(
                *_shown_batch(trainer, self._shown.rows(_SHOWN_ROWS, rng), self._features), device
            )
            loss = loss + shown
            figures |= {f"shown {key}": value for key, value in more.items()}
        return loss, figures

    def _gather(self, rows: list[tuple[int, int]]) -> torch.Tensor:
        return torch.stack([self._features[part][row] for part, row in rows]).float()


def train_mllm(
    data: list[DomainImages],
    features: list[torch.Tensor],
    validation: list[tuple[DomainImages, torch.Tensor, list[list[tuple[int, ...]]]]],
    *,
    retrieved: dict[str, Retrieved],
    tower: Tower,
    schedule: Schedule,
    out: Path,
    device: str,
) -> None:
    """Train the language model and save the whole as a Hugging Face folder ``out/mllm``.

    ``validation`` holds, a domain: images, features, and for each image the ten look-alikes of its group.
    """
    folder = out / "mllm"
    if (folder / "model.safetensors").exists():
        log.info("mllm: done before")
        return
    torch.manual_seed(schedule.seed + 2)
    tokenizer = mllm_tokenizer()
    trainer = MLLMTrainer(schedule, tokenizer).to(device).train()
    course = _Course(trainer, data, features, retrieved, schedule)

    def validate(step: int) -> None:
        for images, states, groups in validation:
            figures = _measure(trainer, images, states, groups, device)
            text = " ".join(f"{key} {value:.3f}" for key, value in figures.items())
            log.info("mllm %d: %s %s", step, images.domain, text)
            if course.mix.long:
                figures = _measure_shown(trainer, images, states, groups, device)
                text = " ".join(f"{key} {value:.3f}" for key, value in sorted(figures.items()))
                log.info("mllm %d: %s shown: %s", step, images.domain, text)

    for phase, steps, lr in (
        ("mllm", schedule.mllm_steps, 1.0),
        ("mllm-lists", schedule.mllm_list_steps, 0.7),
        ("mllm-shown", schedule.mllm_shown_steps, 0.5),
    ):
        course.enter(phase)
        optimisers = Optimisers(
            trainer.named_parameters(),
            steps=steps,
            muon_lr=0.02 * lr,
            adam_lr=1e-3 * lr,
            is_matrix=lambda key, _: ".layers." in key,
            decay_from={"mllm": 1.0, "mllm-lists": 0.1, "mllm-shown": 0.3}[phase],
        )
        train_loop(
            phase,
            trainer,
            optimisers,
            steps=steps,
            loss_of=course.loss_of,
            checkpoint=out / f"{phase}.checkpoint",
            validate=validate,
            validate_every=500,
            log_every=50,
        )
    save(trainer, tower, tokenizer, schedule, folder)


def _shown_batch(
    trainer: MLLMTrainer, rows: list[ShownRow], features: list[torch.Tensor]
) -> tuple[Packed, torch.Tensor]:
    """Rows as tokens, and the features of their images; ``features`` are those of each set."""
    packed = pack(
        trainer.writer, [row.turns for row in rows], image_tokens=trainer.tokens, prefixes=[row.prefix for row in rows]
    )
    return packed, torch.cat([features[row.part][row.images] for row in rows]).float()


def _measure_shown(
    trainer: MLLMTrainer, images: DomainImages, features: torch.Tensor, groups: list[list[tuple[int, ...]]], device: str
) -> dict[str, float]:
    """First answers of 240 rows about validation images and their look-alikes, by form; from one seed."""

    def look_alikes(
        _domain: str, row: int, truth: tuple[int, ...], k: int, rng: random.Random
    ) -> list[tuple[int, ...]]:
        codes = [truth, *rng.sample([c for c in groups[row] if c != truth], k - 1)]
        return rng.sample(codes, k)

    rng = random.Random(0)  # noqa: S311 - no secret
    found: dict[str, list[bool]] = {}
    mix = ShownMix(
        trainer.writer, [images], [0], codes=look_alikes, prompt=lambda _: "paper", image_tokens=trainer.tokens
    )
    for _ in range(12):
        rows = mix.rows(20, rng)
        packed, shown = _shown_batch(trainer, rows, [features])
        last = trainer.states(packed, shown, device)[-1]
        guesses = (last @ trainer.language_model.get_input_embeddings().weight.T).argmax(-1).cpu().numpy()
        for form, right in right_answers(rows, packed, guesses).items():
            found.setdefault(form, []).extend(right)
    return {form: float(np.mean(right)) for form, right in found.items()}


def _measure(
    trainer: MLLMTrainer, images: DomainImages, features: torch.Tensor, groups: list[list[tuple[int, ...]]], device: str
) -> dict[str, float]:
    """Teacher-forced figures on 240 validation images, five look-alikes each, from one seed."""
    rng = random.Random(0)  # noqa: S311 - no secret
    writer, n = trainer.writer, min(240, len(images.codes))
    hits: dict[str, list[bool]] = {"name": [], "first": [], "list": [], "letter": [], "yes": []}
    for start in range(0, n, 60):
        rows, turns = range(start, min(n, start + 60)), []
        for row in rows:
            truth = tuple(int(v) for v in images.codes[row])
            codes = [truth, *rng.sample([c for c in groups[row] if c != truth], 4)]
            rng.shuffle(codes)
            options = [writer.option(images.domain, code, truth) for code in codes]
            turns.append(
                [
                    writer.naming(images.domain, truth),
                    writer.ranking(options, "paper"),
                    writer.choice(options),
                    writer.yes_no(next(option for option in options if option.match)),
                    writer.yes_no(next(option for option in options if not option.match)),
                ]
            )
        packed = pack(writer, turns, image_tokens=trainer.tokens, length=180)
        last = trainer.states(packed, features[start : start + len(rows)].float(), device)[-1]
        guess = (last @ trainer.language_model.get_input_embeddings().weight.T).argmax(-1).cpu().numpy()
        right = (guess == packed.labels) | (packed.labels == IGNORE)
        prefix = trainer.tokens + len(writer.user) + len(writer.newline)
        for r, row_turns in enumerate(turns):
            at = prefix
            for kind, turn in zip(("name", "ranking", "letter", "yes", "yes"), row_turns, strict=True):
                span = np.arange(at, at + len(turn.ids))
                at += len(turn.ids)
                answers = [i for i in span if packed.labels[r, i] != IGNORE]
                if kind == "ranking":
                    hits["first"].append(bool(right[r, answers[: 1 + images.codes.shape[1]]].all()))
                    hits["list"].append(bool(right[r, answers[1 + images.codes.shape[1] :]].all()))
                elif kind == "name":
                    hits["name"].append(bool(right[r, answers].all()))
                else:
                    hits[kind].append(bool(right[r, answers[0]]))
    return {key: float(np.mean(values)) for key, values in hits.items()}


def save(
    trainer: MLLMTrainer, tower: Tower, tokenizer: PreTrainedTokenizerFast, schedule: Schedule, folder: Path
) -> None:
    """Put tower, projector and language model into one stock LLaVA and write the folder."""
    model = _build(schedule, tokenizer).eval()
    parts: list[tuple[Any, Any]] = [
        (model.model.vision_tower, tower.vision),
        (model.model.multi_modal_projector, trainer.projector),
        (model.model.language_model, trainer.language_model),
    ]
    for target, source in parts:
        target.load_state_dict(source.state_dict())
    model.tie_weights()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    LlavaProcessor(
        image_processor=image_processor(schedule.tower.image),
        tokenizer=tokenizer,
        patch_size=schedule.tower.patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)
