"""A trainer for tests of the embedded MLLM's training: three layers, fresh weights."""

import torch

from rarvision.embedded.training.config import Schedule
from rarvision.embedded.training.mllm import MLLMTrainer


def small_trainer(tokenizer):
    torch.manual_seed(0)
    return MLLMTrainer(
        Schedule(lm_layers=3, word_probe_layer=1, candidate_probe_layer=2, pointer_probe_layer=2, copy_layer=2),
        tokenizer,
    ).eval()
