"""The command line as a whole: exit codes, errors, help, defaults, and the pieces that every command writes with."""

import inspect
import json
import os
import sys
import time
from typing import get_args

import pytest

from rarvision.cli import models, options
from rarvision.cli import recognize as recognize_module
from rarvision.cli.main import app, debug_first, exit_code
from rarvision.cli.output import print_table, progress, to_json
from rarvision.encoders import Views
from rarvision.errors import ChatUnavailableError, EncoderMismatchError, ImageError, InputError, MissingExtraError
from rarvision.images import MAX_PIXELS
from rarvision.pipeline import Recognizer
from rarvision.retrieval import Aggregate, Hubness, Retriever, Source

# Errors and exit codes


def test_exit_codes_of_errors():
    assert exit_code(KeyboardInterrupt()) == 130
    assert exit_code(ZeroDivisionError()) == 70
    assert exit_code(ImageError("x")) == exit_code(OSError()) == 2
    assert exit_code(EncoderMismatchError("x")) == 3
    assert exit_code(ChatUnavailableError("x")) == exit_code(MissingExtraError("x")) == 4


def test_memory_errors(run, tree, memory, tmp_path):
    missing = run("recognize", "x.png", "-m", tmp_path / "nowhere", code=3)
    assert missing.stderr.count("\n") == 1
    assert str(tmp_path / "nowhere") in missing.stderr
    assert "create" in missing.stderr or "no memory" in missing.stderr
    run("memory", "create", memory, tree, code=3)
    run("memory", "create", tmp_path / "empty")
    assert run("recognize", tree / "red" / "0.png", "-m", tmp_path / "empty", code=3).stdout == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["recognize", "x.png"], "--memory"),
        (["recognize", "x.png", "-m", "m", "--strategy", "guess"], "guess"),
        (["recognize", "x.png", "-m", "m", "--k", "0"], "'--k'"),
        (["recognise"], "recognise"),
        (["memory", "crate"], "crate"),
    ],
)
def test_usage_errors(run, arguments, message):
    result = run(*arguments, code=2)
    assert message in result.stderr
    assert result.stdout == ""


def test_debug_shows_the_traceback_wherever_it_stands(run, tmp_path):
    command = ["recognize", "x.png", "-m", str(tmp_path / "nowhere")]
    assert "Traceback" not in run(*command, code=3).stderr
    assert "Traceback" in run(*debug_first([*command, "--debug"]), code=3).stderr
    assert debug_first(["a", "--", "--debug"]) == ["a", "--", "--debug"]
    assert debug_first(["a", "--debug"]) == ["--debug", "a"]


def test_unwritable_output_is_one_line(run, memory, photos, tmp_path):
    (tmp_path / "file").touch()
    result = run("recognize", photos, "-m", memory, "--csv", tmp_path / "file" / "x.csv", code=2)
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr


def test_embedded_models_have_names():
    with pytest.raises(InputError, match=r"no embedded model 'clip16' here; did you mean embedded:clip-16\?"):
        models.open_encoder("embedded:clip16")
    with pytest.raises(InputError, match="did you mean embedded:mllm"):
        models.open_ranker(models.RankerOptions(spec="embedded:llava", strategy="auto"))


def test_revisions(tmp_path, monkeypatch):
    assert models._revision("openai/clip@abc123") == ("openai/clip", "abc123")
    assert models._revision("openai/clip") == ("openai/clip", None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me@home").mkdir()
    assert models._revision("me@home") == ("me@home", None)


# Help, version, defaults


def commands():
    import typer.main

    def walk(command, path):
        if not hasattr(command, "commands"):
            yield path, command
        for name, child in getattr(command, "commands", {}).items():
            yield from walk(child, [*path, name])

    return list(walk(typer.main.get_command(app), []))


def test_the_commands_are_those_promised():
    assert {" ".join(path) for path, _ in commands()} == {
        "demo", "recognize", "evaluate", "regions", "evaluate-regions", "compare", "fit", "name", "reproduce", "report",
        "memory create", "memory add", "memory remove", "memory info",
        "memory import", "memory evaluate", "memory search", "memory rename", "memory merge", "memory move",
        "memory copy", "memory export", "memory verify", "memory compact", "memory reencode", "memory tune-index",
        "memory migrate", "tune data", "tune check", "tune convert", "tune train", "tune merge",
        "datasets list", "datasets info", "datasets names", "datasets check",
    }  # fmt: skip


@pytest.mark.parametrize("path", [" ".join(path) for path, _ in commands()])
def test_every_help_teaches_by_example(run, path):
    text = run(*path.split(), "--help").stdout
    assert f"  rarvision {path}" in text.split("Example")[1]
    assert "\b" not in text


def test_help_tells_the_exit_codes(run):
    text = run("--help").stdout
    assert all(f"\n    {code} " in text for code in (0, 1, 2, 3, 4, 130))


def test_version(run):
    assert run("--version").stdout == "rarvision 0.1.0\n"


def test_defaults_are_the_library_s():
    library = {
        **{name: p.default for name, p in inspect.signature(Retriever.__init__).parameters.items()},
        **{name: p.default for name, p in inspect.signature(Recognizer.__init__).parameters.items() if name != "k"},
    }
    for function in (recognize_module.recognize, __import__("rarvision.cli.evaluate", fromlist=["x"]).evaluate):
        ours = {name: p.default for name, p in inspect.signature(function).parameters.items()}
        assert ours["k"] == library["k"]
        assert (ours["ranker_weight"], library["ranker_weight"]) == ("auto", None)
        assert (ours["gate"], library["gate"]) == ("off", None)
        assert (ours["unknown"], library["reject"]) == ("off", False)
        assert (ours["fit"], library["fit"]) == (True, "kept")
        assert ours["aggregate"].value == library["aggregate"]
        assert ours["retrieval"].value == library["source"]
        assert ours["hubness"].value == library["hubness"]
        assert float(ours["text_weight"]) == library["text_weight"]
        assert ours["views"].value == library["views"]
        assert ours["repeats"] is not library["distinct"]
        assert ours["allow_fallback"] is library["allow_fallback"]


def test_choices_are_the_library_s():
    pairs = (
        (options.Aggregate, Aggregate),
        (options.Hubness, Hubness),
        (options.RetrievalSource, Source),
        (options.Views, Views),
    )
    for ours, library in pairs:
        assert {choice.value for choice in ours} == set(get_args(library)), ours


def test_the_pixel_limit_in_the_help_is_the_library_s(run):
    assert str(MAX_PIXELS) in "".join(run("recognize", "--help").stdout.split())


# Pieces


def test_json_of_names_that_are_not_unicode():
    text = to_json({"source": os.fsdecode(b"caf\xe9.png")})
    assert json.loads(text.encode())["source"] == os.fsdecode(b"caf\xe9.png")
    assert to_json({"source": "図"}) == '{"source": "図"}'


def test_control_characters_do_not_reach_the_terminal(capsys):
    print_table(("name",), [("\x1b[31mred\nline [b]x[/b]",)])
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\x1b[31mred\\nline [b]x[/b]" in shown


def test_progress_shows_rate_and_time_left_on_a_terminal_only(monkeypatch, capsys):
    with progress("Encoding", total=10, quiet=False) as bar:
        bar.advance(3)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress("Encoding", total=10, quiet=True) as bar:
        bar.advance(3)
    assert capsys.readouterr().err == ""
    with progress("Encoding", total=10, quiet=False) as bar:
        for _ in range(4):
            time.sleep(0.02)
            bar.advance()
    shown = capsys.readouterr()
    assert "4/10" in shown.err
    assert "images/s" in shown.err
    assert "left" in shown.err
    assert shown.out == ""


def test_strategies_are_the_library_s():
    from rarvision.ranking import STRATEGIES

    assert {strategy.value for strategy in options.Strategy} == {"auto", *STRATEGIES}


def test_an_unexpected_error_is_one_line_and_its_own_exit_code(monkeypatch, capsys):
    import rarvision.demo

    def broken(**_):
        raise ZeroDivisionError("by nought")

    monkeypatch.setattr(rarvision.demo, "run_demo", broken)
    with pytest.raises(SystemExit) as exit_info:
        app(["demo", "--quiet"], prog_name="rarvision")
    assert exit_info.value.code == 70
    assert capsys.readouterr().err.strip().splitlines()[-1] == (
        "rarvision: unexpected ZeroDivisionError: by nought (--debug shows where)"
    )
