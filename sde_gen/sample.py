"""`python -m sde_gen.sample`: draw samples from a trained run, with a picture and a report."""

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sde_gen.config.launch import launch, say

if TYPE_CHECKING:
    from omegaconf import DictConfig
    from torch import Tensor

    from sde_gen.config.schema import SampleConfig
    from sde_gen.data import Affine, Dataset
    from sde_gen.model import ScoreModel
    from sde_gen.training import Checkpoint

_FRAMES = 60  # of an animation, at most
_SHOWN = 100  # images in a picture, at most
_COMPARED = 2000  # samples in a comparison, at most


def run(config: "DictConfig | Mapping[str, Any]") -> dict[str, Any]:
    """Sample as `config` says and return the report; the body of the command.

    Raises:
        SDEGenError: one of its subclasses, with the exit code of the command, before any long work where possible.
    """
    from sde_gen.config.check import typed
    from sde_gen.config.objects import build, plain
    from sde_gen.config.restore import chosen_checkpoint, load_model, pick_device, stored_transform
    from sde_gen.config.schema import SampleConfig
    from sde_gen.errors import BetweenNodesWarning
    from sde_gen.rng import check_seed

    cfg = typed(SampleConfig, plain(config))
    check_seed(cfg.seed)
    device = pick_device(cfg.device)
    sampler = build(cfg.sampler, trust=cfg.trust, where="sampler")
    perturbation = build(cfg.sde, trust=cfg.trust, where="sde")
    checkpoint = chosen_checkpoint(cfg.run, cfg.checkpoint, cfg.runs_dir, say)
    model = load_model(checkpoint, weights=cfg.weights, device=device, trust=cfg.trust)
    if perturbation is not None:
        model = model.under(perturbation)
    transform, shape, classes = stored_transform(checkpoint)
    condition = _condition(cfg, classes if checkpoint.state.get("conditional") else 0, device)
    target = _Target.of(cfg, checkpoint)
    frames = _Frames(model, cfg.num_samples) if cfg.animation else None

    say(f"sampling {cfg.num_samples} from checkpoint {checkpoint.path} under {model.perturbation} with {sampler}")
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("once", BetweenNodesWarning)
        samples = sampler(
            model,
            (cfg.num_samples, *shape),
            seed=cfg.seed,
            condition=condition,
            callback=frames,
            progress=sys.stderr.isatty(),
            chunk=cfg.chunk if frames is None else cfg.num_samples,
            device=device,
        )
    for note in notes:
        say(f"note: {note.message}")
    x = samples.x.float().cpu()
    data = _data(checkpoint, cfg)
    report: dict[str, Any] = {
        "sampler": repr(sampler),
        "perturbation": repr(model.perturbation),
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.step,
        "weights": cfg.weights,
        "seed": cfg.seed,
        "num_samples": cfg.num_samples,
        "nfe": samples.nfe,
        "seconds": round(samples.seconds, 3),
        "held_out_loss": checkpoint.state.get("metrics", {}).get("held_out_loss"),
    }
    if cfg.metrics and data is not None:
        report |= _distances(x, data)
    _write(target, x, transform, condition, report)
    _draw(target, model, x, data, frames, cfg)
    _table(report, target)
    return report


def _condition(cfg: "SampleConfig", classes: int, device: Any) -> dict[str, "Tensor"]:
    import torch

    from sde_gen.errors import ConfigError

    if cfg.label is None:
        return {}
    if classes == 0:
        raise ConfigError(f"label={cfg.label}, but this network was trained without labels; leave label out")
    if cfg.label == "cycle":
        return {"label": (torch.arange(cfg.num_samples) % classes).to(device)}
    if not 0 <= int(cfg.label) < classes:
        raise ConfigError(f"label={cfg.label} must be one of 0..{classes - 1}, or cycle")
    return {"label": torch.full((cfg.num_samples,), int(cfg.label), device=device)}


class _Target:
    """Where the results go: a folder, and the beginning of each file's name."""

    def __init__(self, folder: Path, stem: str) -> None:
        self.folder, self.stem = folder, stem

    @classmethod
    def of(cls, cfg: "SampleConfig", checkpoint: "Checkpoint") -> "_Target":
        """From out=, or a fresh folder in the run; made before anything is computed that would have no place."""
        from sde_gen.training import RunDirectory
        from sde_gen.training.files import make_folder

        if cfg.out is not None:
            out = Path(str(cfg.out)).expanduser()
            if out.suffix == ".npz":
                return cls(make_folder(out.parent, "the output folder"), out.stem)
            return cls(make_folder(out, "the output folder"), "samples")
        # A checkpoint may lie in a run, in `checkpoints` of a run, or alone.
        home = checkpoint.path.parent
        home = home.parent if home.name == "checkpoints" else home
        label = str(cfg.sampler.get("_target_", "sampler")).rpartition(".")[2].lower()
        return cls(RunDirectory.fresh(home / "sampled", label).path, "samples")

    def path(self, ending: str) -> Path:
        """`samples.npz` for ".npz", `samples_animation.gif` for "_animation.gif" and so on."""
        return self.folder / f"{self.stem}{ending}"


class _Frames:
    """Pictures of the reverse process, taken by a sampler's callback."""

    def __init__(self, model: "ScoreModel", count: int) -> None:
        self.model, self.count = model, min(count, 36)
        self.states: list[tuple[float, Tensor]] = []
        self._every = 1

    def __call__(self, step: int, t: float, x: "Tensor") -> None:
        """Keep every n-th state; n doubles whenever there are too many."""
        if step % self._every == 0 or t == 0.0:
            p = self.model.perturbation
            size = (float(p.alpha(t)) ** 2 + float(p.sigma(t)) ** 2) ** 0.5
            kept = self.count if x.ndim == 4 else len(x)
            self.states.append((t, (x[:kept] / max(size, 1e-12)).float().cpu()))
        if len(self.states) > 2 * _FRAMES:
            self.states = self.states[::2]
            self._every *= 2


def _data(checkpoint: "Checkpoint", cfg: "SampleConfig") -> "Dataset | None":
    """The data the network was trained on; None, with a word about it, if it is not here (samples need it not)."""
    from sde_gen.config.restore import stored_data
    from sde_gen.errors import SDEGenError

    if not (cfg.metrics or cfg.forward):
        return None
    try:
        return stored_data(checkpoint, cfg.trust)
    except SDEGenError as error:
        say(f"no comparison with data: {error}")
        return None


def _distances(x: "Tensor", data: "Dataset") -> dict[str, Any]:
    """Distances to held-out data; beside each, that of as many training samples: what a perfect sampler would reach."""
    import torch

    from sde_gen import metrics
    from sde_gen.rng import keyed_generator

    generated = x[:_COMPARED]
    held_out = data.test[:_COMPARED]
    order = torch.randperm(len(data.train), generator=keyed_generator(0, 1))
    real = data.train[order[: len(generated)]]
    result: dict[str, Any] = {"compared": [len(generated), len(held_out)]}
    for name, function in (
        ("energy_distance", metrics.energy_distance),
        ("sliced_wasserstein", metrics.sliced_wasserstein),
    ):
        result[name], result[f"{name}_real"] = function(generated, held_out), function(real, held_out)
    if min(len(generated), len(held_out)) >= 50:
        result["svm_accuracy"] = metrics.classifier_accuracy(generated, held_out)
        result["svm_accuracy_real"] = metrics.classifier_accuracy(real, held_out)
    return result


def _write(
    target: _Target, x: "Tensor", transform: "Affine", condition: Mapping[str, "Tensor"], report: Mapping[str, Any]
) -> None:
    import numpy as np

    from sde_gen.training.files import publish, write_json

    arrays = {"x": transform.inverse(x).numpy(), "model_x": x.numpy()}
    if "label" in condition:
        arrays["label"] = condition["label"].cpu().numpy()

    savez: Any = np.savez_compressed

    def save(temporary: Path) -> None:
        with temporary.open("wb") as stream:
            savez(stream, **arrays)

    publish(target.path(".npz"), save, "the samples")
    write_json(target.path(".json") if target.stem != "samples" else target.folder / "report.json", dict(report))


def _draw(
    target: _Target,
    model: "ScoreModel",
    x: "Tensor",
    data: "Dataset | None",
    frames: _Frames | None,
    cfg: "SampleConfig",
) -> None:
    from sde_gen import pictures

    if x.ndim != 4 and not pictures.has_matplotlib():
        say("matplotlib is not installed, so there are no plots of points; run pip install 'sde_gen[plot]'")
        return
    real = None if data is None else data.test
    picture = pictures.picture_of(x[:_SHOWN] if x.ndim == 4 else x, real)
    pictures.save_image(picture, target.path(".png"))
    if frames is not None:
        states = frames.states[:: max(1, len(frames.states) // _FRAMES)]
        if states[-1] is not frames.states[-1]:
            states = [*states, frames.states[-1]]
        limits = pictures.limits_of([state for _, state in states]) if x.ndim != 4 else None
        drawn = [
            pictures.image_grid(state) if state.ndim == 4 else pictures.scatter({f"t = {t:.3f}": state}, limits)
            for t, state in states
        ]
        pictures.save_animation(drawn, target.path("_animation.gif"))
    if cfg.forward and data is not None:
        strip = pictures.forward_strip(model.perturbation, data.test[:2048], cfg.seed)
        pictures.save_image(strip, target.path("_forward.png"))


def _table(report: Mapping[str, Any], target: _Target) -> None:
    rows = [("network calls", str(report["nfe"])), ("seconds", f"{report['seconds']:.1f}")]
    if report["held_out_loss"] is not None:
        rows.append(("held-out loss", f"{report['held_out_loss']:.4f}"))
    for key, title in (
        ("energy_distance", "energy distance"),
        ("sliced_wasserstein", "sliced Wasserstein"),
        ("svm_accuracy", "SVM accuracy"),
    ):
        if key in report:
            rows.append((title, f"{report[key]:.4f}  (two sets of real data: {report[key + '_real']:.4f})"))
    rows.append(("written to", str(target.folder)))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(f"  {name:<{width}}  {value}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return launch("sample", run, argv)


if __name__ == "__main__":
    sys.exit(main())
