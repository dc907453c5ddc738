"""Every lesson runs from top to bottom, in a process of its own. Cells flagged slow or gpu are left out, as nbdev_test does."""
import pytest
from conftest import NOTEBOOKS, ROOT, notebook_id, run_python

RUN = """
import sys
from pathlib import Path
from nbdev.config import get_config
from nbdev.test import test_nb
passed, seconds = test_nb(Path(sys.argv[1]), skip_flags=get_config().tst_flags.split())
sys.exit(0 if passed else 1)
"""


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=notebook_id)
def test_notebook(notebook):
    result = run_python("-c", RUN, notebook, cwd=notebook.parent, timeout=400, MPLBACKEND="agg")
    assert result.returncode == 0, result.stderr[-4000:] + result.stdout[-1000:]


def test_a_failing_cell_is_noticed(tmp_path):
    import nbformat
    wrong = tmp_path / "wrong.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert 1 == 2")],
                                            metadata={"kernelspec": {"name": "python3", "language": "python", "display_name": "python3"}}), wrong)
    assert run_python("-c", RUN, wrong, cwd=ROOT / "nbs").returncode == 1
