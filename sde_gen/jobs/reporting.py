"""One table of several runs, what they found and what their settings differ in: the work of `sde_gen.report`."""

import csv
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sde_gen import pictures
from sde_gen.config.launch import say
from sde_gen.config.objects import settings
from sde_gen.config.restore import find_checkpoint
from sde_gen.config.schema import ReportConfig
from sde_gen.config.typed import typed
from sde_gen.errors import CheckpointError, MissingInputError, SDEGenError
from sde_gen.files import make_folder, read_text, write_text
from sde_gen.training import RunDirectory, read_metrics
from sde_gen.training.checkpoint import checkpoint_folders
from sde_gen.training.run_folder import run_path

#: A cell: a number with its standard error or none, or text.
Cell = tuple[float, float | None] | str | None


def run(config: Mapping[str, Any]) -> str:
    """Write the table as `config` says and return its folder.

    Raises:
        MissingInputError: a run that is not there, or none at all.  OutputError: the folder cannot be made.
    """
    cfg = typed(ReportConfig, settings(config)[0])
    root = Path(cfg.runs_dir).expanduser()
    folders = _folders(root, cfg.runs)
    found = [entry for folder in folders if (entry := _entry(folder, required=cfg.runs is not None)) is not None]
    if not found:
        raise MissingInputError(f"no run with a sound checkpoint in {root}; train one, or give runs_dir=PATH")
    out = RunDirectory.fresh(root / "reports", "report").path if cfg.out is None else (
        make_folder(Path(str(cfg.out)).expanduser(), "the folder of the report")
    )  # fmt: skip
    header, rows = table(found)
    for ending, form in (("csv", as_csv), ("md", as_markdown), ("tex", as_latex), ("html", as_html)):
        write_text(out / f"runs.{ending}", form(header, rows), "the table of runs")
    if pictures.has_matplotlib():
        curves = {folder.name: read_metrics(folder / "metrics.csv") for folder in folders
                  if (folder / "metrics.csv").is_file()}  # fmt: skip
        if curves:
            pictures.loss_curves(curves, out / "runs.png")
    say(as_markdown(header, rows))
    say(f"written to {out}")
    return str(out)


def _folders(root: Path, names: Sequence[Any] | None) -> list[Path]:
    if names is None:
        if not root.is_dir():
            raise MissingInputError(f"no runs in {root}: there is no such folder; give runs_dir=PATH")
        return sorted(folder for folder in root.iterdir() if checkpoint_folders(folder / "checkpoints"))
    texts = list(map(str, names))
    return [Path(text).expanduser() if "/" in text else run_path(root, text) for text in texts]


def _entry(folder: Path, required: bool) -> dict[str, Any] | None:
    """Name, settings and results of a run; None, with a word about it, if it has none."""
    try:
        checkpoint, skipped = find_checkpoint(folder)
    except (CheckpointError, MissingInputError) as error:
        if required:
            raise
        say(f"left out: {error}")
        return None
    for sentence in skipped:
        say(f"passed over: {sentence}")
    metrics = checkpoint.state.get("metrics", {})
    results: dict[str, Cell] = {"step": (float(checkpoint.step), None)}
    results |= {name: (float(metrics[name]), None) for name in ("loss", "held_out_loss") if name in metrics}
    for path in sorted((folder / "evaluated").glob("*/evaluation.json"), key=lambda path: path.parent.name)[-1:]:
        results |= _evaluated(path)
    return {"name": folder.name, "settings": flat(checkpoint.config), "results": results}


def _evaluated(path: Path) -> dict[str, Cell]:
    try:
        told: Any = json.loads(read_text(path))
        found: dict[str, Cell] = {
            f"bits_per_dim_{kind}": (float(one["bits_per_dim"]), one.get("bits_per_dim_error"))
            for kind, one in told.get("likelihood", {}).items()
        }
        for metric in told.get("metrics", []):
            found[str(metric["name"])] = (float(metric["value"]), metric.get("standard_error"))
        if isinstance(frechet := told.get("frechet"), Mapping):
            found[str(frechet["name"])] = (float(frechet["value"]), None)
        return found
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SDEGenError) as error:
        say(f"passed over: {path} cannot be used ({type(error).__name__})")
        return {}


def flat(node: Any, prefix: str = "") -> dict[str, str]:
    """The leaves of a configuration by dotted names, as text."""
    if not isinstance(node, Mapping):
        return {prefix: node if isinstance(node, str) else json.dumps(node)}
    return {
        name: text for key, inner in node.items()
        for name, text in flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }  # fmt: skip


def table(entries: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Cell]]]:
    """The names of the columns, and a row for each run: its name, the settings that differ, and all results."""
    keys = dict.fromkeys(key for entry in entries for key in entry["settings"])
    differ = [key for key in keys if len({entry["settings"].get(key) for entry in entries}) > 1]
    results = list(dict.fromkeys(key for entry in entries for key in entry["results"]))
    rows: list[list[Cell]] = [
        [e["name"], *(e["settings"].get(key) for key in differ), *(e["results"].get(key) for key in results)]
        for e in entries
    ]
    return ["run", *(key.removesuffix("._target_") for key in differ), *results], rows


def as_csv(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """Comma-separated values in full precision; a column of its own for standard errors."""
    with_error = [any(isinstance(row[k], tuple) and row[k][1] is not None for row in rows) for k in range(len(header))]  # type: ignore[index]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    pairs = zip(header, with_error, strict=True)
    writer.writerow([text for name, more in pairs for text in (name, f"{name}_error")[: 1 + more]])
    for row in rows:
        cells: list[Any] = []
        for cell, more in zip(row, with_error, strict=True):
            pair = cell if isinstance(cell, tuple) else (cell, None)
            cells += pair[: 1 + more]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return stream.getvalue()


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table of GitHub's Markdown."""
    marks = str.maketrans({mark: f"\\{mark}" for mark in "\\`*_{}[]<>|~#"})
    lines = [[_shown(cell).translate(marks) for cell in row] for row in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def as_latex(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A `tabular` of LaTeX."""
    marks = str.maketrans(
        {mark: f"\\{mark}" for mark in "&%$#_{}"} | {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\^{}"}
    )
    marks |= str.maketrans({"±": "$\\pm$"})
    shown = [" & ".join(_shown(cell).translate(marks) for cell in row) for row in (header, *rows)]
    body = f"{shown[0]} \\\\\n\\hline\n" + "".join(f"{line} \\\\\n" for line in shown[1:])
    return f"\\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}\n{body}\\end{{tabular}}\n"


def as_html(header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A page with the table alone."""
    lines = [
        "<tr>" + "".join(f"<{tag}>{html.escape(_shown(cell))}</{tag}>" for cell in row) + "</tr>"
        for tag, row in (("th", header), *(("td", row) for row in rows))
    ]
    style = "body{font-family:sans-serif} td,th{padding:.2em .8em; text-align:right}"
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>Runs</title>\n<style>{style}</style>\n'
        "<table>\n" + "\n".join(lines) + '\n</table>\n<img src="runs.png" alt="held-out loss of each run">\n</html>\n'
    )


def _shown(cell: Cell) -> str:
    """A number with the digits that its error leaves."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    value, error = cell
    if value == int(value) and error is None:
        return str(int(value))
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.1g}"
