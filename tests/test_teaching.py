"""The room for those who teach: minutes are those of the lessons, messages those of the code, links lead somewhere, slides fit a screen."""
import re
import shutil

import nbformat
import pytest
from conftest import NBS, notebook_id
from nbclient import NotebookClient

from aueditnet import course

ROOM = NBS / "teaching"
PAGES = sorted(ROOM.glob("*.ipynb"))
LESSONS = {nb.name: nbformat.read(nb, as_version=4) for nb in sorted(NBS.glob("[0-9]*.ipynb"))}
LECTURES = ("lecture_1", "lecture_2")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def read(name):
    return nbformat.read(ROOM / f"{name}.ipynb", as_version=4)


def prose(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def shown(notebook):
    """The text of all outputs: what is printed, and Markdown."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/markdown", "") for output in outputs)


def minutes(lesson):
    """Minutes to read, as the lesson's first cells say."""
    return int(re.search(r"\*\*Time\.\*\* [Aa]bout (\d+) minutes to read", prose(LESSONS[lesson]))[1])


def table(text):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")]


# plans

def test_module_plan_has_the_minutes_of_the_lessons():
    rows = table(shown(read("module_plan")))
    weeks = [row for row in rows if row[0].isdigit()]
    stated = [(name, int(n)) for row in weeks for name, n in re.findall(r"\]\(\.\./([\w.]+)\) \((\d+)\)", row[1])]
    assert dict(stated) == {name: minutes(name) for name in LESSONS} and len(stated) == len(LESSONS), "run nbs/teaching/module_plan.ipynb again"
    assert [row[0] for row in weeks] == list("123456")
    for row in weeks:
        of_lessons = re.findall(r"\) \((\d+)\)", row[1])
        assert row[2] == f"{sum(map(int, of_lessons))} min"
    [total] = [row for row in rows if row[0] == "all"]
    assert total[2] == f"{sum(map(minutes, LESSONS))} min"
    assert int(total[5]) == sum(len(course.exercises(lesson)) for lesson in LESSONS.values())
    assert int(total[4]) == sum(prose(lesson).count("<summary>Answer</summary>") for lesson in LESSONS.values())


def test_every_week_says_all_that_a_teacher_needs():
    text = prose(read("module_plan"))
    weeks = re.split(r"^## Week \d: .*$", text, flags=re.M)[1:]
    assert len(weeks) == 6
    for week in weeks:
        assert all(week.count(part) == 1 for part in ("**Class.**", "**Goals.**", "**Hand in.**", "*Task:*", "Full points", "**Discuss.**"))


def points(text, head):
    rows = table(text[text.index(head):].split("\n\n")[0])
    return [int(row[1]) for row in rows if row[1].isdigit()]


def test_points_add_up():
    plan, brief = prose(read("module_plan")), prose(read("project_brief"))
    of_all, of_week, of_project = points(plan, "| what | points"), points(plan, "| part | points"), points(brief, "| criterion | points")
    assert sum(of_all) == 100 and of_all[0] == 6 * sum(of_week)
    assert sum(of_project) == of_all[2] and f"{sum(of_project)} points in all" in brief


def test_workshop_fills_the_afternoon():
    rows = [row for row in table(shown(read("workshop"))) if re.match(r"\d+:\d\d", row[0])]
    starts = [60 * int(hour) + int(minute) for hour, minute in (row[0].split(":") for row in rows)]
    assert (starts[0], starts[-1]) == (13 * 60, 17 * 60)
    assert [b - a for a, b in zip(starts, starts[1:])] == [int(row[1]) for row in rows[:-1]]
    lessons = {name: int(row[1]) for row in rows for name in re.findall(r"\]\(\.\./([\w.]+)\)", row[2])}
    assert len(lessons) >= 3 and all(minutes(name) <= slot for name, slot in lessons.items())


def anchors(file):
    """Places that a link may name: explicit ones, and headings as Quarto and nbconvert name them."""
    text = prose(nbformat.read(file, as_version=4))
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return set(re.findall(r'<a id="([\w-]+)"', text)) | {re.sub(r"[^\w-]", "", heading.lower().replace(" ", "-")) for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=notebook_id)
def test_links_resolve(page):
    notebook = nbformat.read(page, as_version=4)
    links = re.findall(r"\]\((?!\w+:)([^)\s#]*)(?:#([\w.-]+))?\)", prose(notebook) + shown(notebook))
    assert links
    for file, place in links:
        target = (ROOM / file).resolve() if file else page
        assert target.exists(), file
        assert not place or target.suffix != ".ipynb" or place in anchors(target), f"{file}#{place}"


# answers

def test_instructors_page_has_every_answer():
    """Its outputs hold the questions, answers and solutions that the lessons have now."""
    squeeze = lambda text: " ".join(text.split())
    page = squeeze(shown(read("instructor")))
    answers = [squeeze(text) for lesson in LESSONS.values()
               for text in re.findall(r"<summary>Answer</summary>(.*?)</details>", prose(lesson), re.S)]
    solutions = [squeeze(exercise.solution) for lesson in LESSONS.values() for _, exercise in course.exercises(lesson)]
    assert len(answers) >= 42 and len(solutions) >= 28
    inside = lambda text: re.sub(r"\]\((?!\w+:|#)(?:\./)?", "](../", text) in page
    assert [text[:60] for text in answers + solutions if not inside(text)] == [], "run nbs/teaching/instructor.ipynb again"


def test_every_question_and_exercise_has_a_wrong_answer():
    text = prose(read("instructor"))
    parts = re.split(r"^## (\d+)\. ", text, flags=re.M)[1:]
    found = {int(number): table(part) for number, part in zip(parts[::2], parts[1::2])}
    assert sorted(found) == list(range(len(LESSONS)))
    for number, lesson in enumerate(LESSONS.values()):
        names = {row[0] for row in found[number]}
        wanted = {f"question {k}" for k in (1, 2, 3)} | {f"exercise {exercise.number}" for _, exercise in course.exercises(lesson)}
        assert wanted <= names, f"lesson {number}: {wanted - names}"


# mistakes

OURS = re.compile(r"^    ((?:aueditnet|InputError|NotSolved|PhotoExtraMissing): .+)$", re.M)


def test_messages_are_those_of_the_code():
    """The page is run again and its messages, as far as they are this project's, are compared with the stored ones."""
    stored = read("common_mistakes")
    again = nbformat.read(ROOM / "common_mistakes.ipynb", as_version=4)
    NotebookClient(again, kernel_name="python3", timeout=120, resources={"metadata": {"path": str(ROOM)}}, extra_arguments=["--log-level=ERROR"]).execute()
    assert OURS.findall(shown(again)) == OURS.findall(shown(stored)), "run nbs/teaching/common_mistakes.ipynb again"
    assert len(OURS.findall(shown(stored))) >= 20
    numbers = re.findall(r"^\*\*(\d+)\.\*\* `", shown(stored), re.M)
    assert numbers == [str(i) for i in range(1, len(numbers) + 1)]
    for area in ("Installation", "Kernels", "Requests", "Faces", "Data", "Training", "memory"):
        assert re.search(rf"^## .*{area}", prose(stored), re.M)


# slides

def export(name):
    from nbconvert import SlidesExporter
    from traitlets.config import Config
    config = Config({"SlidesExporter": {"exclude_input": True, "reveal_url_prefix": "reveal.js", "reveal_width": "1280", "reveal_height": "720"}})
    return SlidesExporter(config=config).from_filename(str(ROOM / f"{name}.ipynb"))[0]


def kinds(name):
    return [cell.metadata.get("slideshow", {}).get("slide_type") for cell in read(name).cells]


@pytest.mark.parametrize("name", LECTURES)
def test_a_slide_has_one_heading_and_notes(name):
    slides, headings = [], []
    for cell, kind in zip(read(name).cells, kinds(name)):
        assert kind in ("slide", "notes", "skip", "-"), f"no slide type: {cell.source[:40]}"
        if kind == "slide":
            slides.append([])
            headings += re.findall(r"^## (.+)$", cell.source, re.M)
        if slides:
            slides[-1].append(kind)
    assert 15 <= len(slides) <= 22 and len(headings) == len(set(headings)) == len(slides)
    assert all(slide[-1] == "notes" and slide.count("notes") == 1 for slide in slides)


def test_both_lectures_have_one_style():
    first, second = (re.search(r"<style>.*?</style>", prose(read(name)), re.S)[0] for name in LECTURES)
    assert first == second


# what reveal.js does to the size of a slide: a box of the configured width, one after the other
BOX = ".reveal .slides section {display: block; position: relative; width: 1280px; font-size: 40px; line-height: 1.3;} .notes {display: none;}"
MEASURE = """() => [...document.querySelectorAll('.slides > section')].map(slide => {
    const box = slide.getBoundingClientRect();
    const inner = [...slide.querySelectorAll('h2, p, li, td, img, pre')].filter(e => !e.closest('aside')).map(e => e.getBoundingClientRect());
    return [slide.querySelector('h2').innerText, Math.max(...inner.map(r => r.bottom)) - box.top, Math.max(...inner.map(r => r.right)) - box.left];
})"""


def sizes(html, folder):
    """Heading, height and width of each slide in a window of 1280x720, without network."""
    from playwright.sync_api import sync_playwright
    (folder / "slides.html").write_text(html)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.route("**/*", lambda route: route.continue_() if route.request.url.endswith("slides.html") else route.abort())
        page.goto((folder / "slides.html").as_uri(), wait_until="domcontentloaded")
        page.add_style_tag(content=BOX)
        page.wait_for_function("() => [...document.images].every(image => image.complete)")
        measured = page.evaluate(MEASURE)
        browser.close()
    return measured


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)")
@pytest.mark.parametrize("name", LECTURES)
def test_slides_are_exported_and_fit_the_screen(name, tmp_path):
    html = export(name)
    assert "Pipeline" not in re.sub(r"<[^>]+>", "", html), "code on a slide"
    assert html.count('class="notes"') == kinds(name).count("notes")
    measured = sizes(html, tmp_path)
    assert len(measured) == kinds(name).count("slide")
    assert [slide for slide in measured if slide[1] > 720 or slide[2] > 1280] == []


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt-get install chromium)")
def test_a_slide_that_is_too_long_is_noticed(tmp_path):
    html = export("lecture_1").replace("</h2>", "</h2>" + "<p>one more line</p>" * 20, 1)
    assert [slide for slide in sizes(html, tmp_path) if slide[1] > 720]
