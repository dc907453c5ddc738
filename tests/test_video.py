"""Videos: edges of tracking, smoothing and editing; and on the command line, what goes in comes out edited, with its sound and its timing."""
from dataclasses import replace
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image
from test_cli import PREVIOUS, here, refused, run

from aueditnet.align import align_face
from aueditnet.data import DISFA
from aueditnet.facs import to_dict
from aueditnet.files import weights
from aueditnet.files.errors import InputError
from aueditnet.files.videofile import Frame, VideoReader, make_clip
from aueditnet.inversion import Inverter
from aueditnet.pipeline import Pipeline
from aueditnet.video.films import IntensityTrack, edit_frames, edit_video, paste_frame, transfer_frames, transfer_video
from aueditnet.video.tracking import UNKNOWN, smoothed, track_face

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


def test_tracking_without_a_face_and_after_a_jump(pictures):
    frames, points = pictures
    assert np.isnan(track_face(np.zeros((200, 200, 3), np.uint8))).all()
    assert np.isnan(track_face(frames[0], face=2)).all()
    found = track_face(frames[0], points[0] + 4000)    # nothing there: the whole picture is searched
    assert np.hypot(*(found - points[0]).T).mean() < 0.02 * frames[0].shape[1]
    with pytest.raises(InputError, match="faces are numbered 1, 2"):
        track_face(frames[0], face=0)


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


def test_faces_that_come_late(quick, pictures):
    frames, points = pictures
    blank = [p * 0 for p in frames]
    late = list(edit_frames(quick, as_frames(blank + frames[:6]), {"AU12": 4}, landmarks=[UNKNOWN] * 12 + list(points[:6])))
    assert len(late) == 18 and late[0].image is None and late[17].image is not None
    assert all(item.w.isfinite().all() for item in late if item.w is not None)
    assert (paste_frame(late[0], quick.zoom) == late[0].frame.picture).all()
    unchanged = replace(late[17], image=late[17].inversion)
    assert (paste_frame(unchanged, quick.zoom) == frames[5]).all()


def test_videos_of_face_crops_and_without_faces(quick, pictures):
    frames, points = pictures
    crops = [align_face(*pair, quick.size, quick.zoom) for pair in zip(frames[:4], points)]
    items = list(edit_frames(quick, as_frames(crops), {"AU12": 4}))
    assert items[0].landmarks is None and items[0].image.shape == (128, 128, 3)
    with pytest.raises(InputError, match="this is a face crop"):
        paste_frame(items[0], quick.zoom)
    for nothing in (lambda how: edit_frames(quick, as_frames(frames), {"AU12": 4}, **how),
                    lambda how: transfer_frames(quick, crops[0], as_frames(frames), **how)):
        with pytest.raises(InputError, match="no face found"):
            list(nothing({"landmarks": [UNKNOWN] * 12}))
    with pytest.raises(InputError, match="both absolutely and relatively"):
        next(edit_frames(quick, as_frames(frames), {"AU12": 4}, {"AU12": 1}, landmarks=points))


def test_memory_does_not_grow_with_the_video(quick, pictures):
    crop, taken = align_face(pictures[0][0], pictures[1][0], quick.size, quick.zoom), []

    def endless():
        for i in range(10 ** 9):
            taken.append(i)
            yield Frame(crop, i, Fraction(1, 20), 1)
    stream = edit_frames(quick, endless(), {"AU12": 4}, smooth=0.1)
    for _ in range(40):
        next(stream)
    assert len(taken) < 40 + 45


def test_transfer_of_one_frame_is_that_of_the_pipeline(quick, pictures):
    frames, points = pictures
    crops = [align_face(*pair, quick.size, quick.zoom) for pair in zip(frames, points)]
    one = next(transfer_frames(quick, crops[0], as_frames(crops[8:9]), smooth=0))
    assert abs(np.float32(one.image) - quick.transfer(crops[0], crops[8]).image).mean() < 0.5


def test_a_covered_face_and_a_damaged_packet(quick, pictures, tmp_path):
    frames, _ = pictures
    covered = [np.full_like(p, 90) if 4 <= i < 7 else p for i, p in enumerate(frames)]
    file = make_clip(tmp_path / "covered.mp4", covered)
    with av.open(str(file)) as box:
        packet = [bytes(p) for p in box.demux(video=0) if p.size][9]
    (tmp_path / "damaged.mp4").write_bytes(file.read_bytes().replace(packet, bytes(len(packet))))
    done = edit_video(quick, tmp_path / "damaged.mp4", tmp_path / "mended.mp4", {"AU12": 4}, put_back=True)
    assert (done.frames, done.lost, done.before_face) == (12, 1, 0) and 3 <= done.without_face <= 4
    assert "damaged, the frame before is shown" in str(done) and "aligned as their neighbours" in str(done)
    _, times, shape = content(tmp_path / "mended.mp4")
    assert np.allclose(times, np.arange(12) / 20, atol=1e-6) and shape == frames[0].shape


def content(file):
    """Packets of sound, times of the frames, and the frames' shape."""
    with av.open(str(file)) as box:
        sound = [bytes(packet) for packet in box.demux(audio=0) if packet.size]
    with VideoReader(file) as video:
        frames = list(video.frames())
    return sound, [frame.time for frame in frames], frames[0].picture.shape


def test_edit_keeps_sound_and_timing(here, clip):
    (here / "out.mp4").write_bytes(PREVIOUS)
    result = run("edit", clip, "--au", "AU12=4", "--refine", "0", "--smooth", "0.1", "-o", "out.mp4")
    assert result.exit_code == 0, (result.output, result.exception)
    assert f"{N} frames" in result.stdout and "AU12" in result.stdout
    sound, times, shape = content(here / "out.mp4")
    assert (sound, times) == content(clip)[:2] and len(sound) > 10
    assert shape == (128, 128, 3)
    assert sorted(file.name for file in here.iterdir()) == ["out.mp4", "out.png"]


def test_track_and_paste(here, clip):
    (here / "track.csv").write_text(f"frame,AU1\n0,0\n{N - 1},5\n")
    result = run("edit", clip, "--au-track", "track.csv", "--au", "AU2=3", "--paste", "--refine", "0", "-o", "out.mkv")
    assert result.exit_code == 0, (result.output, result.exception)
    assert all(au in result.stdout for au in ("AU1", "AU2"))
    sound, times, shape = content(here / "out.mkv")
    assert sound == content(clip)[0] and len(times) == N and shape == content(clip)[2]


def test_paste_into_a_photograph(here, data):
    picture = data.frame("SN017", 0)
    Image.fromarray(picture).save("photo.png")
    assert run("edit", "photo.png", "--au", "AU12=4", "--paste", "--refine", "0", "-o", "out.png").exit_code == 0
    edited = np.asarray(Image.open("out.png"))
    assert edited.shape == picture.shape and (edited != picture).any()
    assert (edited[:, :30] == picture[:, :30]).all()    # the background is left alone


def test_transfer_from_and_to_a_video(here, clip, face):
    for words in ((face, clip), (clip, face)):
        result = run("transfer", *words, "--refine", "0", "-o", "out.mp4")
        assert result.exit_code == 0, (result.output, result.exception)
        assert content(here / "out.mp4")[:2] == content(clip)[:2]


def test_refused(here, clip, face, tmp_path):
    silly = tmp_path / "text.mp4"
    silly.write_text("no video")
    edit = ("edit", clip, "--au", "AU12=4")
    refused(here, *edit, "-o", "out.png", naming="out.png")
    refused(here, *edit, "-o", "nowhere/out.mp4", naming="nowhere")
    refused(here, *edit, "-o", clip, naming="is the input itself")
    refused(here, *edit, "--paste", "--no-align", "-o", "out.mp4", naming="--paste")
    refused(here, *edit, "--refine", "0", "-o", "out.webm", naming=["out.webm", "aac", "out.mkv"])
    refused(here, "edit", silly, "--au", "AU12=4", "-o", "out.mp4", naming="text.mp4")
    refused(here, "edit", face, "--au", "AU12=4", "--smooth", "0.1", "-o", "out.png", naming="face.png")
    refused(here, "edit", clip, "--au-track", "none.csv", "-o", "out.mp4", naming="none.csv")
    refused(here, "transfer", clip, clip, "-o", "out.mp4", naming="only one of the two")


def test_no_face_in_a_video(here, tmp_path):
    noise = make_clip(tmp_path / "noise.mp4", list(np.random.default_rng(0).integers(0, 256, (3, 120, 160, 3), np.uint8)))
    refused(here, "edit", noise, "--au", "AU12=4", "-o", "out.mp4", naming="no face")


def test_model_without_evaluators(clip, face, tmp_path):
    """Videos are edited all the same; nothing is measured."""
    bare = Pipeline.from_pretrained("heads128", 0, evaluator=None, evaluator_b=None, identity_evaluator=None)
    summary = edit_video(bare, clip, tmp_path / "smile.mp4", {"AU12": 4})
    assert summary.frames == N and summary.measured == {} and summary.requested == {"AU12": 4} and len(summary.source) == 12
    summary = transfer_video(bare, face, clip, tmp_path / "transferred.mp4")
    assert summary.frames == N and summary.measured == {} and len(VideoReader(tmp_path / "transferred.mp4").box.streams.audio) == 1
