"""A world for tests of the command line: fakes for the models, a memory of colours, photos, and a way to run it."""

import csv
import json

import pytest
from PIL import Image
from typer.testing import CliRunner

from rarvision.cli import models
from rarvision.cli.main import app
from rarvision.errors import ChatUnavailableError
from rarvision.testing.chat import FakeChat
from rarvision.testing.encoders import FakeEncoder

COLOURS = ["red", "green", "blue", "yellow", "white"]


@pytest.fixture
def fakes(monkeypatch):
    """The embedded models replaced by fakes; what was asked for is recorded."""
    asked = {"encoders": [], "chats": []}

    def open_encoder(spec, *, device="auto"):
        asked["encoders"].append((spec, device))
        return FakeEncoder(seed=1 if spec == "other" else 0)

    def open_chat(wanted, *, device, batch_size):
        asked["chats"].append(wanted)
        error = ChatUnavailableError("nobody answers at that address") if wanted.spec == "http://down/v1" else None
        answers = "I cannot say." if wanted.spec == "silent" else None
        return FakeChat(
            {"blue": -0.1, "red": -5.0, "green": -6.0, "yellow": -7.0, "white": -8.0},
            answers=answers,
            error=error,
            name="fake chat",
        )

    monkeypatch.setattr(models, "open_encoder", open_encoder)
    monkeypatch.setattr(models, "open_mllm", open_chat)
    monkeypatch.setattr(models, "quiet_transformers", lambda: None)
    monkeypatch.delenv("RARVISION_MAX_PIXELS", raising=False)
    return asked


@pytest.fixture
def run(fakes):
    def invoke(*arguments, code=0, **options):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
        assert result.exit_code == code, (result.exit_code, result.output, result.exception)
        return result

    return invoke


def picture(path, colour, size=12):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), colour).save(path)
    return path


@pytest.fixture
def tree(tmp_path):
    for colour in COLOURS:
        for shot in range(3):
            picture(tmp_path / "train" / colour / f"{shot}.png", colour, 10 + shot)
    return tmp_path / "train"


@pytest.fixture
def memory(run, tree, tmp_path):
    run("memory", "create", tmp_path / "colours.memory", tree, "--quiet")
    return tmp_path / "colours.memory"


@pytest.fixture
def photos(tmp_path):
    for colour in ("red", "green", "blue"):
        picture(tmp_path / "photos" / f"{colour}.png", colour, 20)
    return tmp_path / "photos"


def lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


def table(path):
    """The rows of a CSV file."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))
