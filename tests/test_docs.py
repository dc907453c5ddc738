"""The pages as `.ci/build_site.py` writes them without Quarto: links, pictures, places, search, captions, and no request to another host."""
import importlib.util
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from conftest import NBS, NOTEBOOKS, ROOT, run_python
from PIL import Image

NAMES = [nb.relative_to(NBS).as_posix() for nb in NOTEBOOKS]
VOID = {"meta", "link", "img", "input", "br", "hr", "source", "wbr"}


class Parsed(HTMLParser):
    "A page: its tags with their attributes, its ids, and the text of headings, captions and everything outside of code."
    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.text, self.inside, self.texts = [], set(), [], [], {}
        self.feed(text)
        self.prose = " ".join(" ".join(self.text).split())

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.append((tag, attributes, tuple(self.inside)))
        self.ids |= {attributes["id"]} if "id" in attributes else set()
        if tag not in VOID:
            self.inside.append(tag)

    def handle_endtag(self, tag):
        if tag in self.inside:
            while self.inside.pop() != tag:
                pass

    def handle_data(self, data):
        if self.inside and data.strip():
            self.texts.setdefault(self.inside[-1], []).append(data.strip())
        if not {"pre", "code", "script", "style", "math", "nav"} & set(self.inside):
            self.text.append(data)

    def all(self, name):
        return [attributes for tag, attributes, _ in self.tags if tag == name]


def addresses(page):
    for tag, attributes, _ in page.tags:
        for name in ("href", "src"):
            if name in attributes:
                yield tag, attributes[name]


def broken(pages, folder):
    "(links that were followed, those that lead nowhere) of {address: Parsed}, addresses below `folder`."
    seen, wrong = 0, []
    for name, page in pages.items():
        for _, address in addresses(page):
            if re.match(r"(?:https?|mailto|data):", address):
                continue
            seen += 1
            file, _, place = unquote(address).partition("#")
            target = (folder / name).parent / file if file else folder / name
            known = pages.get(target.resolve().relative_to(folder.resolve()).as_posix()) if target.is_file() else None
            if not target.is_file() or place and (known is None or place not in known.ids):
                wrong.append(f"{name}: {address}")
    return seen, wrong


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    "{address: Parsed} of the pages, and the folder that they stand in."
    folder = tmp_path_factory.mktemp("docs") / "site"
    result = run_python(ROOT / ".ci" / "build_site.py", "-o", folder, cwd=ROOT, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    assert result.stdout.startswith(f"{len(NAMES)} pages")
    files = sorted(folder.rglob("*.html"))
    return {file.relative_to(folder).as_posix(): Parsed(file.read_text(encoding="utf-8")) for file in files}, folder


@pytest.fixture(scope="module")
def index(site):
    text = (site[1] / "search-index.js").read_text(encoding="utf-8")
    return json.loads(text.removeprefix("window.searchIndex = ").rstrip().removesuffix(";"))


def order():
    settings = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    return [page for entry in settings["website"]["sidebar"]["contents"] for page in (entry["contents"] if isinstance(entry, dict) else [entry])]


def heading(name):
    return re.match(r"# (.+)", "".join(json.loads((NBS / name).read_text())["cells"][0]["source"]))[1].replace("`", "")


def test_sidebar_lists_every_notebook():
    assert (ROOT / "nbs" / "_quarto.yml").is_symlink() and (ROOT / "nbs" / "_quarto.yml").resolve() == ROOT / "_quarto.yml"
    settings = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    assert sorted(order()) == sorted(NAMES)
    form = settings["format"]["html"]
    assert (NBS / form["css"]).is_file() and (NBS / form["include-after-body"]).is_file()
    assert all((NBS / extra).is_file() for extra in settings["metadata-files"])


def test_every_notebook_has_a_page(site):
    pages, _ = site
    titles = {" ".join(page.texts["h1"]).replace("`", "") for page in pages.values()}
    assert len(pages) == len(NAMES) and titles >= {heading(name) for name in NAMES}


def test_form_of_a_page(site):
    for name, page in site[0].items():
        assert page.all("html") == [{"lang": "en"}] and page.texts["title"][0] and len(page.all("h1")) == 1, name
        assert any("viewport" == m.get("name") for m in page.all("meta")), name
        levels = [int(tag[1]) for tag, _, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
        assert levels[0] == 1 and all(b <= a + 1 for a, b in zip(levels, levels[1:])), (name, levels)
        assert len([m for m in page.tags if "id" in m[1]]) == len(page.ids), f"{name}: an id twice"


def test_code_of_exported_cells_is_shown_and_hidden_cells_are_not(site):
    pages, folder = site
    texts = {name: (folder / name).read_text(encoding="utf-8") for name in pages}
    code = {name: [re.sub(r"<[^>]+>", "", cell) for cell in re.findall(r'<div class="sourceCode python">(.*?)</pre>', text, re.S)] for name, text in texts.items()}
    assert any("class AUEditNet(" in cell for cell in code["editor.html"]) and "aueditnet" in pages["editor.html"].ids
    assert sum(map(len, code.values())) > 1000
    assert [(name, cell) for name, cells in code.items() for cell in cells if cell.startswith("#|") or "nbdev_export()" in cell] == []


def test_links_pictures_and_places(site):
    pages, folder = site
    seen, wrong = broken(pages, folder)
    print(f"{len(pages)} pages, {seen} links and pictures, {len(wrong)} broken")
    assert seen > 100 * len(pages) and wrong == []


def test_the_check_of_links_finds_what_is_broken(tmp_path):
    text = '<a href="b.html#here">1</a> <a href="#there">2</a> <a href="c.html">3</a> <img src="d.png"> <a href="b.html">4</a> <i id="x"></i><a href="#x">5</a>'
    for name in ("a.html", "b.html"):
        (tmp_path / name).write_text(text)
    pages = {"a.html": Parsed(text), "b.html": Parsed("<p></p>")}
    assert broken(pages, tmp_path) == (6, ["a.html: b.html#here", "a.html: #there", "a.html: c.html", "a.html: d.png"])


def test_no_request_to_another_host(site):
    pages, folder = site
    for name, page in pages.items():
        assert [a for tag, a in addresses(page) if tag != "a" and re.match(r"(https?:)?//", a)] == [], name
        assert not any("srcset" in attributes or "http-equiv" in attributes for _, attributes, _ in page.tags), name
    for file in (*folder.glob("*.css"), *folder.glob("*.js")):
        if file.name != "search-index.js":
            assert not re.search(r"https?://|url\(['\"]?//|@import", file.read_text()), file.name


def test_pages_follow_one_another(site):
    """`next` leads from the first page of the sidebar through all pages; `previous` leads back."""
    pages, folder = site
    link = lambda name, rel: [a["href"] for a in pages[name].all("a") if a.get("rel") == rel]
    walked, name = [], "index.html"
    while name:
        walked.append(name)
        after = link(name, "next")
        following = (folder / name).parent.joinpath(after[0]).resolve().relative_to(folder.resolve()).as_posix() if after else None
        if following:
            back = (folder / following).parent.joinpath(link(following, "prev")[0]).resolve()
            assert back == (folder / name).resolve()
        name = following
    assert [" ".join(pages[name].texts["h1"]).replace("`", "") for name in walked] == [heading(name) for name in order()]
    assert set(walked) == set(pages)


def test_figures_have_alternative_texts(site):
    pages, _ = site
    pictures = [(name, a, inside) for name, page in pages.items() for tag, a, inside in page.tags if tag == "img" and "dialog" not in inside]
    assert len(pictures) > 190
    assert [(name, a["src"]) for name, a, _ in pictures if len(a.get("alt", "").split()) < 3] == []
    assert all(a["width"].isdigit() and a["height"].isdigit() for _, a, _ in pictures), "without them the page jumps while it loads"


@pytest.mark.parametrize("lesson", sorted(NBS.glob("[0-9]*.ipynb")), ids=lambda nb: nb.stem)
def test_figures_of_lessons_have_captions(lesson):
    """A caption and, unless several pictures of a cell have one caption each, an alternative text that is not the caption again."""
    for i, cell in enumerate(json.loads(lesson.read_text(encoding="utf-8"))["cells"]):
        pictures = sum(bool({"image/png", "image/jpeg"} & set(o.get("data", {}))) for o in cell.get("outputs", []))
        if not pictures:
            continue
        options = dict(re.findall(r"^#\| *(fig-\w+): *(.+)$", "".join(cell["source"]), re.M))
        caption, alt = (yaml.safe_load(options.get(key, "null")) for key in ("fig-cap", "fig-alt"))
        if pictures == 1:
            assert isinstance(caption, str) and isinstance(alt, str) and caption != alt, f"cell {i}"
        else:
            assert isinstance(caption, list) and len(caption) == pictures, f"cell {i}"


def test_search_finds(site, index):
    pages, _ = site
    assert {entry["url"].partition("#")[0] for entry in index} == set(pages), "every page is in the index"
    for entry in index:
        file, _, place = entry["url"].partition("#")
        assert not place or place in pages[file].ids, entry["url"]
    find = lambda words: {entry["url"] for entry in index if all(word in f"{entry['page']} {entry['heading']} {entry['text']}".lower() for word in words.split())}
    assert "editor.html#two-branches" in find("source branch embedding")
    assert "stylegan2.html" in {url.partition("#")[0] for url in find("demodulation")}
    assert "glossary.html" in {url.partition("#")[0] for url in find("charbonnier penalty")}
    assert any(url.startswith("editor.html") for url in find("ridge_directions")), "names that a page defines"


def test_formulas(site):
    """Formulas are MathML: as many as the notebooks have, and no dollar sign is left."""
    pages, _ = site
    assert sum(len(page.all("math")) for page in pages.values()) > 300
    for name, page in pages.items():
        assert not re.search(r"\$[^$]*[\\_^{][^$]*\$|\\(?:frac|mathrm|text|sum|tfrac)\b", page.prose), name


def test_terms_of_the_glossary_are_explained_where_they_are_linked(site):
    terms = [a for page in site[0].values() for a in page.all("a") if "glossary.html#" in a.get("href", "") and a.get("class") == "term"]
    assert len(terms) > 40 and all(len(a["title"].split()) > 4 for a in terms)


def test_sheet_of_the_sliders():
    """One picture for each AU and half an intensity, in the order that the script on the page names."""
    from aueditnet.facs import AUS, NAMES as names
    script = (NBS / "site.html").read_text()
    units = json.loads(re.search(r"const units = (\[.*?\]);", script, re.S)[1])
    assert units == [f"{au} {names[au]}" for au in AUS]
    with Image.open(NBS / "images" / "strip.webp") as sheet:
        assert sheet.size == (11 * 128, 12 * 128)
    assert Path(NBS / "images" / "strip.webp").stat().st_size < 600_000


def test_what_quarto_gets(project_copy):
    """nbdev prepares the notebooks for Quarto as for the builder here; captions, the script and the pictures of the sliders are among them."""
    script = project_copy / "process.py"
    script.write_text("if __name__ == '__main__':\n    from nbdev.serve import proc_nbs; proc_nbs(n_workers=2, force=True)\n")
    result = run_python(script, cwd=project_copy, timeout=200)
    assert result.returncode == 0, result.stderr[-4000:]
    folder = project_copy / "_proc"
    assert sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*.ipynb")) == sorted(NAMES)
    assert {"_quarto.yml", "nbdev.yml", "styles.css", "site.html", "images/strip.webp"} <= {f.relative_to(folder).as_posix() for f in folder.rglob("*")}
    for name in NAMES:
        before, after = ((place / name).read_text(encoding="utf-8").count("#| fig-") for place in (NBS, folder))
        assert before == after, name
    cells = json.loads((folder / "07_editor.ipynb").read_text())["cells"]
    assert "output-file: editor.html" in "".join(cells[0]["source"]) and any("class AUEditNet(" in "".join(c["source"]) for c in cells)


MADE = """\
[![Open in Colab](https://colab.example/badge.svg)](https://colab.example/X.ipynb)

## Two *kinds* of `W+`

<details><summary>Answer</summary>The [leakage](../glossary.ipynb#leakage) of $w'_i$, see `edit`.</details>

| a | b |
|---|---|
| [files/io](../files/io.ipynb) | 1 |

$$\\sum_i x_i^2$$

![One face](../images/strip.webp)
*A caption.*

[`Pipeline`](https://aueditnet.github.io/aueditnet/pipeline.html#pipeline) and [a site](https://example.org/x.ipynb)
"""


def test_markdown_of_a_made_page():
    spec = importlib.util.spec_from_file_location("build_site", ROOT / ".ci" / "build_site.py")
    builder = importlib.util.module_from_spec(spec)
    sys.modules["build_site"] = builder     # dataclasses look their module up
    spec.loader.exec_module(builder)
    page = builder.Page("synth/made.ipynb", "", "synth/made.html")
    targets = {"files/io.ipynb": "files/io.html", "glossary.ipynb": "glossary.html", "site": "https://aueditnet.github.io/aueditnet/"}
    text = builder.Renderer(page, targets).markdown.render(MADE)
    made = Parsed(text)
    links = {a["href"]: a for a in made.all("a")}
    assert set(links) == {"https://colab.example/X.ipynb", "../glossary.html#leakage", "../files/io.html", "../images/strip.webp",
                          "../pipeline.html#pipeline", "https://example.org/x.ipynb", "#two-kinds-of-w"}
    assert [i["alt"] for i in made.all("img")] == ["One face"] and made.texts["figcaption"] == ["A caption."]
    assert "Open in Colab" in text and "badge.svg" not in text
    assert links["../glossary.html#leakage"]["title"].startswith("The change of something that was not requested")
    assert len(made.all("math")) == 2 and made.texts["code"].count("edit") == 1 and "$" not in text
    assert page.headings == [(2, "two-kinds-of-w", "Two kinds of W+")] and 'class="table-wrapper"' in text
