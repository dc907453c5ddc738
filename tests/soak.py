"""A visitor who stays for an hour: random edits, uploads and broken files on one page, in one process.

    python tests/soak.py --minutes 60

Writes a line a minute (resident memory, what was done, errors) and ends with the slope of the memory; exit code 1 if there was an error."""
import argparse
import collections
import faulthandler
import gc
import io
import os
import random
import sys
import tempfile
import time
import traceback
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy as np
from mutation import bomb, mutated
from PIL import Image

NBS = Path(__file__).resolve().parent.parent / "nbs"
PHOTOGRAPHS = [file.read_bytes() for file in (NBS / "images" / "astronaut.jpg",)]
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "tif": "TIFF", "bmp": "BMP", "gif": "GIF"}


def resident():
    """Memory of this process in MB."""
    return next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmRSS"))


def encoded(picture, suffix):
    file = io.BytesIO()
    picture.convert("RGB").save(file, FORMATS[suffix])
    return file.getvalue()


def photograph(rng):
    """A photograph with a face: of another size, format, crop, side."""
    picture = Image.open(io.BytesIO(rng.choice(PHOTOGRAPHS)))
    if rng.random() < 0.3: picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.3: picture = picture.crop((100, 0, 420, 320))
    side = rng.choice((300, 512, 800, 1600))
    picture = picture.resize((side, round(side * picture.height / picture.width)))
    return encoded(picture, rng.choice(list(FORMATS)))


def broken(rng):
    """A file that is no picture, or no longer one, or a very large one, or shows no face."""
    kind = rng.choice(("empty", "noise", "text", "mutated", "mutated", "mutated", "large", "bomb", "no face", "tiny"))
    if kind == "empty": return kind, b""
    if kind == "noise": return kind, rng.randbytes(rng.choice((10, 10_000, 300_000)))
    if kind == "text": return kind, "no picture, ünïcode\r\n".encode() * 100
    if kind == "mutated": return kind, mutated(photograph(rng), rng)
    if kind == "large": return kind, encoded(Image.new("RGB", (9000, 9000), "grey"), "png")     # 81 million pixels
    if kind == "bomb": return kind, bomb(rng.choice((30_000, 60_000)))
    if kind == "tiny": return kind, encoded(Image.new("RGB", (3, 5)), "png")
    return kind, encoded(Image.fromarray(np.full((300, 400, 3), rng.randrange(256), np.uint8)), "jpg")


class Visitor:
    """Does at random what a visitor can do. `errors` holds what must not happen."""

    def __init__(self, explorer, faces, rng, found):
        self.page, self.faces, self.rng, self.found = explorer, faces, rng, Path(found) if found else None
        self.done, self.errors, self.count = collections.Counter(), [], 0
        self.downloads = []
        explorer.upload.send = lambda message, buffers=None: self.downloads.append(message)     # there is no browser

    def send(self, name, content):
        """A file as the browser sends it."""
        step, self.content = 1 << 20, content
        self.count += 1
        self.store(f"soak_upload_{self.count % 5}")     # the last ones are there after a crash
        for at in range(0, max(len(content), 1), step):
            self.page.upload.receive({"kind": "part", "name": name, "at": at, "size": len(content)}, [memoryview(content)[at:at + step]])

    def slider(self):
        self.rng.choice(list(self.page.sliders.values())).value = round(self.rng.uniform(-2, 7), 1)

    def preset(self): self.rng.choice([*self.page.presets.values(), self.page.reset]).click()

    def toggle(self):
        toggle = self.rng.choice((self.page.compare, self.page.zoom))
        toggle.value = not toggle.value

    def other_face(self):
        self.page.face.value = self.rng.choice(self.page.face.options)
        if self.rng.random() < 0.3: self.page.wait()

    def fitted(self):
        self.page.steps = self.rng.choice((2, 20))
        self.page.fit.value = not self.page.fit.value

    def good_upload(self):
        self.page.steps = self.rng.choice((2, 2, 20, None))
        self.send(self.rng.choice(("me.jpg", "you.png", "<i>&.webp", "私.tif", "a" * 300)), photograph(self.rng))
        if self.rng.random() < 0.8: self.page.wait()

    def crop_upload(self):
        name = self.rng.choice(list(self.faces))
        self.page.add(f"crop {name}", self.faces[name])

    def broken_upload(self):
        kind, content = broken(self.rng)
        self.done[kind] += 1
        self.send(f"{kind}.jpg", content)
        self.page.wait()
        if not self.page.message.value and kind != "mutated": self.errors.append(f"{kind}: nothing is said")

    def too_large(self):
        """More than the limit, by a browser that says so, or that does not."""
        before, part, limit = self.page.face.value, bytes(1 << 20), self.page.upload.limit
        said = self.rng.choice((limit + 2 * len(part), 1000))
        for at in range(0, limit + 2 * len(part), len(part)):
            self.page.upload.receive({"kind": "part", "name": "large.jpg", "at": at, "size": said}, [part])
        if self.page.upload._parts or self.page.face.value != before: self.errors.append("too large: taken")
        if "large.jpg has" not in self.page.message.value: self.errors.append("too large: nothing is said")

    def download(self): self.page.save.click()

    ACTS = {"slider": 60, "preset": 8, "toggle": 6, "other_face": 6, "fitted": 2, "good_upload": 4, "crop_upload": 2, "broken_upload": 8,
            "too_large": 1, "download": 3}

    def act(self):
        name = self.rng.choices(list(self.ACTS), self.ACTS.values())[0]
        self.done[name] += 1
        self.content = b""
        try: getattr(self, name)()
        except Exception: self.errors.append(f"{name}: {traceback.format_exc()}")
        self.check(name)

    def check(self, name):
        """Collect what no `InputError` explains."""
        before = len(self.errors)
        for word in ("cannot be edited (", "Traceback"):
            if word in self.page.message.value: self.errors.append(f"{name}: {self.page.message.value}")
        if len(self.errors) > before: self.store(f"soak_error_{before}_{name}")

    def store(self, name):
        """Keep the last upload."""
        if not self.found: return
        self.found.mkdir(parents=True, exist_ok=True)
        (self.found / name).write_bytes(self.content)


def slope(minutes, values, after=10):
    """MB an hour, by least squares, after the first minutes; and its standard error."""
    t, v = np.array(minutes), np.array(values)
    t, v = t[t >= after], v[np.array(minutes) >= after]
    if len(t) < 3: return float("nan"), float("nan")
    fit, error = np.polyfit(t / 60, v, 1, cov="unscaled")
    rest = v - np.polyval(fit, t / 60)
    return fit[0], float(np.sqrt(error[0, 0] * rest.var(ddof=2)))


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--minutes", type=float, default=60)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--found", help="a folder for uploads that caused an error")
    words = words.parse_args()
    faulthandler.enable()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = os.environ["XDG_CACHE_HOME"] = tempfile.tempdir = folder     # what is left there is reported
        from aueditnet.commands.apps import page
        from aueditnet.commands.kernels import prepare
        prepare("heads128", "cpu")      # as in the process that becomes a visitor's kernel
        explorer = page()
        faces = {name: picture for name, picture in explorer._faces.items()}
        visitor = Visitor(explorer, faces, random.Random(words.seed), words.found)
        began = shown = time.monotonic()
        minutes, memory = [], []
        while (now := time.monotonic()) - began < 60 * words.minutes:
            if now - shown >= 60 or not minutes:
                explorer.wait()
                gc.collect()
                minutes.append((now - began) / 60)
                memory.append(resident())
                shown = now
                print(f"{minutes[-1]:5.1f} min {memory[-1]:7.1f} MB, errors {len(visitor.errors)}, {dict(visitor.done)}", flush=True)
                for error in visitor.errors[-3:]: print("   ", error[-300:], flush=True)
            visitor.act()
        explorer.wait()
        left = [file for file in Path(folder).rglob("*") if file.is_file()]
    for error in visitor.errors: print(error[-2000:], flush=True)
    rise, error = slope(minutes, memory)
    done = visitor.done
    print(f"{sum(done[name] for name in visitor.ACTS)} actions: {done['slider'] + done['preset']} edits, "
          f"{done['good_upload'] + done['crop_upload']} uploads, {done['broken_upload'] + done['too_large']} bad files; "
          f"errors {len(visitor.errors)}, files left {len(left)}, "
          f"memory {memory[-1]:.0f} MB, largest {max(memory):.0f} MB, {rise:+.1f} ± {error:.1f} MB/h after 10 minutes")
    return bool(visitor.errors or left)


if __name__ == "__main__":
    sys.exit(main())
