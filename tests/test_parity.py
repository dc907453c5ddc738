"""The networks that must load public weights give what the original networks give.

Public weights cannot be downloaded here, so both sides got the same weights drawn from a seed, and only outputs are stored:
parity/goldens.npz holds every third row and column of the original pictures, and all of the original codes and
embeddings (rosinality's StyleGAN2, omertov's encoder4editing, TreB1eN's ArcFace; CPU, float32). How an entry is drawn depends on
its name and shape, so one wrong name or shape shows as a wrong output. `draw` and `noise` follow the drawing script that came with these
original outputs."""
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from aueditnet.experiments.benchmark import as_described
from aueditnet.cli import app
from aueditnet.files.errors import InputError
from aueditnet.inversion import Encoder, Inverter, to_uint8
from aueditnet.files.latents import LatentCache
from aueditnet.recognition import IRSE50
from aueditnet.stylegan2 import Generator
from aueditnet.files.weights import convert

GOLDENS = np.load(Path(__file__).parent / "parity" / "goldens.npz")
E4E_HEADS = [[512] * (5 if i < 3 else 6 if i < 7 else 7) for i in range(18)]  # 4, 5 or 6 strided convolutions: from 16, 32 or 64 px down to 1
CONSTANT = "kernel"  # of blurs and up-sampling: a constant of the architecture, never learnt


def draw(name, shape, seed=0):
    """The value of one entry of a state dict, near unit scale whatever its part in the network."""
    x = np.random.RandomState((seed * 1_000_003 + zlib.crc32(name.encode())) % 2**32).standard_normal(shape).astype(np.float32)
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var"):
        return 1 + 0.1 * np.abs(x)
    if name.endswith("running_mean"):
        return 0.1 * x
    if name.endswith("modulation.bias"):
        return 1 + 0.1 * x
    if name.startswith(("input_layer", "body", "output_layer", "latlayer")) or (name.startswith("styles") and ".convs." in name):
        if len(shape) >= 2:
            return x / np.sqrt(np.prod(shape[1:]))
        return 1 + 0.1 * x if name.endswith("weight") else 0.1 * x
    return 0.1 * x if name.endswith(("bias", "noise.weight")) else x


def noise(shape, seed, scale=1.0):
    return (scale * np.random.RandomState(seed).standard_normal(shape)).astype(np.float32)


def table(build):
    """{name: shape} of a model, which is built without memory for its weights."""
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in build().state_dict().items() if not k.endswith(CONSTANT)}


def drawn(build, seed=0):
    return {k: draw(k, shape, seed) for k, shape in table(build).items()}


def assert_near(out, golden):
    out = out.numpy()
    error = np.linalg.norm(out - golden) / np.linalg.norm(golden)
    assert out.shape == golden.shape and error <= 1e-4, f"relative error {error:.1e}"


@pytest.fixture(scope="module")
def generator():
    return Generator.from_state_dict(drawn(lambda: Generator(64)))


@pytest.fixture(scope="module")
def encoder():
    return Encoder.from_state_dict(drawn(lambda: Encoder(E4E_HEADS[:10])))


@torch.no_grad()
def test_generator(generator):
    w = generator.map(torch.from_numpy(noise((2, 512), 1)))
    w_plus = torch.from_numpy(noise((2, 10, 512), 2))
    truncated = w.mean(0) + 0.7 * (w - w.mean(0))
    assert_near(w, GOLDENS["mapping"])
    assert_near(generator.synthesize(w_plus)[..., ::3, ::3], GOLDENS["from_wplus"])
    assert_near(generator.synthesize(w)[..., ::3, ::3], GOLDENS["from_z"])
    assert_near(generator.synthesize(truncated)[..., ::3, ::3], GOLDENS["from_z_truncated"])
    assert_near(generator.map(torch.from_numpy(noise((2, 512), 1)), 0.7, w.mean(0)), truncated.numpy())


@pytest.mark.parametrize("size, widths, seed", [(64, None, 1), (256, None, 2), (1024, (40, 40, 36, 32, 24, 20, 16, 12, 8), 3)])
@torch.no_grad()
def test_other_seeds_and_sizes(size, widths, seed):
    """What has no golden is held to the plain reading of the paper, which itself is held to a golden below."""
    entries = drawn(lambda: Generator(size, channels=widths and {4 * 2**i: n for i, n in enumerate(widths)}), seed)
    state, generator = {k: torch.as_tensor(v) for k, v in entries.items()}, Generator.from_state_dict(entries)
    w_plus = torch.from_numpy(noise((2, generator.n_levels, 512), seed))
    assert generator.n_levels == 2 * np.log2(size) - 2
    assert_near(generator.synthesize(w_plus), (whole := as_described(state, w_plus, size)).numpy())
    assert_near(generator.synthesize(w_plus[1:]), whole[1:].numpy())
    assert_near(generator.synthesize(w_plus, size // 4), as_described(state, w_plus, size // 4).numpy())


@torch.no_grad()
def test_the_plain_reading():
    state = {k: torch.as_tensor(v) for k, v in drawn(lambda: Generator(64)).items()}
    assert_near(as_described(state, torch.from_numpy(noise((2, 10, 512), 2)), 64)[..., ::3, ::3], GOLDENS["from_wplus"])


@torch.no_grad()
def test_encoder(encoder):
    assert_near(encoder(torch.from_numpy(noise((1, 3, 256, 256), 7, 0.5).clip(-1, 1))), GOLDENS["codes"])


@torch.no_grad()
def test_identity():
    net = IRSE50.from_state_dict(drawn(IRSE50))
    assert_near(net(torch.from_numpy(noise((2, 3, 112, 112), 8, 0.5).clip(-1, 1))), GOLDENS["embedding"])


@pytest.mark.parametrize("file, build", [("e4e_decoder", lambda: Generator(1024)), ("e4e_encoder", lambda: Encoder(E4E_HEADS)), ("ir_se50", IRSE50)])
def test_names_and_shapes_of_the_public_files(file, build):
    rows = sorted(f"{k} {','.join(map(str, shape))}" for k, shape in table(build).items())
    assert (len(rows), zlib.crc32("\n".join(rows).encode())) == tuple(GOLDENS[file])


def test_public_generators_carry_constants(generator):
    """Public files hold the filters of the up-sampled pictures too; they are accepted, and refused if they are other filters."""
    state = generator.state_dict()
    kernel = state["convs.0.conv.blur.kernel"]
    Generator.from_state_dict({**state, **{f"to_rgbs.{i}.upsample.kernel": kernel for i in range(4)}})
    with pytest.raises(InputError, match="upsample.kernel"):
        Generator.from_state_dict({**state, "to_rgbs.0.upsample.kernel": kernel.flip(0) * torch.arange(4)})


@torch.no_grad()
def test_e4e_file(tmp_path):
    """A file laid out as the public one, with slim networks: inversion adds the average latent exactly if the file says so."""
    heads = [[40] * len(widths) for widths in E4E_HEADS[:6]]
    encoder, decoder = (drawn(build) for build in (lambda: Encoder(heads, 24, (16, 16, 24, 32, 40), (1, 1, 2, 1)), lambda: Generator(16, 24, {4: 8, 8: 8, 16: 8}, 2)))
    x, average = torch.from_numpy(noise((1, 3, 256, 256), 7, 0.5).clip(-1, 1)), torch.from_numpy(noise((6, 24), 3))
    state = {f"{part}.{k}": torch.as_tensor(v) for part, entries in (("encoder", encoder), ("decoder", decoder)) for k, v in entries.items()}
    codes = Encoder.from_state_dict(encoder)(x)
    for add in (True, False):
        torch.save({"state_dict": state, "latent_avg": average, "opts": {"start_from_latent_avg": add}}, tmp_path / "e4e.pt")
        inverter = Inverter.from_e4e(tmp_path / "e4e.pt")
        assert_near(inverter.invert(x), (codes + average * add).numpy())
        assert_near(inverter.synthesize(codes), Generator.from_state_dict(decoder).synthesize(codes).numpy())
    (tmp_path / "album").mkdir()
    picture = to_uint8(x)[0]
    Image.fromarray(picture).save(tmp_path / "album" / "face.png")
    for file in (tmp_path / "e4e.pt", convert(tmp_path / "e4e.pt", tmp_path / "e4e.safetensors")):  # from a terminal, either will do
        folder, out = str(tmp_path / f"{file.suffix[1:]}-model"), tmp_path / file.suffix[1:]
        for words in (["model", "import", "--e4e", str(file), "-o", folder], ["invert", str(tmp_path / "album"), "-o", str(out), "--model", folder]):
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, (done.output, done.exception)
        assert_near(LatentCache(out)[0], inverter.invert(picture)[0].numpy())


@torch.no_grad()
def test_generators_in_public_files(tmp_path):
    """rosinality's file, with what only its training needs; e4e's and pSp's, of which pSp's encoder is refused: its entries are named like e4e's and mean other codes."""
    state = {k: torch.as_tensor(v) for k, v in drawn(SLIM[Generator]).items()}
    w_plus, average = torch.from_numpy(noise((2, 6, 24), 4)), torch.from_numpy(noise((24,), 5))
    inside = {f"decoder.{k}": v for k, v in state.items()} | {f"encoder.{k}": torch.as_tensor(v) for k, v in drawn(SLIM[Encoder]).items()}
    extras = {"g": state, "d": {"convs.0.0.weight": torch.zeros(3)}, "g_optim": {"state": {}}, "latent_avg": average}
    layouts = {"rosinality": {"g_ema": state, **extras}, "bare": {"g_ema": state}}
    layouts |= {kind: {"state_dict": inside, "latent_avg": average.expand(6, -1), "opts": {"encoder_type": kind}} for kind in ("Encoder4Editing", "GradualStyleEncoder")}
    for name, layout in layouts.items():
        torch.save(layout, file := tmp_path / f"{name}.pt")
        generator = Generator.from_public(file)
        assert_near(generator.synthesize(w_plus), as_described(state, w_plus, 16).numpy())
        assert torch.equal(generator.mean_latent, average) == (name == "rosinality"), name
    Inverter.from_e4e(tmp_path / "Encoder4Editing.pt")
    with pytest.raises(InputError, match="GradualStyleEncoder"):
        Inverter.from_e4e(tmp_path / "GradualStyleEncoder.pt")


SLIM = {  # the smallest of each network, for the errors
    Generator: lambda: Generator(16, 24, {4: 8, 8: 8, 16: 8}, 2),
    Encoder: lambda: Encoder([[40] * 5] + [[40] + [12] * 4] * 2 + [[40] + [12] * 5] * 3, 24, (16, 16, 24, 32, 40), (1, 1, 2, 1)),
    IRSE50: lambda: IRSE50((16, 16, 24, 32, 40), (1, 1, 2, 1), 24, 7)}


@pytest.mark.parametrize("network", SLIM, ids=lambda network: network.__name__)
def test_wrong_entries_are_named(network):
    whole = drawn(SLIM[network])
    network.from_state_dict(whole)
    for name in whole:
        if name.startswith("noises.") or name.endswith("num_batches_tracked"):
            continue  # not learnt; public files may come without them
        with pytest.raises(InputError) as error:
            network.from_state_dict({k: v for k, v in whole.items() if k != name})
        assert name in str(error.value), f"without {name}: {error.value}"
    for name, value in whole.items():
        # one axis longer, without axes, with one more, empty: whatever a size is read off, it is this entry that is named
        shapes = [np.add(value.shape, np.eye(value.ndim, dtype=int)[axis]) for axis in range(value.ndim)]
        for shape in [*shapes, (1, *value.shape), (0,), *[()] * (value.ndim > 0)]:
            with pytest.raises(InputError) as error:
                network.from_state_dict({**whole, name: np.zeros(shape, np.float32)})
            assert f"{name} " in str(error.value) or str(error.value).endswith(name), f"{name} {shape}: {error.value}"
    for extra in ("unheard.of", list(whole)[0] + ".more", "noises.noise_77"):
        with pytest.raises(InputError, match=f"extra: {extra}"):
            network.from_state_dict({**whole, extra: np.zeros(3, np.float32)})
    for thing in (None, [], {"g_ema": whole}, {**whole, 3: np.zeros(3)}, {**whole, "epoch": "twelve"}):
        with pytest.raises(InputError, match="state dict"):
            network.from_state_dict(thing)
    last = list(whole)[-1]
    wrong = {**whole, "unheard.of": np.zeros(3, np.float32), last: np.zeros(7, np.float32)}
    del wrong[next(k for k in whole if k.endswith("bias"))]
    with pytest.raises(InputError) as error:
        network.from_state_dict(wrong)
    assert all(word in str(error.value) for word in ("missing", "extra: unheard.of (1)", f"misshapen: {last} (7,)")), error.value
