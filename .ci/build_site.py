"""Build the pages without Quarto, for reading offline and for the tests: no server, no request to another host.

    python .ci/build_site.py                writes _docs/; open _docs/index.html
    python .ci/build_site.py -o FOLDER

The published site is made by Quarto (`nbdev_docs`). Both builds share the notebooks as nbdev prepares them, the sidebar of
_quarto.yml, nbs/styles.css and nbs/site.html. What Quarto brings itself (layout, search, dark mode, enlarged figures, formulas)
stands here and in .ci/site/.
"""
import argparse
import ast
import base64
import html
import io
import json
import os
import posixpath
import re
import shutil
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import jinja2
import yaml
from latex2mathml.converter import convert as mathml
from nbconvert.filters import strip_ansi
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from PIL import Image
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

ROOT = Path(__file__).resolve().parent.parent
NBS, TEMPLATE = ROOT / "nbs", Path(__file__).resolve().parent / "site"
OPTION = re.compile(r"#\| *([\w-]+): *(.*)")
WIDGET = "application/vnd.jupyter.widget-view+json"
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg")     # what is copied from nbs/ beside the pages


# The pages and their order

@dataclass
class Page:
    "A notebook on its way to a page."
    name: str                                       # below nbs/: "synth/hair.ipynb"
    section: str                                    # of the sidebar; "" above all sections
    href: str = ""                                  # of the page, below the site: "synth/hair.html"
    title: str = ""
    description: str = ""
    cells: list = field(default_factory=list)       # as nbdev prepares them
    body: str = ""
    headings: list = field(default_factory=list)    # (level, id, text)
    ids: set = field(default_factory=set)
    figures: int = 0

    @property
    def folder(self):
        return posixpath.dirname(self.href)

    def relative(self, href):
        "The address of `href`, a path below the site, as seen from this page."
        return posixpath.relpath(href, self.folder or ".")


def sidebar():
    "Pairs (section, notebook) in the order of _quarto.yml."
    settings = yaml.safe_load((ROOT / "_quarto.yml").read_text(encoding="utf-8"))
    for entry in settings["website"]["sidebar"]["contents"]:
        if isinstance(entry, str):
            yield "", entry
        else:
            yield from ((entry["section"], name) for name in entry["contents"])


def prepared(section, name):
    "The `Page` of a notebook after nbdev's processors. Its first cell is the front matter that Quarto reads."
    from execnb.nbio import read_nb
    from nbdev.processors import FilterDefaults
    notebook = read_nb(NBS / name)
    FilterDefaults()(notebook)
    front, *cells = notebook.cells
    front = yaml.safe_load(front.source.strip().strip("-"))
    href = posixpath.join(posixpath.dirname(name), front.get("output-file", Path(name).stem + ".html"))
    return Page(name, section, href, str(front["title"]), str(front.get("description") or ""), cells)


@cache
def glossary():
    "{id: meaning} of the terms."
    cells = json.loads((NBS / "glossary.ipynb").read_text(encoding="utf-8"))["cells"]
    rows = re.findall(r'<a id="([\w-]+)"></a>\*\*[^|]*\| ([^|]*) \|', "\n".join("".join(c["source"]) for c in cells))
    return {term: re.sub(r"[*`]|\[([^\]]*)\]\([^)]*\)", r"\1", meaning) for term, meaning in rows}


# Markdown

def identifier(text):
    "The id that pandoc, and with it Quarto, gives to a heading."
    words = re.sub(r"[^\w\s.-]", "", plain(text)).lower().split()
    return re.sub(r"^[^a-z]+", "", "-".join(words)) or "section"


def plain(markup):
    "HTML as plain text, without formulas."
    markup = re.sub(r"<math.*?</math>", " ", markup, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def coloured(code, language):
    try:
        return highlight(code, get_lexer_by_name(language), HtmlFormatter(cssclass=f"sourceCode {language}"))
    except ClassNotFound:
        return f"<div class='sourceCode'><pre>{html.escape(code, quote=False)}</pre></div>"


def figure(picture, caption):
    caption = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure class="figure">{picture}{caption}</figure>\n'


class Renderer(IPythonRenderer):
    "Markdown to HTML for one page: formulas as MathML, links to pages, pictures as figures, ids of headings as pandoc's."

    def __init__(self, page, targets):
        super().__init__(escape=False, exclude_anchor_links=True)
        self.page, self.targets = page, targets
        self.markdown = MarkdownWithMath(renderer=self)

    def inline_math(self, body): return mathml(html.unescape(body), display="inline")

    def block_math(self, body): return f'<span class="formula">{mathml(html.unescape(body), display="block")}</span>'

    def latex_environment(self, name, body): return self.block_math(f"\\begin{{{name}}}{body}\\end{{{name}}}")

    def heading(self, text, level, **attrs):
        place, n = identifier(text), 1
        while place in self.page.ids:
            place, n = f"{identifier(text)}-{n}", n + 1
        self.page.ids.add(place)
        self.page.headings.append((level, place, plain(text)))
        return f'<h{level} id="{place}">{text}<a class="anchor" href="#{place}" aria-label="Link to this section">#</a></h{level}>\n'

    def block_code(self, code, info=None): return coloured(code, (info or "text").split()[0])

    def block_html(self, html):
        "Markdown inside <details> is read as Markdown, as Quarto does."
        inside = lambda m: f"{m[1]}{self.markdown.render(m[2])}{m[3]}"
        return super().block_html(re.sub(r"(<details>\s*<summary>.*?</summary>)(.+?)(</details>)", inside, html, flags=re.S))

    def table(self, text): return f'<div class="table-wrapper"><table>\n{text}</table></div>\n'

    def link(self, text, url, title=None):
        address, place = self.target(html.unescape(url))
        if re.fullmatch(r"\w+/\w+", text):     # a path may break after its parts
            text = re.sub(r"([/_])", r"\1<wbr>", text)
        meaning = glossary().get(place) if address.startswith(self.page.relative("glossary.html")) else None
        more = f' class="term" title="{html.escape(meaning)}"' if meaning else ""
        if url.startswith(self.targets["site"]):
            more = ' class="symbol"'
        return f'<a href="{html.escape(address)}"{more}>{text}</a>'

    def target(self, url):
        "The address of a link on this page, and the place on the linked page."
        file, _, place = url.partition("#")
        if file.startswith(self.targets["site"]):     # nbdev links names in backticks to the published site
            file = self.page.relative(file.removeprefix(self.targets["site"]))
        elif file.endswith(".ipynb") and "://" not in file:
            name = posixpath.normpath(posixpath.join(posixpath.dirname(self.page.name), file))
            file = self.page.relative(self.targets.get(name, name))
        return f"{file}#{place}" if place else file, place

    def image(self, text, url, title=None):
        if "://" in url:        # a badge: the text will do, without a request to another host
            return f'<span class="badge">{html.escape(plain(text))}</span>'
        with Image.open(NBS / self.page.folder / url) as picture:
            width, height = picture.size
        return picture_link(url, plain(text), width, height)

    def paragraph(self, text):
        "A paragraph that begins with a picture is a figure; what follows is the caption."
        if picture := re.match(r'<a class="enlarge".*?</a>\s*(?:<br ?/?>)?\s*', text, re.S):
            return figure(picture[0].strip(), re.sub(r"</?em>", "", text[picture.end():].strip()))
        return super().paragraph(text)


def picture_link(address, alt, width, height):
    "A picture that is a link to its file: site.js shows it enlarged instead."
    size = f'width="{width}" height="{height}"'
    return f'<a class="enlarge" href="{address}"><img src="{address}" alt="{html.escape(alt)}" {size} loading="lazy"></a>'


# Code and its outputs

def definitions(source):
    "Ids for the classes, methods and functions that a cell defines, as nbdev's links name them: `pipeline.edit`."
    try:
        body = ast.parse(source).body
    except SyntaxError:         # magics
        return
    for node in body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            yield node.name.lower()
            methods = [n.name for n in getattr(node, "body", []) if isinstance(n, ast.FunctionDef)]
            yield from (f"{node.name}.{method}".lower() for method in methods if isinstance(node, ast.ClassDef))


class Writer:
    "Writes the body of one page, and its pictures into a folder of the page's name."

    def __init__(self, page, targets, out):
        self.page, self.out = page, out
        self.render = Renderer(page, targets).markdown.render

    def markdown(self, source):
        self.page.ids |= set(re.findall(r'<a id="([^"]+)"', source))
        return self.render(source)

    def code(self, cell):
        source, options = cell.source.splitlines(), {}
        while source and (source[0].startswith("#|") or not source[0].strip()):
            if option := OPTION.match(line := source.pop(0)):
                options[option[1]] = yaml.safe_load(option[2])
        source = "\n".join(source).strip("\n")
        if options.get("include") is False:
            return ""
        shown = self.source(source, options) if source and options.get("echo") is not False else ""
        outputs = [] if options.get("output") is False else cell.get("outputs", [])
        body = shown + self.outputs(outputs, options)
        return f'<div class="cell">{body}</div>\n' if body else ""

    def source(self, source, options):
        names = [name for name in dict.fromkeys(definitions(source)) if name not in self.page.ids]
        self.page.ids |= set(names)
        body = coloured(source, "python")
        if options.get("code-fold"):
            state = " open" if options["code-fold"] == "show" else ""
            body = f'<details class="code-fold"{state}><summary>{options.get("code-summary", "Code")}</summary>{body}</details>'
        return "".join(f'<span class="definition" id="{name}"></span>' for name in names) + body

    def outputs(self, outputs, options):
        captions, alts = options.get("fig-cap"), options.get("fig-alt")
        captions = iter(captions if isinstance(captions, list) else [captions])
        parts = []
        for output in outputs:
            data = output.get("data", {})
            picture = next((data[kind] for kind in ("image/png", "image/jpeg") if kind in data), None)
            if picture:
                parts.append(self.figure("".join(picture), next(captions, None), alts if isinstance(alts, str) else None))
            elif WIDGET in data:
                parts.append(self.widget("".join(data.get("text/plain", ""))))
            elif "text/markdown" in data:
                parts.append(self.markdown("".join(data["text/markdown"])))
            elif "text/html" in data:
                parts.append("".join(data["text/html"]))
            else:
                text = strip_ansi("".join(output.get("text") or data.get("text/plain") or output.get("traceback") or "")).rstrip()
                pre = f'<pre class="text">{html.escape(text, quote=False)}</pre>'
                parts.append(f'<div class="cell-output cell-output-{output.get("name", "display")}">{pre}</div>')
        return "".join(parts)

    def widget(self, text):
        "What stands in a widget's place: for the panel of sliders those of site.html, for a progress bar nothing."
        if re.search(r"\d+%\|", text):
            return ""
        if not re.match(r"(?:Explorer|Panel)\(", text):
            return '<p class="widget">This widget needs a Python kernel: open the notebook in JupyterLab, Colab or Binder.</p>'
        sheet = picture_link(self.page.relative("images/strip.webp"), "Picture sheet of the sliders", 1408, 1536)
        return figure(sheet, "Pictures computed in advance; the panel itself needs a Python kernel: JupyterLab, Colab or Binder.")

    def figure(self, content, caption, alt):
        content = base64.b64decode(content)
        with Image.open(io.BytesIO(content)) as picture:
            (width, height), suffix = picture.size, picture.format.lower()
        self.page.figures += 1
        file = Path(self.page.href).with_suffix("") / f"figure-{self.page.figures}.{suffix}"
        (self.out / file).parent.mkdir(parents=True, exist_ok=True)
        (self.out / file).write_bytes(content)
        heading = self.page.headings[-1][2] if self.page.headings else self.page.title
        alt = alt or caption or f"{heading}: figure {self.page.figures} of this page"
        address = self.page.relative(file.as_posix())
        return figure(picture_link(address, alt, width, height), html.escape(caption or "", quote=False))

    def write(self):
        self.page.body = "".join(self.markdown(cell.source) if cell.cell_type == "markdown" else self.code(cell)
                                 for cell in self.page.cells if cell.cell_type in ("markdown", "code"))


# The site

def resolve_symbols(page, pages):
    "nbdev also links names that no cell defines as such, aliases for example: those links lead to the page alone."
    def resolved(m):
        target = pages[posixpath.normpath(posixpath.join(page.folder, m[1]))]
        return f'href="{m[1]}#{m[2]}"' if m[2] in target.ids else f'href="{m[1]}"'
    page.body = re.sub(r'href="([^"#]+)#([^"]+)" class="symbol"', resolved, page.body)


def search_entries(page):
    "For each section of a page: its address, its heading, and its text without code and formulas."
    for part in re.split(r"(?=<h[1-6] id=)", page.body):
        heading = re.match(r'<h\d id="([^"]+)">(.*?)<a class="anchor"', part, re.S)
        names = " ".join(re.findall(r'<span class="definition" id="([^"]+)"', part))
        text = plain(re.sub(r'<pre.*?</pre>|<h\d.*?</h\d>|<span class="badge">.*?</span>', " ", part, flags=re.S))
        if text or names or heading:
            yield {"url": f"{page.href}#{heading[1]}" if heading else page.href, "page": page.title,
                   "heading": plain(heading[2]) if heading else "", "text": f"{text} {names}".strip()}


def build(out):
    "Write the site into the folder `out`; returns its `Page`s in the order of the sidebar."
    from nbdev.config import get_config
    os.chdir(ROOT)              # where nbdev looks for settings.ini
    config = get_config()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    pages = [prepared(section, name) for section, name in sidebar()]
    targets = {page.name: page.href for page in pages}
    targets["site"] = f"{config.doc_host.rstrip('/')}/{config.doc_baseurl.strip('/')}/"
    for page in pages:
        Writer(page, targets, out).write()
    by_href = {page.href: page for page in pages}
    templates = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATE), trim_blocks=True, lstrip_blocks=True)
    template = templates.get_template("page.html")
    script = (NBS / "site.html").read_text(encoding="utf-8")
    for page, before, after in zip(pages, [None, *pages], [*pages[1:], None]):
        resolve_symbols(page, by_href)
        source = f"{config.git_url}/blob/{config.branch}/{config.nbs_path.name}/{page.name}"
        text = template.render(page=page, pages=pages, before=before, after=after, source=source, script=script,
                               issue=f"{config.git_url}/issues/new", home=page.relative("index.html"), root=page.relative("."))
        (out / page.href).parent.mkdir(parents=True, exist_ok=True)
        (out / page.href).write_text(text, encoding="utf-8")
    entries = [entry for page in pages for entry in search_entries(page)]
    (out / "search-index.js").write_text(f"window.searchIndex = {json.dumps(entries, ensure_ascii=False)};\n", encoding="utf-8")
    for file in (NBS / "styles.css", TEMPLATE / "site.css", TEMPLATE / "site.js"):
        shutil.copy(file, out / file.name)
    for file in NBS.rglob("*"):
        if file.suffix in PICTURES and ".ipynb_checkpoints" not in file.parts:
            (out / file.relative_to(NBS)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, out / file.relative_to(NBS))
    return pages


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", default=ROOT / "_docs", type=Path, help="the folder of the site")
    out = parser.parse_args().out.resolve()
    pages = build(out)
    print(f"{len(pages)} pages and {sum(page.figures for page in pages)} figures in {out.name}/; open {out.name}/index.html")
