"""Everything that computes, on a device that this machine need not have; what runs on a GPU runs on the real one too.

`Away` is a tensor that says it is on another device (PyTorch's name for it is "meta"), while its numbers are on the CPU: operations on
tensors of both places raise as they do on a GPU, and results are those of the CPU, bit for bit. Run as a program, this file times one step
of every trainer, an edit and an evaluation on all devices of the machine: `python tests/test_devices.py`.
"""
import copy
import functools
import os
import random
import sys
import time
from contextlib import nullcontext
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from aueditnet import evaluation
from aueditnet.baselines.adversarial import AdversarialConfig, fit_baseline
from aueditnet.baselines.latent_editors import ReDirTrans
from aueditnet.baselines.pixel_editors import BASELINES
from aueditnet.data import BatchConfig, Codes
from aueditnet.editor import AUEditNet
from aueditnet.files.model_folder import ModelFolder
from aueditnet.files.networks import Loadable, bf16_available, own_random_numbers
from aueditnet.inversion import Inverter, gradient_eigenbasis, to_tensor
from aueditnet.losses import LossConfig
from aueditnet.pipeline import FaceModel, Pipeline
from aueditnet.pretraining.augment import Augment, PictureLoss, fit_network, predict
from aueditnet.pretraining.generator_training import JointConfig, JointTask, fresh_encoder
from aueditnet.pretraining.identity_network import IdentityLoss, embed
from aueditnet.recognition import IRSE50, AUNet, SplitFaceAUNet
from aueditnet.stylegan2 import Generator
from aueditnet.training import History, Learner, TrainConfig, fit_editor, frozen_networks

ONE_THREAD = os.environ.get("OMP_NUM_THREADS") == "1"   # several crash in the backward pass of the tensors below
pytestmark = [pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter", "ignore:Mean of empty slice"),
              pytest.mark.skipif(not ONE_THREAD, reason="runs in the process of test_devices_one_thread.py")]
AWAY, CPU = torch.device("meta"), torch.device("cpu")
aten = torch.ops.aten
MOVES = aten.copy_.default, aten._to_copy.default, aten._local_scalar_dense.default
PICKS = aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._unsafe_index.Tensor  # indices may be on the CPU


class Away(torch.Tensor):
    @staticmethod
    def __new__(cls, inner):
        self = torch.Tensor._make_wrapper_subclass(cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(),
                                                   dtype=inner.dtype, device=AWAY)
        self.inner = inner
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None): return compute(operation, args, kwargs or {})
    def __repr__(self): return f"Away({self.inner})"


def compute(operation, args, kwargs):
    """Run an operation on the CPU, if its tensors are all in one place; the result is where they are."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
    away = [x for x in tensors if isinstance(x, Away)]
    here = [x for x in tensors if not isinstance(x, Away) and x.ndim]   # numbers may be anywhere, as on a GPU
    if away and here and operation not in MOVES and not (operation in PICKS and isinstance(args[0], Away)):
        raise RuntimeError(f"{operation}: expected all tensors to be on the same device")
    goes, device = bool(away), kwargs.get("device")
    if device is not None: goes, kwargs = torch.device(device) == AWAY, {**kwargs, "device": CPU}
    if operation is aten.copy_.default: goes = isinstance(args[0], Away)
    same = {id(x.inner): x for x in away}   # results of operations in place
    inner = lambda x: x.inner if isinstance(x, Away) else x
    wrap = lambda x: same[id(x)] if id(x) in same else Away(x) if goes and isinstance(x, torch.Tensor) else x
    return tree_map(wrap, operation(*tree_map(inner, args), **tree_map(inner, kwargs)))


class Elsewhere(TorchDispatchMode):
    def __torch_dispatch__(self, operation, types, args=(), kwargs=None): return compute(operation, args, kwargs or {})


@pytest.fixture
def full_precision(monkeypatch):
    """Without autocast, which the other device has not: the kinds of devices for which it was asked."""
    kinds = []
    def autocast(kind, *_, **__):
        kinds.append(kind)
        return nullcontext()
    monkeypatch.setattr(torch, "autocast", autocast)
    return kinds


@pytest.fixture
def away(full_precision, monkeypatch):
    """Within it there is the device `AWAY`."""
    parts()
    full_precision.clear()
    optimiser = sys.modules[torch.optim.Optimizer.__module__]
    known = optimiser._get_fused_kernels_supported_devices
    monkeypatch.setattr(optimiser, "_get_fused_kernels_supported_devices", lambda: [*known(), AWAY.type])
    return Elsewhere


# networks as small as they can be

SIZE, LEVELS, DIM = 32, 8, 16
WIDTHS = {4: 16, 8: 16, 16: 8, 32: 8}
JOINT = JointConfig(size=SIZE, style_dim=DIM, channels=WIDTHS, discriminator_channels=WIDTHS, encoder_widths=(8, 8, 12, 16, 24),
                    encoder_blocks=(1, 1, 1, 1), head_widths=(16, 16), stages=((16, 2), (32, 2)), polish=2, reconstructions=5, samples=4)


def pictures(n, size=SIZE, seed=0):
    """Smooth noise, (n, size, size, 3) uint8."""
    x = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(x, (size, size), mode="bicubic").clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).contiguous().numpy()


@functools.cache
def parts():
    """The networks of `tiny_model`, on the CPU."""
    with own_random_numbers(seed=0):
        generator = Generator(SIZE, DIM, WIDTHS, n_mlp=2).eval().requires_grad_(False)
        encoder = fresh_encoder(JOINT, LEVELS).eval().requires_grad_(False)
        readers = dict(au_net=AUNet((4, 4, 4, 4)), evaluator=AUNet((4, 4, 6, 6)), evaluator_b=SplitFaceAUNet((4, 4, 4, 4), (0, 0, 0, 1)),
                       identity=IRSE50((8, 8, 12, 16), (1, 1, 1), 8), identity_evaluator=IRSE50((8, 8, 12, 16), (1, 1, 1), 8))
        for network in readers.values(): network.eval().requires_grad_(False)
        w = torch.randn(12, LEVELS, DIM)
        basis = gradient_eigenbasis(generator, [(w, to_tensor(pictures(12)))], 24)
        editor = AUEditNet(LEVELS, DIM, hidden=8, embed=4, rank=2).standardise(w).eval().requires_grad_(False)
        return dict(readers, editor=editor, inverter=Inverter(encoder, generator, torch.randn(DIM), SIZE, 1.25, 2, basis))


def tiny_model(refine=2):
    model = FaceModel(batch=5, **copy.deepcopy(parts()))
    model.inverter.steps = refine
    return model


def everything(model, folder, monkeypatch):
    """What one does with a model: {name: arrays or tensors}."""
    monkeypatch.setenv("AUEDITNET_HOME", str(folder))
    x, model = pictures(6), copy.copy(model)
    model.__class__ = Pipeline
    target = torch.full((12,), torch.nan)
    target[6] = 4.
    w = model.invert(x)
    found = {"codes": w, "pictures": model.synthesize(w), "edited": model.edit_codes(w, target), "estimate": model.estimate_codes(w)}
    found |= {"readings": model.read(x), "b": model.read(x, model.evaluator_b), "embedding": model.embed(x), "distance": model.distance(x, x[::-1])}
    edits = [*model.edit_batch(list(x[:2]), [{"AU12": 4}, {}], [None, {"AU4": 2}]), model.transfer(x[0], x[1])]
    found |= {f"edit {i} {k}": v for i, e in enumerate(edits) for k, v in vars(e).items() if isinstance(v, np.ndarray)}
    found |= {f"edit {i} {k}": np.array(list(v.values())) for i, e in enumerate(edits) for k, v in vars(e).items() if isinstance(v, dict)}
    found["one estimate"] = np.array(list(model.estimate(x[0]).values()))
    data = evaluation.EvaluationSet(x, [0, 1, 2, 3], [1, 2, 3, 0], np.eye(12)[:4] * 3, list("aabb"), {"a": 4, "b": 5})
    before = evaluation.Evaluation(model, data)
    report = before.report(with_leakage=True, n=20)
    found |= {f"{system}, {name}": np.array(m.value) for system, rows in report.systems.items() for name, m in rows.items()}
    found |= evaluation.round_trip(model, before.neutral)
    found |= evaluation.response_curve(model, before.neutral, at=(0, 2, 4))
    return found


def places(model):
    """{part: devices of its parameters and buffers}"""
    parts = {"inverter": model.inverter} | {k: v for k, v in model.parts.items() if isinstance(v, nn.Module)}
    return {name: {t.device for t in (*part.parameters(), *part.buffers())} for name, part in parts.items()}


def test_all_of_a_model_runs_on_another_device_and_gives_the_same(tmp_path, monkeypatch, away, full_precision):
    model = tiny_model()
    here, name = everything(model, tmp_path / "here", monkeypatch), model.inverter.fingerprint()
    full_precision.clear()
    with away():
        model.to(AWAY)
        assert all(devices == {AWAY} for devices in places(model).values()), places(model)
        there = everything(model, tmp_path / "there", monkeypatch)
        assert all(devices == {AWAY} for devices in places(model).values())
        assert model.inverter.fingerprint() == name   # the codes of one device are found by the other
    assert set(full_precision) == {AWAY.type}
    assert here.keys() == there.keys() and len(here) > 60
    for name, value in here.items():
        assert type(there[name]) in (np.ndarray, torch.Tensor, float, np.float64), name   # no tensor of the other device
        assert np.array_equal(np.asarray(value), np.asarray(there[name]), equal_nan=True), name


def test_a_preconditioner_is_made_where_the_generator_is(away):
    model, x = tiny_model(), to_tensor(pictures(12))
    w = torch.randn(12, LEVELS, DIM)
    here = gradient_eigenbasis(model.inverter.generator, [(w, x)], 24)
    with away():
        there = gradient_eigenbasis(model.to(AWAY).inverter.generator, [(w, x)], 24)
        assert torch.equal(here, there.cpu())


def test_a_model_is_loaded_onto_another_device(tmp_path, away):
    """Its parts are joined after they have moved: the basis of the preconditioner, too."""
    folder, x = tiny_model().save_pretrained(tmp_path / "tiny"), pictures(2)
    assert "preconditioner" in ModelFolder(folder)
    here = FaceModel.from_pretrained(folder).invert(x)
    with away(): there = FaceModel.from_pretrained(folder).to(AWAY).invert(x)
    assert torch.equal(here, there)


def test_a_video_is_inverted_where_the_model_is(away):
    from aueditnet.files.videofile import Frame
    from aueditnet.video.films import FaceFrame, invert_frames
    def codes(model):
        items = [FaceFrame(Frame(x, k, Fraction(1, 25)), crop=x) for k, x in enumerate(pictures(5))]
        return torch.stack([item.w for item in invert_frames(model, iter(items), batch=3)])
    here = codes(tiny_model())
    with away(): there = codes(tiny_model().to(AWAY))
    assert not isinstance(there, Away) and torch.equal(here, there)


# a forgotten move is found: faults as one makes them

def constant(model):
    model.evaluator.__class__ = type("Shifted", (AUNet,), {"read": lambda self, x: AUNet.read(self, x) + torch.ones(12)})
def numpy(model): model.identity_evaluator.__class__ = type("Numbers", (IRSE50,), {"forward": lambda self, x: torch.from_numpy(IRSE50.forward(self, x).numpy())})
def a_part_that_stayed(model): model.inverter.generator.cpu()
def half_a_network(model): model.editor.levels.enc_z.cpu()


@pytest.mark.parametrize("fault", [constant, numpy, a_part_that_stayed, half_a_network], ids=lambda fault: fault.__name__)
def test_a_forgotten_move_is_found(tmp_path, monkeypatch, away, fault):
    with away():
        model = tiny_model().to(AWAY)
        fault(model)
        with pytest.raises(RuntimeError, match="same device|numpy"):
            everything(model, tmp_path, monkeypatch)


def test_networks_that_do_not_receive_their_inputs_are_found(tmp_path, monkeypatch, away):
    with away():
        model = tiny_model().to(AWAY)
        monkeypatch.setattr(Loadable, "receive", lambda self, x: x)
        for use in (model.read, model.embed, lambda x: model.synthesize(torch.zeros(1, LEVELS, DIM)),
                    lambda x: model.edit_codes(torch.zeros(1, LEVELS, DIM), torch.zeros(12))):
            with pytest.raises(RuntimeError, match="same device"):
                use(pictures(1))


# trainers: {kind: device -> weights, rows of the log}; networks and codes of the caller are on the CPU

def codes_of(model, n=24):
    with own_random_numbers(seed=1):
        w, y = torch.randn(n, LEVELS, DIM), torch.randint(0, 6, (n, 12)).float()
    shown = torch.from_numpy(model.synthesize(w)).permute(0, 3, 1, 2).contiguous()
    return Codes(w, y, torch.arange(n // 6).repeat_interleave(6), -w, shown)


def editor_run(device, model=None, editor=None, **config):
    model = model or tiny_model()
    features = lambda x: model.identity.stages(F.adaptive_avg_pool2d(x, 56))[:2]
    loss = LossConfig(perceptual=1., size=SIZE, rendered=4, unseen=4)
    config = TrainConfig(**dict(steps=3, sizes=dict(hidden=8, embed=4, rank=2), batch=BatchConfig(pairs=12), loss=loss) | config)
    editor, history = fit_editor(codes_of(model), config, frozen_networks(model) | {"features": features}, editor=editor, device=device)
    assert set(history.rows[0]) >= {"latent", "au_latent", "psi_round_trip", "pixels", "perceptual", "light", "identity", "au_image"}
    return editor.state_dict(), history.rows


def rotating_run(device):
    with own_random_numbers(seed=2): editor = ReDirTrans(LEVELS, DIM, hidden=8, planes=2)
    return editor_run(device, editor=editor)


def network_run(device, loss=None):
    with own_random_numbers(seed=3):
        network = AUNet((4, 4, 4, 4))
        loss = loss or PictureLoss(pictures(24, 128), torch.rand(20, 12) * 5, Augment(), batch=6)
    network, record = fit_network(network, loss, lambda network: predict(network, pictures(4, 128)).mean(), 3, 0, checks=3, device=device)
    return network.state_dict(), record["history"]


def identity_run(device):
    with own_random_numbers(seed=4):
        network, x = IRSE50((8, 8, 12, 16), (1, 1, 1), 8), pictures(24)
        loss = IdentityLoss(x, np.repeat(np.arange(6), 4), 8, Augment(smallest=16), batch=12)
    network, record = fit_network(network, loss, lambda network: embed(network, x[:4])[:, 0].mean(), 3, 0, checks=3, device=device)
    return network.state_dict() | {f"loss {k}": v for k, v in loss.state_dict().items()}, record["history"]


def adversarial_run(kind):
    def run(device, estimator=None):
        model = tiny_model()
        config = AdversarialConfig(steps=3, batch=4, critic_width=4, critic_depth=3)
        people = (lambda x: torch.nn.functional.normalize(x.mean((2, 3)) + 2, dim=1))
        editor, history, _ = fit_baseline(kind, codes_of(model), estimator or model.au_net, config, device=device, identity=people,
                                          width=4, fold=2)
        return editor.state_dict(), history.rows
    return run


def joint_run(device):
    task = JointTask(JOINT, pictures(24), device)
    Learner(task, [history := History()]).fit()
    return {f"{k} {n}": v.cpu() for k, part in task.parts.items() if isinstance(part, nn.Module) for n, v in part.state_dict().items()} \
        | {k: v.cpu() for k, v in task.ema.average.state_dict().items()}, history.rows


TRAINERS = {"editor": editor_run, "ReDirTrans": rotating_run, "network": network_run, "identity": identity_run, "joint": joint_run} \
    | {kind: adversarial_run(kind) for kind in BASELINES}


@pytest.mark.parametrize("kind", TRAINERS)
def test_a_trainer_runs_on_another_device_and_gives_the_same(away, full_precision, kind):
    weights, rows = TRAINERS[kind](CPU)
    full_precision.clear()
    with away(): there, rows_there = TRAINERS[kind](AWAY)
    assert set(full_precision) == {AWAY.type}
    assert weights.keys() == there.keys() and not any(isinstance(value, Away) for value in there.values())   # at home again
    if kind in BASELINES:   # sums run in another order where pictures are in another order in memory
        assert rows[0] == pytest.approx(rows_there[0], rel=1e-4, abs=1e-5)   # an adversarial term is a difference of means near 0
    else: assert rows == rows_there and all(torch.equal(value, there[name]) for name, value in weights.items())


def test_frozen_networks_may_be_on_the_device_of_training_or_elsewhere(away):
    weights, rows = editor_run(CPU)
    with away():
        for placement, device in ((AWAY, AWAY), (CPU, AWAY), (AWAY, CPU)):
            model = tiny_model().to(placement)
            there, rows_there = editor_run(device, model)
            assert all(devices == {placement} for devices in places(model).values())
            assert rows_there == rows and all(torch.equal(v, there[k]) for k, v in weights.items())


def test_no_call_moves_a_callers_network(tmp_path, monkeypatch, away):
    """What is on the CPU stays there, what is away stays away."""
    with away():
        for own, other in ((CPU, AWAY), (AWAY, CPU)):
            model, with_refinement = tiny_model().to(own), tiny_model().to(other)
            editor = AUEditNet(LEVELS, DIM, hidden=8, embed=4, rank=2).to(other)
            network = AUNet((4, 4, 4, 4)).eval().to(other)
            before = places(model)
            where = lambda: {t.device for part in (editor, network) for t in (*part.parameters(), *part.buffers())}
            everything(model, tmp_path / str(own), monkeypatch)
            model.edit_codes(model.invert(pictures(2)), torch.zeros(12), editor)
            model.read(pictures(2), network)
            editor_run(own, model, editor)
            adversarial_run("Ling")(own, network)
            loss = PictureLoss(pictures(8, 128), torch.zeros(8, 12), Augment(), batch=4)
            fit_network(network, loss, lambda network: predict(network, pictures(2, 128)).mean(), 2, 0, device=own)
            evaluation.evaluate(with_refinement, evaluation.EvaluationSet(pictures(4), [0, 1], [2, 3], np.zeros((2, 12)), list("ab")), {"it": editor})
            assert places(model) == before and where() == {other}, own


@pytest.mark.parametrize("kind", [*TRAINERS, "editor with a given one"])
def test_random_numbers_of_the_caller_go_on_as_if_nothing_had_been_trained(kind):
    torch.manual_seed(7), np.random.seed(7), random.seed(7)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    TRAINERS.get(kind, rotating_run)(CPU)
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all() and random.getstate() == states[2]


# bfloat16 and float16

@pytest.fixture(scope="module")
def faces():
    from aueditnet.align import neutral_faces
    from aueditnet.data import DISFA, TEST
    from aueditnet.files.io import data_dir
    return np.stack([*neutral_faces(DISFA(data_dir() / "synthdisfa", TEST[:4]), 128, 1.25, TEST[:4]).values()])


@pytest.mark.parametrize("dtype, least, most", [(torch.bfloat16, 44, 0.1), (torch.float16, 55, 0.02)])
def test_half_precision_is_near(faces, dtype, least, most):
    exact, half = Pipeline.from_pretrained(refine=0), Pipeline.from_pretrained(refine=0, device="cpu", dtype=dtype)
    w = exact.invert(faces)
    request = torch.full((12,), torch.nan)
    request[6] = 4.
    edited = exact.edit_codes(w, request), half.edit_codes(w, request)
    pictures = exact.synthesize(edited[0]), half.synthesize(edited[0])
    results = [half.invert(faces), edited[1], half.estimate_codes(w), torch.from_numpy(half.read(faces)), torch.from_numpy(half.embed(faces))]
    def readings(model, x): return model.read(x, raw=True)   # a calibration would stretch differences
    assert half.inverter.generator.dtype == half.evaluator.dtype == half.editor.dtype == dtype
    assert {r.dtype for r in results} == {torch.float32} and pictures[1].dtype == np.uint8 and all(r.isfinite().all() for r in results)
    psnr = evaluation.psnr(*pictures)
    reading, cosine = abs(readings(exact, faces) - readings(half, faces)), (exact.embed(faces) * half.embed(faces)).sum(1)
    spread = exact.editor.spread
    shown, moved = abs(readings(exact, pictures[0]) - readings(exact, pictures[1])), ((edited[0] - edited[1]) / spread).abs().max()
    assert psnr.min() > least and max(reading.max(), shown.max()) < most and cosine.min() > 0.999
    edits = [model.edit(faces[0], {"AU12": 4}) for model in (exact, half)]   # encoder, editor and generator together
    for model in (exact, half): model.inverter.steps = 30
    refined = [model.edit(faces[0], {"AU12": 4}) for model in (exact, half)]
    whole, with_refinement = evaluation.psnr(*(e.image for e in edits)), evaluation.psnr(*(e.image for e in refined))
    print(f"{dtype}: pictures of the same codes {psnr.min():.1f} dB at least, readings of a picture differ by {reading.max():.4f} at most, of edited "
          f"pictures by {shown.max():.4f}, embeddings by {1 - cosine.min():.1e}, edited codes by {moved:.3f} spreads; a whole edit {whole:.1f} dB, "
          f"with refinement {with_refinement:.1f} dB")
    assert edits[1].image.dtype == np.uint8 and whole > least - 8 and with_refinement > least - 16


# a real GPU

def devices():
    """All devices of this machine."""
    return [CPU] + [torch.device("cuda")] * torch.cuda.is_available() + [torch.device("mps")] * torch.backends.mps.is_available()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", TRAINERS)
def test_one_step_of_a_trainer_on_a_gpu(full_precision, kind):
    (_, rows), (there, rows_there) = TRAINERS[kind](CPU), TRAINERS[kind](devices()[-1])
    assert all(v.device == CPU for v in there.values())
    if isinstance(rows[0], dict):   # the first step, before rounding and other dropout lead elsewhere
        first = {k: v for k, v in rows[0].items() if k in ("psi_round_trip", "cycle", "same", "itself")}
        assert all(rows_there[0][k] == pytest.approx(v, rel=0.05, abs=1e-3) for k, v in first.items())
    assert all(v.isfinite().all() for v in there.values() if v.is_floating_point())


@pytest.mark.gpu
def test_a_model_on_a_gpu_gives_what_it_gives_on_the_cpu(tmp_path, monkeypatch, full_precision):
    model = tiny_model(refine=0)
    here = everything(model, tmp_path / "here", monkeypatch)
    there = everything(model.to(devices()[-1]), tmp_path / "there", monkeypatch)
    for name, value in here.items():
        if np.asarray(value).dtype == np.uint8: assert evaluation.psnr(value, there[name]).min() > 40, name
        elif not name.endswith("colour"): assert np.allclose(np.asarray(value), np.asarray(there[name]), atol=0.05, rtol=0.05, equal_nan=True), name


@pytest.mark.gpu
def test_bfloat16_of_a_gpu(faces):
    test_half_precision_is_near(faces, torch.bfloat16, 44, 0.1)
    model = Pipeline.from_pretrained(device=devices()[-1], dtype=torch.bfloat16)
    assert evaluation.psnr(model.edit(faces[0], {"AU12": 4}).image, Pipeline.from_pretrained().edit(faces[0], {"AU12": 4}).image) > 25


def timings():
    """Seconds of a step of every trainer, of an edit and of an evaluation, on every device: prints a table."""
    from aueditnet.align import neutral_faces
    from aueditnet.data import DISFA, TEST
    from aueditnet.files.io import data_dir
    def finished(device):
        if device.type != "cpu": getattr(torch, device.type).synchronize()
        return time.perf_counter()
    def seconds(run, device, n=3):
        run(device)
        began = finished(device)
        for _ in range(n): run(device)
        return (finished(device) - began) / n
    face = next(iter(neutral_faces(DISFA(data_dir() / "synthdisfa", TEST[:1]), 128, 1.25, TEST[:1]).values()))
    models = {device: Pipeline.from_pretrained(device=device) for device in devices()}
    def training(steps):   # the bundled networks, 32 pairs of which 24 are synthesised
        def run(device):
            model = models[device]
            with own_random_numbers(seed=1): w, y = torch.randn(96, 10, 192), torch.randint(0, 6, (96, 12)).float()
            w = w[:, :model.inverter.generator.n_levels, :model.inverter.generator.style_dim]
            codes = Codes(w, y, torch.arange(16).repeat_interleave(6), -w, None)
            fit_editor(codes, TrainConfig(steps=steps), frozen_networks(model), device=device)
        return run
    jobs = {"edit of a face": lambda device: models[device].edit(face, {"AU12": 4}),
            "edits of 16 faces": lambda device: models[device].edit_batch([face] * 16, {"AU12": 4}),
            "evaluation of 24 edits": lambda device: evaluation.Evaluation(models[device], evaluation.EvaluationSet(
                np.repeat(face[None], 24, 0), range(24), range(24), np.ones((24, 12)), list("abcd") * 6)).report(n=2)}
    jobs |= {f"three steps, {kind} (tiny networks)": run for kind, run in TRAINERS.items()}
    print(f"{'seconds':45}" + "".join(f"{str(device):>10}" for device in devices()))
    print(f"{'bfloat16 in hardware':45}" + "".join(f"{str(bf16_available(device)):>10}" for device in devices()))
    for name, job in jobs.items(): print(f"{name:45}" + "".join(f"{seconds(job, device):10.3f}" for device in devices()), flush=True)
    steps = [(seconds(training(6), device, 1) - seconds(training(2), device, 1)) / 4 for device in devices()]
    print(f"{'one step of the editor, full size':45}" + "".join(f"{s:10.3f}" for s in steps))


if __name__ == "__main__":
    timings()
