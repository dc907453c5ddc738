"""The pages in a real browser, at the width of a phone and of a desktop, light and dark: menu, search, sliders, figures, axe's rules of accessibility."""
import re

import pytest
from conftest import ROOT, run_python
from test_browser import CHROMIUM, FLAGS

PAGES = ("index", "tour", "photo", "glossary", "files/io")
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "pages"
    result = run_python(ROOT / ".ci" / "build_site.py", "-o", folder, cwd=ROOT, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    return folder


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, site):
    """A function that opens a page as a file, without a server; whatever goes wrong on it, or is fetched from elsewhere, is an error."""
    contexts, problems = [], []

    def open_page(name, size="desktop", theme="light", script=True):
        width, height = SIZES[size]
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme, java_script_enabled=script)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: problems.append(request.url) if not re.match(r"file:|data:", request.url) else None)
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.goto((site / f"{name}.html").as_uri())
        return page
    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def background(page):
    return page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).map(Number)")


def test_nothing_is_wider_than_the_window(opened, site):
    """Tables, code and formulas scroll inside; words and pictures fit: every page on a phone, every sixth on a desktop too."""
    page, wide = opened("index", "phone"), []
    files = sorted(site.rglob("*.html"))
    for files, size in ((files, "phone"), (files[::6], "desktop")):
        page.set_viewport_size(dict(zip(("width", "height"), SIZES[size])))
        for file in files:
            page.goto(file.as_uri(), wait_until="domcontentloaded")
            if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
                wide.append((size, file.relative_to(site).as_posix()))
    assert wide == []


def test_lines_are_short_enough_to_read(opened):
    """About 75 characters on a desktop, and all of the phone's width."""
    characters = """() => { const p = [...document.querySelectorAll("main > p")].sort((a, b) => b.textContent.length - a.textContent.length)[0];
        return p.textContent.length / (p.getBoundingClientRect().height / parseFloat(getComputedStyle(p).lineHeight)); }"""
    assert 60 < opened("editor").evaluate(characters) < 90
    assert 30 < opened("editor", "phone").evaluate(characters) < 60


def test_menu(opened):
    page = opened("editor", "phone")
    current = page.locator("nav a[aria-current=page]")
    assert not current.is_visible()
    page.get_by_role("button", name="Menu").click()
    assert current.is_visible() and current.inner_text() == "7. Editor"
    section = page.locator("summary", has_text="Baselines")
    link = page.locator("nav a[href='baselines/latent_editors.html']")
    assert not link.is_visible()
    section.click()
    link.click()
    page.wait_for_url("**/baselines/latent_editors.html")
    assert not opened("editor").get_by_role("button", name="Menu").is_visible()


def test_dark_mode_follows_the_system_until_the_reader_chooses(opened):
    page = opened("index", theme="dark")
    assert max(background(page)) < 60
    page.get_by_role("button", name="Switch to light colours").click()
    assert min(background(page)) > 230
    page.get_by_role("link", name="0. Tour").first.click()
    page.wait_for_url("**/tour.html")
    assert min(background(page)) > 230, "the choice is remembered"
    assert min(background(opened("index"))) > 230
    assert max(background(opened("index", theme="dark", script=False))) < 60


def test_search(opened):
    page = opened("files/io", "phone")
    page.keyboard.press("/")
    page.keyboard.type("demodul")
    page.locator("#site-results a").first.wait_for()
    assert "stylegan2.html" in page.locator("#site-results a").first.get_attribute("href")
    page.keyboard.type("xyz")
    page.get_by_text("Nothing found.").wait_for()
    page.get_by_label("Search").fill("two branches source")
    page.locator("#site-results a", has_text="Two branches").first.click()
    page.wait_for_url("**/editor.html#two-branches")
    assert page.locator("#two-branches").evaluate("h => { const y = h.getBoundingClientRect().top; return 0 <= y && y < innerHeight / 2; }")


def test_search_by_keyboard_with_any_text(opened):
    page = opened("tour")
    search, results = page.get_by_label("Search"), page.locator("#site-results")
    for text in ("<script>alert(1)</script>", "[a-z", "\\", "$&", ".*"):
        search.fill(text)
        page.get_by_text("Nothing found.").wait_for()
    search.fill("binder")       # the badges of the notebooks are no text of theirs
    results.locator("a").first.wait_for()
    assert results.locator("a").count() < 10
    search.fill("au")
    page.get_by_text(re.compile("^\\d+ sections, the first 20$")).wait_for()
    address = page.url
    search.fill("  ")
    page.keyboard.press("Enter")        # nothing is asked, and nothing is opened
    search.fill("au")
    for _ in range(results.locator("a").count()):
        page.keyboard.press("Tab")
        assert results.is_visible() and page.evaluate("document.activeElement.closest('#site-results') !== null")
    page.keyboard.press("Tab")          # past the last result: the page is free again
    assert results.is_hidden() and page.url == address


def test_an_address_that_was_cut(opened):
    page = opened("tour")
    page.goto(page.url + "#%E0%A4%A")
    page.reload()
    assert page.locator("h1").is_visible()


@pytest.mark.parametrize("size", SIZES)
def test_sliders(opened, size):
    """Each AU and each value shows its own part of the sheet; the keyboard moves the slider."""
    page = opened("index", size)
    picture, slider = page.locator(".strip-picture"), page.get_by_label("Intensity", exact=True)
    assert picture.get_attribute("aria-label") == "A rendered face with AU12 lip corner puller at intensity 3"
    before = picture.screenshot()
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowRight")
    assert picture.get_attribute("aria-label").endswith("intensity 5") and page.locator(".strip output").inner_text() == "5.0"
    smile = picture.screenshot()
    assert smile != before
    page.get_by_label("Action unit").select_option(label="AU26 jaw drop")
    assert picture.screenshot() != smile and "AU26 jaw drop at intensity 5" in picture.get_attribute("aria-label")
    unit, value = page.locator(".strip select"), page.locator(".strip input")
    corners = set()
    for au, intensity in ((0, 0), (0, 5), (11, 0), (11, 5)):
        unit.select_option(str(au))
        value.fill(str(intensity))
        corners.add(picture.evaluate("p => getComputedStyle(p).backgroundPosition"))
    assert corners == {"0% 0%", "100% 0%", "0% 100%", "100% 100%"}
    box = picture.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= SIZES[size][0]


QUARTO = """<html><head><meta name="quarto:offset" content="./"></head><body class="quarto-light"><main>
<h2 id="sliders">Sliders</h2><div class="cell"><pre><code class="sourceCode python">explorer = Explorer(pipe, faces)</code></pre>
<script type="application/vnd.jupyter.widget-view+json">{"model_id": "1"}</script></div>
<div class="cell"><pre>training()</pre><script type="application/vnd.jupyter.widget-view+json">{"model_id": "2"}</script></div>
<h2>Below</h2><a class="lightbox" href="images/demo.png"><img src="images/demo.png" height="9999"></a>
<pre>class FaceModel:
    def edit(self): pass</pre></main>SCRIPT</body></html>"""


def test_script_on_a_page_like_quartos(opened, site):
    """The panel becomes sliders, pictures get an alternative text, and a link to a name leads to the cell that defines it."""
    (site / "quarto-like.html").write_text(QUARTO.replace("SCRIPT", (ROOT / "nbs" / "site.html").read_text()))
    page = opened("quarto-like")
    assert page.locator(".strip").count() == 1 and page.locator("h2#sliders ~ .cell .strip").count() == 1
    page.get_by_role("slider").fill("0")
    assert page.locator(".strip output").inner_text() == "0.0"
    assert page.locator("a.lightbox img").get_attribute("alt") == "Figure: Below"
    page.goto("about:blank")
    page.goto((site / "quarto-like.html").as_uri() + "#facemodel.edit")
    assert page.evaluate("scrollY") > 1000
    (site / "quarto-like.html").unlink()


def test_the_panel_of_the_tour_is_shown_as_sliders(opened):
    page = opened("tour")
    page.get_by_role("slider").fill("5")
    assert "intensity 5" in page.locator(".strip-picture").get_attribute("aria-label")


def test_without_a_script_the_sheet_and_the_figures_are_there(opened):
    page = opened("index", script=False)
    assert page.locator("main img[src*='strip.webp']").is_visible() and page.locator(".strip").count() == 0
    page = opened("tour", script=False)
    page.locator("a.enlarge").first.click()
    page.wait_for_url(re.compile(r"tour/figure-1\.(png|jpeg)$"))


def test_figures_enlarge_and_close(opened):
    """By a click and by the keyboard; the caption stays below, and Escape leads back to where one was."""
    page = opened("stylegan2", "desktop")
    dialog, link = page.locator("dialog"), page.locator("figure a.enlarge").first
    small = link.locator("img").bounding_box()["width"]
    link.click()
    assert dialog.is_visible() and dialog.locator("img").evaluate("i => i.complete || i.decode().then(() => true)")
    assert dialog.locator("img").bounding_box()["width"] > small
    assert dialog.locator("p").inner_text() == page.locator("figure figcaption").first.inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible() and link.evaluate("l => l === document.activeElement")
    page.keyboard.press("Enter")
    assert dialog.is_visible()
    page.get_by_role("button", name="Close").click()
    assert not dialog.is_visible()


def test_what_scrolls_can_be_reached_by_keyboard(opened):
    page = opened("stylegan2", "phone")
    boxes = page.evaluate("""[...document.querySelectorAll("main *")].filter(e => e.scrollWidth > e.clientWidth + 1
        && getComputedStyle(e).overflowX === "auto").map(e => e.tabIndex)""")
    assert len(boxes) > 3 and set(boxes) == {0}


@pytest.mark.parametrize("name", PAGES)
def test_accessibility(opened, name):
    """axe finds nothing serious or critical, light and dark, with search results shown and all answers unfolded."""
    from axe_playwright_python.sync_playwright import Axe
    page, found = opened(name), {}
    page.get_by_label("Search").fill("lip corner")
    page.locator("#site-results a").first.wait_for()
    page.evaluate("document.querySelectorAll('main details').forEach(d => { d.open = true; })")
    for theme, rules in (("light", {}), ("dark", {"runOnly": {"type": "rule", "values": ["color-contrast"]}})):   # others know no theme
        assert (max(background(page)) < 60) == (theme == "dark")
        found[theme] = Axe().run(page, options={"preload": False, "resultTypes": ["violations"], **rules}).response["violations"]
        page.get_by_role("button", name="Switch to").click()
    print(name, {theme: [(v["impact"], v["id"], len(v["nodes"])) for v in violations] for theme, violations in found.items()})
    serious = [(theme, v["id"], v["nodes"][0]["html"][:300]) for theme, all_ in found.items() for v in all_ if v["impact"] in ("serious", "critical")]
    assert serious == []


def test_accessibility_of_the_menu_on_a_phone(opened):
    from axe_playwright_python.sync_playwright import Axe
    page = opened("files/errors", "phone", theme="dark")
    page.get_by_role("button", name="Menu").click()
    violations = Axe().run(page, options={"preload": False, "resultTypes": ["violations"]}).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"][:300]) for v in violations if v["impact"] in ("serious", "critical")] == []
