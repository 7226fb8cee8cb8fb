"""What ranking costs: ``python benchmarks/ranking.py``.

Ratios of medians from interleaved repeats in one run. On the embedded MLLM, one image at a time and batched: the option
letter against the generated list; the likelihood of names with the prompt shared against each name scored from scratch.
On it and on a random model of LLaVA's shape (576 image tokens, few and narrow layers): several questions about an image
(cyclic permutations, yes or no name by name) against one, beside what the operations say, and beside the same questions
asked so that nothing is shared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL.Image import Image
from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration

from rarvision.chat import ChatRequest, LocalChat
from rarvision.datasets.fieldguide import FieldGuide
from rarvision.embedded import weights_path
from rarvision.images import load_image
from rarvision.ranking import Ranker, choice_prompt, ranking_prompt


def medians(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Run the jobs in turn, ``repeats`` times after one warm-up; the median seconds of each."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for repeat in range(repeats + 1):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            if repeat:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def compare(images: Sequence[Image], lists: Sequence[Sequence[str]], *, batch: int, repeats: int) -> dict[str, float]:
    """Milliseconds an image of each way at one batch size, and the two ratios."""
    chat = LocalChat(weights_path("mllm"), batch_size=batch)
    names = [lists[i % len(lists)] for i in range(len(images))]
    rankers = {name: Ranker(chat, strategy=name) for name in ("generate", "choice")}
    requests = [ChatRequest.of(ranking_prompt(n), image) for image, n in zip(images, names, strict=True)]
    answers = [[f"['{name}'" for name in n] for n in names]
    each = [(request, [text]) for request, texts in zip(requests, answers, strict=True) for text in texts]
    starts = range(0, len(images), batch)

    def rank(name: str) -> None:
        for start in starts:
            rankers[name].rank_batch(images[start : start + batch], names[start : start + batch])

    def shared() -> None:
        for start in starts:
            chat.continuation_log_probs(requests[start : start + batch], answers[start : start + batch])

    def scratch() -> None:
        for start in range(0, len(each), batch):
            part = each[start : start + batch]
            chat.continuation_log_probs([r for r, _ in part], [t for _, t in part])

    seconds = medians(
        {
            "generate": lambda: rank("generate"),
            "choice": lambda: rank("choice"),
            "likelihood, shared prefix": shared,
            "likelihood, from scratch": scratch,
        },
        repeats,
    )
    found = {f"{name}, batch {batch}, ms an image": 1000 * s / len(images) for name, s in seconds.items()}
    found[f"choice is faster than generate, batch {batch}"] = seconds["generate"] / seconds["choice"]
    found[f"shared prefix is faster than scratch, batch {batch}"] = (
        seconds["likelihood, from scratch"] / seconds["likelihood, shared prefix"]
    )
    return found


def random_llava(folder: Path) -> Path:
    """Write a random model with LLaVA-1.5's 24 x 24 patches of 336 pixels, narrow and shallow; returns the folder."""
    base, side = weights_path("mllm"), 336
    config = AutoConfig.from_pretrained(base)
    config.image_seq_length = 576
    for part in (config.vision_config, config.text_config):
        part.hidden_size, part.intermediate_size = 256, 1024
        part.num_attention_heads, part.num_hidden_layers = 4, 4
    config.vision_config.image_size, config.vision_config.patch_size = side, 14
    config.text_config.num_key_value_heads, config.text_config.head_dim = 4, 64
    config.text_config.max_position_embeddings = 2048
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).eval().save_pretrained(folder)
    processor = AutoProcessor.from_pretrained(base)
    processor.patch_size = 14
    processor.image_processor.size = {"shortest_edge": side}
    processor.image_processor.crop_size = {"height": side, "width": side}
    processor.save_pretrained(folder)
    return folder


def operations(folder: Path, names: Sequence[str], image: Image, orders: int) -> float:
    """How much more several orders must cost than one: the image and what prompts share once, what differs each time.

    Multiplications of the layers and of attention over all keys, as they are computed; nothing else.
    """
    config, processor = AutoConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    turns = [[*names[turn:], *names[:turn]] for turn in range(2)]
    talks = [
        [
            {
                "role": "user",
                "content": [{"type": "image", "image": image}, {"type": "text", "text": choice_prompt(turn)}],
            }
        ]
        for turn in turns
    ]
    first, second = processor.tokenizer(processor.apply_chat_template(talks, add_generation_prompt=True))["input_ids"]
    shared = next(at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    vision, text = config.vision_config, config.text_config
    patches = (vision.image_size // vision.patch_size) ** 2

    def layers(part: object, tokens: int, keys: int, matrices: int) -> float:
        width, inner, depth = part.hidden_size, part.intermediate_size, part.num_hidden_layers  # type: ignore[attr-defined]  # a config
        return depth * tokens * (2 * (4 * width**2 + matrices * width * inner) + 4 * keys * width)

    stem, rest = patches - 1 + shared, len(first) - shared
    seen = layers(vision, patches + 1, patches + 1, 2)
    seen += 2 * patches * text.hidden_size * (vision.hidden_size + text.hidden_size)
    once, each = seen + layers(text, stem, stem, 3), layers(text, rest, stem + rest, 3)
    return (once + orders * each) / (once + each)


def share(
    label: str, folder: Path, images: Sequence[Image], lists: Sequence[Sequence[str]], *, batch: int, repeats: int
) -> dict[str, float]:
    """Milliseconds an image of one question and of several, their ratios, and what the operations say."""
    chat = LocalChat(folder, batch_size=batch)
    names = [lists[i % len(lists)] for i in range(len(images))]
    starts = range(0, len(images), batch)
    rankers = {orders: Ranker(chat, strategy="choice", permutations=orders) for orders in (1, 2, 4)}
    pointwise = Ranker(chat, strategy="pointwise")

    def rank(ranker: Ranker) -> None:
        for start in starts:
            ranker.rank_batch(images[start : start + batch], names[start : start + batch])

    def apart() -> None:
        for turn in range(4):  # the same lists as four permutations, in calls of their own
            for start in starts:
                shown = [[*n[turn:], *n[:turn]] for n in names[start : start + batch]]
                rankers[1].rank_batch(images[start : start + batch], shown)

    jobs: dict[str, Callable[[], object]] = {
        f"{orders} orders": lambda ranker=ranker: rank(ranker) for orders, ranker in rankers.items()
    }
    seconds = medians({**jobs, "4 orders, nothing shared": apart, "pointwise": lambda: rank(pointwise)}, repeats)
    if not chat.image_reuse:
        raise SystemExit(f"{label}: the image is not shared")
    found = {f"{label}, {name}, ms an image": 1000 * s / len(images) for name, s in seconds.items()}
    for name, orders in (("2 orders", 2), ("4 orders", 4)):
        must = operations(folder, names[0], images[0], orders)
        found[f"{label}, {name} against 1"] = seconds[name] / seconds["1 orders"]
        found[f"{label}, {name} against 1, by operations"] = must
        found[f"{label}, {name}, measured over operations"] = seconds[name] / seconds["1 orders"] / must
    found[f"{label}, 4 orders are faster than nothing shared"] = (
        seconds["4 orders, nothing shared"] / seconds["4 orders"]
    )
    found[f"{label}, pointwise against 1 order"] = seconds["pointwise"] / seconds["1 orders"]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32, help="images a batch")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--wide-images", type=int, default=4, help="images for the model with 576 image tokens")
    parser.add_argument("--only", choices=("strategies", "sharing"), help="one of the two parts")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    guide = FieldGuide("birds", categories=200, seed=0)
    images = [load_image(sample.image) for sample in guide.queries(options.images)]
    names = [guide.names[10 * i : 10 * i + 5] for i in range(20)]
    results: dict[str, float] = {}
    for batch in (1, options.images) if options.only != "sharing" else ():
        results |= compare(images if batch > 1 else images[:8], names, batch=batch, repeats=options.repeats)
    if options.only != "strategies":
        wide = images[: options.wide_images]
        with tempfile.TemporaryDirectory() as scratch:
            tall = random_llava(Path(scratch))
            for label, folder, shown, batch in (
                ("embedded, batch 1", weights_path("mllm"), images[:8], 1),
                (f"embedded, batch {len(images)}", weights_path("mllm"), images, len(images)),
                ("576 image tokens, batch 1", tall, wide, 1),
                (f"576 image tokens, batch {len(wide)}", tall, wide, len(wide)),
            ):
                results |= share(label, folder, shown, names, batch=batch, repeats=options.repeats)
    if options.json:
        print(json.dumps(results, indent=1))
    else:
        for name, value in results.items():
            print(f"{name:66s} {value:8.2f}")


if __name__ == "__main__":
    main()
