"""Public checkpoints of every known layout become the same model folder, or are refused by name."""
import pickle

import numpy as np
import pytest
import torch

from aueditnet.files import weights
from aueditnet.files.errors import InputError
from aueditnet.files.model_folder import ModelFolder
from aueditnet.inversion import Inverter
from aueditnet.pipeline import FaceModel
from aueditnet.recognition import IRSE50
from aueditnet.runs.importing import import_model, seeded_checkpoint
from aueditnet.stylegan2 import Generator


@pytest.fixture(scope="module")
def content(tmp_path_factory): return seeded_checkpoint(tmp_path_factory.mktemp("e4e") / "e4e.pt")


@pytest.fixture(scope="module")
def reference(content, tmp_path_factory):
    """Codes and pictures of the usual layout."""
    folder = tmp_path_factory.mktemp("reference")
    torch.save(content, folder / "e4e.pt")
    return outputs(import_model(folder / "e4e.pt", folder / "model"))


def outputs(folder):
    inverter = Inverter.from_pretrained(folder)
    w = inverter.invert(torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    return w, inverter.synthesize(w)


def same(one, two, tolerance=0.): return all((a - b).abs().max() <= tolerance for a, b in zip(one, two))


def part(content, prefix): return {k.removeprefix(prefix + "."): v for k, v in content["state_dict"].items() if k.startswith(prefix)}


def renamed(content, change): return content | {"state_dict": {change(k): v for k, v in content["state_dict"].items()}}


def without(content, word): return content | {"state_dict": {k: v for k, v in content["state_dict"].items() if word not in k}}


def as_half(content):
    return content | {"state_dict": {k: v.half() if v.is_floating_point() else v for k, v in content["state_dict"].items()}}


LAYOUTS = {  # name: (change of the content, largest difference to the usual layout)
    "module. before": (lambda c: renamed(c, lambda k: f"module.{k}"), 0),
    "module. inside": (lambda c: renamed(c, lambda k: k.replace(".", ".module.", 1)), 0),
    "latent_avg (d,)": (lambda c: c | {"latent_avg": c["latent_avg"][0]}, 0),
    "latent_avg (1, L, d)": (lambda c: c | {"latent_avg": c["latent_avg"][None]}, 0),
    "no latent_avg": (lambda c: {k: v for k, v in c.items() if k != "latent_avg"}, 0),  # made from the same samples
    "no opts": (lambda c: {k: v for k, v in c.items() if k != "opts"}, 0),
    "no batch counters": (lambda c: without(c, "num_batches_tracked"), 0),
    "no blur kernels": (lambda c: without(c, "kernel"), 0),
    "half precision": (as_half, 0.05),
    "more entries": (lambda c: c | {"state_dict": c["state_dict"] | {"discriminator.w": torch.zeros(1)}, "epoch": 3}, 0)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_one_file(content, reference, tmp_path, layout, caplog):
    caplog.set_level("INFO", "aueditnet")
    change, tolerance = LAYOUTS[layout]
    torch.save(change(content), tmp_path / "e4e.pt")
    folder = import_model(tmp_path / "e4e.pt", tmp_path / "model")
    assert same(outputs(folder), reference, tolerance)
    assert ("no latent_avg: estimated from 4,096 seeded samples" in caplog.text) == (layout == "no latent_avg")


def test_a_file_without_noise_gets_seeded_noise(content, reference, tmp_path, caplog):
    caplog.set_level("INFO", "aueditnet")
    torch.save(without(content, "noises."), tmp_path / "e4e.pt")
    one, two = (import_model(tmp_path / "e4e.pt", tmp_path / name) for name in "ab")
    assert "no noises.*" in caplog.text
    assert same(outputs(one), outputs(two)) and torch.equal(outputs(one)[0], reference[0])


def test_an_encoder_that_starts_from_zero_has_no_average(content, reference, tmp_path):
    torch.save(content | {"opts": {"start_from_latent_avg": False}}, tmp_path / "e4e.pt")
    folder = import_model(tmp_path / "e4e.pt", tmp_path / "model")
    assert "latent_avg" not in ModelFolder(folder)
    assert (outputs(folder)[0] + content["latent_avg"] - reference[0]).abs().max() < 1e-5


def test_tensors_of_a_gpu_load_without_one(content, reference, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        torch.save(content, tmp_path / "e4e.pt")
    with pytest.raises(RuntimeError, match="CUDA"): torch.load(tmp_path / "e4e.pt", weights_only=True)
    assert same(outputs(import_model(tmp_path / "e4e.pt", tmp_path / "model")), reference)


def test_the_old_file_format_of_pytorch(content, reference, tmp_path):
    torch.save(content, tmp_path / "e4e.pt", _use_new_zipfile_serialization=False)
    assert same(outputs(import_model(tmp_path / "e4e.pt", tmp_path / "model")), reference)


def test_a_converted_file(content, reference, tmp_path):
    torch.save(content, tmp_path / "e4e.pt")
    weights.convert(tmp_path / "e4e.pt", tmp_path / "e4e.safetensors")
    assert same(outputs(import_model(tmp_path / "e4e.safetensors", tmp_path / "model")), reference)


@pytest.mark.parametrize("size", [128, 256, 512])
@pytest.mark.parametrize("multiplier", [1, 2])
def test_sizes_and_channel_multipliers(tmp_path, size, multiplier):
    seeded_checkpoint(tmp_path / "e4e.pt", size, multiplier=multiplier)
    model = FaceModel.from_pretrained(import_model(tmp_path / "e4e.pt", tmp_path / "model"))
    picture = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), np.uint8)
    assert model.synthesize(model.invert(picture)).shape == (1, size, size, 3) and model.zoom == 1.0
    assert model.inverter.generator.config["channels"]["8"] == 16 * multiplier
    assert model.editor is None and model.au_net is None and model.identity is None and model.evaluator is None


def test_a_bare_encoder_and_the_generators_own_file(content, reference, tmp_path, caplog):
    caplog.set_level("INFO", "aueditnet")
    torch.save(part(content, "encoder"), tmp_path / "encoder.pt")
    average, generator = content["latent_avg"][0], part(content, "decoder")
    other = {k: v + 1 for k, v in generator.items()}
    for name, file in {"g_ema": {"g_ema": generator, "g": other, "latent_avg": average},
                       "g": {"g": generator, "d": {"w": torch.zeros(2)}, "latent_avg": average}}.items():
        torch.save(file, tmp_path / f"{name}.pt")
        folder = import_model(tmp_path / "encoder.pt", tmp_path / name, tmp_path / f"{name}.pt")
        assert same(outputs(folder), reference)
        assert ("not averaged" in caplog.text) == (name == "g")
    with pytest.raises(InputError, match="it has no generator that can be used, but encoder; name a generator's file with --generator"):
        import_model(tmp_path / "encoder.pt", tmp_path / "model")


def test_another_generator_replaces_the_decoder(content, reference, tmp_path):
    torch.save(content, tmp_path / "e4e.pt")
    seeded_checkpoint(tmp_path / "other.pt", seed=5)
    folder = import_model(tmp_path / "e4e.pt", tmp_path / "model", tmp_path / "other.pt")
    w, pictures = outputs(folder)
    assert torch.equal(w, reference[0]) and (pictures - reference[1]).abs().max() > 0.1


def test_arcface_becomes_the_identity_network_of_the_loss(content, tmp_path):
    torch.save(content, tmp_path / "e4e.pt")
    network = IRSE50((8, 8, 12, 16, 24), (1, 1, 1, 1), dim=16).eval()
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, tmp_path / "arcface.pth")
    model = FaceModel.from_pretrained(import_model(tmp_path / "e4e.pt", tmp_path / "model", arcface=tmp_path / "arcface.pth"))
    x = torch.randn(2, 3, 112, 112)
    with torch.no_grad(): assert torch.equal(model.identity(x), network(x))
    assert model.identity_evaluator is None   # what is in a loss measures nothing


# refusals: nothing is written, the file and the remedy are named

def refused(tmp_path, match, *args, **files):
    with pytest.raises(InputError, match=match) as caught: import_model(*args, tmp_path / "model", **files)
    assert not (tmp_path / "model").exists() and "\n" not in str(caught.value)


def test_levels_that_do_not_fit_are_found_before_a_network_is_built(content, tmp_path, monkeypatch):
    torch.save(content, tmp_path / "e4e.pt")
    seeded_checkpoint(tmp_path / "large.pt", 256)
    seeded_checkpoint(tmp_path / "wide.pt", 64, dim=48)
    for kind in (Generator, Inverter): monkeypatch.setattr(kind, "__init__", lambda *args, **more: pytest.fail("a network was built"))
    refused(tmp_path, r"e4e.pt has 10 levels of width 32 \(64 px\), that of .*large.pt 14 of width 32 \(256 px\)", tmp_path / "e4e.pt", generator=tmp_path / "large.pt")
    refused(tmp_path, r"10 levels of width 32 .* 10 of width 48", tmp_path / "e4e.pt", generator=tmp_path / "wide.pt")


class Code:
    def __reduce__(self): return (print, ("this must not run",))


FOREIGN = {
    "StyleGAN3": ({"G_ema": {"synthesis.L0_36_512.weight": torch.zeros(1)}}, "a StyleGAN3 generator.*take stylegan2-ffhq-config-f.pt"),
    "StyleGAN2-ADA": ({"synthesis.b4.const": torch.zeros(1)}, "a StyleGAN2-ADA generator in NVIDIA's own layout; take stylegan2-ffhq"),
    "StyleGAN1": ({"generator": {"progression.0.conv1.0.weight": torch.zeros(1)}}, "a StyleGAN1 generator"),
    "a list": ([torch.zeros(1)], "no state dict, but a list"),
    "another network": ({"fc.weight": torch.zeros(2, 2)}, "it has no encoder that can be used, nor another network"),
    "odd average": (lambda c: c | {"latent_avg": torch.zeros(18, 512)}, r"latent_avg \(18, 512\) does not fit codes of 10 levels of width 32"),
    "missing entry": (lambda c: without(c, "convs.3.activate.bias"), "generator: the weights do not fit: missing: convs.3.activate.bias"),
    "misshapen entry": (lambda c: renamed(c, str) | {"state_dict": c["state_dict"] | {"encoder.latlayer1.bias": torch.zeros(3)}}, "encoder: the weights do not fit: misshapen"),
    "pSp": (lambda c: c | {"opts": {"encoder_type": "GradualStyleEncoder"}}, "no encoder that can be used, but generator; its encoder is a GradualStyleEncoder, not e4e's"),
    "program code": ({"state_dict": {"w": Code()}}, "refused, besides weights it holds")}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_refused_by_name(content, tmp_path, kind, capsys):
    what, match = FOREIGN[kind]
    torch.save(what(content) if callable(what) else what, tmp_path / "file.pt")
    refused(tmp_path, match, tmp_path / "file.pt")
    assert "must not run" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["network.pkl", "network.pt"])
def test_pickles_of_nvidia_are_refused_by_name(tmp_path, name):
    """Their networks are objects of the module torch_utils.persistence."""
    code = b"\x80\x04ctorch_utils.persistence\n_reconstruct_persistent_obj\n(t)R."
    (tmp_path / name).write_bytes(code if name.endswith("pkl") else legacy(code))
    refused(tmp_path, "refused, a pickle as StyleGAN2-ADA and StyleGAN3 write them.*take stylegan2-ffhq-config-f.pt", tmp_path / name)


def legacy(code):  # PyTorch's old format: magic number, protocol, system, then the object
    head = [0x1950a86a20f9469cfc6c, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}]
    return b"".join(pickle.dumps(thing, 2) for thing in head) + code.replace(b"\x80\x04", b"\x80\x02")


def test_folders_that_hold_something(content, tmp_path):
    torch.save(content, tmp_path / "e4e.pt")
    import_model(tmp_path / "e4e.pt", tmp_path / "model")
    with pytest.raises(InputError, match="holds a model, name another folder or delete it"): import_model(tmp_path / "e4e.pt", tmp_path / "model")
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(InputError, match="not empty and not a model"): import_model(tmp_path / "e4e.pt", tmp_path / "letters")
    with pytest.raises(InputError, match="neither a weights file nor a known name"): import_model(tmp_path / "none.pt", tmp_path / "x")


def test_the_card_names_files_and_licences(content, tmp_path):
    torch.save(content, tmp_path / "e4e_ffhq_encode.pt")
    folder = import_model(tmp_path / "e4e_ffhq_encode.pt", tmp_path / "model")
    card, config = (folder / "README.md").read_text(), ModelFolder(folder).config
    assert "NVIDIA NC" in card and weights.sha256(tmp_path / "e4e_ffhq_encode.pt") in card
    assert (config["crop_zoom"], config["refinement"], config["input_size"], config["size"]) == (1.0, 0, 64, 64)
    assert ModelFolder(folder).load("encoder")[1]["from"] == "e4e_ffhq_encode.pt"
