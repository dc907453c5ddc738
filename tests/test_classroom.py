"""The places where the course is run: badges and first cell of the notebooks, Binder, the container, and the workflows."""
import importlib.util
import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import NBS, NOTEBOOKS, ROOT, child_env, notebook_id

spec = importlib.util.spec_from_file_location("badges", ROOT / ".ci" / "badges.py")
badges = importlib.util.module_from_spec(spec)
spec.loader.exec_module(badges)

CFG = badges.settings()
NAMES = {notebook_id(nb): nb.relative_to(ROOT).as_posix() for nb in NOTEBOOKS}
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TESTS = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text())["jobs"]["tests"]


def read(notebook):
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def source(cell):
    return "".join(cell["source"])


RUN = [nb for nb in NOTEBOOKS if badges.is_run(NAMES[notebook_id(nb)], read(nb))]


def test_every_lesson_and_every_room_can_be_run():
    assert {notebook_id(nb) for nb in NBS.glob("[0-9]*.ipynb")} <= {notebook_id(nb) for nb in RUN}
    assert {room.name for room in NBS.iterdir() if (room / "index.ipynb").exists()} <= {nb.parent.name for nb in RUN}


@pytest.mark.parametrize("notebook", RUN, ids=notebook_id)
def test_badges_and_first_cell(notebook):
    cells, path = read(notebook), notebook.relative_to(ROOT).as_posix()
    links = dict(re.findall(r"\[!\[([\w ]+)\]\(https://[\w./-]+\.svg\)\]\((https://[^)]+)\)", source(cells[1])))
    repo = CFG["git_url"].split("github.com/")[1]
    assert links == {"Open in Colab": f"https://colab.research.google.com/github/{repo}/blob/{CFG['branch']}/{path}",
                     "Open in Binder": f"https://mybinder.org/v2/gh/{repo}/{CFG['branch']}?labpath={path.replace('/', '%2F')}"}
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    assert f"git clone -q --depth 1 {CFG['git_url']} course" in source(first)
    assert f"%cd -q course/{path.rpartition('/')[0]}" in source(first).splitlines()[-1]
    assert first["outputs"] == [] and not re.search(r"^#\|\s*export", source(first), re.M)


def test_script_changes_nothing_when_it_runs_again():
    assert badges.main(check=True) == [], "run: python .ci/badges.py"


@pytest.fixture
def small(tmp_path):
    """A project of two notebooks without badges: a lesson, and a page to read."""
    (tmp_path / "nbs").mkdir()
    shutil.copy(ROOT / "settings.ini", tmp_path)
    for name in ("01_facs", "references"):
        notebook = json.loads((NBS / f"{name}.ipynb").read_text(encoding="utf-8"))
        notebook["cells"] = [cell for cell in notebook["cells"] if not badges.is_ours(cell)]
        (tmp_path / "nbs" / f"{name}.ipynb").write_text(
            json.dumps(notebook, sort_keys=True, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return tmp_path


def test_script_adds_two_cells_and_touches_no_other(small):
    lesson, page = small / "nbs" / "01_facs.ipynb", small / "nbs" / "references.ipynb"
    before, text = read(lesson), page.read_text(encoding="utf-8")
    assert badges.main(check=True, root=small) == ["nbs/01_facs.ipynb"] and read(lesson) == before, "--check writes nothing"
    assert badges.main(root=small) == ["nbs/01_facs.ipynb"]
    after = read(lesson)
    assert [cell for cell in after if not badges.is_ours(cell)] == before
    assert [i for i, cell in enumerate(after) if badges.is_ours(cell)][0] == 1 and len(after) == len(before) + 2
    assert len({cell["id"] for cell in after}) == len(after)
    assert page.read_text(encoding="utf-8") == text
    assert badges.main(root=small) == []


def test_both_cells_are_no_slides(small):
    """A notebook that is a lecture keeps its slides: the cells are skipped there."""
    lecture = small / "nbs" / "01_facs.ipynb"
    notebook = json.loads(lecture.read_text(encoding="utf-8"))
    notebook["cells"][0]["metadata"] = {"slideshow": {"slide_type": "slide"}}
    lecture.write_text(json.dumps(notebook), encoding="utf-8")
    badges.main(root=small)
    ours = [cell["metadata"]["slideshow"] for cell in read(lecture) if badges.is_ours(cell)]
    assert ours == [{"slide_type": "skip"}] * 2


def test_script_follows_the_settings(small):
    badges.main(root=small)
    ids = [cell["id"] for cell in read(small / "nbs" / "01_facs.ipynb")]
    settings = (small / "settings.ini").read_text()
    (small / "settings.ini").write_text(settings.replace(CFG["git_url"], "https://github.com/someone/fork"))
    assert badges.main(root=small) == ["nbs/01_facs.ipynb"]
    text = (small / "nbs" / "01_facs.ipynb").read_text()
    assert "gh/someone/fork/" in text and "clone -q --depth 1 https://github.com/someone/fork course" in text
    assert f"colab.research.google.com/github/{CFG['git_url'].split('github.com/')[1]}" not in text
    assert [cell["id"] for cell in read(small / "nbs" / "01_facs.ipynb")] == ids


# IPython without a kernel. %pip says how it is called; HIDE hides the package from the cell.
SHELL = """
import importlib.util, os, sys
from IPython.core.interactiveshell import InteractiveShell
if "HIDE" in os.environ:
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: None if name == "aueditnet" else find(name, *more)
shell = InteractiveShell.instance()
shell.register_magic_function(lambda line: print("pip", line), magic_name="pip")
where, path = os.getcwd(), set(sys.path)
shell.run_cell(sys.stdin.read()).raise_error()
print(os.path.relpath(os.getcwd(), where), [os.path.relpath(p, where) for p in sys.path if p not in path])
"""


def run_cell(name, folder, **env):
    """What the first cell of a notebook does in `folder`: the calls of git and pip, then the folder it is in and what joined sys.path."""
    (folder / "bin").mkdir(exist_ok=True)
    git = folder / "bin" / "git"
    git.write_text(f'#!/bin/sh\necho git "$@"\nmkdir -p course/{name.rpartition("/")[0]}\n')
    git.chmod(0o755)
    env = child_env(IPYTHONDIR=str(folder / "ipython"), **env)
    result = subprocess.run([sys.executable, "-c", SHELL], input=badges.setup(name, CFG), cwd=folder, capture_output=True, text=True,
                            timeout=60, env=env | {"PATH": f"{git.parent}:{env['PATH']}"})
    assert result.returncode == 0, result.stderr
    return result.stdout.split("\n")[:-1]


def test_first_cell_does_nothing_where_the_package_is_installed(tmp_path):
    """Neither in a clone nor elsewhere: no clone, no pip, no other folder."""
    assert run_cell("nbs/01_facs.ipynb", tmp_path) == [". []"]


@pytest.mark.parametrize("name, extras", [("nbs/01_facs.ipynb", "notebooks,photo"), ("nbs/synth/hair.ipynb", "notebooks,heads,measures,photo")])
def test_first_cell_where_the_package_is_missing(name, extras, tmp_path):
    """It clones, installs, and moves into the notebook's folder; after a restart of the kernel it only moves there."""
    folder = f"course/{name.rpartition('/')[0]}"
    said = run_cell(name, tmp_path, HIDE="1")
    assert said == [f"git clone -q --depth 1 {CFG['git_url']} course", f"pip install -q -e './course[{extras}]'", f"{folder} ['course']"]
    assert run_cell(name, tmp_path) == [f"{folder} []"]


# Binder, containers, workflows

EXTRAS = {key.removesuffix("_requirements") for key in CFG if key.endswith("_requirements")} | {"app"}
FILES = [ROOT / ".binder" / "environment.yml", ROOT / "Dockerfile", ROOT / ".devcontainer" / "devcontainer.json", *WORKFLOWS]


def asked_extras(text):
    """The extras of this project that a file installs, as a set for each installation."""
    return [set(extras.split(",")) for extras in re.findall(r"(?:\.|\./course)\[([\w,]+)\]", text)]


@pytest.mark.parametrize("file", [*FILES, ROOT / ".ci" / "run"], ids=lambda file: file.name)
def test_extras_are_those_of_the_settings(file):
    asked = asked_extras(file.read_text())
    assert asked and all(extras <= EXTRAS for extras in asked)
    assert all("lab" in extras and "photo" in extras for extras in asked), "what README's first command installs"


def test_extras_of_the_first_cells():
    assert {extra for nb in RUN for extras in asked_extras(badges.setup(NAMES[notebook_id(nb)], CFG)) for extra in extras} <= EXTRAS


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_index_of_packages_is_named(file):
    assert not re.search(r"index-url|find-links|pypi\.org|download\.pytorch|npmjs", file.read_text())


def version(text):
    return tuple(map(int, text.split(".")))


def test_python_versions():
    """The workflow begins at the lowest version that settings.ini allows; everything else uses one that is tested."""
    matrix = TESTS["strategy"]["matrix"]
    tested = sorted(matrix["python"], key=version)
    assert tested[0] == CFG["min_python"] and {"3.11", "3.12", "3.13"} <= set(tested)
    used = [found for file in FILES for found in re.findall(r"python(?:-version)?[:=] ?\"?(3\.\d+)", file.read_text())]
    assert len(used) >= 5 and set(used) <= set(tested)
    more = {(job["versions"], job["python"]) for job in matrix["include"]}
    assert more == {("lowest", tested[0]), ("newest", tested[-1])}


def test_binder():
    binder = yaml.safe_load((ROOT / ".binder" / "environment.yml").read_text())
    packages = [package for package in binder["dependencies"] if isinstance(package, str)]
    (pip,) = [package["pip"] for package in binder["dependencies"] if isinstance(package, dict)]
    torch = next(word for word in CFG["requirements"].split() if word.startswith("torch"))
    assert torch.replace("torch", "pytorch-cpu") in packages and "pip" in packages
    assert len(pip) == 1 and pip[0].startswith("-e ..[") and (ROOT / ".binder" / ".." / "setup.py").is_file()


def test_dockerfile():
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    user, command = next(line for line in reversed(lines) if line.startswith("USER")), lines[-1]
    assert user != "USER root" and lines.index(user) < next(i for i, line in enumerate(lines) if "pip install" in line)
    served = json.loads(command.removeprefix("CMD "))
    assert served[:2] == ["jupyter", "lab"] and not any(re.search("token|password|allow-root", word) for word in served)
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    assert {".git", ".venv"} <= set(ignored) and not {"data", "nbs", "aueditnet", ".ci", "settings.ini"} & set(ignored)


def test_devcontainer():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())
    install = container["postCreateCommand"].replace(".venv/bin/uv ", ".venv/bin/").replace("-q uv && .venv/bin/pip install ", "")
    assert container["forwardPorts"] == [8888, 8866]
    assert install == (ROOT / ".ci" / "run").read_text().strip().splitlines()[-1].split(" && .venv/bin/python -m pytest")[0]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_workflows(file):
    flow = yaml.safe_load(file.read_text())
    assert flow["permissions"] == {"contents": "read"} and flow["concurrency"]["cancel-in-progress"] is True
    steps = [step for job in flow["jobs"].values() for step in job["steps"]]
    assert all(job["timeout-minutes"] <= 120 for job in flow["jobs"].values())
    assert all(re.fullmatch(r"[\w-]+/[\w/-]+@v\d+", step["uses"]) for step in steps if "uses" in step)
    assert all((ROOT / path).is_file() for step in steps for path in re.findall(r"\.ci/[\w.]+", step.get("run", "")))


def test_workflow_of_tests():
    said = "\n".join(step.get("run", "") for step in TESTS["steps"])
    assert {"ubuntu-latest", "macos-latest"} == set(TESTS["strategy"]["matrix"]["os"])
    assert re.search(r"^nbdev_test\b", said, re.M) and re.search(r"^pytest\b.* tests\b", said, re.M)
    assert all(f"{case})" in said for case in ("pinned", "lowest", "newest"))


def test_workflow_of_the_site():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "docs.yml").read_text())["jobs"]
    order = [step.get("uses", step.get("run")).split("@")[0] for step in jobs["build"]["steps"] if "nbdev" in str(step) or "uses" in step]
    assert [name for name in order if "quarto" in name or "nbdev" in name or "pages" in name] == [
        "quarto-dev/quarto-actions/setup", "nbdev_docs", "actions/configure-pages", "actions/upload-pages-artifact"]
    assert jobs["deploy"]["permissions"] == {"pages": "write", "id-token": "write"} and jobs["deploy"]["needs"] == "build"
    assert jobs["build"]["steps"][-1]["with"]["path"] == CFG["doc_path"]
