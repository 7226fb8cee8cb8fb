"""What is trained of the MLLM: projector and language model, with probes that only the training has."""

from __future__ import annotations

import torch
from torch import nn
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from rarvision.embedded.training.config import Schedule
from rarvision.embedded.training.conversations import IGNORE, Packed, TurnWriter
from rarvision.embedded.training.tower import tower_config

__all__ = ["MLLMTrainer", "build"]


def build(schedule: Schedule, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """A stock LLaVA of the schedule's sizes, with fresh weights."""
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
        llava = build(schedule, tokenizer)
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
