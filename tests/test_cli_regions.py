"""``rarvision regions`` and ``rarvision evaluate-regions``."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from cli_world import lines

BOXES = {"red": (4, 4, 30, 20), "blue": (50, 10, 90, 50), "green": (10, 40, 40, 70)}
PLAIN = ("--scale", "1", "--shape", "box", "--blur", "off", "--padding", "clip")


@pytest.fixture
def photo(tmp_path):
    image = Image.new("RGB", (100, 80), (128, 128, 128))
    for colour, box in BOXES.items():
        image.paste(Image.new("RGB", (1, 1), colour).getpixel((0, 0)), box)
    image.save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def xywh(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


@pytest.fixture
def annotated(photo, tmp_path):
    """An annotation file of the photo, and of a second image that is not there."""
    pytest.importorskip("msgspec")
    rows = [
        {"id": i, "image_id": 7, "category_id": i + 10, "bbox": xywh(box), "area": 1.0}
        for i, box in enumerate(BOXES.values())
    ]
    content = {
        "images": [{"id": 7, "file_name": "photo.png"}, {"id": 8, "file_name": "other.png"}],
        "annotations": rows,
        "categories": [{"id": i + 10, "name": name, "frequency": "f"} for i, name in enumerate(BOXES)],
    }
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(content))
    return path


def labels(result):
    return [record["label"] for record in lines(result)]


def test_boxes_as_numbers(run, memory, photo):
    boxes = [part for box in BOXES.values() for part in ("--boxes", ",".join(map(str, box)))]
    result = run("regions", photo, *boxes, "-m", memory, *PLAIN, "--json")
    assert labels(result) == list(BOXES)
    first = lines(result)[0]
    assert (first["box"], first["box_xyxy"]) == (0, [4.0, 4.0, 30.0, 20.0])
    assert first["source"].endswith("photo.png#xyxy=4,4,30,20")
    assert "candidates" in first


@pytest.mark.parametrize(
    ("notation", "text"),
    [("xyxy", "0.5,0.125,0.9,0.625"), ("xywh", "0.5,0.125,0.4,0.5"), ("cxcywh", "0.7,0.375,0.4,0.5")],
)
def test_notations_and_shares(run, memory, photo, notation, text):
    options = ("--notation", notation, "--normalised")
    (record,) = lines(run("regions", photo, "--boxes", text, *options, "-m", memory, *PLAIN, "--json"))
    assert record["label"] == "blue"
    assert record["box_xyxy"] == pytest.approx([50, 10, 90, 50])


@pytest.mark.parametrize("form", ["lists", "box_xyxy", "bbox", "results", "annotations"])
def test_files_of_boxes(run, memory, photo, annotated, tmp_path, form):
    file, options = tmp_path / "boxes.json", ()
    if form == "lists":
        file.write_text(json.dumps([list(box) for box in BOXES.values()]))
    elif form == "annotations":
        file = annotated
    elif form == "results":
        rows = [
            {"image_id": 7, "bbox": xywh(box), "score": 0.5, "category_id": c} for box in BOXES.values() for c in (1, 2)
        ]
        file.write_text(json.dumps([*rows, {"image_id": 8, "bbox": [0, 0, 5, 5], "score": 1.0}]))
        options = ("--image-id", 7)
    else:
        file.write_text(json.dumps([{form: list(box), "note": "kept"} for box in BOXES.values()]))
    assert labels(run("regions", photo, "--boxes", file, *options, "-m", memory, *PLAIN, "--json")) == list(BOXES)


def test_a_table_and_a_picture(run, memory, photo, tmp_path):
    result = run("regions", photo, "--boxes", "50,10,90,50", "-m", memory, "--picture", tmp_path / "sub" / "out.png")
    assert "blue" in result.stdout
    assert "50, 10, 90, 50" in result.stdout
    with Image.open(tmp_path / "sub" / "out.png") as drawn:
        assert drawn.size == (960, 768)


def test_a_box_that_lies_outside_fails_alone(run, memory, photo, tmp_path):
    options = ("--boxes", "200,200,220,220", "--boxes", "50,10,90,50", "-m", memory, *PLAIN)
    result = run("regions", photo, *options, "--json", "--picture", tmp_path / "a.png", code=1)
    failed, good = lines(result)
    assert "outside the image, which has 100 x 80 pixels" in failed["error"]
    assert good["label"] == "blue"
    assert "box 0:" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--boxes", "1,2,3"), "n x 4"),
        (("--boxes", "1,2,x,4"), "neither four numbers"),
        (("--boxes", "30,4,10,20"), "no inside"),
        (("--boxes", "4,4,30,-20", "--notation", "xywh"), "no inside"),
        (("--boxes", "4,4,30,20", "--normalised"), "shares of the image"),
        (("--boxes", "4,4,30,20", "--scale", "large"), "--scale"),
        (("--boxes", "4,4,30,20", "--scale", "1,2"), "one scale more than limits"),
        (("--boxes", "4,4,30,20", "--blur", "3"), "must be above 0, at most 1"),
        (("--boxes", "4,4,30,20", "--blur", "1,2"), "--blur must be 1 number"),
        (("--boxes", "4,4,30,20", "--padding", "pink"), "--padding"),
        (("--boxes", "4,4,30,20", "--picture", "a.gif"), "--picture must end in"),
    ],
)
def test_what_is_refused(run, memory, photo, arguments, message):
    assert message in run("regions", photo, *arguments, "-m", memory, code=2).stderr


def test_empty_boxes_of_files_are_left_out(run, memory, photo, tmp_path, annotated):
    file = tmp_path / "boxes.json"
    rows = [{"image_id": 7, "bbox": box} for box in ([1, 1, 0, 20], xywh(BOXES["blue"]))]
    file.write_text(json.dumps(rows))
    result = run("regions", photo, "--boxes", file, "-m", memory, *PLAIN, "--json")
    assert labels(result) == ["blue"]
    assert "1 left out" in result.stderr
    content = json.loads(annotated.read_text())
    content["annotations"][0]["bbox"] = [1, 1, 20, 0]
    annotated.write_text(json.dumps(content))
    assert labels(run("regions", photo, "--boxes", annotated, "-m", memory, *PLAIN, "--json")) == ["blue", "green"]
    assert "--image-id 99" in run("regions", photo, "-b", annotated, "--image-id", 99, "-m", memory, code=2).stderr


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"image_id": "a", "bbox": [1, 2, 3, 4]}, {"image_id": 2, "bbox": [1, 2, 3, 4]}]', "whole number, got 'a'"),
        ('[{"image_id": [1], "bbox": [1, 2, 3, 4]}]', "whole number"),
        ("[[1, 2, 3", "is no JSON"),
        ("{}", "boxes.json"),
        ("5", "expected a list of four numbers"),
        ("[" * 100_000, "is no JSON"),
        ("[[1, 2, 3]]", "item 0 is no box"),
        ('[{"bbox": [1, 2, 3, "x"]}]', "item 0 is no box"),
        ("[]", "gives no box"),
        ('[{"image_id": 1, "bbox": [1, 2, 3, 4]}, {"image_id": 2, "bbox": [1, 2, 3, 4]}]', "boxes of 2 images"),
        ('[{"image_id": 1, "bbox": [1, 2, -3, 4]}]', "no inside"),
    ],
)
def test_files_that_are_refused(run, memory, photo, tmp_path, content, message):
    file = tmp_path / "boxes.json"
    file.write_text(content)
    assert message in run("regions", photo, "--boxes", file, "-m", memory, code=2).stderr


def test_annotations_that_do_not_name_the_image(run, memory, photo, annotated):
    other = photo.with_name("unnamed.png")
    photo.rename(other)
    assert (
        "0 of its 2 images are called unnamed.png"
        in run("regions", other, "--boxes", annotated, "-m", memory, code=2).stderr
    )
    result = run("regions", other, "--boxes", annotated, "--image-id", 7, "-m", memory, *PLAIN, "--json")
    assert labels(result) == list(BOXES)


def test_annotations_of_another_size(run, memory, photo, annotated):
    content = json.loads(annotated.read_text())
    content["images"][0] |= {"width": 200, "height": 160}
    annotated.write_text(json.dumps(content))
    result = run("regions", photo, "--boxes", annotated, "-m", memory, code=2)
    assert "annotates an image of 200 x 160 pixels" in result.stderr


def test_turned_photos(run, memory, photo):
    """Boxes are those of the upright image."""
    with Image.open(photo) as opened:
        image = opened.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown turned to the right
    image.rotate(90, expand=True).save(photo.with_suffix(".jpg"), exif=exif, quality=95)
    (record,) = lines(run("regions", photo.with_suffix(".jpg"), "-b", "52,12,88,48", "-m", memory, *PLAIN, "--json"))
    assert record["label"] == "blue"


# ---- evaluate-regions ----


@pytest.fixture
def evaluation(annotated, memory):
    pytest.importorskip("faster_coco_eval")
    Image.new("RGB", (60, 40), "white").save(annotated.with_name("other.png"))
    return ("evaluate-regions", annotated, "--images", annotated.parent, "-m", memory, *PLAIN)


def test_rows_of_one_run(run, evaluation, tmp_path):
    options = ("-r", "some/mllm", "--ranker-weight", "replace", "-o", tmp_path / "run.jsonl")
    result = run(*evaluation, *options, "--detections", tmp_path / "found", "--json")
    (report,) = lines(result)
    assert list(report["rows"]) == ["CLIP", "RAR", "RAR, first name only"]
    assert report["rows"]["CLIP"]["ap"] == pytest.approx(1.0)
    assert report["top1"]["CLIP"] == 1.0
    assert report["top1"]["RAR"] == pytest.approx(1 / 3)  # the fake MLLM says blue, whatever it sees
    assert report["rows"]["RAR"]["ap"] < 1.0
    written = sorted(path.name for path in (tmp_path / "found").iterdir())
    assert written == ["clip.json", "rar-first-name-only.json", "rar.json"]
    rows = json.loads((tmp_path / "found" / "clip.json").read_text())
    assert set(rows[0]) == {"image_id", "category_id", "bbox", "score"}
    again = run(*evaluation, *options)  # nothing is left to do
    assert "RAR, first name only" in again.stdout
    assert "AP50" in again.stdout


def test_proposals(run, evaluation, tmp_path):
    proposals = tmp_path / "proposals.json"
    rows = [{"image_id": 7, "bbox": xywh(box), "score": 0.9} for box in BOXES.values()]
    proposals.write_text(json.dumps([*rows, {"image_id": 8, "bbox": [1, 1, 8, 8], "score": 0.2}]))
    (report,) = lines(run(*evaluation, "--proposals", proposals, "--objectness", "product", "--json"))
    assert (report["regions"], report["top1"]) == (4, {})
    assert report["rows"]["CLIP"]["preset"] == "lvis, objectness product"
    (fewer,) = lines(run(*evaluation, "--proposals", proposals, "--min-objectness", 0.5, "--per-image", 2, "--json"))
    assert fewer["regions"] == 2


def test_what_evaluation_refuses(run, evaluation, annotated, tmp_path):
    assert "go with --proposals" in run(*evaluation, "--per-image", 5, code=2).stderr
    empty = tmp_path / "p.json"
    empty.write_text('[{"image_id": 7, "bbox": [1, 1, 8, 8], "score": 0.2}]')
    assert "--objectness must be" in run(*evaluation, "--proposals", empty, "--objectness", "x", code=2).stderr
    empty.write_text('[{"image_id": 99, "bbox": [1, 1, 8, 8], "score": 0.2}]')
    assert "99" in run(*evaluation, "--proposals", empty, code=2).stderr
    text = annotated.read_text()
    annotated.write_text(text[:-40])
    assert "annotations.json" in run(*evaluation, code=2).stderr
    annotated.write_text(text.replace('"category_id": 11', '"category_id": 99'))
    assert "99" in run(*evaluation, code=2).stderr


def test_an_image_that_is_missing_is_a_failure(run, evaluation, annotated, photo):
    content = json.loads(annotated.read_text())
    content["annotations"].append({"id": 9, "image_id": 8, "category_id": 10, "bbox": [1, 1, 9, 9], "area": 64})
    annotated.write_text(json.dumps(content))
    photo.unlink()
    result = run(*evaluation, code=1)
    assert "failures      3, such as" in result.stdout
    assert "photo.png" in result.stdout
    annotated.with_name("other.png").unlink()
    assert "none of its 2 images is there" in run(*evaluation, code=2).stderr
