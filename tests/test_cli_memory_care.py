"""``rarvision memory``: conditions, renaming, merging, moving, exporting, importing, and its upkeep."""

import json
import shutil

import pytest

from cli_world import COLOURS, lines, picture
from needs import need
from rarvision.cli.conditions import parse_where
from rarvision.cli.output import size_text
from rarvision.errors import OptionError
from rarvision.memory import LocalMemory, NewEntry
from rarvision.testing import FakeEncoder
from rarvision.types import Sample

NASTY = 'a "b" [red]\nx = y 図'

REMEMBERED = {"encoder": "embedded:clip-16"}


@pytest.fixture
def dated(tmp_path, fakes):
    """Pictures with metadata: years, a truth value, an odd text."""
    with LocalMemory.create(tmp_path / "dated", encoder=FakeEncoder(), thumbnails=32, metadata=REMEMBERED) as store:
        store.add(
            Sample(
                source=str(path),
                image=path,
                label=colour,
                metadata={"year": 2018 + shot, "checked": shot == 1, "note": NASTY if shot == 2 else "2019"},
            )
            for colour in COLOURS
            for shot in range(3)
            for path in [picture(tmp_path / "pictures" / f"{colour} {shot}.png", colour, 10 + shot)]
        )
    return tmp_path / "dated"


def answer(result):
    return json.loads(result.stdout)


def held(path):
    with LocalMemory.open(path) as store:
        return sorted((entry.category, entry.source) for entry in store.entries())


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["year=2019"], {"year": 2019}),
        (["a=true", "b=null", "c=1.5", "d=-1e3"], {"a": True, "b": None, "c": 1.5, "d": -1000.0}),
        (["a=tabby cat", 'b="2019"', "c=", "d=x=y"], {"a": "tabby cat", "b": "2019", "c": "", "d": "x=y"}),
        (["a=[1]", 'b={"c": 1}', "c=NaN", "d=1e999"], {"a": "[1]", "b": '{"c": 1}', "c": "NaN", "d": "1e999"}),
        (["year=2019", "year=2020", "a=b"], {"year": [2019, 2020], "a": "b"}),
        (None, {}),
    ],
)
def test_conditions_are_read_as_json_where_they_are(given, expected):
    assert parse_where(given) == expected


@pytest.mark.parametrize("text", ["year", "=2019", ""])
def test_conditions_of_another_form_are_refused(text):
    with pytest.raises(OptionError, match="KEY=VALUE"):
        parse_where([text])


def test_sizes_for_people():
    shown = [size_text(count) for count in (0, 999, 1_000, 999_949, 999_999, 12_345_678, 5 * 10**12, 10**16)]
    assert shown == ["0 bytes", "999 bytes", "1.0 kB", "999.9 kB", "1.0 MB", "12.3 MB", "5.0 TB", "10,000.0 TB"]


def test_remove_by_metadata(run, dated):
    assert answer(run("memory", "remove", dated, "--where", "year=2018", "--json")) == {"removed": 5, "entries": 10}
    both = run("memory", "remove", dated, "--where", "checked=true", "--category", "red")
    assert "removed 1 entries; 9 are left" in both.stdout
    assert answer(run("memory", "remove", dated, "--where", f"note={NASTY}", "--json"))["removed"] == 5
    assert answer(run("memory", "remove", dated, "--where", "note=2019", "--json"))["removed"] == 0
    assert answer(run("memory", "remove", dated, "--where", 'note="2019"', "--json"))["removed"] == 4
    assert "KEY=VALUE" in run("memory", "remove", dated, "--where", "year", code=2).stderr


def test_search_with_conditions(run, dated, photos):
    def found(*options):
        (record,) = lines(run("memory", "search", dated, photos / "red.png", "-k", 20, "--json", *options))
        return [hit["category"] for hit in record["neighbours"]]

    assert found("--where", "year=2019") == found("--where", "checked=true")
    assert len(found("--where", "year=2019")) == 5
    assert len(found("--where", "year=2019", "--where", "year=2020")) == 10
    assert found("--category", "blue") == ["blue"] * 3
    assert sorted(found("--category", "blue", "--category", "green", "--where", "year=2020")) == ["blue", "green"]
    assert found("--where", "year=1999") == []
    unknown = run("memory", "search", dated, photos / "red.png", "--category", "bleu", code=2)
    assert "no category 'bleu'" in unknown.stderr
    assert "did you mean 'blue'?" in unknown.stderr


def test_rename(run, memory):
    result = run("memory", "rename", memory, "red", NASTY, "--json")
    assert answer(result) == {"renamed": 3, "category": NASTY, "entries": 15, "categories": 5}
    assert "3 entries" in run("memory", "rename", memory, NASTY, "scarlet").stdout
    assert run("memory", "rename", memory, "rad", "x", code=2).stdout == ""
    assert "blue" in run("memory", "rename", memory, "scarlet", "blue", code=2).stderr
    assert {name for name, _ in held(memory)} == {"scarlet", "green", "blue", "yellow", "white"}


def test_merge(run, memory, tree):
    run("memory", "add", memory, tree / "blue" / "0.png", "--category", "red")  # a double, once they are one
    result = run("memory", "merge", memory, "red", "blue", "--into", "mixed", "--json")
    assert answer(result) == {"changed": 6, "dropped": 1, "category": "mixed", "entries": 15, "categories": 4}
    assert "0 doubles dropped" in run("memory", "merge", memory, "green", "--into", "mixed").stdout
    assert "15 entries of 3 categories" in run("memory", "merge", memory, "mixed", "--into", "mixed").stdout
    assert "nope" in run("memory", "merge", memory, "nope", "--into", "mixed", code=2).stderr
    assert "--into" in run("memory", "merge", memory, "mixed", code=2).stderr


def test_move_and_copy(run, dated, tmp_path):
    before, other = held(dated), tmp_path / "other"
    result = run("memory", "copy", dated, other, "--category", "red", "--json")
    assert answer(result) == {"added": 3, "skipped": 0, "source_entries": 15, "target_entries": 3}
    result = run("memory", "move", dated, other, "--where", "year=2018", "--where", "year=2019", "--json")
    assert answer(result) == {"added": 8, "skipped": 2, "source_entries": 5, "target_entries": 11}
    shown = run("memory", "move", dated, other).stdout
    assert "moved 4, 1 were there already" in shown
    assert "holds 0 entries now" in shown
    assert held(other) == before
    with LocalMemory.open(other, encoder=FakeEncoder()) as store:
        assert store.info().thumbnails == 15


def test_move_refuses_what_would_lose_entries(run, dated, tmp_path):
    assert "into itself" in run("memory", "move", dated, dated, code=2).stderr
    assert "into itself" in run("memory", "move", dated, f"{dated}/../dated", code=2).stderr
    assert len(held(dated)) == 15
    nothing = run("memory", "copy", dated, tmp_path / "new", "--category", "none", code=2)
    assert "no entry" in nothing.stderr
    assert not (tmp_path / "new").exists()
    LocalMemory.create(tmp_path / "theirs", encoder=FakeEncoder(seed=1)).close()
    assert "one encoder" in run("memory", "move", dated, tmp_path / "theirs", code=3).stderr
    run("memory", "move", tmp_path / "missing", dated, code=3)


def test_export_and_import_parquet(run, dated, tmp_path):
    need("pyarrow", group="test")
    file = tmp_path / "all.parquet"
    result = answer(run("memory", "export", dated, file, "--json"))
    size = file.stat().st_size
    assert result == {"entries": 15, "left_out": 0, "bytes": size, "files": [str(file)]}
    made = run("memory", "import", file, "--out", tmp_path / "back", "--json")
    assert answer(made) == {"entries": 15, "categories": 5, "dim": 32, "added": 15, "skipped": 0}
    again = run("memory", "import", file, "--out", tmp_path / "back").stdout
    assert "15 entries of 5 categories, 32-d; added 0, skipped 15 that were there" in again
    assert held(tmp_path / "back") == held(dated)
    some = run("memory", "export", dated, file, "--where", "year=2019", "--among", "image", "--no-thumbnails")
    assert "5 entries" in some.stdout
    assert file.stat().st_size < size
    run("memory", "import", file, "--out", tmp_path / "checked", "--encoder", "some/clip", "--json")
    assert "one declared" in run("memory", "import", file, "--out", tmp_path / "x", "-e", "other", code=3).stderr
    assert not (tmp_path / "x").exists()


def test_export_and_import_the_authors_format(run, dated, tmp_path):
    out = tmp_path / "all.index"
    result = answer(run("memory", "export", dated, out, "--json"))
    files = [out, tmp_path / "all.txt", tmp_path / "classnames.txt"]
    assert (result["entries"], result["files"]) == (15, [str(file) for file in files])
    made = run("memory", "import", out, files[1], "--classnames", files[2], "--out", tmp_path / "back", "--json")
    assert answer(made) == {"entries": 15, "categories": 5, "dim": 32}
    assert held(tmp_path / "back") == held(dated)
    run("memory", "add", dated, "--category", "red", tmp_path / "pictures" / "red 0.png", "--with-names")
    named = run("memory", "export", dated, out, "--labels", tmp_path / "l", "--classnames", tmp_path / "n").stdout
    assert "1 texts have no place there" in named
    assert (tmp_path / "n").read_text().splitlines() == COLOURS


def test_exports_and_imports_that_make_no_sense(run, dated, tmp_path):
    def told(*arguments, code=2):
        return run("memory", *arguments, code=code).stderr

    assert "says the format" in told("export", dated, tmp_path / "x.csv")
    assert "go with .index" in told("export", dated, tmp_path / "x.parquet", "--labels", tmp_path / "l")
    assert "conditions go with .parquet" in told("export", dated, tmp_path / "x.index", "--category", "red")
    assert "no folder" in told("export", dated, tmp_path / "no" / "x.parquet")
    assert "needs its LABELS file" in told("import", tmp_path / "x.index", "--out", tmp_path / "m")
    (tmp_path / "x.parquet").write_bytes(b"no")
    (tmp_path / "labels").write_text("a b\n")
    assert "not a whole Parquet" in told("import", tmp_path / "x.parquet", "--out", tmp_path / "m")
    assert "holds its labels" in told("import", tmp_path / "x.parquet", tmp_path / "labels", "--out", tmp_path / "m")
    names = ("--classnames", tmp_path / "labels")
    assert "holds its names" in told("import", tmp_path / "x.parquet", *names, "--out", tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_verify(run, memory):
    assert answer(run("memory", "verify", memory, "--json")) == {"ok": True, "problems": [], "repairs": []}
    assert "15 entries" in run("memory", "verify", memory).stdout
    run("memory", "compact", memory)
    (vectors,) = [path for path in (memory / "segments").glob("*.npy") if "rows" not in path.name]
    content = bytearray(vectors.read_bytes())
    content[-3] ^= 4
    vectors.write_bytes(content)
    found = answer(run("memory", "verify", memory, "--json", code=1))
    assert found["ok"] is False
    assert any(vectors.name in problem["where"] for problem in found["problems"])
    assert set(found["problems"][0]) == {"where", "what", "advice"}
    shown = run("memory", "verify", memory, code=1).stdout
    assert "what to do" in shown
    run("memory", "verify", memory / "nothing", code=3)


def test_compact(run, memory):
    run("memory", "remove", memory, "--category", "red")
    report = answer(run("memory", "compact", memory, "--json"))
    assert (report["entries"], report["segments_after"]) == (12, 1)
    assert set(report) == {"entries", "segments_before", "segments_after", "bytes_before", "bytes_after", "index"}
    assert "12 entries" in run("memory", "compact", memory).stdout
    assert len(held(memory)) == 12


def test_reencode(run, fakes, memory, photos):
    result = answer(run("memory", "reencode", memory, "--encoder", "other", "--json"))
    assert (result["encoded"], result["failed"], result["published"]) == (15, 0, True)
    (hit,) = lines(run("memory", "search", memory, photos / "red.png", "--encoder", "other", "-k", 1, "--json"))
    assert hit["neighbours"][0]["category"] == "red"
    assert "one encoder" not in run("memory", "info", memory).stdout
    run("memory", "search", memory, photos / "red.png", "--encoder", "embedded:clip-16", code=3)
    assert "15 entries" in run("memory", "reencode", memory, "--encoder", "embedded:clip-16").stdout
    run("memory", "search", memory, photos / "red.png")
    assert "--encoder" in run("memory", "reencode", memory, code=2).stderr


def test_reencode_without_the_images(run, memory, tree, photos):
    for path in (tree / "red").iterdir():
        path.unlink()
    result = run("memory", "reencode", memory, "--encoder", "other", "--json", code=1)
    found = answer(result)
    assert (found["encoded"], found["failed"], found["published"]) == (12, 3, False)
    assert {failure["source"] for failure in found["failures"]} == {str(tree / "red" / f"{i}.png") for i in range(3)}
    assert str(tree / "red" / "0.png") in result.stderr
    assert "still" in run("memory", "reencode", memory, "--encoder", "other", code=1).stdout
    run("memory", "search", memory, photos / "red.png")  # by the old one, which still serves
    run("memory", "reencode", memory, "--encoder", "other", "--from-thumbnails")
    run("memory", "search", memory, photos / "red.png", "--encoder", "other")


def test_a_memory_encoded_anew_remembers_what_it_was_encoded_by(run, fakes, memory, photos, monkeypatch):
    class Named(FakeEncoder):
        name = "other"

    from rarvision.cli import models

    old = models.open_encoder
    monkeypatch.setattr(models, "open_encoder", lambda spec, **k: Named(seed=1) if spec == "other" else old(spec, **k))
    run("memory", "reencode", memory, "--encoder", "other")
    assert answer(run("memory", "info", memory, "--json"))["metadata"]["encoder"] == "other"
    (hit,) = lines(run("memory", "search", memory, photos / "blue.png", "-k", 1, "--encoder", "other", "--json"))
    assert hit["neighbours"][0]["category"] == "blue"


def test_info_tells_sizes_and_repairs(run, memory):
    shown = run("memory", "info", memory).stdout
    for fact in ("vector bytes", "index bytes", "thumbnail bytes", "database bytes", "segments", "kB"):
        assert fact in shown
    found = answer(run("memory", "info", memory, "--json"))
    assert found["repairs"] == []
    assert found["details"]["database_bytes"] > 0


def test_repairs_are_told(run, memory, monkeypatch):
    monkeypatch.setattr(LocalMemory, "repairs", ("removed 1 file of an interrupted write",))
    assert "put right on opening" in run("memory", "info", memory).stdout
    assert answer(run("memory", "info", memory, "--json"))["repairs"] == ["removed 1 file of an interrupted write"]
    assert "put right on opening: removed 1 file" in run("memory", "verify", memory).stdout


@pytest.mark.parametrize("command", [["verify"], ["compact"], ["reencode", "--encoder", "other"]])
def test_what_is_for_folders_says_so(run, command):
    told = run("memory", command[0], "milvus+http://localhost:1#pets", *command[1:], code=2).stderr
    assert "this is for a folder" in told


def test_a_copy_of_the_folder_is_a_backup(run, memory, tmp_path):
    shutil.copytree(memory, tmp_path / "backup")
    assert answer(run("memory", "verify", tmp_path / "backup", "--json"))["ok"]
    assert held(tmp_path / "backup") == held(memory)


def test_odd_names_do_not_break_the_terminal(run, tmp_path, fakes):
    with LocalMemory.create(tmp_path / "m", encoder=FakeEncoder()) as store:
        vectors = FakeEncoder().encode_texts(["x"])
        store.append([NewEntry(category=NASTY, modality="text", source="x", content=b"x")], vectors)
    shown = run("memory", "rename", tmp_path / "m", NASTY, "two\nlines").stdout
    assert shown.count("\n") == 1
