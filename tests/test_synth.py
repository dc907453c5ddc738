"""The synthetic world: edge cases of heads and renderer, sets of identities rendered by several processes, and the bundled dataset."""
import importlib.util
import multiprocessing
import os
import signal
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import numpy as np
import pytest
from conftest import ROOT, run_python

from aueditnet.facs import AUS
from aueditnet.files.errors import InputError
from aueditnet.files.io import data_dir
from aueditnet.synth import head_mesh, identities, person, synthdisfa
from aueditnet.synth.glasses import fit_glasses
from aueditnet.synth.head_mesh import Basis
from aueditnet.synth.identities import IdentitySet, aligned_camera, render_identity, render_shard, rendered_set, set_folder
from aueditnet.synth.person import STYLES, Person
from aueditnet.synth.render import Camera, Scene, landmarks, random_scene, render

pytestmark = pytest.mark.skipif(importlib.util.find_spec("anny") is None, reason="needs the extra 'heads'")
SPAWN = multiprocessing.get_context("spawn")
SMALL = Camera.centred(64, 2.2)


@pytest.fixture(scope="module")
def someone():
    return Person.from_seed(30001)


# Heads

def test_the_extra_is_named_when_it_is_missing():
    with patch.object(importlib.util, "find_spec", return_value=None), pytest.raises(InputError, match=r"pip install 'aueditnet\[heads\]'"):
        head_mesh.data_folder()


def test_the_cached_basis_is_what_would_be_baked_now():
    basis, fresh = Basis.load(), head_mesh.bake(head_mesh.data_folder())
    assert (fresh["shapes"] == basis.shapes).all() and (fresh["coarse"] == basis.coarse).all() and (fresh["quads"] == basis.quads).all()
    assert list(basis.row) == list(fresh["labels"]) and all((fresh[f"mask {name}"] == mask).all() for name, mask in basis.masks.items())
    x, y, _ = basis.rest[basis.vertex_part == 0].T          # the mesh is symmetric
    np.testing.assert_allclose(np.sort(y[x > .2]), np.sort(y[x < -.2]), atol=1e-4)


def test_weights_of_a_head():
    rng = np.random.default_rng(0)
    weights = person.draw_shape(rng, Basis.load(), person.draw_looks(rng))
    for family in ("body", "race"):
        assert sum(value for label, value in weights.items() if label.startswith(family)) == pytest.approx(1)


@pytest.mark.parametrize("au, says", [({"AU3": 1}, "AU3: not one of the twelve"), ([1, 2, 3], "expected twelve intensities")])
def test_unusable_intensities(someone, au, says):
    with pytest.raises(InputError, match=says):
        render(someone, au, Scene(), SMALL)


def test_unknown_glasses():
    with pytest.raises(InputError, match="'pince-nez': not a shape of glasses; available: round, oval, square"):
        fit_glasses(Person.from_seed(30010, glasses="pince-nez"))


# Renderer

def test_triangles_that_face_away():
    from aueditnet.synth.rasteriser import rasterise
    corners, depth = np.float32([[0, 0], [0, 8], [8, 0]]), np.float32([1, 1, 1])

    def drawn(triangle, cull):
        hit = np.full((8, 8), -1, np.int32)
        rasterise(corners, depth, np.int32([triangle]), cull, hit, np.zeros((8, 8, 2), np.float32), np.full((8, 8), 1e9, np.float32))
        return (hit >= 0).sum()
    assert [drawn([0, 1, 2], True), drawn([0, 2, 1], True), drawn([0, 2, 1], False)] == [36, 0, 36]


def test_another_process_renders_the_same_bytes():
    program = """
import hashlib
import numpy as np
from aueditnet.synth.person import Person
from aueditnet.synth.render import Camera, random_scene, render
for seed in (10000, 10003):
    scene = random_scene(np.random.default_rng(seed))
    picture = render(Person.from_seed(seed), {"AU6": 3, "AU12": 2.5, "AU1": 1}, scene, Camera.centred(96, 2.2))
    print(hashlib.sha256(picture).hexdigest())
"""
    here = run_python("-c", program, cwd=ROOT)
    there = run_python("-c", program, cwd=ROOT, OMP_NUM_THREADS="1", PYTHONHASHSEED="1")
    assert here.returncode == 0, here.stderr
    assert here.stdout == there.stdout and len(here.stdout.split()) == 2


def test_forms_of_the_arguments(someone):
    vector = np.zeros(12)
    vector[AUS.index("AU9")] = 4
    sneer = render(someone, {"AU9": 4}, Scene(), SMALL)
    assert (render(someone, vector, Scene(), SMALL) == sneer).all()
    assert (render(someone, {"AU9": 4}, Scene(), SMALL, wrinkles=0) != sneer).any()
    neutral = render(someone, None, Scene(), SMALL)
    assert (render(someone, None, Scene(), SMALL, wrinkles=0) == neutral).all()
    assert (render(Person.from_seed(2), None, Scene(), SMALL) != neutral).mean() > .3
    wide = Camera(np.array([[20., 0, 80], [0, -20., 20]]), 50, 160)
    assert render(someone, None, Scene(), wide).shape == (50, 160, 3)


def test_every_style_can_be_rendered():
    assert len({render(Person.from_seed(5, style=style), None, Scene(), SMALL).tobytes() for style in STYLES}) == len(STYLES)


def test_the_aligned_camera_and_its_jitter():
    from aueditnet.align import ffhq_quad
    someone, scene, au = Person.from_seed(30004), random_scene(np.random.default_rng(2)), {"AU12": 3}

    def points(jitter=None):
        return landmarks(someone, au, scene, aligned_camera(someone, au, scene, jitter=jitter)) + .5
    np.testing.assert_allclose(ffhq_quad(points(), 1.25)[0], [[0, 0], [0, 128], [128, 128], [128, 0]], atol=.05)
    np.testing.assert_allclose(points((3, -2, 1.1, 0)), (points() - 64) * 1.1 + 64 + [3, -2], atol=.02)
    turned = points((0, 0, 1, 10))
    assert turned[42:48, 1].mean() > turned[36:42, 1].mean()    # clockwise: the eye on the right moves down


# Sets of identities

@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A set of two identities with one picture each, and an empty cache."""
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path))
    monkeypatch.setitem(identities.SETS, "tiny", (20000, 2, 1))
    identities._set_hash.cache_clear()
    yield "tiny"
    identities._set_hash.cache_clear()


def contents(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


def test_two_processes_render_one_shard(tmp_path):
    """One whole shard, and no temporary file; the same bytes as of one process."""
    both = [SPAWN.Process(target=render_shard, args=(tmp_path / "shared", 0, 20000, 2, 2)) for _ in range(2)]
    for folder in ("shared", "alone"):
        (tmp_path / folder).mkdir()
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    render_shard(tmp_path / "alone", 0, 20000, 2, 2)
    assert contents(tmp_path / "shared") == contents(tmp_path / "alone") and sorted(contents(tmp_path / "alone")) == ["00000.npy", "00000.npz"]
    shard = IdentitySet(tmp_path / "shared")
    assert len(shard) == 4 and shard.person.tolist() == [20000, 20000, 20001, 20001]
    assert (shard[[3, 0]] == np.stack([render_identity(20001, 2)[0][1], render_identity(20000, 1)[0][0]])).all()


def killed_at_replace(folder, count):
    """In a process of its own: killed when the `count`-th file is complete, but not yet in its place."""
    move, calls = os.replace, iter(range(9))
    os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL) if next(calls) == count else move(*names)
    render_shard(folder, 0, 20000, 1, 1)


@pytest.mark.parametrize("count, left", [(0, []), (1, ["00000.npy"])])
def test_a_killed_process_leaves_no_broken_shard(tmp_path, count, left):
    process = SPAWN.Process(target=killed_at_replace, args=(tmp_path, count))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL and sorted(f.name for f in tmp_path.iterdir() if not f.name.startswith(".")) == left
    with pytest.raises(InputError, match="no rendered identities; run `aueditnet pretrain --stage render`"):
        IdentitySet(tmp_path)
    render_shard(tmp_path, 0, 20000, 1, 1)
    assert len(IdentitySet(tmp_path)) == 1


def test_a_set_is_rendered_once(tiny, monkeypatch):
    first = rendered_set(tiny)
    assert first.folder == set_folder(tiny) and len(first) == 2 and (first.folder / "DONE").is_file()
    before = {f.name: f.stat().st_mtime_ns for f in first.folder.glob("0*")}
    (first.folder / "DONE").unlink()                        # interrupted before the end: whole shards are kept
    monkeypatch.setattr(identities, "process_pool", ThreadPoolExecutor)
    assert (rendered_set(tiny)[[0, 1]] == first[[0, 1]]).all()
    assert {f.name: f.stat().st_mtime_ns for f in first.folder.glob("0*")} == before

    def never(*args, **how):
        raise AssertionError("rendered again")
    monkeypatch.setattr(identities, "render_set", never)
    assert len(rendered_set(tiny)) == 2


def test_a_set_that_has_lost_a_shard_is_completed(tiny, monkeypatch):
    monkeypatch.setattr(identities, "process_pool", ThreadPoolExecutor)
    monkeypatch.setattr(identities, "SHARD_IDENTITIES", 1)
    first = rendered_set(tiny)
    hashed = first.fingerprint()
    (first.folder / "00001.npz").unlink()
    assert len(rendered_set(tiny)) == 2 and rendered_set(tiny).fingerprint() == hashed


def test_another_renderer_has_another_folder(tiny, monkeypatch):
    before = set_folder(tiny)
    assert set_folder(tiny) == before
    identities._set_hash.cache_clear()
    monkeypatch.setattr(identities, "render", lambda *shot: render(*shot) // 2)
    assert set_folder(tiny) != before and set_folder(tiny).parent == before.parent
    identities._set_hash.cache_clear()
    people, rendered = [], Person.from_seed
    monkeypatch.setattr(identities.Person, "from_seed", lambda seed: people.append(seed) or rendered(seed))
    monkeypatch.setattr(identities, "render", lambda *shot: render(*shot) // (2 if people[-1] == 20001 else 1))
    assert set_folder(tiny) != before   # only the second identity looks different


def test_the_cache_may_move_while_a_process_runs(tiny, tmp_path, monkeypatch):
    before = set_folder(tiny)
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path / "elsewhere"))
    assert set_folder(tiny) == tmp_path / "elsewhere" / "identities" / before.name


# synthdisfa

def test_movement_is_smooth():
    noise = synthdisfa.smooth_noise(np.random.default_rng(0), 20000, 1, 10)
    assert noise.std() == pytest.approx(1, abs=.15)
    activity = synthdisfa.draw_activity(np.random.default_rng(4), synthdisfa.strong_units("SN003"))
    assert np.abs(np.diff(activity, axis=0)).max() < 2


def test_the_bundled_dataset_is_what_this_code_renders():
    """One picture of the counterfactual grid and one subject's landmarks, rendered again: the same bytes on the machine that made them."""
    from PIL import Image
    from aueditnet.data import DISFA
    recording, scene = synthdisfa.stage("SN007"), synthdisfa.stage("SN007").rest
    again = render(recording.person, {"AU9": 3}, scene, aligned_camera(recording.person, {"AU9": 3}, scene))
    bundled = np.asarray(Image.open(data_dir() / "synthdisfa/counterfactual/SN007/AU9_3.png")).astype(int)
    assert np.abs(bundled - again).mean() < .5
    points = np.stack([landmarks(recording.person, au, s, recording.camera) for au, s in zip(recording.au, recording.scenes)])
    np.testing.assert_allclose(DISFA(data_dir() / "synthdisfa").landmarks("SN007"), points, atol=.02)


def test_every_counterfactual_picture_is_there():
    lines = (data_dir() / "synthdisfa/counterfactual/truth.csv").read_text().splitlines()
    assert lines[0] == "image,subject," + ",".join(AUS) and len(lines) == 1 + 9 * 81
    assert all((data_dir() / "synthdisfa/counterfactual" / line.split(",")[0]).is_file() for line in lines[1:])


def test_the_card_describes_the_bundled_files():
    from aueditnet.data import DISFA, intensity_table
    dataset = DISFA(data_dir() / "synthdisfa")
    table = intensity_table({s: dataset.labels(s) for s in dataset.subjects}).astype(int)
    assert (data_dir() / "synthdisfa" / "README.md").read_text() == synthdisfa.data_card(table)


def test_a_small_dataset_is_complete(tmp_path):
    table = synthdisfa.make(tmp_path, ["SN001"], 4)
    assert table.sum() == 4 * 12
    files = sorted(f.relative_to(tmp_path).as_posix() for f in tmp_path.rglob("*") if f.is_file())
    labels = [f"ActionUnit_Labels/SN001/SN001_{name.lower()}.txt" for name in AUS]
    assert files == sorted(["Continuous_Truth/SN001.npz", "Landmark_Points/SN001.npz", "README.md", "Videos_LeftCamera/LeftVideoSN001_comp.avi", *labels])


def test_a_failed_video_leaves_nothing(tmp_path):
    def pictures():
        yield np.zeros((synthdisfa.HEIGHT, synthdisfa.WIDTH, 3), np.uint8)
        raise OSError("no space left")
    with pytest.raises(OSError, match="no space left"):
        synthdisfa.write_video(tmp_path / "video.avi", pictures())
    assert list(tmp_path.iterdir()) == []
