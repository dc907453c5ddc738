"""Visitors of `aueditnet app`, all at once: how long a move of a slider takes, how much memory they need, and what is left of them.

    python tests/load_app.py --visitors 20 --seconds 300

Each visitor opens the page, moves sliders with pauses, uploads a photograph of their own at some time, moves its sliders, and leaves. Some files that
they upload are broken. Half of the visitors close the page, the others vanish like a browser that crashes. `--browser 2`: so many of them are pages
in a real Chromium (Playwright), which include the time that the browser needs. The exit code is 1 after an error."""
import argparse
import asyncio
import io
import os
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import numpy as np
from mutation import mutated
from page_client import Full, Server, Visitor
from PIL import Image

ASTRONAUT = Path(__file__).resolve().parent.parent / "nbs" / "images" / "astronaut.jpg"
AUS = ("AU1", "AU2", "AU4", "AU6", "AU9", "AU12", "AU15", "AU17", "AU20", "AU25", "AU26")


def own_photograph(number):
    """A photograph with the visitor's own colour on its left edge, and the colour."""
    picture = Image.open(io.BytesIO(ASTRONAUT.read_bytes()))
    colour = (number * 37 % 256, number * 91 % 256, 255 - number * 53 % 256)
    picture.paste(colour, (0, 0, 40, picture.height))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue(), colour


class Load:
    """What all visitors do, and what was measured."""

    def __init__(self, server, words):
        self.server, self.words, self.end = server, words, time.monotonic() + words.seconds
        self.pages, self.crops, self.photographs, self.prepared, self.browser = [], [], [], [], []
        self.errors, self.refused, self.memory = [], 0, []

    async def visitor(self, number):
        rng = random.Random(number)
        await asyncio.sleep(rng.random() * self.words.arrive)
        try:
            one = await Visitor.open(self.server.url)
            self.pages.append(one.page_seconds)
            upload_at = time.monotonic() + rng.random() * self.words.seconds / 3
            await self.moves(one, rng, min(upload_at, self.end), self.crops)
            content, colour = own_photograph(number)
            one.upload("broken.jpg", mutated(content, rng)[:rng.randrange(5000)])
            await one.until(lambda: "broken.jpg" in one.texts())
            self.refused += 1
            self.prepared.append(await one.prepared(f"visitor{number}.png", content, 3600))
            self.check(one, number, colour)
            await self.moves(one, rng, self.end, self.photographs)
            self.check(one, number, colour)
            self.errors += [str(problem) for problem in one.problems]
            await one.close(said=number % 2 == 0)
        except Full: self.errors.append(f"visitor {number}: the page is full")
        except Exception as problem: self.errors.append(f"visitor {number}: {type(problem).__name__} {problem}")

    async def moves(self, one, rng, end, times):
        while time.monotonic() < end:
            seconds = await one.move(rng.choice(AUS), rng.randrange(-19, 69) / 10)
            if seconds is not None: times.append(seconds)
            await asyncio.sleep(rng.expovariate(1 / self.words.pause))

    def check(self, one, number, colour):
        """The visitor sees the own photograph, and no other visitor's."""
        names = [name for name in one.faces() if name.startswith("visitor")]
        edge = np.asarray(Image.open(io.BytesIO(one.shown())).convert("RGB"))[:, 5:30].mean((0, 1))
        if names != [f"visitor{number}.png"]: self.errors.append(f"visitor {number} sees {names}")
        if abs(edge - colour).max() > 25: self.errors.append(f"visitor {number} sees another picture")

    async def in_browser(self, playwright, number):
        """A page in Chromium: from a key on a slider to the new picture."""
        rng = random.Random(number)
        browser = await playwright.chromium.launch(executable_path=chromium(), args=["--headless", "--no-sandbox", "--disable-gpu"])
        try:
            page = await browser.new_page()
            page.set_default_timeout(300_000)
            await page.goto(self.server.url)
            await page.locator(".noUi-handle").first.focus()
            while time.monotonic() < self.end:
                await page.evaluate("""() => { window.moved = null; const shown = document.querySelector('img.jupyter-widgets, .jupyter-widgets img');
                    document.addEventListener('keydown', () => { const began = performance.now();
                        shown.addEventListener('load', () => { window.moved = (performance.now() - began) / 1000; }, { once: true }); },
                        { once: true, capture: true }); }""")
                await page.keyboard.press(rng.choice(("PageUp", "PageDown", "ArrowRight")))
                try: await page.wait_for_function("() => window.moved !== null", timeout=60_000)
                except Exception:   # the slider was at its end: no new picture
                    continue
                self.browser.append(await page.evaluate("window.moved"))
                await asyncio.sleep(rng.expovariate(1 / self.words.pause))
        except Exception as problem: self.errors.append(f"browser {number}: {type(problem).__name__} {str(problem)[:200]}")
        finally: await browser.close()

    async def watch(self):
        while True:
            self.memory.append(await asyncio.to_thread(self.server.memory))
            await asyncio.sleep(5)

    async def run(self):
        watch = asyncio.ensure_future(self.watch())
        clients = [self.visitor(n) for n in range(self.words.visitors - self.words.browser)]
        if self.words.browser:
            from playwright.async_api import async_playwright
            async with async_playwright() as playwright:
                await asyncio.gather(*clients, *(self.in_browser(playwright, n) for n in range(self.words.browser)))
        else: await asyncio.gather(*clients)
        watch.cancel()
        left = time.monotonic()
        while len(self.server.processes()) > 3 and time.monotonic() < left + 180: await asyncio.sleep(0.5)
        self.ended, self.at_end = time.monotonic() - left, self.server.memory()


def chromium(): return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def said(name, seconds):
    if not seconds: return f"{name}: none"
    return (f"{name}: {len(seconds)}, median {np.median(seconds):.2f} s, 95th percentile {np.percentile(seconds, 95):.2f} s, "
            f"longest {max(seconds):.2f} s")


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--visitors", type=int, default=20)
    words.add_argument("--seconds", type=float, default=300)
    words.add_argument("--browser", type=int, default=0, help="how many of the visitors are pages in Chromium")
    words.add_argument("--pause", type=float, default=3, help="mean of a visitor's pauses between two moves, seconds")
    words.add_argument("--arrive", type=float, default=10, help="all visitors come within so many seconds")
    words = words.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder, Server(folder, "--visitors", str(words.visitors)) as server:
        before, files = server.memory(), set(server.files())
        load = Load(server, words)
        asyncio.run(load.run())
        new = [path for path in set(server.files()) - files if path.suffix in (".png", ".jpg", ".safetensors")]
        if "Traceback" in server.said(): load.errors.append(server.said()[-2000:])
        print(f"{words.visitors} visitors, {words.seconds:.0f} s, {os.cpu_count()} cores; the server was ready after {server.start_up:.0f} s")
        for name, seconds in (("pages opened", load.pages), ("moves on a face crop", load.crops), ("photographs prepared", load.prepared),
                              ("moves on a photograph", load.photographs), ("moves in Chromium, with its own time", load.browser)):
            print(said(name, seconds))
        print(f"broken files refused: {load.refused}; memory {before:.0f} MB before, {max(load.memory):.0f} MB at most, {load.at_end:.0f} MB "
              f"after the last visitor, whose kernel ended {load.ended:.0f} s later; files left {len(new)}; errors {len(load.errors)}")
        for error in load.errors[:20]: print("   ", error)
    return bool(load.errors or new)


if __name__ == "__main__":
    sys.exit(main())
