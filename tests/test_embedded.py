"""The models inside the wheel: standard folders, small, and as good as their card says."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rarvision.embedded
from rarvision.chat import ChatRequest, LocalChat
from rarvision.datasets import FieldGuide
from rarvision.datasets.fieldguide import HELD_OUT_DOMAIN
from rarvision.demo import run_demo
from rarvision.embedded import MODELS, weights_path
from rarvision.encoders import TransformersEncoder
from rarvision.errors import OptionError
from rarvision.images import load_image
from rarvision.ranking import NAMING_PROMPT, Ranker

WEIGHTS = Path(rarvision.embedded.__file__).parent / "weights"


@pytest.fixture(scope="module")
def chat():
    return LocalChat(weights_path("mllm"), batch_size=32)


def _asked(domain, n, k, seed=0):
    """n test images, each with k look-alikes of its group, the truth among them."""
    guide = FieldGuide(domain, categories=200, seed=seed)
    samples = list(guide.queries(n))
    rng = np.random.default_rng(seed)
    names = []
    for sample in samples:
        start = guide.names.index(sample.label) // 10 * 10
        others = [name for name in guide.names[start : start + 10] if name != sample.label]
        shown = [sample.label, *rng.permutation(others)[: k - 1]]
        names.append([str(name) for name in rng.permutation(shown)])
    return [load_image(s.image) for s in samples], names, [s.label for s in samples]


def _share(ranker, images, names, labels):
    rankings = ranker.rank_batch(images, names)
    return np.mean([n[r.order[0]] == label for n, r, label in zip(names, rankings, labels, strict=True)])


def test_all_weights_together_are_under_25_megabytes_and_safetensors():
    files = [file for file in WEIGHTS.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 25_000_000
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".jinja", ".txt"}
    assert {file.parent.name for file in files if file.suffix == ".safetensors"} == set(MODELS)


def test_an_unknown_model_is_an_error_that_names_the_known_ones():
    with pytest.raises(OptionError, match="clip-16, clip-32, mllm"):
        weights_path("clip-64")


def test_they_load_by_the_stock_classes():
    from transformers import AutoModelForImageTextToText, AutoProcessor, CLIPModel, LlavaForConditionalGeneration

    assert isinstance(AutoModelForImageTextToText.from_pretrained(weights_path("mllm")), LlavaForConditionalGeneration)
    assert AutoProcessor.from_pretrained(weights_path("mllm")).chat_template
    for name in ("clip-16", "clip-32"):
        assert CLIPModel.from_pretrained(weights_path(name)).config.projection_dim == 128


def test_the_processors_see_drawn_images_as_training_did():
    from rarvision.embedded.training.images import normalised, resized

    pixels = FieldGuide("fish", categories=10).queries(4).pixels()
    for name, size in (("clip-16", 16), ("clip-32", 32)):
        processor = TransformersEncoder(weights_path(name))._processor
        seen = processor([Image.fromarray(p) for p in pixels], return_tensors="np")["pixel_values"]
        np.testing.assert_allclose(seen, normalised(resized(pixels, size)), atol=1e-5)


@pytest.mark.parametrize("domain", ["birds", HELD_OUT_DOMAIN])
@pytest.mark.parametrize("strategy", ["likelihood", "choice", "pointwise"])
def test_look_alikes_are_told_apart(chat, domain, strategy):
    images, names, labels = _asked(domain, 80, 5)
    ranker = Ranker(chat, strategy=strategy)
    assert _share(ranker, images, names, labels) > 0.7
    swapped = [*images[1:], images[0]]
    assert _share(ranker, swapped, names, labels) < 0.4  # chance is 0.2


@pytest.mark.parametrize("k", [2, 10, 20])
def test_letters_serve_two_to_twenty_options(chat, k):
    images, names, labels = _asked("flowers", 40, min(k, 10))
    if k == 20:
        other = FieldGuide("flowers", categories=200, seed=5).names
        names = [[*n, *[o for o in other if o not in n][:10]] for n in names]
    assert _share(Ranker(chat, strategy="choice"), images, names, labels) > 0.7


@pytest.mark.parametrize(("domain", "k", "complete"), [("birds", 2, 0.9), ("flowers", 5, 0.85), ("birds", 10, 0.75)])
def test_free_lists_are_complete_and_begin_with_the_truth(chat, domain, k, complete):
    images, names, labels = _asked(domain, 60, k, seed=4)
    ranker = Ranker(chat, strategy="generate")
    rankings = ranker.rank_batch(images, names)
    assert np.mean([ranking.status == "ranked" for ranking in rankings]) > complete
    assert np.mean([n[r.order[0]] == label for n, r, label in zip(names, rankings, labels, strict=True)]) > 0.8
    if k == 5:
        assert _share(ranker, [*images[1:], images[0]], names, labels) < 0.4  # chance is 0.2


def test_lists_of_twenty_fit_the_context_and_begin_with_the_truth(chat):
    images, names, labels = _asked("birds", 32, 10, seed=4)
    others = FieldGuide("birds", categories=200, seed=4).names
    names = [[*(o for o in others[::-1] if o not in n)][:10] + n for n in names]
    assert _share(Ranker(chat, strategy="generate"), images, names, labels) > 0.7


@pytest.mark.parametrize("k", [2, 5, 20])
def test_confined_lists_are_complete_permutations(chat, k):
    images, _, _ = _asked("birds", 4, 5)
    names = [FieldGuide("birds", categories=200, seed=seed).names[: 10 * k : 10] for seed in range(4)]
    for ranking in Ranker(chat, strategy="generate", constrained=True).rank_batch(images, names):
        assert ranking.status == "ranked"
        assert sorted(ranking.order) == list(range(k))


def test_it_names_what_it_sees(chat):
    images, _, labels = _asked("butterflies", 40, 5)
    answers = chat.generate([ChatRequest.of(NAMING_PROMPT, image) for image in images], max_tokens=12)
    assert np.mean([a.text == label for a, label in zip(answers, labels, strict=True)]) > 0.6


def test_the_demo_ranks_better_than_it_retrieves(tmp_path):
    picture = tmp_path / "new" / "demo.png"
    result = run_demo(categories=100, queries=100, seed=3, picture=picture)
    assert result.rar_top1 >= result.retrieval_top1 + 8
    assert result.rar_top1 >= result.knn_top1 + 15
    assert result.recall_at_5 > 90
    with Image.open(picture) as image:
        assert image.width > 800
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 1_000
    again = run_demo(categories=100, queries=100, seed=3)
    assert (again.knn_top1, again.retrieval_top1, again.rar_top1) == (
        result.knn_top1,
        result.retrieval_top1,
        result.rar_top1,
    )


def test_the_demo_on_the_command_line_prints_one_object():
    arguments = (
        "demo --seed 1 --domain fish --categories 30 --shots 2 --queries 20 --strategy choice --json --no-picture"
    )
    done = subprocess.run(
        [sys.executable, "-m", "rarvision", *arguments.split()], capture_output=True, text=True, check=True, timeout=240
    )
    found = json.loads(done.stdout)
    expected = {
        "seed": 1,
        "domain": "fish",
        "categories": 30,
        "shots": 2,
        "queries": 20,
        "strategy": "choice",
    }
    assert found | expected == found
    figures = ["knn_top1", "retrieval_top1", "recall_at_5", "rar_top1", "fallback_rate", "repaired_rate"]
    times = ["ms_per_image_retrieval", "ms_per_image_ranking"]
    assert all(0 <= found[name] <= 100 for name in figures)
    assert all(found[name] > 0 for name in times)
