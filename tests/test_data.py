"""DISFA's quirks on made-up datasets whose content is known, balanced pairs, batches, and codes that follow the videos."""
import json
import re
import shutil
from types import SimpleNamespace

import av
import numpy as np
import pytest
from conftest import complaint, number, numbered
import torch
from scipy.io import savemat

from aueditnet.data import (DISFA, FOLDS, SUBJECTS, TEST, TRAIN, BatchConfig, Codes, PairBatches, PairSampler,
                            intensity_table, open_dataset, read_labels)
from aueditnet.facs import AUS
from aueditnet.files.disfa_files import _ranges, read_landmarks, to68
from aueditnet.files.errors import InputError
from aueditnet.files.io import content_hash
from aueditnet.files.videofile import Video


def write_video(file, numbers, codec="libx264", **options):
    with av.open(str(file), "w") as box:
        stream = box.add_stream(codec, rate=20, options={"threads": "1", **options})
        stream.width, stream.height, stream.pix_fmt = 160, 64, "yuv420p"
        for i in numbers:
            box.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(i), format="rgb24")))
        box.mux(stream.encode())


def make_tree(root, subjects=("SN001",), frames=24, video="Videos_LeftCamera/LeftVideo{s}_comp.avi", labelled=None, landmarks="npz",
              first=0, name="{s}_{k:04d}_lm"):
    """A dataset in DISFA's layout: `frames` pictures and landmarks, `labelled` labels a subject; landmark files numbered from `first`."""
    for s in subjects:
        labels = np.random.default_rng(int(s[2:])).integers(0, 6, (labelled or frames, 12))
        for k, au in enumerate(AUS):
            file = root / "ActionUnit_Labels" / s / f"{s}_{au.lower()}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(f"{i},{v}\n" for i, v in enumerate(labels[:, k], 1)))
        file = root / video.format(s=s)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_video(file, range(frames))
        points = np.arange(frames)[:, None, None] + np.arange(68)[:, None] * [1.0, 0.5]   # point j of frame i: (i + j, i + j / 2)
        folder = root / "Landmark_Points"
        folder.mkdir(exist_ok=True)
        if landmarks == "npz":
            np.savez(folder / f"{s}.npz", pts=points.astype(np.float32))
        else:
            (folder / s / "tmp_frame_lm").mkdir(parents=True)
            for i, p in enumerate(points):
                savemat(folder / s / "tmp_frame_lm" / (name.format(s=s, k=i + first) + ".mat"), {"pts": np.delete(p, [60, 64], 0)})
    return root


@pytest.fixture
def tree(tmp_path):
    return make_tree(tmp_path / "plain", ["SN001", "SN002"])


# frames

def test_a_video_refuses_what_it_does_not_have(tmp_path):
    file = tmp_path / "long.mkv"
    write_video(file, range(30))
    video = Video(file)
    assert "has frames 0 to 29, not 30" in complaint(lambda: video.frame(30))
    assert "not -1" in complaint(lambda: video.frame(-1))
    other = video.frames()
    next(other)
    assert number(video.frame(7)) == 7 and number(next(other)) == 1
    video.close()
    assert number(video.frame(3)) == 3
    file.write_text("no video")
    assert "long.mkv: no frame can be read" in complaint(lambda: Video(file))
    assert "nowhere.avi: no frame can be read" in complaint(lambda: Video(tmp_path / "nowhere.avi"))


# labels

def test_labels(tmp_path):
    file = tmp_path / "au.txt"
    file.write_text("1,0\n2,3\n3,5\n")
    assert read_labels(file).tolist() == [0, 3, 5] and read_labels(file).dtype == np.float32
    file.write_text("1,0\r\n2,2.5\r\n\r\n")   # Windows line ends, a blank last line, a predicted label
    assert read_labels(file).tolist() == [0, 2.5]


@pytest.mark.parametrize("text, words", [
    ("1,0\n2,x\n", "line 2: '2,x' is not 'frame,intensity'"), ("1,0\n2,7\n", "line 2: intensity 7 is outside 0 to 5"), ("10\n", "line 1: '10' is not"),
    ("1,nan\n", "outside 0 to 5"), ("1,-1\n", "outside 0 to 5"), ("1,0,0\n", "line 1: '1,0,0' is not"), ("1,,0\n", "line 1: '1,,0' is not"),
    ("0,1\n1,1\n", "line 1: frame 0; they are whole numbers from 1"), ("1.5,1\n", "line 1: frame 1.5"), ("nan,1\n", "line 1: frame nan"),
    ("1e300,1\n", "line 1: frame 1e+300"), ("1,0\n2,1\n\n1,4\n", "line 4: frame 1 has intensity 4, in line 1 it has 0"),
    ("1,0\n300,1\n", "298 of 300 frames have no line"), ("", "no labels in it"), ("\n \n", "no labels in it"), ("frame,intensity\n1,0\n", "line 1")])
def test_labels_refuse_with_file_and_line(tmp_path, text, words):
    file = tmp_path / "au.txt"
    file.write_text(text)
    assert str(file) in complaint(lambda: read_labels(file)) and words in complaint(lambda: read_labels(file))


@pytest.mark.parametrize("content", [
    b"\xef\xbb\xbf1,0\n2,2.5\n3,5\n", b"1,0\r2,2.5\r3,5", b"1,0\r\n2,2.5\r\n\r\n3,5\r\n\r\n", b"1;0\n2;2,5\n3;5\n", b"1\t0\n2\t2.5\n3\t5\n",
    b' 1 , 0 \n"2","2.5"\n1.0e0,0.0\n3 5', "1,0\n2,2.5\n3,5\n".encode("utf-16")])
def test_ways_to_write_the_same_labels(tmp_path, content):
    (tmp_path / "au.txt").write_bytes(content)
    assert read_labels(tmp_path / "au.txt").tolist() == [0, 2.5, 5]


def test_labels_belong_to_the_frame_that_is_written(tmp_path):
    file, notes = tmp_path / "SN001_au1.txt", []
    file.write_text("".join(f"{frame},{frame % 6}\n" for frame in (3, 2, 5, 6, 7, 5, 9)))
    read = read_labels(file, notes)
    assert np.array_equal(read, [np.nan, 2, 3, np.nan, 5, 0, 1, np.nan, 3], equal_nan=True)
    assert [note.partition(": ")[0] for note in notes] == ["SN001_au1.txt"] * 3
    assert "out of order" in notes[0] and notes[1].endswith("two equal lines (counted from 1): 5")
    assert notes[2].endswith("without a line (counted from 1), not used: 1, 4, 8")


def test_label_files_that_cannot_be_read(tmp_path):
    file = tmp_path / "au.txt"
    for content in (b"\xff\xfe\x00", b"\x89PNG\r\n\x1a\n\0\0", b"1,0\n2,\xe9\n"):
        file.write_bytes(content)
        assert re.search(r"au.txt, line [12]: '.*' is not 'frame,intensity'", complaint(lambda: read_labels(file)))
    assert "cannot be read" in complaint(lambda: read_labels(tmp_path / "nowhere.txt"))


# landmarks

def test_66_landmarks_as_68():
    full = np.random.default_rng(0).normal(size=(5, 68, 2))
    kept = [i for i in range(68) if i not in (60, 64)]
    out = to68(full[:, kept])
    assert (out[:, kept] == full[:, kept]).all()
    assert np.allclose(out[:, 60], full[:, 48] / 2 + (full[:, 61] + full[:, 67]) / 4)
    assert np.allclose(out[:, 64], full[:, 54] / 2 + (full[:, 63] + full[:, 65]) / 4)


def test_ranges():
    assert _ranges([3, 4, 5, 9, 11, 12]) == "3-5, 9, 11-12"


def test_packed_landmarks(tree):
    points, notes = read_landmarks(tree, "SN001", 24)
    assert points.shape == (24, 68, 2) and points[5, 10].tolist() == [15, 10] and notes == []


@pytest.mark.parametrize("subject, first, notes", [
    ("SN001", 0, []), ("SN008", 1, ["numbered from 1"]), ("SN001", 1, ["numbered from 1", "expected to be numbered from 0; 1 fits"]),
    ("SN008", 0, ["expected to be numbered from 1; 0 fits"])])
def test_numbering_of_landmark_files(tmp_path, subject, first, notes):
    """The files have the last word, whatever is said of the subject."""
    points, found = read_landmarks(make_tree(tmp_path, [subject], landmarks="mat", first=first), subject, 24)
    assert np.allclose(points[:, 0, 0], np.arange(24))   # point 0 of frame i lies at x = i
    assert len(found) == len(notes) and all(words in note for words, note in zip(notes, found))


def test_missing_and_damaged_landmark_files(tmp_path):
    make_tree(tmp_path, ["SN031"], landmarks="mat", first=1, name="l{k:05d}_lm")   # the other name that occurs
    folder = tmp_path / "Landmark_Points" / "SN031" / "tmp_frame_lm"
    points, notes = read_landmarks(tmp_path, "SN031", 24)
    assert np.isfinite(points).all() and len(notes) == 1
    for gone in (5, 6, 7, 20):
        (folder / f"l{gone:05d}_lm.mat").unlink()
    points, notes = read_landmarks(tmp_path, "SN031", 24)
    assert notes[1] == "SN031: 4 frames skipped, they have no landmarks: 4-6, 19" and np.isnan(points).all((1, 2)).sum() == 4
    savemat(folder / "l00002_lm.mat", {"pts": np.zeros((60, 2))})
    assert "l00002_lm.mat: has 60 points" in complaint(lambda: read_landmarks(tmp_path, "SN031", 24))
    (folder / "l00002_lm.mat").write_text("x")
    assert "l00002_lm.mat: not a readable .mat" in complaint(lambda: read_landmarks(tmp_path, "SN031", 24))
    for file in folder.iterdir():
        file.unlink()
    assert "no landmark files" in complaint(lambda: read_landmarks(tmp_path, "SN031", 24))


def test_landmarks_that_are_known_to_be_wrong(tmp_path):
    folder = tmp_path / "landmark_points"   # in lower case
    folder.mkdir()
    for s in ("SN029", "SN030"):
        np.savez(folder / f"{s}.npz", pts=np.ones((4600, 68, 2), np.float32))
    points, notes = read_landmarks(tmp_path, "SN029", 4600)
    assert np.flatnonzero(np.isnan(points[:, 0, 0])).tolist() == list(range(4329, 4536)) and "known to be wrong: 4329-4535" in notes[0]
    assert read_landmarks(tmp_path, "SN030", 4600)[1] == [] and len(read_landmarks(tmp_path, "SN030", 4601)[1]) == 1
    assert "shape (4600, 68, 2)" in complaint(lambda: read_landmarks(tmp_path, "SN030", 4700))
    assert "no landmarks of SN099" in complaint(lambda: read_landmarks(tmp_path, "SN099", 3))
    (folder / "SN030.npz").write_text("x")
    assert "SN030.npz: not a readable .npz" in complaint(lambda: read_landmarks(tmp_path, "SN030", 9))


# the reader

def test_folds():
    assert len(set(SUBJECTS)) == 27 and [len(f) for f in FOLDS.values()] == [9, 9, 9] and not set(TRAIN) & set(TEST)
    assert SUBJECTS == [f"SN{n:03d}" for n in (*range(1, 14), 16, 17, 18, 21, *range(23, 33))]


def test_reader(tree):
    data = DISFA(tree, subjects=["SN001", "SN002"])
    assert [number(f) for f in data.frames("SN001")] == list(range(24))
    assert [number(data.frame("SN002", i)) for i in (20, 3, 4, 23)] == [20, 3, 4, 23]
    assert (data.labels("SN001")[:, 0] == read_labels(tree / "ActionUnit_Labels/SN001/SN001_au1.txt")).all()
    assert data.labels("SN001").dtype == np.float32 and data.labels("SN001").shape == (24, 12)
    assert data.usable("SN001").sum() == 24 and data.report == []
    assert data.video_file("SN002").name == "LeftVideoSN002_comp.avi"
    for call in (data.labels, data.video_file):
        assert "SN009: not among" in complaint(lambda: call("SN009"))
    assert "not 24" in complaint(lambda: data.frame("SN001", 24))


def test_one_frame_more_is_reported(tmp_path):
    for frames, labelled, short in ((24, 25, "the video"), (24, 23, "the labels")):
        uneven = DISFA(make_tree(tmp_path / short, frames=frames, labelled=labelled), ["SN001"])
        assert uneven.n_frames("SN001") == min(frames, labelled)
        assert f"{min(frames, labelled)} frames in {short}" in uneven.report[0] and len(uneven.report) == 1


def test_more_frames_are_an_error(tmp_path):
    for frames, labelled, words in ((12, 24, "truncated, 12 of 24"), (24, 12, "24 frames, but 12 in the labels")):
        uneven = DISFA(make_tree(tmp_path / str(frames), frames=frames, labelled=labelled), ["SN001"])
        assert words in complaint(lambda: uneven.labels("SN001"))


def test_a_download_that_broke_off(tmp_path):
    broken = make_tree(tmp_path, frames=200)
    file = broken / "Videos_LeftCamera" / "LeftVideoSN001_comp.avi"
    file.write_bytes(file.read_bytes()[:file.stat().st_size // 2])
    assert "truncated" in complaint(lambda: DISFA(broken, ["SN001"]).labels("SN001"))


def test_a_letter_among_the_labels(tree):
    file = tree / "ActionUnit_Labels" / "SN002" / "SN002_au12.txt"
    file.write_text(file.read_text().replace("\n17,", "\n17,o"))
    assert "SN002_au12.txt, line 17" in complaint(lambda: DISFA(tree, ["SN001", "SN002"]).labels("SN002"))


def test_what_is_missing_is_listed(tree, tmp_path):
    message = complaint(lambda: DISFA(tree, ["SN001", "SN002", "SN003", "SN004"]))
    assert "2 of 4 subjects" in message and "SN003 (labels and left video)" in message
    assert "27 of 27 subjects" in complaint(lambda: DISFA(tmp_path))
    assert "no such folder" in complaint(lambda: DISFA(tmp_path / "nowhere"))


@pytest.mark.parametrize("folder, name", [
    ("videos_leftcamera", "leftvideo{s}_Comp.AVI"), ("Video_LeftCamera", "LeftVideo{s}.avi"), ("Videos_LeftCamera_Comp", "LeftVideo{s}_comp.mp4")])
def test_spellings_of_videos(tmp_path, folder, name):
    assert number(DISFA(make_tree(tmp_path, video=f"{folder}/{name}"), ["SN001"]).frame("SN001", 9)) == 9


@pytest.mark.parametrize("folder", ["Video_RightCamera", "Videos_RightCamera"])
def test_right_camera(tmp_path, folder):
    make_tree(tmp_path, video=folder + "/RightVideo{s}_comp.avi")
    assert DISFA(tmp_path, ["SN001"], camera="Right").n_frames("SN001") == 24
    assert "SN001 (left video)" in complaint(lambda: DISFA(tmp_path, ["SN001"]))


def test_spellings_of_labels(tmp_path):
    make_tree(tmp_path)
    (tmp_path / "ActionUnit_Labels").rename(tmp_path / "actionunit_labels")
    (tmp_path / "actionunit_labels/SN001").rename(tmp_path / "actionunit_labels/sn001")
    file = tmp_path / "actionunit_labels/sn001/sn001_AU4.TXT"
    (tmp_path / "actionunit_labels/sn001/SN001_au4.txt").rename(file)
    assert DISFA(tmp_path, ["SN001"]).n_frames("SN001") == 24
    file.unlink()
    assert "SN001 (labels of AU4)" in complaint(lambda: DISFA(tmp_path, ["SN001"]))


def test_label_origin(tree):
    predicted = DISFA(tree, ["SN001"], label_origin="predicted by X")
    assert predicted.label_origin == "predicted by X" and "predicted by X" in repr(predicted)
    assert DISFA(tree, ["SN001"]).label_origin == "manual"
    assert "labels rendered" in repr(DISFA(tree, ["SN001"], label_origin="rendered"))
    for origin in ("guessed", "predicted by ", "rendered by X"):
        assert "label origin" in complaint(lambda: DISFA(tree, ["SN001"], label_origin=origin))


def test_frames_without_landmarks_are_not_usable(tmp_path):
    holes = DISFA(make_tree(tmp_path, landmarks="mat"), ["SN001"])
    (tmp_path / "Landmark_Points/SN001/tmp_frame_lm/SN001_0003_lm.mat").unlink()
    assert np.flatnonzero(~holes.usable("SN001")).tolist() == [3]
    holes.usable("SN001")
    assert holes.report == ["SN001: 1 frames skipped, they have no landmarks: 3"]   # said once


# pairs

MADE_UP = {s: np.arange(40 * 12).reshape(40, 12) * k // 7 % 6 for k, s in enumerate(("A", "B"), 1)}
EVEN = {s: np.arange(40) % 2 == 0 for s in MADE_UP}


def test_intensity_table():
    assert intensity_table(np.array([[0.4] * 12, [2.5] * 12, [9] * 12, [-1] * 12]))[0].tolist() == [2, 0, 1, 0, 0, 1]
    assert (intensity_table(MADE_UP) == sum(intensity_table(v) for v in MADE_UP.values())).all()


def test_pairs_are_the_same_on_every_machine():
    assert PairSampler(MADE_UP, seed=1).sample(4) == [("A", 34, 10), ("A", 4, 34), ("A", 36, 12), ("A", 38, 25)]
    first, second = PairSampler(MADE_UP, seed=3), PairSampler(MADE_UP, seed=3)
    assert first.sample(10) + first.sample(10) == second.sample(20)   # the batch size changes nothing


def test_the_state_of_a_sampler_survives_json():
    one, two = PairSampler(MADE_UP, seed=7), PairSampler(MADE_UP, seed=8)
    one.sample(100)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert one.sample(50) == two.sample(50) and (one.table == two.table).all()


def test_pairs_are_balanced():
    labels = {"A": np.zeros((400, 12), int)}
    labels["A"][:4, 3] = 5   # one AU occurs at one other intensity, in a hundredth of the frames
    sampler = PairSampler(labels)
    sampler.sample(12_000)
    assert 400 < sampler.table[3, 5] < 700 and sampler.table[:, 1:5].sum() == 0   # a twenty-fourth of the targets at least


def test_only_usable_frames_are_drawn():
    assert all(i % 2 == 0 and j % 2 == 0 for _, i, j in PairSampler(MADE_UP, usable=EVEN).sample(500))
    assert "B: no usable frame" in complaint(lambda: PairSampler(MADE_UP, usable={"A": EVEN["A"], "B": np.zeros(40, bool)}))


def test_action_units_without_labels():
    """NaN is no intensity: such an AU is never chosen, its frames are, and no table counts it."""
    labels = {"A": np.tile(np.arange(6.)[:, None], (4, 12))}
    labels["A"][:, 3] = np.nan
    labels["A"][::2, 0] = np.nan     # labelled in half of the frames
    sampler = PairSampler(labels)
    pairs = sampler.sample(600)
    assert sampler.table[3].sum() == 0 and sampler.table[0].sum() < 600 and sampler.table[1].sum() == 600
    assert {i for _, _, i in pairs} == set(range(24)) and intensity_table(labels["A"])[3].sum() == 0


def test_open_dataset(tree):
    """Of DISFA those subjects that are there; what lacks is reported, and a subject that is asked for must be there."""
    data = open_dataset(tree)
    assert isinstance(data, DISFA) and data.subjects == ["SN001", "SN002"] and "2 of 27 subjects are read" in data.report[0]
    assert data.places("SN002")[3] == (data.video_file("SN002"), 3) and len(data.places("SN001")) == 24
    assert open_dataset(tree, ["SN002"], "rendered").label_origin == "rendered"
    assert "SN003 (labels and left video)" in complaint(lambda: open_dataset(tree, ["SN003"]))


# batches

@pytest.fixture(scope="module")
def codes():
    g = torch.Generator().manual_seed(0)
    person = torch.arange(6).repeat_interleave(30)
    w = torch.randn(6, 4, 8, generator=g)[person] + 0.3 * torch.randn(180, 4, 8, generator=g)
    return Codes(w, torch.randint(6, (180, 12), generator=g).float(), person)


def test_people_that_are_not_contiguous_are_refused(codes):
    """Frames are found by a person's first frame: with mixed people, pairs would show somebody else."""
    order = torch.randperm(180, generator=torch.Generator().manual_seed(0))
    mixed = Codes(codes.w[order], codes.y[order], codes.person[order])
    for call in (mixed.labels, mixed.first, mixed.spans, lambda: PairBatches(mixed)):
        with pytest.raises(InputError, match="frames of a person must follow one another"): call()
    assert list(Codes(codes.w.flip(0), codes.y, codes.person.flip(0)).first().values()) == [150, 120, 90, 60, 30, 0]   # any order of people


def batch(codes, rendered=0, **config):
    return PairBatches(codes, BatchConfig(**config), rendered, seed=3).next_batch()


def test_no_label_noise(codes):
    plain = batch(codes, label_noise=0.)
    assert torch.equal(plain["asked"], plain["y_target"]) and plain["w_source"].shape == (32, 4, 8)
    assert not torch.equal(batch(codes)["asked"], plain["y_target"])


def test_interpolation_moves_the_person_and_not_the_expression(codes):
    moved, still = batch(codes, interpolation=1.), batch(codes, interpolation=0.)
    assert torch.allclose(moved["w_target"] - moved["w_source"], still["w_target"] - still["w_source"], atol=1e-5)
    assert (moved["w_source"] - still["w_source"]).abs().amax((1, 2)).gt(0.1).float().mean() > 0.7   # a sixth meets itself
    kept = batch(codes, rendered=5, interpolation=1.)
    assert torch.allclose(kept["w_source"][:5], still["w_source"][:5])
    moved, still = batch(codes, pairs=4000, interpolation=0.5), batch(codes, pairs=4000, interpolation=0.)
    share = (moved["w_source"] != still["w_source"]).flatten(1).any(1).float().mean()
    assert abs(share - 0.5 * 5 / 6) < 0.03


def test_mirrored_pairs(codes):
    pictures = (torch.arange(180 * 3 * 4).reshape(-1, 3, 1, 4) % 256).byte()
    both = Codes(codes.w, codes.y, codes.person, mirrored=-codes.w, pictures=pictures)
    turned, plain = (batch(both, rendered=4, mirror=m, interpolation=0.) for m in (1., 0.))
    assert torch.equal(turned["w_source"], -plain["w_source"]) and torch.equal(turned["picture"], plain["picture"].flip(3))
    assert plain["picture"].shape == (4, 3, 1, 4) and plain["picture"].min() >= -1 and plain["picture"].max() <= 1
    assert "picture" not in batch(both)


def test_requests_in_place_of_target_frames(codes):
    plain, made = (PairBatches(codes, BatchConfig(interpolation=0., label_noise=0., requests=n), 4, seed=3) for n in (0, 8))
    one, two = plain.next_batch(), made.next_batch()
    without = two["w_target"].isnan().flatten(1).all(1)
    assert without.tolist() == [4 <= k < 12 for k in range(32)]        # behind the pairs that are synthesised
    assert not two["w_target"][~without].isnan().any()
    for key in ("w_source", "w_target", "y_target"): assert torch.equal(one[key][12:], two[key][12:]) and torch.equal(one[key][:4], two[key][:4])
    frames = [int((codes.w == w).flatten(1).all(1).nonzero()[0]) for w in two["w_source"]]
    assert torch.equal(two["y_source"], codes.y[frames])               # the labels belong to the source that is shown
    assert (two["y_target"][4:12] > 5).any() or (two["y_target"][4:12] < 0).any() or not torch.equal(two["y_target"], one["y_target"])
    many = PairBatches(codes, BatchConfig(pairs=600, requests=600, interpolation=0.), seed=1)
    calm = torch.cat([torch.stack([codes.w[k] for k in own]) for own in many.calm])
    shown = many.next_batch()
    share = (shown["w_source"][:, None] == calm[None]).flatten(2).all(2).any(1).float().mean()
    assert 0.45 < share < 0.7 and shown["w_target"].isnan().all()      # half of them on a calm frame
    assert len(calm) == 6 * 3


def test_requests_of_partly_labelled_people_resume(codes):
    unknown = codes.y.clone()
    unknown[:, 4], unknown[:30] = torch.nan, torch.nan
    some = Codes(codes.w, unknown, codes.person)
    one = PairBatches(some, BatchConfig(requests=6), seed=3)
    one.next_batch()
    saved, expected = one.state_dict(), one.next_batch()
    assert expected["y_target"][:6].isfinite().all()
    fresh = PairBatches(some, BatchConfig(requests=6), seed=9)
    fresh.load_state_dict(saved)
    assert torch.equal(fresh.next_batch()["asked"], expected["asked"]) or expected["asked"].isnan().any()
    again = PairBatches(some, BatchConfig(requests=6), seed=3)
    again.next_batch()
    assert torch.equal(again.next_batch()["asked"].nan_to_num(-9), expected["asked"].nan_to_num(-9))


def test_batches_resume(codes):
    one = PairBatches(codes, seed=3)
    one.next_batch()
    saved, expected = one.state_dict(), one.next_batch()
    fresh = PairBatches(codes, seed=9)
    fresh.load_state_dict(saved)
    assert torch.equal(fresh.next_batch()["w_source"], expected["w_source"])


def test_digest_of_codes(codes):
    """Whatever a training depends on is part of it."""
    w, y, person = codes.w, codes.y, codes.person
    others = (Codes(w + 1e-3, y, person), Codes(w, y + 1, person), Codes(w, y, person, mirrored=w),
              Codes(w, y, person, pictures=torch.zeros(180, 3, 1, 1)))
    digests = {c.digest() for c in (codes, *others)}
    assert len(digests) == 5 and {len(d) for d in digests} == {16}
    assert Codes(codes.w.clone(), codes.y, codes.person).digest() == codes.digest()


# codes on disk follow the content of the videos

class Inverter:
    """Codes that depend on the picture and cost nothing."""
    size = size_in = 16
    zoom = 1.0
    generator = SimpleNamespace(n_levels=2, style_dim=3)
    asked = 0

    def fingerprint(self):
        return "made up"

    def invert(self, crops):
        self.asked += len(crops)
        weights = torch.arange(crops[0].size).view(crops[0].shape) / crops[0].size
        sums = (torch.from_numpy(np.ascontiguousarray(crops)).float() * weights).flatten(1).sum(1)
        return sums[:, None, None].expand(-1, 2, 3).contiguous()


def test_swapped_videos_make_new_codes(tree, tmp_path, monkeypatch):
    """Two videos of equal length change places: path and number of frames stay, the content does not."""
    from aueditnet.runs.streaming import labelled_codes
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path / "cache"))
    subjects, inverter = ["SN001", "SN002"], Inverter()
    points = tree / "Landmark_Points" / "SN002.npz"
    np.savez(points, pts=np.load(points)["pts"] + np.float32([5, 2]))   # not those of SN001
    one, two = (DISFA(tree, subjects).video_file(s) for s in subjects)
    write_video(two, reversed(range(24)))
    hashes = content_hash(one), content_hash(two)
    assert hashes[0] != hashes[1]

    before = labelled_codes(DISFA(tree, subjects), inverter, subjects)
    again = labelled_codes(DISFA(tree, subjects), inverter, subjects)
    assert inverter.asked == 2 * 48 and torch.equal(again.w, before.w)   # frames and mirrored frames, and then the cache

    shutil.move(one, tmp_path / "aside.avi")
    shutil.move(two, one)
    shutil.move(tmp_path / "aside.avi", two)
    assert (content_hash(one), content_hash(two)) == hashes[::-1]
    after = labelled_codes(DISFA(tree, subjects), inverter, subjects)
    assert inverter.asked == 4 * 48 and after.digest() != before.digest()

    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path / "another cache"))
    assert torch.equal(labelled_codes(DISFA(tree, subjects), Inverter(), subjects).w, after.w)   # as without any old codes

    shutil.move(one, tmp_path / "aside.avi")   # back again: the codes of before are still there
    shutil.move(two, one)
    shutil.move(tmp_path / "aside.avi", two)
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path / "cache"))
    assert torch.equal(labelled_codes(DISFA(tree, subjects), inverter, subjects).w, before.w) and inverter.asked == 4 * 48


# people with a single frame, and labels that say little

def test_people_with_one_frame():
    """Source and target of a pair are the same frame; it is still moved towards other people."""
    codes = Codes(torch.randn(5, 4, 8), torch.arange(5.).repeat(12, 1).T.contiguous(), torch.tensor([2, 3, 0, 1, 4]))
    assert codes.first() == {0: 2, 1: 3, 2: 0, 3: 1, 4: 4} and codes.spans()[3] == (1, 1) and codes.labels()[2].tolist() == [[0.] * 12]
    batches = PairBatches(codes, BatchConfig(pairs=64), seed=1)
    batch = batches.next_batch()
    assert torch.equal(batch["w_source"], batch["w_target"]) and torch.equal(batch["y_source"], batch["y_target"])
    moved = [not (codes.w == w).all((1, 2)).any() for w in batch["w_source"]]
    assert 20 < sum(moved) < 60


def test_labels_that_are_all_zero_or_unknown():
    codes = Codes(torch.randn(6, 4, 8), torch.zeros(6, 12), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert PairBatches(codes).next_batch()["y_target"].unique().tolist() == [0]
    with pytest.raises(InputError, match="no usable frame has the label of any AU"):
        PairBatches(Codes(codes.w, torch.full((6, 12), torch.nan), codes.person))
