"""The settings of each command as typed values: names, types, defaults and ranges, all in one place."""

from dataclasses import dataclass, field
from typing import Any, Literal

from sde_gen import checks
from sde_gen.checks import checked
from sde_gen.errors import ConfigError

Name = str | int | float | None  # what a person may call a run or a folder; YAML takes 7 and 1e3 for numbers


@dataclass(frozen=True, kw_only=True)
class LoggerSettings:
    """Where metrics go besides metrics.csv."""

    tensorboard: bool = False  # event files in the run's tensorboard/
    wandb: bool = False  # Weights & Biases, offline unless WANDB_MODE says otherwise
    trackio: bool = False  # a trackio database on this machine
    mlflow: bool = False  # mlflow.db in the run, or where MLFLOW_TRACKING_URI says
    project: str = "sde_gen"  # how W&B and trackio call the project, and MLflow the experiment


@dataclass(frozen=True, kw_only=True)
class _Common:
    """What these commands ask alike."""

    run: Name = None  # name of the run; null: a fresh one in training, else the newest
    runs_dir: str = "runs"  # folder where runs lie
    seed: int = 0  # of every random draw
    trust: list[str] = field(default_factory=list)  # modules of your own whose classes a _target_ may name

    def __post_init__(self) -> None:
        checks.fields(self, "the command")


@dataclass(frozen=True, kw_only=True)
class _Working(_Common):
    """What the commands ask that work on a device, perhaps in several processes."""

    device: str = "auto"  # auto, cpu, cuda, cuda:1, mps
    timeout: float = checked(600.0, above=0, below=1e6)  # seconds without a word from another process that end a job


@dataclass(frozen=True, kw_only=True)
class RunConfig(_Common):
    """What a run is made of; run: its name, null is a fresh folder."""

    sde: dict[str, Any]
    data: dict[str, Any]
    network: dict[str, Any]
    parameterization: dict[str, Any]
    objective: dict[str, Any]
    trainer: dict[str, Any] = field(default_factory=dict)
    class_conditional: bool = False  # give the network the labels of the data


@dataclass(frozen=True, kw_only=True)
class TrainConfig(RunConfig, _Working):
    """Settings of `python -m sde_gen.train`; an existing run is resumed."""

    logger: dict[str, Any] = field(default_factory=dict)
    resume: Name = None  # name or folder of a run to continue with its stored settings


@dataclass(frozen=True, kw_only=True)
class ImportConfig(RunConfig):
    """Settings of `python -m sde_gen.import_weights`.

    Attributes:
        from: instead of weights=, FORMAT:PATH of diffusers, score_sde, ncsnv2, adm, ddp, dit, sit or edm.
    """

    # null: with from=, what was trained on is not here; with weights=, digits
    data: dict[str, Any] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    weights: str | None = None  # the file: .safetensors, or .pt/.pth/.bin/.ckpt, of which tensors alone are read
    key: str | None = None  # where in the file the weights are, such as model or state.model; null: at the top
    ema_key: str | None = None  # where averaged weights are; null: the same
    strip: str = ""  # what to take off the beginning of each name, such as module.
    add: str = ""  # what to put before each name then
    data_shape: list[int] | None = None  # with data=null: of one sample, where what is imported does not say
    data_range: list[float] | None = None  # with data=null: [least, most] of raw values, such as [0, 255]
    rescaled: bool = False  # from=adm: whether times were rescaled to 1000 (rescale_timesteps)


@dataclass(frozen=True, kw_only=True)
class _FromCheckpoint(_Working):
    """What the commands ask that draw from a trained network; run: null is the newest under runs_dir."""

    sampler: dict[str, Any]
    sde: dict[str, Any] | None = None
    data: dict[str, Any] | None = None  # what the network was trained on; null: where it was on this machine
    checkpoint: str | None = None  # instead of a run, the folder of a checkpoint (or of a run)
    out: Name = None  # folder of the results; null: a fresh one in the run
    weights: Literal["ema", "model"] | float = "ema"  # model: not averaged; a number: by its decay, or relative length
    chunk: int | None = checked(None)  # most samples at once; null: chosen from their size and the device
    num_samples: int = checked(1000)  # how many to draw

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.run is not None and self.checkpoint is not None:
            raise ConfigError("give run=NAME or checkpoint=PATH, not both")


@dataclass(frozen=True, kw_only=True)
class _Observing:
    """What is asked of a task, which draws what an observation leaves open."""

    task: Literal["inpaint", "superres", "deblur", "colourise", "posterior"] | None = None  # what was measured
    mask: str | None = None  # of task=inpaint: white, or true, where a pixel is seen
    factor: int = checked(2, low=2)  # of task=superres, for each side
    blur: float = checked(1.0, above=0)  # of task=deblur: standard deviation of the blur in pixels
    operator: str | None = None  # of task=posterior: a matrix (m, D) in .npy or .npz, of samples on the model's scale
    noise_std: float = checked(0.05, above=0)  # of the observation, on the scale of the model, [-1, 1] for pictures
    method: Literal["mmps", "pigdm", "smc"] = "mmps"  # smc: particles, and with them the evidence
    particles: int = checked(16)  # of method=smc, for each sample


@dataclass(frozen=True, kw_only=True)
class SampleConfig(_Observing, _FromCheckpoint):
    """Settings of `python -m sde_gen.sample`; out may end in .npz."""

    num_samples: int = checked(64)  # how many to draw
    overwrite: bool = False  # replace what out= holds
    best: bool = False  # the checkpoint of the lowest held-out loss instead of the newest
    label: Any = None  # class to sample, or a list of them; cycle: all in turn; none: no label
    told: str | None = None  # .npz with arrays vector or tokens, whose rows the samples are told in turn
    guidance: dict[str, Any] | None = None  # what strengthens the label, such as guidance=cfg guidance.scale=2
    clip: bool = False  # keep the denoised estimate within the range of the data at every step
    start: str | None = None  # a picture, .npy or .npz to start from instead of noise
    strength: float = checked(0.5, above=0, high=1)  # how far start= is noised, 1 entirely
    observation: str | None = None  # of a task: a picture, .npy or .npz, unless truth= is given
    truth: str | None = None  # a whole sample to make the observation of, and to show beside the draws
    metrics: bool = True  # compare with held-out data
    pngs: bool = False  # images: a folder with a PNG of each, which tools for FID read
    animation: bool | Literal["gif", "mp4"] = False  # of the reverse process; true: a GIF
    forward: bool = False  # a strip of the forward process


@dataclass(frozen=True, kw_only=True)
class LikelihoodSettings:
    """How `python -m sde_gen.evaluate` computes likelihoods."""

    samples: int | None = checked(512)  # held-out samples, picked at random; null: all
    divergence: Literal["auto", "exact", "hutchinson"] = "auto"  # of the flow; auto: exact for few numbers
    probes: int = checked(4)  # of Hutchinson's estimator, for each sample; two or more give a standard error
    probe: Literal["auto", "rademacher", "gaussian", "fresh", "walsh"] = "auto"  # their law
    steps: int | None = checked(98)  # a grid of N network calls; null: adaptive steps of each sample (rtol, atol)
    rtol: float = checked(1e-5, above=0, below=1)  # relative tolerance, with steps=null
    atol: float = checked(1e-5, above=0, below=1)  # absolute tolerance, with steps=null
    max_nfe: int = checked(10_000)  # network calls for one sample, at most
    terms: int | None = checked(None)  # of the variational bound, for each sample; null: its default

    def __post_init__(self) -> None:
        checks.fields(self, "nll")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig(_Observing, _FromCheckpoint):
    """Settings of `python -m sde_gen.evaluate`; with a task the calibration of its posteriors is measured."""

    features: dict[str, Any]
    likelihood: Literal["ode", "vlb", "both", "none"] = "ode"  # of the held-out data
    nll: dict[str, Any] = field(default_factory=dict)
    samples: str | None = None  # the folder or .npz of samples that were drawn before, instead of drawing
    metrics: list[str] = field(default_factory=list)  # distances of samples from held-out data; []: none
    space: Literal["pixels", "latent"] = "pixels"  # of latents: compare what they decode into, or themselves
    reference: str | None = None  # statistics to compare the samples with: a .npz with mu and sigma, or EDM2's .pkl
    reference_out: str | None = None  # a .npz to write those of the training data to
    protocol: Literal["fid-50k"] | None = None  # FID of 50,000 samples, from reference= or the training data
    compared: int | None = checked(2000, low=2)  # most points of each set in a distance; null: all
    observations: int = checked(64, low=2)  # of a task: held-out samples that are observed
    draws: int = checked(32, low=2)  # of a task, for each observation

    def __post_init__(self) -> None:
        super().__post_init__()
        given = (self.metrics, self.reference, self.reference_out, self.protocol)
        if self.likelihood == "none" and not any(given):
            raise ConfigError("likelihood=none and metrics=[] leave nothing to do; ask for one of them")


@dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """Settings of `python -m sde_gen.report`."""

    runs: list[Any] | None = None  # names of runs, or their folders; null: all under runs_dir
    runs_dir: str = "runs"  # folder where runs lie
    out: Name = None  # folder of the table; null: a fresh one under runs_dir/reports

    def __post_init__(self) -> None:
        checks.fields(self, "the command")


@dataclass(frozen=True, kw_only=True)
class PosteriorSettings:
    """What `experiment=posteriors` compares: methods for y = A x + noise against exact posteriors."""

    problems: dict[str, Any]
    observations: int = checked(8)
    samples: int = checked(512, low=2)
    repeats: int = checked(1, low=1)
    seed: int = checked(0, low=0)

    def __post_init__(self) -> None:
        checks.fields(self, "posteriors")
        if not self.problems:
            raise ConfigError("posteriors.problems is empty; give one, as conf/experiment/posteriors.yaml does")


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """Where and how `python -m sde_gen.compare` runs; what is compared are the parameters of `Comparison`."""

    workers: int | Literal["auto"] = "auto"  # processes of one thread each; auto: one for each CPU core
    cache: str = "runs/comparisons/.cache"  # folder of the results of cells, which are computed once
    out: Name = None  # folder of the report; null: runs/comparisons/NAME
    cell: Name = None  # compute this one cell afresh and print its row
    part: int | None = checked(None)  # with parts=N: compute the K-th of N parts only, for jobs that share a cache
    parts: int | None = checked(None)  # of how many parts part= is one
    spec: str | None = None  # a comparison.json of a report, instead of an experiment
    posteriors: dict[str, Any] | None = None  # what experiment=posteriors compares: problems, observations, samples

    def __post_init__(self) -> None:
        checks.fields(self, "the command")
        if (self.part is None) != (self.parts is None):
            raise ConfigError("part=K and parts=N go together: the K-th of N parts of the cells")
        if self.part is not None and self.parts is not None and self.part > self.parts:
            raise ConfigError(f"part={self.part} must be between 1 and parts={self.parts}")
        if self.workers != "auto":
            checks.integer("the command", "workers", self.workers)
