"""What all tests share: where things are, and a clean environment for child processes."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
NBS = ROOT / "nbs"
NOTEBOOKS = sorted(nb for nb in NBS.rglob("*.ipynb") if ".ipynb_checkpoints" not in nb.parts)
LEAVE_OUT = shutil.ignore_patterns(".git", ".venv", "build", "dist", "_proc", "_docs", "*.egg-info", "__pycache__",
                                   ".ipynb_checkpoints", ".pytest_cache")


def notebook_id(notebook):
    """A notebook's path below nbs/, without its suffix: `07_editor`, `synth/hair`."""
    return notebook.relative_to(NBS).with_suffix("").as_posix()


def child_env(**more):
    """The environment without IN_TEST, which nbdev's test_nb sets and which silently turns nbdev_export off."""
    env = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "PYTHONPATH")}
    if "PYTEST_XDIST_WORKER" in env:    # the other cores belong to the other workers
        env |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    return {**env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", **more}


def run_python(*words, cwd, timeout=300, **env):
    """Run this interpreter; the result has .returncode, .stdout, .stderr."""
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, timeout=timeout, capture_output=True, text=True, env=child_env(**env))


def complaint(call):
    """The line that a user sees."""
    from aueditnet.files.errors import InputError
    with pytest.raises(InputError) as problem:
        call()
    assert "\n" not in str(problem.value)
    return str(problem.value)


def last_line(stderr):
    """What remains on the screen: a progress bar is wiped off its line."""
    return stderr.rpartition("\r")[2]


def says(result, naming, code=2):
    """A command's one line on stderr, which begins with the program's name and names what it must: a text, or several."""
    said = last_line(result.stderr)
    assert result.exit_code == code and said.startswith("aueditnet: ") and said.count("\n") == 1, (result.output, result.exception)
    for part in (naming,) if isinstance(naming, str) else naming:
        assert part in said, said
    assert "Traceback" not in result.stderr
    return said


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A cache of this file's own: nothing is kept in the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AUEDITNET_HOME", str(tmp_path_factory.mktemp("home")))
        yield tmp_path_factory


SPREAD = ("test_notebooks", "test_clean")   # files whose tests are independent and go to whichever worker is free


def pytest_collection_modifyitems(items):
    """For `pytest -n`: the tests of a file share fixtures and stay on one worker, but for those in `SPREAD`. The longest begin."""
    gpu = any(item.get_closest_marker("gpu") for item in items) and has_gpu()
    for item in items:
        if item.get_closest_marker("gpu") and not gpu:
            item.add_marker(pytest.mark.skip(reason="this machine has no GPU"))
        name = item.path.stem
        if name not in SPREAD:
            item.add_marker(pytest.mark.xdist_group(name))
    first = ("test_docs", "test_notebooks", "test_browser", "test_training")
    items.sort(key=lambda item: first.index(item.path.stem) if item.path.stem in first else len(first))


def has_gpu():
    import torch
    return torch.cuda.is_available() or torch.backends.mps.is_available()


def close(a, b, eps=1e-5):
    """Assert that tensors or arrays differ by less than `eps`."""
    import torch
    assert (torch.as_tensor(a) - torch.as_tensor(b)).abs().max() < eps


def numbered(i):
    """A 64x160 picture that shows `i` as ten binary squares."""
    picture = np.full((64, 160, 3), 60, np.uint8)
    for bit in range(10):
        if i >> bit & 1:
            picture[16:48, 16 * bit:16 * bit + 16] = 230
    return picture


def number(picture):
    return sum(int(picture[32, 16 * bit:16 * bit + 16].mean() > 140) << bit for bit in range(10))


@pytest.fixture
def project_copy(tmp_path):
    """The project without data, history and built things, to run nbdev in."""
    copy = tmp_path / "project"
    copy.mkdir()
    for name in ("settings.ini", "setup.py", "_quarto.yml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    for name in ("nbs", "aueditnet"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=LEAVE_OUT)
    return copy
