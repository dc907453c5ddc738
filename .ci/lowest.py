"""Print a pip constraint for every lower bound of settings.ini, so that the oldest versions that we allow can be tested.

    python .ci/lowest.py > lowest.txt && pip install -c lowest.txt -e '.[dev,heads,lab,photo]'
"""
import re
from configparser import ConfigParser
from pathlib import Path

settings = ConfigParser(delimiters=["="])
settings.read(Path(__file__).resolve().parent.parent / "settings.ini", encoding="utf-8")
words = [word for name, line in settings["DEFAULT"].items() if name.endswith("requirements") for word in line.split()]
bounds = {}
for name, version in re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(words), re.M):   # where two extras differ, the higher one
    bounds[name] = max(version, bounds.get(name, "0"), key=lambda text: [int(part) for part in text.split(".")])
print(*(f"{name}=={version}" for name, version in sorted(bounds.items())), sep="\n")
