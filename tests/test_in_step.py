"""The package is what the notebooks export, no more and no less; untracked and forgotten modules are noticed too."""
import configparser

from conftest import ROOT, run_python


LINES, WIDTH = 350, 120     # of a module; of a line


def modules(folder):
    return {file.relative_to(folder).as_posix(): file.read_text(encoding="utf-8") for file in folder.rglob("*.py")}


def test_package_is_the_export(project_copy):
    package = project_copy / "aueditnet"
    for file in package.rglob("*.py"):
        if file != package / "__init__.py":     # the lazy public names: the one module that no notebook exports
            file.unlink()
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




def test_modules_stay_small():
    """At most 350 lines a module, whatever the lines are."""
    ours = {name: len(text.splitlines()) for name, text in modules(ROOT / "aueditnet").items() if name != "_modidx.py"}
    assert {name: lines for name, lines in ours.items() if lines > LINES} == {}
