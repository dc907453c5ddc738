"""The package is what the notebooks export, no more and no less; untracked and forgotten modules are noticed too."""
import configparser
import re

from conftest import ROOT, run_python


def modules(folder):
    return {file.name: file.read_text(encoding="utf-8") for file in folder.glob("*.py")}


def test_package_is_the_export(project_copy):
    package = project_copy / "aueditnet"
    for file in package.glob("*.py"):
        file.unlink()
    (package / "__init__.py").write_text("")
    result = run_python("-c", "import nbdev; nbdev.nbdev_export()", cwd=project_copy)
    assert result.returncode == 0, result.stderr
    exported, ours = modules(package), modules(ROOT / "aueditnet")
    assert sorted(exported) == sorted(ours)
    assert [name for name in exported if exported[name] != ours[name]] == [], "run: nbdev_export"


def test_an_edited_module_is_noticed(project_copy):
    (project_copy / "aueditnet" / "facs.py").write_text("AUS = ()\n")
    assert modules(project_copy / "aueditnet") != modules(ROOT / "aueditnet")


def test_version_is_said_once():
    config = configparser.ConfigParser(delimiters=["="])
    config.read(ROOT / "settings.ini")
    import aueditnet
    assert aueditnet.__version__ == config["DEFAULT"]["version"]


def test_modules_stay_small_and_on_their_floor():
    """At most 350 lines of code a module; it imports only smaller numbers: 00-13 among themselves, 20-24 among themselves and of
    facs, 22-24 of all 00-13."""
    found = [re.fullmatch(r"(\d+)([a-z]?)_(\w+)", nb.stem) for nb in (ROOT / "nbs").glob("[0-9]*.ipynb")]
    numbers = {m[3]: (int(m[1]), m[2]) for m in found}
    for name, text in modules(ROOT / "aueditnet").items():
        if name in ("__init__.py", "_modidx.py", "cli.py"):
            continue
        lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
        assert len(lines) <= 350, f"{name} has {len(lines)} lines"
        here = numbers[name[:-3]]
        imported = re.findall(r"from (?:\.|aueditnet\.)(\w+) import", text)
        imported += [part.split(" as ")[0].strip() for line in re.findall(r"from (?:\.|aueditnet) import ([\w, ]+)", text) for part in line.split(",")]
        for other in imported:
            there = numbers[other]
            same_floor = (there[0] < 20) == (here[0] < 20)
            below = there[0] < here[0] or (there[0] == here[0] and other != name[:-3])    # 20, 20a, 20b: one subject in parts
            assert below and (same_floor or here[0] >= 22 or other == "facs"), f"{name} imports {other}"
