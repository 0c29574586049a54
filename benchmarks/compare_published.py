"""The results of comparisons for the docs: what was expected, the ranking, and the samples, of each experiment given.

    python benchmarks/compare_published.py three_formulations_digits song2021_table1 [--out docs/verification]

Runs `python -m sde_gen.compare experiment=NAME` (what its cache holds is not computed again), takes those sections of
its report.md, and joins the pictures of its samples into one. Writes comparisons.md and comparison_NAME.png.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

SECTIONS = ("In short", "What was expected", "Ranking", "Likelihood", "Networks")


def section(text: str, title: str) -> str:
    """A section of a report, one level deeper; empty if it is not there."""
    _, found, rest = text.partition(f"\n## {title}\n")
    return f"### {title}\n{rest.partition(chr(10) + '## ')[0].rstrip()}\n" if found else ""


def joined(home: Path, target: Path) -> None:
    """All pictures of samples side by side."""
    paths = sorted((home / "pictures").glob("samples_*.png"), key=lambda p: (p.stem != "samples_real", p.stem))
    columns = min(6, len(paths))
    rows = -(-len(paths) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.45 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.axis("off")
    for ax, path in zip(axes, paths, strict=False):
        ax.imshow(Image.open(path), cmap="gray", interpolation="nearest")
        ax.set_title(path.stem.removeprefix("samples_"), fontsize=8)
    figure.savefig(target, dpi=90)


def main() -> None:
    """Run, take, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/verification"))
    args = parser.parse_args()
    command = f"python benchmarks/compare_published.py {chr(32).join(args.experiments)}"
    lines = ["# Comparisons, run", "", f"`{command}` writes this page.", ""]
    for name in args.experiments:
        command = ["-m", "sde_gen.compare", f"experiment={name}"]
        subprocess.run([sys.executable, *command], check=True)
        home = Path("runs/comparisons") / name
        text = (home / "report.md").read_text(encoding="utf-8")
        joined(home, args.out / f"comparison_{name}.png")
        lines += [f"## {name}", "", f"`python {' '.join(command)}`", "", text.split("\n")[2], ""]
        lines += [f"![samples of every entry, from the same noise](comparison_{name}.png)", ""]
        lines += [part for title in SECTIONS if (part := section(text, title))]
    (args.out / "comparisons.md").write_text("\n".join(lines), encoding="utf-8")
    print(f"written to {args.out / 'comparisons.md'}")


if __name__ == "__main__":
    main()
