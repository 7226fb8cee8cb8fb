"""Miniature copies of public benchmarks, laid out as their public descriptions say, with tiny images.

Each builder names the description that it follows.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

COOP_PAGE = "https://github.com/KaiyangZhou/CoOp/blob/main/DATASETS.md"


def image(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (shade % 256, 40, 90)).save(path, format="JPEG")
    return path


def images(folder: Path, names) -> None:
    for number, name in enumerate(names):
        image(folder / name, number * 7)


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def mat(path: Path, **variables) -> None:
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables)


def cell(values) -> np.ndarray:
    """A MATLAB cell array, a column."""
    array = np.empty((len(values), 1), dtype=object)
    array[:, 0] = values
    return array


def coop_json(path: Path, **splits) -> None:
    """`{"train": [[path, label, name], …], "val": …, "test": …}`: CoOp's datasets/oxford_pets.py, save_split."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"train": [], "val": [], "test": []} | splits), encoding="utf-8")


def cub200(root: Path) -> dict[str, list[tuple[str, str]]]:
    """The README inside CUB_200_2011.tgz: images.txt, classes.txt, image_class_labels.txt, train_test_split.txt."""
    folder = root / "CUB_200_2011"
    files = ["001.Black_footed_Albatross/A_1.jpg", "001.Black_footed_Albatross/A_2.jpg", "002.Laysan_Albatross/B_1.jpg"]
    files += ["002.Laysan_Albatross/B_2.jpg"]
    write(folder / "images.txt", *(f"{n} {file}" for n, file in enumerate(files, 1)))
    write(folder / "classes.txt", "1 001.Black_footed_Albatross", "2 002.Laysan_Albatross")
    write(folder / "image_class_labels.txt", "1 1", "2 1", "3 2", "4 2")
    write(folder / "train_test_split.txt", "1 1", "2 0", "3 1", "4 0")
    images(folder / "images", files)
    return {
        "train": [(f"images/{files[0]}", "Black footed Albatross"), (f"images/{files[2]}", "Laysan Albatross")],
        "test": [(f"images/{files[1]}", "Black footed Albatross"), (f"images/{files[3]}", "Laysan Albatross")],
    }


def stanford_cars(root: Path) -> dict[str, list[tuple[str, str]]]:
    """torchvision's datasets/stanford_cars.py and COOP_PAGE: devkit/*.mat, cars_test_annos_withlabels.mat, images."""
    folder = root / "stanford_cars"
    names = np.empty((1, 2), dtype=object)
    names[0] = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"]
    mat(folder / "devkit" / "cars_meta.mat", class_names=names)
    fields = [("bbox_x1", object), ("class", object), ("fname", object)]
    train = np.array([[(1, 2, "00001.jpg"), (1, 1, "00002.jpg"), (1, 2, "00003.jpg")]], dtype=fields)
    test = np.array([[(1, 1, "00001.jpg"), (1, 2, "00002.jpg")]], dtype=fields)
    mat(folder / "devkit" / "cars_train_annos.mat", annotations=train)
    mat(folder / "cars_test_annos_withlabels.mat", annotations=test)
    images(folder / "cars_train", ["00001.jpg", "00002.jpg", "00003.jpg"])
    images(folder / "cars_test", ["00001.jpg", "00002.jpg"])
    hummer, ram = "2000 AM General Hummer SUV", "2012 Ram C/V Cargo Van Minivan"
    coop_json(
        folder / "split_zhou_StanfordCars.json",
        train=[["cars_train/00003.jpg", 1, ram], ["cars_train/00002.jpg", 0, hummer]],
        val=[["cars_train/00001.jpg", 1, ram]],
        test=[["cars_test/00001.jpg", 0, hummer], ["cars_test/00002.jpg", 1, ram]],
    )
    return {
        "coop/train": [("cars_train/00003.jpg", ram), ("cars_train/00002.jpg", hummer)],
        "coop/val": [("cars_train/00001.jpg", ram)],
        "train": [("cars_train/00001.jpg", ram), ("cars_train/00002.jpg", hummer), ("cars_train/00003.jpg", ram)],
        "test": [("cars_test/00001.jpg", hummer), ("cars_test/00002.jpg", ram)],
    }


def stanford_dogs(root: Path) -> dict[str, list[tuple[str, str]]]:
    """The README of the dataset: Images by breed; train_list.mat and test_list.mat with file_list and labels."""
    folder = root / "stanford_dogs"
    files = {
        "train": ["n02085620-Chihuahua/n02085620_1.jpg", "n02087046-toy_terrier/n02087046_1.jpg"],
        "test": ["n02085620-Chihuahua/n02085620_2.jpg", "n02087046-toy_terrier/n02087046_2.jpg"],
    }
    for split, listed in files.items():
        mat(folder / "lists" / f"{split}_list.mat", file_list=cell(listed), labels=np.array([[1], [2]]))
        images(folder / "Images", listed)
    return {
        split: [(f"Images/{listed[0]}", "Chihuahua"), (f"Images/{listed[1]}", "toy terrier")]
        for split, listed in files.items()
    }


def flowers102(root: Path) -> dict[str, list[tuple[str, str]]]:
    """torchvision's datasets/flowers102.py: imagelabels.mat, setid.mat with trnid, valid, tstid; jpg/image_….jpg."""
    folder = root / "oxford_flowers"
    mat(folder / "imagelabels.mat", labels=np.array([[77, 1, 102, 77, 1, 77]], dtype=np.uint8))
    mat(folder / "setid.mat", trnid=np.array([[1, 2]]), valid=np.array([[3]]), tstid=np.array([[4, 5, 6]]))
    images(folder / "jpg", [f"image_{n:05d}.jpg" for n in range(1, 7)])
    coop_json(
        folder / "split_zhou_OxfordFlowers.json",
        train=[["image_00004.jpg", 76, "passion flower"]],
        val=[["image_00002.jpg", 0, "pink primrose"]],
        test=[["image_00001.jpg", 76, "passion flower"]],
    )
    return {
        "train": [("jpg/image_00001.jpg", "passion flower"), ("jpg/image_00002.jpg", "pink primrose")],
        "val": [("jpg/image_00003.jpg", "blackberry lily")],
        "test": [
            ("jpg/image_00004.jpg", "passion flower"),
            ("jpg/image_00005.jpg", "pink primrose"),
            ("jpg/image_00006.jpg", "passion flower"),
        ],
        "coop/test": [("jpg/image_00001.jpg", "passion flower")],
    }


def oxford_pets(root: Path) -> dict[str, list[tuple[str, str]]]:
    """torchvision's datasets/oxford_iiit_pet.py: annotations/trainval.txt and test.txt, `NAME CLASS SPECIES BREED`."""
    folder = root / "oxford_pets"
    write(folder / "annotations" / "trainval.txt", "Abyssinian_100 1 1 1", "german_shorthaired_12 16 2 9")
    write(folder / "annotations" / "test.txt", "#Image CLASS-ID SPECIES BREED ID", "Abyssinian_201 1 1 1")
    images(folder / "images", ["Abyssinian_100.jpg", "german_shorthaired_12.jpg", "Abyssinian_201.jpg"])
    coop_json(
        folder / "split_zhou_OxfordPets.json",
        train=[["german_shorthaired_12.jpg", 15, "german_shorthaired"]],
        val=[["Abyssinian_100.jpg", 0, "abyssinian"]],
        test=[["Abyssinian_201.jpg", 0, "abyssinian"]],
    )
    return {
        "trainval": [
            ("images/Abyssinian_100.jpg", "abyssinian"),
            ("images/german_shorthaired_12.jpg", "german shorthaired"),
        ],
        "test": [("images/Abyssinian_201.jpg", "abyssinian")],
        "coop/train": [("images/german_shorthaired_12.jpg", "german shorthaired")],
    }


def fgvc_aircraft(root: Path) -> dict[str, list[tuple[str, str]]]:
    """torchvision's datasets/fgvc_aircraft.py: data/variants.txt, data/images_variant_train.txt, `NUMBER NAME`."""
    folder = root / "fgvc-aircraft-2013b" / "data"
    write(folder / "variants.txt", "707-320", "A340-200", "Cessna 172")
    write(folder / "families.txt", "A340", "Boeing 707", "Cessna 172")
    write(folder / "manufacturers.txt", "Airbus", "Boeing", "Cessna")
    rows = {"train": ["1025794 707-320"], "val": ["0034309 A340-200"], "test": ["0037511 Cessna 172"]}
    rows["trainval"] = rows["train"] + rows["val"]
    family = {"707-320": "Boeing 707", "A340-200": "A340", "Cessna 172": "Cessna 172"}
    maker = {"707-320": "Boeing", "A340-200": "Airbus", "Cessna 172": "Cessna"}
    for split, lines in rows.items():
        write(folder / f"images_variant_{split}.txt", *lines)
        for level, names in (("family", family), ("manufacturer", maker)):
            write(folder / f"images_{level}_{split}.txt", *(f"{line[:7]} {names[line[8:]]}" for line in lines))
    images(folder / "images", ["1025794.jpg", "0034309.jpg", "0037511.jpg"])
    return {
        "train": [("images/1025794.jpg", "707-320")],
        "trainval": [("images/1025794.jpg", "707-320"), ("images/0034309.jpg", "A340-200")],
        "test": [("images/0037511.jpg", "Cessna 172")],
        "family/train": [("images/1025794.jpg", "Boeing 707")],
        "manufacturer/val": [("images/0034309.jpg", "Airbus")],
    }


def food101(root: Path) -> dict[str, list[tuple[str, str]]]:
    """The dataset's README and COOP_PAGE: images/apple_pie/1005649.jpg, meta/train.txt with `apple_pie/1005649`."""
    folder = root / "food-101"
    write(folder / "meta" / "train.txt", "apple_pie/1005649", "waffles/971843")
    write(folder / "meta" / "test.txt", "apple_pie/1011328")
    images(folder / "images", ["apple_pie/1005649.jpg", "waffles/971843.jpg", "apple_pie/1011328.jpg"])
    coop_json(folder / "split_zhou_Food101.json", test=[["waffles/971843.jpg", 100, "waffles"]])
    return {
        "train": [("images/apple_pie/1005649.jpg", "apple pie"), ("images/waffles/971843.jpg", "waffles")],
        "test": [("images/apple_pie/1011328.jpg", "apple pie")],
        "coop/test": [("images/waffles/971843.jpg", "waffles")],
    }


def imagenet(root: Path) -> dict[str, list[tuple[str, str]]]:
    """COOP_PAGE: images/train/n01440764/…, images/val/n01440764/…, classnames.txt with `n01440764 tench`."""
    folder = root / "imagenet"
    names = {"n01440764": "tench", "n03773504": "missile", "n04008634": "missile"}
    write(folder / "classnames.txt", *(f"{key} {name}" for key, name in names.items()))
    for key in names:
        images(folder / "images", [f"train/{key}/{key}_1.JPEG", f"val/{key}/ILSVRC2012_val_{key[-3:]}.JPEG"])
    expected = {"n01440764": "tench", "n03773504": "missile", "n04008634": "projectile"}
    return {
        "train": [(f"images/train/{key}/{key}_1.JPEG", name) for key, name in expected.items()],
        "val": [(f"images/val/{key}/ILSVRC2012_val_{key[-3:]}.JPEG", name) for key, name in expected.items()],
    }


def caltech101(root: Path) -> dict[str, list[tuple[str, str]]]:
    """torchvision's datasets/caltech.py and CoOp's datasets/caltech101.py: 101_ObjectCategories, a folder a class."""
    folder = root / "caltech-101"
    listed = ["BACKGROUND_Google/image_0001.jpg", "Faces/image_0001.jpg", "Faces_easy/image_0001.jpg"]
    listed += ["airplanes/image_0002.jpg", "airplanes/image_0001.jpg", "car_side/image_0001.jpg"]
    images(folder / "101_ObjectCategories", listed)
    write(folder / "101_ObjectCategories" / "car_side" / "notes.txt", "no image")
    coop_json(folder / "split_zhou_Caltech101.json", test=[["airplanes/image_0002.jpg", 4, "airplane"]])
    below = "101_ObjectCategories"
    return {
        "all": [
            (f"{below}/Faces/image_0001.jpg", "face"),
            (f"{below}/Faces_easy/image_0001.jpg", "Faces easy"),
            (f"{below}/airplanes/image_0001.jpg", "airplane"),
            (f"{below}/airplanes/image_0002.jpg", "airplane"),
            (f"{below}/car_side/image_0001.jpg", "car side"),
        ],
        "coop/test": [(f"{below}/airplanes/image_0002.jpg", "airplane")],
    }


def raf_db(root: Path) -> dict[str, list[tuple[str, str]]]:
    """The dataset's readme, as public loaders follow it: EmoLabel/list_patition_label.txt, `train_00001.jpg 5`."""
    folder = root / "raf-db" / "basic"
    write(folder / "EmoLabel" / "list_patition_label.txt", "train_00001.jpg 5", "train_00002.jpg 7", "test_0001.jpg 1")
    images(folder / "Image" / "aligned", [f"{n}_aligned.jpg" for n in ("train_00001", "train_00002", "test_0001")])
    images(folder / "Image" / "original", [f"{n}.jpg" for n in ("train_00001", "train_00002", "test_0001")])
    return {
        "train": [
            ("Image/aligned/train_00001_aligned.jpg", "sadness"),
            ("Image/aligned/train_00002_aligned.jpg", "neutral"),
        ],
        "test": [("Image/aligned/test_0001_aligned.jpg", "surprise")],
        "original/test": [("Image/original/test_0001.jpg", "surprise")],
    }


def sun397(root: Path) -> dict[str, list[tuple[str, str]]]:
    """CoOp's datasets/sun397.py and COOP_PAGE: SUN397/a/abbey/…, Training_01.txt with `/a/abbey/sun_….jpg`."""
    folder = root / "sun397"
    files = ["a/abbey/sun_a.jpg", "a/apse/indoor/sun_b.jpg", "b/bow_window/outdoor/sun_c.jpg"]
    for part, (train, test) in ((1, (files[:2], files[2:])), (2, (files[1:], files[:1]))):
        write(folder / f"Training_{part:02d}.txt", *(f"/{file}" for file in train))
        write(folder / f"Testing_{part:02d}.txt", *(f"/{file}" for file in test))
    images(folder / "SUN397", files)
    coop_json(folder / "split_zhou_SUN397.json", val=[[files[1], 1, "indoor apse"]])
    return {
        "train": [(f"SUN397/{files[0]}", "abbey"), (f"SUN397/{files[1]}", "indoor apse")],
        "test": [(f"SUN397/{files[2]}", "outdoor bow window")],
        "official-2/test": [(f"SUN397/{files[0]}", "abbey")],
        "coop/val": [(f"SUN397/{files[1]}", "indoor apse")],
    }


def eurosat(root: Path) -> dict[str, list[tuple[str, str]]]:
    """torchvision's datasets/eurosat.py and CoOp's datasets/eurosat.py: 2750/AnnualCrop/AnnualCrop_1.jpg."""
    folder = root / "eurosat"
    images(folder / "2750", ["AnnualCrop/AnnualCrop_1.jpg", "SeaLake/SeaLake_1.jpg", "Forest/Forest_1.jpg"])
    coop_json(folder / "split_zhou_EuroSAT.json", test=[["SeaLake/SeaLake_1.jpg", 9, "Sea or Lake"]])
    return {
        "all": [
            ("2750/AnnualCrop/AnnualCrop_1.jpg", "Annual Crop Land"),
            ("2750/Forest/Forest_1.jpg", "Forest"),
            ("2750/SeaLake/SeaLake_1.jpg", "Sea or Lake"),
        ],
        "coop/test": [("2750/SeaLake/SeaLake_1.jpg", "Sea or Lake")],
    }


def dtd(root: Path) -> dict[str, list[tuple[str, str]]]:
    """torchvision's datasets/dtd.py: images/banded/…, labels/train1.txt to test10.txt with `banded/banded_0002.jpg`."""
    folder = root / "dtd" / "dtd"
    files = ["banded/banded_0002.jpg", "polka-dotted/polka-dotted_0001.jpg", "zigzagged/zigzagged_0001.jpg"]
    for part in range(1, 11):
        for number, split in enumerate(("train", "val", "test")):
            write(folder / "labels" / f"{split}{part}.txt", files[(number + part - 1) % 3])
    images(folder / "images", files)
    return {
        "train": [(f"images/{files[0]}", "banded")],
        "val": [(f"images/{files[1]}", "polka-dotted")],
        "official-3/train": [(f"images/{files[2]}", "zigzagged")],
    }


def ucf101(root: Path) -> dict[str, list[tuple[str, str]]]:
    """CoOp's datasets/ucf101.py: ucfTrainTestlist/classInd.txt, trainlist01.txt; UCF-101-midframes/…"""
    folder = root / "ucf101"
    lists = folder / "ucfTrainTestlist"
    write(lists / "classInd.txt", "1 ApplyEyeMakeup", "2 YoYo")
    for part in (1, 2, 3):
        write(lists / f"trainlist{part:02d}.txt", f"ApplyEyeMakeup/v_ApplyEyeMakeup_g0{part}_c01.avi 1")
        write(lists / f"testlist{part:02d}.txt", "YoYo/v_YoYo_g01_c01.avi")
    frames = [f"Apply_Eye_Makeup/v_ApplyEyeMakeup_g0{part}_c01.jpg" for part in (1, 2, 3)] + [
        "Yo_Yo/v_YoYo_g01_c01.jpg"
    ]
    images(folder / "UCF-101-midframes", frames)
    coop_json(folder / "split_zhou_UCF101.json", train=[[frames[0], 0, "Apply_Eye_Makeup"]])
    return {
        "train": [(f"UCF-101-midframes/{frames[0]}", "Apply Eye Makeup")],
        "official-3/train": [(f"UCF-101-midframes/{frames[2]}", "Apply Eye Makeup")],
        "test": [(f"UCF-101-midframes/{frames[3]}", "Yo Yo")],
        "coop/train": [(f"UCF-101-midframes/{frames[0]}", "Apply Eye Makeup")],
    }


BUILDERS: dict[str, Callable[[Path], dict[str, list[tuple[str, str]]]]] = {
    builder.__name__: builder
    for builder in (
        cub200,
        stanford_cars,
        stanford_dogs,
        flowers102,
        oxford_pets,
        fgvc_aircraft,
        food101,
        imagenet,
        caltech101,
        raf_db,
        sun397,
        eurosat,
        dtd,
        ucf101,
    )
}
"""Each builds a benchmark below a folder, and tells what is to be read: (path, label) by `SPLITS/SPLIT`, `official`
where only a split is named."""
