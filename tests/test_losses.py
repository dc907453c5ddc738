"""Which terms are computed, what they are zero for, and that every weight of an editor learns from them."""
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from aueditnet.editor import AUEditNet, ToyWorld, ridge
from aueditnet.files.errors import InputError
from aueditnet.inversion import pyramid_loss
from aueditnet.losses import EditLoss, LossConfig, au_error, block_means, perceptual_distance

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
    assert names(replace(EVERYTHING, rendered=0, unseen=0), out, batch, **networks) == codes_only


def test_what_is_left_out_has_a_name(out, batch, networks):
    config = replace(EVERYTHING, light=1.)
    missing = lambda config, **given: EditLoss(config, **given).missing
    assert missing(config, **networks) == missing(replace(config, au_image=0.), **networks | {"au_net": None}) == []
    assert missing(config) == ["pixels", "perceptual", "identity", "light", "au_image"]
    for network, term in {"features": "perceptual", "identity": "identity", "au_net": "au_image"}.items():
        loss = EditLoss(config, **{k: v for k, v in networks.items() if k != network})
        assert loss.missing == [term] and term not in loss(out, batch)[1]
    assert missing(replace(config, rendered=0), **networks) == ["pixels", "perceptual"]
    assert missing(replace(config, rendered=0, unseen=0), **networks) == missing(config)
    assert missing(LossConfig(latent=0.)) == missing(LossConfig())   # only terms on pictures need a network


def test_unseen_pairs_alone_have_the_terms_without_a_target_picture(out, batch, networks):
    only, both = (EditLoss(replace(EVERYTHING, light=1., rendered=n, unseen=12 - n), **networks)(out, batch)[1] for n in (0, 4))
    shared = "identity", "light", "au_image"
    assert set(only) == set(both) - {"pixels", "perceptual"} and all(only[k] == both[k] for k in shared)


def test_unknown_labels_do_not_count(net, batch, networks):
    """A label set that lacks AU9, and single labels: the terms are means over what is known, all gradients are numbers."""
    unknown = torch.zeros(32, 12, dtype=torch.bool)
    unknown[:, 4], unknown[3:9, 7] = True, True
    hidden = lambda y: torch.where(unknown, torch.nan, y)
    some = batch | {k: hidden(batch[k]) for k in ("y_source", "y_target")} | {"asked": hidden(batch["y_target"])}
    for p in net.parameters(): p.grad = None
    out = net(some["w_source"], some["asked"])
    total, terms = EditLoss(EVERYTHING, **networks)(out, some)
    total.backward()
    assert all(v.isfinite() for v in terms.values()) and all(p.grad.isfinite().all() for p in net.parameters())
    with torch.no_grad():
        error = lambda y, name: ((y - batch[name])[~unknown] / 5).square().mean()
        assert terms["au_latent"] == pytest.approx((error(out["source_estimate"], "y_source") + error(out["edited_estimate"], "y_target")).item() / 2)
        assert terms["psi_round_trip"] == pytest.approx(error(out["round_trip"], "y_target").item())
    nothing = au_error(torch.ones(2, 12, requires_grad=True), torch.full((2, 12), torch.nan))
    assert nothing == 0


def test_the_error_of_known_labels_is_the_mean_squared_error():
    y, target = torch.randn(2, 32, 12, generator=torch.Generator().manual_seed(3))
    assert torch.equal(au_error(y, target), ((y - target) / 5).square().mean())


def test_pixel_weights_follow_the_crop_zoom(out, batch, networks):
    pixels = [EditLoss(EVERYTHING, **networks, zoom=zoom)(out, batch)[1]["pixels"] for zoom in (1.25, 1.)]
    n = EVERYTHING.rendered
    expected = [pyramid_loss(*(networks["synthesize"](w[:n], 16) for w in (out["edited"], batch["w_target"])), zoom) for zoom in (1.25, 1.)]
    assert pixels == expected and pixels[0] != pixels[1]


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


def test_terms_that_would_see_no_picture_are_errors(networks):
    """`rendered=0` is refused while a weight asks for a target picture; the terms without one work on unseen pairs alone."""
    asked = replace(EVERYTHING, rendered=0, unseen=16)
    with pytest.raises(InputError, match="pixels, perceptual would see no picture with rendered=0, unseen=16"):
        EditLoss(asked, **networks).check(32)
    with pytest.raises(InputError, match="pixels, identity, au_image would see no picture with rendered=0, unseen=0"):
        EditLoss(replace(asked, perceptual=0., unseen=0), **networks).check(32)
    EditLoss(replace(asked, pixels=0., perceptual=0.), **networks).check(16)
    EditLoss(asked).check(1)      # without networks there are no pictures
    with pytest.raises(InputError, match="loss.rendered . loss.unseen is 32, more than the 31 pairs of a batch"):
        EditLoss(EVERYTHING, **networks).check(31)


def test_blocks_have_one_size_on_the_face():
    x = torch.randn(1, 3, 40, 40)
    assert block_means(x).shape[2:] == (4, 4) and block_means(x, 1.).shape[2:] == (5, 5) and block_means(x, 2.5).shape[2:] == (2, 2)


def test_requests_without_a_target_frame(net, batch, networks):
    """Pairs whose target code is NaN: they have no latent term, and intensities outside 0 to 5 none of the estimator on pictures."""
    made = batch | {"w_target": batch["w_target"].clone(), "y_target": batch["y_target"].clone()}
    made["w_target"][16:20], made["y_target"][16:20] = torch.nan, 6.5
    config = replace(EVERYTHING, unseen=8)
    for p in net.parameters(): p.grad = None
    out = net(made["w_source"], made["y_target"])
    total, terms = EditLoss(config, **networks)(out, made)
    total.backward()
    assert all(v.isfinite() for v in terms.values()) and all(p.grad.isfinite().all() for p in net.parameters())
    kept = [k for k in range(32) if not 16 <= k < 20]
    away = ((out["edited"] - batch["w_target"]) / batch["spread"])[kept]
    assert terms["latent"] == pytest.approx(away.square().mean().item(), rel=1e-5)
    with torch.no_grad():
        seen = networks["au_net"](networks["synthesize"](out["edited"][:24], 16))[[*range(16), *range(20, 24)]]
        assert terms["au_image"] == pytest.approx(((seen - batch["y_target"][[*range(16), *range(20, 24)]]) / 5).square().mean().item(), rel=1e-4)
    nothing = EditLoss(LossConfig())(out, made | {"w_target": made["w_target"] * torch.nan})[1]
    assert nothing["latent"] == 0


def test_edits_that_are_no_numbers_are_seen(out, batch):
    """A target that is not known does not count; an edit that is NaN must not hide behind it."""
    broken = out | {"edited": torch.where(torch.arange(32)[:, None, None] == 3, torch.nan, out["edited"])}
    assert EditLoss(LossConfig())(broken, batch)[1]["latent"].isnan()
