"""Datasets on disk: what is read, what is refused and how, and few-shot sampling."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from rarvision.datasets import CSVDataset, Dataset, ImageFolder, Item, JSONLDataset, NameList, Subset, open_dataset
from rarvision.errors import DatasetError, OptionError
from rarvision.images import load_image
from rarvision.testing import check_dataset

ODD_NAMES = ["Siamese", "Bird's eye", 'the "big" one', "a [b] c", "two, three", "naïve 図鑑", "#1", "{x}"]


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "pets"
    for number, category in enumerate(["beagle", "abyssinian cat"]):
        for index in range(3):
            path = root / category / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (4, 4), (number * 100, index * 50, 0)).save(path)
    return root


class Synthetic(Dataset):
    def __init__(self, counts):
        self._items = tuple(
            Item(source=f"{label}/{index}", label=label) for label, count in counts.items() for index in range(count)
        )

    @property
    def name(self):
        return "synthetic"

    @property
    def items(self):
        return self._items

    def _image(self, index):
        return Image.new("RGB", (1, 1), (index % 256, 0, 0))


def test_image_folder(tree):
    (tree / "beagle" / "deep").mkdir()
    Image.new("RGB", (4, 4)).save(tree / "beagle" / "deep" / "9.webp")
    (tree / "beagle" / "notes.txt").write_text("no image")
    dataset = ImageFolder(tree)
    assert dataset.name == "pets"
    assert dataset.categories == ("abyssinian cat", "beagle")
    assert [sample.label for sample in dataset] == ["abyssinian cat"] * 3 + ["beagle"] * 4
    assert dataset[0].source == str(tree / "abyssinian cat" / "0.png")
    assert dataset[-1].source == str(tree / "beagle" / "deep" / "9.webp")
    assert load_image(dataset[1].image).getpixel((0, 0)) == (100, 50, 0)
    assert ImageFolder(tree, rename=str.title).categories == ("Abyssinian Cat", "Beagle")
    with pytest.raises(IndexError, match="7 samples"):
        dataset[7]
    with pytest.raises(DatasetError, match="folders 'abyssinian cat' and 'beagle' are both named 'pet'"):
        ImageFolder(tree, rename=lambda _name: "pet")


def test_datasets_meet_the_contract(tree, tmp_path):
    rows = [(str(path), path.parent.name) for path in sorted(tree.rglob("*.png"))]
    (tmp_path / "set.csv").write_text("image,label\n" + "".join(f"{image},{label}\n" for image, label in rows))
    (tmp_path / "set.jsonl").write_text("".join(json.dumps({"image": i, "label": c}) + "\n" for i, c in rows))
    folder = ImageFolder(tree)
    for dataset in (
        folder,
        CSVDataset(tmp_path / "set.csv"),
        JSONLDataset(tmp_path / "set.jsonl"),
        folder.select([4, 1]),
    ):
        check_dataset(dataset)


def test_the_contract_finds_faults():
    class Doubled(Synthetic):
        @property
        def items(self):
            return self._items + self._items[:1]

    class Flickering(Synthetic):
        shade = 0

        def _image(self, index):
            self.shade += 1
            return Image.new("RGB", (1, 1), (self.shade, 0, 0))

    check_dataset(Synthetic({"a": 3, "b": 2}))
    with pytest.raises(AssertionError, match="unique"):
        check_dataset(Doubled({"a": 2}))
    with pytest.raises(AssertionError, match="another image each time"):
        check_dataset(Flickering({"a": 2}))


def test_image_folder_refuses(tree):
    with pytest.raises(DatasetError, match=r"no such folder; did you mean .*pets\?"):
        ImageFolder(tree.parent / "pet")
    empty = tree.parent / "empty"
    empty.mkdir()
    with pytest.raises(DatasetError, match=r"no images in it; expected .*CATEGORY"):
        ImageFolder(empty)
    Image.new("RGB", (4, 4)).save(tree / "stray.png")
    with pytest.raises(DatasetError, match=r"stray\.png: lies in no category's folder"):
        ImageFolder(tree)


@pytest.mark.parametrize("category", [*ODD_NAMES, "two\nlines"])
def test_odd_category_names(tmp_path, category):
    path = tmp_path / "tree" / category / "1.png"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(path)
    assert ImageFolder(tmp_path / "tree").categories == (category,)
    quoted = category.replace('"', '""')
    (tmp_path / "set.csv").write_text(f'image,label\n"tree/{quoted}/1.png","{quoted}"\n', encoding="utf-8")
    (tmp_path / "set.jsonl").write_text(json.dumps({"image": str(path), "label": category}) + "\n", encoding="utf-8")
    for dataset in (CSVDataset(tmp_path / "set.csv"), JSONLDataset(tmp_path / "set.jsonl")):
        assert dataset.categories == (category,)
        assert load_image(dataset[0].image).size == (2, 2)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv(tmp_path, delimiter):
    path = tmp_path / "birds.csv"
    lines = ["Path;Class;split;note", "a.png;robin;train;x", "sub/b.png;;test;y"]
    path.write_text("\ufeff" + "\r\n".join(lines).replace(";", delimiter), encoding="utf-8")
    dataset = CSVDataset(path)
    assert dataset.name == "birds"
    assert [(s.source, s.label, dict(s.metadata)) for s in dataset] == [
        (str(tmp_path / "a.png"), "robin", {"split": "train", "note": "x"}),
        (str(tmp_path / "sub" / "b.png"), None, {"split": "test", "note": "y"}),
    ]
    chosen = CSVDataset(path, image_column="note", label_column="split", root="/elsewhere").items[0]
    assert (chosen.source, chosen.label) == ("/elsewhere/x", "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\na.png\n", "line 2: the row has another number of fields"),
        ("image,label\na.png,b,c\n", "line 2: the row has another number of fields"),
        ("image,label\n", "no rows"),
        ("", "no rows"),
        ("name,kind\na,b\n", "line 2: no image path"),
        ("image,label\n ,x\n", "'image' must be a non-empty text"),
        ('image,label\n"a.png,x\n', "not CSV"),
        (b"image,label\n\xff\xfe.png,x\n", "not UTF-8"),
    ],
)
def test_csv_refuses(tmp_path, text, message):
    path = tmp_path / "bad.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DatasetError, match=message) as caught:
        CSVDataset(path)
    assert "bad.csv" in str(caught.value)


def test_csv_refuses_unknown_columns(tmp_path):
    path = tmp_path / "set.csv"
    path.write_text("image,label\na.png,x\n")
    with pytest.raises(DatasetError, match="no label column 'species'; it has 'image', 'label'"):
        CSVDataset(path, label_column="species")
    with pytest.raises(DatasetError, match="no image column 'picture'"):
        CSVDataset(path, image_column="picture")
    with pytest.raises(DatasetError, match=r"no such file; did you mean .*set\.csv"):
        CSVDataset(tmp_path / "sett.csv")


def test_jsonl(tmp_path):
    path = tmp_path / "set.jsonl"
    rows = [{"image": "a.png", "label": "x", "n": 1, "metadata": {"m": [2]}}, {"file": "/abs/b.png"}]
    path.write_text("\n\n".join(map(json.dumps, rows)))
    first, second = JSONLDataset(path)
    assert (first.source, first.label, dict(first.metadata)) == (str(tmp_path / "a.png"), "x", {"n": 1, "m": [2]})
    assert (second.source, second.label, dict(second.metadata)) == ("/abs/b.png", None, {})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"image": "a.png"', "line 2: not JSON"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ('{"label": "x"}', "line 2: no image path"),
        ('{"image": 3}', "must be a non-empty text, got 3"),
        ('{"image": "a.png", "label": ["x"]}', "'label' must be a non-empty text"),
        ("[" * 100_000, "line 2: not JSON"),
    ],
)
def test_jsonl_refuses(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"image": "ok.png"}\n' + line)
    with pytest.raises(DatasetError, match=message):
        JSONLDataset(path)


def test_name_list(tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("\ufeffrobin\r\n\n  Bird's eye \n#1\nrobin\n", encoding="utf-8")
    names = NameList(path)
    assert list(names) == ["robin", "Bird's eye", "#1"]
    assert (names[0], names[-2:], len(names), names.name) == ("robin", ("Bird's eye", "#1"), 3, "names")
    assert list(NameList(ODD_NAMES)) == ODD_NAMES
    path.write_text("\n \n")
    with pytest.raises(DatasetError, match="no names"):
        NameList(path)
    with pytest.raises(DatasetError, match="no such file"):
        NameList(tmp_path / "missing.txt")


def test_open_dataset(tree, tmp_path):
    (tmp_path / "a.tsv").write_text("image\tlabel\nx.png\ty\n")
    (tmp_path / "a.ndjson").write_text('{"image": "x.png"}')
    (tmp_path / "a.txt").write_text("x")
    (tmp_path / "a.xml").write_text("x")
    assert isinstance(open_dataset(tree), ImageFolder)
    assert isinstance(open_dataset(tmp_path / "a.tsv"), CSVDataset)
    assert isinstance(open_dataset(str(tmp_path / "a.ndjson")), JSONLDataset)
    assert isinstance(open_dataset(tmp_path / "a.txt"), NameList)
    with pytest.raises(DatasetError, match=r"expected a folder.*\.csv"):
        open_dataset(tmp_path / "a.xml")
    with pytest.raises(DatasetError, match="no such file or folder"):
        open_dataset(tmp_path / "nowhere")


@given(
    counts=st.dictionaries(st.text(min_size=1).filter(str.strip), st.integers(1, 12), min_size=1, max_size=6),
    shots=st.integers(1, 8),
    seed=st.integers(0, 5),
)
def test_few_shot_is_nested_exact_and_independent_of_the_others(counts, shots, seed):
    dataset = Synthetic(counts)
    small = dataset.few_shot(shots=shots, seed=seed)
    large = dataset.few_shot(shots=shots + 1, seed=seed)
    assert isinstance(small, Subset)
    assert {item.source for item in small.items} <= {item.source for item in large.items}
    for label, count in counts.items():
        chosen = [item.source for item in small.items if item.label == label]
        assert len(chosen) == len(set(chosen)) == min(shots, count)
        alone = Synthetic({label: count}).few_shot(shots=shots, seed=seed)
        assert [item.source for item in alone.items] == chosen
    positions = [dataset.items.index(item) for item in small.items]
    assert positions == sorted(positions)


def test_few_shot_draws_fairly_and_by_seed():
    dataset = Synthetic({"a": 10})
    drawn = [dataset.few_shot(shots=1, seed=seed).indices[0] for seed in range(2000)]
    assert all(140 < drawn.count(index) < 260 for index in range(10))
    assert dataset.few_shot(shots=3, seed=1).indices == dataset.few_shot(shots=3, seed=1).indices == (1, 2, 7)


def test_few_shot_in_list_order():
    assert Synthetic({"a": 3, "b": 1}).few_shot(shots=2, order="first").indices == (0, 1, 3)


def test_few_shot_refuses():
    dataset = Synthetic({"a": 2})
    with pytest.raises(OptionError, match="shots must be at least 1"):
        dataset.few_shot(shots=0)
    with pytest.raises(OptionError, match="order must be"):
        dataset.few_shot(shots=1, order="last")
    unlabelled = Synthetic({None: 1})
    with pytest.raises(DatasetError, match="needs a label"):
        unlabelled.few_shot(shots=1)


def test_subsets():
    dataset = Synthetic({"a": 2, "b": 2, "c": 1})
    assert [sample.source for sample in dataset.only(["c", "a"])] == ["a/0", "a/1", "c/0"]
    assert dataset.only("b").categories == ("b",)
    nested = dataset.select([4, 0]).select([1])
    assert nested[0].source == "a/0"
    assert nested[0].image.getpixel((0, 0)) == (0, 0, 0)
    with pytest.raises(DatasetError, match="no category 'd'"):
        dataset.only(["a", "d"])
    with pytest.raises(OptionError, match="samples 0 to 4, asked for 5"):
        dataset.select([5])


def test_fingerprint_tells_what_is_in_it():
    one, other = Synthetic({"a": 2}), Synthetic({"a": 3})
    assert one.fingerprint == Synthetic({"a": 2}).fingerprint
    assert one.fingerprint != other.fingerprint
    assert one.fingerprint == other.select([0, 1]).fingerprint != other.select([1, 0]).fingerprint
