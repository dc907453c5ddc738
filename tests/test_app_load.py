"""Several visitors of `aueditnet app` at once, without a browser: nobody sees another's photograph, and nothing of one stays."""
import asyncio
import io
import os
import sys
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
from conftest import NBS, complaint, run_python
from mutation import bomb
from page_client import Full, Server, Visitor, framed
from PIL import Image

pytest.importorskip("voila")
pytest.importorskip("dlib")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="processes are counted in /proc")
ASTRONAUT = NBS / "images" / "astronaut.jpg"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with Server(tmp_path_factory.mktemp("app"), "--visitors", "2", OMP_NUM_THREADS="1") as server:
        yield server


def visit(server, *tasks):
    """Run tasks one after the other, each with a list of visitors, who leave at the end."""
    async def all_of_them():
        here = []
        try:
            for task in tasks: await task(here)
        finally:
            for visitor in here: await visitor.close()
    asyncio.run(asyncio.wait_for(all_of_them(), 120))


def gone(server, seconds=30):
    """Wait until no kernel is left: the server, the process with the model and Python's tracker of resources are."""
    end = time.monotonic() + seconds
    while len(server.processes()) > 3:
        assert time.monotonic() < end, server.said()
        time.sleep(0.1)


def close(content, array):
    """Whether a picture file shows an array."""
    shown = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    return shown.shape == array.shape and abs(np.int16(shown) - array).mean() < 10


def rejected(url):
    try: return urllib.request.urlopen(url, timeout=30).status
    except urllib.error.HTTPError as problem: return problem.code


@LINUX
def test_visitors_do_not_see_each_other(server):
    """Two visitors, the third finds the page full. Pictures, names and states are the visitor's own. Then all is gone."""
    files, small = set(server.files()), np.array(Image.open(ASTRONAUT).resize((300, 300)))
    content = io.BytesIO()
    Image.fromarray(small).save(content, "JPEG")

    async def come(here):
        here.append(await Visitor.open(server.url))
        here.append(await Visitor.open(server.url))
        with pytest.raises(Full, match="2 people"):
            await Visitor.open(server.url)

    async def edit(here):
        one, other = here
        await one.move("AU12", 4.3)
        before = other.shown()
        one.upload("private.jpg", content.getvalue())
        await one.until(lambda: one.shown() and close(one.shown(), small), 60)     # while its sliders are prepared
        assert one.faces()[-1] == "private.jpg" and "private.jpg" not in other.faces() and other.shown() == before
        assert not set(one.states) & set(other.states), "no widget is known to both"
        await other.move("AU12", 3.3)
        assert not close(other.shown(), small)

    async def look_around(here):
        for path in ("/api/kernels", "/api/contents", "/api/sessions", "/voila/files/AUEditNet.ipynb", "/voila/tree"):
            assert rejected(server.url + path) >= 400, path
        one, other = here
        other.send("execute_request", {"code": "1/0", "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False})
        await other.move("AU1", 4.3)
        assert other.problems == [], "no code of a visitor is executed"

    visit(server, come, edit, look_around)
    gone(server)
    new = [path for path in set(server.files()) - files if path.suffix in (".jpg", ".png", ".json", ".safetensors", ".ipynb") or path.stat().st_size > 50_000]
    assert new == [], "left on the disk"
    assert "Traceback" not in server.said()


@LINUX
def test_uploads_are_refused_with_a_message(server):
    """Over the limit, said or not; no pictures; too many pixels. The page goes on."""
    async def upload(here):
        here.append(one := await Visitor.open(server.url))
        limit = one.states[one.input]["limit"]
        assert limit == 32 << 20
        for name, content, size, words in (("large.jpg", bytes(10), limit + 1, "large.jpg has 32 MB; at most 32 MB"),
                                           ("lies.jpg", bytes(limit + 1), 10, "lies.jpg has 32 MB; at most 32 MB"),
                                           ("notes.png", b"no picture", None, "notes.png: not a picture"), ("empty.png", b"", None, "empty.png: not a picture"),
                                           ("bomb.png", bomb(8000), None, "bomb.png: 8000x8000 pixels; at most 50 million")):
            one.upload(name, content, size)
            await one.until(lambda: words in one.texts(), 60)
        for odd in ({"kind": "part"}, {"kind": "part", "at": "0", "size": None, "name": {}}, [1], "part"):
            one.send("comm_msg", {"comm_id": one.input, "data": {"method": "custom", "content": odd}}, buffers=[b"x"])
        assert await one.move("AU12", 4.3) < 60 and len(one.faces()) == 9
    visit(server, upload)
    assert "Traceback" not in server.said()


@LINUX
def test_a_visitor_cannot_stop_the_server(server):
    """Messages that no browser sends end the connection. Voila would count the parts that the number promises."""
    from tornado.websocket import websocket_connect

    async def attack(here):
        here.append(one := await Visitor.open(server.url))
        address = f"{server.url.replace('http', 'ws')}/api/kernels/{one.kernel}/channels"
        old = await websocket_connect(address)      # of the older protocol
        old.write_message(bytes([255] * 100), binary=True)
        while await asyncio.wait_for(old.read_message(), 30) is not None: pass    # it is closed
        await one.move("AU12", 4.3)
        one.socket.write_message(b"\xff" * 8 + framed([b"shell"]), binary=True)
        await asyncio.wait_for(one.reader, 30)   # it is closed
    visit(server, attack)
    visit(server, lambda here: come_again(here, server))


async def come_again(here, server):
    here.append(one := await Visitor.open(server.url))
    await one.move("AU12", 4.3)


@LINUX
def test_nothing_outlives_the_server(server):
    """Not even where it is killed: the last test of this server."""
    numbers = []
    async def stay(here):
        await Visitor.open(server.url)
        numbers.extend(server.processes()[1:])
        server.process.kill()
    visit(server, stay)
    end = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{number}") for number in numbers) and time.monotonic() < end: time.sleep(0.1)
    assert len(numbers) >= 3 and not any(os.path.exists(f"/proc/{number}") for number in numbers)


def test_addresses():
    """Loopback or not is known before anything is served; what cannot be bound is said in a line."""
    import socket

    from aueditnet.commands.apps import check_address
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert check_address("127.0.0.1", port) and check_address("localhost", port) and not check_address("0.0.0.0", port)
    assert not check_address("*", port), "the server takes it for all addresses"
    assert "not a host name" in complaint(lambda: check_address("a" * 70, port))
    assert "--host nowhere.invalid" in complaint(lambda: check_address("nowhere.invalid", port))
    assert "not an address of this computer" in complaint(lambda: check_address("203.0.113.1", port))


LIMITED = """
import numpy as np, torch, cv2
from aueditnet.commands.kernels import limit_memory
from aueditnet.photographs.previews import explained
limit_memory(200 << 20)
small = np.ones((1000, 1000, 3), np.uint8)
for call in (lambda: np.ones(300 << 20, np.uint8), lambda: torch.ones(300 << 20, dtype=torch.uint8), lambda: cv2.resize(small, (20_000, 10_000))):
    try: call()
    except Exception as problem: print(explained(problem))
print(np.ones(50 << 20, np.uint8).mean())
"""


@LINUX
def test_a_kernel_gets_no_more_than_its_share(tmp_path):
    """A large picture is refused by words, whichever library asks for the memory; smaller ones still fit."""
    done = run_python("-c", LIMITED, cwd=tmp_path)
    assert done.stdout.splitlines() == ["the memory is not enough for this picture: make it smaller"] * 3 + ["1.0"], done.stderr


def test_the_shares_of_all_visitors_fit(monkeypatch, capsys):
    from aueditnet.commands import apps
    monkeypatch.setattr(apps, "free_memory", lambda: 20 << 30)
    assert 20 * apps.share_of(20) <= 16 << 30 and apps.share_of(1) == 2 << 30 and capsys.readouterr().err == ""
    monkeypatch.setattr(apps, "free_memory", lambda: 4 << 30)
    assert 20 * apps.share_of(20) <= 3.2 * (1 << 30) and "--visitors 8" in capsys.readouterr().err
    monkeypatch.setattr(apps, "free_memory", lambda: 0)     # unknown
    assert apps.share_of(20) == 0


def test_faces_are_found_in_two_threads():
    """A visitor who chooses another photograph while one is read: dlib alone would crash."""
    from aueditnet.align import find_faces
    picture = np.array(Image.open(ASTRONAUT).resize((256, 256)))
    found, threads = [], []
    for _ in range(4):
        threads.append(threading.Thread(target=lambda: found.extend(find_faces(picture)[0].box for _ in range(3))))
        threads[-1].start()
    for thread in threads: thread.join()
    assert len(found) == 12 and len(set(found)) == 1
