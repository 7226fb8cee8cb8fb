"""The report: one file that needs nothing else, all of it escaped, with a gallery that can be filtered."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from rarvision.errors import InputError, MissingExtraError
from rarvision.experiments import (
    EXPERIMENT,
    OUTCOMES,
    Axis,
    Claim,
    Column,
    Metric,
    Outcome,
    Plot,
    Row,
    Spec,
    Verdict,
    append_outcome,
    rebuild_report,
    reports,
)
from rarvision.experiments.gallery import make_gallery
from rarvision.experiments.reports import write_report
from rarvision.reporting import EvaluatedImage

EVIL = "<script>alert('x')</script> & \"wren\""
SPEC = Spec(
    name="table-7",
    title="Few shots <here>",
    question="Does ranking gain?",
    kind="classification",
    columns=(
        Column(key="dtd", title="DTD", group="Common"),
        Column(key="oxford_pets", title="Pets", group="Fine-grained"),
    ),
    rows=(
        Row(key="knn", title="CLIP + kNN", method="knn"),
        Row(key="rar", title="RAR", method="rar"),
        Row(key="tip", title="Tip", method="tip", extra=True),
    ),
    metrics=(Metric(key="top1", title="top-1"),),
    axis=Axis(key="shots", title="shots", values=(4, 8)),
    claims=(Claim(text="Ranking gains.", kind="gain", first="rar", second="knn"),),
    plot=Plot(log=True),
    source="Table 7",
    paper="table-7",
)
VERDICTS = (
    Verdict(text="Ranking <gains>.", verdict="does not hold", evidence="RAR over kNN: -1.0."),
    Verdict(text="More shots are better.", verdict="holds", evidence="1 & 2."),
)
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What a page holds; fails where elements are not closed as they were opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def outcomes() -> list[Outcome]:
    common: dict[str, Any] = {
        "experiment": "table-7",
        "n": 100,
        "encoder": "clip",
        "version": "0.1.0",
        "dataset": "test images",
        "dataset_fingerprint": "0123456789abcdef",
        "retrieval_ms": 2.5,
    }
    return [
        Outcome(column="dtd", row="knn", at={"shots": 4}, values={"top1": 0.5}, **common),
        Outcome(column="oxford_pets", row="knn", at={"shots": 4}, values={"top1": 0.5}, **common),
        Outcome(
            column="dtd",
            row="rar",
            at={"shots": 4},
            values={"top1": 0.6},
            images="images/dtd.shots-4.rar.seed-0.jsonl",
            ranker="llava",
            prompt_hash="abcdef012345",
            ranking_ms=321.04,
            statuses={"ranked": 90, "repaired": 9, "fallback": 1},
            **common,
        ),
        Outcome(column="oxford_pets", row="rar", at={"shots": 4}, values={"top1": None}, why=f"no {EVIL}", **common),
    ]


def image(source: str, label: str, retrieved: tuple[str, ...], ranked: tuple[str, ...], **more: Any) -> EvaluatedImage:
    return EvaluatedImage(source=source, label=label, retrieved=retrieved, ranked=ranked, probability=0.75, **more)


def results(folder: Path) -> Path:
    """A folder of results with a gallery."""
    (folder / "images").mkdir(parents=True)
    rar = outcomes()[2]
    images = (
        image("a.png", "owl", (EVIL, "robin"), ("robin", EVIL), status="ranked", raw=f"[{EVIL}]"),
        image("b.png", "robin", (EVIL, "robin"), ("robin", EVIL), status="repaired", reason="<b>twice</b>"),
        image("c.png", EVIL, (EVIL, "robin"), ("robin", EVIL), status="ranked"),
    )
    lines = [{"configuration": {}}, *(asdict(each) for each in images)]
    (folder / rar.images).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    make_gallery(
        folder,
        rar,
        query=lambda source: None if source == "b.png" else Image.new("RGB", (40, 40), (9, 9, 200)),
        exemplar=lambda name: None if name == "robin" else Image.new("RGB", (40, 40), (200, 9, 9)),
    )
    for each in outcomes():
        append_outcome(folder / OUTCOMES, each)
    (folder / EXPERIMENT).write_text(json.dumps({"experiment": "table-7", "note": EVIL}), encoding="utf-8")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = results(tmp_path / "table-7")
    write_report(found, SPEC, outcomes(), verdicts=VERDICTS, settings={"note": EVIL})
    return found


@pytest.fixture
def text(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def test_files(folder: Path) -> None:
    names = {"table.md", "table.csv", "figure.png", "figure.svg", "report.html"}
    assert {path.name for path in folder.iterdir()} == names | {"images", "gallery.jsonl", OUTCOMES, EXPERIMENT}


def test_the_page_is_well_formed_and_needs_nothing_from_elsewhere(text: str) -> None:
    page = Page(text)
    addresses = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href", "xlink:href", "action", "data", "poster", "srcset") and value
    ]
    assert addresses
    for address in addresses:
        assert address.startswith(("#", "data:image/", "images/")), address
    assert not page.all("link")
    without_names = re.sub(r'xmlns(:\w+)?="[^"]*"', "", text)
    assert "http:" not in without_names
    assert "https:" not in without_names
    assert "@import" not in text
    assert "url(" not in re.sub(r"url\(#\w+\)", "", text)
    assert page.all("html") == [{"lang": "en"}]


def test_everything_is_escaped(text: str) -> None:
    page = Page(text)
    assert len(page.all("script")) == 1  # the page's own
    assert "alert('x')" not in text
    assert "alert(&#39;x&#39;)" in text
    assert not page.all("b")
    assert "<here>" not in text
    assert "<gains>" not in text
    assert EVIL in page.words


def test_question_claims_and_verdicts(text: str) -> None:
    words = Page(text).words
    assert "Does ranking gain?" in words
    assert "Does not hold: Ranking <gains>. RAR over kNN: -1.0." in words
    assert "Holds: More shots are better. 1 & 2." in words
    assert 'class="verdict does-not-hold"' in text


def test_the_table_shows_ours_the_papers_and_the_difference(text: str) -> None:
    words = Page(text).words
    assert "50.0 paper 47.5 +2.5" in words  # 4 shots, kNN, DTD
    assert "60.0 paper 53.9 +6.1" in words
    assert '<small class="up">+2.5</small>' in text
    assert '<small class="down">-5.6</small>' in text  # Pets: 50.0 to 55.6
    assert "over 1 of 2" in words  # RAR's mean
    assert re.search(r"- in 1 cell: no <script>", words)
    assert "100 images a cell; seeds 0; encoder clip; ranker llava; rarvision 0.1.0." in words
    heads = [each for each in Page(text).all("th") if each.get("scope") == "colgroup"]
    assert [each["colspan"] for each in heads] == ["1", "1"]


def test_cells_are_told_in_full(text: str) -> None:
    words = Page(text).words
    assert "2.5 321.0 90 ranked, 9 repaired, 1 fallback clip llava abcdef012345 test images 0123456789ab 0.1.0" in words
    assert {"href": "images/dtd.shots-4.rar.seed-0.jsonl"} in Page(text).all("a")


def test_links_lead_into_the_folder_only(tmp_path: Path) -> None:
    names = ("javascript:alert(1)", "../other.jsonl", "images/../../x.jsonl", "/etc/passwd", "images/a b.jsonl")
    found = [replace(outcomes()[0], seed=seed, images=name) for seed, name in enumerate(names)]
    write_report(tmp_path, SPEC, found, verdicts=(), settings={})
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    links = [each["href"] for each in page.all("a") if not str(each["href"]).startswith("#")]
    assert links == ["images/a%20b.jsonl"]


def test_cards(text: str) -> None:
    page = Page(text)
    cards = page.all("article")
    assert {(card["data-kind"], card["data-data-set"], card["data-method"], card["data-at"]) for card in cards} == {
        ("not retrieved", "DTD", "RAR", "shots 4"),
        ("rescued by ranking", "DTD", "RAR", "shots 4"),
        ("lost by ranking", "DTD", "RAR", "shots 4"),
    }
    words = page.words
    assert "no picture: there is no such image any more" in words
    assert "Status: repaired (<b>twice</b>)." in words
    assert f"[{EVIL}]" in words
    assert f"Order of the ranking: robin, {EVIL}. Probability of the first: 75 %." in words
    assert "robin (true) ranked 1" in words


def test_filters_name_what_cards_have_and_show_without_javascript_all(text: str) -> None:
    page = Page(text)
    filters = {each["data-filter"] for each in page.all("select")}
    assert filters == {"kind", "data-set", "method", "at"}
    for name in filters:
        assert all(f"data-{name}" in card for card in page.all("article"))
    options = {each["value"] for each in page.all("option")}
    assert {"", "not retrieved", "DTD", "RAR", "shots 4"} <= options
    assert not any("hidden" in card for card in page.all("article"))
    assert next(each for each in page.all("div") if each.get("class") == "filters")["hidden"] is None
    assert "group.hidden = false" in text


def test_pictures_have_words_and_are_held_once(text: str) -> None:
    page = Page(text)
    assert all(each.get("alt") for each in page.all("img"))
    pictures = [each for each in page.all("svg") if each.get("class") == "pic"]
    assert len(pictures) == 3  # one category of each of three cards; the other has no picture
    assert all(each.get("aria-label") and each.get("role") == "img" for each in pictures)
    gallery = [each for each in page.all("image") if str(each.get("id")).startswith("picture-")]
    assert len(gallery) == 1
    uses = {each["href"] for each in page.all("use") if str(each.get("href")).startswith("#picture-")}
    assert uses == {f"#{gallery[0]['id']}"}
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_a_report_is_rebuilt_from_the_folder_alone(tmp_path: Path) -> None:
    folder = results(tmp_path / "table-7")
    found = rebuild_report(folder, SPEC)
    assert [path.name for path in found.files] == [
        "table.md",
        "table.csv",
        "figure.png",
        "figure.svg",
        "report.html",
    ]
    assert all(path.exists() for path in found.files)
    assert [row.key for row in found.table.spec.rows] == ["knn", "rar"]  # of Tip there is nothing
    assert [verdict.text for verdict in found.verdicts] == ["Ranking gains."]
    first = {path: path.read_bytes() for path in found.files}
    rebuild_report(folder, SPEC)
    assert {path: path.read_bytes() for path in found.files} == first
    assert EVIL in Page(found.files[-1].read_text(encoding="utf-8")).words


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no results"):
        rebuild_report(tmp_path, SPEC)
    (tmp_path / EXPERIMENT).write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="nothing has been measured yet"):
        rebuild_report(tmp_path, SPEC)


def test_without_matplotlib_the_report_says_so_and_old_figures_leave(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any) -> list[str]:
        raise MissingExtraError("a plot needs matplotlib: pip install 'rarvision[plots]'")

    monkeypatch.setattr(reports, "draw", missing)
    found = write_report(folder, SPEC, outcomes(), verdicts=VERDICTS, settings={})
    assert [path.name for path in found.files] == ["table.md", "table.csv", "report.html"]
    assert "There is no figure: a plot needs matplotlib" in Page((folder / "report.html").read_text("utf-8")).words
    assert not (folder / "figure.png").exists()


def test_figures_that_lack_something_say_so(text: str) -> None:
    assert "Not drawn where the mean is over some of the data sets: RAR." in Page(text).words


def test_a_spec_without_plot_claims_axis_or_gallery(tmp_path: Path) -> None:
    plain = replace(SPEC, axis=None, plot=None, claims=(), source="", paper="")
    found = write_report(tmp_path, plain, [replace(outcomes()[0], at={})], verdicts=(), settings={})
    assert [path.name for path in found.files] == ["table.md", "table.csv", "report.html"]
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert not page.all("article")
    assert not page.all("select")


def test_markdown_holds_question_table_verdicts_and_who_measured(folder: Path) -> None:
    found = (folder / "table.md").read_text(encoding="utf-8")
    assert found.startswith("# table-7: Few shots <here> (Table 7)\n\nDoes ranking gain?\n\n| shots | method |")
    assert "- **holds**: More shots are better. 1 & 2." in found
    assert found.endswith("rarvision 0.1.0.\n")


def test_names_of_files_that_are_no_unicode(tmp_path: Path) -> None:
    found = [replace(outcomes()[0], dataset="a\udcff")]
    write_report(tmp_path, SPEC, found, verdicts=(), settings={})
    assert "a\\udcff" in (tmp_path / "report.html").read_text(encoding="utf-8")
