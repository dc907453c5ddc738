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
from aueditnet.baselines.adversarial import AdversarialConfig, AdversarialTask, PicturePairs, fit_baseline, gains, vary
from aueditnet.baselines.pixel_editors import (
    BASELINES, EDITORS, FULL, SLIM, GANimation, ICface, Ling, Translator, load_editor, output_layer, pipeline, with_maps)
from aueditnet.data import DISFA, Codes
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
    assert out["mask"].shape == (2, 1, 128, 128)
    ling = Ling(**SLIM).eval()
    close(ling(x, y, y)["edited"], ling(x, y + 1, y + 1)["edited"])               # only the difference counts
    assert torch.corrcoef(torch.stack([ling(x, y, y)["edited"].flatten(), x.flatten()]))[0, 1] > 0.9   # at the start nearly everything passes
    icface = ICface(**SLIM).eval()
    here, there = icface(x, y, y), icface(x, y + 1, y.roll(1, 0))
    close(here["neutral"], there["neutral"])                                      # the neutral face knows no request
    assert (here["edited"] - there["edited"]).abs().max() > 1e-4


class PaintsWith(torch.nn.Module):
    """In the place of GANimation's network: one value of the mask everywhere, and the colours of the source."""
    def __init__(self, mask): super().__init__(); self.logit = math.log(mask / (1 - mask))
    def forward(self, x, y): return torch.cat([torch.atanh(x.clamp(-0.99, 0.99)), torch.full_like(x[:, :1], self.logit)], 1)


@torch.no_grad()
def test_the_mask_term_pulls_towards_the_colour_picture(pictures):
    x, y = pictures
    def mask_term(mask):
        net = GANimation(**SLIM)
        net.net = PaintsWith(mask)
        (edited, target), = (parts := net.terms(x, y, y.roll(1, 0), x))[0]
        close(edited, x, 0.02)   # the same picture, whoever paints it: only the mask differs
        assert torch.equal(target, y.roll(1, 0)) and parts[1]["cycle"] < 0.01 and parts[1]["smooth"] == 0
        return parts[1]["mask"].item()
    close(mask_term(0.999), 0.998, 1e-3)    # all of the source kept: the generator does nothing, and pays
    close(mask_term(0.5), 0.25, 1e-3)
    assert mask_term(0.001) < 1e-5 < mask_term(0.5) < mask_term(0.999)
    assert GANimation.weights["mask"] > 0


@pytest.mark.parametrize("fold", [1, 2])
def test_the_output_unfolds_what_the_stem_folds(fold):
    x = torch.rand(2, 3, 32, 32)
    layer = output_layer(3 * fold ** 2, 3, fold)
    with torch.no_grad():
        layer[0].weight.zero_()[:, :, 3, 3].add_(torch.eye(3 * fold ** 2)), layer[0].bias.zero_()
        close(layer(F.pixel_unshuffle(x, fold)), x)   # every pixel can be passed on exactly


@torch.no_grad()
def test_features_without_normalisation_do_not_fade():
    torch.manual_seed(0)
    ling, x, y = Ling(**SLIM).eval(), torch.rand(4, 3, 64, 64) * 2 - 1, torch.rand(4, 12) * 5
    deepest = ling.body(ling.enter(with_maps(ling.stem(x)[-1], y)))
    assert 0.2 < deepest.std() < 5


@torch.no_grad()
def test_icface_keeps_a_quarter_of_the_side_in_both_sizes():
    for sizes in (FULL, SLIM):
        assert ICface(**sizes | dict(width=4)).neutraliser.stem(torch.rand(1, 3, 64, 64), torch.rand(1, 12))[-1].shape[2:] == (16, 16)


def toy_run(kind="GANimation", folder=None, callbacks=(), **more):
    g = torch.Generator().manual_seed(0)
    faces = F.interpolate(torch.rand(12, 1, 3, 4, generator=g), (32, 32)).expand(-1, 3, -1, -1).mul(255).byte()
    codes = Codes(torch.zeros(12, 1, 1), brightness(faces / 127.5 - 1).round().clamp(0, 5), torch.arange(2).repeat_interleave(6), None, faces)
    config = AdversarialConfig(**dict(steps=5, batch=4, critic_width=4, critic_depth=3, checkpoint_every=2) | more.pop("config", {}))
    return fit_baseline(kind, codes, brightness, config, folder, callbacks, width=4, fold=2, **more)[:2]


def brightness(x): return 2.5 + 2.5 * F.adaptive_avg_pool2d(x, (3, 4)).mean(1).flatten(1)


def test_validation_looks_at_averaged_weights_and_changes_nothing():
    torch.manual_seed(0)
    x, y = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8), torch.rand(3, 12) * 5
    (plain, without), (editor, history) = toy_run(), toy_run(validation=(x, y))
    assert without.validation == [] and [row["step"] for row in history.validation] == [1, 2, 3, 4, 5]
    assert all(torch.equal(v, editor.state_dict()[k]) for k, v in plain.state_dict().items())
    x = x / 127.5 - 1
    own = brightness(x)
    with torch.no_grad():
        edited, same = (editor(x, own, request)["edited"].clamp(-1, 1) for request in (y, own))
        back = editor(edited, y, own)["edited"].clamp(-1, 1)
    last = history.validation[-1]
    close(torch.tensor([last["units"], last["cycle"], last["same"]]),
          torch.stack([(brightness(edited) - y).abs().mean(), (back - x).abs().mean(), (same - x).abs().mean()]), 1e-4)


def test_a_curve_is_flat_where_its_last_fifth_gains_nothing():
    rows = lambda values: [{"step": i, "units": v} for i, v in enumerate(values)]
    assert gains(rows([4.] * 5 + [2.] * 5))["units"] == 0
    assert gains(rows([4.] * 8 + [3.] * 2))["units"] == 0.25
    assert gains(rows([1.] * 8 + [2.] * 2))["units"] == -1


@pytest.mark.parametrize("n", [1, 3])
def test_the_critic_takes_its_steps_before_the_editor(n, monkeypatch):
    taken, step = [], AdversarialTask.critic_step
    def counted(self, *args):
        taken.append(0)
        return step(self, *args)
    monkeypatch.setattr(AdversarialTask, "critic_step", counted)
    toy_run(config=dict(steps=2, critic_steps=n))
    assert len(taken) == 2 * n


def test_icface_needs_an_identity_network():
    with pytest.raises(InputError, match="ICface compares embeddings: give an identity network"):
        toy_run("ICface")
    _, history = toy_run("ICface", identity=lambda x: F.normalize(x.mean((2, 3)) + 2, dim=1))
    assert all(0 <= row["identity"] <= 2 for row in history.rows)


def test_varied_pairs_stay_pairs():
    torch.manual_seed(0)
    x, draw = torch.rand(4, 3, 32, 32) * 2 - 1, torch.rand(4, 8) * 2 - 1
    close(vary(x, 0 * draw, 0.1), x, 1e-5)
    changed = vary(x, draw, 0.1)
    assert (changed - x).abs().mean() > 0.02 and changed.abs().max() <= 1
    codes = Codes(torch.zeros(8, 1, 1), torch.zeros(8, 12), torch.zeros(8, dtype=torch.long), None,
                  torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8).expand(8, -1, -1, -1))
    batch = PicturePairs(codes, 4, augment=0.1).next_batch()
    assert torch.equal(batch["x_source"], batch["x_target"])   # one picture, drawn twice: both frames are changed alike
    assert not torch.equal(batch["x_source"][0], batch["x_source"][1])


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
