"""``rarvision memory``: making, filling, looking into and measuring a memory."""

import io
import json
from contextlib import contextmanager

import pytest
from PIL import Image

from cli_world import COLOURS, lines, picture, table
from rarvision.cli import filling
from rarvision.cli.output import Bar, printable
from rarvision.memory import LocalMemory

NASTY = ["it's [red]", 'the "green" one', "two\nlines", "naïve 図", "bold [b]x"]


def test_create_from_a_folder_tree(run, fakes, tree, tmp_path):
    result = run("memory", "create", tmp_path / "m", tree, "--encoder", "some/clip", "--device", "cpu", "--json")
    assert json.loads(result.stdout) == {"added": 15, "skipped": 0, "failed": 0, "entries": 15, "categories": 5}
    assert result.stderr == ""
    assert fakes["encoders"] == [("some/clip", "cpu")]
    assert "15 entries of 5 categories" in run("memory", "create", tmp_path / "n", tree).stdout


def test_create_with_shots_names_and_templates(run, tree, tmp_path):
    result = run("memory", "create", tmp_path / "m", tree, "--shots", 2, "--with-names", "--json")
    assert json.loads(result.stdout) == {"added": 15, "skipped": 0, "failed": 0, "entries": 15, "categories": 5}
    info = json.loads(run("memory", "info", tmp_path / "m", "--json").stdout)
    assert (info["images"], info["texts"]) == (10, 5)


def test_thumbnails_stay_when_the_images_move(run, tmp_path):
    source = picture(tmp_path / "train" / "red" / "1.png", "red", 600)
    run("memory", "create", tmp_path / "m", tmp_path / "train")
    run("memory", "create", tmp_path / "small", tmp_path / "train", "--thumbnails", 64)
    run("memory", "create", tmp_path / "none", tmp_path / "train", "--thumbnails", 0)
    source.unlink()
    for name, size in (("m", 256), ("small", 64)):
        with LocalMemory.open(tmp_path / name) as store:
            assert Image.open(io.BytesIO(store.thumbnail(1))).size == (size, size)
    assert json.loads(run("memory", "info", tmp_path / "none", "--json").stdout)["thumbnails"] == 0


def test_create_from_names_alone_recognises(run, tmp_path):
    names = tmp_path / "names.txt"
    names.write_text("\n".join(COLOURS))
    run("memory", "create", tmp_path / "m", names, "--template", "{}")
    path = picture(tmp_path / "x.png", "yellow")
    (record,) = lines(run("recognize", path, "--memory", tmp_path / "m", "--json"))
    assert record["label"] == "yellow"


def test_names_show_how_far_they_are(run, tmp_path, monkeypatch):
    bars = []

    @contextmanager
    def progress(label, **about):
        done = []
        bars.append((label, about, done))
        yield Bar(done.append)

    monkeypatch.setattr(filling, "progress", progress)
    names = tmp_path / "names.txt"
    names.write_text("".join(f"name {i}\n" for i in range(200)))
    run("memory", "create", tmp_path / "m", names, "--template", "{}", "--template", "a {}", "--quiet")
    ((label, about, done),) = bars
    assert (label, about) == ("Encoding names", {"total": 200, "quiet": True, "unit": "names"})
    assert done == [128, 200]  # eight passes of 32 texts are 128 names in two templates
    run("memory", "add", tmp_path / "m", names, "--template", "{}", "--template", "a {}")
    assert bars[1][2][-1] == 200


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_create_from_a_file(run, tree, tmp_path, kind):
    rows = [(str(path), path.parent.name) for path in sorted(tree.rglob("*.png"))]
    file = tmp_path / f"set.{kind}"
    if kind == "csv":
        file.write_text("image,label\n" + "".join(f"{image},{label}\n" for image, label in rows))
    else:
        file.write_text("".join(json.dumps({"image": image, "label": label}) + "\n" for image, label in rows))
    result = run("memory", "create", tmp_path / "m", file, "--json")
    assert json.loads(result.stdout)["entries"] == 15


def test_add_skips_what_is_there_and_takes_single_images(run, memory, tree, photos):
    again = run("memory", "add", memory, tree, "--json")
    assert json.loads(again.stdout) == {"added": 0, "skipped": 15, "failed": 0, "entries": 15, "categories": 5}
    more = run("memory", "add", memory, photos, str(photos / "re*.png"), "--category", "mixed", "--json")
    assert json.loads(more.stdout) == {"added": 3, "skipped": 1, "failed": 0, "entries": 18, "categories": 6}


def test_a_list_on_standard_input_is_added_and_searched_for(run, memory, photos, tmp_path):
    names = [str(photos / "red.png"), str(photos / "blue.png")]
    listed = {"input": "\n".join(names) + "\n"}
    into = ["--category", "mixed", "--json"]
    added = json.loads(run("memory", "add", memory, "-", photos / "green.png", *into, **listed).stdout)
    assert (added["added"], added["categories"]) == (3, 6)
    by_nul = {"input": "\0".join(names)}
    made = json.loads(run("memory", "create", tmp_path / "new", "-", "-0", *into, **by_nul).stdout)
    assert (made["added"], made["entries"]) == (2, 2)
    found = lines(run("memory", "search", memory, "-", "-k", 1, "--json", **listed))
    assert [record["query"] for record in found] == names
    assert [
        record["query"] for record in lines(run("memory", "search", memory, "-", "-0", "--json", **by_nul))
    ] == names


def test_lists_that_cannot_be_added(run, fakes, memory, tmp_path):
    asked = len(fakes["encoders"])
    unlabelled = run("memory", "add", memory, "-", code=2, input="x.png\n")
    assert "--category NAME" in unlabelled.stderr
    assert "--category NAME" in run("memory", "create", tmp_path / "m", "-", code=2, input="x.png\n").stderr
    for command in (["create", tmp_path / "m"], ["add", memory]):
        assert "which is empty" in run("memory", *command, "-", "--category", "x", code=2, input="").stderr
    assert "which is empty" in run("memory", "search", memory, "-", code=2, input="\n\n").stderr
    assert not (tmp_path / "m").exists()
    assert len(fakes["encoders"]) == asked


def test_bad_images_do_not_stop_an_addition(run, tree, tmp_path):
    (tree / "red" / "bad.png").write_bytes(b"")
    result = run("memory", "create", tmp_path / "m", tree, "--json", code=1)
    assert json.loads(result.stdout)["failed"] == 1
    assert json.loads(result.stdout)["added"] == 15
    assert "bad.png: the file is empty" in result.stderr


@pytest.mark.parametrize("name", NASTY)
def test_odd_category_names_travel_unchanged(run, tmp_path, name):
    picture(tmp_path / "train" / name / "1.png", "red")
    picture(tmp_path / "train" / "plain" / "1.png", "blue")
    run("memory", "create", tmp_path / "m", tmp_path / "train")
    query = picture(tmp_path / "x.png", "red")
    result = run("recognize", query, "-m", tmp_path / "m", "--json")
    assert lines(result)[0]["label"] == name
    for command in (["recognize", query, "-m", tmp_path / "m"], ["memory", "info", tmp_path / "m", "--categories"]):
        shown = run(*command).stdout
        assert printable(name).split("\\n")[0] in shown
    assert json.loads(run("memory", "remove", tmp_path / "m", "--category", name, "--json").stdout)["removed"] == 1


def test_remove(run, memory, tree):
    result = run("memory", "remove", memory, "--category", "red", "--json")
    assert json.loads(result.stdout) == {"removed": 3, "entries": 12}
    assert "removed 1 entries" in run("memory", "remove", memory, "--source", tree / "blue" / "0.png").stdout
    assert "say what to remove" in run("memory", "remove", memory, code=2).stderr


def test_info(run, memory):
    info = json.loads(run("memory", "info", memory, "--json").stdout)
    assert (info["entries"], info["categories"], info["dim"]) == (15, 5, 32)
    assert info["metadata"]["encoder"] == "embedded:clip-16"
    named = json.loads(run("memory", "info", memory, "--categories", "--json").stdout)
    assert sorted(named["category_names"]) == sorted(COLOURS)
    assert "encoder fingerprint" in run("memory", "info", memory).stdout


def test_search(run, memory, photos):
    (red,) = lines(run("memory", "search", memory, photos / "red.png", "-k", 2, "--json"))
    assert [hit["category"] for hit in red["neighbours"]] == ["red", "red"]
    assert set(red["neighbours"][0]) == {"id", "category", "modality", "source", "similarity"}
    run("memory", "add", memory, "--category", "x", photos / "green.png", "--with-names")
    (by_word,) = lines(run("memory", "search", memory, "--text", "blue", "--among", "image", "-k", 1, "--json"))
    assert by_word["neighbours"][0]["category"] == "blue"
    result = run("memory", "search", memory, photos / "missing.png", photos / "red.png", "--json", code=1)
    assert ["error" in record for record in lines(result)] == [False, True]
    assert "say what to search for" in run("memory", "search", memory, code=2).stderr


def test_memory_evaluate(run, memory):
    result = json.loads(run("memory", "evaluate", memory, "--leave-one-out", "--json").stdout)
    assert result == {
        "top1": 1.0, "recall_at_5_images": 1.0, "recall_at_5_categories": 1.0, "entries": 15, "categories": 5,
    }  # fmt: skip
    assert "100.0%" in run("memory", "evaluate", memory).stdout


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "classes", "top1", "recall"), [("cub200", 200, 0.407, 0.707), ("pets37", 37, 0.477, 0.811)]
)
def test_the_authors_memories(run, data_dir, tmp_path, name, classes, top1, recall):
    folder = data_dir / "rar-memory" / name
    files = (folder / f"{name}_database.index", folder / f"{name}_database.txt")
    run("memory", "import", *files, "--classnames", folder / "classnames.txt", "--out", tmp_path / "m", "--json")
    result = json.loads(run("memory", "evaluate", tmp_path / "m", "--leave-one-out", "--json").stdout)
    assert result["categories"] == classes
    assert result["top1"] == pytest.approx(top1, abs=0.0005)
    assert result["recall_at_5_images"] == pytest.approx(recall, abs=0.0005)


def test_tables_of_a_memory(run, memory, tmp_path):
    run("memory", "add", memory, picture(tmp_path / "x.png", "black"), "--category", NASTY[2], "--with-names")
    file = tmp_path / "tables" / "table.csv"
    run("memory", "info", memory, "--csv", file)
    (row,) = table(file)
    assert (row["entries"], row["images"], row["texts"]) == ("17", "16", "1")
    assert (row["details_segments"], row["details_tail"]) == ("0", "17")
    assert row["metadata_encoder"] == "embedded:clip-16"
    run("memory", "info", memory, "--categories", "--csv", file)
    shown = [(row["category"], row["images"], row["texts"]) for row in table(file)]
    assert shown == [*((colour, "3", "0") for colour in sorted(COLOURS)), (NASTY[2], "1", "1")]
    result = json.loads(run("memory", "evaluate", memory, "--csv", file, "--json").stdout)
    assert table(file) == [{key: str(value) for key, value in result.items()}]


def test_table_of_a_search(run, memory, photos, tmp_path):
    file = tmp_path / "found.csv"
    missing = photos / "missing.png"
    result = run(
        "memory", "search", memory, photos / "red.png", missing, "--text", "w, x", "-k", 2, "--csv", file, "--json",
        code=1,
    )  # fmt: skip
    rows = table(file)
    asked = [str(photos / "red.png")] * 2 + ["w, x"] * 2 + [str(missing)]
    assert [row["query"] for row in rows] == asked
    assert [row["rank"] for row in rows] == ["1", "2", "1", "2", ""]
    hits = [hit for record in lines(result)[:2] for hit in record["neighbours"]]
    for row, hit in zip(rows, hits, strict=False):
        assert {key: row[key] for key in hit} == {key: str(value) for key, value in hit.items()}
    assert "no such file" in rows[-1]["error"]
    assert rows[0]["error"] == ""


def test_import_refuses_what_does_not_fit(run, tmp_path):
    (tmp_path / "labels.txt").write_text("a.png 0\n")
    result = run("memory", "import", tmp_path / "no.index", tmp_path / "labels.txt", "--out", tmp_path / "m", code=2)
    assert "no.index: no such file" in result.stderr
    assert not (tmp_path / "m").exists()


def test_bad_sources_are_told_before_anything_is_made(run, fakes, tmp_path):
    result = run("memory", "create", tmp_path / "m", tmp_path / "trian", code=2)
    assert "no such file or folder" in result.stderr
    assert not (tmp_path / "m").exists()
    assert fakes["encoders"] == []
