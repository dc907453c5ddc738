"""README.md is index.ipynb, its commands are those that CI gives, and every figure stands beside the command that gives it."""
import importlib.util
import re
import subprocess

import pytest
from conftest import NBS, ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^python3 -m venv .*$", README, re.M)

spec = importlib.util.spec_from_file_location("readme", ROOT / ".ci" / "readme.py")
builder = importlib.util.module_from_spec(spec)
spec.loader.exec_module(builder)


def paragraphs(text):
    """Paragraphs and table rows outside code blocks; a table's rows carry its header with them."""
    for block in re.sub(r"^```.*?^```", "", text, flags=re.M | re.S).split("\n\n"):
        lines = block.strip().splitlines()
        if lines and lines[0].startswith("|"):
            yield from (f"{lines[0]}\n{line}" for line in lines[2:])
        elif lines:
            yield block


def test_in_step_with_index():
    assert README == builder.readme(ROOT / "nbs" / "index.ipynb"), "run: python .ci/readme.py"


def test_two_commands_and_ci_gives_the_second():
    assert len(COMMANDS) == 2
    demo, tests = COMMANDS
    assert demo.endswith("aueditnet demo") and "pytest" in tests
    assert (ROOT / ".ci" / "run").read_text().strip().splitlines()[-1] == tests
    for command in COMMANDS:
        assert "-c .ci/constraints.txt" in command and not re.search(r"index-url|find-links", command)


def test_local_links_and_pictures_exist():
    links = re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", README)
    assert any(link.endswith(".png") for link in links) and any(link.endswith(".ipynb") for link in links)
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_every_lesson_is_on_the_path():
    """Every lesson, and the first page of every room; the rooms' own pages list their notebooks."""
    wanted = {nb.name for nb in NBS.glob("[0-9]*.ipynb")} | {f"{room.parent.name}/index.ipynb" for room in NBS.glob("*/index.ipynb")}
    assert wanted <= set(re.findall(r"\(nbs/([\w/]+\.ipynb)\)", README))


@pytest.mark.parametrize("room", sorted(p.parent for p in NBS.glob("*/index.ipynb")), ids=lambda room: room.name)
def test_every_notebook_is_on_its_rooms_page(room):
    text = (room / "index.ipynb").read_text(encoding="utf-8")
    assert {nb.name for nb in room.glob("*.ipynb")} - {"index.ipynb"} == set(re.findall(r"\((\w+\.ipynb)\)", text))


def test_every_figure_has_its_command():
    figure = re.compile(r"(?<!Python )\b\d+\.\d\d|\b\d+ ?(?:dB|MB|GB|ms|s|seconds|minutes|%)(?!\w)")
    bare = [p for p in paragraphs(README) if figure.search(re.sub(r"\]\([^)]*\)", "]", p)) and not re.search(r"`(?:\.ci/run|aueditnet \w+|python [-\w./]+|du )", p)]
    assert bare == []


def test_the_table_is_the_stored_evaluation():
    from aueditnet.files.reports import load_record
    systems = load_record("evaluation")["frames"].systems
    for name in ("no-edit baseline", "AUEditNet", "reconstruction bound", "ground truth"):
        assert f"| {name} | {systems[name]['icc_a'].interval()} |" in README, "run: jupyter execute --inplace nbs/index.ipynb; python .ci/readme.py"


@pytest.mark.parametrize("folder", ["nbs", "data", "aueditnet", "tests", ".ci", "."])
def test_nothing_is_left_to_fill_in(folder):
    mark = "TODO" + "-LEAD"
    files = (ROOT / folder).glob("*") if folder == "." else (ROOT / folder).rglob("*")
    texts = (f for f in files if f.is_file() and f.suffix in (".md", ".ipynb", ".py", ".ini", ".yml", ".txt", ""))
    assert [f.name for f in texts if mark.encode() in f.read_bytes()] == []


def test_constraints_pin_what_settings_ask_for():
    pins = dict(line.split("==") for line in (ROOT / ".ci" / "constraints.txt").read_text().splitlines() if line and not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    assert all(re.fullmatch(r"[a-z0-9.-]+", name) and re.fullmatch(r"[0-9a-z.]+", version) for name, version in pins.items())
    settings = (ROOT / "settings.ini").read_text()
    asked = [re.split(r"[<>=]", word)[0] for line in re.findall(r"requirements = (.*)", settings) for word in line.split()]
    assert [name for name in asked if name.lower() not in pins] == []


def test_shell_script_is_valid():
    assert subprocess.run(["bash", "-n", ROOT / ".ci" / "run"]).returncode == 0
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100
