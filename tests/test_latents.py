"""The cache of codes: killed at any moment, two processes at once, and memory that does not grow with the number of pictures.

As a script it fills a folder with pictures and codes that cost nothing, and prints the peak of its memory:

    python tests/test_latents.py FOLDER [PICTURES [LEVELS [NUMBERS [SHARD [SECONDS_A_PICTURE]]]]]
"""
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

HERE = Path(__file__)


class Inverter:
    """Codes that depend on the picture, and cost nothing."""

    def __init__(self, levels, numbers):
        self.generator = SimpleNamespace(n_levels=levels, style_dim=numbers)

    def fingerprint(self):
        return "made up"

    def invert(self, crops):
        import torch
        means = torch.from_numpy(crops).flatten(1).float().mean(1)
        return means[:, None, None] + torch.arange(self.generator.n_levels * self.generator.style_dim).view(1, self.generator.n_levels, -1)


def main(folder, pictures=300, levels=2, numbers=16, shard=2048, seconds=0.0):
    from aueditnet.files.errors import InputError
    from aueditnet.files.latents import fill

    def picture(k):
        time.sleep(seconds)
        if k % 50 == 17:
            raise InputError(f"no face found in picture {k}")
        return np.full((8, 8, 3), k % 251, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cache = fill(folder, picture, pictures, Inverter(levels, numbers), {"source": "made up"}, shard, skip=InputError)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{len(cache.frames)} codes of {pictures} pictures; peak of memory {peak / 1024:.0f} MiB, of it {before / 1024:.0f} before the first picture")


def start(folder, *words):
    """The script in a process of its own; fifteen shards if not told otherwise."""
    words = words or (300, 2, 16, 20)
    return subprocess.Popen([sys.executable, HERE, folder, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Wait for it; what it printed."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def content(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes") / "undisturbed"
    finish(start(folder))
    return content(folder)


def test_killed_at_any_moment(tmp_path, undisturbed):
    """SIGKILL as soon as so many shards are there, and some random milliseconds later; then once more to the end."""
    folder, random, seen = tmp_path / "codes", np.random.default_rng(0), []
    for wanted in (0, 2, 5, 9, 12):
        process = start(folder, 300, 2, 16, 20, 0.003)
        deadline = time.monotonic() + 60
        while len(list(folder.glob("*.safetensors"))) < wanted or not folder.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.08))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        whole = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in folder.glob("[0-9]*.safetensors")}
        assert all(undisturbed[name] == data for name, (_, data) in whole.items())
        seen.append(whole)
    assert all(late[name] == entry for early, late in zip(seen, seen[1:]) for name, entry in early.items())    # no finished shard was made again
    assert len(seen[-1]) < 15
    finish(start(folder))
    assert content(folder) == undisturbed


def test_two_processes_on_one_folder(tmp_path, undisturbed):
    folder = tmp_path / "codes"
    both = [start(folder, 300, 2, 16, 20, 0.001) for _ in range(2)]
    for process in both:
        finish(process)
    assert content(folder) == undisturbed


def test_memory_does_not_grow(tmp_path):
    """130,000 pictures with small codes, and a few thousand with the public model's, need no more than one shard does."""
    def peak(*words):
        folder = tmp_path / "codes"
        found = re.search(r"peak of memory (\d+) MiB", finish(start(folder, *words)))
        shutil.rmtree(folder)
        return int(found[1])
    assert peak(130_000, 2, 16, 2048) - peak(2_048, 2, 16, 2048) < 40      # the reasons of 2,600 pictures without a face are among it
    assert peak(3 * 512, 18, 512, 512) - peak(512, 18, 512, 512) < 25     # a shard of these is 19 MB
    assert peak(512, 18, 512, 512) < 2048


def test_a_full_disk_leaves_nothing_half_written(tmp_path, undisturbed):
    """Files may not grow beyond a bound, as on a full disk: an error, and no shard; then the rest is made."""
    folder = tmp_path / "codes"
    code = f"import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500)); " \
           f"sys.path.insert(0, {str(HERE.parent)!r}); from test_latents import main; main({str(folder)!r}, shard=20)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode != 0 and "00000.safetensors" in result.stderr
    assert {f.name for f in folder.iterdir()} == {"manifest.json"}
    finish(start(folder))
    assert content(folder) == undisturbed


@pytest.mark.parametrize("writes", (0, 1, 8, 16))   # the first manifest, a shard, a later one, the last manifest
def test_killed_between_writing_and_moving(tmp_path, undisturbed, writes):
    """What a killed run leaves behind is under a temporary name, and the next run sweeps it away."""
    folder = tmp_path / "codes"
    code = f"import itertools, os, signal, sys; move, count = os.replace, itertools.count(); " \
           f"os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL) if next(count) == {writes} else move(*names); " \
           f"sys.path.insert(0, {str(HERE.parent)!r}); from test_latents import main; main({str(folder)!r}, shard=20)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == -signal.SIGKILL
    assert len([f for f in folder.iterdir() if f.name.startswith(".")]) == 1
    finish(start(folder))
    assert content(folder) == undisturbed


# Inputs: what makes a cache another one

class Recorded(Inverter):
    """Counts the pictures that it inverts."""

    def __init__(self, weights="made up"):
        super().__init__(2, 4)
        self.weights, self.inverted = weights, 0

    def fingerprint(self):
        return self.weights

    def invert(self, crops):
        self.inverted += len(crops)
        return super().invert(crops)


def write_video(file, seed, frames=8):
    from aueditnet.synth.synthdisfa import HEIGHT, WIDTH, write_video
    pictures = np.random.default_rng(seed).integers(0, 256, (frames, HEIGHT // 16, WIDTH // 16, 3), dtype=np.uint8)
    write_video(file, (np.kron(picture, np.ones((16, 16, 1), np.uint8)) for picture in pictures))


def swap(one, other):
    between = one.with_suffix(".between")
    one.rename(between)
    other.rename(one)
    between.rename(other)


def test_swapped_videos_of_equal_length_give_new_codes(tmp_path, monkeypatch):
    """A path and a number of frames do not name a video: the content does."""
    from aueditnet.files.latents import cache_latents
    from aueditnet.files.videofile import Video
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path / "home"))
    files, inverter = [tmp_path / "LeftVideoSN001_comp.avi", tmp_path / "LeftVideoSN002_comp.avi"], Recorded()
    for seed, file in enumerate(files):
        write_video(file, seed)

    def codes(file):
        video = Video(file)
        return cache_latents(video.frame, len(video), inverter, [file, 128, 1.25], file.name)
    before = [codes(file) for file in files]
    assert inverter.inverted == 16 and not (before[0] == before[1]).all()
    assert all((codes(file) == old).all() for file, old in zip(files, before)) and inverter.inverted == 16
    swap(*files)
    after = [codes(file) for file in files]
    assert (after[0] == before[1]).all() and (after[1] == before[0]).all()
    swap(*files)
    assert (codes(files[0]) == before[0]).all() and inverter.inverted == 16    # both are still there


def test_other_inputs_are_another_cache(tmp_path, monkeypatch):
    from aueditnet.files.latents import cache_latents
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path))
    pictures = np.random.default_rng(0).integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)

    def inverted(pictures=pictures, key=None, weights="made up", n=10):
        inverter = Recorded(weights)
        codes = cache_latents(lambda k: pictures[k], n, inverter, pictures if key is None else key, shard=4)
        assert codes.shape == (n, 2, 4)
        return inverter.inverted
    assert inverted() == 10 and inverted() == 0
    assert inverted(pictures[::-1].copy()) == 10 and inverted(weights="others") == 10 and inverted(n=9) == 9 and inverted(key=["crop", 2]) == 10
    assert inverted() == 0


def test_a_folder_with_other_inputs_is_refused(tmp_path):
    from aueditnet.files.errors import InputError
    from aueditnet.files.latents import LatentCache, fill

    def filled(folder=tmp_path / "codes", weights="made up", source="noise", n=10, shard=4, **more):
        return fill(folder, lambda k: np.full((8, 8, 3), k, np.uint8), n, Recorded(weights), {"source": source}, shard, **more)
    cache = filled()
    before = content(cache.folder)
    for change, says in ((dict(weights="others"), "weights"), (dict(source="other"), "source: \"noise\", now \"other\""),
                         (dict(n=9), "pictures: 10, now 9"), (dict(shard=5), "shard: 4, now 5")):
        with pytest.raises(InputError, match=f"holds codes with other inputs .*{says}"):
            filled(**change)
    assert content(cache.folder) == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(InputError, match="not empty"):
        filled(tmp_path / "mine")
    with pytest.raises(InputError, match="no manifest.json"):
        LatentCache(tmp_path)
    (cache.folder / "manifest.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        filled()


def test_damaged_shards_and_remains(tmp_path):
    from aueditnet.files.errors import InputError
    from aueditnet.files.latents import LatentCache, fill

    def filled():
        inverter = Recorded()
        return fill(tmp_path / "codes", lambda k: np.full((8, 8, 3), k, np.uint8), 10, inverter, {"source": "noise"}, 4), inverter.inverted
    cache, _ = filled()
    before, broken = content(cache.folder), cache.folder / "00001.safetensors"
    broken.write_bytes(broken.read_bytes()[:-7])
    with pytest.raises(InputError, match="missing or damaged"):
        LatentCache(cache.folder)[5]
    assert filled()[1] == 4 and content(cache.folder) == before
    for name in (".00000.safetensors.a1.safetensors", ".manifest.json.b2.json"):
        (cache.folder / name).write_bytes(b"of a killed run")
    assert filled()[1] == 0 and content(cache.folder) == before


def test_pictures_without_a_code(tmp_path):
    from aueditnet.files.errors import InputError, PhotoExtraMissing
    from aueditnet.files.latents import LatentCache, fill

    def filled(name, error, skip):
        def picture(k):
            if k in (2, 7):
                raise error(f"no face found in picture {k}")
            return np.full((8, 8, 3), k, np.uint8)
        return fill(tmp_path / name, picture, 10, Recorded(), {"source": "noise"}, 4, skip=skip)
    gaps = filled("gaps", InputError, InputError)
    assert gaps.frames.tolist() == [0, 1, 3, 4, 5, 6, 8, 9] and gaps[gaps.frames].shape == (8, 2, 4)
    for which in (2, slice(None), [3, 7], -3):
        with pytest.raises(InputError, match="no face found in picture"):
            gaps[which]
    for name, error, skip in (("strict", InputError, ()), ("bare", PhotoExtraMissing, InputError)):    # a missing extra is no fault of a picture
        with pytest.raises(error):
            filled(name, error, skip)
        with pytest.raises(InputError, match="not finished"):
            LatentCache(tmp_path / name)


# A folder or a video: `runs.folders.invert`

@pytest.fixture(scope="module")
def small():
    """A small random inverter of 32 pixels."""
    import torch
    from aueditnet.inversion import Encoder
    from aueditnet.inversion import Inverter as Inversion
    from aueditnet.stylegan2 import Generator
    torch.manual_seed(0)
    encoder = Encoder([[24] * n for n in (2, 2, 2, 3, 3, 3, 3, 4)], 24, (24,) * 5, (1, 1, 1, 1)).eval().requires_grad_(False)
    return Inversion(encoder, Generator(32, 24, {4: 8, 8: 8, 16: 8, 32: 8}, n_mlp=2).requires_grad_(False), size_in=32)


@pytest.fixture
def album(tmp_path):
    """Two crops and a text that calls itself a picture."""
    from PIL import Image
    folder = tmp_path / "album"
    folder.mkdir()
    for k, picture in enumerate(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)):
        Image.fromarray(picture).save(folder / f"crop{k}.png")
    (folder / "letter.jpg").write_text("Dear reader")
    (folder / "notes.txt").write_text("no picture, and not called one")
    return folder


def test_a_folder_whose_content_changes_is_refused(album, small, tmp_path):
    from aueditnet.files.errors import InputError
    from aueditnet.runs.folders import invert

    def inverted():
        return invert(album, tmp_path / "codes", small, align=False)
    cache = inverted()
    assert cache.manifest["names"] == ["crop0.png", "crop1.png", "letter.jpg"] and list(cache.problems) == [2]
    (album / "letter.jpg").write_text("Dear writer")          # of the same name and length
    with pytest.raises(InputError, match="digest"):
        inverted()
    (album / "letter.jpg").write_text("Dear reader")
    inverted()
    swap(album / "crop0.png", album / "crop1.png")
    with pytest.raises(InputError, match="digest"):
        inverted()
    swap(album / "crop0.png", album / "crop1.png")
    (album / "crop2.png").write_bytes((album / "crop1.png").read_bytes())
    with pytest.raises(InputError, match="pictures: 3, now 4"):
        inverted()


def test_unusable_sources(album, small, tmp_path):
    from aueditnet.files.errors import InputError
    from aueditnet.runs.folders import invert
    (tmp_path / "empty").mkdir()
    for source, says in ((album / "none", "no such folder"), (album / "crop0.png", "is one picture"), (album / "notes.txt", "notes.txt: "),
                         (tmp_path / "empty", "no pictures")):
        with pytest.raises(InputError, match=says):
            invert(source, tmp_path / "codes", small)


def test_without_a_detector_nothing_is_recorded(album, small, tmp_path, monkeypatch):
    from aueditnet.files.errors import InputError, PhotoExtraMissing
    from aueditnet.files.latents import LatentCache
    from aueditnet.runs.folders import invert

    def missing(*args, **kwargs):
        raise PhotoExtraMissing("needs dlib")
    monkeypatch.setattr("aueditnet.align.find_faces", missing)
    with pytest.raises(PhotoExtraMissing):
        invert(album, tmp_path / "codes", small, align=True)
    with pytest.raises(InputError, match="not finished"):
        LatentCache(tmp_path / "codes")


def test_frames_of_a_video(small, tmp_path, monkeypatch):
    """A video brings no landmarks: every frame is aligned by the detector."""
    pytest.importorskip("dlib")
    from aueditnet.runs import folders
    from aueditnet.align import cut_face
    from aueditnet.files.io import data_dir

    class Few(folders.Video):
        def __len__(self):
            return 5
    monkeypatch.setattr(folders, "Video", Few)
    video = next((data_dir() / "synthdisfa").glob("Video*/*SN003*"))
    cache = folders.invert(video, tmp_path / "codes", small, align=True, shard=3)
    assert cache.frames.tolist() == list(range(5)) and cache.manifest["names"][1] == f"{video.name} frame 1"
    crop = cut_face(folders.Video(video).frame(4), 32, small.zoom, True)
    assert np.allclose(cache[4].numpy(), small.invert(crop)[0].numpy(), atol=1e-4)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:6]), *map(float, sys.argv[6:]))
