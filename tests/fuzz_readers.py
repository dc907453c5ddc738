"""Feeds the readers of files with mutated ones. Nothing but `InputError` may come out of them, in seconds, and in bounded memory.

    python tests/fuzz_readers.py pictures --seconds 600             # labels, csv, checkpoints, config; "all" for one after the other
    python tests/fuzz_readers.py pictures --seconds 600 --guided    # by coverage, with atheris (pip install atheris)

A fault is said once for each place in the code, and its input is kept in the folder of --found. The exit code is 1 if there was any."""
import argparse
import faulthandler
import hashlib
import io
import itertools
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

for _name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
import mutation
import numpy as np

SLOW, HANG = 5, 60   # seconds
MEMORY = 2 << 30     # bytes that reading one file may take beyond what the process has
BUNDLED = "heads128"


class Pictures:
    """Files of photographs and of face crops."""

    def __init__(self, folder):
        from PIL import Image

        from aueditnet.files.photo_files import PhotoFile
        rng = np.random.default_rng(0)
        rgb = Image.fromarray(rng.integers(0, 256, (72, 72, 3), np.uint8))
        exif = Image.Exif()
        exif[274], exif[270], exif[306] = 6, "a picture", "2020:01:01 00:00:00"
        p = mutation.picture
        self.seeds = [p(rgb, "PNG"), p(rgb.convert("LA"), "PNG"), p(rgb.convert("P"), "PNG", transparency=3), p(rgb.convert("1"), "PNG"),
                      p(Image.fromarray(rng.integers(0, 65536, (72, 70), np.uint16)), "PNG"), p(rgb, "JPEG", exif=exif, dpi=(72, 72)),
                      p(rgb.convert("CMYK"), "JPEG"), p(rgb.convert("L"), "JPEG", progressive=True), p(rgb, "WEBP", exif=exif),
                      p(rgb.convert("RGBA"), "WEBP", lossless=True), p(rgb, "TIFF", compression="tiff_lzw"), p(rgb.convert("CMYK"), "TIFF"),
                      p(rgb, "TIFF", compression="jpeg"), p(rgb, "BMP"), p(rgb.convert("P"), "GIF"),
                      p(rgb, "GIF", save_all=True, append_images=[rgb.rotate(90)]), p(rgb, "PPM"), p(rgb, "ICO"), p(rgb, "TGA"),
                      p(rgb, "JPEG2000"), p(rgb.convert("1"), "TIFF", compression="group4"), self.sixteen(rng)]
        self.open = PhotoFile.open

    @staticmethod
    def sixteen(rng):
        import cv2
        return cv2.imencode(".png", rng.integers(0, 65536, (72, 70, 3), np.uint16))[1].tobytes()

    def mutate(self, seed, rng):
        if seed[:8] == b"\x89PNG\r\n\x1a\n" and rng.random() < 0.6:
            try: return mutation.mutated_png(seed, rng)
            except (IndexError, ValueError): pass
        return mutation.mutated(seed, rng)

    def read(self, data):
        file = self.open(io.BytesIO(data), "x")
        file.merge(np.array(file.rgb))


class Labels:
    """The label files of DISFA, and its landmarks."""

    def __init__(self, folder):
        from aueditnet.data import read_labels
        self.file = folder / "SN001_au1.txt"
        lines = [f"{k},{k % 6}" for k in range(1, 9)]
        self.seeds = ["\n".join(lines).encode(), ("\r\n".join(lines) + "\r\n").encode()]
        self.call = read_labels

    def mutate(self, seed, rng): return mutation.mutated_text(seed.decode("utf-8", "replace"), rng)

    def read(self, data):
        self.file.write_bytes(data)
        self.call(self.file)


class Csv:
    """Tables of intensities of four programs, tracks of intensities, and the table of a grid of pictures."""

    def __init__(self, folder):
        from aueditnet.facs import AUS, to_vector
        from aueditnet.files.label_files import read_grid, read_label_file
        from aueditnet.video.intensity_track import IntensityTrack
        self.file, self.aus, self.grid = folder / "x.csv", AUS, folder / "truth.csv"
        (folder / "a.png").write_bytes(Pictures(folder).seeds[0])
        openface = "frame, face_id, timestamp, confidence, success, AU01_r, AU12_r, AU12_c\n" + "".join(
            f"{k}, 0, {k / 30:.3f}, 0.98, 1, 0.5, {k % 6}, 1\n" for k in range(1, 6))
        pyfeat = "FaceScore,AU01,AU12,frame,input\n" + "".join(f"0.9,0.2,0.{k},{k},v.mp4\n" for k in range(5))
        libreface = "frame_idx,path_to_frame,au_1_intensity,au_12_intensity\n" + "".join(f"{k},v/{k}.png,1,{k}\n" for k in range(5))
        own = "# labels: manual\nimage,subject,AU1,AU12,confidence\n" + "".join(f"a.png,me,{k},,0.9\n" for k in range(5))
        track = "frame,AU12,AU6\n0,0,\n20,4,2\n40,0,1\n"
        grid = ",".join(["image", "subject", *AUS]) + "\na.png,SN001" + ",1" * 12 + "\n"
        points = "frame,success,AU12_r," + ",".join(f"{a}_{k}" for a in "xy" for k in range(68)) + "\n1,1,2" + ",1.5" * 136 + "\n"
        self.seeds = [text.encode() for text in (openface, pyfeat, libreface, own, track, grid, points)]
        self.calls = [lambda file: read_label_file(file, AUS), IntensityTrack.read, lambda _: read_grid(folder, AUS, lambda d: to_vector(d))]

    def mutate(self, seed, rng): return mutation.mutated_text(seed.decode("utf-8", "replace"), rng)

    def read(self, data):
        from aueditnet.files.errors import InputError
        self.file.write_bytes(data)
        self.grid.write_bytes(data)
        problems = []
        for call in self.calls:     # each is tried
            try: call(self.file)
            except InputError as problem: problems.append(problem)
        if len(problems) == len(self.calls): raise problems[0]


class Checkpoints:
    """Weights as safetensors, and checkpoints of PyTorch in both of its formats."""

    def __init__(self, folder):
        import safetensors.torch
        import torch

        from aueditnet.files import weights
        state = {"a.weight": torch.arange(6.).reshape(2, 3), "a.bias": torch.zeros(2).half(), "n": torch.tensor(3)}
        both = {"state_dict": state, "latent_avg": torch.zeros(2, 4), "opts": {"n": 3, "path": "x", "list": [1, 2.5, None]}}
        zipped, old = io.BytesIO(), io.BytesIO()
        torch.save(both, zipped)
        torch.save(both, old, _use_new_zipfile_serialization=False)
        self.seeds = [safetensors.torch.save(state, {"meta": json.dumps({"size": 128})}), zipped.getvalue(), old.getvalue()]
        self.files = folder / "x.safetensors", folder / "x.pt"
        self.weights = weights

    def mutate(self, seed, rng):
        try:
            if seed[:2] == b"PK": return mutation.mutated_zip(seed, rng)
            if seed[8:9] == b"{": return mutation.mutated_safetensors(seed, rng)
        except Exception: pass      # of a seed that is itself mutated
        return mutation.mutated(seed, rng)

    def read(self, data):
        tensors = data[8:9] == b"{"
        file = self.files[0 if tensors else 1]
        file.write_bytes(data)
        self.weights.load(file) if tensors else self.weights.load_public(file)


class Config:
    """config.json of a model folder, and the networks that are built as it says."""

    def __init__(self, folder):
        from aueditnet.files.io import data_dir
        from aueditnet.files.model_folder import ModelFolder
        from aueditnet.pipeline import Pipeline
        source = data_dir() / "weights" / BUNDLED
        self.folder = folder / "model"
        self.folder.mkdir()
        for file in source.glob("*.safetensors"): shutil.copy(file, self.folder)    # no SHA256SUMS: it would be read each time
        self.seeds = [(source / "config.json").read_bytes()]
        self.open, self.pipeline, self.turn = ModelFolder, Pipeline, itertools.count()

    def mutate(self, seed, rng):
        try: data = json.dumps(mutation.mutated_json(json.loads(seed), rng)).encode()
        except ValueError: data = seed
        return mutation.mutated(data, rng) if rng.random() < 0.1 else data

    def read(self, data):
        (self.folder / "config.json").write_bytes(data)
        model = self.open(self.folder)
        changed = [part for part, entry in model.config["parts"].items() if entry != json.loads(self.seeds[0])["parts"].get(part)]
        for part in changed: model.load(part)
        self.pipeline.from_pretrained(self.folder)


KINDS = {"pictures": Pictures, "labels": Labels, "csv": Csv, "checkpoints": Checkpoints, "config": Config}


class Fuzzer:
    """Counts what is tried, and keeps one input for each place where something else than `InputError` was raised."""

    def __init__(self, kind, folder, found=None):
        from aueditnet.files.errors import InputError
        warnings.simplefilter("ignore")     # of libraries, e.g. of a pickle's protocol
        self.kind, self.reader, self.InputError, self.found = kind, KINDS[kind](folder), InputError, Path(found) if found else None
        self.tried = self.refused = 0
        self.faults, self.current = {}, folder / "current"
        for seed in self.reader.seeds: self.reader.read(seed)      # what is valid is read without complaint
        self.peak = self.memory()

    @staticmethod
    def memory(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def try_one(self, data):
        """Read one input. Anything but `InputError`, and more than SLOW seconds or MEMORY, is a fault."""
        self.tried += 1
        self.current.write_bytes(data)      # to be found after a crash
        faulthandler.dump_traceback_later(HANG, exit=True)
        began, fault = time.process_time(), None      # others may use the machine
        try: self.reader.read(data)
        except self.InputError as problem:
            self.refused += 1
            if "\n" in str(problem): fault = "a message of several lines"
        except Exception as problem:
            steps = [s for s in traceback.extract_tb(problem.__traceback__) if "aueditnet" in s.filename] or [None]
            where = f"{Path(steps[-1].filename).name}:{steps[-1].lineno}" if steps[-1] else "?"
            fault = f"{type(problem).__name__} at {where}: {str(problem)[:160]}"
        finally: faulthandler.cancel_dump_traceback_later()      # or it would end whatever runs in this process next
        taken = time.process_time() - began
        if not fault and taken > SLOW: fault = f"slow: {taken:.0f} s"
        if not fault and (now := self.memory()) > self.peak + MEMORY: fault, self.peak = f"memory: {(now - self.peak) >> 20} MB", now
        if fault: self.keep(fault, data)

    def keep(self, fault, data):
        key = fault.split(":")[0] + fault.split(":")[1][:6] if " at " in fault else fault.split(":")[0]
        if key in self.faults: return
        self.faults[key] = fault
        print(f"{self.kind}: {fault}", flush=True)
        if self.found:
            self.found.mkdir(parents=True, exist_ok=True)
            (self.found / f"{self.kind}_{hashlib.sha256(data).hexdigest()[:10]}").write_bytes(data)

    def run(self, seconds=None, tries=None, seed=0):
        """Mutations of the seeds, and of mutations that were read without complaint."""
        rng, pool, end = random.Random(seed), list(self.reader.seeds), time.monotonic() + (seconds or 1e9)
        fresh = len(pool)
        while time.monotonic() < end and (tries is None or self.tried < tries):
            data = self.reader.mutate(rng.choice(pool), rng)
            refused, faults = self.refused, len(self.faults)
            self.try_one(data)
            if self.refused == refused and len(self.faults) == faults and len(data) < 20_000 and rng.random() < 0.3:
                pool[fresh:] = [*pool[fresh:], data][-200:]

    def report(self, seconds):
        print(f"{self.kind}: {self.tried} inputs in {seconds:.0f} s, {self.refused} refused, {len(self.faults)} faults", flush=True)


def guided(fuzzer, seconds, folder):
    """The same by atheris: mutations that reach new code are mutated again."""
    import atheris
    corpus = folder / "corpus"
    corpus.mkdir()
    for k, seed in enumerate(fuzzer.reader.seeds): (corpus / f"{k}").write_bytes(seed)
    def mutator(data, size, seed):
        rng = random.Random(seed)
        new = fuzzer.reader.mutate(bytes(data), rng) if data and rng.random() < 0.7 else atheris.Mutate(data, size)
        return new[:size]
    atheris.Setup([sys.argv[0], f"-max_total_time={seconds}", "-max_len=20000", "-rss_limit_mb=0", "-timeout=0", "-verbosity=0",
                   str(corpus)], fuzzer.try_one, custom_mutator=mutator)
    began = time.monotonic()
    import atexit
    atexit.register(lambda: fuzzer.report(time.monotonic() - began))
    atheris.Fuzz()


def main():
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("kind", choices=[*KINDS, "all"])
    words.add_argument("--seconds", type=float, default=600)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--found", help="a folder for inputs that caused a fault")
    words.add_argument("--guided", action="store_true", help="by coverage, with atheris")
    words = words.parse_args()
    faults = 0
    for kind in KINDS if words.kind == "all" else [words.kind]:
        with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
            if words.guided:
                import atheris
                with atheris.instrument_imports(include=["aueditnet", "PIL", "csv", "json"]):
                    import aueditnet.data, aueditnet.pipeline, aueditnet.video.intensity_track
            fuzzer = Fuzzer(kind, Path(folder), words.found)
            used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MEMORY, resource.RLIM_INFINITY))
            if words.guided: guided(fuzzer, int(words.seconds), Path(folder))
            else:
                began = time.monotonic()
                fuzzer.run(words.seconds, seed=words.seed)
                fuzzer.report(time.monotonic() - began)
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            faults += len(fuzzer.faults)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
