"""Print the size of every core lesson, in Markdown: words, lines of code, hidden cells, minutes to read and to run.

    python .ci/lessons.py            counts
    python .ci/lessons.py --run      also runs every lesson as the tests do, and times it
"""
import json
import re
import subprocess
import sys
import time
from pathlib import Path

NBS = Path(__file__).resolve().parent.parent / "nbs"
WORDS, LINES = 200, 15   # a minute
RUN = ("import sys; from pathlib import Path; from nbdev.config import get_config; from nbdev.test import test_nb; "
       "sys.exit(not test_nb(Path(sys.argv[1]), skip_flags=get_config().tst_flags.split())[0])")


def measure(lesson, run):
    """Figures of one lesson. Comments and empty lines are no code; details that are folded are counted too."""
    cells = json.loads(lesson.read_text(encoding="utf-8"))["cells"]
    text = [("".join(c["source"]), c["cell_type"], c["metadata"].get("jupyter", {}).get("source_hidden", False)) for c in cells]
    prose = [re.sub(r"<[^>]+>|\]\([^)]*\)", " ", s) for s, kind, _ in text if kind == "markdown"]
    words = sum(bool(re.search(r"\w", word)) for s in prose for word in s.split())   # a bar of a table is no word
    lines = lambda some: sum(bool(line.strip()) and not line.strip().startswith("#") for s in some for line in s.splitlines())
    code = [(s, folded) for s, kind, folded in text if kind == "code"]
    hidden = [s for s, _ in code if re.search(r"^#\|\s*hide\b", s, re.M)]
    shown = lines(s for s, folded in code if not folded and s not in hidden)
    seconds = float("nan")
    if run:
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", RUN, str(lesson)], cwd=lesson.parent, check=True, capture_output=True)
        seconds = time.monotonic() - began
    total = lines(s for s, _ in code)
    return words, total, shown, len(hidden), words / WORDS + total / LINES, seconds


if __name__ == "__main__":
    print("| lesson | words | code lines | of them unfolded | hidden cells | minutes to read | seconds to run |\n|---|---|---|---|---|---|---|")
    rows = []
    for lesson in sorted(NBS.glob("[0-9]*.ipynb")):
        rows.append(row := measure(lesson, "--run" in sys.argv))
        print(f"| {lesson.stem} | {row[0]} | {row[1]} | {row[2]} | {row[3]} | {row[4]:.0f} | {row[5]:.0f} |", flush=True)
    total = [sum(column) for column in zip(*rows)]
    print(f"| all {len(rows)} | {total[0]} | {total[1]} | {total[2]} | {total[3]} | {total[4]:.0f} | {total[5]:.0f} |")
    print(f"\nreading and running: {total[4] / 60 + total[5] / 3600:.1f} hours")
