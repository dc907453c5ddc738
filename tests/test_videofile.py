"""Video files: exact frames by number, refusals in one line, damage, and nothing left behind when writing fails."""
import subprocess
import sys

import av
import numpy as np
import pytest
from conftest import number, numbered

from aueditnet.files.errors import InputError
from aueditnet.files.videofile import PlaceReader, Video, VideoReader, VideoWriter, make_clip

COLOURS = np.zeros((66, 98, 3), np.uint8)
COLOURS[:, :32], COLOURS[:, 32:64], COLOURS[:, 64:] = (200, 40, 50), (40, 180, 60), (50, 60, 200)
MOVING = [np.roll(COLOURS, 3 * i, 1) for i in range(12)]
SEVERAL = [("avi", "libx264", {"bf": "3", "g": "50"}), ("avi", "mpeg4", {"bf": "2", "g": "30"}), ("avi", "mpeg4", {"g": "40"}),
           ("mp4", "libx264", {"bf": "3", "g": "40", "x264-params": "open-gop=1"}), ("mkv", "libx264", {"bf": "0", "g": "250"})]


def write_numbered(file, frames, codec="libx264", options={}):
    with av.open(str(file), "w") as box:
        stream = box.add_stream(codec, rate=20, options={"threads": "1", **options})
        stream.width, stream.height, stream.pix_fmt = 160, 64, "yuv420p"
        for i in range(frames):
            box.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(i), format="rgb24")))
        box.mux(stream.encode())
    return file


def copied(source, out):
    """A video through reader and writer, unchanged."""
    with VideoReader(source) as video, VideoWriter(out, video) as result:
        for frame in video.frames(result.audio):
            result.write(frame.picture, frame)
    return out


def contents(file):
    """Packets of sound, times of the frames from 0, seconds in all, first picture."""
    with av.open(str(file)) as box:
        sound = [bytes(p) for p in box.demux(audio=0) if p.size] if box.streams.audio else []
    with VideoReader(file) as video:
        frames = list(video.frames())
    times = np.array([f.time for f in frames])
    return sound, times - times[0], times[-1] - times[0] + float(frames[-1].duration * frames[-1].unit), frames[0].picture


def names(folder):
    return sorted(f.name for f in folder.iterdir())


@pytest.mark.parametrize("kind, codec, options", SEVERAL)
def test_every_frame_is_the_one_asked_for(tmp_path, kind, codec, options):
    video = Video(write_numbered(tmp_path / f"long.{kind}", 300, codec, options))
    assert [number(frame) for frame in video.frames()] == list(range(300))
    wanted = np.random.default_rng(0).integers(0, 300, 40).tolist()
    assert [number(video.frame(i)) for i in wanted] == wanted
    video._seekable = False    # decoding from the start gives the same
    assert [number(video.frame(i)) for i in (200, 10, 299, 299, 0)] == [200, 10, 299, 299, 0]


def test_video_by_number(tmp_path):
    file = write_numbered(tmp_path / "long.mkv", 60)
    video = Video(file)
    assert len(video) == 60
    for wrong in (60, -1):
        with pytest.raises(InputError, match=f"has frames 0 to 59, not {wrong}"):
            video.frame(wrong)
    other = video.frames()    # independent of `frame`
    next(other)
    assert number(video.frame(7)) == 7 and number(next(other)) == 1
    video.close()
    assert number(video.frame(3)) == 3


def test_pictures_by_place(tmp_path):
    """One video stays open and is read in one pass; a copy for another process opens it for itself."""
    import pickle
    from PIL import Image
    files = [write_numbered(tmp_path / f"{k}.mkv", 60) for k in range(2)]
    Image.fromarray(numbered(7)).save(tmp_path / "p.png")
    reader = PlaceReader()
    places = [(files[0], 3), (files[0], 4), (tmp_path / "p.png", None), (files[0], 50), (files[1], 2), (files[0], 1)]
    assert [number(reader.read(*place)) for place in places] == [3, 4, 7, 50, 2, 1]
    assert number(pickle.loads(pickle.dumps(reader)).read(files[1], 9)) == 9
    assert reader.video(files[0]) is reader.video(files[0])
    with pytest.raises(InputError, match="no such file"):
        reader.read(tmp_path / "none.png")


def test_a_cut_or_damaged_video_by_number(tmp_path):
    file = write_numbered(tmp_path / "whole.mp4", 60)
    with av.open(str(file)) as box:
        packet = max((bytes(p) for p in box.demux(video=0) if p.size), key=len)    # the only key frame
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(file.read_bytes().replace(packet, bytes(len(packet))))
    with pytest.raises(InputError, match="frame 0 of 60 cannot be decoded: the video is damaged"):
        Video(broken).frame(0)


@pytest.mark.parametrize("tone, kind, lengths", [("aac", "mp4", None), ("aac", "mkv", None), ("aac", "avi", None), ("libopus", "webm", None),
                                                 ("aac", "mov", [40, 40, 90, 30, 50, 50, 120, 40, 40, 40, 60, 40])])
def test_sound_timing_and_colours_are_kept(tmp_path, tone, kind, lengths):
    source = make_clip(tmp_path / ("a.mkv" if tone == "libopus" else "a.mp4"), MOVING, tone=tone, lengths=lengths)
    sound, times, seconds, picture = contents(source)
    sound2, times2, seconds2, picture2 = contents(copied(source, tmp_path / f"b.{kind}"))
    assert sound2 == sound and len(sound) > 20
    assert abs(times2 - times).max() < 1.1e-3    # mkv and webm count milliseconds
    assert lengths or abs(seconds2 - seconds) < 2e-3
    assert abs(np.float32(picture2) - picture).mean() < 4


def test_a_video_without_sound(tmp_path):
    sound, times, *_ = contents(copied(make_clip(tmp_path / "a.mp4", MOVING, tone=None), tmp_path / "b.mp4"))
    assert sound == [] and np.allclose(times, np.arange(12) / 20)


@pytest.mark.parametrize("tone, kind", [("aac", "webm"), ("libopus", "avi"), ("flac", "avi"), ("flac", "webm"), ("libopus", "mov")])
def test_sound_that_the_container_cannot_hold(tmp_path, tone, kind):
    source = make_clip(tmp_path / "a.mkv", MOVING, tone=tone)
    try:
        sound = contents(copied(source, tmp_path / f"b.{kind}"))[0]
    except InputError as problem:
        assert "cannot hold this sound" in str(problem) and "name the result b.mkv" in str(problem)
        assert names(tmp_path) == ["a.mkv"]
    else:
        assert sound == contents(source)[0]


def test_refused(tmp_path):
    """What cannot be used is one line that names the file, and nothing is left behind."""
    whole = make_clip(tmp_path / "a.mp4", MOVING)
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "cut.mp4").write_bytes(whole.read_bytes()[:2000])
    with av.open(str(tmp_path / "sound.wav"), "w") as box:
        sound = box.add_stream("pcm_s16le", rate=48000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4800), np.int16), "s16", "mono")
        frame.sample_rate = 48000
        box.mux(sound.encode(frame))
    odd = copied(whole, tmp_path / "b.avi").read_bytes()
    (tmp_path / "odd.avi").write_bytes(odd.replace(b"H264", b"XX99").replace(b"h264", b"XX99"))
    before = names(tmp_path)
    for source in ("text.mp4", "cut.mp4", "sound.wav", "odd.avi", "none.mp4", "."):
        for use in (lambda: copied(tmp_path / source, tmp_path / "x.mp4"), lambda: Video(tmp_path / source)):
            with pytest.raises(InputError, match="no frame can be read") as problem:
                use()
            assert str(tmp_path / source) in str(problem.value) and "\n" not in str(problem.value)
    for out, message in (("a.mp4", "is the input itself"), ("x.webm", "cannot hold this sound"), ("nowhere/x.mp4", "nowhere does not exist")):
        with pytest.raises(InputError, match=message):
            copied(whole, tmp_path / out)
    assert names(tmp_path) == before


def test_cut_off(tmp_path):
    content = make_clip(tmp_path / "long.mkv", MOVING * 10).read_bytes()
    (tmp_path / "half.mkv").write_bytes(content[:len(content) // 2])
    with VideoReader(tmp_path / "half.mkv") as video:
        frames = list(video.frames())
    assert 12 < len(frames) == video.frames_read < 120 and "cut off" in video.note


def test_a_damaged_packet_is_a_lost_frame(tmp_path):
    whole = make_clip(tmp_path / "a.mp4", MOVING)
    with av.open(str(whole)) as box:
        packet = [bytes(p) for p in box.demux(video=0) if p.size][7]
    (tmp_path / "damaged.mp4").write_bytes(whole.read_bytes().replace(packet, bytes(len(packet))))
    with VideoReader(tmp_path / "damaged.mp4") as video:
        frames = list(video.frames())
    assert [frame.lost for frame in frames] == [i == 7 for i in range(12)]
    assert (frames[7].picture == frames[6].picture).all()
    assert np.allclose([frame.time for frame in frames], np.arange(12) / 20, atol=1e-6)


def test_a_turned_video_comes_out_upright(tmp_path):
    """As a phone writes it: the pictures lie, the track's matrix says how to turn them."""
    one, root = (1 << 16).to_bytes(4), (1 << 30).to_bytes(4)
    upright = one + bytes(12) + one + bytes(12) + root
    turned = bytes(4) + one + bytes(4) + (2**32 - (1 << 16)).to_bytes(4) + bytes(16) + root
    lying = make_clip(tmp_path / "a.mp4", MOVING).read_bytes()
    place = lying.index(upright, lying.index(b"tkhd"))
    (tmp_path / "turned.mp4").write_bytes(lying[:place] + turned + lying[place + 36:])
    with VideoReader(tmp_path / "turned.mp4") as video:
        in_order = next(video.frames()).picture
    for picture in (in_order, Video(tmp_path / "turned.mp4").frame(0)):
        assert picture.shape == (98, 66, 3)
        assert abs(np.float32(picture) - np.rot90(MOVING[0], -1)).mean() < 4    # a quarter turn clockwise


@pytest.mark.parametrize("after", (0, 3))    # frames that are written before the error
def test_an_error_leaves_the_earlier_file(tmp_path, after):
    source, out = make_clip(tmp_path / "a.mp4", MOVING), tmp_path / "b.mp4"
    out.write_bytes(b"an earlier result")
    with pytest.raises(KeyError, match="in the middle"), VideoReader(source) as video, VideoWriter(out, video) as result:
        for i, frame in enumerate(video.frames(result.audio)):
            if i == after:
                raise KeyError("in the middle")
            result.write(frame.picture, frame)
    assert names(tmp_path) == ["a.mp4", "b.mp4"] and out.read_bytes() == b"an earlier result"
    with pytest.raises(InputError, match="no frame was written"), VideoReader(source) as video, VideoWriter(out, video):
        pass
    assert names(tmp_path) == ["a.mp4", "b.mp4"] and out.read_bytes() == b"an earlier result"


@pytest.mark.parametrize("kind", ("mp4", "mkv", "avi"))
@pytest.mark.parametrize("limit", (20, 1500, 40_000))    # in the header; when the container is closed; while frames are written
def test_a_full_disk_leaves_nothing(tmp_path, kind, limit):
    """Files may not grow beyond a bound, as on a full disk: an error that names the result, and an earlier result stays."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 128, 128, 3), np.uint8)
    source, out = make_clip(tmp_path / "a.mkv", list(noise)), tmp_path / f"b.{kind}"
    out.write_bytes(b"an earlier result")
    code = f"""
import gc, os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from aueditnet.files.videofile import VideoReader, VideoWriter
try:
    with VideoReader({str(source)!r}) as video, VideoWriter({str(out)!r}, video) as result:
        for frame in video.frames(result.audio): result.write(frame.picture, frame)
except OSError as problem: print(problem.filename, problem.strerror)
del result
gc.collect()
print([os.readlink("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd") if os.path.exists("/proc/self/fd/" + fd)])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    said, still_open = result.stdout.splitlines()
    assert said == f"{out} File too large", result.stderr
    assert limit == 20 or f".{out.name}." not in still_open    # PyAV 18 keeps a descriptor where an mp4's header fails
    assert names(tmp_path) == ["a.mkv", out.name] and out.read_bytes() == b"an earlier result"
