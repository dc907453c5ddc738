"""A training may be killed at any moment and go on, may be shared by several processes, and never returns the result of another run."""
import copy
import functools
import json
import multiprocessing
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_python
from torch import nn
from torch.nn import functional as F

from aueditnet.baselines.latent_editors import LinearEditor, ReDirTrans
from aueditnet.data import BatchConfig, Codes, PairBatches
from aueditnet.editor import AUEditNet, ToyWorld
from aueditnet.files.errors import InputError
from aueditnet.losses import EditLoss, LossConfig
from aueditnet.training import (EMA, Accelerated, Callback, Checkpoint, Clock, EditorTask, History, Learner, TrainConfig, fingerprint,
                                fit_editor, training_device)

STEPS, KILLS = 60, 10
MOMENTS = "before the step", "after the step", "while a checkpoint is written"
SMALL = dict(hidden=16, embed=8, rank=2)
HALF_SEEN = LossConfig(size=16, rendered=8, unseen=8)   # of 16 pairs


def toy_codes():
    """Codes, labels and pictures of the toy world."""
    torch.set_num_threads(1)
    world = ToyWorld(n_people=8, n_frames=40)
    pictures = torch.randint(0, 256, (len(world.w), 3, 16, 16), generator=torch.Generator().manual_seed(5)).byte()
    return world, Codes(world.w, world.y, world.person, -world.w, pictures)


def toy_networks(world, seed=11):
    """The frozen networks of a loss, as `frozen_networks` returns them: a bound method, a module, a closure."""
    torch.manual_seed(seed)
    au_net, identity = (nn.Sequential(nn.Flatten(), nn.Linear(768, n)).requires_grad_(False) for n in (12, 8))
    return dict(synthesize=world.synthesize, au_net=au_net, identity=lambda x: F.normalize(identity(x)))


def toy_run(folder=None, callbacks=(), readers=True, **config):
    """A run with everything that draws random numbers switched on."""
    world, codes = toy_codes()
    settings = dict(steps=STEPS, checkpoint_every=4, sizes=SMALL, loss=LossConfig(size=16, rendered=8)) | config
    networks = toy_networks(world) if readers else dict(synthesize=world.synthesize)
    return fit_editor(codes, TrainConfig(**settings), networks, folder, callbacks=callbacks)


# one run of every kind: (folder, callbacks) -> weights, log

def editor_run(folder, callbacks=()):
    editor, history = toy_run(folder, callbacks)
    return editor.state_dict(), history.rows


def network_run(folder, callbacks=()):
    from aueditnet.pretraining.augment import Augment, fit_network, predict
    from aueditnet.pretraining.identity_network import IdentityLoss
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pictures, person = np.random.default_rng(3).integers(0, 256, (48, 32, 32, 3), dtype=np.uint8), np.repeat(np.arange(12), 4)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 8))
    loss = IdentityLoss(pictures, person, 8, Augment(smallest=16), batch=16)   # its directions are trained too
    file = Path(folder) / "network.pt" if folder else None
    network, record = fit_network(network, loss, lambda network: predict(network, pictures[:8]).mean(), STEPS, seed=4, checks=15, file=file,
                                  callbacks=callbacks)
    assert not file or file.exists()   # whoever saves the weights deletes it
    return network.state_dict() | {f"loss.{k}": v for k, v in loss.state_dict().items()}, record["history"]


def adversarial_run(folder, callbacks=()):
    from aueditnet.baselines.adversarial import AdversarialConfig, fit_baseline
    torch.set_num_threads(1)
    config = AdversarialConfig(steps=STEPS, batch=4, critic_width=4, critic_depth=3, checkpoint_every=4)
    editor, history, _ = fit_baseline("GANimation", toy_faces(), brightness, config, folder, callbacks, width=4, fold=2)
    return editor.state_dict(), history.rows


def joint_run(folder, callbacks=()):
    from aueditnet.pretraining.generator_training import JointConfig, JointTask, fit_joint
    torch.set_num_threads(1)
    widths = {4: 16, 8: 16, 16: 8, 32: 8}
    config = JointConfig(size=32, style_dim=16, channels=widths, discriminator_channels=widths, encoder_widths=(8, 8, 12, 16, 24),
                         encoder_blocks=(1, 1, 1, 1), head_widths=(16, 16), stages=((16, 24), (32, 16)), polish=STEPS - 40,
                         reconstructions=5, samples=3)
    people = np.random.default_rng(3).integers(0, 256, (20, 128, 128, 3), dtype=np.uint8)  # on smaller ones oneDNN's bf16 gradients are not deterministic
    task = JointTask(config, people)
    fit_joint(task, folder, log_every=5, save_every=4, callbacks=callbacks)
    rows = [json.loads(line) for line in open(Path(folder) / "log.jsonl")]
    for row in rows: row.pop("seconds_a_step")
    return {f"{k} {n}": v for k, part in task.parts.items() if isinstance(part, nn.Module) for n, v in part.state_dict().items()} \
        | task.ema.average.state_dict(), rows


RUNS = {"editor": editor_run, "network": network_run, "adversarial": adversarial_run, "joint": joint_run}


def brightness(x): return 2.5 + 2.5 * F.adaptive_avg_pool2d(x, (3, 4)).mean(1).flatten(1)


def toy_faces():
    pictures = F.interpolate(torch.rand(24, 1, 3, 4, generator=torch.Generator().manual_seed(0)), (32, 32)).expand(-1, 3, -1, -1).mul(255).byte()
    labels = brightness(pictures / 127.5 - 1).round().clamp(0, 5)
    return Codes(torch.zeros(24, 1, 1), labels, torch.arange(4).repeat_interleave(6), None, pictures)


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


def child(kind, folder, pipe, moment, step): RUNS[kind](folder, [Halt(pipe, moment, step)])


@pytest.mark.parametrize("kind, kills", [("editor", KILLS), ("network", 3), ("adversarial", 3), ("joint", 4)])
def test_killed_and_resumed_is_the_same_bit_for_bit(tmp_path, kind, kills):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["aueditnet.training", "aueditnet.pretraining.generator_training", "aueditnet.baselines.adversarial"])
    reached, steps = [], np.random.default_rng(7).choice(np.arange(1, STEPS), kills, replace=False)
    for kill, step in enumerate(sorted(steps.tolist())):
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=(kind, tmp_path / "cut", theirs, MOMENTS[kill % 3], step))
        process.start()
        assert ours.poll(240), "the child has not come to its step"
        reached.append(ours.recv())
        process.kill()
        process.join()
        assert process.exitcode == -9 and reached[-1] >= step
    assert len(set(reached)) > kills // 2
    resumed, resumed_log = RUNS[kind](tmp_path / "cut", [Callback()])
    whole, whole_log = RUNS[kind](tmp_path / "whole")
    assert whole_log == resumed_log
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name


# a run is named by its contents

def toy_editor(kind=AUEditNet, **settings):
    torch.manual_seed(0)
    return kind(4, 32, **(SMALL if kind is AUEditNet else dict(hidden=16, planes=2)), **settings)


def changed_au(world, codes): return codes, toy_networks(world) | {"au_net": toy_networks(world, 12)["au_net"]}, {}
def changed_identity(world, codes): return codes, toy_networks(world) | {"identity": toy_networks(world, 12)["identity"]}, {}
def changed_generator(world, codes):
    world.decoder = world.decoder * 1.01
    return codes, toy_networks(world), {}
def changed_labels(world, codes): return replace(codes, y=codes.y.flip(0)), toy_networks(world), {}
def changed_pictures(world, codes): return replace(codes, pictures=codes.pictures.flip(3)), toy_networks(world), {}
def changed_mirrored(world, codes): return replace(codes, mirrored=codes.mirrored + 1), toy_networks(world), {}
def changed_dropout(world, codes): return codes, toy_networks(world), {"editor": toy_editor(dropout=0.3)}
def changed_noise(world, codes): return codes, toy_networks(world), {"editor": toy_editor(noise=0.3)}
def changed_editor(world, codes): return codes, toy_networks(world), {"editor": AUEditNet(4, 32, hidden=8, embed=8, rank=2)}


@pytest.mark.parametrize("change, named", [(changed_au, "networks"), (changed_identity, "networks"), (changed_generator, "networks"),
                                           (changed_labels, "codes"), (changed_pictures, "codes"), (changed_mirrored, "codes"),
                                           (changed_editor, "editor"), (changed_dropout, "editor"), (changed_noise, "editor")], ids=lambda value: getattr(value, "__name__", value))
def test_a_finished_run_of_other_contents_is_refused(tmp_path, change, named):
    config = TrainConfig(steps=3, sizes=SMALL, loss=LossConfig(size=16, rendered=8))
    world, codes = toy_codes()
    editor, history = fit_editor(codes, config, toy_networks(world), tmp_path, toy_editor())
    again, rows = fit_editor(codes, config, toy_networks(world), tmp_path, toy_editor())   # the same contents: nothing left to do
    assert rows.rows == history.rows and len(rows.rows) == 3
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in editor.state_dict().items())
    codes, networks, more = change(world, codes)
    with pytest.raises(InputError, match=f"with other {named}: "):
        fit_editor(codes, config, networks, tmp_path, **({"editor": toy_editor()} | more))


@pytest.mark.parametrize("setting", ["dropout", "noise"])
@pytest.mark.parametrize("kind", [AUEditNet, ReDirTrans])
def test_settings_that_are_no_tensors_belong_to_an_editor(kind, setting):
    assert fingerprint(toy_editor(kind)) == fingerprint(toy_editor(kind)) != fingerprint(toy_editor(kind, **{setting: 0.3}))


def test_an_adversarial_run_depends_on_pictures_and_estimator_but_not_on_codes(tmp_path):
    from aueditnet.baselines.adversarial import AdversarialConfig, fit_baseline
    config, toy = AdversarialConfig(steps=2, batch=4, critic_width=4, critic_depth=3), toy_faces()
    def fit(codes=toy, estimator=brightness, **settings):
        return fit_baseline("Ling", codes, estimator, replace(config, **settings), tmp_path, width=4, fold=2)
    fit()
    fit(replace(toy, w=toy.w + 1))
    for problem, other in {"pictures": dict(codes=replace(toy, pictures=toy.pictures.flip(3))), "lr": dict(lr=3e-3),
                           "estimator": dict(estimator=lambda x: brightness(x) + 0)}.items():
        with pytest.raises(InputError, match=f"with other [^:]*{problem}[,:]"):
            fit(**other)
    with pytest.raises(InputError, match="'StarGAN': not one of GANimation, Ling, ICface"):
        fit_baseline("StarGAN", toy, brightness)


def test_fingerprints_see_weights_closures_and_objects():
    def closure(n): return lambda x: x + n
    one, same, other = (toy_networks(ToyWorld(3, 4), seed) for seed in (1, 1, 2))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert fingerprint(closure(1)) == fingerprint(closure(1)) != fingerprint(closure(2))
    assert fingerprint(ToyWorld(3, 4).synthesize) == fingerprint(ToyWorld(3, 4).synthesize) != fingerprint(ToyWorld(3, 4, seed=1).synthesize)
    assert fingerprint(None) != fingerprint({}) and fingerprint(AUEditNet) != fingerprint(ToyWorld)


def keyword(x, *, n=1): return x + n
def keyword_2(x, *, n=2): return x + n


class Cyclic:
    def __init__(self, n): self.me, self.n = self, n


class Rated(nn.Module):
    def __init__(self, rate, noise):
        super().__init__()
        self.noise, self.inner = noise, nn.Sequential(nn.Linear(2, 2).requires_grad_(False), nn.Dropout(rate))
        nn.init.ones_(self.inner[0].weight), nn.init.zeros_(self.inner[0].bias)


WORLD = ToyWorld(3, 4)
ALIKE = {"constant": (lambda x: x * 2, lambda x: x * 3), "default": (lambda x, n=1: x * n, lambda x, n=2: x * n), "keyword": (keyword, keyword_2),
         "global name": (lambda x: torch.relu(x), lambda x: torch.tanh(x)), "built-in": (torch.relu, torch.tanh),
         "nested function": (lambda x: [i * 2 for i in (lambda: x + 1)()], lambda x: [i * 2 for i in (lambda: x + 2)()]),
         "method": (WORLD.synthesize, WORLD.measure), "method and its object": (WORLD.synthesize, WORLD),
         "partial's function": (functools.partial(keyword, n=1), functools.partial(toy_networks, n=1)),
         "partial's argument": (functools.partial(keyword, 1), functools.partial(keyword, 2)),
         "partial's keyword": (functools.partial(keyword, n=1), functools.partial(keyword, n=2)),
         "list of functions": ([lambda x: x * 2], [lambda x: x * 3]), "object in itself": (Cyclic(1), Cyclic(2)),
         "dropout": (Rated(0.1, 0.), Rated(0.2, 0.)), "setting": (Rated(0.1, 0.), Rated(0.1, 0.5)),
         "class of a layer": (nn.Sequential(nn.ReLU()), nn.Sequential(nn.GELU()))}


@pytest.mark.parametrize("pair", ALIKE.values(), ids=ALIKE)
def test_fingerprints_see_all_of_a_function_and_of_a_network(pair):
    one, other = map(fingerprint, pair)
    assert one != other and [fingerprint(copy.deepcopy(thing)) for thing in pair] == [one, other]


def test_fingerprints_are_the_same_in_every_process(tmp_path):
    """Sets of strings are ordered differently in each; addresses differ too."""
    (tmp_path / "run.py").write_text(textwrap.dedent("""
        import functools, math, torch
        from aueditnet.editor import AUEditNet, ToyWorld
        from aueditnet.training import fingerprint
        def chosen(x): return x in {"one", "two", "three", "four"} and math.pi
        torch.manual_seed(0)
        print(fingerprint(chosen, ToyWorld(3, 4).synthesize, functools.partial(chosen, None), torch.relu, AUEditNet(4, 32), math, {"a", "b", "c"}))
    """))
    printed = {run_python("run.py", cwd=tmp_path, PYTHONHASHSEED=seed).stdout for seed in "123"}
    assert len(printed) == 1 and len(printed.pop().strip()) == 16


# another length, other callbacks, broken files

@pytest.mark.parametrize("kind", ["editor", "network", "adversarial"])
def test_another_length_is_a_clear_error(tmp_path, monkeypatch, kind):
    class Interrupt(Callback):
        def after_step(self, learner):
            if learner.step == 9: raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        RUNS[kind](tmp_path, [Interrupt()])
    for steps in (40, 80):   # shorter, longer
        monkeypatch.setitem(globals(), "STEPS", steps)
        with pytest.raises(InputError, match=r"belongs to a run of 60 steps with other steps[^:]*: repeat its settings, name another folder"):
            RUNS[kind](tmp_path)


def toy_learner(callbacks, steps=6, **settings):
    torch.set_num_threads(1)
    world = ToyWorld(4, 10)
    codes = Codes(world.w, world.y, world.person)
    torch.manual_seed(0)
    task = EditorTask(AUEditNet(4, 32, **SMALL).standardise(codes.w), PairBatches(codes), EditLoss(), steps)
    return Learner(task, callbacks(task) if callable(callbacks) else callbacks, settings)


class Counter(Callback):
    state = "seen",
    def __init__(self, name=None): self.name, self.seen = name, 0
    def after_step(self, learner): self.seen += 1


def test_callback_states_are_found_by_name():
    first = toy_learner([Counter("a"), History(), Counter(), Callback(), Callback()])
    first.fit(stop=4)
    assert list(first.callbacks)[:3] == ["a", "History", "Counter"] and len(first.callbacks) == 5
    state = first.state_dict()
    second = toy_learner([Callback(), Clock(), Counter(), Counter("b"), History(), Counter("a")])   # others, in another order
    second.load_state_dict(state)
    seen = {name: callback.seen for name, callback in second.callbacks.items() if isinstance(callback, Counter)}
    assert seen == {"Counter": 4, "b": 0, "a": 4}   # a new callback begins at 0
    second.fit()
    assert len(second.callbacks["History"].rows) == 6 and second.callbacks["a"].seen == 6
    whole = toy_learner([History()])
    whole.fit()
    assert whole.callbacks["History"].rows == second.callbacks["History"].rows


@pytest.mark.parametrize("name", [None, "a"])
def test_states_of_one_name_are_refused(name):
    """Their order would decide who gets which state."""
    with pytest.raises(ValueError, match=f"two callbacks are named {name or 'Counter'}, and both have a state: give one another `name`"):
        toy_learner([Counter(name), History(), Counter(name)])
    with pytest.raises(ValueError, match="two callbacks are named EMA"):
        toy_learner(lambda task: [EMA(task.network), EMA(task.network)])


@pytest.mark.parametrize("stop, reached", [(0, 0), (1, 1), (99, 6), (None, 6)])
def test_a_run_pauses_where_it_is_told(stop, reached):
    learner = toy_learner([History()])
    before = learner.task.network.levels.base.detach().clone()
    learner.fit(stop)
    assert learner.step == len(learner.callbacks["History"].rows) == reached
    assert torch.equal(learner.task.network.levels.base, before) == (reached == 0)


def test_a_callback_that_needs_its_state_says_so():
    first = toy_learner([History()])
    first.fit(stop=4)
    with pytest.raises(InputError, match="the checkpoint has no state of EMA: leave it out, or name another folder"):
        toy_learner(lambda task: [History(), EMA(task.network)]).load_state_dict(first.state_dict())


def test_broken_and_foreign_checkpoints(tmp_path):
    file = tmp_path / "checkpoint.pt"
    toy_learner([Checkpoint(file)]).fit()
    with pytest.raises(InputError, match=r"checkpoint\.pt belongs to a run of 6 steps with other name: repeat its settings"):
        toy_learner([Checkpoint(file)], name="other").fit()
    file.write_bytes(b"broken")
    with pytest.raises(InputError, match=r"checkpoint\.pt: no readable checkpoint"):
        toy_learner([Checkpoint(file)]).fit()
    torch.save({"step": 3, "facts": {"steps": 6}, "callbacks": []}, file)   # as earlier versions wrote it
    with pytest.raises(InputError, match="belongs to a run of None steps with other steps: "):
        toy_learner([Checkpoint(file)]).fit()


def test_checkpoints_of_several_processes_do_not_meet(tmp_path):
    """Two runs that write the same file at the same time: each write is whole, and nothing else stays in the folder."""
    learners = [toy_learner([Checkpoint(tmp_path / "checkpoint.pt", every=1)], steps=40) for _ in range(2)]
    threads = [threading.Thread(target=lambda one=one: [one.callbacks["Checkpoint"].after_step(one) for _ in range(20)]) for one in learners]
    for one in learners: one.stop = one.steps
    for thread in threads: thread.start()
    for _ in range(20):
        if (tmp_path / "checkpoint.pt").is_file():
            assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 0
    for thread in threads: thread.join()
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_log_with_a_torn_line_is_written_anew(tmp_path):
    """The rows are in the checkpoint: what a kill has left in the file does not count."""
    from aueditnet.pretraining.generator_training import LogFile
    def learner():
        one = toy_learner([LogFile(tmp_path / "log.jsonl", 2), Checkpoint(tmp_path / "checkpoint.pt", 2)])
        one.task.size = 64
        return one
    learner().fit(stop=4)
    rows = (tmp_path / "log.jsonl").read_text()
    (tmp_path / "log.jsonl").write_text(rows + '{"step": 5}\n{"step": 6, "lat')
    learner().fit()
    steps = [json.loads(line)["step"] for line in open(tmp_path / "log.jsonl")]
    assert steps == [2, 4, 6] and (tmp_path / "log.jsonl").read_text().startswith(rows)
    (tmp_path / "log.jsonl").unlink()
    learner().fit()   # finished, the file is lost: it comes back
    assert [json.loads(line)["step"] for line in open(tmp_path / "log.jsonl")] == steps


def test_the_average_is_what_its_formula_says():
    class Weights(Callback):
        def __init__(self): self.seen = []
        def after_step(self, learner): self.seen.append(learner.task.network.levels.base.detach().clone())
    learner = toy_learner(lambda task: [EMA(task.network, decay=0.5), Weights()], steps=20)
    average = learner.task.network.levels.base.detach().clone()
    learner.fit()
    for step, weights in enumerate(learner.callbacks["Weights"].seen, 1):
        average = torch.lerp(average, weights, 1 - min(0.5, step / (step + 10)))
    assert torch.equal(learner.callbacks["EMA"].average.module.levels.base, average)


def test_a_given_editor_comes_back_and_labels_may_be_unknown():
    world, codes = toy_codes()
    config, editor = TrainConfig(steps=4, sizes=SMALL, batch=BatchConfig(label_noise=0.)), toy_editor()
    class Unknown(PairBatches):   # a set of labels without AU9
        def next_batch(self): return {k: v.index_fill(1, torch.tensor(4), torch.nan) if v.shape[1:] == (12,) else v for k, v in super().next_batch().items()}
    trained, history = fit_editor(codes, config, editor=editor, device="cpu")
    assert trained is editor and not editor.training and editor.device.type == "cpu"
    editor = toy_editor().init_from_ridge(codes.w, codes.y, codes.person)
    Learner(EditorTask(editor, Unknown(codes), EditLoss(), 4), [rows := History()]).fit()
    assert all(np.isfinite(list(row.values())).all() for row in rows.rows) and all(v.isfinite().all() for v in editor.state_dict().values())
    with pytest.raises(InputError, match="not one of auto, cpu, cuda, mps"):
        fit_editor(codes, config, device="tpu")


def test_each_process_has_its_own_gpu(monkeypatch):
    for name, value in {"WORLD_SIZE": "4", "LOCAL_RANK": "3"}.items(): monkeypatch.setenv(name, value)
    assert training_device(torch.device("cuda")) == torch.device("cuda:3") and training_device("cpu") == torch.device("cpu")
    monkeypatch.delenv("WORLD_SIZE")
    assert training_device(torch.device("cuda")) == torch.device("cuda")


# several processes

SHARED = """
    import sys, torch
    sys.path.insert(0, sys.argv[1])
    import test_training
    getattr(test_training, sys.argv[2])(sys.argv[3])
"""
TOLERANCE = 1e-4  # relative; sums are taken in another order, and the differences grow from step to step


def accelerated(out=None, **config):
    """A run without noise in the network (two processes would draw their own) and without terms in bfloat16."""
    settings = dict(steps=20, sizes=dict(**SMALL, dropout=0., noise=0.), batch=BatchConfig(pairs=16), loss=HALF_SEEN) | config
    editor, history = toy_run(readers=False, **settings)
    if out and not torch.distributed.get_rank():
        torch.save((editor.state_dict(), history.rows, torch.distributed.get_world_size()), out)
    return editor, history


def in_two_processes(folder, function, out):
    """Run a function of this module, by its name, in two processes."""
    pytest.importorskip("accelerate")
    (folder / "run.py").write_text(textwrap.dedent(SHARED))
    result = run_python("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "run.py", Path(__file__).parent, function, out,
                        cwd=folder, OMP_NUM_THREADS="1", ACCELERATE_USE_CPU="true")
    assert result.returncode == 0, result.stderr[-3000:]


class Watch(Callback):
    """Keeps the states of the random numbers, counts checkpoints, and interrupts a run."""
    def __init__(self, halt=None): self.halt, self.states, self.saved = halt, [], 0
    def before_fit(self, learner): self.save, torch.save = torch.save, self.counted
    def counted(self, *args):
        self.saved += 1
        self.save(*args)
    def after_loss(self, learner): self.states.append(torch.get_rng_state())
    def after_step(self, learner):
        if learner.step == self.halt:
            torch.save = self.save
            raise KeyboardInterrupt
    def after_fit(self, learner): torch.save = self.save


def with_noise(folder, watch):
    torch.manual_seed(torch.distributed.get_rank() if torch.distributed.is_initialized() else 0)   # of the caller: has no influence
    before = torch.get_rng_state()
    editor, history = toy_run(folder, [watch], readers=False, steps=10, batch=BatchConfig(pairs=16), loss=HALF_SEEN)
    assert torch.equal(before, torch.get_rng_state())
    return editor.state_dict(), history.rows, torch.stack(watch.states), watch.saved


def shared_with_noise(out):
    whole = with_noise("whole", Watch())
    try: with_noise("cut", Watch(halt=6))
    except KeyboardInterrupt: pass
    resumed = with_noise("cut", Watch())
    torch.save((whole, resumed), f"{out}.{torch.distributed.get_rank()}")


def test_processes_have_the_same_weights_and_noise_of_their_own(tmp_path):
    """Each has its own dropout; the weights are the same; one of them writes; and the run continues as if it had not been interrupted."""
    in_two_processes(tmp_path, "shared_with_noise", "out")
    (whole, resumed), (other, other_resumed) = (torch.load(tmp_path / f"out.{rank}", weights_only=True) for rank in (0, 1))
    for weights, rows, *_ in (resumed, other, other_resumed):
        assert rows == whole[1] and all(torch.equal(value, weights[name]) for name, value in whole[0].items())
    assert len(whole[2]) == 10 and all(not torch.equal(a, b) for a, b in zip(whole[2], other[2]))
    assert torch.equal(whole[2][4:], resumed[2]) and torch.equal(other[2][4:], other_resumed[2])
    assert (whole[3], resumed[3], other[3], other_resumed[3]) == (3, 2, 0, 0)   # steps 4, 8 and 10; the first process alone
    assert rows[0].keys() >= {"latent", "pixels"} and with_noise(tmp_path / "alone", Watch())[1] != rows


def test_two_processes_are_one_with_the_doubled_batch(tmp_path):
    in_two_processes(tmp_path, "accelerated", "out.pt")
    weights, rows, processes = torch.load(tmp_path / "out.pt", weights_only=True)
    editor, history = accelerated()
    assert processes == 2 and rows[0].keys() == history.rows[0].keys() >= {"latent", "au_latent", "pixels"}
    for name in rows[0]:  # the loss curves, term by term; each process had 8 of the 16 pairs, 4 of the 8 rendered ones
        assert [r[name] for r in rows] == pytest.approx([r[name] for r in history.rows], rel=TOLERANCE), name
    for name, value in editor.state_dict().items():
        assert torch.allclose(value, weights[name], rtol=TOLERANCE, atol=1e-5), name
    half = accelerated(batch=BatchConfig(pairs=8), loss=replace(HALF_SEEN, unseen=0))[1].rows
    assert abs(half[-1]["latent"] / rows[-1]["latent"] - 1) > 100 * TOLERANCE  # a single process's own share is another run


def test_accelerate_with_one_process_changes_nothing_and_odd_shares_are_refused():
    pytest.importorskip("accelerate")
    world, codes = toy_codes()
    config = TrainConfig(steps=10, sizes=SMALL)
    alone, together = (fit_editor(codes, config, callbacks=callbacks)[0] for callbacks in ((), [Accelerated(cpu=True)]))
    for name, value in alone.state_dict().items():
        assert torch.allclose(value, together.state_dict()[name], atol=1e-5), name
    task = EditorTask(AUEditNet(4, 32, **SMALL), PairBatches(codes, BatchConfig(pairs=9)), EditLoss(), 10)
    with pytest.raises(InputError, match="multiples of the 2 processes"):
        task.divide(0, 2)


def test_an_editor_comes_back_frozen_and_can_be_trained_again():
    """As editors from a model folder do; a second training goes on from its weights."""
    editor, _ = toy_run(steps=2)
    assert not editor.training and not any(p.requires_grad for p in editor.parameters())
    world, codes = toy_codes()
    first = {k: v.clone() for k, v in editor.state_dict().items()}
    config = TrainConfig(steps=2, checkpoint_every=4, sizes=SMALL, loss=LossConfig(size=16, rendered=8))
    again, history = fit_editor(codes, config, toy_networks(world), editor=editor)
    assert again is editor and len(history.rows) == 2 and not any(p.requires_grad for p in again.parameters())
    assert any(not torch.equal(v, first[k]) for k, v in again.state_dict().items())
    linear = LinearEditor(*codes.w.shape[1:]).fit(codes.w, codes.y, codes.person)
    assert not linear.training


def test_a_loss_that_sees_no_picture_is_refused_before_training():
    with pytest.raises(InputError, match="pixels would see no picture"):
        toy_run(steps=1, loss=LossConfig(size=16, rendered=0))
    editor, history = toy_run(steps=1, loss=LossConfig(size=16, rendered=0, pixels=0.))
    assert {"identity", "light", "au_image"} <= history.rows[0].keys() and "pixels" not in history.rows[0]
    with pytest.raises(InputError, match="rendered . loss.unseen is 40, more than the 32 pairs"):
        toy_run(steps=1, loss=LossConfig(size=16, rendered=24))


def test_an_editor_is_trained_without_its_gain():
    _, codes = toy_codes()
    config = TrainConfig(steps=3, sizes=SMALL, batch=BatchConfig(pairs=8, requests=3))
    first, _ = fit_editor(codes, config)
    assert first.response is None
    gained = copy.deepcopy(first)
    gained.response = torch.arange(8.).repeat(12, 1) * 2
    again, plain = (fit_editor(codes, config, editor=editor)[0] for editor in (gained, copy.deepcopy(first)))
    assert again is gained and again.response is None
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), plain.state_dict().values()))
    gained.response = torch.arange(8.).repeat(12, 1) * 2
    with pytest.raises(InputError, match="without_gain"):
        EditorTask(gained, PairBatches(codes), EditLoss(), 3)
