"""A made-up dataset in DISFA's layout and at its size: moving faces of `synthdisfa`, enlarged, with their labels and landmarks.

    python tests/made_up_disfa.py FOLDER [SUBJECTS [FRAMES [avi|mp4 [npz|mat]]]]     two subjects x 4,845 frames of 1024x768 by default
"""
import sys
from pathlib import Path

import av
import cv2
import numpy as np

from aueditnet.data import DISFA, SUBJECTS
from aueditnet.facs import AUS
from aueditnet.files.io import data_dir


def moved(points, scale, shift):
    """Pixels of a picture that is enlarged and then moved; pixel centres are whole numbers."""
    return (points + 0.5) * scale - 0.5 + shift


def make(root, subjects=2, frames=4845, size=(1024, 768), kind="avi", landmarks="npz"):
    """Write the dataset; the frames of `synthdisfa` run to and fro, the head sways, and the sensor has noise.
    `subjects`: names, or how many; `frames`: of each subject, or {name: how many}."""
    root, width, height = Path(root), *size
    source = DISFA(data_dir() / "synthdisfa")
    for folder in ("Videos_LeftCamera", "Landmark_Points"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for s in SUBJECTS[:subjects] if isinstance(subjects, int) else subjects:
        pictures, n = list(source.frames(s)), source.n_frames(s)
        there, length = np.arange(n), frames[s] if isinstance(frames, dict) else frames
        index = np.resize(np.concatenate([there, there[-2:0:-1]]), length)
        time, scale = np.arange(length)[:, None], 0.75 * width / pictures[0].shape[1]      # the face's square stays inside the picture
        shifts = 0.03 * height * np.concatenate([np.sin(time / 37), np.cos(time / 53)], 1)
        shifts += (np.array(size) - scale * np.array(pictures[0].shape[1::-1])) / 2         # in the middle
        rng = np.random.default_rng(int(s[2:]))
        noise = rng.integers(-3, 4, (4, height, width, 3), np.int16)
        with av.open(str(root / "Videos_LeftCamera" / f"LeftVideo{s}_comp.{kind}"), "w") as box:
            stream = box.add_stream("libx264", rate=20, options={"preset": "veryfast", "crf": "20"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for k, i in enumerate(index):
                matrix = np.array([[scale, 0, shifts[k, 0] + (scale - 1) / 2], [0, scale, shifts[k, 1] + (scale - 1) / 2]])
                picture = cv2.warpAffine(pictures[i], matrix, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
                picture = (picture + noise[k % 4]).clip(0, 255).astype(np.uint8)
                box.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            box.mux(stream.encode())
        points = moved(source.landmarks(s)[index], scale, shifts[:, None]).astype(np.float32)
        if landmarks == "npz":
            np.savez(root / "Landmark_Points" / f"{s}.npz", pts=points)
        else:
            from scipy.io import savemat
            from aueditnet.files.disfa_files import FROM_ONE
            folder = root / "Landmark_Points" / s / "tmp_frame_lm"
            folder.mkdir(parents=True)
            for i, p in enumerate(points, int(s in FROM_ONE)):
                savemat(folder / f"{s}_{i:04d}_lm.mat", {"pts": np.delete(p, [60, 64], 0)})
        folder = root / "ActionUnit_Labels" / s
        folder.mkdir(parents=True, exist_ok=True)
        for au, column in zip(AUS, source.labels(s)[index].T):
            (folder / f"{s}_{au.lower()}.txt").write_text("".join(f"{i},{v:g}\n" for i, v in enumerate(column, 1)))
    return root


if __name__ == "__main__":
    folder, *words = sys.argv[1:]
    numbers = [int(word) for word in words[:2]]
    make(folder, *numbers, **dict(zip(("kind", "landmarks"), words[2:])))
