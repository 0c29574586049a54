"""Errors of the library, each with the exit code that the commands return for it.

Codes: 2 usage or config, 65 bad data or checkpoint, 66 missing input, 70 numerical failure, 73 cannot create or
locked, 74 input/output. A message is one sentence: what, where, the allowed values, what to do next.
"""

from collections.abc import Sequence

__all__ = [
    "BetweenNodesWarning",
    "CheckpointError",
    "CollapseWarning",
    "ConfigError",
    "DataError",
    "LateStartWarning",
    "MissingInputError",
    "NonFiniteError",
    "OutputError",
    "PrecisionWarning",
    "SDEGenError",
    "SolverError",
    "UncompiledWarning",
    "WriteError",
]


class SDEGenError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the commands return."""

    exit_code: int = 70


class ConfigError(SDEGenError, ValueError):
    """A parameter or a combination of parameters is not allowed (exit code 2)."""

    exit_code = 2


class DataError(SDEGenError, ValueError):
    """Data that cannot be used: wrong shape, mixed sizes, NaN, a broken file (exit code 65)."""

    exit_code = 65


class CheckpointError(SDEGenError):
    """A checkpoint that cannot be used: damaged, or of another kind (exit code 65)."""

    exit_code = 65


class MissingInputError(SDEGenError, FileNotFoundError):
    """A file, folder, run or checkpoint that is not there (exit code 66)."""

    exit_code = 66


class OutputError(SDEGenError, OSError):
    """An output that cannot be created, or a folder in use by another process (exit code 73)."""

    exit_code = 73


class WriteError(SDEGenError, OSError):
    """A write that failed part-way, such as a full disk (exit code 74)."""

    exit_code = 74


class SolverError(SDEGenError, RuntimeError):
    """A solver ran out of its budget of network calls, or could not meet its tolerance (exit code 70)."""

    exit_code = 70


class NonFiniteError(SDEGenError, ArithmeticError):
    """A state became NaN or infinite.

    Attributes:
        step: 0-based step of the sampler (or optimiser) at which it was first seen.
        t: time of that step, in [0, 1].
        indices: indices of the samples concerned; empty when they cannot be told apart.
        where: what it was that was not finite.
    """

    exit_code = 70

    def __init__(self, step: int, t: float, indices: Sequence[int], where: str = "state") -> None:
        self.step = int(step)
        self.t = float(t)
        self.indices = tuple(int(i) for i in indices)
        self.where = where
        shown = ", ".join(map(str, self.indices[:8])) + (", ..." if len(self.indices) > 8 else "")
        which = f" for samples [{shown}]" if self.indices else ""
        super().__init__(
            f"the {where} became NaN or infinite at step {self.step} (t = {self.t:.6g}){which}; "
            "check the network's output there, or use more steps"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (NonFiniteError, (self.step, self.t, self.indices, self.where))


class TrainingFault(NonFiniteError):
    """Three steps in a row had a loss or gradient that was NaN or infinite, or weights were about to be saved that are.

    Attributes:
        step: 0-based optimiser step of the last of them.
        t: the smallest of their times.
        t_range: smallest and largest time of the samples concerned.
        indices: training samples concerned; empty when a gradient alone was at fault.
        where: "training loss", "gradient" or "weights".
        in_a_row: how many steps.
    """

    def __init__(
        self, step: int, t_range: tuple[float, float], indices: Sequence[int], where: str, in_a_row: int
    ) -> None:
        super().__init__(step, t_range[0], indices, where)
        self.t_range, self.in_a_row = (float(t_range[0]), float(t_range[1])), int(in_a_row)
        self.args = (self._message(),)

    def _message(self) -> str:
        if self.where == "weights":
            return (
                f"the weights became NaN or infinite before step {self.step}; nothing of that is saved: "
                "lower trainer.learning_rate and go on from the newest checkpoint"
            )
        shown = ", ".join(map(str, self.indices[:8])) + (", ..." if len(self.indices) > 8 else "")
        which = f", samples [{shown}]" if self.indices else ""
        low, high = self.t_range
        return (
            f"the {self.where} became NaN or infinite at step {self.step} (t from {low:.6g} to {high:.6g}{which}), "
            f"number {self.in_a_row} in a row; the updates were skipped: lower trainer.learning_rate, or look at these "
            "samples and the network"
        )

    def __reduce__(self) -> tuple[object, ...]:
        return (TrainingFault, (self.step, self.t_range, self.indices, self.where, self.in_a_row))


class ProcessLostError(SDEGenError, RuntimeError):
    """Another process of the job ended or fell silent (exit code 69); what was saved before is whole."""

    exit_code = 69


class FailedElsewhere(SDEGenError, RuntimeError):
    """A process failed, and says why itself; raised in the others, with its exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = int(exit_code)


class Interrupted(SDEGenError):
    """Stopped by a signal after everything was saved (exit code 75: run the same command again)."""

    exit_code = 75


class BetweenNodesWarning(UserWarning):
    """A network trained on a chain's nodes only is asked between them."""


class CollapseWarning(UserWarning):
    """One of the particles of a system carries its whole weight."""


class LateStartWarning(UserWarning):
    """A sampler starts from noise alone at a time where a good part of the data is left."""


class PrecisionWarning(UserWarning):
    """A tolerance that the number format cannot hold."""


class UncompiledWarning(UserWarning):
    """Compilation was asked for where torch finds no compiler that works."""
