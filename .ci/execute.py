"""Run notebooks and store their outputs; cells that are marked slow are not run and keep the outputs that they have.

    python .ci/execute.py nbs/07_editor.ipynb nbs/synth/hair.ipynb ...     --slow runs those cells too
"""
import base64
import copy
import io
import re
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

LARGE = 100_000   # bytes of a stored picture above which it is stored in 256 colours


def is_slow(cell):
    return cell.cell_type == "code" and re.search(r"^#\|\s*slow\b", cell.source, re.M)


def slim(data):
    """Keep the history small: a PIL picture comes as PNG and once more as JPEG, and large pictures do with 256 colours."""
    if "image/png" not in data:
        return
    data.pop("image/jpeg", None)
    png = base64.b64decode(data["image/png"])
    if len(png) > LARGE:
        small, picture = io.BytesIO(), Image.open(io.BytesIO(png)).convert("RGB")
        picture.quantize(256, Image.Quantize.MEDIANCUT).save(small, "PNG", optimize=True)
        if small.tell() < len(png):
            data["image/png"] = base64.b64encode(small.getvalue()).decode()


def execute(file, slow=False):
    """Execute one notebook in its own folder and rewrite it; returns the seconds that it took."""
    notebook = nbformat.read(file, as_version=4)
    run = copy.deepcopy(notebook)
    run.cells = [cell for cell in run.cells if slow or not is_slow(cell)]
    began = time.monotonic()
    NotebookClient(run, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(file.parent)}}).execute()
    done = iter(run.cells)
    notebook.cells = [cell if is_slow(cell) and not slow else next(done) for cell in notebook.cells]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            slim(output.get("data", {}))
    nbformat.write(notebook, file)
    from nbdev.clean import nbdev_clean
    nbdev_clean.__wrapped__(str(file))
    return time.monotonic() - began


if __name__ == "__main__":
    for name in (word for word in sys.argv[1:] if word != "--slow"):
        print(f"{name}: {execute(Path(name).resolve(), '--slow' in sys.argv):.0f} s", flush=True)
