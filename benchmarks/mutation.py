"""Mutation testing: does some test fail when a line of the library is wrong?

    python benchmarks/mutation.py --sample 40 --out docs/verification/mutation.md
    python benchmarks/mutation.py --only sde_gen/model.py --sample 10
    python benchmarks/mutation.py --sample 40 --again docs/verification/mutation.json --limit 300

Copies the package and its tests to a temporary folder, records once which test runs which line, and then plants one
small fault at a time (an operator, a constant, a condition, a dropped call or return) and runs the tests that reach
it: first one of each test function, then all others. A mutant is killed if a test fails or time runs out. Faults are
drawn with a fixed seed. Tests run in forks of one process that has torch imported; POSIX only.

Survivors that change nothing (equivalent mutants) are explained in a JSON file, `--reasons`,
{"path: name: a -> b": why}.
"""

import argparse
import ast
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from faults import Mutator

ROOT = Path(__file__).resolve().parent.parent
PROPERTIES = "tests/properties"
_NAMES = ("closure", "order", "invariance", "results", "faults", "arguments", "discovery")
SAMPLERS = [f"{PROPERTIES}/test_{name}.py" for name in _NAMES]
#: Which tests can notice a fault in which files.
TARGETS: dict[str, list[str]] = {
    "sde_gen/perturbations/*.py": ["tests/perturbations", f"{PROPERTIES}/test_derivations.py"],
    "sde_gen/model.py": ["tests/test_model.py", "tests/test_parameterizations.py", "tests/test_oracles.py"],
    "sde_gen/parameterizations.py": ["tests/test_parameterizations.py", "tests/test_model.py"],
    "sde_gen/objectives.py": ["tests/test_objectives.py", f"{PROPERTIES}/test_training_target.py"],
    "sde_gen/oracles.py": ["tests/test_oracles.py"],
    "sde_gen/samplers/*.py": ["tests/samplers", *SAMPLERS, "tests/peers/test_score_sde.py"],
}
OPTIONS = "-x -q -p no:randomly -p no:cacheprovider -p no:xdist --import-mode=importlib --no-header --tb=no -o addopts="


@dataclass
class Mutant:
    """A fault: the `number`-th of its file, in the statement that ends at line `last`."""

    path: str
    line: int
    last: int
    name: str
    change: str
    number: int
    outcome: str = ""
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """What a reason is filed under; without the line, which moves."""
        return f"{self.path}: {self.name}: {self.change}"


def mutants_of(path: str, sample: int, seed: int) -> list[Mutant]:
    """The faults of a file, or `sample` of them."""
    finder = Mutator()
    finder.visit(ast.parse((ROOT / path).read_text()))
    every = [Mutant(path, *site, number) for number, site in enumerate(finder.found)]
    if 0 < sample < len(every):
        every = random.Random(f"{seed}:{path}").sample(every, sample)
    return sorted(every, key=lambda m: m.number)


def run_tests(folder: Path, arguments: list[str], limit: float) -> int | None:
    """Exit status of pytest in a fork that imports the package from `folder`; None if time ran out."""
    pid = os.fork()
    if pid == 0:
        os.setsid()
        os.chdir(folder)
        quiet = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        sys.path.insert(0, str(folder))
        import pytest

        status = 3
        try:
            status = int(pytest.main([*OPTIONS.split(), "-m", "not slow and not gpu", *arguments]))
        finally:
            sys.stdout.flush()
            os._exit(status)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def record(folder: Path, tests: list[str], limit: float) -> tuple[dict[str, dict[int, set[str]]], set[str]]:
    """For each file and line the tests that run it, and all tests; stops if they do not pass as they are."""
    import coverage

    data = folder / ".coverage"
    data.unlink(missing_ok=True)
    status = run_tests(folder, ["--cov=sde_gen", "--cov-context=test", "--cov-report=", *tests], limit)
    if status != 0:
        output = (folder / "output.txt").read_text()[-1500:]
        raise SystemExit(f"the tests do not pass without a mutant (status {status}):\n{output}")
    found = coverage.CoverageData(str(data))
    found.read()
    lines: dict[str, dict[int, set[str]]] = {}
    names: set[str] = set()
    for file in found.measured_files():
        by_line = found.contexts_by_lineno(file)
        each = {n: {c.split("|")[0] for c in contexts if "|" in c} for n, contexts in by_line.items()}
        lines[str(Path(file).resolve().relative_to(folder))] = each
        names.update(*each.values())
    return lines, names


def batches(mutant: Mutant, lines: dict[str, dict[int, set[str]]], names: set[str], seed: int) -> Iterator[list[str]]:
    """The tests that reach a mutant: one of each function, then the others."""
    covered = lines.get(mutant.path, {})
    reach = set().union(*(covered.get(n, set()) for n in range(mutant.line, mutant.last + 1)))
    order = sorted(reach or names)  # lines that run at import are reached by all
    random.Random(seed).shuffle(order)
    first: dict[str, str] = {}
    for name in order:
        first.setdefault(name.split("[")[0], name)
    yield sorted(first.values())
    rest = sorted(set(order) - set(first.values()))
    if rest:
        yield rest


def judge(mutant: Mutant, folder: Path, lines: dict, names: set[str], limit: float, seed: int) -> None:
    """Plant the fault, run the tests that reach it, take it out."""
    target = folder / mutant.path
    source = target.read_text()
    target.write_text(ast.unparse(ast.fix_missing_locations(Mutator(mutant.number).visit(ast.parse(source)))))
    began = time.monotonic()
    mutant.outcome = "survived"
    try:
        for batch in batches(mutant, lines, names, seed):
            listed = folder / "tests.txt"
            listed.write_text("\n".join(batch))
            status = run_tests(folder, [f"@{listed}"], limit)
            if status != 0:
                mutant.outcome = "timed out" if status is None else "killed"
                break
    finally:
        target.write_text(source)
    mutant.seconds = round(time.monotonic() - began, 2)


HEAD = """# Mutation testing

`python benchmarks/mutation.py --sample {sample}`: small faults, {asked}, each run against the
fast tests that reach it. A mutant that no test notices survives.

| file | mutants | killed | survived | of these explained | score |
|---|---|---|---|---|---|"""


def report(mutants: list[Mutant], reasons: dict[str, str], sample: int, seed: int) -> str:
    """The tables, in Markdown."""
    asked = f"at most {sample} of each file, drawn with seed {seed}" if sample else "all"
    lines = [HEAD.format(sample=sample, asked=asked)]
    for path in [*dict.fromkeys(m.path for m in mutants), ""]:
        own = [m for m in mutants if path in ("", m.path)]
        alive = [m.key for m in own if m.outcome == "survived"]
        killed, same = len(own) - len(alive), sum(key in reasons for key in alive)
        score = f"{100 * killed / len(own):.0f} %"
        lines.append(f"| {path or '**all**'} | {len(own)} | {killed} | {len(alive)} | {same} | {score} |")
    lines += ["", "## Survivors", "", "| where | in | change | reason |", "|---|---|---|---|"]
    for m in mutants:
        if m.outcome == "survived":
            change = m.change.replace("|", "\\|")
            lines.append(f"| {m.path}:{m.line} | {m.name} | `{change}` | {reasons.get(m.key, 'not explained')} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run as a command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, default=30, help="mutants per file; 0 for all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[], help="files to mutate, such as sde_gen/model.py")
    parser.add_argument("--out", type=Path, help="Markdown report; the same as JSON goes beside it")
    parser.add_argument("--reasons", type=Path, default=ROOT / "docs/verification/mutation_reasons.json")
    parser.add_argument("--again", type=Path, help="an earlier report's JSON: judge what it left alive, or slow, again")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds that the tests of one mutant may take")
    args = parser.parse_args()
    os.environ.update(CI="1", OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", PYTHONDONTWRITEBYTECODE="1")
    sys.dont_write_bytecode = True
    # What every fork would import again, the package itself excepted.
    import mpmath
    import scipy.integrate
    import scipy.stats
    import torch

    del mpmath, scipy
    torch.set_num_threads(1)
    reasons = json.loads(args.reasons.read_text()) if args.reasons.exists() else {}
    done: list[Mutant] = []
    earlier = [Mutant(**m) for m in json.loads(args.again.read_text())] if args.again else []
    settled = {m.key: m for m in earlier if m.outcome == "killed"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        for part in ("sde_gen", "tests", "conf"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        for pattern, tests in TARGETS.items():
            paths = [str(p.relative_to(ROOT)) for p in sorted(ROOT.glob(pattern)) if p.name != "__init__.py"]
            paths = [p for p in paths if not args.only or p in args.only]
            if not paths:
                continue
            mutants = [m for path in paths for m in mutants_of(path, args.sample, args.seed)]
            if all(m.key in settled for m in mutants):
                done += [settled[m.key] for m in mutants]
                continue
            lines, names = record(folder, [t for t in tests if (ROOT / t).exists()], 1800)
            for mutant in mutants:
                if mutant.key in settled:
                    done.append(settled[mutant.key])
                    continue
                judge(mutant, folder, lines, names, args.limit, args.seed)
                done.append(mutant)
                head = f"{mutant.outcome:9} {mutant.seconds:5.1f} s"
                print(f"{head}  {mutant.path}:{mutant.line}  {mutant.change}", flush=True)
    text = report(done, reasons, args.sample, args.seed)
    print("\n" + text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text)
        args.out.with_suffix(".json").write_text(json.dumps([asdict(m) for m in done], indent=1) + "\n")


if __name__ == "__main__":
    main()
