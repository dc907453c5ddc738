"""Packaging. Everything that can be said once is said in settings.ini, which nbdev reads as well."""
import hashlib
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
DATA = ("weights", "synthdisfa", "photographs")    # folders of data/ that belong to the package
# What an edit, the demo and the page need goes into the wheel, 32 MB. The rest is fetched when it is first used: the
# people that train, the counterfactual grid, the baselines. See data_dir in nbs/files/io.ipynb.
TEST_PEOPLE = ("SN003", "SN004", "SN005", "SN007", "SN008", "SN017", "SN023", "SN025", "SN029")   # data.TEST
EXTRAS = ("notebooks", "lab", "photo", "heic", "heads", "measures", "dev")

config = ConfigParser(delimiters=["="])
config.read(HERE / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]


def requirements(name):
    """The requirements on one line of settings.ini, as a list."""
    return cfg.get(name, "").split()


def is_carried(name):
    """Whether a file of data/ goes into the wheel; `name` is its path below data/, with forward slashes."""
    if name.startswith("synthdisfa/"):
        people = any(person in name for person in TEST_PEOPLE) and "/counterfactual/" not in name
        return people or name == "synthdisfa/README.md"
    return not name.startswith("weights/heads128/baselines/")


def bundled_files():
    """{path below data/: file} of the data that belong to the package."""
    files = {file.relative_to(HERE / "data"): file for folder in DATA for file in (HERE / "data" / folder).rglob("*")}
    return {name.as_posix(): file for name, file in sorted(files.items())
            if file.is_file() and not any(part.startswith((".", "__pycache__")) for part in name.parts)}


class BuildWithData(build_py):
    """Copy data/ into the package of a wheel; an editable install reads it where it lies."""

    def targets(self):
        """The `data` folder of the built package, and {path below data/: file} of what goes there."""
        carried = {name: file for name, file in bundled_files().items() if is_carried(name)}
        return Path(self.build_lib) / cfg["lib_path"] / "data", carried

    def run(self):
        super().run()
        if self.editable_mode:
            return
        folder, carried = self.targets()
        for name, source in carried.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / name)
        # A folder that is not complete in the wheel is fetched as a whole, so all of its files have a line.
        lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {name}\n" for name, file in bundled_files().items()
                 if name.startswith("synthdisfa/") or not is_carried(name)]
        (folder / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")

    def get_outputs(self, include_bytecode=True):
        outputs = super().get_outputs(include_bytecode)
        if self.editable_mode:
            return outputs
        folder, carried = self.targets()
        return outputs + [str(folder / name) for name in (*carried, "SHA256SUMS")]


extras = {extra: requirements(extra + "_requirements") for extra in EXTRAS}
extras["lab"] += extras["notebooks"]    # what the notebooks import, which is enough where a Jupyter is there already
extras["app"] = extras["lab"] + extras["photo"]
readme = HERE / "README.md"
setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    license="Apache-2.0",
    keywords=cfg["keywords"].split(),
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    package_data={cfg["lib_path"]: ["py.typed"]},
    python_requires=">=" + cfg["min_python"],
    install_requires=requirements("requirements"),
    extras_require=extras,
    entry_points={"console_scripts": requirements("console_scripts"),
                  "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    cmdclass={"build_py": BuildWithData},
    zip_safe=False,
)
