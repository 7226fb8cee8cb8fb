"""``tune data`` and ``tune convert``."""

import json

import pytest

import rarvision.tuning.data as making
from rarvision.tuning import read_manifest, read_settings
from training_world import noisy_tree


@pytest.fixture
def tree(tmp_path):
    return noisy_tree(tmp_path / "train")


def test_the_command_makes_and_converts(run, tree, tmp_path):
    out = tmp_path / "t.jsonl"
    result = run("tune", "data", tree, "-e", "x", "--output", out, "--json")
    report = json.loads(result.stdout)
    assert result.stdout.count("\n") == 1
    assert report["examples"] == len(read_manifest(out))
    assert {"images", "left_out", "names", "singletons", "failures"} <= set(report)
    assert f"{report['examples']} examples in" in run("tune", "data", tree, "-e", "x", "-o", out).stdout
    result = run(
        "tune", "convert", out, "--format", "llava", "-o", tmp_path / "llava.json", "--prompt", "in-context", "--json"
    )
    assert json.loads(result.stdout) == {
        "examples": report["examples"],
        "format": "llava",
        "output": str(tmp_path / "llava.json"),
    }
    assert "Only choose" in json.loads((tmp_path / "llava.json").read_text())[0]["conversations"][0]["value"]
    (tmp_path / "p.txt").write_text("Sort {categories}, please.")
    result = run("tune", "convert", out, "-f", "ms-swift", "-o", tmp_path / "s.jsonl", "--prompt", tmp_path / "p.txt")
    assert f"wrote {report['examples']} examples to" in result.stdout
    assert "please." in (tmp_path / "s.jsonl").read_text()


def test_the_command_takes_a_memory(run, tree, tmp_path):
    run("memory", "create", tmp_path / "m", tree, "-e", "x", "--quiet")
    for name, more in (("a", []), ("b", ["--fill", "--max-windows", "1"]), ("c", ["--paper-compat"])):
        report = json.loads(run("tune", "data", "-m", tmp_path / "m", "-o", tmp_path / name, "--json", *more).stdout)
        assert report["examples"] == len(read_manifest(tmp_path / name))
    assert report["asked_images"] == 24
    assert "--encoder goes with DATASET" in run("tune", "data", "-m", "m", "-e", "x", "-o", "t", code=2).stderr


def test_what_the_command_refuses(run, tree, tmp_path):
    out = tmp_path / "t.jsonl"
    assert "one of the two" in run("tune", "data", "-o", out, code=2).stderr
    assert "one of the two" in run("tune", "data", tree, "-m", "m", "-o", out, code=2).stderr
    run("tune", "data", tree, "-e", "x", "-o", out)
    assert "k: 5 there, 4 now" in run("tune", "data", tree, "-e", "x", "-o", out, "-k", "4", code=2).stderr
    run("tune", "data", tree, "-e", "x", "-o", out, "-k", "4", "--no-resume")
    assert "holds tuning examples already" in run("tune", "data", out, "-e", "x", "-o", tmp_path / "u", code=2).stderr
    (tmp_path / "n.txt").write_text("red\n")
    assert "holds names only" in run("tune", "data", tmp_path / "n.txt", "-o", tmp_path / "u", code=2).stderr
    (tree / "ash" / "bad.png").touch()
    result = run("tune", "data", tree, "-e", "x", "-o", tmp_path / "v.jsonl", code=1)
    assert "bad.png" in result.stderr
    assert "images that could not be used" in result.stdout


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(run, tree, tmp_path, monkeypatch):
    out = tmp_path / "t.jsonl"
    command = ("tune", "data", tree, "-e", "x", "-o", out)
    monkeypatch.setattr(making, "_BLOCK", 5)
    search = making.exact_search
    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return search(*args)

    monkeypatch.setattr(making, "exact_search", interrupted)
    assert "interrupted" in run(*command, code=130).stderr
    assert (tmp_path / "t.jsonl.part").exists()
    run(*command)
    assert len(read_manifest(out)) == read_settings(out)["report"]["examples"]
