"""Files of labels as OpenFace, py-feat, LibreFace and this project write them, and the frames that they belong to."""
import numpy as np
import pytest
from conftest import complaint, numbered
from PIL import Image

from aueditnet.data import PictureFolder, open_dataset
from aueditnet.facs import AUS
from aueditnet.files.errors import InputError
from aueditnet.files.label_files import FileIndex, read_label_file, write_label_file
from aueditnet.files.videofile import make_clip

NUMBERS = [int(au[2:]) for au in AUS]
ALL_OPENFACE = [1, 2, 4, 5, 6, 7, 9, 10, 12, 14, 15, 17, 20, 23, 25, 26, 45]
ALL_PYFEAT = [1, 2, 4, 5, 6, 7, 9, 10, 11, 12, 14, 15, 17, 20, 23, 24, 25, 26, 28, 43]
POINTS = np.stack([np.arange(68) + 0.5, 100 - np.arange(68)], 1)


def test_time_grows_with_the_number_of_pictures(tmp_path):
    """A table that numbers the pictures of a folder: 4,000 rows used to take 30 s."""
    import time
    n, folder = 4000, tmp_path / "clip"
    folder.mkdir()
    for k in range(n):
        (folder / f"{k:05d}.png").touch()
    write_label_file(tmp_path / "labels.csv", "manual", ["clip"] * n, np.ones((n, 12)), AUS, frames=range(n))
    began = time.perf_counter()
    dataset = PictureFolder(tmp_path)
    assert dataset.n_frames("clip") == n and dataset.places("clip")[123] == (folder / "00123.png", None)
    assert time.perf_counter() - began < 8


def test_a_table_without_any_of_the_aus(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("frame, confidence, success, AU45_r\n1, 0.9, 1, 2.0\n")
    with pytest.raises(InputError, match="a.csv: has intensities of none of AU1, "):
        open_dataset(tmp_path)
    write_label_file(tmp_path / "labels.csv", "manual", ["a.png"], np.full((1, 12), np.nan), AUS)
    with pytest.raises(InputError, match="no frame with usable labels"):
        open_dataset(tmp_path)


def openface(rows, single=False, points=False):
    """As OpenFace writes it. `rows`: (frame, face, confidence, success, intensity of all AUs)."""
    head = ["face", "confidence"] if single else ["frame", "face_id", "timestamp", "confidence", "success"]
    head += ["gaze_0_x"] + [f"{axis}_{k}" for axis in "xy" for k in range(68)] * points
    head += [f"AU{n:02d}_r" for n in ALL_OPENFACE] + [f"AU{n:02d}_c" for n in [*ALL_OPENFACE, 28]]
    text = ", ".join(head) + "\n"
    for frame, face, confidence, success, value in rows:
        cells = [face, confidence] if single else [frame, face, f"{frame / 20:.3f}", confidence, success]
        cells += [0.1] + POINTS.T.flatten().tolist() * points + [value] * len(ALL_OPENFACE) + [1] * (len(ALL_OPENFACE) + 1)
        text += ", ".join(map(str, cells)) + "\n"
    return text


def pyfeat(rows, aus=ALL_PYFEAT):
    """As a Fex is written. `rows`: (input, frame, score, probability of all AUs); a score of None: no face."""
    text = ",".join(["FaceRectX", "FaceScore"] + [f"AU{n:02d}" for n in aus] + ["anger", "input", "frame"]) + "\n"
    for name, frame, score, value in rows:
        cells = ["", ""] + [""] * (len(aus) + 1) if score is None else [10, score] + [value] * (len(aus) + 1)
        text += ",".join(map(str, cells + [name, frame])) + "\n"
    return text


def libreface(rows, image=False):
    """As LibreFace writes it. `rows`: (path, frame, intensity)."""
    head = ["input_image_path", "aligned_image_path"] if image else ["frame_idx", "frame_time_in_ms", "path_to_frame"]
    head += ["facial_expression"] + [f"au_{n}" for n in (1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24)] + [f"au_{n}_intensity" for n in NUMBERS]
    text = "," + ",".join(head) + "\n"
    for k, (path, frame, value) in enumerate(rows):
        cells = [path, "tmp/a.png"] if image else [frame, frame * 50., path]
        text += ",".join(map(str, [k, *cells, "Neutral"] + [1] * 12 + [value] * 12)) + "\n"
    return text


@pytest.fixture
def table(tmp_path):
    def read(text, name="labels.csv"):
        (tmp_path / name).write_text(text)
        return read_label_file(tmp_path / name, AUS)
    return read


# each program

def test_openface(table):
    read = table(openface([(1, 0, 0.98, 1, 2.5), (2, 0, 0.98, 1, 0), (3, 0, 0.02, 0, 0)], points=True))
    assert read.origin == "predicted by OpenFace" and read.names is None and read.subjects is None
    assert read.frames.tolist() == [0, 1, 2] and read.tracked.tolist() == [True, True, False]
    assert (read.labels[0] == 2.5).all() and read.labels.shape == (3, 12) and read.labels.dtype == np.float32
    assert np.allclose(read.landmarks[1], POINTS) and np.allclose(read.confidence, [0.98, 0.98, 0.02])
    read = table(openface([(0, 0, 0.975, 0, 1.25), (0, 1, 0.9, 0, 2)], single=True))     # FaceLandmarkImg: no frame, no success
    assert read.frames.tolist() == [-1, -1] and read.tracked.all() and read.landmarks is None and read.lines == [2, 3]
    assert table(openface([(1, 0, 0.98, 1, 5.004)])).labels.max() == 5     # rounding, clipped
    assert "line 2: AU1 is 5.4, outside 0 to 5" in complaint(lambda: table(openface([(1, 0, 0.98, 1, 5.4)])))
    assert "presence (AU01_c)" in complaint(lambda: table("frame, success, AU01_c\n1, 1, 1\n"))


def test_pyfeat(table):
    read = table(pyfeat([("x/talk.mp4", 0, 0.99, 0.5), ("x/talk.mp4", 1, None, 0), ("x/talk.mp4", 2, 0.3, 1)]))
    assert read.origin == "predicted by py-feat" and read.names == ["x/talk.mp4"] * 3 and read.frames.tolist() == [0, 1, 2]
    assert (read.labels[[0, 2]] == [[2.5], [5]]).all() and read.tracked.tolist() == [True, False, True]
    assert read.confidence.tolist() == pytest.approx([0.99, 0, 0.3])
    read = table(pyfeat([("a.png", 0, 0.9, 0.2)], aus=[1, 2, 4, 6, 7, 10, 12, 14, 15, 17, 23, 24]))     # its model jaanet
    missing = [AUS[k] for k in np.flatnonzero(np.isnan(read.labels[0]))]
    assert missing == ["AU5", "AU9", "AU20", "AU25", "AU26"] and read.tracked.all() and read.labels[0, 0] == 1
    assert "AU1 is 1.2, outside 0 to 1" in complaint(lambda: table(pyfeat([("a.png", 0, 0.9, 1.2)])))
    mesh = ",".join(["FaceScore", "AU01", "input", "frame"] + [f"{axis}_{k}" for k in range(478) for axis in "xyz"])
    assert table(mesh + "\n0.9,1,a.png,0" + ",7" * 3 * 478 + "\n").landmarks is None     # of another set of points


def test_libreface(table):
    read = table(libreface([("/tmp/x/talk/0000000000.png", 0, 3.5), ("/tmp/x/talk/0000000001.png", 1, "")]))
    assert read.origin == "predicted by LibreFace" and read.names == ["/tmp/x/talk"] * 2 and read.frames.tolist() == [0, 1]
    assert (read.labels[0] == 3.5).all() and read.tracked.tolist() == [True, False] and (read.confidence == 1).all()
    read = table(libreface([("C:\\pictures\\a.png", 0, 1)], image=True))
    assert read.names == ["C:/pictures/a.png"] and read.frames.tolist() == [-1]


def test_our_own_layout(tmp_path):
    file, labels = tmp_path / "labels.csv", np.random.default_rng(0).uniform(0, 5, (2, 12)).round(2)
    labels[1, 3] = np.nan
    write_label_file(file, "predicted by heads128", ["a.mp4", "b, c.mp4"], labels, AUS, [0, 7], ["Ann", "Bob"], [1, 0.5], np.stack([POINTS] * 2))
    read = read_label_file(file, AUS)
    assert np.allclose(read.labels, labels, equal_nan=True) and read.origin == "predicted by heads128" and read.names == ["a.mp4", "b, c.mp4"]
    assert read.frames.tolist() == [0, 7] and read.subjects == ["Ann", "Bob"] and np.allclose(read.landmarks, POINTS) and read.tracked.all()
    file.write_text("image,AU1,AU12\na.png,1,\nb.png,,\n")
    read = read_label_file(file, AUS)
    assert read.origin is None and read.tracked.tolist() == [True, False]
    assert np.isnan(read.labels[0, 1:]).all() and read.labels[0, 0] == 1


@pytest.mark.parametrize("text, words", [
    ("image,AU1\na.png,x\n", "line 2: AU1 is 'x', no number"), ("image,AU1\na.png,1\nb.png,1,2\n", "line 3: 3 cells, 2 expected"),
    ("image,AU1\na.png,7\n", "line 2: AU1 is 7, outside 0 to 5"), ("image,AU1\na.png,-0.01\n", "outside 0 to 5"),
    ("name,smile\na.png,1\n", "names no intensities"), ("", "names no intensities"), ("video,frame,AU1\na.mp4,soon,1\n", "line 2: frame is 'soon'")])
def test_refused_with_file_and_line(table, tmp_path, text, words):
    message = complaint(lambda: table(text))
    assert message.startswith(str(tmp_path / "labels.csv")) and words in message
    assert "cannot be read" in complaint(lambda: read_label_file(tmp_path / "nowhere.csv", AUS))


def test_names_from_another_machine(tmp_path):
    files = [tmp_path / name for name in ("a/1.png", "b/1.png", "b/talk.mp4", "b/talk.png", "00000/00012.png")]
    index = FileIndex(tmp_path, files)
    found = {name: index.find(name, "x") for name in ("C:/old/a/1.png", "talk.mp4", "a", "00012", "nowhere.png", "b/talk.png")}
    expected = [files[0], files[2], tmp_path / "a", files[4], None, files[3]]
    assert list(found.values()) == expected
    assert "x: 1.png may be" in complaint(lambda: index.find("1.png", "x")) and "may be" in complaint(lambda: index.find("talk", "x"))


# folders

def pictures(folder, names):
    for k, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(numbered(k)).save(folder / name)


def test_a_video_with_openface(tmp_path):
    make_clip(tmp_path / "SN001.mp4", [numbered(k)[:, :160] for k in range(8)], tone=None)
    (tmp_path / "SN001.csv").write_text(openface([(1, 0, 0.98, 1, 1), (2, 0, 0.98, 1, 2), (3, 0, 0.7, 1, 3), (4, 0, 0.9, 0, 0), (6, 0, 0.98, 1, 4),
                                                  (7, 0, 0.98, 1, 4), (7, 1, 0.98, 1, 1)], points=True))
    data = open_dataset(tmp_path)
    assert isinstance(data, PictureFolder) and data.subjects == ["SN001"] and data.label_origin == "predicted by OpenFace"
    assert data.labels("SN001")[:, 0].tolist() == [1, 2, 4] and data.n_frames("SN001") == 3 and data.usable("SN001").all()
    assert [i for _, i in data.places("SN001")] == [0, 1, 5] and data.video_file("SN001").name == "SN001.mp4"
    from conftest import number
    assert [number(frame) for frame in data.frames("SN001")] == [0, 1, 5] and number(data.frame("SN001", 2)) == 5
    assert data.report == ["2 of 8 frames dropped: no row", "1 of 8 frames dropped: failed tracking", "1 of 8 frames dropped: low confidence",
                           "1 of 8 frames dropped: several faces"]
    assert "has frames 0 to 2, not 3" in complaint(lambda: data.frame("SN001", 3))
    assert PictureFolder(tmp_path, confidence=0.6).n_frames("SN001") == 4
    (tmp_path / "SN001.csv").write_text(openface([(9, 0, 0.98, 1, 1)]))
    assert "SN001.csv, line 2: frame 8 (from 0) of" in complaint(lambda: open_dataset(tmp_path))


def test_pictures_of_pyfeat_and_libreface(tmp_path):
    pictures(tmp_path / "faces", ["a.png", "b.jpg", "c.png"])
    table = tmp_path / "fex.csv"
    table.write_text(pyfeat([("/home/x/a.png", 0, 0.9, 0.4), ("/home/x/b.jpg", 1, 0.95, 0.6), ("/home/x/b.jpg", 1, 0.9, 0.1), ("/home/x/c.png", 2, None, 0)]))
    data = PictureFolder(tmp_path / "faces", table)
    assert data.subjects == ["a"] and data.labels("a")[0, 0] == 2 and not data.usable("a").any()
    assert data.report == ["1 of 3 frames dropped: failed tracking", "1 of 3 frames dropped: several faces"]
    table.write_text(libreface([("D:\\x\\a.png", 0, 1.5), ("D:\\x\\c.png", 0, 2.5)], image=True))
    data = PictureFolder(tmp_path / "faces", table)
    assert data.subjects == ["a", "c"] and data.label_origin == "predicted by LibreFace" and data.report == ["1 of 3 frames dropped: no row"]
    data.set_landmarks("a", POINTS[None])
    assert data.usable("a").all() and not data.usable("c").any()


def test_who_is_who(tmp_path):
    """A sub-folder is a person; a file in the folder itself; or every file; or as the table says."""
    names = ["F001/angry/0.png", "F001/angry/1.png", "F001/sad/0.png", "F002/sad/0.png", "x.png"]
    pictures(tmp_path, names)
    write_label_file(tmp_path / "labels.csv", "manual", names, np.ones((5, 12)), AUS)
    assert {s: PictureFolder(tmp_path).n_frames(s) for s in PictureFolder(tmp_path).subjects} == {"F001": 3, "F002": 1, "x": 1}
    assert PictureFolder(tmp_path, each_file=True).subjects == [name[:-4] for name in names]
    assert PictureFolder(tmp_path, subjects=["F002"]).subjects == ["F002"]
    assert "no labelled frame of F009" in complaint(lambda: PictureFolder(tmp_path, subjects=["F009"]))
    write_label_file(tmp_path / "labels.csv", "manual", names, np.ones((5, 12)), AUS, subjects=["p", "q", "p", "q", "q"])
    assert {s: PictureFolder(tmp_path).n_frames(s) for s in ("p", "q")} == {"p": 2, "q": 3}


def test_a_folder_of_pictures_as_a_sequence(tmp_path):
    """OpenFace names the table after the folder and numbers its pictures."""
    pictures(tmp_path, ["F001/angry/000.png", "F001/angry/001.png", "F001/angry/002.png"])
    (tmp_path / "F001" / "angry.csv").write_text(openface([(1, 0, 0.9, 1, 1), (3, 0, 0.9, 1, 3)]))
    data = open_dataset(tmp_path)
    assert [file.name for file, _ in data.places("F001")] == ["000.png", "002.png"] and data.labels("F001")[:, 0].tolist() == [1, 3]


def test_unusable_folders(tmp_path):
    assert "no such folder" in complaint(lambda: open_dataset(tmp_path / "nowhere"))
    pictures(tmp_path, ["a.png"])
    assert "no CSV file with labels" in complaint(lambda: open_dataset(tmp_path))
    (tmp_path / "labels.csv").write_text("image,AU1\na.png,1\n")
    assert "say 'manual'" in complaint(lambda: open_dataset(tmp_path))
    assert open_dataset(tmp_path, label_origin="manual").label_origin == "manual"
    (tmp_path / "labels.csv").write_text("# labels: manual\nimage,AU1\nb.png,1\n")
    assert "labels.csv, line 3: b.png is not in" in complaint(lambda: open_dataset(tmp_path))
    (tmp_path / "labels.csv").write_text("# labels: manual\nimage,AU1,confidence\na.png,1,0.1\n")
    assert "no frame with usable labels (1 of 1 frames dropped: low confidence)" in complaint(lambda: open_dataset(tmp_path))
    (tmp_path / "labels.csv").unlink()
    (tmp_path / "a.csv").write_text(openface([(0, 0, 0.9, 1, 1)], single=True))
    (tmp_path / "fex.csv").write_text(pyfeat([("a.png", 0, 0.9, 0.4)]))
    assert "labels of several origins (predicted by OpenFace, predicted by py-feat)" in complaint(lambda: open_dataset(tmp_path))
