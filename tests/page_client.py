"""A visitor of `aueditnet app` without a browser: speaks the protocol of Jupyter's widgets over a websocket. And the server, with its memory."""
import asyncio
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import uuid
from pathlib import Path

APP = "import sys; from aueditnet.cli import app; sys.argv[0] = 'aueditnet'; app()"


class Server:
    """`aueditnet app` in a folder of its own, as a context; `url`, `log`, `folder`."""

    def __init__(self, folder, *words, **env):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.folder, self.url = Path(folder), f"http://127.0.0.1:{self.port}"
        self.words, self.log = [*words, "--no-browser", f"--port={self.port}"], self.folder / "server.log"
        own = {name: str(self.folder / name.lower()) for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
        for path in own.values():
            Path(path).mkdir(exist_ok=True)
        self.env = {k: v for k, v in os.environ.items() if k not in ("IN_TEST", "PYTHONPATH")} | own | env

    def __enter__(self):
        with open(self.log, "w") as log:
            self.process = subprocess.Popen([sys.executable, "-c", APP, "app", *self.words], cwd=self.folder, env=self.env, stdout=log, stderr=subprocess.STDOUT)
        began = time.monotonic()
        while "AUEditNet is at" not in self.said():
            if self.process.poll() is not None or time.monotonic() > began + 120:
                self.__exit__()
                raise AssertionError(self.said())
            time.sleep(0.1)
        self.start_up = time.monotonic() - began
        return self

    def __exit__(self, *problem):
        self.process.send_signal(signal.SIGTERM)
        try: self.process.wait(30)
        except subprocess.TimeoutExpired: self.process.kill()

    def said(self): return self.log.read_text(errors="replace")

    def processes(self):
        """Its own number and those of all its descendants."""
        parents = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try: parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
            except (OSError, ValueError): pass
        found = [self.process.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def memory(self):
        """MB of all its processes; what several of them share counts once."""
        total = 0
        for pid in self.processes():
            try: rows = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except OSError: continue
            total += int((re.search(r"^Pss:\s+(\d+)", rows, re.M) or [0, 0])[1])
        return total / 1024

    def files(self):
        """What lies in its folders, but for the server's own configuration and log."""
        return [path for path in self.folder.rglob("*") if path.is_file() and path != self.log]


PROTOCOL = "v1.kernel.websocket.jupyter.org"


def framed(parts):
    """A message of this protocol: the number of places, the places, the parts."""
    places = [8 * (len(parts) + 2)]
    for part in parts: places.append(places[-1] + len(part))
    return struct.pack(f"<{len(places) + 1}Q", len(places), *places) + b"".join(parts)


class Full(Exception):
    """The page is full."""


class Visitor:
    """`await Visitor.open(url)`, then `move`, `upload`, `close`. `states`: {comm: state} of all widgets, as the server tells them."""

    @classmethod
    async def open(cls, url):
        from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
        self, began = cls(), time.monotonic()
        AsyncHTTPClient.configure(None, max_clients=1000)
        try: page = await AsyncHTTPClient(force_instance=True).fetch(HTTPRequest(url, request_timeout=300, connect_timeout=300))
        except HTTPClientError as problem:
            if problem.code == 503: raise Full(problem.response.body.decode()) from None
            raise
        self.url, self.page_seconds = url, time.monotonic() - began
        self.cookie = (re.search(r"_xsrf=([^;]+)", " ".join(page.headers.get_list("Set-Cookie"))) or ["", ""])[1]
        self.kernel = re.search(r'"?kernelId"?:\s*"([\w-]+)"', page.body.decode())[1]
        self.session, self.states, self.waiting, self.problems = uuid.uuid4().hex, {}, [], []
        self.buffers, self.enabled, self.comms = {}, 0, {}
        await self.connect()
        return self

    async def connect(self):
        from tornado.websocket import websocket_connect
        address = f"{self.url.replace('http', 'ws')}/api/kernels/{self.kernel}/channels?session_id={self.session}"
        self.socket = await websocket_connect(address, max_message_size=64 << 20, subprotocols=[PROTOCOL])
        self.reader = asyncio.ensure_future(self.read())
        control = uuid.uuid4().hex
        self.send("comm_open", {"comm_id": control, "target_name": "jupyter.widget.control", "data": {}}, metadata={"version": "1.0.0"})
        self.control = control
        self.send("comm_msg", {"comm_id": control, "data": {"method": "request_states"}})
        await self.until(lambda: any(s.get("_model_name") == "ImageModel" for s in self.states.values()), 120)
        self.comms = {s.get("description") or s["_model_name"]: comm for comm, s in self.states.items() if s.get("_model_name")}
        self.picture = next(c for c, s in self.states.items() if s["_model_name"] == "ImageModel")
        self.input = next(c for c, s in self.states.items() if "limit" in s)
        self.face = self.comms["face"]

    def send(self, kind, content, metadata=None, buffers=()):
        """A message on the shell channel; returns its number."""
        header = {"msg_id": uuid.uuid4().hex, "msg_type": kind, "session": self.session, "username": "", "version": "5.3", "date": ""}
        parts = [b"shell", *(json.dumps(part).encode() for part in (header, {}, metadata or {}, content)), *buffers]
        self.socket.write_message(framed(parts), binary=True)
        return header["msg_id"]

    async def read(self):
        while (raw := await self.socket.read_message()) is not None:
            n = int.from_bytes(raw[:8], "little")
            places = struct.unpack(f"<{n}Q", raw[8:8 * (n + 1)])
            _, header, parent, _, content, *buffers = (raw[a:b] for a, b in zip(places, places[1:]))
            self.take({"msg_type": json.loads(header)["msg_type"], "parent_header": json.loads(parent), "content": json.loads(content)}, buffers)

        for _, future in self.waiting:
            if not future.done(): future.set_exception(ConnectionError("the server has closed the connection"))

    def take(self, message, buffers):
        kind, content = message["msg_type"], message["content"]
        data = content.get("data", {}) if kind in ("comm_msg", "comm_open") else {}
        if data.get("method") == "update_states":
            self.states |= {comm: dict(model["state"], _model_name=model["model_name"]) for comm, model in data["states"].items()}
        elif data.get("method") == "update":
            self.states.setdefault(content["comm_id"], {}).update(data["state"])
            if ["value"] in data.get("buffer_paths", []): self.buffers[content["comm_id"]] = buffers[0]
            self.enabled += content["comm_id"] == self.comms.get("AU12") and data["state"].get("disabled") is False
        elif kind == "error": self.problems.append(content)
        for true, future in list(self.waiting):
            if not future.done() and true(message): future.set_result(message)

    async def until(self, true, seconds=120):
        """Wait until `true()` after some message."""
        if true(): return
        future = asyncio.get_running_loop().create_future()
        self.waiting.append(entry := (lambda _: true(), future))
        try: await asyncio.wait_for(future, seconds)
        finally: self.waiting.remove(entry)

    def update(self, comm, **state):
        return self.send("comm_msg", {"comm_id": comm, "data": {"method": "update", "state": state, "buffer_paths": []}})

    async def move(self, au="AU12", value=3.0, seconds=120):
        """Move a slider; the seconds until the picture comes. None if it stays as it was: the face has this intensity anyway."""
        began, future = time.monotonic(), asyncio.get_running_loop().create_future()
        sent = self.update(self.comms[au], value=value)
        def answer(message):
            own, content = message["parent_header"].get("msg_id") == sent, message["content"]
            return own and (content.get("comm_id") == self.picture or content.get("execution_state") == "idle")
        self.waiting.append(entry := (answer, future))
        try: message = await asyncio.wait_for(future, seconds)
        finally: self.waiting.remove(entry)
        return time.monotonic() - began if message["msg_type"] == "comm_msg" else None

    def upload(self, name, content, size=None):
        """Send a file in parts, as the page does. `size`: what is said about it."""
        part = 1 << 20
        for at in range(0, max(1, len(content)), part):
            self.send("comm_msg", {"comm_id": self.input, "data": {"method": "custom", "content": {
                "kind": "part", "name": name, "at": at, "size": len(content) if size is None else size}}}, buffers=[content[at:at + part]])

    def texts(self):
        """What HTML widgets say."""
        return " ".join(s["value"] for s in self.states.values() if s.get("_model_name") == "HTMLModel" and s.get("value"))

    def faces(self): return list(self.states[self.face]["_options_labels"])

    def shown(self): return self.buffers.get(self.picture)

    async def prepared(self, name, content, seconds=300):
        """Upload a photograph; the seconds until its sliders can be moved. Or until the page says what is wrong with it."""
        began, before = time.monotonic(), self.enabled
        self.upload(name, content)
        await self.until(lambda: self.enabled > before or name in self.texts(), seconds)
        return time.monotonic() - began

    async def close(self, said=True):
        """Close the page. `said`: the browser tells the server, as it does unless it crashes."""
        self.socket.close()
        self.reader.cancel()
        if said:
            def tell():
                words = urllib.request.Request(f"{self.url}/voila/api/shutdown/{self.kernel}", f"_xsrf={self.cookie}".encode(),
                                               {"Cookie": f"_xsrf={self.cookie}"})
                try: urllib.request.urlopen(words, timeout=60).close()
                except OSError as problem: self.problems.append(problem)
            await asyncio.to_thread(tell)
