"""The commands at the size of FFHQ and DISFA on this machine: seconds, memory, and what they print, as Markdown.

    python tests/full_size.py FOLDER      a 1024 px e4e file with seeded weights, made-up subjects of 1024x768 frames, one of each fold:
                                          two x 4,845 frames to train on and one x 200 to test; about an hour

What FOLDER holds already is not made again.
"""
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from made_up_disfa import make

from aueditnet.align import aligned_frames
from aueditnet.data import open_dataset
from aueditnet.files.io import replace_file, save_picture
from aueditnet.inversion import Encoder
from aueditnet.recognition import IRSE50
from aueditnet.stylegan2 import Generator

WIDTHS = {0: 4, 1: 4, 2: 4, 3: 5, 4: 5, 5: 5, 6: 5}   # convolutions of e4e's heads by level; 6 from level 7 on


def e4e_file(file, size=1024):
    """A file in the layout of the public e4e checkpoint, with weights drawn from a seed."""
    torch.manual_seed(0)
    generator, levels = Generator(size), 2 * (size.bit_length() - 2)
    heads = [[512] * (1 + WIDTHS.get(level, 6)) for level in range(levels)]
    state = {f"encoder.{k}": v for k, v in Encoder(heads).state_dict().items()}
    state |= {f"decoder.{k}": v for k, v in generator.state_dict().items()}
    average = generator.estimate_mean_latent(1024).mean_latent.expand(levels, -1).clone()
    replace_file(file, lambda part: torch.save({"state_dict": state, "latent_avg": average, "opts": {"start_from_latent_avg": True}}, part))


def tree_memory(pid):
    """Proportional set size of a process and its children, bytes: memory that several share counts once."""
    pids, total = [pid], 0
    for one in pids:
        try:
            pids += [int(child) for task in Path(f"/proc/{one}/task").iterdir() for child in (task / "children").read_text().split()]
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
        except (OSError, ValueError):
            pass
    return total


def run(*words):
    """Run a command of aueditnet; seconds, peak memory in GB, its output."""
    start, peak, done = time.time(), [0], threading.Event()
    command = subprocess.Popen([Path(sys.executable).with_name("aueditnet"), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def watch():
        while not done.wait(0.5):
            peak[0] = max(peak[0], tree_memory(command.pid))
    thread = threading.Thread(target=watch)
    thread.start()
    output = command.communicate()[0]
    done.set()
    thread.join()
    if command.returncode:
        sys.exit(f"{' '.join(map(str, words))}\n{output}")
    print(f"| `aueditnet {' '.join(map(str, words))}` | {time.time() - start:.0f} | {peak[0] / 1e9:.1f} |", flush=True)
    return output


def main(folder, size=1024, frames=4845, people=("SN001", "SN006"), tested="SN003", per_subject=8):
    """All commands, one after the other. One of `people` is in each training fold, as `train-reader` needs, `tested` in P3."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if not Path("DISFA").is_dir():
        make("DISFA", [*people, tested], dict.fromkeys(people, frames) | {tested: min(frames, 200)})
    if not Path("e4e.pt").is_file():
        e4e_file("e4e.pt", size)
    if not Path("arcface.pth").is_file():
        replace_file("arcface.pth", lambda part: torch.save(IRSE50().state_dict(), part))
    who, few = ["--subjects", ",".join(people)], ["--frames-per-subject", per_subject]
    print("| command | seconds | peak memory, GB |\n|---|---|---|")
    run("model", "import", "--e4e", "e4e.pt", "--arcface", "arcface.pth", "-o", "ffhq")
    run("train-reader", "--model", "ffhq", "--data", "DISFA", *who, "--steps", 10, "--frames-per-subject", 100)
    run("train", "--model", "ffhq", "--data", "DISFA", *who, *few, "--steps", 3, "-o", "run")
    run("evaluate", "--model", "run/model", "--data", "DISFA", "--subjects", tested, "--pairs", 2)
    if not Path("ffhq-face.png").is_file():
        save_picture(aligned_frames(open_dataset("DISFA", [tested]), tested, [0], size, 1.)[0], "ffhq-face.png")
    run("edit", "ffhq-face.png", "--no-align", "--au", "AU12=4", "--model", "run/model")


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
