"""Training: the loop, averaged weights, checkpoints and the folder of a run."""

from sde_gen.errors import Interrupted, TrainingFault
from sde_gen.training.checkpoint import Checkpoint, best_checkpoint, newest_checkpoint, read_checkpoint, save_checkpoint
from sde_gen.training.ema import EMA
from sde_gen.training.metrics_file import MetricsFile, read_metrics
from sde_gen.training.posthoc import PowerEMA, averaged_weights
from sde_gen.training.progress import Progress
from sde_gen.training.run_folder import RunDirectory, newest_run
from sde_gen.training.settings import TrainerSettings
from sde_gen.training.signals import StopFlag, stop_on_signals
from sde_gen.training.trainer import Trainer

__all__ = [
    "EMA",
    "Checkpoint",
    "Interrupted",
    "MetricsFile",
    "PowerEMA",
    "Progress",
    "RunDirectory",
    "StopFlag",
    "Trainer",
    "TrainerSettings",
    "TrainingFault",
    "averaged_weights",
    "best_checkpoint",
    "newest_checkpoint",
    "newest_run",
    "read_checkpoint",
    "read_metrics",
    "save_checkpoint",
    "stop_on_signals",
]
