"""The cache of codes: killed at any moment, two processes at once, and memory that does not grow with the number of pictures.

As a script it fills a folder with pictures and codes that cost nothing, and prints the peak of its memory:

    python tests/test_latents.py FOLDER [PICTURES [LEVELS [NUMBERS [SHARD [SECONDS_A_PICTURE]]]]]
"""
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

HERE = Path(__file__)


class Inverter:
    """Codes that depend on the picture, and cost nothing."""

    def __init__(self, levels, numbers):
        self.generator = SimpleNamespace(n_levels=levels, style_dim=numbers)

    def fingerprint(self):
        return "made up"

    def invert(self, crops):
        import torch
        means = torch.from_numpy(crops).flatten(1).float().mean(1)
        return means[:, None, None] + torch.arange(self.generator.n_levels * self.generator.style_dim).view(1, self.generator.n_levels, -1)


def main(folder, pictures=300, levels=2, numbers=16, shard=2048, seconds=0.0):
    from aueditnet.facs import InputError
    from aueditnet.latents import fill

    def picture(k):
        time.sleep(seconds)
        if k % 50 == 17:
            raise InputError(f"no face found in picture {k}")
        return np.full((8, 8, 3), k % 251, np.uint8)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cache = fill(folder, picture, pictures, Inverter(levels, numbers), {"source": "made up"}, shard, skip=InputError)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"{len(cache.frames)} codes of {pictures} pictures; peak of memory {peak / 1024:.0f} MiB, of it {before / 1024:.0f} before the first picture")


def start(folder, *words):
    """The script in a process of its own; fifteen shards if not told otherwise."""
    words = words or (300, 2, 16, 20)
    return subprocess.Popen([sys.executable, HERE, folder, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    """Wait for it; what it printed."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def content(folder):
    return {f.name: f.read_bytes() for f in folder.iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("codes") / "undisturbed"
    finish(start(folder))
    return content(folder)


def test_killed_at_any_moment(tmp_path, undisturbed):
    """SIGKILL as soon as so many shards are there, and some random milliseconds later; then once more to the end."""
    folder, random, seen = tmp_path / "codes", np.random.default_rng(0), []
    for wanted in (0, 2, 5, 9, 12):
        process = start(folder, 300, 2, 16, 20, 0.003)
        deadline = time.monotonic() + 60
        while len(list(folder.glob("*.safetensors"))) < wanted or not folder.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.08))
        process.kill()
        assert process.wait() == -signal.SIGKILL
        whole = {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in folder.glob("[0-9]*.safetensors")}
        assert all(undisturbed[name] == data for name, (_, data) in whole.items())
        seen.append(whole)
    assert all(late[name] == entry for early, late in zip(seen, seen[1:]) for name, entry in early.items())    # no finished shard was made again
    assert len(seen[-1]) < 15
    finish(start(folder))
    assert content(folder) == undisturbed


def test_two_processes_on_one_folder(tmp_path, undisturbed):
    folder = tmp_path / "codes"
    both = [start(folder, 300, 2, 16, 20, 0.001) for _ in range(2)]
    for process in both:
        finish(process)
    assert content(folder) == undisturbed


def test_memory_does_not_grow(tmp_path):
    """130,000 pictures with small codes, and a few thousand with the public model's, need no more than one shard does."""
    def peak(*words):
        folder = tmp_path / "codes"
        found = re.search(r"peak of memory (\d+) MiB", finish(start(folder, *words)))
        shutil.rmtree(folder)
        return int(found[1])
    assert peak(130_000, 2, 16, 2048) - peak(2_048, 2, 16, 2048) < 40      # the reasons of 2,600 pictures without a face are among it
    assert peak(3 * 512, 18, 512, 512) - peak(512, 18, 512, 512) < 25     # a shard of these is 19 MB
    assert peak(512, 18, 512, 512) < 2048


def test_a_full_disk_leaves_nothing_half_written(tmp_path, undisturbed):
    """Files may not grow beyond a bound, as on a full disk: an error, and no shard; then the rest is made."""
    folder = tmp_path / "codes"
    code = f"import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500)); " \
           f"sys.path.insert(0, {str(HERE.parent)!r}); from test_latents import main; main({str(folder)!r}, shard=20)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode != 0 and "00000.safetensors" in result.stderr
    assert {f.name for f in folder.iterdir()} == {"manifest.json"}
    finish(start(folder))
    assert content(folder) == undisturbed


@pytest.mark.parametrize("writes", (0, 1, 8, 16))   # the first manifest, a shard, a later one, the last manifest
def test_killed_between_writing_and_moving(tmp_path, undisturbed, writes):
    """What a killed run leaves behind is under a temporary name, and the next run sweeps it away."""
    folder = tmp_path / "codes"
    code = f"import itertools, os, signal, sys; move, count = os.replace, itertools.count(); " \
           f"os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL) if next(count) == {writes} else move(*names); " \
           f"sys.path.insert(0, {str(HERE.parent)!r}); from test_latents import main; main({str(folder)!r}, shard=20)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == -signal.SIGKILL
    assert len([f for f in folder.iterdir() if f.name.startswith(".")]) == 1
    finish(start(folder))
    assert content(folder) == undisturbed


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:6]), *map(float, sys.argv[6:]))
