"""Tiny, randomly initialised CLIP, SigLIP and SigLIP 2 checkpoints with tokenizers, as save_pretrained writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = {"initializer_range": 0.5}


def tiny_clip(path: Path, *, seed: int = 0) -> Path:
    import torch
    from tokenizers import pre_tokenizers
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *(f"{letter}</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={s: i for i, s in enumerate(symbols)}, merges=[], model_max_length=24)
    text = {**SIZES, **WIDE, "vocab_size": len(symbols), "max_position_embeddings": 24}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    vision = {**SIZES, **WIDE, "image_size": 32, "patch_size": 8}
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    CLIPModel(config).eval().save_pretrained(path)
    side = {"height": 32, "width": 32}
    pictures = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=side)
    CLIPProcessor(image_processor=pictures, tokenizer=tokenizer).save_pretrained(path)
    return path


def _siglip_tokenizer() -> Any:
    from transformers import Siglip2Tokenizer

    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = [*specials, *(f"<0x{b:02X}>" for b in range(256)), "▁", *"abcdefghijklmnopqrstuvwxyz0123456789"]
    return Siglip2Tokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], padding_side="right")


def tiny_siglip(path: Path, *, seed: int = 0) -> Path:
    import torch
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

    tokenizer = _siglip_tokenizer()
    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    torch.manual_seed(seed)
    SiglipModel(
        SiglipConfig(text_config=text, vision_config={**SIZES, "image_size": 32, "patch_size": 8})
    ).save_pretrained(path)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def tiny_siglip2(path: Path, *, seed: int = 0) -> Path:
    import torch
    from transformers import Siglip2Config, Siglip2ImageProcessorPil, Siglip2Model

    tokenizer = _siglip_tokenizer()
    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    vision = {**SIZES, "num_patches": 16, "patch_size": 8}
    torch.manual_seed(seed)
    Siglip2Model(Siglip2Config(text_config=text, vision_config=vision)).eval().save_pretrained(path)
    Siglip2ImageProcessorPil(patch_size=8, max_num_patches=16).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def sentence_model(
    path: Path, *, family: str = "bert", pooling: dict[str, Any] | None = None, modules: list[str] | None = None
) -> Path:
    """A checkpoint as sentence-transformers write it, with the parts and the pooling that are given."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast, MPNetConfig, MPNetModel

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
    words += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
    path.mkdir()
    (path / "vocab.txt").write_text("\n".join(words))
    BertTokenizerFast(vocab=str(path / "vocab.txt"), model_max_length=30).save_pretrained(path)
    size = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
            "initializer_range": 0.5, "vocab_size": len(words), "max_position_embeddings": 40}  # fmt: skip
    torch.manual_seed(0)
    model = BertModel(BertConfig(**size)) if family == "bert" else MPNetModel(MPNetConfig(**size))
    model.eval().save_pretrained(path)
    if pooling is not None:
        (path / "1_Pooling").mkdir()
        (path / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if modules is not None:
        (path / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{m}"} for m in modules]))
    return path
