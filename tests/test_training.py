"""A training may be killed at any moment and go on, and may be shared by several processes: the result is the same."""
import multiprocessing
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_python

from aueditnet.editor import ToyWorld
from aueditnet.losses import LossConfig
from aueditnet.training import BatchConfig, Callback, Codes, TrainConfig, fit_editor

STEPS, KILLS = 60, 10
MOMENTS = "before the step", "after the step", "while a checkpoint is written"


def toy_run(folder=None, callbacks=(), **config):
    """Codes, labels and pictures of the toy world, with everything that draws random numbers switched on."""
    torch.set_num_threads(1)
    world = ToyWorld(n_people=8, n_frames=40)
    codes = Codes(world.w, world.y, world.person, mirrored=-world.w)
    settings = dict(steps=STEPS, checkpoint_every=4, sizes=dict(hidden=16, embed=8, rank=2), loss=LossConfig(size=16, rendered=8)) | config
    return fit_editor(codes, TrainConfig(**settings), dict(synthesize=world.synthesize), folder, callbacks=callbacks)


class Halt(Callback):
    """Comes to a stop at a moment, says so, and waits to be killed."""
    def __init__(self, pipe, moment, step):
        self.pipe, self.moment, self.step = pipe, moment, step
        if moment == MOMENTS[2]:
            self.save, torch.save = torch.save, self.torn

    def here(self, learner, moment):
        if moment == self.moment and learner.step >= self.step:
            self.stop(learner.step)

    def after_loss(self, learner): self.here(learner, MOMENTS[0])
    def after_step(self, learner): self.here(learner, MOMENTS[1])

    def torn(self, state, file):
        if state["step"] < self.step:
            return self.save(state, file)
        Path(file).write_bytes(b"the first half")
        self.stop(state["step"])

    def stop(self, step):
        self.pipe.send(step)
        time.sleep(300)


def child(folder, pipe, moment, step): toy_run(folder, [Halt(pipe, moment, step)])


def test_killed_ten_times(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["aueditnet.training"])
    random = np.random.default_rng(7)
    reached = []
    for kill, step in enumerate(sorted(random.choice(np.arange(1, STEPS), KILLS, replace=False).tolist())):
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=(tmp_path, theirs, MOMENTS[kill % 3], step))
        process.start()
        assert ours.poll(240), "the child has not come to its step"
        reached.append(ours.recv())
        process.kill()
        process.join()
        assert process.exitcode == -9 and reached[-1] >= step
    assert len(set(reached)) > 5
    resumed, resumed_history = toy_run(tmp_path, [Callback()])
    whole, whole_history = toy_run()
    assert whole_history.rows == resumed_history.rows and len(whole_history.rows) == STEPS
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


SHARED = """
    import sys, torch
    sys.path.insert(0, sys.argv[1])
    from test_training import accelerated
    accelerated(sys.argv[2])
"""
TOLERANCE = 1e-4  # relative; sums are taken in another order, and the differences grow from step to step


def accelerated(out=None, **config):
    """A run without noise in the network: two processes would draw their own."""
    editor, history = toy_run(steps=20, sizes=dict(hidden=16, embed=8, rank=2, dropout=0., noise=0.), batch=BatchConfig(pairs=16), **config)
    if out and not torch.distributed.get_rank():
        torch.save((editor.state_dict(), history.rows, torch.distributed.get_world_size()), out)
    return editor, history


def test_two_processes_are_one_with_the_doubled_batch(tmp_path):
    pytest.importorskip("accelerate")
    (tmp_path / "run.py").write_text(textwrap.dedent(SHARED))
    result = run_python("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "run.py", Path(__file__).parent, "out.pt",
                        cwd=tmp_path, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr[-3000:]
    weights, rows, processes = torch.load(tmp_path / "out.pt", weights_only=True)
    editor, history = accelerated()
    assert processes == 2 and rows[0].keys() == history.rows[0].keys() >= {"latent", "au_latent", "pixels"}
    for name in rows[0]:  # the loss curves, term by term; each process had 8 of the 16 pairs, 4 of the 8 rendered ones
        assert [r[name] for r in rows] == pytest.approx([r[name] for r in history.rows], rel=TOLERANCE), name
    for name, value in editor.state_dict().items():
        assert torch.allclose(value, weights[name], rtol=TOLERANCE, atol=1e-5), name
    half = accelerated_half()
    assert abs(half[-1]["latent"] / rows[-1]["latent"] - 1) > 100 * TOLERANCE  # a single process's own share is another run


def accelerated_half(): return toy_run(steps=20, sizes=dict(hidden=16, embed=8, rank=2, dropout=0., noise=0.), batch=BatchConfig(pairs=8))[1].rows
