"""Running a command under Hydra: arguments checked first, one sentence and an exit code for what went wrong."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig

from sde_gen import __version__
from sde_gen.config.compose import check_experiment, explained, readable, with_arguments, without_nulls
from sde_gen.config.folder import config_dir
from sde_gen.config.groups import completed_files
from sde_gen.config.typed import did_you_mean
from sde_gen.errors import ConfigError, SDEGenError

_ABORTED = 130
_TAKE_A_VALUE = ("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn")
_OPTIONS = (
    *_TAKE_A_VALUE, "--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--resolve", "--package", "-p", "--run",
    "-r", "--multirun", "-m", "--shell-completion", "-sc", "--experimental-rerun", "--info", "-i",
)  # fmt: skip
_PER_JOB = {"train": ("run", "_"), "import_weights": ("run", "_")}  # all others: out=PATH/<job>


class Command(NamedTuple):
    """A command: its name, and the module whose `run` does the work, imported after `--help` has been answered."""

    name: str
    module: str

    def run(self, config: Mapping[str, Any] | DictConfig) -> Any:
        """Do what `config` says, as the command would, and return what it found.

        Raises:
            SDEGenError: one of its subclasses, with the exit code of the command, before any long work where possible.
        """
        return import_module(self.module).run(config)

    def main(self, argv: Sequence[str] | None = None) -> int:
        """Run the command and return its exit code."""
        return launch(self.name, self.run, argv)


def launch(name: str, task: Callable[[DictConfig], object], argv: Sequence[str] | None = None) -> int:
    """Run the command `name` and return its exit code.

    Codes: 0 done, 2 usage or configuration, 65 bad data or checkpoint, 66 missing input, 69 another process of the job
    is gone, 70 numerical failure, 73 output cannot be created or is in use, 74 input/output, 75 stopped by a signal and
    saved, 130 aborted.
    With HYDRA_FULL_ERROR=1 in the environment every error shows its traceback.

    Args:
        name: of the primary configuration, such as "train".
        task: called with the composed configuration, once per job.
        argv: arguments; those of the process by default.
    """
    _open_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--version" in arguments:
        say(f"sde_gen {__version__}")
        return 0
    debug = os.environ.get("HYDRA_FULL_ERROR", "0") not in ("", "0")

    def job(config: DictConfig) -> object:
        try:
            result = task(with_arguments(config, _job_arguments()))
            _wait_for_the_others()
            return result
        except Exception as error:
            told = _as_ours(error, name, arguments)
            if debug or told is None:
                raise
            _tell(told)  # at once: in a sweep Hydra raises only the first error, and only at the end
            told._told = True  # type: ignore[attr-defined]
            if told.exit_code == 75 or HydraConfig.get().mode != RunMode.MULTIRUN:
                # Not an Exception, which Hydra would comment on; and a signal ends the sweep, not one job of it.
                raise SystemExit(told.exit_code) from error
            raise told from error

    try:
        if not {"--help", "-h"}.isdisjoint(arguments):
            say(_help(name, arguments))
            return 0
        arguments = without_nulls(name, _readable(arguments))
        check_experiment(name, arguments)
        per_job = _after_its_group(_one_folder_per_job(name, arguments))
        with _process(per_job), _scratch(arguments) as more, completed_files():
            sys.argv += more
            hydra.main(version_base="1.3", config_path=config_dir(), config_name=name)(job)()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 0 if error.code is None else 2
    except BrokenPipeError:
        _silence()
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("aborted\n")
        return _ABORTED
    except Exception as error:
        told = _as_ours(error, name, arguments)
        if debug or told is None:
            raise  # not foreseen: the traceback is wanted
        if not getattr(told, "_told", False):
            _tell(told)
        return told.exit_code
    return 0


def _help(name: str, arguments: Sequence[str]) -> str:
    """What `--help` says, of what the other arguments choose."""
    folder, before = None, ""
    for argument in arguments:
        option, _, value = argument.partition("=")
        if option in ("--config-dir", "-cd"):
            folder = value or folder
        elif before in ("--config-dir", "-cd"):
            folder = argument
        before = argument
    settings = _readable([a for a in arguments if "=" in a and a[0] != "-"])
    return import_module("sde_gen.config.help").command_help(name, settings, folder)


def _open_streams() -> None:
    """A process that was started without standard output or error works in silence."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:
            setattr(sys, stream, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - lives as long as the process


def _readable(arguments: list[str]) -> list[str]:
    """`arguments` with those that are settings as Hydra can read them."""
    for argument in arguments:
        option = argument.partition("=")[0]
        if option.startswith("-") and option not in _OPTIONS:
            raise ConfigError(
                f"{option} is not an option{did_you_mean(option, _OPTIONS)}; settings are written key=value, and the "
                f"options are {', '.join(o for o in _OPTIONS if o.startswith('--'))}"
            )
    before = ["", *arguments]
    return [
        readable([argument])[0]
        if "=" in argument and argument[0] != "-" and before[k] not in _TAKE_A_VALUE
        else argument
        for k, argument in enumerate(arguments)
    ]


def _as_ours(error: Exception, name: str, arguments: Sequence[str]) -> SDEGenError | None:
    """`error` as one of ours, with its sentence and exit code; None for one that nobody foresaw."""
    if type(error).__name__ == "OutOfMemoryError":
        return SDEGenError("the device ran out of memory; use a smaller trainer.batch_size, or chunk in sampling")
    told = explained(error, name, [argument for argument in arguments if not argument.startswith("-")])
    return told if isinstance(told, SDEGenError) else None


def _job_arguments() -> list[str]:
    """The arguments of the job that is running, as Hydra took them."""
    hydra_config = HydraConfig.get()
    sources = hydra_config.runtime.config_sources
    folders = [f"--config-dir={source.path}" for source in sources if source.provider == "command-line"]
    return [*folders, *hydra_config.overrides.task]


def rank() -> int:
    """Number of this process in a job of several, as the environment tells; 0 alone."""
    number, world = (os.environ.get(name, "") for name in ("RANK", "WORLD_SIZE"))
    return int(number) if number.isdigit() and world.isdigit() and int(world) > 1 else 0


def say(line: str) -> None:
    """Write a line to standard output; a reader, terminal or disk that is gone does not end a run.

    In a job of several processes, process 0 speaks.
    """
    if rank():
        return
    try:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
    except (OSError, AttributeError):  # gone, full, or None where the program was started without one
        _silence()


def _silence() -> None:
    sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives as long as the process


def _tell(error: BaseException) -> None:
    if type(error).__name__ == "FailedElsewhere":  # process 0 has said it
        return
    sys.stdout.flush()
    what = "" if getattr(error, "exit_code", 0) == 75 else "error: "  # what was stopped and is saved is no error
    sys.stderr.write(f"{what}{error}\n" if rank() == 0 else f"{what}process {rank()}: {error}\n")
    sys.stderr.flush()


def _one_folder_per_job(name: str, arguments: list[str]) -> list[str]:
    """In a sweep, give each job its own run=NAME_<job> (or out=PATH/<job>), unless the sweep is over that very name."""
    if not _is_sweep(arguments):
        return arguments
    key, joint = _PER_JOB.get(name, ("out", "/"))
    result = []
    for argument in arguments:
        found, _, value = argument.partition("=")
        swept = any(mark in value for mark in ",(") or value in ("", "null")
        result.append(f"{argument}{joint}${{hydra:job.num}}" if found == key and not swept else argument)
    return result


def _after_its_group(arguments: list[str]) -> list[str]:
    """In a sweep over a group, its settings are left to the jobs: Hydra would first look for them in its default."""
    if not _is_sweep(arguments):
        return arguments
    given = [OverridesParser.create().parse_override(a) if "=" in a and a[0] != "-" else None for a in arguments]
    swept = tuple(f"{o.get_key_element()}." for o in given if o is not None and o.is_sweep_override())
    return [
        argument if parsed is None or parsed.is_sweep_override() or not argument.startswith(swept)
        else "{0}=choice({2})".format(*argument.partition("="))
        for argument, parsed in zip(arguments, given, strict=True)
    ]  # fmt: skip


def _wait_for_the_others() -> None:
    """Nobody leaves a job of several processes before the others have done their part."""
    distributed = sys.modules.get("sde_gen.distributed")
    if distributed is not None:
        distributed.start().wait()


@contextmanager
def _scratch(arguments: list[str]) -> Iterator[list[str]]:
    """Process 0 owns the folder that Hydra writes in a sweep; the others are given one to throw away."""
    if rank() == 0 or not _is_sweep(arguments):
        yield []
        return
    with TemporaryDirectory(prefix="sde_gen-") as folder:
        yield [f"hydra.sweep.dir={folder}"]


def _is_sweep(arguments: Sequence[str]) -> bool:
    return any(a in ("-m", "--multirun") or a.upper() == "HYDRA.MODE=MULTIRUN" for a in arguments)


@contextmanager
def _process(arguments: list[str]) -> Iterator[None]:
    """Arguments as Hydra reads them, and its errors handed to us instead of printed."""
    argv, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [argv[0] if argv else "sde_gen", *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = argv
        if full is None:
            os.environ.pop("HYDRA_FULL_ERROR", None)
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
