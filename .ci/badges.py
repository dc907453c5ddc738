"""Put into every notebook that a reader may run: badges that open it in Colab and in Binder, and the cell that installs the course there.

    python .ci/badges.py             adds or updates both cells; all other cells stay as they are
    python .ci/badges.py --check     changes nothing, names the notebooks that lack them, and fails if there are any
"""
import hashlib
import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path
from urllib.parse import quote

ROOT = Path(__file__).resolve().parent.parent
NOT_RUN = ("index.ipynb", "glossary.ipynb", "references.ipynb")    # pages to read
EXTRAS = {"nbs": "notebooks,photo", "nbs/commands": "lab,heads,photo"}    # what the notebooks of a folder import,
OF_ROOMS = "notebooks,heads,measures,photo"                               # beside what Colab has; and those of other folders

BADGE = "[![Open in Colab]"
SETUP = "# In Colab: fetch the course"
CELL = """#| hide
#| eval: false
{setup}, install it, and work in its folder. In a clone nothing happens.
import importlib.util, os, sys
if not importlib.util.find_spec("aueditnet"):
    !git clone -q --depth 1 {git_url} course
    %pip install -q -e './course[{extras}]'
    sys.path.append(os.path.abspath("course"))    # a running kernel does not notice the installation
if os.path.isdir("course/nbs"):
    %cd -q course/{folder}"""


def settings(root=ROOT):
    config = ConfigParser(delimiters=["="])
    config.read(root / "settings.ini", encoding="utf-8")
    return config["DEFAULT"]


def badges(name, cfg):
    """The badges of one notebook, as Markdown. `name` is its path in the repository, with slashes."""
    repo = cfg["git_url"].removeprefix("https://github.com/")
    colab = f"https://colab.research.google.com/github/{repo}/blob/{cfg['branch']}/{name}"
    binder = f"https://mybinder.org/v2/gh/{repo}/{cfg['branch']}?labpath={quote(name, safe='')}"
    return (f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({colab})\n"
            f"[![Open in Binder](https://mybinder.org/badge_logo.svg)]({binder})")


def setup(name, cfg):
    """The code cell that installs the course where it is missing. `name` is the notebook's path in the repository."""
    folder = name.rpartition("/")[0]
    return CELL.format(setup=SETUP, git_url=cfg["git_url"], extras=EXTRAS.get(folder, OF_ROOMS), folder=folder)


def is_ours(cell):
    """Whether a cell was put in by this script."""
    text = "".join(cell["source"])
    return text.startswith(BADGE) if cell["cell_type"] == "markdown" else re.search(f"^{SETUP}", text, re.M)


def is_run(name, cells):
    """Whether a reader may run this notebook: it has code, and is no page to read."""
    code = any(cell["cell_type"] == "code" and not is_ours(cell) for cell in cells)
    return code and name not in {f"nbs/{page}" for page in NOT_RUN}


def with_badges(text, name, cfg):
    """A notebook's JSON with both cells: the badges below the title, the installation above the first code cell."""
    notebook = json.loads(text)
    cells = [cell for cell in notebook["cells"] if not is_ours(cell)]
    if is_run(name, cells):
        # ids derive from the name, so that they stay when the script runs again
        made = lambda kind, source, **more: {"cell_type": kind, "id": hashlib.sha256(f"{kind} {name}".encode()).hexdigest()[:8],
                                             "source": source.splitlines(keepends=True), **more}
        slides = {"slideshow": {"slide_type": "skip"}} if any("slideshow" in cell["metadata"] for cell in cells) else {}
        first = next(i for i, cell in enumerate(cells) if cell["cell_type"] == "code")
        cells.insert(first, made("code", setup(name, cfg), execution_count=None, outputs=[],
                                 metadata={"jupyter": {"source_hidden": True}, **slides}))
        cells.insert(1, made("markdown", badges(name, cfg), metadata=slides))
    return json.dumps(notebook | {"cells": cells}, sort_keys=True, indent=1, ensure_ascii=False) + "\n"


def main(check=False, root=ROOT):
    """Write all notebooks, or only list those that would change. Returns their names."""
    cfg, changed = settings(root), []
    for file in sorted((root / "nbs").rglob("*.ipynb")):
        if ".ipynb_checkpoints" in file.parts:
            continue
        name, text = file.relative_to(root).as_posix(), file.read_text(encoding="utf-8")
        if (new := with_badges(text, name, cfg)) != text:
            changed.append(name)
            if not check:
                file.write_text(new, encoding="utf-8")
    return changed


if __name__ == "__main__":
    only_check = "--check" in sys.argv
    for notebook in (changed := main(only_check)):
        print(notebook)
    sys.exit(only_check and bool(changed))
