"""Tiny, randomly initialised checkpoints in the stock formats, built on the spot: the weights are noise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CORPUS = [
    "Please play the role of a classification expert, and sort the provided categories from high to low.",
    "Here are the optional categories: ['gold finch', 'house sparrow', 'barn owl', 'red kite', \"Wilson's warbler\"].",
    "Which category does the image show? Answer with its name only. yes no Yes No",
    "A. gold finch\nB. house sparrow\nC. barn owl\nD. red kite\nE. tree creeper",
    "Answer with the option's letter from the given choices directly. USER: ASSISTANT: ",
]
LETTERS = " ".join("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "{{ '</s>' if m['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}{% else %}{{ p['text'] }}"
    "{% endif %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.5,
}


def sentencepiece_like_tokenizer() -> Any:
    """Llama's scheme: spaces as ``▁``, one put in front, bytes as the fallback; unknown characters become bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    byte_tokens = [f"<0x{b:02X}>" for b in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=specials, show_progress=False)
    words = [word for line in [*CORPUS, LETTERS] for word in line.split()]
    tokenizer.train_from_iterator(words * 3, trainer)
    vocab = tokenizer.get_vocab()
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    for token in byte_tokens:
        vocab[token] = len(vocab)
    tokenizer.model = models.BPE(
        vocab=vocab, merges=[tuple(m) for m in merges], unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        clean_up_tokenization_spaces=False,
    )


def byte_level_tokenizer() -> Any:
    """Qwen's scheme: byte-level BPE with chat and vision markers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        additional_special_tokens=[
            "<|im_start|>",
            "<|vision_start|>",
            "<|vision_end|>",
            "<|image_pad|>",
            "<|video_pad|>",
        ],
    )


def tiny_llava(path: Path, *, seed: int = 0) -> Path:
    """Write a LLaVA (CLIP tower, Llama) with 4 image tokens an image; returns ``path``."""
    import torch
    from transformers import (
        CLIPImageProcessorPil,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = sentencepiece_like_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
        initializer_range=0.5,
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **TEXT,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=4,
    )
    torch.manual_seed(seed)
    LlavaForConditionalGeneration(config).eval().save_pretrained(path)
    side = {"height": 16, "width": 16}
    LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=side),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    ).save_pretrained(path)
    return path


def _save_qwen(path: Path, model: Any, tokenizer: Any, *, patch_size: int) -> Path:
    """Save model, tokenizer, image processor and template as the hub's Qwen folders hold them."""
    from transformers import Qwen2VLImageProcessorPil

    model.eval().save_pretrained(path)
    tokenizer.chat_template = QWEN_TEMPLATE
    tokenizer.save_pretrained(path)
    cell = patch_size * 2
    processor = Qwen2VLImageProcessorPil(
        patch_size=patch_size,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": cell * cell * 2, "longest_edge": cell * cell * 16},
    )
    processor.save_pretrained(path)
    name = "preprocessor_config.json"
    settings = json.loads((path / name).read_text())
    settings["image_processor_type"] = "Qwen2VLImageProcessor"
    settings["processor_class"] = type(model).__name__.replace("ForConditionalGeneration", "Processor")
    (path / name).write_text(json.dumps(settings))
    return path


def _qwen_ids(tokenizer: Any) -> dict[str, int]:
    ids = tokenizer.convert_tokens_to_ids
    return {
        "image_token_id": ids("<|image_pad|>"),
        "video_token_id": ids("<|video_pad|>"),
        "vision_start_token_id": ids("<|vision_start|>"),
        "vision_end_token_id": ids("<|vision_end|>"),
    }


def tiny_qwen25_vl(path: Path, *, seed: int = 0) -> Path:
    """Write a Qwen2.5-VL; returns ``path``."""
    import torch
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    tokenizer = byte_level_tokenizer()
    config = Qwen2_5_VLConfig(
        text_config={
            **TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0},
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 16,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.5,
        },
        **_qwen_ids(tokenizer),
    )
    torch.manual_seed(seed)
    return _save_qwen(path, Qwen2_5_VLForConditionalGeneration(config), tokenizer, patch_size=4)


def tiny_qwen3_vl(path: Path, *, seed: int = 0) -> Path:
    """Write a Qwen3-VL; returns ``path``."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = byte_level_tokenizer()
    config = Qwen3VLConfig(
        text_config={
            **TEXT,
            "head_dim": 8,
            "vocab_size": len(tokenizer),
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [2, 1, 1],
                "mrope_interleaved": True,
                "rope_theta": 10_000.0,
            },
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
            "initializer_range": 0.5,
        },
        **_qwen_ids(tokenizer),
    )
    torch.manual_seed(seed)
    return _save_qwen(path, Qwen3VLForConditionalGeneration(config), tokenizer, patch_size=4)


FAMILIES = {"llava": tiny_llava, "qwen2.5-vl": tiny_qwen25_vl, "qwen3-vl": tiny_qwen3_vl}


def tiny_blip2(path: Path, *, language: str = "opt", seed: int = 0) -> Path:
    """Write a BLIP-2 with 3 query tokens, whose language model is an OPT or a T5; returns ``path``."""
    import torch
    from transformers import (
        Blip2Config,
        Blip2ForConditionalGeneration,
        Blip2Processor,
        BlipImageProcessorPil,
        OPTConfig,
        PreTrainedTokenizerFast,
        T5Config,
    )

    base = sentencepiece_like_tokenizer()
    marks = {name: getattr(base, name) for name in ("unk_token", "bos_token", "eos_token", "pad_token")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=base.backend_tokenizer, **marks)  # BLIP-2's has no image token
    common = {
        "vocab_size": len(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    if language == "opt":
        text: Any = OPTConfig(
            hidden_size=32, num_hidden_layers=2, ffn_dim=64, num_attention_heads=4, word_embed_proj_dim=32,
            max_position_embeddings=256, init_std=0.5, **common,
        )  # fmt: skip
    else:
        text = T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=tokenizer.pad_token_id,
            **common,
        )  # fmt: skip
    vision = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "image_size": 16, "patch_size": 8, "initializer_range": 0.5,
    }  # fmt: skip
    former = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "encoder_hidden_size": 32, "vocab_size": 30,
    }  # fmt: skip
    config = Blip2Config(
        vision_config=vision,
        qformer_config=former,
        text_config=text.to_dict(),
        num_query_tokens=3,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    torch.manual_seed(seed)
    Blip2ForConditionalGeneration(config).eval().save_pretrained(path)
    Blip2Processor(
        image_processor=BlipImageProcessorPil(size={"height": 16, "width": 16}),
        tokenizer=tokenizer,
        num_query_tokens=3,
    ).save_pretrained(path)
    return path
