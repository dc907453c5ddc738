"""The floors of the house, as contracts in .importlinter: what stands above may import what stands below, and nothing goes in circles."""
import os
import subprocess
import sys
from pathlib import Path

from conftest import ROOT, child_env, run_python

LINT = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]


def lint(folder):
    env = child_env(PYTHONPATH=str(folder))
    return subprocess.run(LINT, cwd=folder, env=env, capture_output=True, text=True, timeout=120)


def test_contracts_are_kept():
    result = lint(ROOT)
    assert result.returncode == 0 and " 0 broken" in result.stdout, result.stdout[-3000:]


def test_an_upward_import_is_noticed(project_copy):
    (project_copy / ".importlinter").write_bytes((ROOT / ".importlinter").read_bytes())
    module = project_copy / "aueditnet" / "files" / "io.py"
    module.write_text(module.read_text() + "\n\ndef late():\n    from aueditnet.pipeline import Pipeline\n")
    result = lint(project_copy)
    assert result.returncode == 1 and "aueditnet.files.io -> aueditnet.pipeline" in result.stdout


def test_every_module_stands_on_a_floor():
    """A new room or lesson has to be named in the contract, or it would not be checked."""
    import configparser
    config = configparser.ConfigParser()
    config.read(ROOT / ".importlinter")
    named = {name.strip() for line in config["importlinter:contract:floors"]["layers"].splitlines() for name in line.split("|")} - {""}
    top = {f"aueditnet.{p.stem}" for p in (ROOT / "aueditnet").iterdir() if (p.suffix == ".py" or (p / "__init__.py").is_file()) and not p.name.startswith("_")}
    assert top == named


def test_importing_is_quick():
    """`import aueditnet` and `aueditnet --help` take under half a second of processor time, and load neither torch nor numpy."""
    for code in ("import aueditnet", "import sys; sys.argv = ['aueditnet', '--help']\nfrom aueditnet.cli import app\napp()"):
        seconds = []
        for _ in range(3):
            began = sum(os.times()[2:4])     # of child processes: other work on the machine does not count
            result = run_python("-X", "importtime", "-c", code, cwd=ROOT)
            seconds.append(sum(os.times()[2:4]) - began)
        assert result.returncode == 0 and not {"torch", "cv2", "numpy"} & set(result.stderr.split()), result.stderr[-2000:]
        assert min(seconds) < 0.5


def test_public_names_are_there():
    import aueditnet
    assert [name for name in aueditnet.__all__ if not hasattr(aueditnet, name)] == []
