"""Videos on the command line: what goes in comes out edited, with its sound and its timing; what cannot be used is one line."""
import av
import numpy as np
import pytest
from PIL import Image
from test_cli import PREVIOUS, here, refused, run

from aueditnet import weights
from aueditnet.align import align_face
from aueditnet.data import DISFA
from aueditnet.videofile import VideoReader, make_clip

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
