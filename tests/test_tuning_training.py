"""Training: it learns, the same each time, goes on where it stopped, and leaves what was good when it fails."""

from __future__ import annotations

import gc
import json
import logging
import os
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rarvision.chat import LocalChat
from rarvision.datasets import FieldGuide
from rarvision.embedded import weights_path
from rarvision.errors import (
    ChatUnavailableError,
    ChatUnsupportedError,
    DatasetError,
    ImageError,
    InputError,
    MissingExtraError,
    OptionError,
    TrainingError,
)
from rarvision.images import load_image
from rarvision.ranking import Ranker
from rarvision.tuning import heldout, loop, read_manifest, recipe, train
from rarvision.tuning.losses import answer_loss
from rarvision.tuning.runs import RunFolder
from tiny_models import tiny_llava, tiny_qwen25_vl
from training_world import manifest


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    """What was imported need not be searched by each training's own collections: they take half of its time."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return tiny_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return manifest(tmp_path_factory.mktemp("data"), 20)


def small(method="lora", **changes):
    """A few steps of two examples; four to an epoch of eight examples would be five steps of four."""
    sizes = {"rank": 4} if method == "lora" else {}
    preset = "lora" if method == "lora" else "paper"
    return recipe(preset, **{"batch_size": 4, "micro_batch_size": 2, "learning_rate": 1e-3, **sizes, **changes})


def weights(report):
    name = "adapter_model.safetensors" if report.method == "lora" else "model.safetensors"
    return load_file(report.result / name)


def same(first, second, tolerance=0.0):
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first) <= tolerance


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("lora", {"objective": "generate", "rank": 16, "learning_rate": 1e-2}),
        ("full", {"objective": "choice", "learning_rate": 3e-3}),
        pytest.param("lora", {"objective": "choice", "rank": 16, "learning_rate": 1e-2}, marks=pytest.mark.slow),
        pytest.param("full", {"objective": "choice", "listwise": True, "learning_rate": 3e-3}, marks=pytest.mark.slow),
        pytest.param("full", {"objective": "likelihood", "learning_rate": 3e-3}, marks=pytest.mark.slow),
        pytest.param("full", {"objective": "generate", "learning_rate": 3e-3}, marks=pytest.mark.slow),
    ],
    ids=["generate", "full-choice", "choice", "full-listwise", "full-likelihood", "full-generate"],
)
def test_the_loss_falls(llava, data, tmp_path, method, changes):
    told = []
    report = train(
        data,
        model=llava,
        out=tmp_path / "run",
        recipe=small(method, epochs=4, projector_learning_rate=1e-3, **changes),
        device="cpu",
        progress=lambda *state: told.append(state),
    )
    assert len(report.losses) == 20
    assert [step for step, _ in report.losses] == list(range(1, 21))
    assert report.loss_end < 0.8 * report.loss_start
    assert told[0] == ("training", 0, 20)
    assert told[-1] == ("training", 20, 20)
    assert 0 < report.trained < report.total
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_image_encoder_stays_and_projector_may(llava, data, tmp_path):
    base = load_file(llava / "model.safetensors")
    report = train(data, model=llava, out=tmp_path / "a", recipe=small("full", epochs=0.6), device="cpu")
    changed = {name for name, value in weights(report).items() if not torch.equal(value, base[name])}
    assert not [name for name in changed if "vision_tower" in name]
    assert [name for name in changed if "projector" in name]
    assert [name for name in changed if "language_model" in name]
    report = train(
        data, model=llava, out=tmp_path / "b", recipe=small("full", epochs=0.6, projector=False), device="cpu"
    )
    assert not [n for n, value in weights(report).items() if "projector" in n and not torch.equal(value, base[n])]


def test_the_same_seed_gives_the_same_weights(llava, data, tmp_path):
    one, two, other = (
        train(data, model=llava, out=tmp_path / name, recipe=small(epochs=0.6, seed=seed), device="cpu")
        for name, seed in (("one", 0), ("two", 0), ("other", 1))
    )
    assert same(weights(one), weights(two))
    assert one.losses == two.losses
    assert not same(weights(one), weights(other))


@pytest.mark.slow
def test_how_a_batch_is_split_changes_rounding_only(llava, data, tmp_path):
    reports = [
        train(
            data,
            model=llava,
            out=tmp_path / str(size),
            recipe=small(epochs=1, micro_batch_size=size, dropout=0.0),
            device="cpu",
        )
        for size in (1, 4)
    ]
    for (_, one), (_, four) in zip(reports[0].losses, reports[1].losses, strict=True):
        assert one == pytest.approx(four, rel=1e-3)


def interrupt_at(step):
    def progress(phase, done, total):
        if phase == "training" and done == step:
            os.kill(os.getpid(), signal.SIGINT)

    return progress


class Killed(BaseException):
    """What ends a process without its being asked."""


def kill_at(step):
    def progress(phase, done, total):
        if done == step:
            raise Killed

    return progress


@pytest.mark.parametrize(
    ("make", "method"),
    [
        (tiny_llava, "lora"),
        (tiny_llava, "full"),
        pytest.param(tiny_qwen25_vl, "lora", marks=pytest.mark.slow),
        pytest.param(tiny_qwen25_vl, "full", marks=pytest.mark.slow),
    ],
    ids=["llava-lora", "llava-full", "qwen-lora", "qwen-full"],
)
def test_an_interrupted_run_ends_as_one_that_was_not(make, method, data, tmp_path):
    model, handler = make(tmp_path / "model"), signal.getsignal(signal.SIGINT)
    options = {"model": model, "recipe": small(method, epochs=2), "device": "cpu", "checkpoint_steps": 2}
    whole = train(data, out=tmp_path / "whole", **options)
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train(data, out=out, progress=interrupt_at(3), **options)
    assert RunFolder(out, settings=read_settings(out), resume=True).last_checkpoint().name == "checkpoint-3"
    with pytest.raises(Killed):
        train(data, out=out, progress=kill_at(8), **options)
    told = []
    report = train(data, out=out, progress=lambda *state: told.append(state), **options)
    assert report.resumed_from == 7 - 1  # the last multiple of 2 whose checkpoint was whole
    assert told[0] == ("training", 6, 10)
    assert same(weights(report), weights(whole), 1e-6)
    np.testing.assert_allclose([v for _, v in report.losses], [v for _, v in whole.losses], rtol=1e-5)
    assert signal.getsignal(signal.SIGINT) is handler, "whatever it was is back"


def read_settings(out):
    return json.loads((out / "run.json").read_text())["settings"]


def test_a_finished_run_is_not_done_again(llava, data, tmp_path, monkeypatch):
    options = {"model": llava, "out": tmp_path / "run", "recipe": small(epochs=0.4), "device": "cpu"}
    first = train(data, **options)
    monkeypatch.setattr(loop.RankingTrainer, "train", None)
    again = train(data, **options)
    assert again == first
    monkeypatch.undo()
    anew = train(data, resume=False, **options)
    assert same(weights(anew), weights(first))


def test_other_settings_are_refused_with_the_difference(llava, data, tmp_path):
    options = {"model": llava, "out": tmp_path / "run", "device": "cpu"}
    with pytest.raises(Killed):
        train(data, recipe=small(), progress=kill_at(1), **options)
    with pytest.raises(InputError, match=r"recipe\.learning_rate: 0\.001 there, 0\.002 now.*no-resume"):
        train(data, recipe=small(learning_rate=2e-3), **options)
    other = manifest(tmp_path / "other", 10, seed=1)
    with pytest.raises(InputError, match=r"data\.manifest_sha256.*data\.examples: 20 there, 10 now"):
        train(other, recipe=small(), **options)
    with pytest.raises(InputError, match="base_fingerprint"):
        train(data, recipe=small(), **{**options, "model": tiny_llava(tmp_path / "another", seed=1)})
    report = train(data, recipe=small(learning_rate=2e-3, epochs=0.6), resume=False, **options)
    assert len(report.losses) == 3
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("important")
    with pytest.raises(InputError, match="no training run"):
        train(data, recipe=small(), **{**options, "out": tmp_path / "mine"})
    with pytest.raises(InputError, match="no training run"):
        train(data, recipe=small(), resume=False, **{**options, "out": tmp_path / "mine"})


@pytest.mark.parametrize("damaged", ["trained.safetensors", "optimizer.pt", "complete.json"])
def test_a_checkpoint_that_was_cut_short_is_removed(llava, data, tmp_path, damaged, caplog):
    options = {"model": llava, "out": tmp_path / "run", "recipe": small(), "device": "cpu", "checkpoint_steps": 1}
    with pytest.raises(Killed):
        train(data, progress=kill_at(4), **options)  # after the fourth step, before its checkpoint
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    file = checkpoints / "checkpoint-3" / damaged
    file.write_bytes(file.read_bytes()[:10])
    with caplog.at_level(logging.WARNING):
        report = train(data, **options)
    assert report.resumed_from == 2
    assert "checkpoint-3 is removed" in caplog.text


def nan_from(step, monkeypatch):
    real, calls = loop.answer_loss, []

    def loss(logits, labels):
        calls.append(1)
        return real(logits, labels) * (torch.nan if len(calls) >= 2 * step else 1.0)

    monkeypatch.setattr(loop, "answer_loss", loss)


def test_a_loss_that_is_no_number_stops_training_and_keeps_the_last_good_checkpoint(llava, data, tmp_path, monkeypatch):
    options = {"model": llava, "out": tmp_path / "run", "recipe": small(), "device": "cpu", "checkpoint_steps": 2}
    nan_from(4, monkeypatch)
    with pytest.raises(TrainingError, match=r"step 4 of 5: the loss is no finite number.*checkpoints.*learning rate"):
        train(data, **options)
    assert not (tmp_path / "run" / "adapter").exists()
    monkeypatch.undo()
    assert train(data, **options).resumed_from == 2


def test_weights_that_are_no_numbers_are_not_saved(llava, data, tmp_path, monkeypatch):
    def loss(logits, labels):  # a number, with a gradient that is none
        return answer_loss(logits, labels) + 0.0 * (logits.sum() * 0.0).sqrt()

    monkeypatch.setattr(loop, "answer_loss", loss)
    with pytest.raises(TrainingError, match=r"step 1 of 5: a trained weight is no finite number"):
        train(data, model=llava, out=tmp_path / "run", recipe=small("full"), device="cpu", checkpoint_steps=1)
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_too_little_memory_is_said_with_what_helps(llava, data, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "answer_loss", full)
    with pytest.raises(TrainingError, match=r"micro_batch_size \(2\).*gradient_checkpointing"):
        train(data, model=llava, out=tmp_path / "run", recipe=small(), device="cpu")


@pytest.mark.slow
def test_activations_computed_twice_give_the_same(llava, data, tmp_path):
    losses = [
        train(
            data,
            model=llava,
            out=tmp_path / str(twice),
            recipe=small(epochs=0.6, gradient_checkpointing=twice, dropout=0.0),
            device="cpu",
        ).losses
        for twice in (False, True)
    ]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_the_plot_depends_on_the_losses_only(llava, data, tmp_path):
    options = {"model": llava, "out": tmp_path / "run", "recipe": small(epochs=0.6), "device": "cpu"}
    for name in ("a.svg", "b.svg", "c.png"):
        train(data, plot=tmp_path / "plots" / name, **options)
    one, two, three = (tmp_path / "plots" / name for name in ("a.svg", "b.svg", "c.png"))
    assert one.read_bytes() == two.read_bytes()
    assert three.read_bytes().startswith(b"\x89PNG")


def test_what_is_missing_or_wrong_shows_before_a_model_is_loaded(llava, data, tmp_path, monkeypatch):
    options = {"model": llava, "out": tmp_path / "run", "recipe": small(), "device": "cpu"}
    with pytest.raises(OptionError, match=r"written as \.png or \.svg; got .*loss\.txt"):
        train(data, plot=tmp_path / "loss.txt", **options)
    with pytest.raises(OptionError, match="unknown strategy 'letters'"):
        train(data, held_out=data, strategies=("letters",), **options)
    with pytest.raises(InputError, match="20 held-out images are trained on as well"):
        train(data, held_out=data, **options)
    with pytest.raises(DatasetError, match="nothing"):
        train(tmp_path / "nothing.jsonl", **options)
    with pytest.raises(ChatUnavailableError, match="no model folder"):
        train(data, **{**options, "model": tmp_path / "nothing"})
    with pytest.raises(OptionError, match="checkpoint_steps"):
        train(data, checkpoint_steps=0, **options)
    with pytest.raises(OptionError, match="CUDA_VISIBLE_DEVICES"):
        train(data, **{**options, "device": "cuda:1"})
    with pytest.raises(OptionError, match="bfloat16 is for GPUs"):
        train(data, **{**options, "recipe": small(precision="bfloat16")})
    for module, extra, more in (
        ("peft", "tune", {}),
        ("accelerate", "tune", {}),
        ("matplotlib", "plots", {"plot": "x.svg"}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr("importlib.util.find_spec", lambda name, m=module: None if name == m else object())
            with pytest.raises(MissingExtraError, match=rf"{module}: pip install 'rarvision\[{extra}\]'"):
                train(data, **more, **options)
    assert not (tmp_path / "run").exists()


def test_a_malformed_manifest_and_a_missing_image(llava, tmp_path):
    options = {"model": llava, "out": tmp_path / "run", "recipe": small(), "device": "cpu"}
    broken = manifest(tmp_path / "data", 3)
    text = broken.read_text()
    broken.write_text(text[:-30])
    with pytest.raises(DatasetError, match="line 4"):
        train(broken, **options)
    broken.write_text(text)
    (tmp_path / "data" / "train" / "0.png").unlink()
    with pytest.raises(DatasetError, match=r"line 2.*no image"):
        train(broken, **options)
    assert not (tmp_path / "run").exists()


def test_lora_goes_where_it_is_told(llava, data, tmp_path):
    report = train(
        data,
        model=llava,
        out=tmp_path / "a",
        recipe=small(epochs=0.6, targets=("q_proj",), projector=False),
        device="cpu",
    )
    assert {name.split(".")[-3] for name in weights(report)} == {"q_proj"}
    assert all("language_model" in name for name in weights(report))
    with pytest.raises(OptionError, match=r"no linear layer 'w'; it has down_proj, .*q_proj"):
        train(data, model=llava, out=tmp_path / "b", recipe=small(targets=("w",)), device="cpu")


def test_models_without_a_known_projector(llava, data, tmp_path, monkeypatch):
    monkeypatch.setattr("rarvision.tuning.trainable._PROJECTORS", ("bridge",))
    with pytest.raises(ChatUnsupportedError, match="no-projector"):
        train(data, model=llava, out=tmp_path / "a", recipe=small(), device="cpu")
    assert train(data, model=llava, out=tmp_path / "b", recipe=small(projector=False, epochs=0.6), device="cpu").losses


def test_before_and_after(llava, data, tmp_path):
    held_out = manifest(tmp_path / "other", 7, seed=5, stem="other")
    told = []
    options = {
        "model": llava,
        "out": tmp_path / "run",
        "recipe": small("full", objective="choice", epochs=4, learning_rate=5e-3),
        "held_out": held_out,
        "strategies": ("choice", "likelihood"),
        "device": "cpu",
    }
    report = train(data, progress=lambda *state: told.append(state), **options)
    table = report.held_out
    chats = {"before": LocalChat(llava, device="cpu"), "after": LocalChat(report.result, device="cpu")}
    examples = read_manifest(held_out)
    for stage, chat in chats.items():
        rankings = Ranker(chat, strategy="choice").rank_batch(
            [load_image(e.image) for e in examples], [e.candidates for e in examples]
        )
        right = [e.candidates[r.order[0]] == e.label for e, r in zip(examples, rankings, strict=True)]
        assert getattr(table, stage)["choice"].top1 == pytest.approx(np.mean(right))
        assert getattr(table, stage)["likelihood"].n == 7
    assert table.shown == np.mean([e.candidates[0] == e.label for e in examples])
    assert {phase for phase, *_ in told} == {"training", "ranking before", "ranking after"}
    assert told[-1] == ("ranking after", 14, 14)
    rows = report.held_out_rows()
    assert [row[0] for row in rows] == ["as retrieved", "as shown", "choice", "likelihood"]
    assert "| held out | before | after |" in report.to_markdown()
    assert json.loads(json.dumps(report.to_dict()))["held_out"]["after"]["choice"]["n"] == 7
    limited = train(data, held_out_limit=3, **options)  # nothing is trained again; other examples are ranked
    assert limited.held_out.before["choice"].n == 3


def test_ranking_goes_on_after_the_last_strategy_that_was_done(llava, data, tmp_path, monkeypatch):
    held_out = manifest(tmp_path / "other", 3, seed=5, stem="other")
    options = {
        "model": llava,
        "out": tmp_path / "run",
        "recipe": small(epochs=0.6),
        "held_out": held_out,
        "strategies": ("choice", "likelihood"),
        "device": "cpu",
    }
    asked = []
    real = heldout._ranked

    def ranked(ranker, examples, *, tell):
        asked.append(ranker.strategy)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return real(ranker, examples, tell=tell)

    monkeypatch.setattr(heldout, "_ranked", ranked)
    with pytest.raises(KeyboardInterrupt):
        train(data, **options)
    assert train(data, **options).held_out is not None
    assert asked == ["choice", "likelihood", "choice", "choice", "likelihood"]


@pytest.mark.slow
def test_the_embedded_model_learns_names_that_it_did_not_know(tmp_path):
    """Six look-alikes under the names of others: the base model cannot know them, a few dozen examples of each do."""
    guide = FieldGuide("birds", categories=6, seed=3)
    renamed = dict(zip(guide.names, FieldGuide("birds", categories=12, seed=4).names[6:], strict=True))
    samples = list(guide.queries(200))
    paths = {}
    for stem, part in (("train", samples[:160]), ("other", samples[160:])):
        rng = np.random.default_rng(0)
        rows = [{"rarvision_tuning": 1}]
        (tmp_path / stem).mkdir()
        for i, sample in enumerate(part):
            load_image(sample.image).save(tmp_path / stem / f"{i}.png")
            label = renamed[sample.label]
            others = [name for name in renamed.values() if name != label]
            shown = rng.permutation([label, *rng.permutation(others)[:3].tolist()]).tolist()
            target = [label, *(name for name in shown if name != label)]
            names = {"label": label, "candidates": shown, "target": target, "retrieved": shown}
            rows.append({"id": str(i), "image": f"{stem}/{i}.png", **names})
        paths[stem] = tmp_path / f"{stem}.jsonl"
        paths[stem].write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = train(
        paths["train"],
        model=weights_path("mllm"),
        out=tmp_path / "run",
        recipe=recipe(
            "lora",
            rank=16,
            objective="likelihood",
            learning_rate=2e-3,
            projector_learning_rate=1e-3,
            epochs=6,
            dropout=0.0,
        ),
        held_out=paths["other"],
        strategies=("likelihood",),
        device="cpu",
    )
    before, after = (getattr(report.held_out, stage)["likelihood"].top1 for stage in ("before", "after"))
    assert after > before + 0.2


def test_an_image_that_cannot_be_read_is_named_and_can_be_mended(llava, tmp_path):
    data = manifest(tmp_path / "data", 12)
    image = tmp_path / "data" / "train" / "7.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:40])
    options = {"model": llava, "out": tmp_path / "run", "recipe": small(), "device": "cpu", "checkpoint_steps": 1}
    with pytest.raises(ImageError, match=r"train-7: .*7\.png.*same command again"):
        train(data, **options)
    image.write_bytes(whole)
    assert len(train(data, **options).losses) == 3
