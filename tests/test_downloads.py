"""Downloads of public weights in a world of faults: nothing half-written is ever taken for whole. A local server stands in for the authors'.

torch is imported late: the processes that download import this file too."""
import errno
import hashlib
import io
import multiprocessing
import os
import random
import re
import resource
import shutil
import signal
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import gdown
import pytest
from typer.testing import CliRunner

from aueditnet.cli import app
from aueditnet.files import downloads, weights
from aueditnet.files.errors import InputError

RECEIVE = downloads.receive
NAME = "public.pt"
CONTENT = random.Random(0).randbytes(4_000_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
SPAWN = multiprocessing.get_context("spawn")


class Server(ThreadingHTTPServer):
    """Serves CONTENT, or what it is told to; hangs up before byte `cut`, knows Range or not, takes its time."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.content, self.cut, self.ranges, self.status, self.pause, self.asked = CONTENT, None, True, 200, 0, []
        self.url = f"http://127.0.0.1:{self.server_port}/{NAME}"

    def handle_error(self, request, client_address):
        pass    # a client that was killed or gave up


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.asked.append(wanted)
        if server.status != 200:
            return self.send_error(server.status)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(server.content) - 1}/{len(server.content)}")
        self.send_header("Content-Length", len(server.content) - start)
        self.end_headers()
        end = len(server.content) if server.cut is None else server.cut
        for at in range(start, end, 1 << 18):
            self.wfile.write(server.content[at:min(at + (1 << 18), end)])
            time.sleep(server.pause)


@pytest.fixture
def server():
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def public(server, tmp_path, monkeypatch):
    """An empty cache, and a registry with one more file, whose checksum is known; gives the place of that file."""
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path / "home"))
    monkeypatch.setitem(weights.REGISTRY, NAME, {"what": "a network", "licence": "-", "url": server.url, "sha256": DIGEST})
    receive = downloads.receive
    monkeypatch.setattr(downloads, "receive", lambda url, part, retries, timeout: receive(url, part, 0, 5))    # no patience
    return tmp_path / "home" / "weights" / NAME


def remains(file):
    """What is in the folder besides locks."""
    return sorted(f.name for f in file.parent.iterdir() if f.suffix != ".lock")


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(*words):
    """The one line that a command ends with."""
    result = run(*words)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, (result.output, result.exception)
    return result.stderr


# The network

@pytest.mark.parametrize("seed", range(20))
def test_cut_and_resumed(server, public, seed):
    """Cut at one to three random bytes; meanwhile somebody looks at the final name all the time."""
    seen, stop = set(), threading.Event()

    def look():
        while not stop.is_set():
            try:
                seen.add(public.stat().st_size)
            except FileNotFoundError:
                time.sleep(0.0005)

    watcher = threading.Thread(target=look)
    watcher.start()
    rng = random.Random(seed)
    cuts = sorted(rng.randrange(len(CONTENT)) for _ in range(rng.randint(1, 3)))
    for server.cut in cuts:
        with pytest.raises(InputError, match="the connection was cut"):
            weights.fetch(NAME)
        assert not public.exists()
    server.cut = None
    weights.fetch(NAME)
    stop.set()
    watcher.join()
    assert public.read_bytes() == CONTENT and remains(public) == [NAME]
    assert seen <= {len(CONTENT)}
    kept = [int(wanted[6:-1]) for wanted in server.asked if wanted]
    assert kept == sorted(kept) and (not kept or kept[-1] > 0) and (kept or cuts[-1] < 1 << 19)    # gdown keeps whole blocks of 512 kB


def test_server_without_range(server, public):
    server.ranges, server.cut = False, 3_000_000
    with pytest.raises(InputError, match="the connection was cut"):
        weights.fetch(NAME)
    server.cut = None
    weights.fetch(NAME)
    assert public.read_bytes() == CONTENT and remains(public) == [NAME]


def test_file_changed_between_the_parts(server, public):
    """Two halves of different files must not become one."""
    server.content, server.cut = bytes(len(CONTENT)), 3_000_000
    with pytest.raises(InputError, match="the connection was cut"):
        weights.fetch(NAME)
    server.content, server.cut = CONTENT, None
    with pytest.raises(InputError, match="another file"):
        weights.fetch(NAME)
    assert remains(public) == []
    assert weights.fetch(NAME).read_bytes() == CONTENT


@pytest.mark.parametrize("status, says", [(404, "404 Not Found"), (403, "403 Forbidden"), (503, "503 Service Unavailable")])
def test_server_refuses(server, public, status, says):
    server.status = status
    line = refused("weights", "fetch", NAME)
    assert says in line and server.url in line and str(public.parent) in line
    assert remains(public) == []


@pytest.mark.parametrize("fault, says", [("503", "503 Service Unavailable"), ("offline", "no connection"), ("cut", "the connection was cut")])
def test_the_reason_is_the_same_after_several_attempts(server, public, monkeypatch, fault, says):
    """Users have three further attempts, and gdown's error is another one then."""
    monkeypatch.setattr(downloads, "receive", RECEIVE)
    monkeypatch.setattr(random, "uniform", lambda *bounds: 0)    # gdown waits so long between attempts
    if fault == "offline":
        server.shutdown()
        server.server_close()
    server.status, server.cut = 503 if fault == "503" else 200, 0
    line = refused("weights", "fetch", NAME)
    assert says in line and server.url in line and not public.exists()
    assert fault != "cut" or len(server.asked) == 4, server.asked


def test_offline(server, public):
    server.shutdown()
    server.server_close()
    line = refused("weights", "fetch", NAME)
    assert "no connection" in line and f"get {server.url} with a browser and put it into {public.parent}" in line
    public.write_bytes(CONTENT)    # by hand
    assert run("weights", "fetch", NAME).stdout.strip() == str(public)


# The file

def test_wrong_checksum(server, public):
    server.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    line = refused("weights", "fetch", NAME)
    assert DIGEST in line and hashlib.sha256(server.content).hexdigest() in line
    assert remains(public) == []


def test_the_name_is_free_until_the_check_has_passed(server, public):
    taken = []
    downloads.download(server.url, public, lambda part: taken.append((public.exists(), part.read_bytes() == CONTENT)))
    assert taken == [(False, True)] and remains(public) == [NAME]


def test_unknown_checksum_is_recorded_and_then_kept_to(server, public):
    del weights.REGISTRY[NAME]["sha256"]
    assert re.search(rf"{NAME} .* not known ", run("weights", "list").stdout)
    result = run("weights", "fetch", NAME)
    assert "not known" in result.stderr and DIGEST in result.stderr
    assert (public.parent / "SHA256SUMS").read_text() == f"{DIGEST}  {NAME}\n"
    assert re.search(rf"{NAME} .* recorded here ", run("weights", "list").stdout)
    assert "whole, SHA-256 recorded here" in run("weights", "verify", NAME).stdout
    public.write_bytes(CONTENT[:-1])
    for words in (["verify", NAME], ["verify"], ["fetch", NAME], ["convert", NAME, public.with_suffix(".safetensors")]):
        assert "damaged or changed" in refused("weights", *words)
    public.unlink()
    server.content = CONTENT[:-1]    # the authors' file is another one now
    assert "SHA256SUMS" in refused("weights", "fetch", NAME) and not public.exists()


def test_verify_names_every_damaged_file(tmp_path, monkeypatch):
    monkeypatch.setenv("AUEDITNET_HOME", str(tmp_path))
    folder = tmp_path / "data" / "weights"
    folder.mkdir(parents=True)
    for file in (f for f in (weights.data_dir() / "weights").rglob("*") if f.is_file() and not f.name.startswith(".")):
        copy = folder / file.relative_to(weights.data_dir() / "weights")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.symlink_to(file)
    assert run("weights", "verify").exit_code == 0
    monkeypatch.setattr(weights, "data_dir", lambda: tmp_path / "data")
    for name in ("heads128-au", "heads128-evaluator"):
        file = weights.path_for(name)
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.unlink()
        file.write_bytes(content)
    line = refused("weights", "verify")
    assert "au_net.safetensors: damaged" in line and "evaluator.safetensors: damaged" in line and line.count("damaged") == 2
    assert refused("weights", "verify", "heads128-au").count("damaged") == 1


# The machine

def fetch_apart(url, file, largest=None):
    """In a process of its own: a download, of which at most `largest` bytes fit on the disk."""
    if largest:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    try:
        downloads.download(url, file, lambda part: None, retries=0)
    except InputError as problem:
        print(problem, flush=True)
        raise SystemExit(2) from None


def test_two_processes_at_once(server, public):
    server.pause = 0.1
    both = [SPAWN.Process(target=fetch_apart, args=(server.url, public)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert public.read_bytes() == CONTENT and remains(public) == [NAME]
    assert server.asked == [None]    # one download, from the start to the end


def test_killed_and_resumed(server, public):
    server.pause = 0.2
    process = SPAWN.Process(target=fetch_apart, args=(server.url, public))
    process.start()
    deadline = time.monotonic() + 60
    while not any(part.stat().st_size for part in public.parent.glob(".*.part")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert not public.exists() and len(remains(public)) == 1
    server.pause = 0
    assert weights.fetch(NAME).read_bytes() == CONTENT    # its lock went with it
    assert server.asked[-1].startswith("bytes=") and remains(public) == [NAME]


def test_disk_full(server, public, capfd):
    process = SPAWN.Process(target=fetch_apart, args=(server.url, public, 2_000_000))
    process.start()
    process.join(60)
    assert process.exitcode == 2 and not public.exists()
    assert "the disk is full" in capfd.readouterr().out
    assert weights.fetch(NAME).read_bytes() == CONTENT    # when there is space again


def test_disk_full_is_one_line(public, monkeypatch):
    def receive(*args):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(downloads, "receive", receive)
    assert "the disk is full" in refused("weights", "fetch", NAME)
    assert remains(public) == []


@pytest.mark.parametrize("problem, says", [
    (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"), (KeyError("Content-Type"), "KeyError; or get http"),
    (gdown.exceptions.FileURLRetrievalError("quota"), "Google Drive does not hand it out"), (ConnectionResetError(errno.ECONNRESET, "Connection reset"), "Connection reset")])
def test_every_error_is_one_line(public, monkeypatch, problem, says):
    def transfer(*args, **options):
        raise problem
    monkeypatch.setattr("gdown.download", transfer)
    assert says in refused("weights", "fetch", NAME)
    assert remains(public) == []


def test_a_lock_ends_with_its_process(server, public):
    """The lock file of a killed process blocks nobody."""
    public.parent.mkdir(parents=True)
    lock = public.parent / f".{NAME}.lock"
    process = SPAWN.Process(target=lock_and_die, args=(lock,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and lock.exists()
    assert weights.fetch(NAME).read_bytes() == CONTENT


def lock_and_die(lock):
    from filelock import FileLock
    FileLock(lock).acquire()
    os.kill(os.getpid(), signal.SIGKILL)


# Another format

@pytest.fixture(scope="module")
def e4e(tmp_path_factory):
    """The bundled encoder and generator in the layout of the public e4e file."""
    import torch
    from aueditnet.inversion import Inverter
    ours = Inverter.from_pretrained("heads128")
    state = {f"{part}.{k}": v for part, net in (("encoder", ours.encoder), ("decoder", ours.generator)) for k, v in net.state_dict().items()}
    file = tmp_path_factory.mktemp("e4e") / "e4e.pt"
    torch.save({"state_dict": state, "latent_avg": torch.randn(ours.generator.n_levels, ours.generator.style_dim) / 9, "opts": {"start_from_latent_avg": True, "device": "cuda:0"}}, file)
    return file


@pytest.mark.parametrize("half", [False, True])
def test_converted_e4e_inverts_the_same(e4e, tmp_path, half):
    import torch
    from aueditnet.inversion import Inverter
    out = tmp_path / "e4e.safetensors"
    assert run("weights", "convert", e4e, out, *["--half"] * half).exit_code == 0
    assert out.stat().st_size < e4e.stat().st_size * (0.6 if half else 1.01)
    ours, (before, after) = Inverter.from_pretrained("heads128"), map(Inverter.from_e4e, (e4e, out))
    x = torch.rand(1, 3, ours.size_in, ours.size_in, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        codes = [inverter.encoder(x) + inverter.latent_avg for inverter in (before, after)]
        pictures = [inverter.synthesize(codes[0]) for inverter in (before, after)]
    for one, other in (codes, pictures):
        assert (one - other).norm() < 0.01 * one.norm() if half else torch.equal(one, other)


def test_convert_refuses(e4e, tmp_path):
    import torch
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"an earlier result")
    wrong = tmp_path / "wrong.pt"
    torch.save({"epoch": 3}, wrong)
    assert "wrong.pt" in refused("weights", "convert", wrong, out)
    assert "out.pt" in refused("weights", "convert", e4e, tmp_path / "out.pt")
    assert "nowhere.pt" in refused("weights", "convert", "nowhere.pt", out)
    assert out.read_bytes() == b"an earlier result" and sorted(f.name for f in tmp_path.iterdir()) == ["out.safetensors", "wrong.pt"]


def test_a_hostile_file_does_not_run(tmp_path):
    import torch

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)
    torch.save({"state_dict": Hostile()}, tmp_path / "hostile.pt")
    assert "refused" in refused("weights", "convert", tmp_path / "hostile.pt", tmp_path / "out.safetensors")
    assert sorted(f.name for f in tmp_path.iterdir()) == ["hostile.pt"]


@pytest.mark.parametrize("suffix", ["gz", "xz", "bz2"])
def test_a_damaged_archive_is_refused_in_one_line(suffix, tmp_path):
    """Wherever the damage is: decompressors raise errors of their own kinds."""
    archive, content = tmp_path / f"a.tar.{suffix}", b"text " * 1000 + CONTENT[:20_000]
    with tarfile.open(archive, f"w:{suffix}") as box:
        member = tarfile.TarInfo("project/data/file")
        member.size = len(content)
        box.addfile(member, io.BytesIO(content))
    whole, sums = archive.read_bytes(), {"file": hashlib.sha256(content).hexdigest()}
    for at in range(0, len(whole) - 12, max(1, len(whole) // 60)):
        archive.write_bytes(whole[:at] + bytes(byte ^ 255 for byte in whole[at:at + 8]) + whole[at + 8:])
        try: downloads.unpack(archive, tmp_path / "data", sums)
        except InputError as problem: assert archive.name in str(problem) and "\n" not in str(problem)
        assert [file.name for file in tmp_path.iterdir() if file.is_dir()] in ([], ["data"])
        shutil.rmtree(tmp_path / "data", ignore_errors=True)
    archive.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(InputError, match="not a complete archive"): downloads.unpack(archive, tmp_path / "data", sums)
