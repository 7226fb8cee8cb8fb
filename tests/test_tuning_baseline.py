"""The baseline without retrieval: all names in the prompt, a few examples of each, and where they do not fit."""

from __future__ import annotations

import json

import pytest

from rarvision.datasets import ImageFolder
from rarvision.errors import DatasetError, OptionError
from rarvision.tuning import baseline, few_shot_baseline, recipe
from rarvision.tuning.lessons import naming_lessons
from rarvision.types import Sample
from tiny_models import tiny_llava
from training_world import NAMES, pictures, square

QUICK = recipe("paper", batch_size=5, micro_batch_size=5, learning_rate=5e-3, epochs=8)


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return ImageFolder(pictures(root / "train", 3)), ImageFolder(pictures(root / "test", 2, seed=1))


def test_the_prompt_holds_all_names_and_the_answer_one(images):
    lessons = naming_lessons(images[0], images[0].categories)
    assert len(lessons) == 15
    assert all(name in lesson.prompt for lesson in lessons for name in NAMES)
    assert {lesson.answer for lesson in lessons} == set(NAMES)
    assert all(lesson.ends for lesson in lessons)
    with pytest.raises(DatasetError, match="among the 2 names, got"):
        naming_lessons(images[0], NAMES[:2])


def test_it_names_what_it_was_tuned_on(llava, images, tmp_path, monkeypatch):
    options = {"model": llava, "out": tmp_path / "run", "shots": 2, "recipe": QUICK, "device": "cpu"}
    told = []
    report = few_shot_baseline(*images, progress=lambda *state: told.append(state), **options)
    assert (report.n, report.names, report.shots, report.examples) == (10, 5, 2, 10)
    assert report.reason is None
    lines = [json.loads(line) for line in (tmp_path / "run" / "answers.jsonl").read_text().splitlines()]
    assert report.top1 == sum(line["right"] for line in lines[1:]) / 10
    assert report.unread == sum(not line["read"] for line in lines[1:]) / 10
    assert report.losses[-1][1] < report.losses[0][1]
    assert told[-1] == ("naming", 10, 10)
    assert ("top-1", f"{report.top1:.1%} of 10 images") in report.table()
    assert json.loads(json.dumps(report.to_dict()))["top1"] == report.top1
    # cut short: it goes on after the last whole line
    text = (tmp_path / "run" / "answers.jsonl").read_text()
    (tmp_path / "run" / "answers.jsonl").write_text("".join(text.splitlines(keepends=True)[:5]) + '{"source": "x')
    asked = []
    real = baseline.picture_of
    monkeypatch.setattr(baseline, "picture_of", lambda dataset, row: asked.append(row) or real(dataset, row))
    assert few_shot_baseline(*images, **options) == report
    assert asked == list(range(4, 10))
    assert (tmp_path / "run" / "answers.jsonl").read_text() == text


def test_names_that_exceed_the_context_give_no_figure_but_a_reason(llava, images, tmp_path, monkeypatch):
    train, test = images
    many = tuple(f"species number {i} of the large family" for i in range(200))
    monkeypatch.setitem(vars(train), "categories", (*train.categories, *many))
    report = few_shot_baseline(train, test, model=llava, out=tmp_path / "run", shots=1, recipe=QUICK, device="cpu")
    assert report.top1 is None
    assert report.names == 205
    assert "205 names" in report.reason
    assert "holds 1024" in report.reason
    assert ("top-1", "-") in report.table()
    assert ("why", report.reason) in report.table()
    assert json.loads(json.dumps(report.to_dict()))["top1"] is None


def test_what_does_not_go_together(llava, images, tmp_path):
    options = {"model": llava, "out": tmp_path / "run", "device": "cpu"}
    with pytest.raises(OptionError, match="prompt and an objective of its own"):
        few_shot_baseline(*images, recipe=recipe("lora", objective="choice"), **options)
    square(tmp_path / "more" / "raven" / "0.png", NAMES[0], 0)
    with pytest.raises(DatasetError, match=r"its label 'raven' is none of the 5 categories"):
        few_shot_baseline(images[0], ImageFolder(tmp_path / "more"), recipe=QUICK, **options)
    with pytest.raises(OptionError, match="limit must be at least 1"):
        few_shot_baseline(*images, recipe=QUICK, limit=0, **options)
    assert not (tmp_path / "run").exists()


def test_only_the_box_of_a_sample_is_shown(images, monkeypatch):
    sample = images[0][0]
    boxed = Sample(source=sample.source, image=sample.image, label=sample.label, box_xyxy=(0, 0, 8, 4))
    monkeypatch.setattr(type(images[0]), "__getitem__", lambda self, index: boxed)
    assert naming_lessons(images[0], NAMES)[0].image().size == (8, 4)
