"""Student and teacher editions: the exercises of every lesson keep to the format, and both editions run."""
import copy
import json
import re

import nbformat
import pytest
from conftest import NBS, NOTEBOOKS, ROOT, notebook_id
from nbclient import NotebookClient
from typer.testing import CliRunner

from aueditnet import course
from aueditnet.cli import app
from aueditnet.files.errors import InputError

LESSONS = sorted(NBS.glob("[0-9]*.ipynb"))
SMALL = NBS / "01_facs.ipynb"      # a lesson that runs in seconds


def read(file):
    return nbformat.read(file, as_version=4)


def code(source, **metadata):
    return nbformat.v4.new_code_cell(source, metadata=metadata)


def text(source):
    return nbformat.v4.new_markdown_cell(source)


def notebook(*cells):
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    return nbformat.v4.new_notebook(cells=list(cells), metadata=kernel)


def solution(body):
    return code('#| code-fold: true\n#| code-summary: "Solution"\n' + body, jupyter={"source_hidden": True})


def execute(nb, folder, **how):
    done = copy.deepcopy(nb)
    NotebookClient(done, kernel_name="python3", timeout=300, resources={"metadata": {"path": str(folder)}},
                   extra_arguments=["--log-level=ERROR"], **how).execute()
    return done


def failed(nb):
    return [i for i, cell in enumerate(nb.cells) if any(o.output_type == "error" for o in cell.get("outputs", []))]


def checks(nb):
    return [i for i, cell in enumerate(nb.cells) if "raises-exception" in cell.metadata.get("tags", [])]


# the lessons

@pytest.mark.parametrize("file", NOTEBOOKS, ids=notebook_id)
def test_exercises_keep_to_the_format(file):
    assert course.problems(read(file)) == []


@pytest.mark.parametrize("file", LESSONS, ids=notebook_id)
def test_every_lesson_has_exercises(file):
    found = [exercise for _, exercise in course.exercises(read(file))]
    assert len(found) >= (1 if file.stem.startswith("00") else 2)
    assert [exercise.number for exercise in found] == [str(i) for i in range(1, len(found) + 1)]


@pytest.mark.parametrize("file", LESSONS, ids=notebook_id)
def test_every_answer_is_found(file):
    """The student edition takes away as many answers as there are, and nothing else of the text."""
    cells = [cell.source for cell in read(file).cells if cell.cell_type == "markdown"]
    left = "\n".join(cell.source for cell in course.student_edition(read(file)).cells if cell.cell_type == "markdown")
    assert sum(cell.count("<details>") for cell in cells) >= 3 and "<details>" not in left
    assert [line for cell in cells for line in cell.splitlines() if line.startswith("#") and line not in left] == []


@pytest.mark.parametrize("file", NOTEBOOKS, ids=notebook_id)
def test_notebooks_run_outside_the_clone(file):
    """An edition has the notebooks and their pictures; data and weights are found by `files.io.data_dir()`."""
    needed = re.compile(r"""["'](?:\.\./)+(?:data|aueditnet|tests|\.ci|README)""")
    assert [m[0] for cell in read(file).cells if cell.cell_type == "code" for m in needed.finditer(cell.source)] == []


# both editions of the whole course

@pytest.fixture(scope="module")
def editions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("editions")
    result = CliRunner().invoke(app, ["course", "export", "--student", str(folder / "student"), "--teacher", str(folder / "teacher")])
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.stdout.count("00_tour.ipynb") == 2
    return folder


@pytest.mark.parametrize("edition", course.EDITIONS)
def test_all_notebooks_and_pictures_are_there(editions, edition):
    made = editions / edition
    names = {file.relative_to(made).as_posix() for file in made.rglob("*") if file.is_file()}
    absent = {"teaching/instructor.ipynb"} if edition == "student" else set()
    assert {nb.relative_to(NBS).as_posix() for nb in NOTEBOOKS} - absent == {name for name in names if name.endswith(".ipynb")}
    assert {f"images/{f.name}" for f in (NBS / "images").iterdir()} == {name for name in names if not name.endswith(".ipynb")}
    assert {f.name for f in editions.iterdir()} == {"student", "teacher"} and made.stat().st_mode & 0o777 == 0o755


def links(folder):
    """{(notebook, link): whether the link leads somewhere}, of all links to files."""
    return {(file.relative_to(folder).as_posix(), link): (file.parent / link).exists() for file in folder.rglob("*.ipynb") for cell in read(file).cells
            if cell.cell_type == "markdown" for link in re.findall(r"\]\((?!\w+:|#)([^)\s#]+)", cell.source)}


@pytest.mark.parametrize("edition", course.EDITIONS)
def test_links_lead_where_they_did(editions, edition):
    """tests/test_docs.py holds that the links of the lessons themselves work."""
    before, after = links(NBS), links(editions / edition)
    assert len(after) > 50 and [link for link, works in after.items() if not works and before[link]] == []


def test_students_see_no_solution(editions):
    for file in (editions / "student").rglob("*.ipynb"):
        lesson = read(file)
        original = read(NBS / file.relative_to(editions / "student"))
        assert course.exercises(lesson) == [] and len(checks(lesson)) == sum(bool(e.check) for _, e in course.exercises(original))
        assert all(cell.outputs == [] for cell in lesson.cells if cell.source.startswith("# Exercise "))
        assert len({cell.id for cell in lesson.cells}) == len(lesson.cells)
        assert "nbdev_export" not in "".join(cell.source for cell in lesson.cells) or file.name == "course.ipynb"
        nbformat.validate(lesson)


def test_students_have_no_way_to_the_instructors_page(editions):
    """Neither the page nor a link to it; the text of the links stays."""
    texts = {edition: [cell.source for file in (editions / edition).rglob("*.ipynb") for cell in read(file).cells if cell.cell_type == "markdown"]
             for edition in course.EDITIONS}
    linked = lambda edition: sum("instructor.ipynb)" in text for text in texts[edition])
    assert linked("teacher") >= 3 and linked("student") == 0
    assert any("the instructor's page" in text for text in texts["student"])


def test_badges_stay_outside():
    """A badge opens the published notebook, which has the solutions."""
    lesson = notebook(text("# A lesson"), text("[![Open in Colab](badge.svg)](https://example.org)"), text("[![a picture](badge.svg)](x.png) stays"), code("1"))
    for edition in course.EDITIONS.values():
        assert [cell.source for cell in edition(lesson).cells] == ["# A lesson", "[![a picture](badge.svg)](x.png) stays", "1"]


def test_teachers_see_every_solution(editions):
    for file in (editions / "teacher").rglob("*.ipynb"):
        lesson = read(file)
        assert len(course.exercises(lesson)) == len(course.exercises(read(NBS / file.relative_to(editions / "teacher"))))
        assert not any("source_hidden" in str(lesson.cells[i].metadata) for i, _ in course.exercises(lesson))
        nbformat.validate(lesson)


@pytest.mark.parametrize("edition", course.EDITIONS)
def test_a_lesson_runs(editions, edition):
    """Of the student edition the checks fail and nothing else; of the teacher edition nothing."""
    done = execute(read(editions / edition / SMALL.name), editions / edition)
    assert failed(done) == (checks(done) if edition == "student" else [])
    if edition == "student":
        assert len(failed(done)) >= 2
        for i in failed(done):
            [problem] = [o for o in done.cells[i].outputs if o.output_type == "error"]
            assert problem.ename == "NotSolved" and "no answer yet" in problem.evalue and problem.traceback == [problem.evalue]


# the export

def test_dots_for_what_the_check_uses():
    lesson = notebook(text("**1.** task"), solution("a, b = 1, 2\nfor i in range(3): c = i\ndef f(x): return a + x\n# check\nassert f(a) == c"))
    answer, check = course.student_edition(lesson).cells[1:]
    assert answer.source.splitlines() == ["# Exercise 1: your answer", "a = ...", "c = ...", "f = ..."]
    assert check.source == 'from aueditnet import course\nwith course.check("1", a=a, c=c, f=f):\n    assert f(a) == c'
    assert check.metadata.tags == ["raises-exception"]


def test_a_text_over_several_lines_is_not_moved():
    body = 'said = """x\n  y"""\nassert said == """x\n  y""" and answer == 1'
    check = course.student_edition(notebook(text("**1.** task"), solution(f"answer = 1\n# check\n{body}"))).cells[-1].source
    namespace = {"answer": 1}
    exec(check, namespace)
    assert namespace["said"] == "x\n  y"


def test_a_solution_without_check_leaves_an_empty_cell():
    lesson = notebook(text("**2.** discuss"), solution("print('long talk')"))
    assert [cell.source for cell in course.student_edition(lesson).cells] == ["**2.** discuss", "# Exercise 2: your answer"]


def test_the_given_notebook_stays_as_it_is():
    lesson = read(SMALL)
    before = copy.deepcopy(lesson)
    course.student_edition(lesson), course.teacher_edition(lesson)
    assert lesson == before


def test_ids_are_the_same_every_time():
    lesson = read(SMALL)
    assert course.student_edition(lesson) == course.student_edition(lesson)


def test_problems_are_named():
    fine = solution("a = 1\n# check\nassert a == 1")
    assert course.problems(notebook(text("**1.** task"), fine, code("b = 2\n%time b"))) == []
    for body, problem in [("a = 1\nassert a", "no line `# check`"), ("a = 1\n# check\nassert True", "uses no name"), ("a = 1\n# check\n", "no line")]:
        [found] = course.problems(notebook(text("**1.** task"), solution(body)))
        assert problem in found and found.startswith("exercise 1: ")
    assert "later cell uses `a`" in course.problems(notebook(fine, code("print(a)")))[0]
    assert course.problems(notebook(fine, code("a = 3"), code("print(a)"))) == []
    seen = code(fine.source)
    assert "not collapsed in JupyterLab" in course.problems(notebook(seen))[0]


@pytest.mark.parametrize("answers, problem", [({"a": ...}, "no answer yet. Replace the dots after `a`"), ({"a": 2}, "`assert a == 1, 'no'` fails: AssertionError no")])
def test_check_says_what_is_wrong(answers, problem):
    with pytest.raises(course.NotSolved) as failure:
        with course.check("1", **answers):
            a = answers["a"]
            assert a == 1, 'no'
    assert problem in str(failure.value) and failure.value._render_traceback_() == [str(failure.value)]


def test_check_says_what_is_right(capsys):
    with course.check("3", exercise=1):
        pass
    assert capsys.readouterr().out == "Exercise 3: right.\n"


def handed_in(answer, check=None):
    """What a student of a lesson with one exercise hands in, and the lesson."""
    lesson = notebook(text("**1.** task"), solution("a = 1\n# check\nassert a == 1"), code("print(a)"))
    made = course.student_edition(lesson)
    made.cells[1].source = answer
    if check is not None:
        made.cells[2].source = check
    return made, lesson


@pytest.mark.parametrize("answer, check, verdict", [
    ("a = 1", None, "Exercise 1: right."), ("a = 2", None, "Exercise 1: not right yet"), ("a = ...", None, "Exercise 1: no answer yet"),
    ("a = 2", 'with course.check("1"): pass', "Exercise 1: not right yet"), ("a = 1", "", "Exercise 1: its check was deleted."),
    ("a = 2\nprint('Exercise 1: right.')", None, "Exercise 1: not right yet")])
def test_marks(answer, check, verdict):
    """A changed check does not count, nor does a line that looks like one."""
    assert course.marks(*handed_in(answer, check), NBS)["1"].startswith(verdict)


def test_a_stored_verdict_does_not_count():
    """Nor does a tag by which nbclient leaves a cell out."""
    made, lesson = handed_in("a = 2")
    check = made.cells[2]
    check.metadata["tags"] = ["skip-execution"]
    check.outputs = [nbformat.v4.new_output("stream", name="stdout", text="Exercise 1: right.\n")]
    assert course.marks(made, lesson, NBS)["1"].startswith("Exercise 1: not right yet")


@pytest.mark.parametrize("answer, verdict", [("a = 1\nwhile True: pass", "Exercise 1: right."), ("a = 1\nimport os; os._exit(1)", "Exercise 1: the notebook stopped")])
def test_a_notebook_that_hangs_or_dies_is_marked(answer, verdict):
    """A loop over a folder goes on."""
    made, lesson = handed_in(answer)
    assert course.marks(made, lesson, NBS, timeout=4)["1"].startswith(verdict)


def course_command(*words):
    return CliRunner().invoke(app, ["course", "export", *map(str, words)])


def refused(naming, *words):
    result = course_command(*words)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1 and naming in result.stderr, (result.output, result.exception)


def test_bad_folders(tmp_path):
    full, file, empty = tmp_path / "full", tmp_path / "file", tmp_path / "empty"
    full.mkdir(), empty.mkdir()
    (full / "mine.txt").write_text("mine")
    file.write_text("mine")
    refused("full: the folder is not empty", "--student", full)
    refused("file: is a file", "--teacher", file)
    refused("does not exist", "--student", tmp_path / "nowhere" / "students")
    refused("lies among the lessons", "--student", NBS / "students")
    refused("--student", )
    refused("named for both editions", "--student", empty, "--teacher", empty)
    refused("not empty", "--student", empty, "--teacher", full)      # nothing is written before all is checked
    assert [f.name for f in full.iterdir()] == ["mine.txt"] and list(empty.iterdir()) == [] and len(list(tmp_path.iterdir())) == 3


def small_course(folder):
    source = folder / "nbs"
    (source / "room").mkdir(parents=True)
    (source / "images").mkdir()
    (source / ".ipynb_checkpoints").mkdir()
    nbformat.write(notebook(text("# One"), code("1")), source / "one.ipynb")
    nbformat.write(notebook(text("**1.** task"), solution("a = 1\n# check\nassert a == 1")), source / "room" / "two.ipynb")
    nbformat.write(notebook(text("old")), source / ".ipynb_checkpoints" / "one-checkpoint.ipynb")
    (source / "images" / "face.png").write_bytes(b"png")
    (source / "_quarto.yml").symlink_to(ROOT / "_quarto.yml")
    (source / "nbdev.yml").write_text("x: 1")
    return source


def test_an_empty_folder_is_filled(tmp_path):
    source, out = small_course(tmp_path), tmp_path / "out"
    out.mkdir()
    course.export(student=out, source=source)
    assert sorted(f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()) == ["images/face.png", "one.ipynb", "room/two.ipynb"]


@pytest.mark.parametrize("damage", ["{", json.dumps({"nbformat": 4}), None])
def test_an_edition_is_whole_or_absent(tmp_path, damage):
    source, out = small_course(tmp_path), tmp_path / "out"
    if damage is None:
        nbformat.write(notebook(text("**1.** task"), solution("a = (\n# check\nassert a")), source / "room" / "two.ipynb")
    else:
        (source / "room" / "two.ipynb").write_text(damage)
    with pytest.raises(InputError, match="two.ipynb"):
        course.export(student=out, source=source)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["nbs"]
