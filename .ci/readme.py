"""Write README.md from nbs/index.ipynb (nbdev's own command for this needs Quarto).

    python .ci/readme.py            writes README.md
    python .ci/readme.py --print    prints it
"""
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def relink(markdown):
    """Links of a notebook in nbs/, seen from the root; addresses, mail and places on the page stay."""
    def seen_from_root(match):
        start, address = match[1], match[2].removeprefix("./")
        return start + (address.removeprefix("../") if address.startswith("../") else f"nbs/{address}")
    return re.sub(r"(\]\(|src=\")(?!\w+:|#|/)([^)\"\s]+)", seen_from_root, markdown)


def shown(output):
    """What a reader sees of one output, as Markdown."""
    data = output.get("data", {})
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    text = "".join(output.get("text", data.get("text/plain", "")))
    return f"```text\n{text.rstrip()}\n```" if text.strip() else ""


def readme(notebook):
    """The Markdown text of a notebook (a path): hidden cells are left out, results are kept."""
    parts = []
    for cell in json.loads(Path(notebook).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            if "images/strip.webp" not in source:   # sliders, which only the pages have
                parts.append(relink(source))
        elif cell["cell_type"] == "code" and not re.search(r"^#\|\s*hide\b", source, re.M):
            if not re.search(r"^#\|\s*echo:\s*false", source, re.M):
                parts.append(f"```python\n{source.strip()}\n```")
            parts += [relink(shown(output)) for output in cell["outputs"]]
    return "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"


if __name__ == "__main__":
    text = readme(ROOT / "nbs" / "index.ipynb")
    if "--print" in sys.argv:
        print(text, end="")
    else:
        (ROOT / "README.md").write_text(text, encoding="utf-8")
