"""Lessons are stored clean, with their results, and in the shape that readers and the documentation expect."""
import ast
import json
import re

import pytest
from conftest import NBS, NOTEBOOKS, ROOT, notebook_id, run_python

# A folder of somebody's machine. Outputs that show one would differ for every reader.
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(?:work|root|home|tmp|Users|opt|mnt)/\w|site-packages|file://")


def source(cell):
    return "".join(cell["source"])


def texts(cell):
    """All text in a code cell's outputs."""
    for output in cell["outputs"]:
        yield "".join(output.get("text", ""))
        yield "\n".join(output.get("traceback", []))
        for kind, data in output.get("data", {}).items():
            if not kind.startswith("image/"):
                yield json.dumps(data) if isinstance(data, dict) else "".join(data)


@pytest.fixture(params=NOTEBOOKS, ids=notebook_id)
def notebook(request):
    return json.loads(request.param.read_text(encoding="utf-8")) | {"path": request.param}


def test_clean(notebook, tmp_path):
    copy = tmp_path / "nbs" / notebook["path"].relative_to(NBS)
    copy.parent.mkdir(parents=True)
    copy.write_bytes(notebook["path"].read_bytes())
    (tmp_path / "settings.ini").write_bytes((ROOT / "settings.ini").read_bytes())
    result = run_python(
        "-c", f"from nbdev.clean import nbdev_clean; nbdev_clean.__wrapped__({str(copy)!r})", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert copy.read_bytes() == notebook["path"].read_bytes(), f"run: nbdev_clean --fname {notebook['path']}"


def test_has_been_run(notebook):
    code = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    assert any(c["outputs"] for c in code), "no cell has an output: run the notebook and save it"
    assert not any(o["output_type"] == "error" for c in code for o in c["outputs"])


def test_no_machine_in_outputs(notebook):
    for cell in notebook["cells"]:
        for text in texts(cell) if cell["cell_type"] == "code" else [source(cell)]:
            found = MACHINE_PATH.search(text)
            assert not found, f"an absolute path of somebody's machine: ...{text[max(0, found.start() - 80):found.end() + 80]}..."


def test_shape(notebook):
    first, cells = notebook["cells"][0], notebook["cells"]
    assert first["cell_type"] == "markdown" and re.match(r"# .+\n\n> .+", source(first)), "starts with '# Title' and '> description'"
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    long = [source(c)[:60] for c in cells if c["cell_type"] == "code" and len([line for line in source(c).splitlines() if line.strip()]) > 60]
    assert not long, f"cells of more than 60 lines: {long}"
    if any("#| default_exp" in source(c) for c in cells):
        assert "nbdev_export()" in source([c for c in cells if c["cell_type"] == "code"][-1]), "the last cell exports"


def test_imports_stand_alone(notebook):
    """nbdev runs every cell with an import when it makes the pages, and none of the others: what shares a cell with an import runs
    without what came before it. Exported cells are run anyway."""
    for cell in notebook["cells"]:
        text = source(cell)
        if cell["cell_type"] != "code" or re.search(r"^#\|\s*(exporti?s?|exec_doc|eval:)", text, re.M) or "nbdev_export()" in text:
            continue
        nodes = ast.parse(re.sub(r"^(\s*)[%!].*$", r"\1pass", text, flags=re.M)).body
        imports = (ast.Import, ast.ImportFrom)
        if any(isinstance(inner, imports) for node in nodes for inner in ast.walk(node)):
            assert all(isinstance(node, imports) for node in nodes), f"give the imports a cell of their own:\n{text[:300]}"
