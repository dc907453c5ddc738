"""A short run of tests/fuzz_readers.py with fixed seeds, and inputs that once caused something else than a line of explanation."""
import json

import pytest
from conftest import complaint
from fuzz_readers import KINDS, Fuzzer

from aueditnet.facs import AUS
from aueditnet.files.io import data_dir
from aueditnet.files.model_folder import ModelFolder, read_config

TRIES = {"pictures": 300, "labels": 300, "csv": 200, "checkpoints": 150, "config": 40}


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_an_input_error(kind, tmp_path):
    fuzzer = Fuzzer(kind, tmp_path)
    fuzzer.run(tries=TRIES[kind], seed=1)
    assert fuzzer.faults == {} and fuzzer.tried == TRIES[kind]
    assert 0 < fuzzer.refused < fuzzer.tried, "some inputs are still valid, and some are not"


def test_a_fault_is_found(tmp_path, monkeypatch):
    """The fuzzer itself: a reader that raises something else, and one that says it in two lines."""
    fuzzer = Fuzzer("labels", tmp_path, tmp_path / "found")
    def fail(data): raise KeyError("x")
    monkeypatch.setattr(fuzzer.reader, "read", fail)
    fuzzer.try_one(b"1,0")
    fuzzer.try_one(b"1,1")
    assert list(fuzzer.faults.values()) == ["KeyError at ?: 'x'"] and [f.read_bytes() for f in (tmp_path / "found").iterdir()] == [b"1,0"]


@pytest.fixture
def model(tmp_path):
    """Writes config.json of a copy of the bundled model, with a change."""
    source = data_dir() / "weights" / "heads128"
    def write(change):
        config = json.loads((source / "config.json").read_text())
        change(config["parts"])
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "identity.safetensors").write_bytes((source / "identity.safetensors").read_bytes())
        (tmp_path / "generator.safetensors").write_bytes((source / "generator.safetensors").read_bytes())
        return tmp_path
    return write


def test_a_configuration_cannot_ask_for_more_than_its_file_holds(model):
    """Neither for years of building blocks, nor for more memory than there is, nor in a message of many lines."""
    folder = model(lambda parts: parts["identity"]["config"].update(blocks=[3, 4 * 10**9, 14, 3]))
    assert "4e+09 is no size of a network" in complaint(lambda: read_config(folder / "config.json"))
    folder = model(lambda parts: parts["identity"]["config"].update(blocks=[3, 90_000, 14, 3]))
    assert "more than twice the" in complaint(lambda: ModelFolder(folder).load("identity"))
    folder = model(lambda parts: parts["generator"]["config"]["channels"].update({"8": 90_000}))
    assert "numbers are asked for" in complaint(lambda: ModelFolder(folder).load("generator"))
    folder = model(lambda parts: parts["generator"]["config"]["channels"].update({"8": 2**63}))
    assert "no size of a network" in complaint(lambda: ModelFolder(folder))
    folder = model(lambda parts: parts["generator"]["config"]["channels"].update({"8": -1}))
    assert "Generator cannot be built with" in complaint(lambda: ModelFolder(folder).load("generator"))


def test_landmarks_with_a_column_missing(tmp_path):
    from aueditnet.files.label_files import read_label_file
    columns = [f"{axis}_{k}" for axis in "xy" for k in range(68) if (axis, k) != ("y", 54)]
    (tmp_path / "a.csv").write_text(f"frame,success,AU12_r,{','.join(columns)}\n1,1,2{',1' * len(columns)}\n")
    assert read_label_file(tmp_path / "a.csv", AUS).landmarks is None
