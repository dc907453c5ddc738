"""A wheel built from the project runs the demo by itself, outside the clone."""
import shutil
import subprocess
import sys

import pytest
from conftest import LEAVE_OUT, ROOT, child_env


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


def test_demo_outside_the_clone(installed, tmp_path):
    env = child_env(HOME=str(tmp_path / "home"), AUEDITNET_HOME=str(tmp_path / "cache"))
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


def test_wheel_holds_data_and_nothing_else(wheel):
    import zipfile
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"aueditnet", next(t for t in tops if t.endswith(".dist-info"))}
    data = {str(f.relative_to(ROOT / "data")) for folder in ("weights", "synthdisfa", "photographs") for f in (ROOT / "data" / folder).rglob("*") if f.is_file()}
    assert {name.removeprefix("aueditnet/data/") for name in names if name.startswith("aueditnet/data/")} == data
    assert wheel.stat().st_size < 70e6
