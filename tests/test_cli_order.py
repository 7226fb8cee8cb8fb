"""``--permutations``, ``--debias`` and ``--audit-order`` on the command line."""

from __future__ import annotations

import json

import pytest

from cli_world import lines, table
from rarvision.cli import models
from rarvision.cli.ranker_options import Debias, read_debias, read_permutations, read_ranker_options
from rarvision.errors import OptionError
from rarvision.ranking import OptionPrior
from rarvision.testing import FakeChat


@pytest.fixture
def biased(run, monkeypatch):
    """A chat that prefers the first letter to any colour."""
    del run
    scores = {"blue": -20.0, "red": -20.5, "green": -21.0, "yellow": -21.5, "white": -22.0}
    chat = FakeChat(scores, place_bias=(9.0,), name="biased chat")
    monkeypatch.setattr(models, "open_mllm", lambda *_, **__: chat)
    return chat


def test_permutations_and_debias_change_the_answer(run, memory, photos, biased, tmp_path):
    command = ["recognize", photos, "-m", memory, "-r", "x", "--strategy", "choice", "--json",
               "--ranker-weight", "replace"]  # fmt: skip
    assert [r["label"] for r in lines(run(*command))] == ["blue", "green", "red"], "what retrieval puts first"
    for correction in (["--permutations", "all"], ["--debias", "2"]):
        result = run(*command, *correction)
        assert [r["label"] for r in lines(result)] == ["blue"] * 3
    assert "from 2 images" in result.stderr
    file = tmp_path / "deep" / "bias.json"
    result = run(*command, "--debias", file)
    assert f"wrote it to {file}" in result.stderr
    assert [r["label"] for r in lines(result)] == ["blue"] * 3
    assert OptionPrior.from_dict(json.loads(file.read_text())).images == {5: 3}
    asked = len(biased.calls)
    result = run(*command, "--debias", file)
    assert [r["label"] for r in lines(result)] == ["blue"] * 3
    assert (result.stderr, len(biased.calls) - asked) == ("", 3)


def test_images_that_were_looked_at_are_recognised_as_well(run, memory, photos, biased):
    listed = "\n".join(str(photos / f"{colour}.png") for colour in ("red", "green", "blue"))
    command = ["recognize", "-", "-m", memory, "-r", "x", "-s", "choice", "--json", "--debias", "2"]
    assert len(lines(run(*command, input=listed))) == 3


def test_evaluate_audits_the_order(run, memory, tree, biased, tmp_path):
    out, file = tmp_path / "audit.jsonl", tmp_path / "audit.csv"
    command = ["evaluate", tree, "-m", memory, "-r", "x", "-s", "choice", "--ranker-weight", "replace",
               "--audit-order", "4"]  # fmt: skip
    audit = json.loads(run(*command, "--json", "--output", out, "--csv", file).stdout)
    assert (audit["n"], audit["orders"], audit["seed"]) == (15, 4, 0)
    assert audit["picked"] == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert audit["changing"] > 0.9
    assert len(out.read_text().splitlines()) == 16
    (row,) = table(file)
    assert json.loads(row["picked"]) == audit["picked"]
    assert float(row["top1_mean"]) == audit["top1_mean"]
    asked = len(biased.calls)
    run(*command, "--output", out)
    assert len(biased.calls) == asked, "the file holds it all"
    shown = run(*command, "--debias", "10").stdout
    assert "0.0% of the images" in shown
    assert "debiased" in shown
    other = json.loads(run(*command, "--audit-seed", "1", "--json").stdout)
    assert other["seed"] == 1


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--permutations", "0", "-r", "x"], "--permutations must be a whole number from 1, or all"),
        (["--permutations", "some", "-r", "x"], "--permutations must be a whole number from 1, or all"),
        (["--permutations", "2"], "--permutations needs --ranker"),
        (["--debias", "3"], "--debias needs --ranker"),
        (["--debias", "0", "-r", "x"], "at least one image"),
        (["--permutations", "all", "-r", "x", "-s", "pointwise"], "got pointwise, which asks name by name"),
        (["--debias", "3", "-r", "x", "-s", "pointwise"], "got pointwise, which asks name by name"),
        (["--debias", "3", "-r", "x", "-s", "generate"], "choice or likelihood, got generate, which gives no log-prob"),
        (["--ranker-option", "blank_weight=1", "-r", "x", "-s", "choice"], "blank_weight goes with --strategy likelih"),
        (["--ranker-option", "blank_weight=-1", "-r", "x"], "blank_weight must be a number from 0"),
        (["--ranker-option", "blank_weight=1", "-r", "http://x/v1"], "blank_weight goes with a local model"),
        (["--audit-order", "4"], "--audit-order needs --ranker"),
        (["--audit-seed", "4", "-r", "x"], "--audit-seed goes with --audit-order"),
    ],
)
def test_wrong_options(run, memory, tree, extra, message):
    assert message in run("evaluate", tree, "-m", memory, *extra, code=2).stderr


def test_a_prior_that_is_none(run, memory, tree, biased, tmp_path):
    file = tmp_path / "bias.json"
    command = ["evaluate", tree, "-m", memory, "-r", "x", "--debias", file]
    for text in ("no JSON", "[]", '{"a": 1}'):
        file.write_text(text)
        assert f"--debias {file}: " in run(*command, "-s", "choice", code=2).stderr
    file.unlink()
    run(*command, "-s", "choice")
    assert "estimated on other questions" in run(*command, "-s", "likelihood", code=2).stderr


def test_a_strategy_that_turns_out_to_be_generate(run, memory, tree, monkeypatch):
    from rarvision.chat import Capabilities

    served = Capabilities(option_log_probs=False, continuation_log_probs=False, list_constraint=False)
    monkeypatch.setattr(models, "open_mllm", lambda *_, **__: FakeChat(capabilities=served))
    result = run("evaluate", tree, "-m", memory, "-r", "http://host/v1", "--debias", "3", code=2)
    assert "--strategy auto is generate here, which gives no log-probabilities" in result.stderr
    result = run("evaluate", tree, "-m", memory, "-r", "http://host/v1", "-s", "choice", "--permutations", "2", code=4)
    assert "it can serve: generate" in result.stderr


def test_texts_are_read():
    assert (read_permutations("3"), read_permutations("all")) == (3, "all")
    assert read_debias(None) is None
    assert read_debias("12") == Debias(file=None, images=12)
    assert read_debias("bias.json").images == 64
    assert read_ranker_options(["blank_weight=0.5"], served=False) == {"blank_weight": 0.5}
    with pytest.raises(OptionError, match="from 0"):
        read_ranker_options(["blank_weight=nan"], served=False)


def test_the_blank_weight_reaches_the_ranker(run, memory, photos, biased):
    command = ["recognize", photos / "red.png", "-m", memory, "-r", "x", "-s", "likelihood", "--json"]
    run(*command, "--ranker-option", "blank_weight=1")
    assert len({request.images[0].size for _, request in biased.calls}) == 2
