"""Networks that read identity and action units: their layers, their sizes off a state dict, and what they do not look at."""
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aueditnet.files.errors import InputError
from aueditnet.recognition import IRSE50, AUNet, IRSEBlock, IRSEBody, PReLU, SplitFaceAUNet, SqueezeExcite, calibrated, identity_crop, resized
from aueditnet.files.networks import Entries

near = torch.testing.assert_close


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_gate_depends_on_means_and_only_damps():
    gate, x, order = SqueezeExcite(32), torch.randn(2, 32, 6, 6), torch.randperm(36)
    shuffle = lambda t: t.flatten(2)[..., order].view_as(t)
    near(gate(shuffle(x)), shuffle(gate(x)))
    assert (gate(x).abs() <= x.abs()).all()


def test_prelu_equals_pytorchs():
    x, slopes = torch.randn(2, 8, 5, 5, requires_grad=True), PReLU(8)
    nn.init.normal_(slopes.weight)
    assert torch.equal(slopes(x), F.prelu(x, slopes.weight))
    own, theirs = (torch.autograd.grad(y.square().sum(), (x, slopes.weight)) for y in (slopes(x), F.prelu(x, slopes.weight)))
    for a, b in zip(own, theirs):
        near(a, b)
    with torch.no_grad():
        assert torch.equal(slopes(x), F.prelu(x, slopes.weight))


def test_block():
    x = torch.randn(2, 32, 14, 14)
    assert IRSEBlock(32, 48, 2)(x).shape == (2, 48, 7, 7)
    block = IRSEBlock(32, 32, 2)
    nn.init.zeros_(block.res_layer[4].weight)       # the last BatchNorm: without the residual ...
    near(block(x), x[..., ::2, ::2])                # ... the block passes every other pixel on


def test_trunk():
    slim = IRSEBody((16, 16, 24, 32), (1, 2, 2))
    assert [tuple(m.shape) for m in slim.stages(torch.randn(1, 3, 64, 64))] == [(1, 16, 32, 32), (1, 24, 16, 16), (1, 32, 8, 8)]
    assert IRSEBody.sizes(Entries(slim.state_dict())) == dict(widths=(16, 16, 24, 32), blocks=(1, 2, 2))
    with torch.device("meta"):
        full = IRSEBody()
    assert IRSEBody.sizes(Entries(full.state_dict())) == dict(widths=(64, 64, 128, 256, 512), blocks=(3, 4, 14, 3))
    assert (len(full.body), full.stage_ends) == (24, [2, 6, 20, 23])     # e4e takes its features after blocks 6, 20 and 23


@torch.no_grad()
def test_identity_network_from_its_weights():
    small = IRSE50((16, 16, 32), (1, 2), dim=24, side=8)
    state, x = small.state_dict(), torch.randn(2, 3, 32, 32)
    again = IRSE50.from_state_dict(state)
    near(again(x), small.eval()(x))
    near(again(x).norm(dim=1), torch.ones(2))
    near(again(x.repeat_interleave(2, 2).repeat_interleave(2, 3)), again(x))         # pooled to the trunk's own size
    assert not any(p.requires_grad for p in again.parameters()) and not again.training
    IRSE50.from_state_dict({k: v for k, v in state.items() if "num_batches" not in k})  # public files may lack the counters
    for name in ("body.1.res_layer.2.weight", "output_layer.3.weight"):
        with pytest.raises(InputError, match=name):
            IRSE50.from_state_dict({k: v for k, v in state.items() if k != name})
    with pytest.raises(InputError, match="missing or misshapen: input_layer.0.weight"):
        IRSE50.from_state_dict({"weight": torch.zeros(1)})


def test_identity_crop():
    """Pictures whose values are their columns, so that the mean tells where the crop lies."""
    ramp = torch.arange(256.).expand(1, 3, 256, 256)
    assert identity_crop(ramp).mean().item() == pytest.approx((32 + 219) / 2, abs=1e-3)
    assert identity_crop(ramp.mT).mean().item() == pytest.approx((35 + 222) / 2, abs=1e-3)
    zoomed = torch.linspace(25.6, 230.4, 2049)[:-1].add(0.05)[::16].expand(1, 3, 128, 128)   # the middle 80 %, on 128 pixels
    assert identity_crop(zoomed, zoom=1.25).mean().item() == pytest.approx((32 + 219) / 2, abs=1.5)


def test_identity_crop_of_a_tight_picture():
    """Beyond zoom 1.36 the identity network sees more than the picture shows: the border is repeated."""
    x = torch.linspace(-1, 1, 64).expand(1, 3, 64, 64)
    for zoom in (1.25, 1.4, 2.):
        crop = identity_crop(x, zoom)
        assert crop.shape == (1, 3, 112, 112) and (crop.diff(dim=3) >= -1e-6).all()
    assert (crop[..., 0] == -1).all() and (crop[..., -1] == 1).all()
    assert identity_crop(x, 2.)[..., 56].mean().abs() < 0.1      # still the middle


def test_resized():
    x = torch.randn(1, 3, 32, 32)
    assert resized(x, 32) is x and resized(x, 16).shape == (1, 3, 16, 16)
    near(resized(torch.ones(1, 1, 8, 8), 16), torch.ones(1, 1, 16, 16))


AU_NETS = {"AUNet": lambda: AUNet((8, 12, 16), 64, 20), "landmarks": lambda: AUNet((8, 12, 16), 64, 20, outputs=136),
           "SplitFaceAUNet": lambda: SplitFaceAUNet((8, 12, 16, 16), (0, 1, 0, 2), hidden=20)}


@pytest.mark.parametrize("build", AU_NETS.values(), ids=list(AU_NETS))
def test_au_networks_from_their_weights(build):
    net = build().eval()
    state, x = net.state_dict(), torch.randn(2, 3, net.size, net.size)
    again = type(net).from_state_dict(state)
    with torch.no_grad():
        near(again(x), net(x))
        assert again(torch.randn(1, 3, 2 * net.size, 2 * net.size)).shape == (1, again(x).shape[1])   # sampled down
    assert again.size == net.size and not again.training and not any(p.requires_grad for p in again.parameters())
    for name in state:
        if not name.endswith("num_batches_tracked"):
            with pytest.raises(InputError):
                type(net).from_state_dict({k: v for k, v in state.items() if k != name})
    for thing in ({}, {"x": torch.zeros(1)}, None):
        with pytest.raises(InputError):
            type(net).from_state_dict(thing)


def test_sizes_of_the_published_widths():
    for net, most in ((AUNet(), 1e6), (SplitFaceAUNet(), 1e6)):
        assert sum(p.numel() for p in net.parameters()) < most
        assert type(net).from_state_dict(net.state_dict()).state_dict().keys() == net.state_dict().keys()
        assert net(torch.randn(2, 3, 128, 128)).shape == (2, 12)


@torch.no_grad()
def test_au_net_is_blind_outside_its_window():
    net, x = AUNet((8, 12, 16), 64, 20).eval(), torch.randn(2, 3, 64, 64)
    outside = x.clone()
    outside[..., :14, :], outside[..., 62:, :], outside[..., :8], outside[..., 56:] = 9, -9, 5, 7
    near(net(outside), net(x))


def test_split_face():
    net, x = SplitFaceAUNet((8, 12, 16, 16), (0, 1, 0, 2)).eval(), torch.rand(2, 3, 128, 128) * 2 - 1
    with torch.no_grad():
        near(net(x), net(x.flip(3)), atol=1e-5, rtol=0)             # a mirror image has the same action units
    picture = x.clone().requires_grad_(True)
    seen = torch.autograd.grad(net(picture).square().sum(), picture)[0].abs().sum((0, 1)) > 0
    rows, columns = seen.any(1).nonzero(), seen.any(0).nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (28, 123, 12, 115)      # brows to chin, temple to temple
    one, other = x[:1].clone(), x[1:].clone()
    for half in (one, other):
        half[..., 60:68] = 0                                        # the halves overlap in the middle
        half[..., 68:] = half[..., :60].flip(3)
    with torch.no_grad():                                           # an expression of one side only reads as the mean of both
        near(net(torch.cat([one[..., :64], other[..., 64:]], 3)), (net(one) + net(other)) / 2, atol=1e-5, rtol=0)


CURVE = torch.tensor([0.1, 0.6, 1.8, 2.9, 3.7, 4.3]) + torch.linspace(0, 0.1, 12)[:, None]

def test_calibration_bends_readings_and_is_stored():
    network = SplitFaceAUNet((4, 8), (0, 1), size=32, hidden=8).eval()
    plain, x = network.state_dict(), torch.rand(2, 3, 32, 32) * 2 - 1
    assert "calibration" not in plain and AUNet((4, 4), outputs=7).calibration is None
    again = SplitFaceAUNet.from_state_dict(plain | {"calibration": CURVE}, size=32)
    assert torch.equal(again.state_dict()["calibration"], CURVE)
    assert torch.equal(again(x), network(x))                                # the network itself reads as before
    near(again.calibrated(CURVE.T), torch.arange(6.)[:, None].expand(6, 12))
    near(again.calibrated((CURVE[:, 1] + CURVE[:, 2]) / 2), torch.full((12,), 1.5))
    near(again.calibrated(CURVE[:, 0] - 0.5), torch.full((12,), -0.5))      # slope 1 beyond both ends
    near(again.calibrated(CURVE[:, 5] + 0.5), torch.full((12,), 5.5))
    line = torch.linspace(-3, 9, 200)[:, None].expand(200, 12).clone().requires_grad_()
    assert (again.calibrated(line).diff(dim=0) > 0).all()
    assert (torch.autograd.grad(again.calibrated(line).sum(), line)[0] > 0).all()
    values = line.detach().numpy()
    assert isinstance(again.calibrated(values), np.ndarray)
    near(torch.from_numpy(again.calibrated(values)), again.calibrated(line.detach()))
    assert network.calibrated(values) is values and calibrated(lambda x: x, values) is values
    near(again.to(dtype=torch.float16).calibrated(CURVE.T), torch.arange(6.)[:, None].expand(6, 12), atol=0.01, rtol=0)
    again.load(Entries(plain))
    assert again.calibration is None


@pytest.mark.parametrize("change, message", [
    (lambda c: c.flip(1), "do not rise"), (lambda c: c[:, :5], "6 values of each AU"), (lambda c: c[:3], "6 values"),
    (lambda c: torch.where(torch.arange(12)[:, None] == 2, 1., c), "values of AU4 do not rise"),
    (lambda c: c * torch.nan, "do not rise")])
def test_a_calibration_has_to_rise(change, message):
    state = AUNet((4, 4), size=32).state_dict() | {"calibration": change(CURVE)}
    with pytest.raises(InputError, match=message):
        AUNet.from_state_dict(state)
