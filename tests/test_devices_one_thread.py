"""`test_devices.py` in a process with one thread: several crash PyTorch in the backward pass of its tensors."""
from pathlib import Path

from conftest import run_python


def test_devices():
    folder = Path(__file__).parent
    done = run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", folder / "test_devices.py", cwd=folder.parent, timeout=600,
                      OMP_NUM_THREADS="1")
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-3000:]
