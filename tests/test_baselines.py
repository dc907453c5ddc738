"""Latent-space and image-space baselines: one interface, untouched AUs, rotations, error messages, loading by name."""
import math

import numpy as np
import pytest
from conftest import close
import torch
from torch.nn import functional as F

from aueditnet.align import neutral_faces
from aueditnet.baselines.latent_editors import (
    IndependentLevels, LinearEditor, OneLabel, ReDirTrans, SingleBranch, SingleGlobalModule)
from aueditnet.baselines.pixel_editors import (
    BASELINES, EDITORS, FULL, SLIM, GANimation, ICface, Ling, Translator, load_editor, pipeline)
from aueditnet.data import DISFA
from aueditnet.editor import AUEditNet, ToyWorld
from aueditnet.files.errors import InputError
from aueditnet.files.io import data_dir

torch.set_num_threads(1)
LATENT = [LinearEditor, SingleBranch, IndependentLevels, SingleGlobalModule, OneLabel, ReDirTrans, AUEditNet]


@pytest.fixture(scope="module")
def world():
    return ToyWorld()


@pytest.fixture(scope="module")
def editors(world):
    """From ridge regression, without training."""
    torch.manual_seed(0)
    known = world.w[:1440], world.y[:1440], world.person[:1440]
    start = lambda kind: (kind(4, 32).fit if kind is LinearEditor else kind(4, 32).init_from_ridge)(*known)
    return {kind.__name__: start(kind).eval().requires_grad_(False) for kind in LATENT}


@pytest.mark.parametrize("kind", LATENT, ids=lambda kind: kind.__name__)
def test_latent_editors_share_the_interface(world, editors, kind):
    editor, codes = editors[kind.__name__], world.w[-200:]
    assert editor.estimate(codes).shape == (200, 12)
    close(editor.edit(codes, torch.full((12,), torch.nan)), codes)                # no request, no change
    assert editor.edit_like(codes, codes[:1]).shape == codes.shape
    if kind not in (SingleBranch, IndependentLevels):
        close(editor.edit(codes, editor.estimate(codes)), codes)
        close(editor.edit(codes, editor.read(codes)[1]), codes)
    assert set(editor(codes, world.y[-200:])) >= {"edited", "source_estimate", "edited_estimate", "round_trip"}


def test_ridge_start_moves_as_the_linear_editor_does(world, editors):
    codes, target = world.w[-200:], world.y[-200:].roll(7, 0)
    theirs = editors["LinearEditor"].edit(codes, target) - codes
    for name in ("OneLabel", "ReDirTrans", "AUEditNet"):
        ours = editors[name].edit(codes, target) - codes
        assert F.cosine_similarity(ours.flatten(1), theirs.flatten(1)).mean() > 0.9


def test_one_label_is_the_same_at_all_levels(world):
    net, target = OneLabel(4, 32), world.y[-200:]
    label = net.psi_enc(target).detach()
    assert label.shape == (200, 4, 12) and torch.equal(label, label[:, :1].expand(-1, 4, -1))
    assert not any(n.startswith("psi") for n, _ in net.named_parameters())


def test_redirtrans_rotates_and_trains_its_embedding(world):
    torch.manual_seed(0)
    net = ReDirTrans(4, 32).init_from_ridge(world.w[:1440], world.y[:1440], world.person[:1440]).eval()
    codes, target = world.w[-200:], world.y[-200:].roll(7, 0)
    z, own = net.read(codes)
    close(net.rotate(net.rotate(z, own), -own), z)
    net(codes, target)["embedding"].backward()
    assert net.canonical.weight.grad.abs().sum() > 0
    request = torch.full((12,), torch.nan)
    request[0] = 3.
    close(net.edit(codes, request), net.edit(codes, torch.where(torch.isnan(request), net.estimate(codes), request)), 1e-4)


@pytest.fixture(scope="module")
def pictures():
    torch.manual_seed(0)
    return torch.rand(2, 3, 128, 128) * 2 - 1, torch.rand(2, 12) * 5


@torch.no_grad()
def test_image_space_networks_before_training(pictures):
    x, y = pictures
    torch.manual_seed(0)
    assert Translator(3, **SLIM)(x, y).shape == x.shape
    out = GANimation(**SLIM).eval()(x, y, y.roll(1, 0))
    close(out["edited"], out["mask"] * x + (1 - out["mask"]) * out["colour"])
    assert out["mask"].shape == (2, 1, 128, 128) and out["mask"].mean() > 0.85    # at the start nearly everything passes
    ling = Ling(**SLIM).eval()
    close(ling(x, y, y)["edited"], ling(x, y + 1, y + 1)["edited"])               # only the difference counts
    icface = ICface(**SLIM).eval()
    here, there = icface(x, y, y), icface(x, y + 1, y.roll(1, 0))
    close(here["neutral"], there["neutral"])                                      # the neutral face knows no request
    assert (here["edited"] - there["edited"]).abs().max() > 1e-4


def test_slim_networks_have_fewer_weights():
    full, slim = (sum(p.numel() for p in Translator(3, **sizes).parameters()) for sizes in (FULL, SLIM))
    assert 10 < full / slim < 20


@torch.no_grad()
def test_image_space_requests(pictures):
    x, _ = pictures
    torch.manual_seed(0)
    net = GANimation(**SLIM).eval().read_by(lambda x: torch.full((len(x), 12), 2.))
    request = torch.full((12,), torch.nan)
    request[6] = 4.
    close(net.edit(x, request), net.edit(x, torch.where(torch.isnan(request), 2., request)))   # unnamed AUs stay
    close(net.edit_like(x, x[:1]), net.edit(x, torch.full((12,), 2.)))
    with pytest.raises(InputError, match="a request has 12 intensities, not 11"):
        net.edit(x, torch.zeros(11))
    assert not any("estimator" in k for k in net.state_dict())


def test_every_bundled_editor_loads_frozen():
    for name in EDITORS:
        editor = load_editor(name)
        assert not editor.training
    assert type(load_editor("ReDirTrans-style")) is ReDirTrans
    with pytest.raises(InputError, match="'StarGAN': not one of linear"):
        load_editor("StarGAN")


def test_pipelines_of_image_space_editors():
    """Twice the same edit gives the same picture; a batch equals single edits; unnamed AUs hardly change a face."""
    face = neutral_faces(DISFA(data_dir() / "synthdisfa", ["SN008"]), 128, subjects=["SN008"])["SN008"]
    request = {"AU4": 4, "AU25": 2, "AU26": 3}
    pipe = pipeline("GANimation")
    assert np.array_equal(pipe.edit(face, request).image, pipe.edit(face, request).image)
    pipe = pipeline("Ling")
    both, single = pipe.edit_batch(face, [request, {"AU12": 2.5}]), pipe.edit(face, request)
    assert abs(both[0].image.astype(int) - single.image).max() <= 2
    assert set(BASELINES) < set(EDITORS) and math.isfinite(single.identity)
