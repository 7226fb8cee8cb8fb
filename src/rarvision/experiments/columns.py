"""The data sets that experiments are made of: the paper's benchmarks, and the field guide's domains."""

from __future__ import annotations

from typing import Any

from rarvision.experiments.spec import Column

__all__ = ["DOMAINS", "ELEVEN", "FIVE", "LVIS", "SCENES", "V3DET"]

_COMMON, _FINE = "Common", "Fine-grained"

DOMAINS = (
    Column(key="birds", title="Birds", options={"categories": 500}),
    Column(key="fish", title="Fish", options={"categories": 200}),
    Column(key="flowers", title="Flowers", options={"categories": 100}),
    Column(key="butterflies", title="Butterflies", options={"categories": 50}),
    Column(key="aircraft", title="Aircraft", options={"categories": 20}),
)
"""The field guide's columns: vocabularies of different size, as the benchmarks' are."""


def _benchmark(key: str, title: str, group: str, **options: Any) -> Column:
    return Column(key=key, title=title, group=group, options=options)


ELEVEN = (
    _benchmark("imagenet", "ImageNet", _COMMON, test="val"),
    _benchmark("caltech101", "Caltech101", _COMMON),
    _benchmark("raf_db", "RAF-DB", _COMMON),
    _benchmark("sun397", "SUN397", _COMMON),
    _benchmark("eurosat", "EuroSAT", _COMMON),
    _benchmark("dtd", "DTD", _COMMON),
    _benchmark("ucf101", "UCF101", _COMMON),
    _benchmark("flowers102", "Flowers102", _FINE),
    _benchmark("stanford_cars", "StanfordCars", _FINE),
    _benchmark("food101", "Food101", _FINE),
    _benchmark("oxford_pets", "OxfordPets", _FINE),
)
FIVE = (
    _benchmark("cub200", "Bird-200", "", kind="bird"),
    _benchmark("stanford_cars", "Car-196", "", reference="stanford_cars@official", kind="car"),
    _benchmark("stanford_dogs", "Dog-120", "", kind="dog"),
    _benchmark("flowers102", "Flower-102", "", reference="flowers102@official", kind="flower"),
    _benchmark("oxford_pets", "Pet-37", "", reference="oxford_pets@official", train="trainval", kind="pet"),
)
LVIS = Column(key="lvis", title="LVIS", options={"annotations": "lvis_v1_val.json", "rules": "lvis", "preset": "lvis"})
V3DET = Column(
    key="v3det", title="V3Det", options={"annotations": "v3det_2023_v1_val.json", "rules": "v3det", "preset": "lvis"}
)
SCENES = Column(
    key="scenes", title="Scenes", options={"categories": 1200, "rules": "lvis", "preset": "lvis", "encoder": "better"}
)
