"""Make the picture sheet behind the sliders of the pages (nbs/site.html): a row for each AU, a column for each intensity.

    python .ci/strip.py              writes nbs/images/strip.webp
"""
from pathlib import Path

import numpy as np
from PIL import Image

from aueditnet import AUS, DISFA, Pipeline
from aueditnet.align import neutral_faces
from aueditnet.files.io import data_dir

SHEET = Path(__file__).resolve().parent.parent / "nbs" / "images" / "strip.webp"
SUBJECT = "SN008"               # one of the nine people on whom no network was trained
VALUES = np.arange(0, 5.5, 0.5)


def sheet():
    """(12 * 128, 11 * 128, 3) uint8: the inversion of one rendered person, each AU edited alone."""
    pipe = Pipeline.from_pretrained("heads128")
    face = neutral_faces(DISFA(data_dir() / "synthdisfa"), pipe.size, pipe.zoom, [SUBJECT])[SUBJECT]
    edits = pipe.edit_batch(face, [{au: value} for au in AUS for value in VALUES])
    pictures = np.stack([edit.image for edit in edits]).reshape(len(AUS), len(VALUES), pipe.size, pipe.size, 3)
    return np.concatenate(np.concatenate(pictures, 1), 1)


if __name__ == "__main__":
    Image.fromarray(sheet()).save(SHEET, quality=86, method=6)
    print(f"{SHEET.name}: {SHEET.stat().st_size / 1000:.0f} kB")
