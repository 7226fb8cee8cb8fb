"""The gallery of errors: what is chosen, and that a report needs nothing but what is kept."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rarvision.errors import DatasetError, InputError
from rarvision.experiments import Outcome
from rarvision.experiments.gallery import GALLERY, Card, chosen_images, kind_of, make_gallery, read_gallery, thumbnail
from rarvision.reporting import EvaluatedImage

WREN, ROBIN, FINCH = "wren", "robin", "finch"


def image(source: str, label: str, retrieved: tuple[str, ...], ranked: tuple[str, ...], **more: Any) -> EvaluatedImage:
    return EvaluatedImage(source=source, label=label, retrieved=retrieved, ranked=ranked, probability=0.75, **more)


IMAGES = (
    image("missed.png", "owl", (WREN, ROBIN), (ROBIN, WREN), status="ranked"),
    image("lost.png", WREN, (WREN, ROBIN), (ROBIN, WREN), status="repaired", reason="a name twice", raw="['robin' <"),
    image("kept.png", FINCH, (WREN, FINCH, ROBIN), (WREN, ROBIN, FINCH), status="fallback"),
    image("saved.png", ROBIN, (WREN, ROBIN), (ROBIN, WREN), status="ranked", raw="robin"),
    image("right.png", WREN, (WREN, ROBIN), (WREN, ROBIN), status="ranked"),
    EvaluatedImage(source="broken.png", label=WREN, error="ImageError: cut short"),
)


def write(folder: Path, images: tuple[EvaluatedImage, ...] = IMAGES, row: str = "rar", seed: int = 0) -> Outcome:
    outcome = Outcome(
        experiment="table-x", column="birds", row=row, at={"shots": 4}, seed=seed, images=f"images/{row}-{seed}.jsonl"
    )
    path = folder / outcome.images
    path.parent.mkdir(exist_ok=True)
    lines = [{"configuration": {}}, *(asdict(each) for each in images)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return outcome


def picture(_key: str) -> Image.Image:
    return Image.new("RGB", (320, 200), (200, 30, 30))


def opened(uri: str) -> Image.Image:
    with Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))) as found:
        found.load()
        return found


def test_kinds() -> None:
    assert [kind_of(each) for each in IMAGES] == [
        "not retrieved",
        "lost by ranking",
        "not rescued",
        "rescued by ranking",
        None,
        None,
    ]


def test_cards_hold_all_that_a_report_shows(tmp_path: Path) -> None:
    assert make_gallery(tmp_path, write(tmp_path), query=picture, exemplar=picture) == 4
    cards = {card.source: card for card in read_gallery(tmp_path / GALLERY)}
    assert set(cards) == {"missed.png", "lost.png", "kept.png", "saved.png"}
    lost = cards["lost.png"]
    assert (lost.kind, lost.label, lost.retrieved, lost.ranked) == (
        "lost by ranking",
        WREN,
        (WREN, ROBIN),
        (ROBIN, WREN),
    )
    assert (lost.raw, lost.status, lost.reason) == ("['robin' <", "repaired", "a name twice")
    assert (lost.cell, lost.column, lost.row, lost.at) == ("birds.shots-4.rar.seed-0", "birds", "rar", "shots 4")
    assert set(lost.exemplars) == {WREN, ROBIN}
    assert lost.picture is not None
    assert opened(lost.picture).size == (160, 100)
    assert cards["saved.png"].raw == "robin"


def test_pictures_that_cannot_be_had_have_a_reason(tmp_path: Path) -> None:
    def query(source: str) -> Image.Image | None:
        if source == "lost.png":
            raise DatasetError("the file is gone")
        return None

    def exemplar(name: str) -> Image.Image | None:
        return None if name == ROBIN else picture(name)

    make_gallery(tmp_path, write(tmp_path), query=query, exemplar=exemplar)
    cards = {card.source: card for card in read_gallery(tmp_path / GALLERY)}
    assert (cards["lost.png"].picture, cards["lost.png"].trouble) == (None, "DatasetError: the file is gone")
    assert cards["saved.png"].trouble == "there is no such image any more"
    assert set(cards["saved.png"].exemplars) == {WREN}
    assert cards["saved.png"].troubles == {ROBIN: "there is no such image any more"}


def test_of_many_candidates_the_first_have_pictures(tmp_path: Path) -> None:
    names = tuple(f"bird {number}" for number in range(10))
    outcome = write(tmp_path, (image("a.png", names[5], names, names),))
    make_gallery(tmp_path, outcome, query=picture, exemplar=picture)
    (card,) = read_gallery(tmp_path / GALLERY)
    assert set(card.exemplars) == set(names[:7])
    assert set(card.troubles) == set(names[7:])


def test_each_exemplar_is_asked_for_once(tmp_path: Path) -> None:
    asked: list[str] = []

    def exemplar(name: str) -> Image.Image | None:
        asked.append(name)
        return picture(name)

    make_gallery(tmp_path, write(tmp_path), query=picture, exemplar=exemplar)
    assert sorted(asked) == sorted({WREN, ROBIN, FINCH})


def test_choice_is_spread_over_categories_and_does_not_depend_on_order() -> None:
    many = [image(f"{label}-{n}.png", label, ("x", "y"), ("x", "y")) for label in "abcdef" for n in range(20)]
    found = chosen_images(many, 6)["not retrieved"]
    assert sorted(each.label for each in found) == list("abcdef")
    assert chosen_images(list(reversed(many)), 6) == chosen_images(many, 6)
    assert len(chosen_images(many, 13)["not retrieved"]) == 13
    assert chosen_images(many, 0)["not retrieved"] == []


def test_a_cell_is_replaced_and_others_stay(tmp_path: Path) -> None:
    for seed in (0, 1):
        make_gallery(tmp_path, write(tmp_path, seed=seed), query=picture, exemplar=picture)
    assert len(read_gallery(tmp_path / GALLERY)) == 8
    make_gallery(tmp_path, write(tmp_path, IMAGES[:1], seed=0), query=picture, exemplar=picture)
    cards = read_gallery(tmp_path / GALLERY)
    assert [card.cell for card in cards].count("birds.shots-4.rar.seed-0") == 1
    assert [card.cell for card in cards].count("birds.shots-4.rar.seed-1") == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == [GALLERY, "images"]  # nothing unfinished is left


def test_the_same_call_gives_the_same_file(tmp_path: Path) -> None:
    outcome = write(tmp_path)
    make_gallery(tmp_path, outcome, query=picture, exemplar=picture)
    first = (tmp_path / GALLERY).read_bytes()
    make_gallery(tmp_path, outcome, query=picture, exemplar=picture)
    assert (tmp_path / GALLERY).read_bytes() == first


def test_nothing_to_show(tmp_path: Path) -> None:
    assert make_gallery(tmp_path, write(tmp_path, IMAGES[4:5]), query=picture, exemplar=picture) == 0
    assert read_gallery(tmp_path / GALLERY) == []
    assert read_gallery(tmp_path / "none.jsonl") == []


def test_thumbnails() -> None:
    for size, kind in (((16, 16), "png"), ((160, 160), "png"), ((400, 100), "jpeg")):
        uri = thumbnail(Image.new("RGBA", size, (10, 200, 30, 255)))
        assert uri.startswith(f"data:image/{kind};base64,")
        assert max(opened(uri).size) <= 160


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file with a line an image"):
        make_gallery(tmp_path, Outcome(experiment="x", column="birds", row="rar"), query=picture, exemplar=picture)
    make_gallery(tmp_path, write(tmp_path), query=picture, exemplar=picture)
    path = tmp_path / GALLERY
    good = path.read_text(encoding="utf-8").splitlines()
    for bad in ("[]", "{", "{}", good[0].replace("data:image/", "https://example.org/")):
        path.write_text("\n".join([good[0], bad]), encoding="utf-8")
        with pytest.raises(InputError, match="line 2"):
            read_gallery(path)


def test_a_card_takes_no_picture_from_elsewhere() -> None:
    with pytest.raises(InputError, match="data URI"):
        Card(
            cell="a",
            column="b",
            row="c",
            kind="not rescued",
            source="s",
            label="l",
            retrieved=("x",),
            ranked=("x",),
            probability=0.5,
            exemplars={"x": "https://example.org/x.png"},
        )
