"""Benchmarks of kinds that are hard to tell apart: birds, cars, dogs, flowers, pets, aircraft, food."""

from __future__ import annotations

from rarvision.datasets.benchmarks.coop import COOP_PAGE, coop
from rarvision.datasets.benchmarks.layouts import listed_paths, read_aircraft, read_birds, read_pets
from rarvision.datasets.benchmarks.matlab import read_cars, read_dogs, read_flowers
from rarvision.datasets.benchmarks.names import lower, spaces, without_number, year_first
from rarvision.datasets.benchmarks.spec import Benchmark, Splits, Table

__all__ = ["FINE_GRAINED"]

_LEVELS = {"official": "variant", "family": "family", "manufacturer": "manufacturer"}
_LEVEL_CLASSES = {"family": 70, "manufacturer": 30}

FINE_GRAINED = (
    Benchmark(
        name="cub200",
        title="CUB-200-2011",
        about="Birds of 200 species, mostly North American.",
        classes=200,
        images=11_788,
        folders=("CUB_200_2011", "cub/CUB_200_2011", "cub200", "cub"),
        splits={
            "official": Splits(
                counts={"train": 5_994, "test": 5_794},
                files=("images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"),
                images=("images",),
                read=read_birds,
                about="the authors' own",
            )
        },
        templates=("a photo of a {}, a type of bird.",),
        licence="non-commercial research and education; the images belong to their photographers",
        homepage="https://www.vision.caltech.edu/datasets/cub_200_2011/",
        download=("CUB_200_2011.tgz from https://data.caltech.edu/records/65de6-vp158",),
        size="1.2 GB",
        tree="""\
CUB_200_2011/
  images.txt  image_class_labels.txt  train_test_split.txt  classes.txt
  images/001.Black_footed_Albatross/Black_Footed_Albatross_0001_796111.jpg""",
        citation="Wah et al., The Caltech-UCSD Birds-200-2011 Dataset, CNS-TR-2011-001, 2011",
        table=Table(
            repository="dpdl-benchmark/caltech_birds2011",
            counts={"train": 5_994, "test": 5_794},
            rename=without_number,
        ),
        tried="the real names of its folders; else miniatures laid out as described",
    ),
    Benchmark(
        name="stanford_cars",
        title="Stanford Cars",
        about="Cars of 196 makes, models and years.",
        classes=196,
        images=16_185,
        folders=("stanford_cars", "StanfordCars", "stanford-cars"),
        splits={
            "coop": coop(
                "split_zhou_StanfordCars.json",
                train=6_509,
                val=1_635,
                test=8_041,
                images=("cars_train", "cars_test"),
                clean=year_first,
                from_csv="cars_{}".format,
            ),
            "official": Splits(
                counts={"train": 8_144, "test": 8_041},
                files=(
                    "devkit/cars_meta.mat|cars_meta.mat",
                    "devkit/cars_train_annos.mat|cars_train_annos.mat",
                    "cars_test_annos_withlabels.mat|devkit/cars_test_annos_withlabels.mat",
                ),
                images=("cars_train", "cars_test"),
                read=read_cars,
                about="the authors' own",
            ),
        },
        default="coop",
        licence="none stated by the authors; the images come from the web",
        homepage="https://ai.stanford.edu/~jkrause/cars/car_dataset.html (no longer served)",
        download=(
            "cars_train.tgz, cars_test.tgz, car_devkit.tgz, cars_test_annos_withlabels.mat; the authors' server is off",
            f"split_zhou_StanfordCars.json: {COOP_PAGE}",
        ),
        size="1.9 GB",
        tree="""\
stanford_cars/
  split_zhou_StanfordCars.json
  cars_train/00001.jpg
  cars_test/00001.jpg
  devkit/cars_meta.mat  devkit/cars_train_annos.mat  cars_test_annos_withlabels.mat   # for @official""",
        citation="Krause et al., 3D Object Representations for Fine-Grained Categorization, 3dRR, 2013",
        table=Table(repository="tanganke/stanford_cars", counts={"train": 8_144, "test": 8_041}, rename=year_first),
        tried="CoOp's real splits, as CSV; else miniatures laid out as described",
    ),
    Benchmark(
        name="stanford_dogs",
        title="Stanford Dogs",
        about="Dogs of 120 breeds, from ImageNet.",
        classes=120,
        images=20_580,
        folders=("stanford_dogs", "StanfordDogs", "stanford-dogs", "dogs"),
        splits={
            "official": Splits(
                counts={"train": 12_000, "test": 8_580},
                files=("lists/train_list.mat|train_list.mat", "lists/test_list.mat|test_list.mat"),
                images=("Images",),
                read=read_dogs,
                about="the authors' own",
            )
        },
        templates=("a photo of a {}, a type of dog.",),
        licence="none stated by the authors; the images come from ImageNet, whose terms hold for them",
        homepage="http://vision.stanford.edu/aditya86/ImageNetDogs/",
        download=("images.tar and lists.tar from the homepage",),
        size="0.8 GB",
        tree="""\
stanford_dogs/
  lists/train_list.mat  lists/test_list.mat
  Images/n02085620-Chihuahua/n02085620_10074.jpg""",
        citation="Khosla et al., Novel Dataset for Fine-Grained Image Categorization, FGVC at CVPR, 2011",
        cautions=("its images are in ImageNet as well: a model trained on that has seen them",),
    ),
    Benchmark(
        name="flowers102",
        title="Oxford Flowers 102",
        about="Flowers of 102 kinds that are common in the United Kingdom.",
        classes=102,
        images=8_189,
        folders=("oxford_flowers", "flowers-102", "flowers102", "oxford-flowers-102"),
        splits={
            "coop": coop(
                "split_zhou_OxfordFlowers.json",
                train=4_093,
                val=1_633,
                test=2_463,
                images=("jpg",),
                below="jpg",
            ),
            "official": Splits(
                counts={"train": 1_020, "val": 1_020, "test": 6_149},
                files=("imagelabels.mat", "setid.mat"),
                images=("jpg",),
                read=read_flowers,
                about="the authors' own",
            ),
        },
        default="coop",
        templates=("a photo of a {}, a type of flower.",),
        licence="none stated by the authors; the images come from the web and from photographers",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        download=(
            "102flowers.tgz, imagelabels.mat and setid.mat from the homepage",
            f"split_zhou_OxfordFlowers.json: {COOP_PAGE}",
        ),
        size="0.35 GB",
        tree="""\
oxford_flowers/
  split_zhou_OxfordFlowers.json
  jpg/image_00001.jpg
  imagelabels.mat  setid.mat   # for @official""",
        citation="Nilsback and Zisserman, Automated Flower Classification over a Large Number of Classes, ICVGIP, 2008",
        table=Table(
            repository="dpdl-benchmark/oxford_flowers102",
            counts={"train": 1_020, "validation": 1_020, "test": 6_149},
            rename=spaces,
        ),
        cautions=("test is 2,463 images with CoOp's splits and 6,149 with the official ones: say which",),
        tried="CoOp's real splits, as CSV; else miniatures laid out as described",
    ),
    Benchmark(
        name="oxford_pets",
        title="Oxford-IIIT Pet",
        about="Cats and dogs of 37 breeds.",
        classes=37,
        images=7_349,
        folders=("oxford_pets", "oxford-iiit-pet", "oxford_iiit_pet"),
        splits={
            "coop": coop(
                "split_zhou_OxfordPets.json",
                train=2_944,
                val=736,
                test=3_669,
                images=("images",),
                below="images",
                clean=lower,
                from_csv=lambda path: path.rpartition("/")[2],
            ),
            "official": Splits(
                counts={"trainval": 3_680, "test": 3_669},
                files=("annotations/trainval.txt", "annotations/test.txt"),
                images=("images",),
                read=read_pets,
                about="the authors' own",
            ),
        },
        default="coop",
        templates=("a photo of a {}, a type of pet.",),
        licence="CC BY-SA 4.0; the images belong to their owners",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        download=(
            "images.tar.gz and annotations.tar.gz from the homepage",
            f"split_zhou_OxfordPets.json: {COOP_PAGE}",
        ),
        size="0.8 GB",
        tree="""\
oxford_pets/
  split_zhou_OxfordPets.json
  images/Abyssinian_1.jpg
  annotations/trainval.txt  annotations/test.txt   # for @official""",
        citation="Parkhi et al., Cats and Dogs, CVPR, 2012",
        table=Table(repository="timm/oxford-iiit-pet", counts={"train": 3_680, "test": 3_669}, rename=lower),
        tried="CoOp's real splits, as CSV; else miniatures laid out as described",
    ),
    Benchmark(
        name="fgvc_aircraft",
        title="FGVC-Aircraft",
        about="Aircraft of 100 variants, which form 70 families and 30 manufacturers.",
        classes=100,
        images=10_000,
        folders=("fgvc_aircraft", "fgvc-aircraft-2013b/data", "fgvc_aircraft/data"),
        splits={
            name: Splits(
                counts={"train": 3_334, "val": 3_333, "trainval": 6_667, "test": 3_333},
                files=tuple(f"images_{level}_{split}.txt" for split in ("train", "val", "trainval", "test")),
                images=("images",),
                read=read_aircraft(level),
                classes=_LEVEL_CLASSES.get(level),
                about=f"the authors' own, by {level}",
            )
            for name, level in _LEVELS.items()
        },
        templates=("a photo of a {}, a type of aircraft.",),
        licence="non-commercial research; the images belong to their photographers",
        homepage="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        download=("fgvc-aircraft-2013b.tar.gz from the homepage; its folder data is what is needed",),
        size="2.8 GB",
        tree="""\
fgvc_aircraft/                 # the folder data of the archive, or fgvc-aircraft-2013b/data as it is
  variants.txt  images_variant_train.txt  images_variant_val.txt  images_variant_test.txt  …
  images/0034309.jpg""",
        citation="Maji et al., Fine-Grained Visual Classification of Aircraft, arXiv:1306.5151, 2013",
        cautions=(
            "the lowest 20 pixels name the photographer and are to be cut off; CoOp leaves them, as this reader does",
            "train, val and trainval overlap: trainval is the other two together",
        ),
    ),
    Benchmark(
        name="food101",
        title="Food-101",
        about="Dishes of 101 kinds; the training images are not cleaned.",
        classes=101,
        images=101_000,
        folders=("food-101", "food101"),
        splits={
            "coop": coop(
                "split_zhou_Food101.json",
                train=50_500,
                val=20_200,
                test=30_300,
                images=("images",),
                below="images",
            ),
            "official": Splits(
                counts={"train": 75_750, "test": 25_250},
                files=("meta/train.txt", "meta/test.txt"),
                images=("images",),
                read=listed_paths("meta/{}.txt".format, below="images", suffix=".jpg"),
                about="the authors' own",
            ),
        },
        default="coop",
        templates=("a photo of {}, a type of food.",),
        licence="scientific fair use; the images belong to their owners on Foodspotting",
        homepage="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        download=(
            "food-101.tar.gz from the homepage",
            f"split_zhou_Food101.json: {COOP_PAGE}",
        ),
        size="5 GB",
        tree="""\
food-101/
  split_zhou_Food101.json
  images/apple_pie/1005649.jpg
  meta/train.txt  meta/test.txt   # for @official""",
        citation="Bossard et al., Food-101: Mining Discriminative Components with Random Forests, ECCV, 2014",
        table=Table(repository="ethz/food101", counts={"train": 75_750, "validation": 25_250}, rename=spaces),
        tried="CoOp's real splits, as CSV; else miniatures laid out as described",
    ),
)
