"""What all tests share: where things are, and a clean environment for child processes."""
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
LEAVE_OUT = shutil.ignore_patterns(".git", ".venv", "build", "dist", "_proc", "_docs", "*.egg-info", "__pycache__", ".ipynb_checkpoints", ".pytest_cache")


def child_env(**more):
    """The environment without IN_TEST, which nbdev's test_nb sets and which silently turns nbdev_export off."""
    env = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "PYTHONPATH")}
    return {**env, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}", **more}


def run_python(*words, cwd, timeout=300, **env):
    """Run this interpreter; the result has .returncode, .stdout, .stderr."""
    return subprocess.run([sys.executable, *map(str, words)], cwd=cwd, timeout=timeout, capture_output=True, text=True, env=child_env(**env))


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
