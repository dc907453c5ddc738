"""Which terms are computed, what they are zero for, and that every weight of an editor learns from them."""
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from aueditnet.editor import AUEditNet, ToyWorld, ridge
from aueditnet.inversion import pyramid_loss
from aueditnet.losses import EditLoss, LossConfig, perceptual_distance

torch.set_num_threads(1)
EVERYTHING = LossConfig(perceptual=1., light=0., size=16, rendered=16)
TERMS = ["latent", "au_latent", "psi_round_trip", "pixels", "perceptual", "identity", "au_image"]


@pytest.fixture(scope="module")
def world():
    return ToyWorld()


@pytest.fixture(scope="module")
def networks(world):
    """Frozen networks of the toy world: linear maps fitted to pictures of its training persons."""
    frames, y, who = world.synthesize(world.w[:1440]).flatten(1), world.y[:1440], world.people[:, 0, :12]
    centre, mean = frames.mean(0), y.mean(0)
    to_au, to_person = (ridge(frames - centre, target, 20.) for target in (y - mean, who[world.person[:1440]]))
    return dict(synthesize=world.synthesize, features=lambda x: [F.avg_pool2d(x, 2), x],
                identity=lambda x: F.normalize((x.flatten(1) - centre) @ to_person, dim=1),
                au_net=lambda x: (x.flatten(1) - centre) @ to_au + mean)


@pytest.fixture(scope="module")
def batch(world):
    g = torch.Generator().manual_seed(0)
    source = torch.randint(1440, (32,), generator=g)
    target = world.person[source] * 80 + torch.randint(80, (32,), generator=g)
    return dict(w_source=world.w[source], w_target=world.w[target], y_source=world.y[source], y_target=world.y[target],
                spread=world.w[:1440].std(0).square().mean(1, keepdim=True).sqrt())


@pytest.fixture(scope="module")
def net(world):
    torch.manual_seed(0)
    net = AUEditNet(4, 32, hidden=48, embed=12, rank=4)
    return net.init_from_ridge(world.w[:1440], world.y[:1440], world.person[:1440])


@pytest.fixture(scope="module")
def out(net, batch):
    torch.manual_seed(0)
    return {k: v.detach() for k, v in net(batch["w_source"], batch["y_target"]).items()}


def names(config, out, batch, **networks):
    return list(EditLoss(config, **networks)(out, batch)[1])


def test_the_total_is_the_weighted_sum_and_trains_every_weight(net, batch, networks):
    total, terms = EditLoss(EVERYTHING, **networks)(net(batch["w_source"], batch["y_target"]), batch)
    assert list(terms) == TERMS
    assert abs(total - sum(getattr(EVERYTHING, k) * v for k, v in terms.items())) < 1e-4
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_terms_without_weight_or_network_are_left_out(out, batch, networks):
    codes_only = ["latent", "au_latent", "psi_round_trip"]
    assert names(LossConfig(latent=0.), out, batch) == codes_only[1:]
    assert names(replace(EVERYTHING, rendered=0), out, batch, **networks) == codes_only


def test_samples_without_ground_truth_reach_three_terms_only(out, batch, networks):
    few, more = (EditLoss(replace(EVERYTHING, rendered=4, unseen=n), **networks)(out, batch)[1] for n in (0, 4))
    assert [k for k in few if few[k] != more[k]] == ["identity", "au_image"]


def test_an_editors_own_term(out, batch):
    assert EditLoss(LossConfig())(out | {"embedding": torch.tensor(2.)}, batch)[1]["embedding"] == 2


def test_light_sees_brightness_and_no_detail(out, batch):
    mosaic = lambda w, size: w.view(-1, 3, 16, 16)   # a code is a picture
    dark, loss = torch.zeros(2, 1, 768), EditLoss(LossConfig(light=1., rendered=2), mosaic)
    pair = batch | {"w_source": dark, "w_target": dark}
    light = lambda edited: loss(out | {"edited": edited}, pair)[1]["light"].item()
    chequered = 0.2 * (torch.arange(768).view(1, 1, 768) % 2 - 0.5).expand(2, 1, 768)
    assert light(dark + 0.1) == pytest.approx(0.01, abs=1e-6)
    assert light(chequered) == pytest.approx(0, abs=1e-6)


def test_a_perfect_edit_has_no_loss(batch, networks):
    perfect = dict(edited=batch["w_target"], source_estimate=batch["y_source"], edited_estimate=batch["y_target"],
                   round_trip=batch["y_target"])
    terms = EditLoss(EVERYTHING, **networks)(perfect, batch)[1]
    assert [terms[k].item() for k in TERMS[:5]] == [0.] * 5


def test_perceptual_distance():
    maps = [torch.randn(2, 8, 4, 4), torch.randn(2, 16, 2, 2)]
    distance = lambda other: perceptual_distance(maps, other).mean().item()
    assert distance(maps) == 0
    assert distance([3 * m for m in maps]) == pytest.approx(0, abs=1e-6)   # blind to the strength of a feature
    assert distance([-m for m in maps]) == pytest.approx(4, abs=1e-5)      # opposite unit vectors


def test_pyramid_loss_falls_on_the_way(world):
    a, b = world.synthesize(world.w[:1], 64), world.synthesize(world.w[40:41], 64)
    assert pyramid_loss(a, a) == 0 and pyramid_loss(a, b) > pyramid_loss(a, (a + b) / 2) > 0
