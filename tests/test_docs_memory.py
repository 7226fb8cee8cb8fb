"""The guide to caring for a memory is run from top to bottom, and must print what it says."""

import doctest
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import rarvision as rv
from needs import need
from rarvision.cli.main import app

GUIDE = Path(__file__).parent.parent / "docs" / "howto-memory.md"
NAMES = {0: "rose parrot", 2: "barred parrot", 4: "needletail", 5: "fantail", 9: "curlew"}


def make_birds(folder):
    """``birds/`` with a folder a species, and ``new.jsonl`` with four more birds and what is known of them."""
    guide = rv.FieldGuide("birds", categories=10, images_per_category=5)
    chosen = {guide.names[number]: name for number, name in NAMES.items()}
    lines, counts = [], dict.fromkeys(chosen, 0)
    for sample in guide:
        if sample.label not in chosen:
            continue
        number = counts[sample.label]
        counts[sample.label] += 1
        path = folder / ("new" if number == 4 else "birds") / chosen[sample.label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        sample.image.save(path)
        if number == 4 and chosen[sample.label] != "curlew":
            year = 2019 if "parrot" in chosen[sample.label] else 2020
            image = str(path.relative_to(folder))
            lines.append({"image": image, "label": chosen[sample.label], "year": year, "checked": year == 2020})
    (folder / "new.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def steps(text):
    """Each command of the guide's console blocks, with the output that stands below it."""
    for block in re.findall(r"```console\n(.*?)```", text, re.DOTALL):
        for part in block.split("$ ")[1:]:
            command, _, output = part.partition("\n")
            while command.endswith("\\"):
                more, _, output = output.partition("\n")
                command = command[:-1] + more.strip()
            yield command, output


def run(command):
    words = shlex.split(command)
    if words[0] == "cp":
        shutil.copytree(*words[2:])
        return ""
    result = CliRunner().invoke(app, words[1:], prog_name="rarvision")
    assert result.exit_code == 0, (command, result.output, result.exception)
    return result.stdout


@pytest.mark.slow
def test_the_guide_prints_what_it_says(tmp_path, monkeypatch):
    need("pyarrow", group="test")
    make_birds(tmp_path)
    monkeypatch.chdir(tmp_path)
    checker = doctest.OutputChecker()
    done = 0
    for command, expected in steps(GUIDE.read_text(encoding="utf-8")):
        if command.startswith(("rarvision", "cp ")):
            got = run(command)
            assert checker.check_output(expected, got, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE), (command, got)
            done += 1
    assert done > 15
