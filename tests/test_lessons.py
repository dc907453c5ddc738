"""The form of a core lesson, and of every notebook's code: what a reader may rely on."""
import ast
import json
import re

import pytest
from conftest import NBS, NOTEBOOKS, notebook_id

LESSONS = sorted(NBS.glob("[0-9]*.ipynb"))
NAMES = ("tour", "facs", "data", "align", "stylegan2", "recognition", "inversion", "editor", "losses", "training", "evaluation",
         "pipeline", "photo", "explore")
WIDTH = 120


def source(cell):
    return "".join(cell["source"])


def read(notebook):
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def code(cells):
    return [source(c) for c in cells if c["cell_type"] == "code"]


def prose(cells):
    return "\n\n".join(source(c) for c in cells if c["cell_type"] == "markdown")


def test_no_holes_in_the_numbers():
    assert [nb.stem for nb in LESSONS] == [f"{i:02d}_{name}" for i, name in enumerate(NAMES)]
    for i, lesson in enumerate(LESSONS):
        assert source(read(lesson)[0]).startswith(f"# {i}. "), lesson.name
        if i:
            assert f"#| default_exp {NAMES[i]}\n" in "\n".join(code(read(lesson))) + "\n"


@pytest.mark.parametrize("lesson", LESSONS, ids=notebook_id)
def test_parts_of_a_lesson(lesson):
    cells = read(lesson)
    text = prose(cells)
    for part in ("**Goal.**", "**Builds on.**", "**Time.**", "## What was found", "## Check yourself", "## Exercises", "## References", "## Next"):
        assert text.count(part) == 1, part
    assert text.count("<details>") >= 3, "three questions with answers"
    assert re.search(r"\(references\.ipynb#[\w-]+\)", text)
    after = LESSONS[(LESSONS.index(lesson) + 1) % len(LESSONS)]
    assert after.name in text[text.index("## Next"):] or lesson == LESSONS[-1], f"the last words link {after.name}"


@pytest.mark.parametrize("lesson", LESSONS, ids=notebook_id)
def test_hardly_any_hidden_cells_and_no_wide_lines(lesson):
    cells = code(read(lesson))
    assert sum(bool(re.search(r"^#\|\s*hide\b", text, re.M)) for text in cells) <= 4
    assert [line for text in cells for line in text.splitlines() if len(line) > WIDTH] == []


def test_hardly_any_wide_lines_anywhere():
    """Fewer than twenty lines of more than 120 characters in all notebooks together; the package is their export."""
    wide = [f"{notebook_id(nb)}: {line}" for nb in NOTEBOOKS for text in code(read(nb)) for line in text.splitlines()
            if len(line) > WIDTH]
    assert len(wide) < 20, "\n".join(wide)


@pytest.mark.parametrize("notebook", [nb for nb in NOTEBOOKS if nb.parent != NBS and nb.stem != "index"], ids=notebook_id)
def test_opening_of_other_notebooks(notebook):
    text = prose(read(notebook)[:3])
    assert all(part in text for part in ("**Goal.**", "**Builds on.**", "**Time.**"))


# words of our own that a reader could not look up; the field's stand in the glossary
PRIVATE = re.compile(r"\b(HalvesNet|PeopleSet|band_error|so-manieth|wobbl\w+|entangled data|studio|painters?|judges?|judged|exam|duel|rivals?|strangers?)\b", re.I)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=notebook_id)
def test_words_are_the_fields(notebook):
    cells = read(notebook)
    allowed = re.compile(r"\.judge(_b)?\b|`judge(_b)?`|judge=|def judge(_b)?\b|judge_b\b")   # the alias that stays
    found = [m[0] for text in [prose(cells), *code(cells)] for m in PRIVATE.finditer(allowed.sub("", text))]
    assert found == []


def test_imports_of_a_module_stand_in_one_cell():
    """A module begins with one cell of imports, so that a reader sees at once what it is built on."""
    several = {}
    for notebook in NOTEBOOKS:
        cells = [text for text in code(read(notebook)) if re.search(r"^#\|\s*export\b", text, re.M)]
        only = [text for text in cells if all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(text).body)]
        if len(only) > 1:
            several[notebook_id(notebook)] = len(only)
    assert several == {}
