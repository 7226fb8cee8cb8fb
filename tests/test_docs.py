"""The documents cannot drift: guides are executed, the reference is generated, examples run, links lead somewhere."""

import doctest
import importlib.util
import re
import runpy
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main

from rarvision.cli.main import app

ROOT = Path(__file__).parent.parent
GUIDES = sorted((ROOT / "docs").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *GUIDES]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", [p for p in PAGES if ">>>" in p.read_text()], ids=lambda path: path.name)
def test_guides_are_doctested(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    outcome = doctest.testfile(str(path), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert outcome.attempted > 0
    assert outcome.failed == 0


def test_concepts_are_among_the_doctested():
    assert ">>>" in (ROOT / "docs" / "concepts.md").read_text()


def test_the_cli_reference_is_up_to_date():
    spec = importlib.util.spec_from_file_location("generate_cli", ROOT / "docs" / "generate_cli.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text(encoding="utf-8") == module.render(), "out of date: run `make docs`"


def test_the_catalogue_of_datasets_is_up_to_date():
    spec = importlib.util.spec_from_file_location("generate_datasets", ROOT / "docs" / "generate_datasets.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.TARGET.read_text(encoding="utf-8").endswith(module.render()), "out of date: run `make docs`"


def commands_in(text):
    for line in text.replace("\\\n", " ").splitlines():
        shell = line.strip().removeprefix("$ ")
        if shell.startswith("rarvision "):
            yield shell.split("   #")[0].split(" | ")[0].split("   ")[0]


def resolve(arguments):
    """The command that the words name, and its options."""
    command = typer.main.get_command(app)
    words = list(arguments)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        assert words[0] in command.commands, f"no command {words[0]!r}"
        command = command.commands[words.pop(0)]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return known | {"--help", "-h", "--debug"}, words


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_in_the_documents_exist(path):
    for command in commands_in(path.read_text(encoding="utf-8")):
        if "[OPTIONS]" in command or "COMMAND" in command:
            continue
        known, words = resolve(shlex.split(command)[1:])
        unknown = [word for word in words if re.match(r"--?[a-zA-Z]", word) and word.split("=")[0] not in known]
        assert unknown == [], command


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "#")):
            assert (path.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_run(path, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out.strip()
    assert list(tmp_path.iterdir()) == []


def test_there_are_examples():
    assert {path.stem for path in EXAMPLES} >= {"few_shot", "names_only", "compare", "own_encoder"}


def test_every_dependency_has_its_reason_and_its_pin():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    named = [
        *project["project"]["dependencies"],
        *project["build-system"]["requires"],
        *(name for group in project["dependency-groups"].values() for name in group),
    ]
    extras = [name for group in project["project"]["optional-dependencies"].values() for name in group]
    reasons = (ROOT / "docs" / "decisions.md").read_text()
    pins = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    for requirement in {*named, *extras}:
        name = re.split(r"[><=\[; ]", requirement)[0]
        assert re.search(rf"\b{re.escape(name)}\b", reasons), f"{name}: no reason in docs/decisions.md"
        if requirement in named:
            assert name.lower() in pins, f"{name}: no pin in constraints.txt"


def test_the_changelog_names_the_version_or_what_is_unreleased():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    text = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{version}]" in text or "## [Unreleased]" in text
