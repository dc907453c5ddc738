"""The documentation pages, built without Quarto: nbdev processes the notebooks, nbconvert writes HTML, and links and pictures are followed."""
import html
import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from conftest import NBS, NOTEBOOKS, ROOT, run_python

NAMES = [nb.relative_to(NBS).as_posix() for nb in NOTEBOOKS]
PROCESS = "from nbdev.serve import proc_nbs; proc_nbs(n_workers=2, force=True)"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """{notebook name: HTML text} and the folder that the pages stand in."""
    import shutil

    from conftest import LEAVE_OUT
    from nbconvert import HTMLExporter
    project = tmp_path_factory.mktemp("docs")
    for name in ("settings.ini", "_quarto.yml"):
        shutil.copy(ROOT / name, project / name)
    for name in ("nbs", "aueditnet"):
        shutil.copytree(ROOT / name, project / name, symlinks=True, ignore=LEAVE_OUT)
    (project / "data").symlink_to(ROOT / "data")
    script = project / "process.py"
    script.write_text(f"if __name__ == '__main__':\n    {PROCESS}\n")
    result = run_python(script, cwd=project, timeout=400, MPLBACKEND="agg")
    assert result.returncode == 0, result.stderr[-4000:]
    folder = project / "_proc"
    pages = [folder / name for name in NAMES if (folder / name).exists()]
    return {page.relative_to(folder).as_posix(): HTMLExporter().from_filename(str(page))[0] for page in pages}, folder


def test_every_notebook_has_a_page(site):
    pages, _ = site
    assert sorted(pages) == sorted(NAMES)
    for name in NAMES:
        title = re.match(r"# (.+)", "".join(json.loads((NBS / name).read_text())["cells"][0]["source"]))[1]
        assert html.escape(title, quote=False) in pages[name], name


def test_hidden_cells_stay_hidden(site):
    for name, page in site[0].items():
        assert "nbdev_export" not in re.sub(r"<[^>]+>", "", page), name


def test_links_and_pictures_resolve(site):
    pages, folder = site
    seen, broken = 0, []
    for name, page in pages.items():
        for address in re.findall(r"<(?:a|img)\b[^>]*?(?:href|src)=\"([^\"]*)\"", page):
            address = unquote(html.unescape(address))
            if re.match(r"(?:https?|mailto|data):", address):
                continue
            file, _, place = address.partition("#")
            seen += bool(file)
            target = folder / Path(name).parent / file
            if file and not target.exists():
                broken.append(f"{name}: {address}")
            if file.endswith(".ipynb") and place and f'id="{place}"' not in pages.get(target.resolve().relative_to(folder.resolve()).as_posix(), ""):
                broken.append(f"{name}: {address}")
            if not file and place and f'id="{place}"' not in page:
                broken.append(f"{name}: {address}")
    assert seen >= len(NOTEBOOKS) - 1 and broken == []


def test_sidebar_lists_every_notebook():
    assert (ROOT / "nbs" / "_quarto.yml").is_symlink() and (ROOT / "nbs" / "_quarto.yml").resolve() == ROOT / "_quarto.yml"
    site = yaml.safe_load((ROOT / "_quarto.yml").read_text())
    listed = [page for entry in site["website"]["sidebar"]["contents"] for page in (entry["contents"] if isinstance(entry, dict) else [entry])]
    assert sorted(listed) == sorted(NAMES)
    assert (ROOT / "nbs" / site["format"]["html"]["css"]).is_file()
    assert all((ROOT / "nbs" / Path(extra)).is_file() for extra in site["metadata-files"])
