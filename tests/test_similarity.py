"""Measures that other publications report: PSNR, SSIM, LPIPS and KID, against known values of other implementations."""
import cv2
import numpy as np
import pytest
import torch

from aueditnet.evaluation import Evaluation, EvaluationSet, evaluate, summarise
from aueditnet.files import similarity
from aueditnet.files.errors import InputError
from aueditnet.files.similarity import ALEXNET, LPIPS, kid, psnr, ssim
from test_evaluation import TOY, ToyEditor, frames  # noqa: F401  (a fixture)


def patterns():
    """Two small pictures that every machine makes alike."""
    y, x = np.mgrid[:40, :48]
    p = np.stack([128 + 100 * np.sin(x / 5), (x * 3 + y * 2) % 256, 128 + 90 * np.cos(y / 4 + x / 9)], -1).astype(np.uint8)
    q = cv2.GaussianBlur(p, (0, 0), 1.2)
    q[10:20, 10:20] = 60
    return p, q


def test_ssim_is_that_of_scikit_image():
    """structural_similarity(grey, grey, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255) of scikit-image 0.26."""
    p, q = patterns()
    assert ssim(p, q) == pytest.approx(0.83717725172, abs=1e-8)
    box = slice(12, 30), slice(8, 40)
    assert ssim(p, q, box) == pytest.approx(0.77784780874, abs=1e-8)         # its map, averaged over the box
    assert ssim(p, p) == 1 and ssim(p, q) == pytest.approx(ssim(q, p))
    stack = ssim(np.stack([p, q]), np.stack([q, q]), box)
    assert stack == pytest.approx([ssim(p, q, box), 1])
    assert ssim(p, q, (slice(0, 40), slice(0, 48))) == pytest.approx(ssim(p, q))     # windows beyond the border do not count
    assert psnr(p, q) < psnr(p, cv2.GaussianBlur(p, (0, 0), 1.2))


def networks(seed=0):
    """Random weights in the shapes of AlexNet's convolutions and of LPIPS' layers."""
    g = torch.Generator().manual_seed(seed)
    shapes = {"0": (64, 3, 11), "3": (192, 64, 5), "6": (384, 192, 3), "8": (256, 384, 3), "10": (256, 256, 3)}
    alexnet = {f"features.{i}.weight": torch.randn(n, m, k, k, generator=g) / (m * k * k) ** .5 for i, (n, m, k) in shapes.items()}
    alexnet |= {f"features.{i}.bias": 0.1 * torch.randn(n, generator=g) for i, (n, *_) in shapes.items()} | {"classifier.1.bias": torch.zeros(2)}
    return alexnet, {f"lin{k}.model.1.weight": torch.rand(1, n, 1, 1, generator=g) for k, (n, *_) in enumerate(shapes.values())}


def reference(alexnet, fitted, a, b):
    """LPIPS 0.1 as the package lpips computes it, step by step (`retPerLayer` summed), in double precision."""
    F, total = torch.nn.functional, 0
    maps = []
    for picture in (a, b):
        x = torch.from_numpy(picture).permute(2, 0, 1)[None].double() / 127.5 - 1
        x = (x - torch.tensor([-.030, -.088, -.188]).view(1, 3, 1, 1)) / torch.tensor([.458, .448, .450]).view(1, 3, 1, 1)
        of = []
        for i, (stride, pad, pool) in {"0": (4, 2, 0), "3": (1, 2, 1), "6": (1, 1, 1), "8": (1, 1, 0), "10": (1, 1, 0)}.items():
            if pool: x = F.max_pool2d(x, kernel_size=3, stride=2)
            x = F.relu(F.conv2d(x, alexnet[f"features.{i}.weight"].double(), alexnet[f"features.{i}.bias"].double(), stride, pad))
            of.append(x / (torch.sqrt(torch.sum(x ** 2, dim=1, keepdim=True)) + 1e-10))
        maps.append(of)
    for k, (u, v) in enumerate(zip(*maps)):
        total = total + F.conv2d((u - v) ** 2, fitted[f"lin{k}.model.1.weight"].double()).mean([2, 3])
    return float(total)


def test_lpips_is_the_published_formula():
    alexnet, fitted = networks()
    pictures = np.random.default_rng(0).integers(0, 256, (3, 2, 70, 64, 3)).astype(np.uint8)
    pictures[1, 1], pictures[2, 1] = cv2.GaussianBlur(pictures[1, 0], (0, 0), 1.), pictures[2, 0]
    far = LPIPS(alexnet, fitted).distance(pictures[:, 0], pictures[:, 1], batch=2)
    assert far == pytest.approx([reference(alexnet, fitted, *pair) for pair in pictures], abs=1e-5) and far[2] == 0
    assert LPIPS(alexnet, fitted).distance(pictures[:0, 0], pictures[:0, 1]).shape == (0,)


def test_lpips_is_loaded_from_files_or_says_what_to_install(tmp_path, monkeypatch):
    alexnet, fitted = networks()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **how: pytest.fail("nothing is downloaded"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"LPIPS needs torchmetrics: pip install 'aueditnet\[measures\]'"): LPIPS.load()
    monkeypatch.undo()
    pytest.importorskip("torchmetrics")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(InputError, match="needs the weights of AlexNet.*load_state_dict_from_url"): LPIPS.load()
    file = tmp_path / "checkpoints" / ALEXNET.rpartition("/")[2]
    file.parent.mkdir()
    torch.save(alexnet, file)
    found, given = LPIPS.load(), LPIPS.load(file)
    p, q = patterns()
    p, q = (cv2.resize(x, (96, 96)) for x in (p, q))
    assert found.distance(p[None], q[None]) == given.distance(p[None], q[None])
    weights = {k: v for k, v in similarity._fitted().items()}
    assert found.distance(p[None], q[None])[0] == pytest.approx(reference(alexnet, weights, p, q), abs=1e-5)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="not the weights of AlexNet and LPIPS"): LPIPS.load(tmp_path / "other.pth")
    with pytest.raises(InputError, match="nowhere.pth"): LPIPS.load(tmp_path / "nowhere.pth")


def test_kid_is_the_estimate_without_bias():
    """Equation 4 of Gretton et al. 2012, written out; without pairs it is nearly torchmetrics' own estimate."""
    poly_mmd = pytest.importorskip("torchmetrics.image.kid").poly_mmd
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 8)) + 0.5, random.normal(size=(60, 8))
    u, v = ((z - y.mean(0)) / y.std(0, ddof=1) for z in (x, y))
    k = lambda a, b: (a @ b / 8 + 1) ** 3
    by_hand = np.mean([k(u[i], u[j]) + k(v[i], v[j]) - k(u[i], v[j]) - k(u[j], v[i]) for i in range(60) for j in range(60) if i != j])
    people = np.repeat(np.arange(6), 10)
    found = kid(x, y, people)
    assert found.value == pytest.approx(by_hand) and found.low < found.value < found.high and found.excludes_zero
    assert found.value == pytest.approx(float(poly_mmd(torch.from_numpy(v), torch.from_numpy(u))), rel=0.1)
    assert kid(y, y, people).value == pytest.approx(0, abs=1e-12)          # the ground truth itself
    other = kid(y + 1, y, people)
    assert kid(x, y, people, y + 1).value == pytest.approx(found.value - other.value) and kid(x, y, people, x).low == pytest.approx(0, abs=1e-12)
    assert kid(3 * x + 1, 3 * y + 1, people).value == pytest.approx(found.value)    # the scale of the features does not matter
    assert np.isnan(kid(x, y).low)
    with pytest.raises(InputError, match="sets of one size"): kid(x[:5], y)


def test_the_standard_error_is_between_subjects():
    """Two people whose pictures differ as wholes: the error is larger than that of as many independent pictures."""
    pytest.importorskip("torchmetrics")
    random = np.random.default_rng(0)
    people = np.repeat(np.arange(10), 20)
    y = random.normal(size=(200, 6))
    x = y + 0.2 * random.normal(size=(200, 6)) + 1.5 * random.normal(size=(10, 6))[people]
    width = lambda m: m.high - m.low
    assert width(kid(x, y, people)) > 1.5 * width(kid(x, y, np.arange(200)))


def test_without_torchmetrics_kid_says_what_to_install(monkeypatch, frames):  # noqa: F811
    monkeypatch.setattr(similarity, "kid_available", lambda: False)
    with pytest.raises(InputError, match="KID needs torchmetrics"): kid(np.zeros((4, 2)), np.zeros((4, 2)))
    assert "kid" not in evaluate(TOY, frames, n=2).systems["AUEditNet"]


class Pale(ToyEditor):
    """Half of what was asked for, and a change of the person."""
    def edit(self, w, target, source=None):
        return w + 0.5 * (super().edit(w, target, source) - w) + torch.tensor([0.3, 0, 0, 0])[:, None]


def test_reports_hold_the_published_measures(frames):  # noqa: F811
    pytest.importorskip("torchmetrics")
    lpips = LPIPS(*networks())
    lpips.distance = lambda a, b: np.abs(np.float32(a) - b).mean((1, 2, 3))     # a toy picture is too small for AlexNet
    report = Evaluation(TOY, frames, lpips, with_kid=True).report({"AUEditNet": ToyEditor(), "half": Pale()}, minus="AUEditNet", n=20)
    truth, exact, half = (report.systems[name] for name in ("ground truth", "AUEditNet", "half"))
    assert truth["ssim"].value == 1 and truth["kid"].value == pytest.approx(0, abs=1e-9) and truth["lpips"].value == 0
    assert exact["ssim"].value >= half["ssim"].value and half["kid"].value > exact["kid"].value and exact["lpips"].value < half["lpips"].value
    assert report.differences["half"]["kid"].value == pytest.approx(half["kid"].value - exact["kid"].value)
    assert {"ssim", "lpips"} <= report.differences["half"].keys()
    plain = Evaluation(TOY, frames).report(n=20).systems["AUEditNet"]
    assert "ssim" in plain and "lpips" not in plain and "kid" not in plain
