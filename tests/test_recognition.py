"""Networks that read identity and action units: their layers, their sizes off a state dict, and what they do not look at."""
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aueditnet.files.errors import InputError
from aueditnet.recognition import IRSE50, AUNet, IRSEBlock, IRSEBody, PReLU, SplitFaceAUNet, SqueezeExcite, identity_crop, resized
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
