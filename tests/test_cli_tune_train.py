"""``rarvision tune train`` and ``merge``, and ``--adapter``: what they print, refuse, and leave."""

from __future__ import annotations

import gc
import re
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from cli_world import lines
from rarvision.chat import LocalChat
from rarvision.cli import models
from rarvision.cli.main import app
from tiny_models import tiny_llava
from training_world import manifest, pictures

QUICK = ["--rank", "4", "--batch-size", "4", "--micro-batch-size", "4", "--device", "cpu"]


@pytest.fixture(scope="module", autouse=True)
def _frozen():
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model, a manifest, a held-out one, and a finished run."""
    root = tmp_path_factory.mktemp("world")
    tiny_llava(root / "llava")
    manifest(root, 8)
    manifest(root, 4, seed=9, stem="other")
    return root


def invoke(*arguments, code=0):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.exit_code, result.output, result.exception)
    return result


def command(world, out, *more):
    return ["tune", "train", world / "train.jsonl", "--model", world / "llava", "--out", out, *QUICK, *more]


def test_train_use_and_merge(world, tmp_path):
    out = tmp_path / "run"
    asked = ["--held-out", world / "other.jsonl", "--strategy", "choice", "--held-out-limit", "2"]
    (record,) = lines(invoke(*command(world, out, *asked, "--json")))
    assert set(record) == {
        "result", "steps", "loss_start", "loss_end", "method", "objective", "examples", "trained", "total",
        "resumed_from", "version", "settings", "held_out",
    }  # fmt: skip
    assert (record["steps"], record["method"], record["objective"], record["examples"]) == (2, "lora", "generate", 8)
    assert record["held_out"]["after"]["choice"]["n"] == 2
    again = invoke(*command(world, out, *asked, "--plot", tmp_path / "loss.svg"))
    assert re.search(r"held out\s+top-1 before\s+top-1 after", again.stdout)
    assert f"--adapter {out / 'adapter'}" in again.stderr
    assert (tmp_path / "loss.svg").stat().st_size > 1000
    (merged,) = lines(invoke("tune", "merge", out / "adapter", "--out", tmp_path / "merged", "--json"))
    assert merged == {"model": str(tmp_path / "merged"), "adapter": str(out / "adapter")}
    assert LocalChat(tmp_path / "merged", device="cpu")
    refused = invoke("tune", "merge", out / "adapter", "--out", tmp_path / "merged", code=2)
    assert "is there already" in refused.stderr
    refused = invoke(*command(world, out, "--seed", "7"), code=2)
    assert "recipe.seed: 0 there, 7 now" in refused.stderr
    assert "--no-resume" in refused.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--objective", "generate", "--listwise"], "listwise goes with the objective 'choice'"),
        (["--preset", "paper"], "rank goes with the method 'lora'"),
        (["--strategy", "choice"], "--strategy needs --held-out"),
        (["--held-out-limit", "3"], "--held-out-limit needs --held-out"),
        (["--shots", "2"], "--shots goes with --all-names"),
        (["--all-names"], "--all-names needs --held-out"),
        (["--all-names", "--plot", "x.svg"], "--plot go with a manifest, not with --all-names"),
        (["--plot", "x.gif"], "written as .png or .svg"),
        (["--learning-rate", "-1"], "learning_rate must be above 0; got -1"),
        (["--prompt", "nothing.txt"], "--prompt must be one of paper, in-context, long, or a text file"),
        (["--target", "w_proj"], "has no linear layer 'w_proj'"),
    ],
)
def test_options_that_make_no_sense(world, tmp_path, more, message):
    result = invoke(*command(world, tmp_path / "run", *more), code=2)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_errors_have_their_codes(world, tmp_path, monkeypatch):
    result = invoke("tune", "train", world / "none.jsonl", "-m", world / "llava", "-o", tmp_path / "run", code=2)
    assert "none.jsonl: no such file" in result.stderr
    result = invoke(
        "tune", "train", world / "train.jsonl", "-m", world / "no/such/model", "-o", tmp_path / "run", code=4
    )
    assert "no model folder at" in result.stderr
    result = invoke("tune", "merge", world / "llava", "--out", tmp_path / "merged", code=4)
    assert "give it as the model" in result.stderr
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "peft" else object())
    result = invoke(*command(world, tmp_path / "run"), code=4)
    assert "pip install 'rarvision[tune]'" in result.stderr


def test_the_baseline_with_all_names(world, tmp_path):
    train, test = pictures(tmp_path / "train", 2), pictures(tmp_path / "test", 1, seed=1)
    arguments = ["tune", "train", train, "-m", world / "llava", "-o", tmp_path / "run", *QUICK, "--all-names"]
    arguments += ["--held-out", test, "--shots", "1"]
    (record,) = lines(invoke(*arguments, "--json"))
    assert set(record) == {
        "top1", "reason", "unread", "n", "names", "shots", "examples", "result", "steps", "version", "settings",
    }  # fmt: skip
    assert (record["n"], record["names"], record["shots"], record["examples"]) == (5, 5, 1, 5)
    assert "names in the prompt" in invoke(*arguments).stdout
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    arguments[2] = tmp_path / "names.txt"
    assert "holds names only" in invoke(*arguments, code=2).stderr


def test_the_adapter_of_a_ranker(run, memory, photos, tmp_path, fakes):
    invoked = ["recognize", photos / "red.png", "-m", memory, "--adapter", tmp_path / "adapter"]
    run(*invoked, "--ranker", "some/mllm", "--json")
    assert fakes["chats"][-1].adapter == tmp_path / "adapter"
    refused = run(*invoked, code=2)
    assert "--adapter needs --ranker" in refused.stderr
    refused = run(*invoked, "--ranker", "http://localhost:1/v1", code=2)
    assert "--adapter goes with a local model" in refused.stderr


def test_the_adapter_reaches_the_model(monkeypatch, tmp_path):
    given = {}

    def local_chat(name, **options):
        given.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("rarvision.chat.LocalChat", local_chat)
    wanted = models.RankerOptions(spec="some/mllm", strategy="choice", adapter=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        models.open_ranker(wanted)
    assert given["adapter"] == tmp_path


def test_ctrl_c_saves_a_checkpoint_and_the_same_command_goes_on(world, tmp_path):
    out = tmp_path / "run"
    arguments = command(world, out, "--epochs", "40", "--checkpoint-steps", "5", "--json")
    process = subprocess.Popen(
        [sys.executable, "-m", "rarvision", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not (out / "checkpoints" / "checkpoint-5" / "complete.json").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=200)
    assert process.returncode == 130, errors
    latest = max((out / "checkpoints").iterdir(), key=step_of)
    step = step_of(latest)
    assert errors == (
        f"rarvision: interrupted after step {step} of 80, which is saved; the same command goes on from there\n"
    )
    assert printed == ""
    assert (latest / "complete.json").is_file()
    (record,) = lines(invoke(*arguments))
    assert record["steps"] == 80
    assert record["resumed_from"] == step_of(latest)


def step_of(checkpoint):
    return int(checkpoint.name.rpartition("-")[2])


def test_the_help_teaches(world):
    text = invoke("tune", "train", "--help").stdout
    for word in ("Ctrl-C", "--adapter DIR/adapter", "accelerate launch", "shares from 0 to 1"):
        assert word in text
    assert "merge" in invoke("tune", "--help").stdout
