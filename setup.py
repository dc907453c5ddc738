"""Packaging. Everything that can be said once is said in settings.ini, which nbdev reads as well."""
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
DATA = ("weights", "synthdisfa", "photographs")    # folders of data/ that a wheel carries, as aueditnet/data/...

config = ConfigParser(delimiters=["="])
config.read(HERE / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]


def requirements(name):
    """The requirements on one line of settings.ini, as a list."""
    return cfg.get(name, "").split()


class BuildWithData(build_py):
    """Copy data/ into the package of a wheel; an editable install reads it where it lies."""

    def data_files_in_data(self):
        """Pairs (file in data/, its place in the built package)."""
        package = Path(self.build_lib) / cfg["lib_path"]
        for folder in DATA:
            for file in sorted((HERE / "data" / folder).rglob("*")):
                if file.is_file() and "__pycache__" not in file.parts:
                    yield file, package / file.relative_to(HERE)

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for source, target in self.data_files_in_data():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def get_outputs(self, include_bytecode=True):
        outputs = super().get_outputs(include_bytecode)
        return outputs if self.editable_mode else outputs + [str(target) for _, target in self.data_files_in_data()]


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
    ],
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    python_requires=">=" + cfg["min_python"],
    install_requires=requirements("requirements"),
    extras_require={extra: requirements(extra + "_requirements") for extra in ("heads", "photo", "measures", "app", "dev")},
    entry_points={"console_scripts": requirements("console_scripts"),
                  "nbdev": [f"{cfg['lib_name']}={cfg['lib_path']}._modidx:d"]},
    cmdclass={"build_py": BuildWithData},
    zip_safe=False,
)
