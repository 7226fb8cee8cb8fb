"""Ranking examples on disk: the manifest, and the formats of other trainers, each against its schema."""

import json

import jsonschema
import pytest

from cli_world import picture
from rarvision.errors import DatasetError, InputError, OptionError
from rarvision.tuning import (
    FORMATS,
    TuningExample,
    convert_manifest,
    is_manifest,
    read_manifest,
    read_settings,
    to_record,
)

# The manifest -------------------------------------------------------------------------------------------------------

HEADER = {"rarvision_tuning": 1, "k": 5}
LINE = {
    "id": "1-0",
    "image": "1.png",
    "label": "a",
    "candidates": ["b", "a"],
    "target": ["a", "b"],
    "retrieved": ["b", "a"],
}


def all_lists(names):
    return {"candidates": names, "target": names, "retrieved": names}


def manifest(folder, *lines, header=HEADER):
    picture(folder / "1.png", "red")
    path = folder / "m.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in (header, *lines)))
    return path


def test_reading_a_manifest(tmp_path):
    path = manifest(tmp_path, LINE, "", {**LINE, "id": "1-1", "image": str(tmp_path / "1.png"), "further": 1})
    first, second = read_manifest(path)
    assert first == TuningExample(
        id="1-0", image=tmp_path / "1.png", label="a", candidates=("b", "a"), target=("a", "b"), retrieved=("b", "a")
    )
    assert second.image == tmp_path / "1.png"
    assert read_settings(path) == {"k": 5}
    assert is_manifest(path)
    assert not is_manifest(tmp_path / "1.png")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'id': 1}", "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ({"id": "1"}, "line 2: lacks 'image', 'label', 'candidates', 'target', 'retrieved'; it has 'id'"),
        ({**LINE, "label": ""}, "line 2: 'label' must be a non-empty text"),
        ({**LINE, "id": 3}, "line 2: 'id' must be a non-empty text, got 3"),
        ({**LINE, "candidates": "ab"}, "line 2: 'candidates' must be a list of names, got 'ab'"),
        ({**LINE, "target": ["a", 1]}, "line 2: 'target' must be a list of names"),
        ({**LINE, "label": "c"}, "line 2: .*the label 'c' is not among the candidates"),
        ({**LINE, "candidates": ["a", "b", "b"]}, "line 2: .*target must hold the candidates"),
        ({**LINE, "retrieved": ["a", "c"]}, "line 2: .*retrieved must hold the candidates"),
        ({**LINE, "target": ["b", "a"]}, "line 2: .*target must begin with the label 'a', got 'b'"),
        (
            {**LINE, **all_lists(["a", "b", "b"])},
            "line 2: .*hold a name twice",
        ),
        ({**LINE, **all_lists(["a", " "])}, "names must not be blank"),
        ({**LINE, "image": "2.png"}, r"line 2: there is no image .*2\.png"),
    ],
)
def test_a_manifest_that_is_wrong_says_where(tmp_path, line, message):
    with pytest.raises(DatasetError, match=message):
        read_manifest(manifest(tmp_path, line))


def test_wrong_manifests_as_a_whole(tmp_path):
    with pytest.raises(DatasetError, match="line 3: the id '1-0' occurs twice"):
        read_manifest(manifest(tmp_path, LINE, LINE))
    with pytest.raises(DatasetError, match="no examples in it"):
        read_manifest(manifest(tmp_path))
    with pytest.raises(DatasetError, match=r"line 1: not a tuning manifest.* got the keys 'id', 'image'"):
        read_manifest(manifest(tmp_path, header=LINE))
    with pytest.raises(DatasetError, match="newer rarvision"):
        read_manifest(manifest(tmp_path, LINE, header={"rarvision_tuning": 2}))
    path = manifest(tmp_path, LINE, LINE)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DatasetError, match="line 3: the last line is cut short"):
        read_manifest(path)
    path.write_text("")
    with pytest.raises(DatasetError, match="is empty"):
        read_settings(path)
    with pytest.raises(DatasetError, match="no such file"):
        read_manifest(tmp_path / "absent.jsonl")


def test_images_need_not_be_there_and_repeats_may_be(tmp_path):
    double = all_lists(["a", "b", "b"])
    path = manifest(tmp_path, {**LINE, **double, "image": "2.png"}, header={**HEADER, "paper_compat": True})
    (found,) = read_manifest(path, check_images=False)
    assert found.candidates == ("a", "b", "b")


# Other trainers' formats --------------------------------------------------------------------------------------------


def turns(who, what, roles):
    def turn(role, pattern):
        properties = {who: {"const": role}, what: {"type": "string", "pattern": pattern}}
        return {"type": "object", "properties": properties, "required": [who, what], "additionalProperties": False}

    question, answer = roles
    return {
        "type": "array",
        "prefixItems": [turn(*question), turn(*answer)],
        "items": False,
        "minItems": 2,
    }


def record(**properties):
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


ANSWER = r"^\['[^']+'(, '[^']+')+\]$"
IMAGES = {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": 1}
PATH = {"type": "string", "minLength": 1}
SCHEMAS = {
    "authors": record(
        id={"type": "integer", "minimum": 0},
        image=IMAGES,
        conversations=turns(
            "from",
            "value",
            (
                ("user", r"^Here is a image:<Img index=1><image></Img>\. Please [^<>]*categories:\[.*\]"),
                ("assistant", ANSWER),
            ),
        ),
    ),
    "llava": record(
        id={"type": "string"},
        image=PATH,
        conversations=turns("from", "value", (("human", r"^<image>\nPlease [^<>]*categories:\[.*\]"), ("gpt", ANSWER))),
    ),
    "qwen-vl": record(
        id={"type": "string"},
        conversations=turns(
            "from",
            "value",
            (("user", r"^Picture 1: <img>[^<>]+</img>\nPlease [^<>]*categories:\[.*\]"), ("assistant", ANSWER)),
        ),
    ),
    "ms-swift": record(
        messages=turns("role", "content", (("user", r"^<image>Please [^<>]*categories:\[.*\]"), ("assistant", ANSWER))),
        images=IMAGES,
    ),
    "llama-factory": record(
        conversations=turns("from", "value", (("human", r"^<image>Please [^<>]*categories:\[.*\]"), ("gpt", ANSWER))),
        images=IMAGES,
    ),
}


def records(path, name):
    text = path.read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()] if name == "ms-swift" else json.loads(text)


NAMES = ("A320", "A321-200", "Boeing 707")


@pytest.fixture
def aircraft(tmp_path):
    """A manifest of three examples of two images."""
    lines = []
    for number, places in enumerate(((0, 1), (2, 1, 0), (1, 0, 2))):
        label = NAMES[number % 2]
        picture(tmp_path / "images" / label / "0.png", "red")
        shown = [NAMES[place] for place in places]
        target = [label, *(name for name in NAMES if name in shown and name != label)]
        lines.append({"id": f"1-{number}", "image": f"images/{label}/0.png", "label": label, "candidates": shown,
                      "target": target, "retrieved": sorted(shown)})  # fmt: skip
    return manifest(tmp_path, *lines)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("prompt", ["paper", "in-context", "long", "Please sort these categories:{categories}!"])
def test_every_format_meets_its_schema(aircraft, tmp_path, name, prompt):
    examples, root = read_manifest(aircraft), tmp_path / "images"
    told = []
    out = tmp_path / "out" / "x"
    count = convert_manifest(aircraft, out, name, prompt=prompt, image_root=root, progress=told.append)
    written = records(out, name)
    assert count == len(written) == len(examples) == told[-1] == 3
    schema = SCHEMAS[name]
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for number, (found, example) in enumerate(zip(written, examples, strict=True)):
        validator.validate(found)
        assert f"{example.label}/0.png" in json.dumps(found)
        question, answer = found.get("conversations") or found["messages"]
        assert str(list(example.candidates)) in (question.get("value") or question["content"])
        assert (answer.get("value") or answer["content"]) == str(list(example.target))
        assert found == to_record(example, name, number=number, prompt=prompt, image_root=root)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["x"]


def test_schemas_can_fail(tmp_path):
    (example,) = read_manifest(manifest(tmp_path, LINE))
    for name in FORMATS:
        validator = jsonschema.Draft202012Validator(SCHEMAS[name])
        good = to_record(example, name, number=0)
        assert validator.is_valid(good)
        turn = "messages" if name == "ms-swift" else "conversations"
        for bad in ({**good, turn: good[turn][:1]}, {**good, turn: good[turn][::-1]}, {**good, "more": 1}):
            assert not validator.is_valid(bad)


def test_paths_are_absolute_or_below_a_folder(tmp_path):
    (example,) = read_manifest(manifest(tmp_path, LINE))
    assert to_record(example, "llava", number=0)["image"] == (tmp_path / "1.png").resolve().as_posix()
    assert to_record(example, "llava", number=0, image_root=tmp_path.parent)["image"] == f"{tmp_path.name}/1.png"
    with pytest.raises(InputError, match="lies outside of"):
        to_record(example, "llava", number=0, image_root=tmp_path / "elsewhere")


def test_what_conversion_refuses(tmp_path):
    path = manifest(tmp_path, LINE)
    with pytest.raises(OptionError, match="unknown format 'lava'; expected one of authors, llava"):
        convert_manifest(path, tmp_path / "x", "lava")
    with pytest.raises(OptionError, match="needs the field"):
        convert_manifest(path, tmp_path / "x", "llava", prompt="long ago")
    with pytest.raises(InputError, match="is the manifest itself"):
        convert_manifest(path, path, "llava")
    strange = all_lists(["a", "an <image>"])
    path = manifest(tmp_path, {**LINE, **strange})
    with pytest.raises(InputError, match="'1-0': the question holds <image>"):
        convert_manifest(path, tmp_path / "x", "ms-swift")
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "x.part").exists()
    assert convert_manifest(path, tmp_path / "x", "qwen-vl") == 1


def test_odd_names_survive(tmp_path):
    names = ["Bird's eye", 'say "x"', "größer 鳥", "a\\b"]
    lists = all_lists(names)
    path = manifest(tmp_path, {**LINE, "label": names[0], **lists})
    assert read_manifest(path)[0].candidates == tuple(names)
    convert_manifest(path, tmp_path / "x", "llava")
    (found,) = records(tmp_path / "x", "llava")
    assert found["conversations"][1]["value"] == "['Bird's eye', 'say \"x\"', 'größer 鳥', 'a\\b']"
