"""files.weights: checksums, verified loading, safe reading of foreign files, conversion, and several processes on one folder.

torch is imported late: the processes that save import this file too."""
import argparse
import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, child_env

from aueditnet.files import weights
from aueditnet.files.errors import InputError
from aueditnet.files.io import sha256
from aueditnet.files.weights import REGISTRY, checksum, convert, fetch, is_public, load, load_public, save, verify, write_card, write_checksums

SPAWN = multiprocessing.get_context("spawn")
BUNDLED = [name for name in REGISTRY if not is_public(name)]


@pytest.fixture
def net():
    import torch
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 8), torch.nn.BatchNorm1d(8)).requires_grad_(False)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """An empty data folder."""
    monkeypatch.setattr(weights, "data_dir", lambda: tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def public(tmp_path, monkeypatch):
    """An empty cache and a registry with one more public file, which `download` copies from `source`; gives both."""
    source, home = tmp_path / "source.pt", tmp_path / "home"
    source.write_bytes(b"the file of the authors")
    monkeypatch.setenv("AUEDITNET_HOME", str(home))
    monkeypatch.setitem(REGISTRY, "net.pt", {"what": "a network", "licence": "-", "url": "https://nowhere.invalid/net.pt"})

    def transfer(url, part, **options):
        Path(part).write_bytes(source.read_bytes())
    monkeypatch.setattr("gdown.download", transfer)
    return source, home / "weights"


def files(folder):
    return sorted(f.name for f in folder.iterdir() if f.suffix != ".lock")


# The registry

def test_every_entry_is_described():
    assert all({"what", "licence"} <= set(entry) for entry in REGISTRY.values())
    assert all(entry["url"].startswith("https://") for name, entry in REGISTRY.items() if is_public(name))
    with pytest.raises(InputError, match="neither a weights file nor a known name"):
        weights.path("nonsense")


def test_bundled_weights_are_whole():
    for name in BUNDLED:
        assert verify(name) == "in the repository" and load(name)[0], name


# Checksums

def test_only_named_files_are_renewed(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes(b"1")
    write_checksums(folder=tmp_path)
    before = weights._sums(tmp_path)
    for name in "ab":
        (tmp_path / f"{name}.safetensors").write_bytes(b"2")
    write_checksums(["a.safetensors"], tmp_path)
    after = weights._sums(tmp_path)
    assert after["a.safetensors"] != before["a.safetensors"] and after["b.safetensors"] == before["b.safetensors"]
    (tmp_path / "a.safetensors").unlink()
    write_checksums([], tmp_path)
    assert list(weights._sums(tmp_path)) == ["b.safetensors"] and files(tmp_path) == ["SHA256SUMS", "b.safetensors"]


def test_temporary_files_of_other_processes_are_no_weights(tmp_path):
    for name in ("a.safetensors", ".b.safetensors.x1y2.safetensors"):
        (tmp_path / name).write_bytes(b"1")
    assert write_checksums(folder=tmp_path).read_text().split()[1:] == ["a.safetensors"]


def test_a_full_disk_leaves_the_old_checksums(tmp_path, monkeypatch):
    (tmp_path / "a.safetensors").write_bytes(b"1")
    before = write_checksums(folder=tmp_path).read_text()
    (tmp_path / "a.safetensors").write_bytes(b"2")

    def full(*args):
        raise OSError("disk full")
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="disk full"):
        write_checksums(folder=tmp_path)
    assert (tmp_path / "SHA256SUMS").read_text() == before and files(tmp_path) == ["SHA256SUMS", "a.safetensors"]


def save_many(folder, names, barrier):
    """In a process of its own: save weights under several bundled names, at the same moment as the other process."""
    import torch
    weights.data_dir = lambda: folder
    for k, name in enumerate(names):
        barrier.wait(60)
        save(name, {"w": torch.full((4,), float(k))}, {"name": name})


def test_two_processes_that_save_lose_no_entry(data):
    """Each waits for the other before every file, so that both rewrite SHA256SUMS at the same time."""
    barrier, half = SPAWN.Barrier(2), len(BUNDLED) // 2
    both = [SPAWN.Process(target=save_many, args=(data, names, barrier)) for names in (BUNDLED[:half], BUNDLED[half:2 * half])]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    saved = [weights.path_for(name).relative_to(data / "weights") for name in BUNDLED[:2 * half]]
    for folder in {file.parent for file in saved}:
        names = sorted(file.name for file in saved if file.parent == folder)
        assert sorted(weights._sums(data / "weights" / folder)) == names
    for name in BUNDLED[:2 * half]:
        assert verify(name) == "in the repository" and load(name)[1] == {"name": name}


def renew_many(folder, names, barrier):
    for name in names:
        barrier.wait(60)
        (folder / name).write_bytes(name.encode())
        write_checksums([name], folder)


def test_two_processes_that_write_checksums_lose_no_entry(tmp_path):
    names = [f"{k:02}.safetensors" for k in range(20)]
    for name in names:
        (tmp_path / name).write_bytes(b"old")
    write_checksums(folder=tmp_path)
    barrier = SPAWN.Barrier(2)
    both = [SPAWN.Process(target=renew_many, args=(tmp_path, names[k::2], barrier)) for k in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert weights._sums(tmp_path) == {name: sha256(tmp_path / name) for name in names}


# Public files

def test_the_first_download_is_recorded(public):
    source, folder = public
    assert checksum("net.pt") == (None, "not known")
    digest = sha256(fetch("net.pt"))
    assert checksum("net.pt") == (digest, "recorded here")
    (folder / "net.pt").unlink()                        # only the same file may return
    assert sha256(fetch("net.pt")) == digest
    (folder / "SHA256SUMS").write_text(f"{'1' * 64}  net.pt\n")
    differs = rf"{digest} and not {'1' * 64} \(recorded here\)"
    for use in (fetch, verify):
        with pytest.raises(InputError, match=differs):
            use("net.pt")
    (folder / "net.pt").unlink()
    with pytest.raises(InputError, match=f"another file and is not kept, .*{differs}"):
        fetch("net.pt")
    assert files(folder) == ["SHA256SUMS"]
    with pytest.raises(InputError, match="net.pt is missing: a network; run `aueditnet weights fetch net.pt`"):
        weights.path("net.pt")


def test_a_known_digest(public, monkeypatch):
    source, folder = public
    monkeypatch.setitem(REGISTRY["net.pt"], "sha256", sha256(source))
    fetch("net.pt")
    assert verify("net.pt") == "known" and files(folder) == ["net.pt"]
    (folder / "net.pt").unlink()
    source.write_bytes(b"another one")
    with pytest.raises(InputError, match="another file"):
        fetch("net.pt")
    assert files(folder) == []


def test_offline(public, monkeypatch):
    import requests

    def offline(*args, **kwargs):
        raise requests.ConnectionError("no network")
    monkeypatch.setattr("gdown.download", offline)
    with pytest.raises(InputError, match="no connection .ConnectionError.; or get https://nowhere.invalid/net.pt with a browser") as caught:
        fetch("net.pt")
    assert f"put it into {public[1]}" in str(caught.value)


def test_names_that_cannot_be_fetched_or_verified():
    with pytest.raises(InputError, match="not a public file .e4e_ffhq_encode.pt, "):
        fetch("heads128-editor")
    with pytest.raises(InputError, match="nonsense: cannot be verified"):
        verify("nonsense")


# Saving and loading

def test_the_same_weights_are_the_same_bytes(net, tmp_path):
    one, other = (save(tmp_path / f"{k}.safetensors", net.state_dict(), meta) for k, meta in enumerate(({"a": 1, "b": 2}, {"b": 2, "a": 1})))
    assert sha256(one) == sha256(other)


def test_full_precision_and_shared_memory(net, tmp_path):
    import torch
    exact, _ = load(save(tmp_path / "exact.safetensors", net.state_dict(), {}, half=False))
    assert all(torch.equal(exact[name], tensor) for name, tensor in net.state_dict().items())
    tied = {"a": net[0].weight, "b": net[0].weight}
    one, other = load(save(tmp_path / "tied.safetensors", tied, {}))[0].values()
    assert torch.equal(one, other)


def test_damaged_files_are_refused(net, tmp_path):
    raw, broken = save(tmp_path / "whole.safetensors", net.state_dict(), {}).read_bytes(), tmp_path / "broken.safetensors"
    for content in (raw[:len(raw) // 2], b"", b"hello" * 100, raw[:-1]):
        broken.write_bytes(content)
        with pytest.raises(InputError, match="broken.safetensors: not a readable safetensors file"):
            load(broken)
    with pytest.raises(InputError, match="nowhere.safetensors"):
        load(tmp_path / "nowhere.safetensors")


def test_a_failed_save_leaves_the_old_weights(net, data, monkeypatch):
    save("heads128-au", net.state_dict(), {"run": 1})

    def full(*args):
        raise OSError(28, "No space left on device")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr("safetensors.torch.save_file", full)
        save("heads128-au", net.state_dict(), {"run": 2})
    assert load("heads128-au")[1] == {"run": 1} and files(data / "weights" / "heads128") == ["SHA256SUMS", "au_net.safetensors"]


def test_bundled_weights_without_a_checksum(net, data):
    bundled = save("heads128-au", net.state_dict(), {})
    (bundled.parent / "SHA256SUMS").unlink()
    with pytest.raises(InputError, match="SHA256SUMS beside it has no entry"):
        load("heads128-au")
    save("heads128-au", net.state_dict(), {})
    content = bytearray(bundled.read_bytes())
    content[-1] ^= 1
    bundled.write_bytes(content)
    with pytest.raises(InputError, match="damaged or changed"):
        load("heads128-au")


def test_a_card_has_every_field(data):
    with pytest.raises(ValueError, match="card of heads128-au: no trained on"):
        write_card("heads128-au", {"what": "x"})


# Foreign files

@pytest.fixture
def checkpoint(net, tmp_path):
    """A file in e4e's layout."""
    import torch
    file = tmp_path / "honest.pt"
    torch.save({"state_dict": net.state_dict(), "latent_avg": torch.zeros(12, 8), "opts": {"start_from_latent_avg": True}}, file)
    return file


def test_a_hostile_file_is_refused(net, tmp_path):
    import torch

    class Hostile:
        def __reduce__(self):
            return Path.touch, (tmp_path / "owned",)
    hostile = tmp_path / "hostile.pt"
    torch.save({"state_dict": net.state_dict(), "opts": Hostile()}, hostile)
    with pytest.raises(InputError, match="refused, besides weights it holds"):
        load_public(hostile)
    assert not (tmp_path / "owned").exists()
    torch.load(hostile, weights_only=False)               # the file is hostile indeed
    assert (tmp_path / "owned").exists()
    torch.save({"opts": argparse.Namespace(size=8)}, hostile)   # harmless, but not distinguishable
    with pytest.raises(InputError, match="holds argparse.Namespace"):
        load_public(hostile)


def test_damage_is_an_input_error(checkpoint, tmp_path):
    """Or it passes unnoticed, which the SHA-256 prevents; it is never another exception."""
    content, damaged = checkpoint.read_bytes(), tmp_path / "damaged.pt"
    for seed in range(60):
        changed = bytearray(content)
        for at in np.random.default_rng(seed).integers(0, 900, 3):
            changed[at] ^= 85
        damaged.write_bytes(changed)
        try:
            load_public(damaged)
        except InputError:
            pass
    for bad in (content[:300], content[:-200], b"", b"<html>quota exceeded</html>", os.urandom(2000)):
        damaged.write_bytes(bad)
        with pytest.raises(InputError, match="damaged.pt"):
            load_public(damaged)
    with pytest.raises(InputError, match="nowhere.pt"):
        load_public(tmp_path / "nowhere.pt")


def test_a_public_file_is_verified_before_use(public, checkpoint):
    source, folder = public
    file = fetch("net.pt")
    file.write_bytes(checkpoint.read_bytes())
    for name in ("net.pt", file):
        with pytest.raises(InputError, match="net.pt: damaged or changed"):
            load_public(name)
    (folder / "SHA256SUMS").unlink()                      # a file that was put there by hand is recorded
    assert sorted(load_public("net.pt")) == ["latent_avg", "opts", "state_dict"]
    assert checksum("net.pt") == (sha256(checkpoint), "recorded here")


# Conversion

def test_layouts(net, tmp_path):
    import torch
    other, target = tmp_path / "other.pt", tmp_path / "other.safetensors"
    big = {"weight": torch.randn(100, 100)}

    def same(state):
        return all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    torch.save({"g_ema": net.state_dict(), "latent_avg": torch.ones(8), "g": big, "d": big, "g_optim": {"state": {0: big}}, "args": {"size": 8}}, other)
    back = load_public(convert(other, target))
    assert sorted(back) == ["g_ema", "latent_avg"] and same(back["g_ema"])     # rosinality, without discriminator and optimisers
    assert target.stat().st_size < 3000
    torch.save(net.state_dict(), other)                                         # ArcFace: a bare state dict
    assert same(load_public(convert(other, target)))
    assert convert(other, tmp_path / "half.safetensors", half=True).stat().st_size < target.stat().st_size - 200


def test_refused_conversions_leave_the_earlier_result(net, checkpoint, tmp_path, monkeypatch):
    import torch
    other, target = tmp_path / "other.pt", tmp_path / "other.safetensors"
    written = convert(checkpoint, target).read_bytes()
    for bad in ([1, 2], {"opts": {}}, {"state_dict": {}}, {"state_dict": {"a": 1}}, {"model": net.state_dict()}):
        torch.save(bad, other)
        with pytest.raises(InputError, match="other.pt: neither a state dict nor a checkpoint"):
            convert(other, target)
    with pytest.raises(InputError, match="must end in .safetensors"):
        convert(checkpoint, tmp_path / "x.pt")

    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        convert(checkpoint, target)
    assert target.read_bytes() == written and not list(tmp_path.glob(".*"))


SAVE_AND_LOAD = """
import sys, torch
from aueditnet.files import weights
which = sys.argv[1]
for i in range(15):
    if which == "save": weights.save("heads128-au", {"x": torch.full((20000,), float(i))}, {"round": i})
    else: weights.load("heads128-au")
"""


def test_one_process_saves_what_another_loads(tmp_path):
    """File and checksum change under one lock: nobody sees the new file beside the old checksum."""
    package = tmp_path / "aueditnet"
    shutil.copytree(ROOT / "aueditnet", package)
    (tmp_path / "settings.ini").write_bytes((ROOT / "settings.ini").read_bytes())
    (tmp_path / "data" / "weights").mkdir(parents=True)
    env = child_env(AUEDITNET_HOME=str(tmp_path / "cache"))
    def start(which):
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})" + SAVE_AND_LOAD
        return subprocess.Popen([sys.executable, "-c", code, which], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    first = start("save")
    assert first.wait(120) == 0, first.stderr.read()
    both = [start("save"), start("load"), start("load")]
    for process in both:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
