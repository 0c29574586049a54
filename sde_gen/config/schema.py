"""The settings of each command, as typed values."""

from dataclasses import dataclass, field
from typing import Any, Literal

from sde_gen.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class LoggerSettings:
    """Where metrics go besides metrics.csv."""

    tensorboard: bool = False


def _check_timeout(seconds: float) -> None:
    if not 0 < seconds < 1e6:
        raise ConfigError(f"timeout={seconds} must be a positive number of seconds, such as 600")


def _check_sampling(config: "SampleConfig | EvaluateConfig") -> None:
    """What the commands that draw samples from a checkpoint ask alike."""
    _check_timeout(config.timeout)
    if config.num_samples < 1:
        raise ConfigError(f"num_samples={config.num_samples} must be at least 1")
    if config.chunk is not None and config.chunk < 1:
        raise ConfigError(f"chunk={config.chunk} must be at least 1, or null")
    if config.run is not None and config.checkpoint is not None:
        raise ConfigError("give run=NAME or checkpoint=PATH, not both")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Settings of `python -m sde_gen.train`; conf/train.yaml says what each is."""

    sde: dict[str, Any]
    data: dict[str, Any]
    network: dict[str, Any]
    parameterization: dict[str, Any]
    objective: dict[str, Any]
    trainer: dict[str, Any] = field(default_factory=dict)
    logger: dict[str, Any] = field(default_factory=dict)
    run: str | int | float | None = None
    resume: str | int | float | None = None
    runs_dir: str = "runs"
    seed: int = 0
    device: str = "auto"
    class_conditional: bool = False
    timeout: float = 600.0
    trust: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_timeout(self.timeout)


@dataclass(frozen=True, kw_only=True)
class ImportConfig(TrainConfig):
    """Settings of `python -m sde_gen.import_weights`; conf/import_weights.yaml says what each is."""

    weights: str
    key: str | None = None
    ema_key: str | None = None
    strip: str = ""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Settings of `python -m sde_gen.sample`; conf/sample.yaml says what each is."""

    sampler: dict[str, Any]
    sde: dict[str, Any] | None = None
    run: str | int | float | None = None
    checkpoint: str | None = None
    runs_dir: str = "runs"
    num_samples: int = 64
    out: str | int | float | None = None
    seed: int = 0
    device: str = "auto"
    weights: Literal["ema", "model"] = "ema"
    best: bool = False
    label: int | Literal["cycle"] | None = None
    chunk: int | None = None
    metrics: bool = True
    animation: bool = False
    forward: bool = False
    timeout: float = 600.0
    trust: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_sampling(self)


@dataclass(frozen=True, kw_only=True)
class LikelihoodSettings:
    """How `python -m sde_gen.evaluate` computes likelihoods; ranges are checked where they are used."""

    samples: int | None = 512
    divergence: Literal["auto", "exact", "hutchinson"] = "auto"
    probes: int = 4
    probe: Literal["auto", "rademacher", "gaussian", "fresh", "walsh"] = "auto"
    steps: int | None = 98
    rtol: float = 1e-5
    atol: float = 1e-5
    max_nfe: int = 10_000
    terms: int | None = None

    def __post_init__(self) -> None:
        for name in ("samples", "probes", "steps", "max_nfe", "terms"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"nll.{name}={value} must be at least 1")
        for name in ("rtol", "atol"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"nll.{name}={getattr(self, name)} must lie between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """Settings of `python -m sde_gen.evaluate`; conf/evaluate.yaml says what each is."""

    sampler: dict[str, Any]
    features: dict[str, Any]
    sde: dict[str, Any] | None = None
    run: str | int | float | None = None
    checkpoint: str | None = None
    runs_dir: str = "runs"
    likelihood: Literal["ode", "vlb", "both", "none"] = "ode"
    nll: dict[str, Any] = field(default_factory=dict)
    num_samples: int = 1000
    samples: str | None = None
    metrics: list[str] = field(default_factory=list)
    compared: int | None = 2000
    out: str | int | float | None = None
    seed: int = 0
    device: str = "auto"
    weights: Literal["ema", "model"] = "ema"
    chunk: int | None = None
    timeout: float = 600.0
    trust: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check_sampling(self)
        if self.compared is not None and self.compared < 2:
            raise ConfigError(f"compared={self.compared} must be at least 2, or null")
        if self.likelihood == "none" and not self.metrics:
            raise ConfigError("likelihood=none and metrics=[] leave nothing to do; ask for one of them")
