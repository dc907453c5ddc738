"""The sliders in a real browser: served by Voila, and in JupyterLab. Needs chromium; without one the tests are skipped, but never in CI."""
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import nbformat
import pytest
from conftest import child_env

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run"]
SLIDERS = """\
from aueditnet.data import DISFA
from aueditnet.align import neutral_faces
from aueditnet.explore import Explorer
from aueditnet.pipeline import Pipeline
from aueditnet.files.io import data_dir
pipeline = Pipeline.from_pretrained("heads128")
Explorer(pipeline, neutral_faces(DISFA(data_dir() / "synthdisfa"), pipeline.size, pipeline.zoom, ["SN003"]))
"""

if CHROMIUM is None and not os.environ.get("CI"):
    pytest.skip("no chromium on this machine (Debian: apt-get install chromium)", allow_module_level=True)


def test_there_is_a_browser():
    assert CHROMIUM, "CI must have chromium"


@contextmanager
def served(*words, cwd, address, **env):
    """A server process (`python -m ...`, PORT is replaced by a free port), ready when `address` answers; yields 'http://localhost:port'."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    log = open(os.path.join(env["HOME"], "server.log"), "w+")
    server = subprocess.Popen([sys.executable, "-m", *(w.replace("PORT", port) for w in words)], cwd=cwd, env=child_env(**env), stdout=log, stderr=subprocess.STDOUT)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"http://localhost:{port}{address}", timeout=60).close()
                break
            except OSError:
                assert server.poll() is None, log.seek(0) or log.read()
                time.sleep(0.25)
        else:
            log.seek(0)
            raise AssertionError(log.read())
        yield f"http://localhost:{port}"
    finally:
        server.terminate()
        server.wait(20)
        log.close()


@pytest.fixture
def page(tmp_path):
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.set_default_timeout(90_000)
        yield page
        browser.close()


@pytest.fixture
def lessons(project_copy):
    """A copy of nbs/ in a copy of the project, with one more notebook that shows nothing but the sliders."""
    kernel = {"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(SLIDERS)], metadata=kernel), project_copy / "nbs" / "sliders.ipynb")
    return project_copy / "nbs"


def home(tmp_path):
    """Settings of nobody: Jupyter writes its own below this folder."""
    return {"HOME": str(tmp_path), "JUPYTER_CONFIG_DIR": str(tmp_path / "jupyter"), "JUPYTER_DATA_DIR": str(tmp_path / "jupyter"),
            "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"), "IPYTHONDIR": str(tmp_path / "ipython")}


def picture(page, which=-1):
    """The bytes of the edited face (-1) or the given one (0) as the browser shows them."""
    return page.evaluate("""async which => {
        const shown = [...document.querySelectorAll('img.jupyter-widgets, .jupyter-widgets img')].at(which);
        return shown ? Array.from(new Uint8Array(await (await fetch(shown.src)).arrayBuffer())).join() : '' }""", which)


def slide_and_watch(page, au="AU12", presses=20):
    """Move one AU's slider by keyboard; the picture must change, and come back when the slider does."""
    handle = page.locator(".widget-slider, .widget-hslider").filter(has_text=au).first.locator(".noUi-handle").first
    handle.wait_for()
    page.wait_for_function("() => document.querySelector('.jupyter-widgets img, img.jupyter-widgets')?.naturalWidth > 0")
    page.wait_for_timeout(500)
    before = picture(page)
    assert len(before) > 1000
    handle.focus()
    for _ in range(presses):
        page.keyboard.press("ArrowRight")
    moved = before
    for _ in range(600):     # a minute: the machine may be busy
        page.wait_for_timeout(100)
        moved = picture(page)
        if moved != before:
            break
    assert moved != before, f"{au} moved, the picture did not"


@pytest.fixture(scope="module")
def faces():
    """PNG files of two test subjects' face crops."""
    from aueditnet.align import neutral_faces
    from aueditnet.data import DISFA
    from aueditnet.explore import encode_png
    from aueditnet.files.io import data_dir
    return [encode_png(face) for face in neutral_faces(DISFA(data_dir() / "synthdisfa"), 128, 1.25, ["SN004", "SN008"]).values()]


def upload_and_watch(page, faces):
    """Upload two pictures under one name, one after the other; each must be shown."""
    seen = [picture(page, 0)]
    for face in faces:
        with page.expect_file_chooser() as chooser:
            page.locator("button").filter(has_text="your own").click()
        chooser.value.set_files({"name": "me.png", "mimeType": "image/png", "buffer": face})
        for _ in range(600):
            page.wait_for_timeout(100)
            if picture(page, 0) not in seen:
                break
        seen.append(picture(page, 0))
    assert len(set(seen)) == 3, "an uploaded picture is not shown"
    assert page.locator("select").evaluate("s => s.selectedOptions[0].text") == "me.png"


def test_voila_serves_the_sliders(lessons, tmp_path, page, faces):
    with served("voila", "sliders.ipynb", "--no-browser", "--port=PORT", "--Voila.ip=127.0.0.1", cwd=lessons, address="/voila/static/voila.js", **home(tmp_path)) as url:
        page.goto(url)
        slide_and_watch(page)
        upload_and_watch(page, faces)


def run_all(page, widget):
    """Menu Run > Run All Cells until a cell has its number. JupyterLab drops a first request at times."""
    for _ in range(4):
        page.wait_for_timeout(1000)
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_text("Run All Cells", exact=True).click()
        try:
            page.wait_for_function("() => [...document.querySelectorAll('.jp-InputPrompt')].some(p => /\\[\\d+\\]/.test(p.textContent))", timeout=30_000)
            return page.locator(widget).first.wait_for()
        except Exception as late:
            error = late
    raise error


LAB = ("jupyterlab", "--no-browser", "--allow-root", "--port=PORT", "--ip=127.0.0.1", "--IdentityProvider.token=", "--LabApp.news_url=None")


@pytest.mark.parametrize("notebook", ["sliders.ipynb", "00_tour.ipynb", "01_facs.ipynb"])
def test_jupyterlab(notebook, lessons, tmp_path, page):
    with served(*LAB, f"--ServerApp.root_dir={lessons}", cwd=lessons, address="/api", **home(tmp_path)) as url:
        page.goto(f"{url}/lab/tree/{notebook}")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        if notebook == "sliders.ipynb":
            run_all(page, ".widget-slider, .widget-hslider")
            slide_and_watch(page)
        else:
            run_all(page, ".jp-OutputArea-output")
            page.wait_for_function("() => ![...document.querySelectorAll('.jp-InputPrompt')].some(p => p.textContent.includes('*'))",
                                   timeout=180_000)
            assert page.locator("[data-mime-type='application/vnd.jupyter.error']").count() == 0


def test_a_students_notebook_runs_on_below_an_open_exercise(lessons, tmp_path, page):
    """JupyterLab's Run All does not stop at a failing check, and shows one line instead of a traceback."""
    from aueditnet.course import student_edition
    from test_course import code, notebook, solution, text
    made = student_edition(notebook(text("**1.** task"), solution("a = 1\n# check\nassert a == 1"), code("print('below')")))
    nbformat.write(made, lessons / "student.ipynb")
    with served(*LAB, f"--ServerApp.root_dir={lessons}", cwd=lessons, address="/api", **home(tmp_path)) as url:
        page.goto(f"{url}/lab/tree/student.ipynb")
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
        run_all(page, ".jp-OutputArea-output")
        page.get_by_text("below", exact=True).wait_for()
        error = page.locator("[data-mime-type='application/vnd.jupyter.error'], [data-mime-type='application/vnd.jupyter.stderr']").first
        assert error.inner_text().strip() == "Exercise 1: no answer yet. Replace the dots after `a` above, then run both cells."
