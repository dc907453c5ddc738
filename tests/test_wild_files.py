"""Files as they come: tables of readings, interruptions, full and read-only disks, names in any script, copies of DISFA, tables from Excel."""
import csv
import errno
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import typer
from conftest import child_env, complaint, last_line, says
from PIL import Image
from test_data import make_tree
from typer.testing import CliRunner

from aueditnet import cli
from aueditnet.cli import app
from aueditnet.commands import options, tables
from aueditnet.data import DISFA, open_dataset
from aueditnet.facs import AUS
from aueditnet.files.errors import InputError
from aueditnet.files.io import data_dir
from aueditnet.files.label_files import read_label_file, write_label_file
from aueditnet.files.videofile import make_clip

pytestmark = pytest.mark.usefixtures("home")

QUICK = ("--no-align", "--refine", "0")
NAMES = ["a b", "Ünï лицо", "面孔 وجه 😀", "100% #1", "-o", """it's "x" """.strip(), "a;b,c", "new\nline"]


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def succeeds(*words):
    result = run(*words)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def refused(*words, naming, code=2):
    return says(run(*words), naming, code)


LOADED = lru_cache(cli._pipeline)


@pytest.fixture(autouse=True)
def one_model(monkeypatch):
    """A model is loaded once for all commands of this process."""
    monkeypatch.setattr(cli, "_pipeline", LOADED)


@pytest.fixture
def here(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(scope="module")
def frames():
    """One person, a frame that shows a face and one that is another expression."""
    data = DISFA(data_dir() / "synthdisfa", ["SN003"])
    calm, strong = (int(k) for k in (data.labels("SN003").sum(1).argmin(), data.labels("SN003").sum(1).argmax()))
    return [data.frame("SN003", k) for k in (calm, strong)]


@pytest.fixture(scope="module")
def pipe():
    return LOADED("heads128", None, "auto")


@pytest.fixture
def album(here, frames):
    """Pictures and other files, some of them in sub-folders."""
    folder = here / "album"
    (folder / "sub" / "deep").mkdir(parents=True)
    Image.fromarray(frames[0]).save(folder / "calm.png")
    Image.fromarray(frames[1]).save(folder / "sub" / "strong Ü.JPG", quality=95)
    Image.fromarray(np.hstack([frames[0], frames[1][:, ::-1]])).save(folder / "sub" / "deep" / "two.webp", lossless=True)
    Image.fromarray(np.full((200, 200, 3), 90, np.uint8)).save(folder / "wall.bmp")
    (folder / "broken.jpeg").write_bytes(b"no picture")
    for name in (".DS_Store", "._calm.png", ".hidden.png", "notes.txt"):
        (folder / name).write_bytes(b"x")
    (folder / ".cache").mkdir()
    Image.fromarray(frames[0]).save(folder / ".cache" / "x.png")
    return folder


def rows_of(file):
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as opened:
        return list(csv.DictReader(opened))


PICTURES = ["broken.jpeg", "calm.png", "sub/deep/two.webp", "sub/strong Ü.JPG", "wall.bmp"]
GOOD = PICTURES[1:4]


# Tables of a folder

def test_a_row_for_each_picture_and_face(album, here):
    result = succeeds("estimate", "album", "-o", "aus.csv")
    rows = rows_of("aus.csv")
    assert [(row["image"], row["face"], row["faces"]) for row in rows] == [
        ("broken.jpeg", "", "0"), ("calm.png", "1", "1"), ("sub/deep/two.webp", "1", "2"), ("sub/deep/two.webp", "2", "2"),
        ("sub/strong Ü.JPG", "1", "1"), ("wall.bmp", "", "0")]
    assert "not a picture" in rows[0]["error"] and "no face" in rows[5]["error"] and not any(row["error"] for row in rows[1:5])
    assert result.stdout == "pictures with a reading: 3 of 5; faces: 4\nwritten to aus.csv\n"
    assert result.stderr.count("aueditnet: warning: ") == 2 == result.stderr.count("\n")
    for file, number, row in (("calm.png", 1, rows[1]), ("sub/strong Ü.JPG", 1, rows[4]), ("sub/deep/two.webp", 2, rows[3])):
        printed = succeeds("estimate", album / file, "--face", number).stdout.splitlines()[1:]
        for line in printed:   # the same readings, within the scale
            au, value = line.split()[:2]
            assert abs(float(row[au]) - min(max(float(value), 0), 5)) < 0.051 and float(row[f"{au}_spread"]) >= 0
    left, top, right, bottom = (int(rows[1][name]) for name in tables.BOX)
    assert 0 <= left < 160 < right <= 320 and 0 <= top < bottom <= 240 and float(rows[1]["score"]) > 0
    two = sorted(rows[2:4], key=lambda row: int(row["left"]))
    assert int(two[0]["right"]) < 330 < int(two[1]["right"]) and int(two[1]["left"]) > 310
    assert [f.name for f in here.iterdir() if f.name.startswith(".")] == []


def test_the_table_is_a_table_of_labels(album):
    succeeds("estimate", "album", "-o", "aus.csv")
    read, rows = read_label_file("aus.csv", AUS), rows_of("aus.csv")
    assert read.names == [row["image"] for row in rows] and read.tracked.tolist() == [not row["error"] for row in rows]
    assert np.allclose(read.labels[1], [float(rows[1][au]) for au in AUS]) and read.origin == "predicted by heads128"
    succeeds("label", "album", "--with", "aus.csv", "-o", "labels.csv")
    labels = read_label_file("labels.csv", AUS)
    assert labels.names == ["calm.png", "sub/strong Ü.JPG"] and labels.origin == "predicted by heads128"     # those with one face


@pytest.fixture
def counted(monkeypatch):
    """The pictures in which faces are looked for; this process does all the work."""
    seen, real = [], tables.faces_of
    def count(file, name, *more):
        seen.append(name)
        return real(file, name, *more)
    monkeypatch.setattr(tables, "faces_of", count)
    return seen


def test_a_second_run_does_what_is_missing(album, pipe, counted, frames):
    out = Path("aus.csv")
    def again(*words): counted.clear(); return tables.estimate_folder(pipe, album, out, *words)
    first, (said, notes) = again(), again()
    assert counted == [] and said == "pictures with a reading: 3 of 5, 5 of them before; faces: 4" and notes == first[1]
    whole = out.read_bytes()
    lines = whole.splitlines(keepends=True)
    rest = {0: PICTURES, 1: PICTURES[1:], 3: PICTURES[2:], 5: PICTURES[4:]}     # of three rows the last is one of two faces
    for kept, missing in rest.items():      # a killed process left so many rows, and a piece of the next one
        cut = {0: 1, 1: 0, 3: len(lines[4]) - 1, 5: 40}[kept]
        out.write_bytes(b"".join(lines[:kept + 1]) + lines[kept + 1][:cut])
        again()
        assert counted == missing and sorted(out.read_bytes().splitlines()) == sorted(whole.splitlines()), kept
    out.write_bytes(lines[0][:30])
    again()
    assert out.read_bytes() == whole


def test_changed_and_lost_pictures(album, pipe, counted, frames):
    tables.estimate_folder(pipe, album, "aus.csv")
    before = {row["image"]: row for row in rows_of("aus.csv")}
    stat = (album / "calm.png").stat()
    Image.fromarray(frames[1]).save(album / "calm.png")
    os.utime(album / "calm.png", ns=(stat.st_atime_ns, stat.st_mtime_ns))     # by content, not by time
    (album / "wall.bmp").unlink()
    shutil.copy(album / "sub" / "strong Ü.JPG", album / "new.jpg")
    counted.clear()
    _, notes = tables.estimate_folder(pipe, album, "aus.csv")
    after = {row["image"]: row for row in rows_of("aus.csv")}
    assert counted == ["calm.png", "new.jpg"] and after.keys() == {*PICTURES, "new.jpg"} - {"wall.bmp"}
    assert after["calm.png"] != before["calm.png"] and all(after[name] == before[name] for name in (PICTURES[0], PICTURES[3]))
    assert any(note.endswith("whose picture has changed: 2") for note in notes)


def test_what_is_left_out_is_said(album, pipe, frames):
    Image.fromarray(frames[0]).save(album / "moving.GIF")
    (album / "clip.mp4").write_bytes(b"")
    _, notes = tables.estimate_folder(pipe, album, "aus.csv")
    assert any("videos left out: 2" in note for note in notes)


def test_a_picture_that_cannot_be_read_is_tried_again(album, pipe, counted, monkeypatch):
    real = Path.read_bytes
    def read(file):
        if file.name == "calm.png":
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read)
        for tried in (PICTURES, ["calm.png"]):
            counted.clear()
            said, notes = tables.estimate_folder(pipe, album, "aus.csv")
            assert counted == tried and said.startswith("pictures with a reading: 2 of 5")
            assert "calm.png: cannot be read (Permission denied)" in notes
    tables.estimate_folder(pipe, album, "aus.csv")
    with monkeypatch.context() as patch:    # a row of a picture that cannot be compared with it any more
        patch.setattr(Path, "read_bytes", read)
        assert tables.estimate_folder(pipe, album, "aus.csv")[0].startswith("pictures with a reading: 2 of 5")


def test_another_table_is_not_overwritten(album, here, tmp_path):
    tables_ = {"foreign.csv": "frame,AU12\n0,4\n", "labels.csv": "# labels: manual\nimage,AU1\ncalm.png,3\n", "text.csv": "hello",
               "binary.csv": "\0\0", "excel.csv": "\ufeff" + ";".join(tables.picture_columns()) + "\n"}
    for name, text in tables_.items():
        Path(name).write_text(text)
        if name != "binary.csv":
            refused("estimate", "album", "-o", name, naming=[name, "was not made by", "stored anew by another program"])
            assert Path(name).read_text() == text
    succeeds("estimate", "album", "-o", "aus.csv")
    before = Path("aus.csv").read_bytes()
    refused("estimate", "album", "-o", "aus.csv", "--face", "1", naming=["aus.csv", "other options", "name another file"])
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(album / "calm.png", other / "else.png")
    refused("estimate", other, "-o", "aus.csv", naming=["aus.csv", "other pictures"])
    middle = before.replace(b"sub/deep/two.webp,1,2", b"sub/deep/two.webp,1", 1)
    Path("aus.csv").write_bytes(middle)
    refused("estimate", "album", "-o", "aus.csv", naming=["aus.csv", "cells"])
    assert Path("aus.csv").read_bytes() == middle
    os.mkfifo("pipe.csv")
    refused("estimate", "album", "-o", "pipe.csv", naming="no regular file")


def test_tables_that_are_refused(album, here, frames):
    for words, naming in ((["album"], "-o aus.csv"), (["clip.mp4"], "-o aus.csv"), (["album", "-o", "aus.txt"], ".csv"),
                          (["album/calm.png", "--openface"], "--openface"), (["album", "--openface", "-o", "a.csv"], "--openface"),
                          (["clip.mp4", "-o", "a.csv", "--face", "all"], "one person"), (["nowhere", "-o", "a.csv"], "nowhere"),
                          (["album/sub/deep", "-o", "a.csv", "--face", "3"], ["no face was read", "only 2 found"]),
                          (["album/broken.jpeg", "-o", "a.csv"], "broken.jpeg"), (["album/calm.png", "-o", "a.csv", "--face", "2"], "only 1 found")):
        refused("estimate", *words, naming=naming)
        assert not Path("aus.csv").exists()
    assert [row["face"] for row in rows_of("a.csv")] == [""] and rows_of("a.csv")[0]["faces"] == "2"    # the reason stays
    (here / "empty").mkdir()
    refused("estimate", "empty", "-o", "b.csv", naming="no pictures in this folder")
    shutil.copy("album/wall.bmp", "empty/wall.bmp")
    refused("estimate", "empty", "-o", "b.csv", naming=["no face was read", "b.csv"])
    assert [row["image"] for row in rows_of("b.csv")] == ["wall.bmp"]


def test_a_table_of_one_picture(album):
    succeeds("estimate", album / "sub" / "deep" / "two.webp", "-o", "two.csv")
    assert [(row["image"], row["face"]) for row in rows_of("two.csv")] == [("two.webp", "1"), ("two.webp", "2")]
    succeeds("estimate", album / "sub" / "deep" / "two.webp", "-o", "two.csv", "--face", "2")
    assert [row["face"] for row in rows_of("two.csv")] == ["2"]
    crop = Image.open("album/calm.png").crop((80, 40, 240, 200)).resize((128, 128))
    Path("crops").mkdir()
    crop.save("crops/a.png"), crop.save("crops/b.png")
    succeeds("estimate", "crops", "--no-align", "-o", "crops.csv")
    [a, b] = rows_of("crops.csv")
    assert a["left"] == a["score"] == "" and a["AU12"] == b["AU12"] and a["digest"] == b["digest"]


def test_two_commands_and_one_table(here, frames, pipe):
    Path("album").mkdir()
    Image.fromarray(frames[0]).save("album/a.png")
    with tables.PictureTable("aus.csv", tables.picture_columns(), "another command") as table:
        table.add([["a.png", *[""] * (len(table.columns) - 3), "0" * 16, tables.describe_reader(pipe, True, None)]])
        refused("estimate", "album", "-o", "aus.csv", naming=["aus.csv", "another process"])
        assert len(rows_of("aus.csv")) == 1
    succeeds("estimate", "album", "-o", "aus.csv")
    with pytest.raises(InputError), tables.PictureTable("empty.csv", ["image"], "x"): raise InputError("at once")
    assert [row["face"] for row in rows_of("aus.csv")] == ["1"] and not Path("empty.csv").exists()


def test_a_table_that_is_replaced_while_it_is_opened(here):
    """A lock of a file that is gone keeps nobody from writing the new one."""
    Path("aus.csv").write_text("old")
    with open("aus.csv", "rb") as held:
        tables._lock(held.fileno(), Path("aus.csv"))
        Path("new").write_text("new")
        os.replace("new", "aus.csv")
        with pytest.raises(InputError, match="has replaced it"): tables._lock(held.fileno(), Path("aus.csv"))


def test_a_picture_that_can_no_longer_be_read(here, frames, pipe, monkeypatch):
    """A run that goes on reports it as a first run does, and the other rows stay."""
    Path("album").mkdir()
    for name in ("a.png", "b.png"): Image.fromarray(frames[0]).save(f"album/{name}")
    tables.estimate_folder(pipe, "album", "aus.csv")
    before, real = rows_of("aus.csv"), Path.read_bytes
    def denied(file):
        if file.name == "b.png": raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return real(file)
    monkeypatch.setattr(Path, "read_bytes", denied)
    for _ in range(2):
        said, _ = tables.estimate_folder(pipe, "album", "aus.csv")
        rows = rows_of("aus.csv")
        assert rows[0] == before[0] and [row["error"] for row in rows] == ["", "b.png: cannot be read (Permission denied)"]
        assert said.startswith("pictures with a reading: 1 of 2, 1 of them before")


def test_names_that_are_no_text(here, frames, pipe):
    folder = os.fsencode("album")
    os.mkdir(folder)
    Image.fromarray(frames[0]).save("calm.png")
    for name in (b"\xff\xfe.png", b"line\nbreak.png", b'"quoted".png', b"=1+1.png"): shutil.copy(b"calm.png", os.path.join(folder, name))
    for _ in range(2):
        said, _ = tables.estimate_folder(pipe, "album", "aus.csv")
        assert sorted(os.fsencode(row["image"]) for row in rows_of("aus.csv")) == sorted(os.listdir(folder))
    assert "4 of them before" in said


def test_the_list_of_pictures_is_not_held_open(here, frames, pipe, monkeypatch):
    """Bounded memory: pictures are read and forgotten batch by batch, and each batch is on the disk before the next one is read."""
    Path("album").mkdir()
    Image.fromarray(frames[0]).save("calm.png")
    for k in range(40): os.link("calm.png", f"album/{k:02d}.png")
    sizes, real = [], tables.rows_of
    def watched(pipe, results, reader):
        sizes.append((len(results), len(Path("aus.csv").read_bytes().splitlines()) - 1))
        return real(pipe, results, reader)
    monkeypatch.setattr(tables, "rows_of", watched)
    monkeypatch.setattr(tables, "faces_of", lambda file, name, size, zoom, *more: (name, 0, [], [], "stand-in"))
    refused("estimate", "album", "-o", "aus.csv", naming="stand-in")
    assert sizes == [(16, 0), (16, 16), (8, 32)]


# Videos

TIMES = [40, 20, 100, 40, 40, 60, 40, 40, 40, 30, 40, 40]     # milliseconds for which each frame is shown


@pytest.fixture(scope="module")
def clip(tmp_path_factory, frames):
    """Twelve frames of one face with gaps of their own; nobody is in the four in the middle."""
    wall = np.full_like(frames[0], 90)
    pictures = [frames[k % 2 if 4 <= k else 0] if k < 4 or k > 7 else wall for k in range(12)]
    return make_clip(tmp_path_factory.mktemp("clip") / "a clip ü.mkv", pictures, 25, None, TIMES)


def test_a_row_for_each_frame(here, clip):
    result = succeeds("estimate", clip, "-o", "aus.csv")
    rows = rows_of("aus.csv")
    assert [int(row["frame"]) for row in rows] == list(range(12)) and {row["video"] for row in rows} == {"a clip ü.mkv"}
    assert [float(row["timestamp"]) for row in rows] == pytest.approx(np.cumsum([0, *TIMES[:-1]]) / 1000, abs=0.0011)
    seen = [row["success"] == "1" for row in rows]
    assert seen[:4] == [True] * 4 and not any(seen[4:8]) and all(seen[9:])
    assert all((row["error"] == "") == ok == (row["AU12"] != "") == (row["left"] != "") for row, ok in zip(rows, seen))
    assert f"12 frames, the face in {sum(seen)} ({12 - sum(seen)} no face found)" in result.stdout and "written to aus.csv" in result.stdout
    read = read_label_file("aus.csv", AUS)
    assert read.frames.tolist() == list(range(12)) and read.tracked.tolist() == seen
    succeeds("estimate", clip, "-o", "openface.csv", "--openface")
    head = Path("openface.csv").read_text().splitlines()[0]
    assert head == "frame,face_id,timestamp,confidence,success," + ",".join(f"AU{n:02d}_r" for n in (1, 2, 4, 5, 6, 9, 12, 15, 17, 20, 25, 26))
    other = read_label_file("openface.csv", AUS)
    assert other.origin == "predicted by OpenFace" and other.frames.tolist() == list(range(12)) and other.tracked.tolist() == seen
    assert np.nanmax(abs(other.labels - read.labels)[seen]) < 0.006 and not other.labels[4:8].any()
    assert rows_of("openface.csv")[0]["frame"] == "1" and [r["timestamp"] for r in rows_of("openface.csv")] == [r["timestamp"] for r in rows]


def test_a_video_without_a_face_leaves_no_table(here, frames):
    make_clip("wall.mp4", [np.full_like(frames[0], 90)] * 4, tone=None)
    Path("aus.csv").write_text("an earlier table")
    refused("estimate", "wall.mp4", "-o", "aus.csv", naming=["wall.mp4", "no face found"])
    assert Path("aus.csv").read_text() == "an earlier table" and sorted(os.listdir()) == ["aus.csv", "wall.mp4"]
    Path("no.mp4").write_bytes(b"no video")
    refused("estimate", "no.mp4", "-o", "b.csv", naming="no.mp4")


def test_pictures_that_lie_and_pictures_that_move(here, frames):
    Path("album").mkdir()
    Image.fromarray(frames[0]).save("album/upright.png")
    Image.fromarray(frames[0]).rotate(90, expand=True).save("album/lying.png")
    result = succeeds("estimate", "album", "-o", "aus.csv")
    lying, upright = rows_of("aus.csv")
    assert lying["image"] == "lying.png" and max(abs(float(lying[au]) - float(upright[au])) for au in AUS) < 0.5
    assert "lying.png" in result.stderr and "turned by 90 degrees" in result.stderr and "upright.png" not in result.stderr
    pictures = [Image.fromarray(frame) for frame in (frames[0], frames[1], frames[0])]
    pictures[0].save("moving.webp", save_all=True, append_images=pictures[1:], duration=[100, 300, 200], lossless=True)
    succeeds("estimate", "moving.webp", "-o", "moving.csv")
    assert [(row["frame"], row["timestamp"], row["success"]) for row in rows_of("moving.csv")] == [("0", "0.000", "1"), ("1", "0.100", "1"), ("2", "0.400", "1")]


# Interruptions

INTERRUPTER = """
import os, signal, sys
from pkgutil import resolve_name
if __name__ == "__main__":
    target, count, number, *words = sys.argv[1:]
    signal.signal(signal.SIGINT, signal.default_int_handler)    # a test that runs in the background ignores it, and so would its children
    owner, _, name = target.rpartition(".")
    owner, calls = resolve_name(owner), []
    real = getattr(owner, name)
    def counted(*args, **how):
        calls.append(0)
        if len(calls) == int(count): os.killpg(0, int(number))      # as the terminal does: all processes of the command
        return real(*args, **how)
    setattr(owner, name, counted)
    sys.argv = ["aueditnet", *words]
    from aueditnet.cli import app
    app()
"""


def interrupted(target, count, *words, number=signal.SIGINT):
    """The n-th call of a function brings the signal."""
    Path("..", "interrupter.py").write_text(INTERRUPTER)
    return subprocess.run([sys.executable, "../interrupter.py", target, str(count), str(int(number)), *map(str, words)], start_new_session=True,
                          capture_output=True, text=True, timeout=300, env=child_env(OMP_NUM_THREADS="1"))


def left(folder):
    return sorted(f.relative_to(folder).as_posix() for f in Path(folder).rglob("*"))


@pytest.mark.parametrize("target, count, words, number", [
    ("torch.optim.Adam.step", 3, ("edit", "face.png", "--au", "AU12=4", "-o", "out.png"), signal.SIGINT),
    ("aueditnet.files.videofile.VideoWriter.write", 3, ("edit", "clip.mkv", "--au", "AU12=4", "-o", "out.mp4", *QUICK, "--no-tune"), signal.SIGTERM),
    ("aueditnet.commands.tables.frame_cells", 5, ("estimate", "clip.mkv", "-o", "out.csv"), signal.SIGINT)], ids=["edit", "video", "estimate"])
def test_a_signal_leaves_nothing(here, clip, frames, target, count, words, number):
    Image.fromarray(frames[0]).save("face.png")
    shutil.copy(clip, "clip.mkv")
    if "--no-align" in words: make_clip("clip.mkv", [np.ascontiguousarray(frames[0][40:168, 80:208])] * 9, tone=None)
    for name in ("out.png", "out.mp4", "out.csv"): Path(name).write_bytes(b"an earlier result")
    before = left(here)
    result = interrupted(target, count, *words, number=number)
    assert (result.returncode, result.stderr) == (128 + number, "aueditnet: interrupted\n"), result
    assert left(here) == before and all(Path(name).read_bytes() == b"an earlier result" for name in ("out.png", "out.mp4", "out.csv"))


def test_an_interrupted_folder_goes_on(here, frames):
    """Two worker processes are at work when the signal comes."""
    Path("album").mkdir()
    Image.fromarray(frames[0]).save("calm.png")
    for k in range(40): os.link("calm.png", f"album/{k:02d}.png")
    result = interrupted("aueditnet.commands.tables.readings_as_cells", 2, "estimate", "album", "-o", "aus.csv")
    said = "aueditnet: interrupted; finished pictures stay in aus.csv; the same command continues\n"
    assert (result.returncode, last_line(result.stderr)) == (130, said), result
    rows = Path("aus.csv").read_bytes()
    assert len(rows_of("aus.csv")) == 16 and rows.endswith(b"\n") and left(here).count("aus.csv") == 1
    assert [name for name in left(here) if Path(name).name.startswith(".")] == []
    assert "40 of 40, 16 of them before" in succeeds("estimate", "album", "-o", "aus.csv").stdout
    assert Path("aus.csv").read_bytes().startswith(rows) and len({row["AU12"] for row in rows_of("aus.csv")}) == 1


def test_worker_processes_end_with_the_command(here):
    """Neither tracebacks of the workers nor hours of waiting for work that was handed in."""
    Path("pool.py").write_text("""
import os, signal, threading, time
from aueditnet.files.processes import process_pool
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with process_pool(2) as pool:
        jobs = [pool.submit(time.sleep, 600) for _ in range(9)]
        while not jobs[1].running(): time.sleep(0.1)
        time.sleep(1)
        os.killpg(0, signal.SIGINT)
        jobs[0].result()
""")
    result = subprocess.run([sys.executable, "pool.py"], start_new_session=True, capture_output=True, text=True, timeout=120, env=child_env())
    assert result.stderr.count("Traceback") == 1 and result.stderr.rstrip().endswith("KeyboardInterrupt")


STOPPED = {    # what a command calls, and what it says of its work
    ("demo",): ("aueditnet.explore.demo", ""), ("evaluate",): ("aueditnet.runs.evaluate.evaluate_model", ""),
    ("bench",): ("aueditnet.experiments.benchmark.bench", ""), ("model", "import", "--e4e", "a.pt", "-o", "m"): ("aueditnet.runs.importing.import_model", ""),
    ("weights", "convert", "a.pt", "a.safetensors"): ("aueditnet.files.weights.convert", ""), ("course", "export"): ("aueditnet.course.export", ""),
    ("train", "-o", "run"): ("aueditnet.runs.train.train", "no checkpoint yet"), ("label", "x", "--with", "heads128"): ("aueditnet.runs.labelling.label", "cache"),
    ("train-reader", "--model", "m"): ("aueditnet.pretraining.readers.train_readers", "cache"), ("invert", "x", "-o", "codes"): ("aueditnet.runs.folders.invert", "codes"),
    ("ablate",): ("aueditnet.experiments.ablations.main", "cache"), ("pretrain", "--stage", "joint"): ("aueditnet.pretraining.recipes.long_run", "stage joint"),
    ("synthdisfa", "make", "-o", "made"): ("aueditnet.synth.synthdisfa.make", "made"), ("estimate", "x", "-o", "aus.csv"): ("aueditnet.commands.tables.estimate_folder", "aus.csv")}


@pytest.mark.parametrize("words", STOPPED, ids=lambda words: words[0])
def test_what_every_long_command_says(here, monkeypatch, words):
    target, kept = STOPPED[words]
    Path("x").mkdir()
    monkeypatch.setattr(target, lambda *args, **how: (_ for _ in ()).throw(KeyboardInterrupt()))
    said = refused(*words, naming=["interrupted", kept], code=130)
    assert bool(kept) == (";" in said) and left(here) == ["x"]


def test_a_training_says_which_step_it_holds(here, monkeypatch):
    import torch
    def train(*args, **how):
        Path("run").mkdir()
        torch.save({"step": 400}, "run/checkpoint.pt")
        raise KeyboardInterrupt
    monkeypatch.setattr("aueditnet.runs.train.train", train)
    refused("train", "-o", "run", naming="interrupted; run holds a checkpoint of step 400; the same command continues", code=130)


@pytest.mark.parametrize("name, code", [("SIGTERM", 143), ("SIGHUP", 129)])
def test_signals_that_end_a_process(name, code):
    number, box = getattr(signal, name), typer.Typer(cls=options.OneLineErrors, callback=lambda: None)
    before = signal.getsignal(number)
    @box.command()
    def wait():
        with options.resumable("all is kept"): os.kill(os.getpid(), number)
    result = CliRunner().invoke(box, ["wait"])
    assert (result.exit_code, result.stderr) == (code, "aueditnet: interrupted; all is kept\n") and signal.getsignal(number) is before
    try:    # what is ignored stays ignored: nohup
        signal.signal(number, signal.SIG_IGN)
        assert CliRunner().invoke(box, ["wait"]).exit_code == 0
    finally: signal.signal(number, before)


# Disks

def mounted(folder, size):
    """A small disk of its own, or None where one may not mount."""
    if os.geteuid() or sys.platform != "linux":
        return None
    return subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True).returncode == 0 or None


@contextmanager
def small_disk(folder):
    """A disk on which 4 kB fit; elsewhere a limit for the size of files, which has another message."""
    folder.mkdir()
    if mounted(folder, "4k"):
        try: yield "No space left on device"
        finally: subprocess.run(["umount", str(folder)], check=True)
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try: yield resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard)) or "File too large"
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def readonly_disk(folder):
    folder.mkdir()
    if mounted(folder, "1m"):
        try:
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            yield "Read-only file system"
        finally: subprocess.run(["umount", str(folder)], check=True)
        return
    if os.geteuid() == 0: pytest.skip("root may write everywhere, and may not mount here")
    try: yield folder.chmod(0o555) or "Permission denied"
    finally: folder.chmod(0o755)


WRITERS = {    # what writes into the folder D
    "photograph": ("edit", "face.png", "--au", "AU12=4", "--steps", "12", "-o", "D/out.png"),
    "crop": ("edit", "crop.png", "--au", "AU12=4", *QUICK, "-o", "D/out.png"),
    "video": ("edit", "crops.mkv", "--au", "AU12=4", *QUICK, "--no-tune", "-o", "D/out.mkv"),
    "folder": ("estimate", "album", "-o", "D/aus.csv"), "frames": ("estimate", "long.mkv", "--no-align", "-o", "D/aus.csv"),
    "codes": ("invert", "album", "--no-align", "--refine", "0", "-o", "D/codes"), "export": ("course", "export", "--student", "D/course")}


@pytest.fixture
def inputs(here, frames):
    Image.fromarray(frames[0]).save("face.png")
    noise = np.random.default_rng(0).integers(-9, 9, (128, 128, 3))      # so that a PNG of it is large
    crop = np.clip(frames[0][40:168, 80:208] + noise, 0, 255).astype(np.uint8)
    Image.fromarray(crop).save("crop.png")
    make_clip("crops.mkv", [np.roll(crop, k, 1) for k in range(6)], tone=None)
    make_clip("long.mkv", [np.roll(crop, k, 1) for k in range(24)], tone=None)
    Path("album").mkdir()
    for k in range(20): Image.fromarray(frames[k % 2]).resize((128, 128)).save(f"album/{k:02d}.png")
    return here


@pytest.mark.parametrize("what", ["photograph", "crop", "video", "folder", "frames", "codes"])
def test_a_full_disk(inputs, tmp_path, monkeypatch, what):
    monkeypatch.setattr(tables, "faces_of", lambda file, name, *more: (name, 1, [(1, None, None, np.zeros((128, 128, 3), np.uint8))], [], ""))
    disk = tmp_path / "disk"
    with small_disk(disk) as reason:
        said = refused(*(str(word).replace("D/", f"{disk}/") for word in WRITERS[what]), naming=[reason, str(disk), WRITERS[what][-1][2:]])
        assert "Errno" not in said
        rest = left(disk)
    if what == "folder":      # what fitted is there, and whole
        assert rest == ["aus.csv"]
    else: assert rest in ([], ["codes"], ["codes", "codes/manifest.json"]), rest


def test_a_table_on_a_full_disk_goes_on_elsewhere(inputs, monkeypatch):
    """The rows that fitted are whole, and a copy of the table is continued."""
    real, calls = os.write, []
    def write(handle, data):    # the disk is full in the middle of the second batch
        if data.startswith((b"image,", b"00.png")): return real(handle, data)
        calls.append(len(data))
        if len(calls) == 1: return real(handle, data[:len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(tables.os, "write", write)
        refused("estimate", "album", "--no-align", "-o", "full.csv", naming="aueditnet: full.csv: No space left on device")
    assert len(rows_of("full.csv")) == 16 and Path("full.csv").read_bytes().endswith(b"\n") and len(calls) == 2
    assert "20 of 20, 16 of them before" in succeeds("estimate", "album", "--no-align", "-o", "full.csv").stdout


@pytest.mark.parametrize("what", ["photograph", "video", "folder", "frames", "codes", "export"])
def test_a_read_only_disk(inputs, tmp_path, what):
    disk = tmp_path / "disk"
    with readonly_disk(disk) as reason:
        said = refused(*(str(word).replace("D/", f"{disk}/") for word in WRITERS[what]), naming=[reason, str(disk)])
        assert (f"{disk}/{WRITERS[what][-1][2:]}" in said or what == "export") and left(disk) == []


def test_a_cache_that_cannot_be_written(inputs, tmp_path, monkeypatch):
    disk = tmp_path / "disk"
    with readonly_disk(disk):       # a face is learned again each time, and nothing is said
        monkeypatch.setenv("AUEDITNET_HOME", str(disk))
        result = succeeds("edit", "face.png", "--au", "AU12=4", "--steps", "12", "-o", "out.png")
        assert "Read-only" not in result.stderr and Path("out.png").is_file() and left(disk) == []
        monkeypatch.setenv("AUEDITNET_HOME", str(disk / "cache"))
        refused("edit", "face.png", "--au", "AU12=4", "--steps", "2", "-o", "other.png", naming=[str(disk / "cache"), "AUEDITNET_HOME"])
        refused("label", "album", "--with", "heads128", "-o", "labels.csv", naming=[str(disk / "cache"), "AUEDITNET_HOME"])
    Path("file").write_bytes(b"")
    monkeypatch.setenv("AUEDITNET_HOME", "file")
    refused("edit", "face.png", "--au", "AU12=4", "--steps", "2", "-o", "other.png", naming=["file", "AUEDITNET_HOME"])
    assert not Path("other.png").exists()


# Names

@pytest.mark.parametrize("name", NAMES)
def test_names_of_any_kind(here, frames, pipe, name):
    """Pictures, videos, tables and folders; a name that begins with a dash needs ./ before it, as everywhere in a shell."""
    where = Path(".") / name
    (here / name).mkdir()
    crop = np.ascontiguousarray(frames[0][40:168, 80:208])
    picture, out = f"./{name}/{name}.png", f"./{name}/{name} out.png"
    Image.fromarray(crop).save(picture)
    assert "written to" in succeeds("edit", picture, "--au", "AU12=4", *QUICK, "-o", out).stdout
    assert Image.open(out).size == (128, 128)
    make_clip(f"./{name}/{name}.mkv", [crop] * 3, tone=None)
    succeeds("estimate", f"./{name}/{name}.mkv", "--no-align", "-o", f"./{name}/{name}.csv")
    assert {row["video"] for row in rows_of(f"./{name}/{name}.csv")} == {f"{name}.mkv"}
    os.unlink(out)
    succeeds("estimate", f"./{name}", "--no-align", "-o", f"./{name}/{name}.csv.csv")
    [row] = rows_of(f"./{name}/{name}.csv.csv")
    assert row["image"] == f"{name}.png" and row["error"] == ""
    write_label_file(where / "labels.csv", "manual", [f"{name}.png", f"{name}.mkv"], np.ones((2, 12)), AUS, [-1, 2])
    data = open_dataset(where)
    assert data.subjects == [name] and len(data.frame(name, 0)) == 128


def test_a_model_folder_with_any_name(here, pipe):
    from aueditnet.pipeline import Pipeline
    folder = here / "модель 模型 # 1%"
    pipe.save_pretrained(folder)
    read = Pipeline.from_pretrained(str(folder))
    assert (read.size, read.editor.config) == (pipe.size, pipe.editor.config)
    assert "present" in succeeds("model", "show", folder).stdout


@pytest.mark.parametrize("landmarks", ["npz", "mat"])
def test_a_data_set_with_any_name(tmp_path, landmarks):
    root = make_tree(tmp_path / "Датасет 数据 # 1%", landmarks=landmarks)
    data = DISFA(root, ["SN001"])
    assert data.labels("SN001").shape == (24, 12) and data.usable("SN001").all() and data.frame("SN001", 3).shape == (64, 160, 3)


# Copies of DISFA

def label_file(root, au="au4", s="SN001"): return root / "ActionUnit_Labels" / s / f"{s}_{au}.txt"


def changed(root, change, au="au4"):
    """The lines of a label file, changed; returns the labels of an unchanged copy."""
    before = DISFA(root, ["SN001"]).labels("SN001").copy()
    file = label_file(root, au)
    file.write_bytes(change(file.read_text().splitlines()))
    return before


JOINED = {"CRLF": lambda lines: "\r\n".join([*lines, ""]), "CR": lambda lines: "\r".join(lines), "no last line end": lambda lines: "\n".join(lines),
          "mark": lambda lines: "\ufeff" + "\n".join(lines), "blank lines": lambda lines: "\n\n".join([*lines, "", " "]),
          "semicolons": lambda lines: "\n".join(line.replace(",", ";") for line in lines), "spaces": lambda lines: "\n".join(f" {line.replace(',', ' ,  ')} " for line in lines),
          "decimals": lambda lines: "\n".join(f"{line}.0" for line in lines), "decimal commas": lambda lines: "\n".join(line.replace(",", ";") + ",0" for line in lines)}


@pytest.mark.parametrize("how", JOINED)
def test_lines_that_say_the_same(tmp_path, how):
    root = make_tree(tmp_path)
    before = changed(root, lambda lines: JOINED[how](lines).encode())
    data = DISFA(root, ["SN001"])
    assert (data.labels("SN001") == before).all() and data.report == []


def test_lines_in_another_order_and_lines_that_are_missing(tmp_path):
    root = make_tree(tmp_path)
    before = changed(root, lambda lines: "\n".join([*lines[12:], *lines[:12]]).encode())
    changed(root, lambda lines: "\n".join(lines[:6] + lines[7:] + lines[2:3]).encode(), "au12")
    data = DISFA(root, ["SN001"])
    labels = data.labels("SN001")
    assert (np.argwhere(labels != before) == [[6, AUS.index("AU12")]]).all() and np.isnan(labels[6, AUS.index("AU12")])
    assert (labels[:, AUS.index("AU4")] == before[:, AUS.index("AU4")]).all()
    assert data.usable("SN001").tolist() == [k != 6 for k in range(24)]
    assert [note.partition(": ")[::2] for note in data.report] == [
        ("SN001_au4.txt", "lines are out of order, and sorted by their frame"),
        ("SN001_au12.txt", "frames with two equal lines (counted from 1): 3"), ("SN001_au12.txt", "frames without a line (counted from 1), not used: 7")]
    changed(root, lambda lines: "\n".join(lines[1:]).encode(), "au1")
    data = DISFA(root, ["SN001"])
    assert (np.nan_to_num(data.labels("SN001"), nan=9) != np.nan_to_num(labels, nan=9)).sum() == 1 and not data.usable("SN001")[0]


def test_a_frame_without_a_label_is_not_trained_on(tmp_path):
    from aueditnet.data import PairSampler
    root = make_tree(tmp_path)
    changed(root, lambda lines: "\n".join(lines[:6] + lines[7:]).encode())
    data = DISFA(root, ["SN001"])
    pairs = PairSampler({"SN001": data.labels("SN001")}, 0, {"SN001": data.usable("SN001")}).sample(400)
    drawn = {frame for _, *pair in pairs for frame in pair}
    assert 6 not in drawn and len(drawn) > 15


@pytest.mark.parametrize("change, words", [
    (lambda lines: "\n".join(lines + ["3,9"]).encode(), "line 25: intensity 9 is outside 0 to 5"),
    (lambda lines: "\n".join([*lines, f"3,{(int(lines[2][2]) + 1) % 6}"]).encode(), "line 25: frame 3 has intensity"),
    (lambda lines: "\n".join(lines[:11]).encode() + b"\n12,\xe9\n", "line 12"), (lambda lines: "\n".join(lines[:12] + ["200,1"]).encode(), "have no line"),
    (lambda lines: b"", "no labels"), (lambda lines: "\n".join(f"{k},0" for k in range(24)).encode(), "line 1: frame 0")])
def test_what_a_label_file_may_not_hold(tmp_path, change, words):
    root = make_tree(tmp_path)
    changed(root, change)
    message = complaint(lambda: DISFA(root, ["SN001"]).labels("SN001"))
    assert message.startswith(str(label_file(root))) and words in message


@pytest.mark.parametrize("landmarks", ["npz", "mat"])
def test_stray_files_of_a_mac(tmp_path, landmarks):
    """Finder's notes and AppleDouble copies everywhere; upper-case names."""
    root = make_tree(tmp_path / "disk", ["SN001", "SN008"], landmarks=landmarks)
    before = {s: (DISFA(root, [s]).labels(s), DISFA(root, [s]).landmarks(s)) for s in ("SN001", "SN008")}
    for file in [f for f in root.rglob("*") if f.is_file()]: (file.parent / f"._{file.name}").write_bytes(b"\0\5\x16\7Mac OS X")
    for folder in [root, *(f for f in root.rglob("*") if f.is_dir())]:
        (folder / ".DS_Store").write_bytes(b"Bud1")
        (folder.parent / f"._{folder.name}").write_bytes(b"\0\5\x16\7Mac OS X")
    shutil.copytree(root / "ActionUnit_Labels", root / "__MACOSX" / "ActionUnit_Labels")
    for file in sorted((f for f in root.rglob("SN0*")), reverse=True): file.rename(file.with_name(file.name.upper()))
    (root / "ActionUnit_Labels").rename(root / "ACTIONUNIT_LABELS")
    (root / "Videos_LeftCamera").rename(root / "VIDEOS_LEFTCAMERA")
    data = open_dataset(root)
    assert data.subjects == ["SN001", "SN008"]
    for s, (labels, points) in before.items():
        assert (data.labels(s) == labels).all() and np.array_equal(data.landmarks(s), points, equal_nan=True) and data.usable(s).all()
    assert [note for note in data.report if "subjects are read" not in note and "numbered" not in note] == []


def test_a_report_is_said(tmp_path):
    """The commands print what the library logs, so training and evaluation say what was repaired."""
    root = make_tree(tmp_path, labelled=25)
    changed(root, lambda lines: "\n".join(lines[:6] + lines[7:]).encode())
    data = open_dataset(root)
    said, log, handler = [], logging.getLogger("aueditnet.data"), logging.Handler()
    handler.emit, level = lambda record: said.append(record.getMessage()), log.level
    log.addHandler(handler), log.setLevel("INFO")
    try: data.labels("SN001"), data.landmarks("SN001")
    finally: log.removeHandler(handler), log.setLevel(level)
    assert said and said == data.report[1:] and "SN001_au4.txt: frames without a line" in said[0] and "24 frames in the video" in said[1]


def test_names_that_the_terminal_cannot_show(here, frames):
    Image.fromarray(frames[0][40:168, 80:208]).save("面.png")
    result = CliRunner(charset="latin-1").invoke(app, ["estimate", "面.png", "--no-align", "-o", "\udcff面.csv"])
    assert result.exit_code == 0 and result.stdout == "written to \\udcff\\u9762.csv\n"


# Tables from Excel

TABLE = "# labels: predicted by X\nimage,confidence,AU1,AU12\nÜ 1.png,0.9,0.25,3.5\n\"b;c, d.png\",1,,5\n"


def saved_by_excel(how):
    rows = list(csv.reader(TABLE.splitlines()[1:]))
    def lines(sep, point=".", end="\r\n"):
        quoted = lambda cell: f'"{cell}"' if sep in cell else cell
        number = lambda cell: cell.replace(".", point) if cell[:1].isdigit() else cell
        return f"# labels: predicted by X{sep * 3}{end}" + "".join(sep.join(quoted(number(cell)) for cell in row) + end for row in rows)
    return {"comma": lines(",").encode(), "mark": lines(",").encode("utf-8-sig"), "semicolons": lines(";", ",").encode("utf-8-sig"),
            "tabs": lines("\t", ",").encode("utf-16"), "sep": ("sep=;\r\n" + lines(";", ",").split("\r\n", 1)[1]).encode("utf-8-sig"),
            "old Mac": lines(";", ",", "\r").encode(), "no last line end": lines(";").rstrip().encode()}[how]


@pytest.mark.parametrize("how", ["comma", "mark", "semicolons", "tabs", "sep", "old Mac", "no last line end"])
def test_tables_as_excel_saves_them(tmp_path, how):
    file = tmp_path / "labels.csv"
    file.write_bytes(saved_by_excel(how))
    read = read_label_file(file, AUS)
    assert read.names == ["Ü 1.png", "b;c, d.png"] and read.confidence.tolist() == pytest.approx([0.9, 1])
    assert np.array_equal(read.labels[:, [0, 6]], [[0.25, 3.5], [np.nan, 5]], equal_nan=True)
    assert read.origin == (None if how == "sep" else "predicted by X")


@pytest.mark.parametrize("content, words", [
    (TABLE.encode("cp1252"), "CSV UTF-8"), (b"sep=|\nimage|AU1\na.png|1\n", "line 1: cells separated by '|'"),
    (b"image;AU1\na.png;1,5x\n", "line 2: AU1 is '1,5x', no number"), (b"image;AU1\na.png;1;2\n", "line 2: 3 cells"),
    (b"PK\3\4 an Excel file\xff", "not a text file"), (b"image,AU1\n" + b"a" * 200_000 + b",1\n", "line 2: field larger")])
def test_tables_that_are_not_read(tmp_path, content, words):
    (tmp_path / "labels.csv").write_bytes(content)
    message = complaint(lambda: read_label_file(tmp_path / "labels.csv", AUS))
    assert message.startswith(str(tmp_path / "labels.csv")) and words in message


def test_intensities_over_time_from_excel(tmp_path):
    from aueditnet.video.intensity_track import IntensityTrack
    (tmp_path / "track.csv").write_bytes("frame;AU12;AU6\r\n0;0,5;\r\n10;5;2\r\n".encode("utf-8-sig"))
    track = IntensityTrack.read(tmp_path / "track.csv")
    assert track[0][AUS.index("AU12")] == 0.5 and track[5][AUS.index("AU6")] == 2
