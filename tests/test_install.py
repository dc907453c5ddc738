"""What is installed: a core that edits, extras that say their names, bounds, types, messages, and the files beside the code."""
import ast
import configparser
import importlib
import re

import pytest
from conftest import ROOT, run_python

CONFIG = configparser.ConfigParser(delimiters=["="])
CONFIG.read(ROOT / "settings.ini")
SETTINGS = CONFIG["DEFAULT"]
MODULES = sorted(p for p in (ROOT / "aueditnet").rglob("*.py") if p.name != "_modidx.py")
# Import names of what only the extras bring; traitlets, IPython and the nb... packages come with JupyterLab.
EXTRA_MODULES = ("jupyterlab", "voila", "ipywidgets", "anywidget", "traitlets", "matplotlib", "IPython", "nbformat", "nbconvert", "nbdev",
                 "fastcore", "execnb", "dlib", "face_recognition_models", "pillow_heif", "anny", "numba", "scipy", "torchmetrics", "sklearn", "pandas")


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    """Runs Python where no extra can be imported; -c CODE or -m MODULE ..."""
    folder = tmp_path_factory.mktemp("core")
    (folder / "sitecustomize.py").write_text(f"import sys\nfor name in {EXTRA_MODULES!r}: sys.modules[name] = None\n")

    def run(*words):
        return run_python(*words, cwd=folder, PYTHONPATH=str(folder), AUEDITNET_HOME=str(folder / "cache"))
    return run


@pytest.fixture(scope="module")
def crop(core):
    made = core("-c", "from aueditnet.align import neutral_faces\nfrom aueditnet.data import DISFA\nfrom aueditnet.files.io import data_dir, save_picture\n"
                      "save_picture(neutral_faces(DISFA(data_dir() / 'synthdisfa', ['SN008']), 128, 1.25, ['SN008'])['SN008'], 'crop.png')")
    assert made.returncode == 0, made.stderr
    return "crop.png"


COMMANDS = """
import sys
from typer.testing import CliRunner
from aueditnet.cli import app
for words in (["--help"], ["edit", "crop.png", "--au", "AU12=4", "-o", "smile.png", "--no-align"], ["estimate", "crop.png", "--no-align"],
              ["transfer", "crop.png", "smile.png", "-o", "both.png", "--no-align"]):
    done = CliRunner().invoke(app, words)
    print(done.exit_code, done.output)
"""


def test_the_core_edits_estimates_and_transfers(core, crop):
    done = core("-c", COMMANDS)
    helped, edited, estimated, transferred = re.split(r"^(?=\d )", done.stdout, flags=re.M)[1:]
    assert all(part.startswith("0 ") for part in (helped, edited, estimated, transferred)), done.stdout + done.stderr
    assert "transfer" in helped and "written to smile.png" in edited and "AU12" in estimated and "written to both.png" in transferred


def test_the_core_edits_a_video(core, crop):
    code = f"""
import av, numpy
from PIL import Image
from aueditnet.cli import app
with av.open("clip.mp4", "w") as box:
    stream = box.add_stream("libx264", rate=25, width=128, height=128, pix_fmt="yuv420p")
    for _ in range(2): box.mux(stream.encode(av.VideoFrame.from_ndarray(numpy.asarray(Image.open({crop!r}).convert("RGB")), "rgb24")))
    box.mux(stream.encode())
app(["edit", "clip.mp4", "--au", "AU12=4", "--no-align", "-o", "smile.mp4"])"""
    done = core("-c", code)
    assert done.returncode == 0 and "written to smile.mp4" in done.stdout, done.stderr


MISSING = """
import importlib
from typer.testing import CliRunner
from aueditnet.cli import app
from aueditnet.commands.apps import page
from aueditnet.files.errors import InputError
import aueditnet
for use in (lambda: importlib.import_module("aueditnet.explore"), lambda: aueditnet.Explorer, page, lambda: importlib.import_module("aueditnet.synth.render")):
    try: use()
    except InputError as problem: print(problem)
for words in (["demo"], ["lab"], ["course", "export", "--student", "s"], ["app"], ["evaluate", "--quick"], ["synthdisfa", "make"]):
    done = CliRunner().invoke(app, words)
    print(done.exit_code, " / ".join(done.stderr.splitlines()))
"""


def test_a_missing_extra_is_named_in_one_line(core):
    done = core("-c", MISSING)
    lines = done.stdout.splitlines()
    assert len(lines) == 10, done.stdout + done.stderr
    wanted = ["lab", "lab", "lab", "heads", "lab", "lab", "lab", "(lab|app)", "heads", "heads"]
    for line, extra in zip(lines, wanted):
        assert re.search(rf"pip install 'aueditnet\[{extra}\]'$", line) and " / " not in line, line
    assert all(line.startswith("2 aueditnet: ") for line in lines[4:])


def test_the_core_asks_for_nothing_of_the_lab():
    core = {re.split(r"[<>=]", word)[0] for word in SETTINGS["requirements"].split()}
    assert not core & {"jupyterlab", "voila", "ipywidgets", "anywidget", "matplotlib", "nbdev", "scipy", "numba"}
    assert {"jupyterlab", "voila", "ipywidgets"} == {re.split(r"[<>=]", word)[0] for word in SETTINGS["lab_requirements"].split()}


@pytest.mark.parametrize("name", [name for name in SETTINGS if name.endswith("requirements")])
def test_every_dependency_has_a_lower_bound(name):
    """nbdev's companions, which are only capped because newer ones break nbdev 2, get theirs from nbdev."""
    bare = [word for word in SETTINGS[name].split() if ">=" not in word and not re.match(r"(execnb|ghapi|fastgit)<", word)]
    assert bare == []


def test_lowest_versions_are_printed(tmp_path):
    done = run_python(ROOT / ".ci" / "lowest.py", cwd=tmp_path)
    pins = dict(line.split("==") for line in done.stdout.splitlines())
    assert done.returncode == 0 and {"torch", "numpy", "av", "pillow", "voila"} <= set(pins)
    asked = re.findall(r"([\w-]+)>=([\d.]+)", " ".join(SETTINGS[name] for name in SETTINGS if name.endswith("requirements")))
    highest = {name: max((v for n, v in asked if n == name), key=lambda v: [*map(int, v.split("."))]) for name, _ in asked}
    assert pins == highest


def test_types_are_announced_and_names_are_true():
    """py.typed is there, and every name of every `__all__` exists."""
    import aueditnet
    assert (ROOT / "aueditnet" / "py.typed").is_file()
    assert set(aueditnet.__all__) <= set(dir(aueditnet)) and all(hasattr(aueditnet, name) for name in aueditnet.__all__)
    for file in (file for file in MODULES if file != ROOT / "aueditnet" / "__init__.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        listed = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__"]
        if not listed:
            assert not file.read_text().strip(), f"{file.name} has no __all__"
            continue
        module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
        assert [name for name in listed[0] if not hasattr(module, name)] == []


# What prints is a report that one asked for: the tables of experiments, of `evaluate`, `bench` and `demo`, and an exercise's answer.
REPORTS = {"course", "explore", "experiments", "recipes", "streaming", "errors"}


def test_the_library_does_not_print():
    for file in MODULES:
        calls = [node for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                 if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"]
        assert not calls or {file.stem, file.parent.name} & REPORTS, f"{file.name}, line {calls[0].lineno}: use logging.getLogger('aueditnet...')"


def test_messages_are_shown_on_request_and_once():
    code = ("import logging\nfrom aueditnet.files.errors import show_messages\nlog = logging.getLogger('aueditnet.somewhere')\n"
            "log.info('unseen')\nlog.warning('bare')\nshow_messages(); show_messages()\nlog.info('a note')\nlog.warning('beware')")
    done = run_python("-c", code, cwd=ROOT)
    assert done.stdout == "a note\n" and done.stderr == "bare\naueditnet: warning: beware\n"


def test_a_wheel_tells_where_the_rest_is():
    """The address of the archive is the project's own, at the tag of this version."""
    from aueditnet import __version__
    from aueditnet.files.io import ARCHIVE
    assert ARCHIVE == f"{SETTINGS['git_url']}/archive/refs/tags/v{__version__}.tar.gz" and __version__ == SETTINGS["version"]


def test_citation_and_changelog():
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0" and citation["version"] == SETTINGS["version"] and citation["license"] == "Apache-2.0"
    assert {"message", "title", "authors", "type"} <= set(citation) and all(set(person) & {"name", "family-names"} for person in citation["authors"])
    paper, = citation["references"]
    assert paper["type"] == "conference-paper" and paper["year"] == 2024 and paper["authors"] and paper["title"] and paper["conference"]["name"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[(Unreleased|{re.escape(SETTINGS['version'])})\]", changes, re.M) and "### Added" in changes


def test_contributing_names_what_exists():
    """Every file and command that CONTRIBUTING.md names is there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = re.findall(r"`((?:\.ci|nbs|tests|aueditnet|data)/[\w./-]+|_quarto\.yml|settings\.ini|CHANGELOG\.md)`", text)
    assert len(paths) > 5 and [path for path in paths if not (ROOT / path).exists()] == []
