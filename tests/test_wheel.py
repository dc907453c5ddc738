"""A wheel built from the project edits and runs the demo by itself, outside the clone, and fetches the data that it does not carry."""
import functools
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import LEAVE_OUT, ROOT, child_env

FETCHED = ("synthdisfa", "weights/heads128/baselines")   # folders of data/ that a wheel carries in part or not at all


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The built wheel. It is built from a copy, so that no earlier build/ can add to it."""
    copy = tmp_path_factory.mktemp("source") / "project"
    shutil.copytree(ROOT, copy, symlinks=True, ignore=LEAVE_OUT)
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, copy], check=True, env=child_env())
    return next(out.glob("aueditnet-*.whl"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """bin folder of a clean environment that has the wheel, and borrows the other packages from ours through a .pth file (a .pth in a
    folder named by a .pth is not read, so our editable installation does not come along)."""
    venv = tmp_path_factory.mktemp("clean") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    subprocess.run([sys.executable, "-m", "pip", "--python", venv / "bin" / "python", "install", "-q", "--no-deps", "--no-index", wheel], check=True, env=child_env())
    packages = next((venv / "lib").glob("python*")) / "site-packages"
    (packages / "borrowed.pth").write_text("\n".join(folder for folder in sys.path if folder.endswith("site-packages")) + "\n")
    return venv / "bin"


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """What the repository's host serves for a tag, as far as it is needed: all files below one folder."""
    file = tmp_path_factory.mktemp("web") / "archive.tar"
    with tarfile.open(file, "w") as box:
        for name in FETCHED:
            box.add(ROOT / "data" / name, f"aueditnet-0.1.0/data/{name}")
        box.add(ROOT / "settings.ini", "aueditnet-0.1.0/settings.ini")
    return file


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        self.server.asked.append(self.path)


@pytest.fixture
def server(archive):
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=archive.parent)) as server:
        server.asked = []
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def address(server, name="archive.tar"):
    return f"http://127.0.0.1:{server.server_port}/{name}"


def test_demo_outside_the_clone(installed, tmp_path):
    """The demo needs nothing but the wheel: an address that leads nowhere is not asked for anything."""
    env = child_env(HOME=str(tmp_path / "home"), AUEDITNET_HOME=str(tmp_path / "cache"), AUEDITNET_ARCHIVE="http://127.0.0.1:9/nothing")
    where = subprocess.run([installed / "python", "-c", "import aueditnet; print(aueditnet.__file__)"], cwd=tmp_path, env=env, capture_output=True, text=True, check=True)
    assert where.stdout.startswith(str(installed.parent))
    result = subprocess.run([installed / "aueditnet", "demo", "-o", "sheet.png"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-3000:]
    from PIL import Image
    assert min(Image.open(tmp_path / "sheet.png").size) > 300
    assert "AU12" in result.stdout and "sheet.png" in result.stdout


def test_lab_needs_the_clone(installed, tmp_path):
    result = subprocess.run([installed / "aueditnet", "lab"], cwd=tmp_path, env=child_env(), capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and "clone" in result.stderr and result.stderr.count("\n") == 1


LOOK = """
import sys
from aueditnet.align import neutral_faces
from aueditnet.data import DISFA, TEST
from aueditnet.files import weights
from aueditnet.files.io import data_dir, fetched_dir
print(len(neutral_faces(DISFA(data_dir() / "synthdisfa", TEST), 128, 1.25)), fetched_dir().exists())   # those of the page: carried
data = DISFA(data_dir("synthdisfa"))
print(len(data.subjects), data.frame("SN001", 0).shape, len(list(data_dir("synthdisfa").glob("counterfactual/*/*.png"))))
print(len(weights.load("heads128-ling")[0]) > 0, weights.verify("heads128-ling"))
"""


def look(installed, cache, source, *code):
    env = child_env(AUEDITNET_HOME=str(cache), AUEDITNET_ARCHIVE=str(source))
    return subprocess.run([installed / "python", "-c", *(code or [LOOK])], cwd=cache.parent, env=env, capture_output=True, text=True, timeout=120)


def test_the_rest_is_fetched_once(installed, server, tmp_path):
    pictures = len(list((ROOT / "data/synthdisfa/counterfactual").glob("*/*.png")))
    for _ in range(2):
        done = look(installed, tmp_path / "cache", address(server))
        assert done.returncode == 0, done.stderr[-2000:]
        nine, people, baseline = done.stdout.splitlines()
        assert people.startswith("27 (") and people.endswith(f" {pictures}")
        assert nine.startswith("9 ") and baseline == "True in the repository"
    assert nine == "9 True" and len(server.asked) == 1                     # what is there is not asked for again
    assert [f.name for f in (tmp_path / "cache").iterdir() if f.suffix != ".lock"] == ["data-0.1.0"]


def test_what_cannot_be_fetched_is_said_in_one_line(installed, archive, server, tmp_path):
    other = tmp_path / "other.tar"
    with tarfile.open(other, "w") as box:
        box.add(ROOT / "settings.ini", "aueditnet-0.1.0/data/synthdisfa/README.md")
    (tmp_path / "broken.tar").write_bytes(archive.read_bytes()[:5_000_000])
    code = "from aueditnet.files.io import data_dir\ndata_dir('synthdisfa')"
    for source, why in {"http://127.0.0.1:9/archive.tar": "could not be downloaded: no connection", address(server, "no.tar"): "the server answers 404",
                        tmp_path / "no.tar": "neither an address nor a file", other: "is not that of this version", tmp_path / "broken.tar": "other.tar|broken.tar"}.items():
        done = look(installed, tmp_path / "cache", source, code)
        last = done.stderr.strip().splitlines()[-1]
        assert done.returncode == 1 and last.startswith("aueditnet.files.errors.InputError: ") and re.search(why, last), done.stderr
        assert not list((tmp_path / "cache").glob("data-*"))
    done = look(installed, tmp_path / "cache", archive, code)              # a file that one was given, without a network
    assert done.returncode == 0 and archive.is_file(), done.stderr


def test_wheel_holds_what_an_edit_needs_and_nothing_else(wheel):
    box = zipfile.ZipFile(wheel)
    names = box.namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"aueditnet", next(t for t in tops if t.endswith(".dist-info"))} and "aueditnet/py.typed" in names
    inside = {name.removeprefix("aueditnet/data/") for name in names if name.startswith("aueditnet/data/")} - {"SHA256SUMS"}
    bundled = {f.relative_to(ROOT / "data").as_posix() for folder in ("weights", "synthdisfa", "photographs") for f in (ROOT / "data" / folder).rglob("*")
               if f.is_file() and not f.name.startswith(".")}
    listed = {line.split("  ")[1] for line in box.read("aueditnet/data/SHA256SUMS").decode().splitlines()}
    assert inside <= bundled and inside | listed == bundled                # every file is carried, or can be fetched
    assert listed == {name for name in bundled if name.startswith(tuple(f"{folder}/" for folder in FETCHED))}
    assert {name for name in bundled if name.startswith("weights/") and "/baselines/" not in name} <= inside
    assert wheel.stat().st_size < 40e6


def test_the_carried_people_are_those_of_the_test_fold(wheel):
    from aueditnet.data import TEST
    videos = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".avi")]
    assert sorted(re.search(r"SN\d+", name)[0] for name in videos) == sorted(TEST)
