"""Randomised people and photographic augmentation: the same seed gives the same picture, labels stay true."""
import importlib.util

import cv2
import numpy as np
import pytest

from aueditnet.facs import AUS
from aueditnet.pretraining.photographic import PhotographicAugment, compress, cover, recolour, soften, texture

STEPS = cover, recolour, soften, texture, compress
heads = pytest.mark.skipif(importlib.util.find_spec("anny") is None, reason="needs the extra 'heads'")


def picture():
    return cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8), (0, 0), 4)


@pytest.mark.parametrize("step", STEPS)
def test_a_step(step):
    given = picture()
    before = given.copy()
    for seed in range(30):
        one, again = (step(given, np.random.default_rng(seed)) for _ in range(2))
        assert one.dtype == np.uint8 and one.shape == given.shape and (one == again).all()
    assert (given == before).all()    # the input is left alone


def test_a_batch():
    pictures = np.stack([picture()] * 6)
    x = PhotographicAugment()(pictures, np.random.default_rng(1))
    assert x.shape == (6, 3, 128, 128) and x.min() >= -1 and x.max() <= 1
    assert (x == PhotographicAugment()(pictures, np.random.default_rng(1))).all()
    nothing = PhotographicAugment(shift=0, scale=0, roll=0, mirror=0, covered=0, coloured=0, textured=0, softened=0, compressed=0)
    np.testing.assert_allclose((nothing(pictures, np.random.default_rng(1)).numpy() + 1) * 127.5, pictures.transpose(0, 3, 1, 2), atol=.01)


def test_small_pictures():
    small = np.stack([picture()[:48, :48]])
    assert PhotographicAugment(smallest=24)(small, np.random.default_rng(0)).shape == (1, 3, 48, 48)


@heads
def test_nuisance_leaves_the_intensities_alone():
    from aueditnet.synth.randomisation import draw_nuisance, varied_person, with_nuisance
    person = varied_person(40003)
    for seed in range(20):
        weights = draw_nuisance(np.random.default_rng(seed))
        assert all(label.startswith("unit:") and value >= 0 for label, value in weights.items())
    moved = with_nuisance(person, weights)
    difference = moved.vertices({"AU12": 3}) - moved.vertices()
    np.testing.assert_allclose(difference, person.vertices({"AU12": 3}) - person.vertices(), atol=1e-5)
    still = draw_nuisance(np.random.default_rng(3), mouth=False)
    assert not any("Pucker" in label or "Roll" in label for label in still)
    lopsided = with_nuisance(person, {}, 1.)
    assert np.abs(lopsided.asymmetry).max() <= 1 and lopsided.cache is person.cache


@heads
def test_expressions():
    from aueditnet.synth.randomisation import MOODS, NEUTRAL, draw_expression
    assert NEUTRAL + sum(share for share, _ in MOODS) < 1
    drawn = np.stack([draw_expression(np.random.default_rng(i)) for i in range(2000)])
    assert drawn.min() >= 0 and drawn.max() <= 5 and (drawn.max(0) > 4).all()
    jaw = drawn[:, AUS.index("AU26")] > 1
    assert (drawn[jaw, AUS.index("AU25")] >= .59).all()


@heads
def test_light_reaches_the_face():
    from aueditnet.synth.randomisation import draw_background, draw_scene
    for seed in range(20):
        scene = draw_scene(np.random.default_rng(seed))
        directions, colours, keys, key_colours = scene.light.rays()
        assert directions.shape == colours.shape and keys.shape == key_colours.shape == (2, 3)
        np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1, atol=1e-5)
        assert .2 < (np.maximum(directions[:, 2:], 0) * colours).sum(0).mean() < 3
        assert abs(scene.yaw) < 27 and abs(scene.pitch) < 17
    background = draw_background(np.random.default_rng(0))
    assert background.dtype == np.float32 and background.min() > 0


@heads
def test_the_set_is_the_same_every_time(tmp_path):
    from aueditnet.synth.identities import IdentitySet, render_identity, render_shard
    from aueditnet.synth.randomisation import draw_varied_shots
    render_shard(tmp_path, 0, 40000, 2, 2, draw_varied_shots)
    people = IdentitySet(tmp_path)
    x, y = render_identity(40001, 2, draw_varied_shots)
    assert len(people) == 4 and (people[[2, 3]] == x).all() and (people.y[2:] == y).all()


@heads
def test_a_picture_as_background():
    from aueditnet.synth.person import Person
    from aueditnet.synth.render import Camera, Scene, render
    person, camera = Person.from_seed(30001), Camera.centred(64, 6.)
    red = np.zeros((8, 8, 3), np.float32) + np.float32([.5, 0, 0])
    picture = render(person, None, Scene(background=red), camera)
    assert (picture[0, 0] == picture[0, -1]).all() and picture[0, 0, 0] > 150 and picture[0, 0, 1] == 0
