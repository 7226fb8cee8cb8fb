"""Benchmarks of objects, scenes, textures, land, actions and faces; and of boxes, of which only the facts are here."""

from __future__ import annotations

from rarvision.datasets.benchmarks.coop import COOP_PAGE, coop
from rarvision.datasets.benchmarks.layouts import (
    folders,
    read_faces,
    read_imagenet,
    read_scenes,
    read_textures,
    read_videos,
)
from rarvision.datasets.benchmarks.names import camel_case, first_name, reversed_path, spaces
from rarvision.datasets.benchmarks.spec import Benchmark, Splits, Table

__all__ = ["GENERAL"]

_OBJECTS = {"airplanes": "airplane", "faces": "face", "leopards": "leopard", "motorbikes": "motorbike"}
_LAND = {
    "AnnualCrop": "Annual Crop Land",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "SeaLake": "Sea or Lake",
}


def _object(name: str) -> str:
    """CoOp's names for four folders of Caltech101; the others' own."""
    return _OBJECTS.get(name.lower(), spaces(name))


def _land(name: str) -> str:
    """CoOp's long names for the folders of EuroSAT."""
    return _LAND.get(name, camel_case(name) if name.isalpha() and name != name.lower() else spaces(name))


GENERAL = (
    Benchmark(
        name="imagenet",
        title="ImageNet (ILSVRC 2012)",
        about="Photos of 1,000 kinds of things.",
        classes=1_000,
        images=1_331_167,
        folders=("imagenet", "ImageNet", "ILSVRC2012"),
        splits={
            "official": Splits(
                counts={"train": 1_281_167, "val": 50_000},
                files=("classnames.txt|LOC_synset_mapping.txt|metadata.csv",),
                images=(
                    "images/train|ILSVRC/Data/CLS-LOC/train|train",
                    "images/val|ILSVRC/Data/CLS-LOC/val|val",
                ),
                read=read_imagenet,
                about="the authors' own; val is what everybody tests on",
            )
        },
        licence="non-commercial research and education, after registration",
        homepage="https://image-net.org/",
        download=(
            "ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from the homepage",
            "or imagenet-object-localization-challenge from Kaggle",
            f"classnames.txt: {COOP_PAGE}",
        ),
        size="155 GB",
        tree="""\
imagenet/
  classnames.txt                         # or LOC_synset_mapping.txt
  images/train/n01440764/n01440764_10026.JPEG
  images/val/n01440764/ILSVRC2012_val_00000293.JPEG
  # or as Kaggle has it: ILSVRC/Data/CLS-LOC/train/…, …/val/ILSVRC2012_val_00000293.JPEG, LOC_val_solution.csv""",
        citation="Russakovsky et al., ImageNet Large Scale Visual Recognition Challenge, IJCV, 2015",
        table=Table(
            repository="ILSVRC/imagenet-1k",
            counts={"train": 1_281_167, "validation": 50_000},
            rename=first_name,
        ),
        # WordNet's own first names of the two synsets that CLIP's list calls missile and sunglasses a second time.
        renamed={"n04008634": "projectile", "n04355933": "sunglass"},
        cautions=(
            "CLIP's list names two classes missile and two sunglasses; here they are told apart, elsewhere often not",
        ),
        tried="the real list of names, as CSV; else miniatures laid out as described",
    ),
    Benchmark(
        name="caltech101",
        title="Caltech 101",
        about="Objects of 101 kinds.",
        classes=101,
        images=8_677,
        folders=("caltech-101", "caltech101"),
        splits={
            "coop": coop(
                "split_zhou_Caltech101.json",
                train=4_128,
                val=1_649,
                test=2_465,
                images=("101_ObjectCategories",),
                below="101_ObjectCategories",
                clean=_object,
                classes=100,
            ),
            "official": Splits(
                counts={"all": 8_677},
                files=(),
                images=("101_ObjectCategories",),
                read=folders("101_ObjectCategories", clean=_object, without=("BACKGROUND_Google",)),
                about="all images; the authors have no splits. Without BACKGROUND_Google",
            ),
        },
        default="coop",
        licence="CC BY 4.0",
        homepage="https://data.caltech.edu/records/mzrjq-6wc02",
        download=(
            "caltech-101.zip from the homepage; 101_ObjectCategories.tar.gz is in it",
            f"split_zhou_Caltech101.json: {COOP_PAGE}",
        ),
        size="0.13 GB",
        tree="""\
caltech-101/
  split_zhou_Caltech101.json
  101_ObjectCategories/accordion/image_0001.jpg""",
        citation="Fei-Fei et al., Learning Generative Visual Models from Few Training Examples, CVPRW, 2004",
        table=Table(repository="flwrlabs/caltech101", counts={"train": 8_677}, rename=_object),
        cautions=("CoOp's splits have 100 classes: Faces_easy is left out, beside BACKGROUND_Google",),
        tried="CoOp's real splits, as CSV; else miniatures laid out as described",
    ),
    Benchmark(
        name="raf_db",
        title="RAF-DB (basic emotions)",
        about="Faces with one of seven expressions.",
        classes=7,
        images=15_339,
        folders=("raf-db/basic", "RAF-DB/basic", "raf_db/basic", "rafdb/basic"),
        splits={
            name: Splits(
                counts={"train": 12_271, "test": 3_068},
                files=("EmoLabel/list_patition_label.txt",),
                images=(f"Image/{kind}",),
                read=read_faces(kind),
                about=f"the authors' own, {what}",
            )
            for name, kind, what in (
                ("official", "aligned", "faces cut out and turned upright, 100 x 100 pixels"),
                ("original", "original", "whole photos"),
            )
        },
        licence="non-commercial research, on request",
        homepage="http://www.whdeng.cn/RAF/model1.html",
        download=("on request, by the homepage",),
        size="not published",
        tree="""\
raf-db/basic/
  EmoLabel/list_patition_label.txt
  Image/aligned/train_00001_aligned.jpg
  Image/original/train_00001.jpg   # for @original""",
        citation="Li et al., Reliable Crowdsourcing and Deep Locality-Preserving Learning for Expression Recognition, "
        "CVPR, 2017",
        cautions=("the classes are of very different size; look at the mean over classes as well",),
    ),
    Benchmark(
        name="sun397",
        title="SUN397",
        about="Scenes of 397 kinds.",
        classes=397,
        images=108_754,
        folders=("sun397", "SUN397"),
        splits={
            "coop": coop(
                "split_zhou_SUN397.json",
                train=15_880,
                val=3_970,
                test=19_850,
                images=("SUN397",),
                below="SUN397",
            )
        }
        | {
            "official" if part == 1 else f"official-{part}": Splits(
                counts={"train": 19_850, "test": 19_850},
                files=(f"Training_{part:02d}.txt", f"Testing_{part:02d}.txt"),
                images=("SUN397",),
                read=read_scenes(part),
                about=f"the authors' own, partition {part} of 10",
            )
            for part in range(1, 11)
        },
        default="coop",
        licence="research; the images belong to their owners",
        homepage="https://vision.princeton.edu/projects/2010/SUN/",
        download=(
            "SUN397.tar.gz and Partitions.zip from the homepage",
            f"split_zhou_SUN397.json: {COOP_PAGE}",
        ),
        size="39 GB",
        tree="""\
sun397/
  split_zhou_SUN397.json
  SUN397/a/abbey/sun_aaalbzqrimafwbiv.jpg
  Training_01.txt  Testing_01.txt  …   # for @official""",
        citation="Xiao et al., SUN Database: Large-scale Scene Recognition from Abbey to Zoo, CVPR, 2010",
        table=Table(repository="tanganke/sun397", counts={"train": None, "test": None}, rename=reversed_path),
        cautions=("splits use 50 images a class for training and 50 for testing of the 108,754",),
        tried="CoOp's real splits, as CSV; else miniatures laid out as described",
    ),
    Benchmark(
        name="eurosat",
        title="EuroSAT (RGB)",
        about="Satellite images, 64 x 64 pixels, of ten kinds of land.",
        classes=10,
        images=27_000,
        folders=("eurosat", "EuroSAT"),
        splits={
            "coop": coop(
                "split_zhou_EuroSAT.json",
                train=13_500,
                val=5_400,
                test=8_100,
                images=("2750|EuroSAT_RGB",),
                below="2750|EuroSAT_RGB",
            ),
            "official": Splits(
                counts={"all": 27_000},
                files=(),
                images=("2750|EuroSAT_RGB",),
                read=folders("2750|EuroSAT_RGB", clean=_land),
                about="all images; the authors have no splits",
            ),
        },
        default="coop",
        templates=("a centered satellite photo of {}.",),
        licence="MIT",
        homepage="https://github.com/phelber/EuroSAT",
        download=(
            "EuroSAT_RGB.zip from https://zenodo.org/records/7711810",
            f"split_zhou_EuroSAT.json: {COOP_PAGE}",
        ),
        size="0.09 GB",
        tree="""\
eurosat/
  split_zhou_EuroSAT.json
  2750/AnnualCrop/AnnualCrop_1.jpg       # or EuroSAT_RGB/…""",
        citation="Helber et al., EuroSAT: A Novel Dataset and Deep Learning Benchmark for Land Use and Land Cover "
        "Classification, JSTARS, 2019",
        table=Table(repository="tanganke/eurosat", counts={"train": None, "test": None}, rename=_land),
        tried="CoOp's real splits, as CSV; else miniatures laid out as described",
    ),
    Benchmark(
        name="dtd",
        title="Describable Textures (DTD)",
        about="Textures that 47 adjectives describe.",
        classes=47,
        images=5_640,
        folders=("dtd", "dtd/dtd"),
        splits={
            "coop": coop(
                "split_zhou_DescribableTextures.json",
                train=2_820,
                val=1_128,
                test=1_692,
                images=("images",),
                below="images",
            )
        }
        | {
            "official" if part == 1 else f"official-{part}": Splits(
                counts={"train": 1_880, "val": 1_880, "test": 1_880},
                files=tuple(f"labels/{split}{part}.txt" for split in ("train", "val", "test")),
                images=("images",),
                read=read_textures(part),
                about=f"the authors' own, partition {part} of 10",
            )
            for part in range(1, 11)
        },
        default="coop",
        templates=("{} texture.",),
        licence="research; the images belong to their owners",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        download=(
            "dtd-r1.0.1.tar.gz from the homepage",
            f"split_zhou_DescribableTextures.json: {COOP_PAGE}",
        ),
        size="0.6 GB",
        tree="""\
dtd/
  split_zhou_DescribableTextures.json
  images/banded/banded_0002.jpg
  labels/train1.txt  labels/val1.txt  labels/test1.txt  …   # for @official""",
        citation="Cimpoi et al., Describing Textures in the Wild, CVPR, 2014",
        table=Table(repository="tanganke/dtd", counts={"train": None, "test": None}, rename=spaces),
        tried="CoOp's real splits, as CSV; else miniatures laid out as described",
    ),
    Benchmark(
        name="ucf101",
        title="UCF101 (middle frames)",
        about="Actions of 101 kinds: the middle frame of each video.",
        classes=101,
        images=13_320,
        folders=("ucf101", "UCF101"),
        splits={
            "coop": coop(
                "split_zhou_UCF101.json",
                train=7_639,
                val=1_898,
                test=3_783,
                images=("UCF-101-midframes",),
                below="UCF-101-midframes",
            )
        }
        | {
            "official" if part == 1 else f"official-{part}": Splits(
                counts={"train": train, "test": 13_320 - train},
                files=(
                    "ucfTrainTestlist/classInd.txt",
                    f"ucfTrainTestlist/trainlist{part:02d}.txt",
                    f"ucfTrainTestlist/testlist{part:02d}.txt",
                ),
                images=("UCF-101-midframes",),
                read=read_videos(part),
                about=f"the authors' own, split {part} of 3",
            )
            for part, train in ((1, 9_537), (2, 9_586), (3, 9_624))
        },
        default="coop",
        templates=("a photo of a person doing {}.",),
        licence="none stated by the authors; the videos come from YouTube",
        homepage="https://www.crcv.ucf.edu/data/UCF101.php",
        download=(
            f"UCF-101-midframes.zip and split_zhou_UCF101.json: {COOP_PAGE}",
            "UCF101TrainTestSplits-RecognitionTask.zip from the homepage",
        ),
        size="not published; the videos 6.5 GB",
        tree="""\
ucf101/
  split_zhou_UCF101.json
  UCF-101-midframes/Apply_Eye_Makeup/v_ApplyEyeMakeup_g01_c01.jpg
  ucfTrainTestlist/classInd.txt  trainlist01.txt  testlist01.txt  …   # for @official""",
        citation="Soomro et al., UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild, 2012",
        tried="CoOp's real splits, as CSV; else miniatures laid out as described",
    ),
    Benchmark(
        name="lvis",
        title="LVIS v1",
        about="Boxes of 1,203 kinds in the images of COCO: 100,170 images to train, 19,809 to validate.",
        task="detection",
        classes=1_203,
        images=119_979,
        folders=("lvis", "LVIS"),
        licence="annotations CC BY 4.0; the images by their terms on Flickr",
        homepage="https://www.lvisdataset.org/",
        download=(
            "lvis_v1_train.json.zip, lvis_v1_val.json.zip and COCO's train2017.zip, val2017.zip by the homepage",
        ),
        size="20 GB",
        tree="""\
lvis/
  lvis_v1_train.json  lvis_v1_val.json
  train2017/000000391895.jpg  val2017/…""",
        citation="Gupta et al., LVIS: A Dataset for Large Vocabulary Instance Segmentation, CVPR, 2019",
        cautions=("its validation images lie in COCO's train2017 and val2017",),
        tried="nothing: there is no reader of it here",
    ),
    Benchmark(
        name="v3det",
        title="V3Det",
        about="Boxes of 13,204 kinds: 183,354 images to train, 29,821 to validate.",
        task="detection",
        classes=13_204,
        images=213_175,
        folders=("V3Det", "v3det"),
        licence="annotations CC BY 4.0; the images by the terms of where they come from",
        homepage="https://v3det.openxlab.org.cn/",
        download=("annotations and the script that fetches the images, by the homepage",),
        size="33 GB",
        tree="""\
V3Det/
  annotations/v3det_2023_v1_train.json  annotations/v3det_2023_v1_val.json
  images/n07745046/21_371_29405651261_633d076053_c.jpg""",
        citation="Wang et al., V3Det: Vast Vocabulary Visual Detection Dataset, ICCV, 2023",
        tried="nothing: there is no reader of it here",
    ),
)
