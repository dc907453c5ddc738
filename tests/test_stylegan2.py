"""StyleGAN2: the layers against their definitions, previews, and weights files that do not fit."""
import ctypes
import math
from unittest.mock import patch

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from aueditnet.files import weights
from aueditnet.files.errors import InputError
from aueditnet.files.networks import Entries, load_checked, tune_allocator
from aueditnet.stylegan2 import Blur, EqualLinear, Generator, Mapping, ModulatedConv, StyledConv, blur_kernel, upsample_image

near = torch.testing.assert_close


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def tiny():
    return Generator(64, style_dim=32, channels={4: 24, 8: 24, 16: 16, 32: 16, 64: 8}, n_mlp=2).requires_grad_(False)


@pytest.mark.parametrize("n_in, lr_mul", [(16, 1.), (512, 1.), (512, 0.01)])
def test_linear_keeps_the_variance(n_in, lr_mul):
    assert EqualLinear(n_in, 400, lr_mul=lr_mul)(torch.randn(400, n_in)).var().item() == pytest.approx(1, abs=0.1)


def test_mapping():
    mapping, z = Mapping(32, 4), torch.randn(5, 32)
    near(mapping(3 * z), mapping(z), atol=1e-5, rtol=0)     # only the direction of z counts
    assert list(mapping.state_dict())[:2] == ["1.weight", "1.bias"]


def test_upsampling_is_the_filter():
    x = torch.randn(2, 3, 5, 7)
    big = x.new_zeros(2, 3, 10, 14)
    big[..., ::2, ::2] = x
    near(upsample_image(x), F.conv2d(F.pad(big, (2, 1, 2, 1)), blur_kernel(4.).expand(3, 1, 4, 4), groups=3), atol=1e-5, rtol=0)
    assert blur_kernel().sum().item() == pytest.approx(1)
    identity = torch.eye(3)[..., None, None] * torch.tensor([[0, 0, 0], [0, 1., 0], [0, 0, 0]])
    near(Blur()(F.conv_transpose2d(x, identity, stride=2)), upsample_image(x), atol=1e-5, rtol=0)


def modulated_by_definition(conv, x, w):
    pictures = []
    for x1, style in zip(x, conv.modulation(w)):
        weight = conv.weight[0] * conv.scale * style[None, :, None, None]
        if conv.demodulate:
            weight = weight * torch.rsqrt(weight.square().sum((1, 2, 3), keepdim=True) + 1e-8)
        pictures.append(conv.blur(F.conv_transpose2d(x1[None], weight.transpose(0, 1), stride=2)) if conv.upsample
                        else F.conv2d(x1[None], weight, padding=weight.shape[-1] // 2))
    return torch.cat(pictures)


@pytest.mark.parametrize("kernel, demodulate, upsample", [(3, True, False), (3, True, True), (1, False, False)])
def test_modulated_convolution(kernel, demodulate, upsample):
    """Factors on the activations (batches, gradients) and in the weights (a single large picture), with bias and gain."""
    x, w, none, bias = torch.randn(3, 8, 12, 12), torch.randn(3, 16), torch.zeros(10), torch.randn(10)
    conv = ModulatedConv(8, 10, kernel, 16, demodulate, upsample)
    expected = modulated_by_definition(conv, x, w)
    biased = 2 * (expected + bias[:, None, None])
    near(conv(x, w, none), expected, atol=1e-4, rtol=0)
    near(conv(x, w, bias, 2.), biased, atol=1e-4, rtol=0)
    with torch.no_grad():
        near(torch.cat([conv(x[i:i + 1], w[i:i + 1], none) for i in range(3)]), expected, atol=1e-4, rtol=0)
        near(conv(x[:1], w[:1], bias, 2.), biased[:1], atol=1e-4, rtol=0)


@pytest.mark.parametrize("demodulate, factor", [(True, 1), (False, 100)])
def test_demodulation_cancels_a_loud_style(demodulate, factor):
    x, w, none = torch.randn(3, 8, 12, 12), torch.randn(3, 16), torch.zeros(10)
    conv = ModulatedConv(8, 10, 3, 16, demodulate)
    quiet = conv(x, w, none).std()
    conv.modulation.scale, conv.modulation.lr_mul = 100 * conv.modulation.scale, 100.
    assert (conv(x, w, none).std() / quiet).item() == pytest.approx(factor, rel=1e-3)


def test_noise_is_fixed_and_starts_at_zero():
    x, w = torch.randn(3, 8, 12, 12), torch.randn(3, 16)
    layer, noise = StyledConv(8, 10, 16, upsample=True), torch.randn(1, 1, 24, 24)
    near(layer(x, w, noise), layer(x, w, None))
    nn.init.ones_(layer.noise.weight)
    assert (layer(x, w, noise) - layer(x, w, None)).abs().mean() > 0.1
    assert torch.equal(layer(x, w, noise), layer(x, w, noise))


def test_entries_and_their_errors():
    state = {"weight": torch.zeros(2, 4), "more": torch.zeros(1)}
    with pytest.raises(InputError, match=r"missing: bias \(1\); extra: more \(1\); misshapen: weight \(2, 4\) instead of \(2, 3\)"):
        load_checked(EqualLinear(3, 2), state)
    assert Entries(state).size(("weight", 1), ("less", 0), ("more", 3), ("weight", 1)) == 4
    with pytest.raises(InputError, match="missing or misshapen: less"):
        Entries(state).size(("less", 0), ("more", 3))
    for thing in (None, [], {"g_ema": state}, {3: torch.zeros(1)}):
        with pytest.raises(InputError):
            Entries(thing)
    names = {name: torch.zeros(1) for name in ("style.1.weight", "style.12.bias", "styles")}
    assert Entries(names).count(r"style\.(\d+)\.") == 13 and Entries({}).count(r"style\.(\d+)\.") == 0


def test_codes_and_batches(tiny):
    w = tiny.map(torch.randn(3, 32))
    picture = tiny.synthesize(w)
    assert tiny.n_levels == 2 * math.log2(64) - 2 and picture.shape == (3, 3, 64, 64)
    assert torch.equal(tiny.synthesize(w[:, None].repeat(1, 10, 1)), picture)   # (B, d) is one code at all levels
    near(tiny.synthesize(w[1:2]), picture[1:2], atol=1e-4, rtol=0)              # pictures do not depend on their batch


def test_a_level_acts_from_its_resolution_on(tiny):
    w = tiny.map(torch.randn(3, 32))
    for level in range(tiny.n_levels):
        changed = w[:, None].repeat(1, tiny.n_levels, 1)
        changed[:, level] += 1
        reach = [(tiny.synthesize(changed, size) - tiny.synthesize(w, size)).abs().max().item() > 1e-4 for size in tiny.resolutions]
        assert tiny.resolutions[reach.index(True)] == 4 * 2 ** (level // 2)


def test_previews_are_intermediate_pictures(tiny):
    seen, w = {}, tiny.map(torch.randn(3, 32))
    for rgb in (tiny.to_rgb1, *tiny.to_rgbs):
        rgb.register_forward_hook(lambda module, inputs, image: seen.setdefault(image.shape[-1], image))
    tiny.synthesize(w)
    for size in tiny.resolutions:
        assert torch.equal(tiny.synthesize(w, size=size), seen[size])


def test_without_glibc_nothing_happens():
    with patch.object(ctypes, "CDLL", side_effect=OSError):
        assert tune_allocator() is False


def test_from_state_dict(tiny):
    loaded, w, z = Generator.from_state_dict(tiny.state_dict()), torch.randn(3, 10, 32), torch.randn(4, 32)
    assert (loaded.size, loaded.style_dim, loaded.n_levels, loaded.resolutions) == (64, 32, 10, [4, 8, 16, 32, 64])
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    near(loaded.synthesize(w), tiny.synthesize(w), atol=1e-4, rtol=1e-4)
    assert torch.equal(loaded.map(z, truncation=0.), loaded.mean_latent.expand(4, -1))
    near(loaded.map(z, truncation=0.7), 0.3 * loaded.mean_latent + 0.7 * loaded.map(z), atol=1e-5, rtol=0)


def test_from_public(tiny, tmp_path):
    file, mean, w = tmp_path / "public.pt", torch.randn(32), torch.randn(2, 10, 32)
    inside = {f"decoder.{k}": v for k, v in tiny.state_dict().items()}
    for layout in ({"g_ema": tiny.state_dict(), "latent_avg": mean}, {"state_dict": inside, "latent_avg": mean.expand(10, -1)}):
        torch.save(layout, file)
        public = Generator.from_public(file)
        near(public.synthesize(w), tiny.synthesize(w), atol=1e-4, rtol=1e-4)
        assert torch.equal(public.mean_latent, mean) == ("g_ema" in layout)
    torch.save(tiny.state_dict(), file)
    with pytest.raises(InputError, match="neither g_ema"):
        Generator.from_public(file)


@pytest.mark.parametrize("change, message", [
    (lambda s: s.pop("convs.4.conv.weight"), r"missing: convs\.4\.conv\.weight"),
    (lambda s: (s.clear(), s.update(Mapping(32, 4).state_dict())), "input.input"),
    (lambda s: s.update({"conv1.activate.bias": torch.zeros(5)}), r"misshapen: conv1\.activate\.bias \(5,\) instead of \(24,\)")])
def test_files_that_do_not_fit(tiny, change, message):
    state = tiny.state_dict()
    change(state)
    with pytest.raises(InputError, match=message):
        Generator.from_state_dict(state)


def test_noise_and_filters_in_files(tiny):
    w = torch.randn(2, 10, 32)
    state = tiny.state_dict() | {"conv1.noise.weight": torch.ones(1)}
    load = Generator.from_state_dict
    assert load(state).noisy and not load(tiny.state_dict()).noisy
    bare = {k: v for k, v in state.items() if not k.startswith("noises.") and not k.endswith("kernel")}   # a file without buffers
    assert torch.equal(load(bare).synthesize(w), load(bare).synthesize(w))
    near(load(state | {"to_rgbs.0.upsample.kernel": blur_kernel(4.)}).synthesize(w), load(state).synthesize(w))
    with pytest.raises(InputError, match="noise_9 "):
        load(state | {"noises.noise_9": torch.zeros(1, 1, 64, 64)})
    for wrong in (blur_kernel(), torch.ones(4, 4) / 4, torch.ones(3, 3)):
        with pytest.raises(InputError, match="not the filter"):
            load(state | {"to_rgbs.0.upsample.kernel": wrong})


def test_synthesize_refuses_other_shapes_and_sizes(tiny):
    for codes, size in ((torch.zeros(1, 8, 32), None), (torch.zeros(1, 32), 24), (torch.zeros(1, 32), 128)):
        with pytest.raises(InputError):
            tiny.synthesize(codes, size)
    assert Generator(4, 8, {4: 4}, 1).synthesize(torch.zeros(1, 2, 8)).shape == (1, 3, 4, 4)     # the smallest


@torch.no_grad()
def test_bundled_generator():
    g = Generator.from_state_dict(weights.load("heads128-generator")[0])
    assert (g.size, g.n_levels, g.noisy) == (128, 12, False)
    z = torch.randn(6, g.style_dim)
    variety = [g.synthesize(g.map(z, psi)).std(0).mean().item() for psi in (1., 0.7, 0.4, 0.)]
    assert all(a > b for a, b in zip(variety, variety[1:])) and variety[-1] < 1e-4
