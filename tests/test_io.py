"""files.io: atomic writing, content hashes, reading of pictures, locations.

torch is imported late: the processes that write import this file too."""
import multiprocessing
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_python
from PIL import Image

from aueditnet.files import io
from aueditnet.files.errors import InputError
from aueditnet.files.io import as_picture, content_hash, read_image, replace_file, replacing, save_picture, sha256

SPAWN = multiprocessing.get_context("spawn")


def names(folder):
    return sorted(f.name for f in folder.iterdir())


# Writing

@pytest.mark.parametrize("failure", (KeyboardInterrupt, OSError, InputError))
@pytest.mark.parametrize("exists", (False, True))
def test_a_failed_write_leaves_the_old_file(tmp_path, failure, exists):
    file = tmp_path / "result.txt"
    if exists:
        file.write_text("old")
    with pytest.raises(failure), replacing(file) as temporary:
        temporary.write_text("half of the n")
        raise failure("interrupted")
    assert names(tmp_path) == ["result.txt"] * exists
    assert not exists or file.read_text() == "old"


def test_the_new_file_appears_in_one_step(tmp_path):
    file = tmp_path / "picture.png"
    with replacing(file) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".png" and temporary.name.startswith(".")
        temporary.write_bytes(b"new")
        assert not file.exists()
    assert file.read_bytes() == b"new" and names(tmp_path) == ["picture.png"]
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_replace_file_takes_bytes_and_writers(tmp_path):
    replace_file(tmp_path / "a", b"bytes")
    replace_file(tmp_path / "b.npy", lambda temporary: np.save(temporary, np.arange(3)))
    save_picture(np.full((9, 7, 3), 200, np.uint8), tmp_path / "c.png")
    assert (tmp_path / "a").read_bytes() == b"bytes" and np.load(tmp_path / "b.npy").tolist() == [0, 1, 2]
    assert Image.open(tmp_path / "c.png").size == (7, 9) and names(tmp_path) == ["a", "b.npy", "c.png"]


def test_a_failed_move_leaves_nothing(tmp_path, monkeypatch):
    def full(*names):
        raise OSError("disk full")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        replace_file(tmp_path / "a", b"new")
    assert names(tmp_path) == []


def write_limited(file, content, largest):
    """In a process of its own: a write of which only `largest` bytes fit."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        replace_file(file, content)
    except OSError:
        raise SystemExit(3) from None


def test_a_full_disk_leaves_the_old_file(tmp_path):
    file = tmp_path / "weights.bin"
    file.write_bytes(b"old")
    process = SPAWN.Process(target=write_limited, args=(file, b"new" * 10_000, 1000))
    process.start()
    process.join(60)
    assert process.exitcode == 3 and file.read_bytes() == b"old" and names(tmp_path) == ["weights.bin"]


def write_often(file, letter, times):
    for _ in range(times):
        replace_file(file, letter.encode() * 200_000)


def test_two_processes_on_one_file(tmp_path):
    """A reader finds the whole file of one of the two at any time, and no temporary file remains."""
    file = tmp_path / "shared"
    file.write_bytes(b"a" * 200_000)
    both = [SPAWN.Process(target=write_often, args=(file, letter, 100)) for letter in "ab"]
    for process in both:
        process.start()
    seen = set()
    while any(process.is_alive() for process in both):
        content = file.read_bytes()
        seen.add((len(content), len(set(content))))
    assert [process.exitcode for process in both] == [0, 0]
    assert seen == {(200_000, 1)} and names(tmp_path) == ["shared"]


def test_check_folder(tmp_path):
    assert io.check_folder(tmp_path / "result.png") == tmp_path / "result.png"
    with pytest.raises(InputError, match="does not exist, make it first"):
        io.check_folder(tmp_path / "absent" / "result.png")


# Naming

@dataclass
class Config:
    steps: int = 3


@dataclass
class Other:
    steps: int = 3


def distinct():
    import torch
    return [1, 1.0, True, "1", b"1", None, "None", [], [[]], [1], ["1"], {}, {"a": 1}, {"a": "1"}, [["a", 1]], ["ab", "c"], ["a", "bc"],
            Config(), Config(4), Other(), np.zeros(4), np.zeros((2, 2)), np.zeros(4, np.float32), np.zeros(4, int), np.float32(1), np.float64(1),
            torch.tensor([1.0, 1 + 1e-12], dtype=torch.float64), torch.tensor([1.0, 1.0], dtype=torch.float64),
            torch.ones(2), torch.ones(2, dtype=torch.float16), torch.ones(2, dtype=torch.int64)]


def test_different_values_have_different_hashes():
    values = distinct()
    assert len({content_hash(value) for value in values}) == len(values)
    assert content_hash(1, 2) != content_hash([1, 2]) != content_hash(2, 1)


def test_equal_values_have_equal_hashes():
    import torch
    assert content_hash({"a": 1, "b": [2, (3,)]}) == content_hash({"b": (2, [3]), "a": 1})
    array = np.arange(12.0).reshape(3, 4)
    assert content_hash(array) == content_hash(array.T.copy().T) == content_hash(torch.from_numpy(array))
    assert content_hash(torch.ones(2, dtype=torch.bfloat16)) == content_hash(torch.ones(2))
    assert content_hash("x", digits=12) == content_hash("x")[:12] and len(content_hash("x")) == 64


@pytest.mark.parametrize("value", (object(), {1, 2}, print, np.array([object()]), [{"a": object()}]))
def test_what_has_no_stable_content_is_refused(value):
    with pytest.raises(TypeError, match="content_hash cannot read"):
        content_hash(value)


def test_modules_are_named_by_their_weights():
    import torch
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    before = content_hash(layer)
    layer(torch.randn(8, 2))           # running means and variances are weights too
    after = content_hash(layer)
    with torch.no_grad():
        layer[0].weight[0, 0] += 1e-3
    assert len({before, after, content_hash(layer)}) == 3


def test_paths_stand_for_contents(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        (folder / "sub").mkdir(parents=True)
        (folder / "a").write_bytes(b"first")
        (folder / "sub" / "b").write_bytes(b"other")
    assert content_hash(one) == content_hash(two) and content_hash(one / "a") == content_hash(two / "a")
    before = content_hash(two)
    (two / "a").rename(two / "c")
    (two / "sub" / "b").rename(two / "a")
    (two / "c").rename(two / "sub" / "b")                 # exchanged, of equal length
    assert content_hash(two) != before
    (two / "a").write_bytes(b"first")
    (two / "sub" / "b").write_bytes(b"other")             # written again: the hash is not served from memory
    assert content_hash(two) == before
    (two / "sub" / "b").rename(two / "sub" / "d")
    assert content_hash(two) != before
    (two / "sub" / "d").rename(two / "sub" / "b")
    (two / ".a.x1").write_bytes(b"temporary")
    (two / ".cache").mkdir()
    (two / ".cache" / "b").write_bytes(b"hidden")
    assert content_hash(two) == before
    empty = tmp_path / "empty"
    empty.mkdir()
    assert content_hash([empty, 1]) != content_hash([1, empty])
    with pytest.raises(InputError):
        content_hash(tmp_path / "absent")


def test_every_process_gives_the_same_hash():
    code = "import numpy as np; from aueditnet.files.io import content_hash; print(content_hash({'b': 1, 'a': [0.1, None]}, np.arange(5), 'é'))"
    seen = {run_python("-c", code, cwd=ROOT, PYTHONHASHSEED=seed).stdout for seed in ("0", "1")}
    assert seen == {content_hash({"a": [0.1, None], "b": 1}, np.arange(5), "é") + "\n"}


def test_sha256(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc").startswith("ba7816bf8f01cfea")    # from the standard, FIPS 180-4


# Reading pictures

def test_orientation_depth_and_transparency(tmp_path):
    upright = np.zeros((64, 96, 3), np.uint8)
    upright[:32] = 200
    exif = Image.Exif()
    exif[0x0112] = 6                                          # rotate by 90 degrees when shown
    Image.fromarray(np.rot90(upright)).save(tmp_path / "turned.png", exif=exif)
    assert np.abs(read_image(tmp_path / "turned.png").astype(int) - upright).max() == 0
    deep = Image.fromarray(np.full((64, 64), 65535, np.uint16))
    deep.save(tmp_path / "deep.png")
    assert (read_image(tmp_path / "deep.png") == 255).all()
    clear = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    assert (as_picture(clear) == 255).all() and (as_picture(clear.convert("LA")) == 255).all()
    palette = Image.new("P", (64, 64))
    palette.info["transparency"] = 0
    assert (as_picture(palette) == 255).all()
    for mode in ("L", "1", "CMYK", "F"):
        assert as_picture(Image.new(mode, (64, 70))).shape == (70, 64, 3)
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert (as_picture(array) == array).all()


def test_unusable_pictures(tmp_path):
    good = tmp_path / "good.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)).save(good)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:2000])
    (tmp_path / "empty.png").touch()
    for file, says in (("absent.png", "no such file"), (".", "is a folder, not a picture"), ("text.png", "not a picture, or of an unknown format"),
                       ("empty.png", "not a picture"), ("cut.png", "cannot be read as a picture")):
        with pytest.raises(InputError, match=says) as caught:
            read_image(tmp_path / file)
        assert str(tmp_path / file) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError, match="upload: no such file"):
        read_image(tmp_path / "absent.png", "upload")
    with pytest.raises(InputError, match="80x80 pixels are too small, at least 100"):
        read_image(good, smallest=100)


def test_a_decompression_bomb(tmp_path, monkeypatch):
    Image.new("1", (300, 300)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InputError, match="bomb.png: more than 0 million pixels are not read"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("array, says", [
    (np.zeros((64, 64, 3)), "must be HxWx3 uint8 RGB, not 64x64x3 float64"), (np.zeros((64, 64), np.uint8), "not 64x64 uint8"),
    (np.zeros((64, 64, 4), np.uint8), "not 64x64x4 uint8"), (np.zeros((8, 64, 3), np.uint8), "64x8 pixels are too small"), ("absent.jpg", "absent.jpg: no such file")])
def test_unusable_arrays(array, says):
    with pytest.raises(InputError, match=says):
        as_picture(array)


# Locations

def test_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path / "a" / "b"))
    assert io.cache_dir() == tmp_path / "a" / "b" and io.cache_dir().is_dir()
    (tmp_path / "file").touch()
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path / "file" / "x"))
    with pytest.raises(InputError, match="set AUEDITNET_HOME"):
        io.cache_dir()


def test_data_of_an_installed_package(tmp_path):
    """Away from a clone the package has its own data folder; beside one, that of the clone."""
    package = tmp_path / "aueditnet"
    shutil.copytree(ROOT / "aueditnet", package, ignore=shutil.ignore_patterns("__pycache__"))

    def place():
        result = subprocess.run([sys.executable, "-c", "from aueditnet.files.io import data_dir; print(data_dir())"], cwd=tmp_path,
                                env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
        return Path(result.stdout.strip())
    assert place() == package.resolve() / "data"
    (tmp_path / "data" / "weights").mkdir(parents=True)
    assert place() == tmp_path.resolve() / "data"


def test_an_error_names_the_result_and_not_the_temporary_file(tmp_path):
    """A missing folder, a folder in the way, a full disk; an error of another file stays as it is."""
    import errno

    def full(part):
        raise OSError(errno.ENOSPC, "No space left on device")   # as write() says it, without a name

    (tmp_path / "folder").mkdir()
    cases = {tmp_path / "nowhere" / "a.png": b"1", tmp_path / "folder": b"1", tmp_path / "a.png": full}
    for file, content in cases.items():
        with pytest.raises(OSError) as problem:
            replace_file(file, content)
        assert problem.value.filename == str(file)
    with pytest.raises(FileNotFoundError) as problem:
        replace_file(tmp_path / "a.png", lambda part: (tmp_path / "other.png").read_bytes())
    assert problem.value.filename == str(tmp_path / "other.png")
    assert [f.name for f in tmp_path.iterdir()] == ["folder"]
