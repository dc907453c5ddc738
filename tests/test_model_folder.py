"""Model folders: every network survives them bit for bit, broken ones are named in one line, and the hub's cache is a source like any other."""
import json
import shutil
import textwrap

import numpy as np
import pytest
import torch
from conftest import run_python
from safetensors.torch import load_file, save_file

from aueditnet.baselines import latent_editors, pixel_editors
from aueditnet.editor import AUEditNet
from aueditnet.files import model_folder
from aueditnet.files.errors import InputError
from aueditnet.files.model_folder import PARTS, ModelFolder
from aueditnet.inversion import Encoder, Inverter
from aueditnet.photographs.reading import PhotoReader
from aueditnet.pipeline import FaceModel, Pipeline, Pixels
from aueditnet.recognition import IRSE50, AUNet, SplitFaceAUNet
from aueditnet.stylegan2 import Generator

L, D = 8, 16
SLIM = dict(width=8, fold=2)


def filled(network, seed=0):
    """Every entry random, so that nothing is equal by accident."""
    source = torch.Generator().manual_seed(seed)
    for name, value in network.state_dict().items():
        if name.endswith(("kernel", "num_batches_tracked", "steepness")): continue
        drawn = 0.3 * torch.randn(value.shape, generator=source)
        value.copy_(1 + drawn.abs() if name.endswith(("running_var", "std", "spread")) else drawn)
    return type(network).from_config(network.config, network.state_dict())   # loading sets the memory order, which decides the last bits


def generator(**more): return Generator(**dict(size=32, style_dim=D, channels={4: 8, 8: 10, 16: 6, 32: 7}, n_mlp=2) | more)
def encoder(levels=L, dim=D): return Encoder([[16] * n for n in (2, 2, 2, 3, 3, 3, 3, *[4] * (levels - 7))], dim, (12, 12, 14, 15, 16), (1, 2, 1, 1))
def inverter(): return Inverter(filled(encoder()), filled(generator()), torch.randn(L, D), 32, 1.25, 1, torch.linalg.qr(torch.randn(L * D, 5))[0].T.contiguous())


EDITORS = {"AUEditNet": lambda: AUEditNet(L, D, 24, 12, 3, 0.2, 0.3), "ReDirTrans": lambda: latent_editors.ReDirTrans(L, D, 24, 2),
           "LinearEditor": lambda: latent_editors.LinearEditor(L, D)}
EDITORS |= {name: (lambda kind: lambda: kind(L, D, hidden=24, embed=12, rank=3))(getattr(latent_editors, name))
            for name in ("SingleBranch", "IndependentLevels", "SingleGlobalModule", "OneLabel")}
PIXELS = {name: (lambda kind: lambda: kind(**SLIM))(getattr(pixel_editors, name)) for name in ("GANimation", "Ling", "ICface")}
PIXELS["Ling, other depth"] = lambda: pixel_editors.Ling(8, 2, blocks=2)
NETWORKS = {  # part, network, shape of its input
    "AUNet": ("au_net", lambda: AUNet((4, 6), 32, 9), (2, 3, 32, 32)), "AUNet, zoom 1": ("evaluator", lambda: AUNet((4, 6), 32, 9, zoom=1.), (2, 3, 40, 40)),
    "AUNet, odd size": ("au_net", lambda: AUNet((5, 7, 3), 72, 11, 5), (1, 3, 72, 72)),
    "SplitFaceAUNet": ("evaluator_b", lambda: SplitFaceAUNet((4, 5, 6), (0, 1, 2), 64, 9), (2, 3, 64, 64)),
    "SplitFaceAUNet, zoom 1": ("evaluator_b", lambda: SplitFaceAUNet((4, 5), (1, 0), 32, 9, zoom=1.), (2, 3, 40, 40)),
    "SplitFaceAUNet, odd size": ("evaluator_b", lambda: SplitFaceAUNet((4, 5), (1, 0), 48, 7), (1, 3, 48, 48)),
    "IRSE50": ("identity", lambda: IRSE50((6, 6, 7, 8), (1, 2, 1), 9, 14), (2, 3, 112, 112)),
    "IRSE50, same widths": ("identity_evaluator", lambda: IRSE50((6, 6, 6), (1, 2), 8, 28), (2, 3, 112, 112)),
    "Generator": ("generator", generator, (2, L, D)), "Generator, 8 px": ("generator", lambda: Generator(8, 6, {4: 3, 8: 5}, 3), (2, 4, 6)),
    "Generator, published widths": ("generator", lambda: Generator(16, 24), (1, 6, 24)),
    "Encoder": ("encoder", encoder, (2, 3, 32, 32)), "Encoder, odd": ("encoder", lambda: encoder(9, 5), (1, 3, 32, 32)),
    "Encoder, same widths": ("encoder", lambda: Encoder([[8] * n for n in (2, 2, 2, 3, 3, 3, 3, 4)], 16, (8, 8, 8, 8, 8), (2, 1, 1, 1)), (1, 3, 32, 32))}


def seeded(*shape): return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def outputs(folder, part, shape):
    """What a part of a stored model computes."""
    torch.set_num_threads(1)
    model = FaceModel.from_pretrained(folder)
    network, x = getattr(model, part) if part in PARTS and part not in ("generator", "encoder") else getattr(model.inverter, part), seeded(*shape)
    if part == "generator": return [network.synthesize(x), network.map(x[:, 0])]
    if part != "editor": return [network(x)]
    target = torch.linspace(-1, 5, 12).expand(len(x), -1)
    return [network.edit(x, target), network.estimate(x), network.edit_like(x[:1], x[1:])]


CHILD = """
    import sys, torch
    sys.path.insert(0, sys.argv[1])
    from test_model_folder import outputs
    cases = torch.load(sys.argv[2])
    torch.save({name: outputs(*case) for name, case in cases.items()}, sys.argv[3])
"""


def test_every_network_survives_a_folder_bit_for_bit(tmp_path):
    """Stored, loaded in a new process, same output."""
    cases, own = {}, {}
    for name, build in (EDITORS | PIXELS).items():
        editor, au_net = filled(build()), filled(AUNet((4, 6), 32, 9))
        pixels = name in PIXELS
        if pixels: editor.read_by(au_net)
        FaceModel(Pixels(32) if pixels else inverter(), editor, au_net=au_net).save_pretrained(tmp_path / name)
        cases[name] = str(tmp_path / name), "editor", (2, 3, 32, 32) if pixels else (2, L, D)
        own[name] = editor
    for name, (part, build, shape) in NETWORKS.items():
        network = filled(build())
        parts = {"generator": filled(generator()), "encoder": filled(encoder())} | {part: network}
        if part == "generator": parts["encoder"] = filled(Encoder([[16] * 2] * network.n_levels, network.style_dim, (12, 12, 14, 15, 16), (1, 1, 1, 1)))
        if part == "encoder": parts["generator"] = filled(Generator(2 ** (network.n_levels // 2 + 1), network.style_dim, {2 ** i: 4 for i in range(2, 9)}, 1)) if network.n_levels % 2 == 0 else None
        if parts["generator"] is None:
            model_folder.write(tmp_path / name, dict(size=32, input_size=32, crop_zoom=1., refinement=0), {part: (network, {})})
            loaded, _ = ModelFolder(tmp_path / name).load(part)
            with torch.no_grad(): assert torch.equal(loaded(seeded(*shape)), network(seeded(*shape)))
            continue
        core = Inverter(parts.pop("encoder"), parts.pop("generator"), None, 32)
        FaceModel(core, **parts).save_pretrained(tmp_path / name)
        cases[name], own[name] = (str(tmp_path / name), part, shape), network
    torch.save(cases, tmp_path / "cases.pt")
    done = run_python("-c", textwrap.dedent(CHILD), *(tmp_path / name if name else __import__("pathlib").Path(__file__).parent for name in ("", "cases.pt", "out.pt")), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = torch.load(tmp_path / "out.pt")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, (_, part, shape) in cases.items():
        x, network = seeded(*shape), own[name]
        with torch.no_grad():
            if part == "generator": expected = [network.synthesize(x), network.map(x[:, 0])]
            elif part != "editor": expected = [network(x)]
            else: expected = [network.edit(x, torch.linspace(-1, 5, 12).expand(len(x), -1)), network.estimate(x), network.edit_like(x[:1], x[1:])]
        assert all(torch.equal(a, b) for a, b in zip(expected, found[name], strict=True)), name
        assert all(a.std() > 0 for a in expected), name
    torch.set_num_threads(threads)


# a whole model, and what can be wrong with it

@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A model with all twelve parts."""
    torch.manual_seed(0)
    parts = dict(au_net=AUNet((4, 6), 32, 9), identity=IRSE50((6, 6, 7), (1, 1), 9, 28), evaluator=AUNet((4, 6), 32, 9),
                 evaluator_b=SplitFaceAUNet((4, 5), (1, 0), 32, 9), identity_evaluator=IRSE50((6, 6, 7), (1, 1), 9, 28), editor=AUEditNet(L, D, 24, 12, 3),
                 photo_reader=PhotoReader([{"kind": "AUNet", "widths": (4, 6), "size": 32, "hidden": 9}]))
    model = FaceModel(inverter(), **{name: filled(part, i) for i, (name, part) in enumerate(parts.items())})
    model.meta["editor"] = {"space": model.space()}
    return model.save_pretrained(tmp_path_factory.mktemp("models") / "whole")


@torch.no_grad()
def use(name):
    """Load and use all parts of a model."""
    model = FaceModel.from_pretrained(name)
    for part in PARTS: model.part(part)
    x = np.zeros((1, 32, 32, 3), np.uint8)
    w = model.edit_codes(model.invert(x), [0.] * 12)
    return model.read(model.synthesize(w)), model.embed(x)


def test_a_whole_model_has_all_parts(whole):
    assert set(ModelFolder(whole).config["parts"]) == set(PARTS) and len(list(whole.glob("*.safetensors"))) == len(PARTS)
    assert np.isfinite(use(whole)[0]).all()


def config(**more):
    """A change of the configuration; None removes an entry."""
    def change(folder):
        content = json.loads((folder / "config.json").read_text()) | more
        (folder / "config.json").write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return change


def entry(part, **more):
    """A change of the entry of a part; None removes it."""
    def change(folder):
        parts = json.loads((folder / "config.json").read_text())["parts"]
        parts[part] = {k: v for k, v in (parts.get(part, {}) | more).items() if v is not None}
        config(parts=parts)(folder)
    return change


def written(text): return lambda folder: (folder / "config.json").write_text(text)


def without(part):
    """A part taken out properly."""
    def change(folder):
        (folder / f"{part}.safetensors").unlink()
        parts = json.loads((folder / "config.json").read_text())["parts"]
        config(parts={k: v for k, v in parts.items() if k != part})(folder)
    return change


def truncated(listed):
    def change(folder):
        file = folder / "encoder.safetensors"
        file.write_bytes(file.read_bytes()[:1000])
        if not listed: (folder / "SHA256SUMS").unlink()
    return change


def exchanged(folder):  # the file of another part
    shutil.copy(folder / "evaluator_b.safetensors", folder / "evaluator.safetensors")
    (folder / "SHA256SUMS").unlink()


def foreign(part, thing, meta=None):
    """A part of another model, stored as a whole model would."""
    def change(folder):
        parts = {part: (thing() if part in ("latent_avg", "preconditioner") else filled(thing()), meta or {})}
        stored = {k: v for k, v in ModelFolder(folder).config.items() if k not in ("format", "parts")}
        model_folder.write(folder, stored, parts, ModelFolder(folder))
    return change


def rewritten(part, change):
    """Other entries in the file of a part."""
    def whole_change(folder):
        file = folder / f"{part}.safetensors"
        save_file(change(load_file(file)), file)
        (folder / "SHA256SUMS").unlink()
    return whole_change


BROKEN = {  # name: (change of the folder, pattern of the message)
    "no config": (lambda folder: (folder / "config.json").unlink(), "not a model folder, it has no config.json"),
    "torn config": (written('{"format": 1, "na'), "config.json: cannot be read"),
    "config is a list": (written("[1]"), "config.json: not the configuration of a model"),
    "another program's config": (written('{"architectures": ["Bert"]}'), "config.json: not the configuration of a model"),
    "format of the future": (config(format=2), r"config.json: format 2 is newer than this version reads \(1\): update aueditnet"),
    "format is text": (config(format="one"), "config.json: format 'one', a whole number expected"),
    "size of another generator": (config(size=64), "config.json says size 64, its generator has 32"),
    "endless refinement": (config(refinement=10 ** 18), "refinement is 1000000000000000000, a number from 0 to 10000"),
    "aus are nothing": (config(aus=5), "aus is 5, a list expected"),
    "torn checksums": (lambda folder: (folder / "SHA256SUMS").write_text("garbage\n"), "is not 'digest name'"),
    "no size": (config(size=None), "config.json: size is None, a number from"),
    "negative input": (config(input_size=-256), "config.json: input_size is -256, a number from"),
    "zoom is text": (config(crop_zoom="1.0"), "config.json: crop_zoom is '1.0', a number from"),
    "refinement is a fraction": (config(refinement=0.5), "config.json: refinement is 0.5, a number from 0"),
    "no parts": (config(parts={}), "config.json: it lists no parts"),
    "unknown part": (entry("judge", **{"class": "aueditnet.recognition.AUNet"}), "config.json: unknown part 'judge': known are generator"),
    "no class": (entry("editor", **{"class": None}), "config.json: editor: 'class' and 'config' expected"),
    "class of another package": (entry("editor", **{"class": "os.system"}), "editor: 'os.system' is not a network of this version of aueditnet"),
    "class that is no network": (entry("editor", **{"class": "aueditnet.pipeline.Pipeline"}), "editor: .* is not a network of this version"),
    "unknown argument": (entry("editor", config={"n_levels": L, "dim": D, "colour": 3}), "editor: AUEditNet cannot be built with .*colour"),
    "other sizes": (entry("au_net", config={"widths": [4, 6], "size": 32, "hidden": 10}), "au_net: the weights do not fit: misshapen"),
    "file gone": (lambda folder: (folder / "generator.safetensors").unlink(), "generator.safetensors: missing, though config.json lists it; restore it, or save the model again"),
    "file torn": (truncated(True), "encoder.safetensors: damaged or exchanged, .*restore the file, or save the model again"),
    "file torn, no checksums": (truncated(False), "encoder.safetensors: not a readable safetensors file"),
    "file of another part": (exchanged, "evaluator: the weights do not fit: missing"),
    "two tensors for one": (rewritten("latent_avg", lambda t: t | {"more": torch.zeros(1)}), "latent_avg: one tensor expected, not 2"),
    "entry gone": (rewritten("editor", lambda t: dict(list(t.items())[1:])), "editor: the weights do not fit: missing"),
    "encoder of another model": (foreign("encoder", lambda: encoder(10)), "encoder's codes .* they have 10 and 8 levels"),
    "average of another model": (foreign("latent_avg", lambda: torch.zeros(18, 512)), "the average latent .18, 512. does not fit"),
    "preconditioner of another model": (foreign("preconditioner", lambda: torch.zeros(3, 5)), "the preconditioner .3, 5. does not fit"),
    "editor for other codes": (foreign("editor", lambda: AUEditNet(10, D, 24, 12, 3)), "its editor is for codes .10, 16., not .8, 16."),
    "editor of another generator": (foreign("editor", lambda: AUEditNet(L, D, 24, 12, 3), {"space": "0" * 16}), "its editor was trained with another generator; train one for this"),
    "no editor": (without("editor"), "has no editor .*: `aueditnet train` makes it"),
    "no generator": (without("generator"), "has no generator"),
    "no evaluator": (without("evaluator"), "has no evaluator .*: `aueditnet train-reader` makes it"),
    "other AUs": (config(aus=["AU1", "AU2"]), "its networks are for AU1, AU2, not for")}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_folders_are_one_line(whole, tmp_path, kind):
    change, match = BROKEN[kind]
    folder = tmp_path / "broken"
    shutil.copytree(whole, folder)
    change(folder)
    with pytest.raises(InputError, match=match) as caught: use(folder)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message and len(message) < 1200, message


@pytest.mark.parametrize("name, match", [("/no/such/folder", "neither a folder nor a bundled model"), ("heads129", "neither a folder nor a bundled model .heads128."), ("", "not a model folder, it has no config.json")])
def test_names_that_are_no_model(name, match):
    with pytest.raises(InputError, match=match): FaceModel.from_pretrained(name)


def test_a_checkpoint_file_is_no_model(tmp_path):
    (tmp_path / "e4e.pt").write_bytes(b"1")
    with pytest.raises(InputError, match="is a file; `aueditnet model import` makes a model of it"): FaceModel.from_pretrained(tmp_path / "e4e.pt")


def test_parts_are_read_when_they_are_used(whole, tmp_path, monkeypatch):
    """A part that is given or never asked for may be missing."""
    folder, read = tmp_path / "model", []
    shutil.copytree(whole, folder)
    for part in ("identity", "evaluator_b", "encoder"): (folder / f"{part}.safetensors").unlink()
    load = ModelFolder.load
    monkeypatch.setattr(ModelFolder, "load", lambda self, part: read.append(part) or load(self, part))
    model = FaceModel.from_pretrained(folder, encoder=filled(encoder(), 5))
    assert read == [] and model.zoom == 1.25 and read == []
    model.invert(np.zeros((1, 32, 32, 3), np.uint8))
    assert sorted(read) == ["generator", "latent_avg", "preconditioner"]
    assert model.read(np.zeros((1, 32, 32, 3), np.uint8)).shape == (1, 12) and read[-1] == "evaluator"
    assert FaceModel.from_pretrained(folder, evaluator=None).evaluator is None


def test_saving_again_keeps_all_parts_and_changes_what_is_new(whole, tmp_path):
    model, editor = FaceModel.from_pretrained(whole), filled(AUEditNet(L, D, 20, 10, 2), 3)
    model.editor, model.meta["editor"] = editor, {"space": model.space()}
    again = model.save_pretrained(tmp_path / "again")
    assert set(ModelFolder(again).config["parts"]) == set(PARTS)
    w = seeded(1, L, D)
    assert torch.equal(FaceModel.from_pretrained(again).editor.edit(w, torch.zeros(12)), editor.edit(w, torch.zeros(12)))
    for part in set(PARTS) - {"editor"}: assert (again / f"{part}.safetensors").read_bytes() == (whole / f"{part}.safetensors").read_bytes()


# the hub, offline

@pytest.fixture
def hub(whole, tmp_path):
    """A cache of huggingface_hub's with one repository, and the environment that makes it the only source."""
    snapshot = tmp_path / "hub" / "models--someone--ffhq32" / "snapshots" / ("a" * 40)
    shutil.copytree(whole, snapshot, ignore=shutil.ignore_patterns(".*"))
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    return snapshot, dict(HF_HUB_OFFLINE="1", HF_HUB_CACHE=str(tmp_path / "hub"), HF_HOME=str(tmp_path / "home"))


FROM_HUB = """
    import sys, torch
    from aueditnet.files.errors import InputError
    from aueditnet.pipeline import FaceModel
    try:
        model = FaceModel.from_pretrained(sys.argv[1])
        with torch.no_grad(): print(model.editor.edit(torch.ones(1, 8, 16), torch.ones(12)).sum().item())
    except InputError as problem: print("refused:", problem)
"""


def from_hub(name, where, env):
    done = run_python("-c", textwrap.dedent(FROM_HUB), name, cwd=where, **env)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()


def test_a_model_of_the_hub_without_a_network(hub, whole, tmp_path):
    snapshot, env = hub
    assert from_hub("someone/ffhq32", tmp_path, env) == from_hub(whole, tmp_path, env)
    (snapshot / "editor.safetensors").unlink()
    message = from_hub("someone/ffhq32", tmp_path, env)
    assert message.startswith("refused: someone/ffhq32: editor.safetensors is not in the hub's local cache") and len(message.splitlines()) == 1
    message = from_hub("someone/else", tmp_path, env)
    assert "someone/else: config.json is not in the hub's local cache" in message and len(message.splitlines()) == 1


PUSH = """
    import sys
    from aueditnet.files.errors import InputError
    from aueditnet.pipeline import Pipeline
    try: print(Pipeline.from_pretrained(sys.argv[1]).push_to_hub(sys.argv[2]))
    except InputError as problem: print("refused:", problem)
"""


@pytest.mark.parametrize("repo", ["someone/ffhq32", "not/a/repo"])
def test_pushing_without_a_network_is_one_line(hub, whole, tmp_path, repo):
    done = run_python("-c", textwrap.dedent(PUSH), whole, repo, cwd=tmp_path, **hub[1])
    assert done.returncode == 0 and done.stdout.startswith(f"refused: {repo}: not uploaded") and len(done.stdout.splitlines()) == 1, done.stdout + done.stderr[-1500:]


def test_what_is_pushed_is_a_whole_folder(whole, tmp_path, monkeypatch):
    """With the hub's client replaced: what is uploaded loads like the original."""
    import huggingface_hub
    class Api:
        def create_repo(self, repo, private=None, exist_ok=False): return f"https://huggingface.co/{repo}"
        def upload_folder(self, repo_id, folder_path, **more): shutil.copytree(folder_path, tmp_path / "uploaded", ignore=shutil.ignore_patterns(*more.get("ignore_patterns", ())))
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert Pipeline.from_pretrained(whole).push_to_hub("someone/ffhq32") == "https://huggingface.co/someone/ffhq32"
    assert not list((tmp_path / "uploaded").glob(".*")) and (tmp_path / "uploaded" / "README.md").read_text().startswith("---")
    w = seeded(1, L, D)
    one, two = (FaceModel.from_pretrained(folder).editor.edit(w, torch.zeros(12)) for folder in (whole, tmp_path / "uploaded"))
    assert torch.equal(one, two)


def test_what_lies_in_a_folder_is_not_lost(whole, tmp_path):
    """Files of others stay; saving onto itself keeps the card; a part that was taken out is not written."""
    other = tmp_path / "other"
    other.mkdir()
    (other / "identity.safetensors").write_bytes(b"mine")
    with pytest.raises(InputError, match="not empty and not a model"): FaceModel.from_pretrained(whole).save_pretrained(other)
    assert (other / "identity.safetensors").read_bytes() == b"mine" and len(list(other.iterdir())) == 1
    shutil.copytree(whole, tmp_path / "own")
    (tmp_path / "own" / "README.md").write_text("# a long card")
    FaceModel.from_pretrained(tmp_path / "own", editor=None).save_pretrained(tmp_path / "own")
    assert (tmp_path / "own" / "README.md").read_text() == "# a long card"
    assert FaceModel.from_pretrained(tmp_path / "own").editor is None and not (tmp_path / "own" / "editor.safetensors").exists()


def test_an_interrupted_save_is_repeated(whole, tmp_path, monkeypatch):
    def stop(*args, **more): raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model_folder.weights, "write_checksums", stop)
        FaceModel.from_pretrained(whole).save_pretrained(tmp_path / "copy")
    with pytest.raises(InputError, match="it has no config.json"): FaceModel.from_pretrained(tmp_path / "copy")
    FaceModel.from_pretrained(whole).save_pretrained(tmp_path / "copy")
    assert np.isfinite(use(tmp_path / "copy")[0]).all() and not list((tmp_path / "copy").glob(".unfinished"))


def test_an_editor_belongs_to_its_generator_in_any_precision(whole):
    assert FaceModel.from_pretrained(whole, dtype=torch.float16).editor is not None


def test_a_folder_without_a_model_does_not_hide_the_bundled_one(tmp_path, monkeypatch):
    (tmp_path / "heads128").mkdir()
    monkeypatch.chdir(tmp_path)
    assert FaceModel.from_pretrained("heads128").size == 128
    for name in (None, 5, "x" * 5000):
        with pytest.raises(InputError, match="not the name of a model"): FaceModel.from_pretrained(name)
