"""The field guide: the same pixels everywhere, disjoint splits, look-alike groups, names that read back."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from rarvision.datasets import fieldguide as fg
from rarvision.datasets.base import Dataset
from rarvision.datasets.fieldguide.hashing import fold, mix
from rarvision.errors import OptionError

# Five pixels (rows 6, 16, 24, 30, 40; columns 8, 30, 24, 14, 38) of two images a domain, taken when the drawing was
# frozen: trained weights know these pixels, so a change here is a new benchmark.
FROZEN = [
    ("birds", (0, 3, 1, 2, 4), 7, "a0b0aa9bb1a571777090b2988db397"),
    ("birds", (5, 8, 5, 0, 1), 123456789012, "a9a9b92a4384532f4b514d54798e7d"),
    ("fish", (0, 3, 1, 2, 4), 7, "dbffff21e954fffff8a6422668c4db"),
    ("fish", (5, 8, 5, 0, 1), 123456789012, "89c7ad56776db7b4926ab0a896c3ad"),
    ("flowers", (0, 3, 1, 2, 4), 7, "c3fbbc681422919a69cbf5afc6ff7e"),
    ("flowers", (5, 8, 5, 0, 1), 123456789012, "b0f6faa18d9179857c8cc18371a05f"),
    ("butterflies", (0, 3, 1, 2, 4), 7, "9c9796862d5052394a493b44a5c090"),
    ("butterflies", (5, 8, 5, 0, 1), 123456789012, "d6d8bb4645553f2f2ce4dcd0778a5a"),
    ("aircraft", (0, 3, 1, 2, 4), 7, "ffffff75a0944c3951d0ffdab1c7d2"),
    ("aircraft", (5, 8, 5, 0, 1), 123456789012, "a6fbdbf2fff491837e564c6af9ffe2"),
]
ALL = tuple(fg.DOMAINS)


def some(domain, n, seed=0):
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, size, n) for size in fg.DOMAINS[domain].sizes], axis=1)
    return codes, rng.integers(0, 1 << 50, n).astype(np.uint64)


@pytest.mark.parametrize(("domain", "code", "instance", "pixels"), FROZEN)
def test_pixels_are_frozen(domain, code, instance, pixels):
    image = fg.render(domain, np.array([code]), np.array([instance], dtype=np.uint64), size=48, seed=3)[0]
    got = image[[6, 16, 24, 30, 40], [8, 30, 24, 14, 38]].astype(int).ravel()
    assert np.abs(got - list(bytes.fromhex(pixels))).max() <= 1


@pytest.mark.parametrize("domain", ALL)
def test_an_image_does_not_depend_on_its_batch(domain):
    codes, instances = some(domain, 40)
    together = fg.render(domain, codes, instances).astype(int)
    shuffled = np.random.default_rng(1).permutation(40)
    other = fg.render(domain, codes[shuffled], instances[shuffled]).astype(int)
    alone = fg.render(domain, codes[:1], instances[:1]).astype(int)
    assert np.abs(other - together[shuffled]).max() <= 1
    assert np.abs(alone[0] - together[0]).max() <= 1


@pytest.mark.parametrize("domain", ALL)
def test_seed_and_instance_change_the_image(domain):
    codes, instances = some(domain, 1)
    image = fg.render(domain, codes, instances)
    assert not np.array_equal(image, fg.render(domain, codes, instances, seed=1))
    assert not np.array_equal(image, fg.render(domain, codes, instances + np.uint64(1)))


@pytest.mark.parametrize("domain", ALL)
def test_every_value_of_every_attribute_shows(domain):
    """In a picture without nuisance, two values of one attribute differ in at least 12 pixels of 2,304, strongly."""
    known = fg.DOMAINS[domain]
    base = np.array([1, 5, 0, 0, 0])
    for column, size in enumerate(known.sizes):
        codes = np.tile(base, (size, 1))
        codes[:, column] = np.arange(size)
        # A whole picture's nuisance hangs on the code as well: compare the subjects alone.
        images = np.stack([_subject(domain, codes, k) for k in range(2)]).astype(int).mean(axis=0)
        for i in range(size):
            for j in range(i):
                strong = np.abs(images[i] - images[j]).max(axis=-1) > 40
                assert strong.sum() >= 12, (known.attributes[column].words[i], known.attributes[column].words[j])


def _subject(domain, codes, instance):
    """The subject alone, on grey: what the painters draw, all else left out."""
    from rarvision.datasets.fieldguide import rendering
    from rarvision.datasets.fieldguide.drawing import Canvas
    from rarvision.datasets.fieldguide.hashing import Rolls

    painters = {
        "birds": rendering.paint_bird,
        "fish": rendering.paint_fish,
        "flowers": rendering.paint_flower,
        "butterflies": rendering.paint_butterfly,
        "aircraft": rendering.paint_aircraft,
    }
    canvas = Canvas(Rolls(np.full(len(codes), instance, dtype=np.uint64)), 48, 0.0)
    canvas.rgb[...] = 0.7
    painters[domain](canvas, canvas.x / np.float32(0.82), canvas.y / np.float32(0.82), codes)
    return (canvas.rgb * 255).transpose(0, 2, 3, 1)


@pytest.mark.parametrize("domain", ALL)
def test_the_larger_picture_is_the_same_scene(domain):
    codes, instances = some(domain, 1, seed=4)
    small = fg.render(domain, codes, instances)[0].astype(float)
    large = np.asarray(fg.illustrate(domain, codes[0], int(instances[0]), size=240)).astype(float)
    assert large.shape == (240, 240, 3)
    shrunk = large.reshape(48, 5, 48, 5, 3).mean(axis=(1, 3))
    flat = [np.asarray(v).reshape(12, 4, 12, 4, 3).mean(axis=(1, 3)).ravel() for v in (small, shrunk)]
    assert np.corrcoef(flat[0], flat[1])[0, 1] > 0.97


def test_domains_are_as_documented():
    assert ALL == ("birds", "fish", "flowers", "butterflies", "aircraft")
    assert fg.HELD_OUT_DOMAIN in fg.DOMAINS
    assert sum(domain.n_categories for domain in fg.DOMAINS.values()) > 60_000
    for domain in fg.DOMAINS.values():
        assert len(domain.attributes) == 5
        assert [a.words for a in domain.attributes[:2]] == [fg.COLOURS, fg.COLOURS]
        words = [word for attribute in domain.attributes[1:] for word in attribute.words]
        assert len(set(words)) == len(words)
        assert all(word.isascii() and word.isalpha() and word.islower() for word in words)


@pytest.mark.parametrize("domain", ALL)
def test_names_read_back(domain):
    known = fg.DOMAINS[domain]
    codes = known.all_codes()
    names = known.codes_to_names(codes)
    assert len(set(names)) == known.n_categories
    assert np.array_equal(known.names_to_codes(names), codes)
    assert np.array_equal(known.numbers(codes), np.arange(known.n_categories))


@pytest.mark.parametrize("domain", ALL)
def test_splits_are_disjoint_and_large(domain):
    codes = fg.DOMAINS[domain].all_codes()
    split = fg.split_of(domain, codes)
    assert split.dtype == np.uint8
    train, validation, test = (int((split == k).sum()) for k in range(3))
    assert train + validation + test == len(codes)
    assert 0.66 < train / len(codes) < 0.70
    assert validation >= 600
    assert test >= 3_200
    for index, name in enumerate(fg.SPLITS):
        assert (fg.split_of(domain, fg.sample_vocabulary(domain, name, 60, seed=2)) == index).all()
    assert np.array_equal(split[::7], fg.split_of(domain, codes[::7]))


def test_the_split_is_frozen():
    split = fg.split_of("birds", fg.DOMAINS["birds"].all_codes())
    assert np.bincount(split).tolist() == [10271, 801, 3928]
    assert "".join(map(str, split[:40])) == "0200200000000000000202000000000000200200"


def test_a_vocabulary_of_never_trained_names_grows_beyond_v3det():
    names = list(fg.vocabulary(15_000))
    assert len(set(names)) == 15_000
    assert names[:100] == list(islice(fg.vocabulary(15_000), 100)) == list(fg.FieldGuide.vocabulary(100))
    assert names[:100] != list(fg.vocabulary(100, seed=1))
    for offset, domain in enumerate(ALL):
        codes = fg.DOMAINS[domain].names_to_codes(names[offset:500:5])
        assert (fg.split_of(domain, codes) == 2).all()
    with pytest.raises(OptionError, match="test categories"):
        next(fg.vocabulary(60_000))


@pytest.mark.parametrize("domain", ALL)
def test_groups_are_look_alikes(domain):
    codes = fg.sample_vocabulary(domain, "test", 205, seed=5)
    assert len(np.unique(codes, axis=0)) == 205
    for start in range(0, 205, 10):
        group = codes[start : start + 10]
        distance = (group[:, None] != group[None]).sum(axis=-1)
        np.fill_diagonal(distance, 9)
        assert set(distance.min(axis=1)) <= {1, 2}
    assert not np.array_equal(codes, fg.sample_vocabulary(domain, "test", 205, seed=6))
    assert np.array_equal(codes[:50], fg.sample_vocabulary(domain, "test", 50, seed=5))


def test_a_whole_split_can_be_sampled():
    codes = fg.sample_vocabulary("flowers", "validation", 741, seed=0)
    assert len(np.unique(codes, axis=0)) == 741
    with pytest.raises(OptionError, match="741 validation"):
        fg.sample_vocabulary("flowers", "validation", 742, seed=0)


def test_memory_and_queries_are_disjoint():
    guide = fg.FieldGuide("fish", categories=20, seed=1)
    memory, queries = guide.few_shot(4, seed=3), guide.queries(100, seed=3)
    assert isinstance(memory, Dataset)
    assert (len(memory), len(queries)) == (80, 100)
    sources = [item.source for item in (*memory.items, *queries.items)]
    assert len(set(sources)) == 180
    pixels = np.concatenate([memory.pixels(), queries.pixels()])
    assert len(np.unique(pixels.reshape(180, -1), axis=0)) == 180
    assert set(memory.categories) == set(queries.categories) == set(guide.names)
    counts = [sum(item.label == name for item in queries.items) for name in guide.names]
    assert counts == [5] * 20


def test_few_shots_are_nested_and_seeded():
    guide = fg.FieldGuide("birds", categories=10)
    sources = {shots: {i.source for i in guide.few_shot(shots, seed=1).items} for shots in (1, 4)}
    assert sources[1] < sources[4]
    assert not sources[4] & {i.source for i in guide.few_shot(4, seed=2).items}
    assert {i.source for i in guide.few_shot(4, seed=2, order="first").items} == {i.source for i in guide.items}


def test_iteration_and_indexing_give_the_same_samples():
    guide = fg.FieldGuide("butterflies", categories=10, images_per_category=4, size=32, role="queries")
    samples = list(guide)
    assert [s.source for s in samples] == [i.source for i in guide.items]
    assert samples[0].source.startswith(f"fieldguide:butterflies/test/{guide.names[0]}/")
    assert samples[35].image.size == (32, 32)
    again = np.asarray(guide[35].image).astype(int)
    assert np.abs(again - np.asarray(samples[35].image).astype(int)).max() <= 1
    assert guide[35].label == samples[35].label == guide.names[8]


@pytest.mark.parametrize(
    "call",
    [
        lambda: fg.render("dragons", np.zeros((1, 5)), np.zeros(1)),
        lambda: fg.render("birds", np.zeros((1, 4)), np.zeros(1)),
        lambda: fg.render("birds", np.full((1, 5), 10), np.zeros(1)),
        lambda: fg.render("birds", np.zeros((2, 5)), np.zeros(1)),
        lambda: fg.render("birds", np.zeros((1, 5)), np.zeros(1), size=4),
        lambda: fg.DOMAINS["birds"].names_to_codes(["crimson golden barred fantail wrasse"]),
        lambda: fg.DOMAINS["birds"].names_to_codes(["crimson finch"]),
        lambda: fg.split_codes("birds", "holdout"),
        lambda: fg.FieldGuide("birds", images_per_category=0),
        lambda: fg.FieldGuide("birds", role="gallery"),
        lambda: fg.FieldGuide("birds", categories=10).few_shot(0),
        lambda: fg.FieldGuide("birds", categories=10).few_shot(1, order="last"),
        lambda: fg.FieldGuide("birds", categories=10).queries(0),
    ],
)
def test_wrong_use_is_refused(call):
    with pytest.raises(OptionError):
        call()


def test_no_images_at_all_is_fine():
    assert fg.render("birds", np.zeros((0, 5), dtype=int), np.zeros(0, dtype=np.uint64)).shape == (0, 48, 48, 3)


def test_hashing_is_splitmix64():
    # The first outputs of the public SplitMix64 with seed 0 and its next state.
    values = mix(np.array([0, 0x9E3779B97F4A7C15], dtype=np.uint64))
    assert [hex(v) for v in values.tolist()] == ["0xe220a8397b1dcdaf", "0x6e789e6aa1b965f4"]
    assert fold(1, 2)[0] != fold(2, 1)[0]
