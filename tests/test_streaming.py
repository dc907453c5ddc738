"""From videos to codes: the same values as frame by frame, whatever the number of processes and wherever a run was killed.

As a script it indexes all frames of a dataset with a seeded encoder that costs little and the code shape of the public model, and prints
frames a second and the peak of its memory:

    python tests/test_streaming.py DATA [FRAMES_OF_A_SUBJECT [WORKERS]]
"""
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

HERE = Path(__file__)


class Inverter:
    """Codes that depend on the picture and cost little. `pause`: seconds for each batch."""
    def __init__(self, levels=4, numbers=8, size=64, pause=0.):
        self.size = self.size_in = size
        self.zoom, self.pause, self.asked = 1.25, pause, 0
        self.generator = SimpleNamespace(n_levels=levels, style_dim=numbers)
        self.weights = torch.randn(48, levels * numbers, generator=torch.Generator().manual_seed(0))

    def fingerprint(self):
        return "made up"

    def invert(self, crops):
        time.sleep(self.pause)
        self.asked += len(crops)
        small = np.stack([cv2.resize(crop, (4, 4), interpolation=cv2.INTER_AREA) for crop in crops])
        return (torch.from_numpy(small).flatten(1).float() @ self.weights).unflatten(1, (self.generator.n_levels, self.generator.style_dim))


def peak_of_own():
    """Peak memory of this process in KiB; `ru_maxrss` would begin at the size of the process that started it."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def main(data, per_subject=None, workers=None, levels=18, numbers=512, size=256, pause=0.):
    from aueditnet.data import open_dataset
    from aueditnet.runs.streaming import index_frames
    before, began = peak_of_own(), time.monotonic()
    codes = index_frames(open_dataset(data), Inverter(levels, numbers, size, pause), per_subject=per_subject, workers=workers)
    peak, seconds = peak_of_own(), time.monotonic() - began
    child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    print(json.dumps({"frames": len(codes.y), "frames a second": len(codes.y) / seconds, "peak MiB": peak // 1024, "largest worker MiB": child // 1024,
                      "before MiB": before // 1024, "digest": codes.digest()}))


def start(data, home, *words):
    env = os.environ | {"AUEDITNET_HOME": str(home), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, HERE, data, *map(str, words)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    from made_up_disfa import make
    return make(tmp_path_factory.mktemp("disfa"), subjects=2, frames=1100, size=(160, 120))


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def values(codes):
    return [part[:] for part in (codes.w, codes.y, codes.person, codes.mirrored, codes.pictures)]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(values(one), values(other)))


def frame_by_frame(dataset, inverter, subjects, every, most, size):
    """What `labelled_codes` promises, in the plainest way."""
    from aueditnet.align import aligned_frames
    from aueditnet.data import Codes
    w, mirrored, y, person, pictures = [], [], [], [], []
    for number, s in enumerate(subjects):
        frames = np.flatnonzero(dataset.usable(s))[::every]
        if len(frames) > most:
            frames = frames[np.linspace(0, len(frames) - 1, most).round().astype(int)]
        crops = np.stack(list(aligned_frames(dataset, s, frames.tolist(), inverter.size_in, inverter.zoom).values()))
        for at in range(0, len(crops), 16):
            both = inverter.invert(np.stack([crops[at:at + 16], crops[at:at + 16, :, ::-1]], 1).reshape(-1, *crops.shape[1:]))
            w.append(both[::2]), mirrored.append(both[1::2])
        y.append(torch.from_numpy(dataset.labels(s)[frames])), person.append(torch.full((len(frames),), number))
        pictures += [cv2.resize(crop, (size, size), interpolation=cv2.INTER_AREA) for crop in crops]
    return Codes(torch.cat(w), torch.cat(y), torch.cat(person), torch.cat(mirrored), torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2))


@pytest.mark.parametrize("workers", (0, 1, 2, None))
def test_values_do_not_depend_on_the_workers(data, home, workers):
    from aueditnet.data import open_dataset
    from aueditnet.runs.streaming import labelled_codes
    dataset, inverter = open_dataset(data), Inverter()
    codes = labelled_codes(dataset, inverter, every=2, per_subject=41, picture_size=32, workers=workers)
    assert same(codes, frame_by_frame(dataset, inverter, dataset.subjects, 2, 41, 32))
    assert isinstance(codes.w, torch.Tensor) and codes.pictures.shape == (82, 3, 32, 32)


def test_real_networks_give_the_same_codes(home):
    from aueditnet.data import DISFA
    from aueditnet.files.io import data_dir
    from aueditnet.inversion import Inverter as Inversion
    from aueditnet.runs.streaming import labelled_codes
    dataset, inverter = DISFA(data_dir() / "synthdisfa", ["SN001", "SN009"]), Inversion.from_pretrained("heads128")
    inverter.steps = 0
    codes = labelled_codes(dataset, inverter, every=8)
    assert same(codes, frame_by_frame(dataset, inverter, dataset.subjects, 8, 400, 64))


def test_each_frame_is_computed_once(data, home):
    from aueditnet.data import open_dataset
    from aueditnet.runs.streaming import index_frames
    inverter = Inverter()
    first = index_frames(open_dataset(data), inverter)
    assert inverter.asked == 2 * 2200 and len(first.w) == 2200
    again = index_frames(open_dataset(data), inverter)
    assert inverter.asked == 2 * 2200 and same(first, again) and first.digest() == again.digest()
    larger = index_frames(open_dataset(data), inverter, picture_size=48)       # other pictures, the same codes
    assert inverter.asked == 2 * 2200 and larger.pictures.shape == (2200, 3, 48, 48) and torch.equal(larger.w[:], first.w[:])
    crops = index_frames(open_dataset(data), None, picture_size=48, zoom=1.25)  # pictures alone, cut at their own size
    assert crops.w is None and len(crops.pictures) == 2200
    few = index_frames(open_dataset(data), inverter, ["SN002"])
    assert torch.equal(few.w[:], first.w[first.person == 1])


def test_killed_at_any_moment(data, tmp_path):
    """SIGKILL five times at random; finished shards are not made again, and in the end all is as if nothing had happened."""
    words = "None", 2, 4, 8, 64, 0.02
    whole = finish(start(data, tmp_path / "undisturbed", *words))
    random, seen = np.random.default_rng(0), {}
    for wanted in (0, 1, 2, 4, 6):
        process = start(data, tmp_path / "home", *words)
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "home").rglob("0*.safetensors"))) < wanted or not (tmp_path / "home" / "latents").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        shards = {f: f.stat().st_mtime_ns for f in (tmp_path / "home").rglob("0*.safetensors")}
        assert all(shards[f] == changed for f, changed in seen.items())
        seen = shards
    assert finish(start(data, tmp_path / "home", *words))["digest"] == whole["digest"] and len(seen) < 12
    files = [{f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()} for folder in (tmp_path / "undisturbed", tmp_path / "home")]
    assert files[0] == files[1]
    assert finish(start(data, tmp_path / "home", *words))["digest"] == whole["digest"]


def test_memory_does_not_grow(tmp_path):
    """Twice as many frames, little more memory: the mapped pages of their codes and pictures count, and what the allocator keeps."""
    from made_up_disfa import make
    peaks = [finish(start(make(tmp_path / f"{n}", 1, n, (160, 120)), tmp_path / "home", "None", 1))["peak MiB"] for n in (1100, 2200)]
    assert peaks[1] - peaks[0] < 250 and peaks[1] < 3072


def test_frames_that_cannot_be_aligned(data, home, tmp_path):
    """NaN landmarks are skipped, landmarks outside the picture are skipped and reported, and a damaged video is one line."""
    from aueditnet.data import open_dataset
    from aueditnet.files.errors import InputError
    from aueditnet.runs.streaming import index_frames
    dataset = open_dataset(data, ["SN001"])
    points = dataset.landmarks("SN001").copy()
    points[3], points[5] = np.nan, points[5] + 1000
    dataset._landmarks["SN001"] = points
    codes = index_frames(dataset, Inverter(), workers=1)
    assert len(codes.w) == 1098 and "1 frames skipped" in dataset.report[-1] and "outside the picture" in dataset.report[-1]
    whole = index_frames(open_dataset(data, ["SN001"]), Inverter())
    kept = np.setdiff1d(np.arange(1100), [3, 5])
    assert torch.equal(codes.w[:], whole.w[kept]) and torch.equal(codes.pictures[:], whole.pictures[kept]) and torch.equal(codes.y, whole.y[kept])
    dataset._landmarks["SN001"] = np.full_like(points, np.nan)
    with pytest.raises(InputError, match="SN001: no frame has landmarks"):
        index_frames(dataset, Inverter())
    dataset = open_dataset(data, ["SN002"])
    dataset.labels("SN002")
    file = dataset.video_file("SN002")
    content = file.read_bytes()
    try:
        file.write_bytes(content[:len(content) // 3] + bytes(len(content) // 3) + content[-(len(content) - 2 * (len(content) // 3)):])
        with pytest.raises(InputError) as problem:
            index_frames(dataset, Inverter(), workers=1)
        assert "\n" not in str(problem.value) and file.name in str(problem.value)
    finally:
        file.write_bytes(content)


def test_rows_on_disk_are_indexed_like_tensors(data, home):
    from aueditnet.data import BatchConfig, PairBatches, open_dataset
    from aueditnet.runs.streaming import index_frames
    codes = index_frames(open_dataset(data), Inverter(), per_subject=90)
    loaded = codes.loaded()
    assert isinstance(loaded.w, torch.Tensor) and codes.loaded(1000).w is codes.w
    for which in (0, -1, 7, slice(80, 100), slice(None, None, 3), [3, 170, 0, 3], torch.tensor([5, 120]), codes.person == 1, []):
        assert torch.equal(codes.w[which], loaded.w[which]) and torch.equal(codes.pictures[which], loaded.pictures[which])
    for a, b in ((codes.w.mean(0), loaded.w.mean(0)), (codes.w.std(0), loaded.w.std(0))):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-3)
    one, two = (PairBatches(c, BatchConfig(), 4, seed=1).next_batch() for c in (codes, loaded))
    assert all(torch.allclose(one[k], two[k]) for k in one)
    assert [torch.equal(a, b) for a, b in zip(codes.subset(), (loaded.w, loaded.y, loaded.person))] == [True] * 3
    assert [len(part) for part in codes.subset(50)] == [50] * 3


# a folder of pictures without landmarks

def test_landmarks_are_found_once(home, tmp_path, monkeypatch):
    """In worker processes; a picture without a face or with two has no landmarks and is left out."""
    pytest.importorskip("dlib")
    from PIL import Image
    from conftest import NBS
    from aueditnet.data import open_dataset
    from aueditnet.facs import AUS
    from aueditnet.files.label_files import write_label_file
    from aueditnet.runs import streaming
    face = Image.open(NBS / "images" / "astronaut.jpg").convert("RGB")
    folder = tmp_path / "faces"
    folder.mkdir()
    two = Image.new("RGB", (2 * face.width, face.height))
    two.paste(face), two.paste(face, (face.width, 0))
    pictures = {"a.png": face, "b.png": face.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "two.png": two, "wall.png": Image.new("RGB", (128, 128))}
    for name, picture in pictures.items():
        picture.save(folder / name)
    write_label_file(folder / "labels.csv", "manual", list(pictures), np.ones((4, 12)), AUS)
    dataset = streaming.complete_landmarks(open_dataset(folder), workers=1)
    assert [dataset.usable(s).any() for s in dataset.subjects] == [True, True, False, False]
    codes = streaming.labelled_codes(dataset, Inverter())
    assert codes.person.tolist() == [0, 1] and codes.w.shape == (2, 4, 8)
    monkeypatch.setattr(streaming, "landmark_batch", None)    # not called again
    assert torch.equal(streaming.labelled_codes(open_dataset(folder), Inverter()).w, codes.w)


def picture_folder(folder, people=4, size=160):
    """A folder of small pictures with made-up labels and landmarks, one of a person."""
    from PIL import Image
    from aueditnet.data import DISFA
    from aueditnet.facs import AUS
    from aueditnet.files.io import data_dir
    from aueditnet.files.label_files import write_label_file
    dataset, names, points, labels = DISFA(data_dir() / "synthdisfa"), [], [], []
    folder.mkdir()
    for s in dataset.subjects[:people]:
        names.append(f"{s}.png"), points.append(dataset.landmarks(s)[9]), labels.append(dataset.labels(s)[9])
        Image.fromarray(dataset.frame(s, 9)).save(folder / names[-1])
    write_label_file(folder / "labels.csv", "manual", names, np.stack(labels), AUS, landmarks=np.stack(points))
    return folder


def test_pictures_that_cannot_be_read(home, tmp_path):
    """With landmarks or without, the picture is named in the report and the others are used; none at all is one line."""
    from aueditnet.data import open_dataset
    from aueditnet.files.errors import InputError
    from aueditnet.runs import streaming
    folder = picture_folder(tmp_path / "faces")
    broken = folder / "SN002.png"
    broken.write_bytes(broken.read_bytes()[:500])
    dataset = open_dataset(folder)
    codes = streaming.labelled_codes(dataset, Inverter(), workers=1)
    assert codes.person.tolist() == [0, 2, 3] and "1 frames skipped, the first: cannot be read: " + str(broken) in dataset.report[-1]
    job = streaming.Job(dataset.subjects, [(broken, None)], None)
    points, _, problems = streaming.landmark_batch(job, [0], streaming.PlaceReader())
    assert points is None and problems[0].startswith(f"cannot be read: {broken}")
    for file in folder.glob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="no frame can be used .*cannot be read"):
        streaming.labelled_codes(open_dataset(folder), Inverter(), workers=0)


def test_training_on_people_with_one_picture(home, tmp_path):
    """As in FFHQ: the steps are finite, whatever the labels say."""
    from aueditnet.pipeline import FaceModel
    from aueditnet.runs.train import train
    from aueditnet.training import TrainConfig
    folder = picture_folder(tmp_path / "faces", 6)
    model = FaceModel.from_pretrained("heads128", 0)
    train(model, folder, tmp_path / "run", TrainConfig(steps=2))
    head, *rows = [line.split(",") for line in (tmp_path / "run" / "history.csv").read_text().splitlines()]
    assert "latent" in head and len(rows) == 2 and all(np.isfinite(float(value)) for row in rows for value in row)


def test_damaged_videos_raise_in_both_kinds_of_work(data, tmp_path):
    from aueditnet.data import open_dataset
    from aueditnet.files.errors import InputError
    from aueditnet.runs import streaming
    file = tmp_path / "cut.avi"
    file.write_bytes(open_dataset(data, ["SN002"]).video_file("SN002").read_bytes()[:200])
    job = streaming.Job(["SN002"], [(file, 500)], np.full((1, 68, 2), np.nan), 64, 1.25, 16)
    for work in (streaming.crop_batch, streaming.landmark_batch):
        with pytest.raises(InputError, match="cut.avi.* or leave the subject out"):
            work(job, [0], streaming.PlaceReader())


def test_processes_by_default(monkeypatch):
    """One a core, but no more than eight."""
    from aueditnet.runs import streaming
    asked = []
    monkeypatch.setattr(streaming.os, "sched_getaffinity", lambda _: range(192), raising=False)
    monkeypatch.setattr(streaming, "DataLoader", lambda *_, num_workers, **__: asked.append(num_workers) or [])
    jobs = [streaming.Job([str(k)], [("a.png", None)], None, shards=(0,)) for k in range(20)]
    for workers in (None, 12):
        list(streaming.stream(jobs, None, workers))
    assert asked == [8, 12]


if __name__ == "__main__":
    data_folder, *options = sys.argv[1:]
    main(data_folder, *[json.loads(word) if word != "None" else None for word in options])
