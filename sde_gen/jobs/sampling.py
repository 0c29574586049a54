"""Draw samples from a trained run, with a picture and a report: the work of `python -m sde_gen.sample`."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sde_gen import pictures
from sde_gen.config.launch import say
from sde_gen.config.objects import settings
from sde_gen.config.restore import stored_data
from sde_gen.config.schema import SampleConfig
from sde_gen.config.typed import typed
from sde_gen.data import Dataset, Description
from sde_gen.data.arrays import DIMENSIONS, conditions_of
from sde_gen.data.reading import located
from sde_gen.data.rows import decoded, write_csv
from sde_gen.digests import digest
from sde_gen.errors import CheckpointError, ConfigError, SDEGenError
from sde_gen.evaluation.distances import distances
from sde_gen.files import write_json
from sde_gen.jobs.beforehand import said, say_cost, settled
from sde_gen.jobs.classes import Labels, chosen, columns_for
from sde_gen.jobs.common import Trained, notes_said, table, trained
from sde_gen.jobs.given import read_samples
from sde_gen.jobs.guiding import guided, made_of, started, told
from sde_gen.jobs.restoring import restored
from sde_gen.jobs.target import Target
from sde_gen.jobs.viewing import View
from sde_gen.pictures.animated import ffmpeg
from sde_gen.pictures.animation import Frames
from sde_gen.samplers import ProbabilityFlow, Samples
from sde_gen.streaming import BlockStore, block_length, draw_blocks, write_npz
from sde_gen.training import Checkpoint, Interrupted, StopFlag, stop_on_signals

_SHOWN = 100  # images in a picture, at most
# Samples that comparisons and pictures are made of: as many as have 4 million numbers, 2,000 to 20,000; the others pass
# through memory in blocks.
_HEAD_NUMBERS, _FEWEST, _MOST = 2**22, 2_000, 20_000


def run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Sample as `config` says and return the report.

    Raises:
        SDEGenError: one of its subclasses, before any long work where possible.
    """
    values, arguments = settings(config)
    cfg = typed(SampleConfig, values)
    form = cfg.animation if isinstance(cfg.animation, str) else "gif"
    if form == "mp4":
        ffmpeg()  # refused before the work, if at all
    what = guided(trained(cfg, best=cfg.best), cfg)
    if cfg.animation and isinstance(what.sampler, ProbabilityFlow) and not what.sampler.at:
        # Its samples have steps of their own; these times they share.
        what = replace(what, sampler=replace(what.sampler, at=30))
    model, checkpoint, processes = what.model, what.checkpoint, what.processes
    transform, shape = model.transform, model.shape
    if transform is None:
        raise CheckpointError(f"checkpoint {checkpoint.path} does not describe its data")
    about, dropped = _training_labels(what)
    labels = chosen(told(cfg.label, model) if about.num_classes else cfg.label, about, dropped)
    others = _told(cfg, what)
    if labels is not None and cfg.label is None:
        say("label=cycle: the classes in turn; label=NAME is one of them")
    if cfg.task is not None:
        return restored(cfg, what, arguments, labels)
    view = View.of(what, cfg.trust)
    if cfg.pngs and view.about.kind != "image":
        raise ConfigError(f"pngs=true is for images, and these are data of kind {view.about.kind}; leave it out")
    turns = ({} if labels is None else {"label": labels.rows(0, 64)}) | others
    what = settled(what, shape, turns, lambda: None if cfg.start is not None else _data(checkpoint, cfg, labels))
    given = None
    if cfg.start is not None:
        given = view.encoded(read_samples(cfg.start, "start", view.about.transform, view.about.shape))
    compared = (cfg.metrics or cfg.forward) and processes.is_main
    data = _data(checkpoint, cfg, labels) if cfg.data is not None and compared else None

    plan = {"checkpoint": checkpoint.digest, "sampler": cfg.sampler, "sde": cfg.sde, "seed": cfg.seed}
    plan |= {"weights": cfg.weights, "label": cfg.label, "device": what.device.type}
    plan |= {**made_of(cfg), "given": digest(given)} | ({"told": digest(others)} if others else {})
    block = min(cfg.num_samples, cfg.chunk or block_length(shape, what.device.type))
    with ExitStack() as held:
        target = Target(*processes.on_main(lambda: Target.of(cfg, checkpoint).parts()))
        store = BlockStore(target.folder, plan, cfg.num_samples, shape, block)
        store = replace(store, folder=target.folder / f".partial-{target.stem}-{store.digest[:12]}")
        processes.agree({"job": store.digest, "folder": str(store.folder)})
        if not cfg.overwrite:
            processes.on_main(target.check_free)
        processes.on_main(lambda: held.enter_context(store.open()))
        source = f"checkpoint {checkpoint.path} under {model.perturbation}"
        say(f"sampling {cfg.num_samples} from {source} with {said(what.sampler)}")
        say_cost(what, shape, turns, cfg.num_samples, block)
        frames = Frames(model, view) if cfg.animation and processes.is_main else None
        _draw_all(cfg, what, store, labels, others, given, frames, target)
        if not processes.is_main:
            return {}
        head, nfe, seconds = _summary(store)
        data = _data(checkpoint, cfg, labels) if data is None and compared else data
        shown = view(head)
        report: dict[str, Any] = {
            "sampler": repr(what.sampler),
            **what.about(),
            **view.told(),
            **made_of(cfg),
            "weights": cfg.weights,
            "seed": cfg.seed,
            "num_samples": cfg.num_samples,
            "nfe": nfe,
            "seconds": round(seconds, 3),
            "held_out_loss": checkpoint.state.get("metrics", {}).get("held_out_loss"),
        }
        if labels is not None:
            report["label"] = list(labels.names) or "none"
        if cfg.told is not None:
            report["told"] = cfg.told
        if cfg.metrics and data is not None:
            report |= distances(shown, view.data(data))
        arrays: dict[str, Any] = {
            "x": ((cfg.num_samples, *view.about.shape), str(view.raw(head[:1]).numpy().dtype),
                  (view.raw(b.x).numpy() for b in store.read_all())),
            "model_x": ((cfg.num_samples, *shape), "float32", (b.x.numpy() for b in store.read_all())),
        }  # fmt: skip
        if labels is not None:
            pieces = (labels.rows(*store.rows(i)).numpy() for i in range(len(store)))
            arrays["label"] = ((cfg.num_samples,), "int64", pieces)
        write_npz(target.path(".npz"), arrays)
        if cfg.pngs:
            pictures.save_each((view(b.x) for b in store.read_all()), target.path("_png"))
        if view.about.columns:
            write_csv(target.path(".csv"), view.about.columns, _rows(store, view, labels, about.classes))
        write_json(target.report, report)
        seen = None if data is None else view.data(data)
        _draw(target, shown, seen, frames, labels, view.about, form)
        if cfg.forward and data is not None and (data.test.ndim > 3 or pictures.has_matplotlib()):
            strip = pictures.forward_strip(model.perturbation, data.test[:2048], cfg.seed)
            pictures.save_image(strip, target.path("_forward.png"))
        store.remove()
    _tell(report, target)
    return report


def _draw_all(
    cfg: SampleConfig,
    what: Trained,
    store: BlockStore,
    labels: Labels | None,
    others: Mapping[str, Tensor],
    given: Tensor | None,
    frames: Frames | None,
    target: "Target",
) -> None:
    """Draw what is missing of the store; a signal is obeyed between blocks."""

    def draw(first: int, size: int) -> Samples:
        condition, start = {} if labels is None else {"label": labels.rows(first, size).to(what.device)}, None
        turn = torch.arange(first, first + size)
        condition |= {name: rows[turn % len(rows)].to(what.device) for name, rows in others.items()}
        if given is not None:
            start = started(what, given, cfg.seed, first, size)
        return what.sampler(
            what.model,
            None if start is not None else (size, *store.shape),
            start=start,
            seed=cfg.seed,
            first=first,
            condition=condition,
            callback=frames if first == 0 else None,
            progress=what.processes.is_main,
            chunk=size,
            device=what.device,
        )

    with notes_said(), ExitStack() as held:
        # A job of one block has no boundary to stop at: there a signal ends it as it ends any program.
        stop = held.enter_context(stop_on_signals()) if len(store) > 1 else StopFlag()
        finished = draw_blocks(
            store, what.processes, draw, lambda: bool(stop), again=(0,) if frames is not None else ()
        )
    if not finished:
        out = target.folder if target.stem == "samples" else target.path(".npz")
        raise Interrupted(
            f"stopped by {stop.reason or 'a signal to another process'} between blocks, and those drawn are saved; "
            f"run the same command with out={out} to continue"
        )


def _summary(store: "BlockStore") -> tuple[Tensor, int, float]:
    """The first samples, network calls, and seconds of drawing over all blocks."""
    head, nfe, seconds, kept = [], 0, 0.0, 0
    wanted = min(_MOST, max(_FEWEST, _HEAD_NUMBERS // math.prod(store.shape)))
    for block in store.read_all():
        if kept < wanted:
            head.append(block.x[: wanted - kept])
            kept += len(head[-1])
        nfe, seconds = max(nfe, block.nfe), seconds + block.seconds
    return torch.cat(head), nfe, seconds


def _rows(
    store: BlockStore, view: View, labels: Labels | None, classes: Sequence[str]
) -> Iterator[tuple[NDArray[np.floating], list[str]]]:
    """Raw samples block by block, each with the names of its classes."""
    for index, block in enumerate(store.read_all()):
        taken = [] if labels is None else labels.rows(*store.rows(index)).tolist()
        yield view.raw(block.x).numpy(), [(*classes, "")[label] for label in taken]


def _told(cfg: SampleConfig, what: Trained) -> dict[str, Tensor]:
    """The vectors and tokens of `told=`, which the samples are told in turn.

    Raises:
        ConfigError: for a network, or a task, that takes none; without them, for one that was always told.
    """
    network = what.checkpoint.config.get("network", {})
    sizes = {name: network.get(f"{name.removesuffix('s')}_size") or 0 for name in DIMENSIONS}
    taken = [name for name, size in sizes.items() if size and what.conditional]
    if cfg.told is None:
        if taken and cfg.task is None and not what.checkpoint.config.get("objective", {}).get("condition_dropout"):
            raise ConfigError(f"this network was always told {' and '.join(taken)}; give told=FILE.npz with arrays of "
                              "that name, or train with objective.condition_dropout=0.1")  # fmt: skip
        return {}
    if not taken or cfg.task is not None:
        raise ConfigError("told= is for samples, without task=, of a network that was trained on vectors or tokens; "
                          "leave it out")  # fmt: skip
    found = conditions_of(located(cfg.told, "told must be a .npz file"), taken, "told")
    for name, rows in found.items():
        if rows.shape[-1] != sizes[name]:
            raise ConfigError(f"told={cfg.told}: {name} has size {rows.shape[-1]}, and the network takes {sizes[name]}")
    return found


def _training_labels(what: Trained) -> tuple[Description, bool | None]:
    """The data with the classes that the network was given, and whether training dropped labels (None: not known)."""
    about = Description.from_dict(what.checkpoint.state["data"])
    if not what.conditional:
        return replace(about, classes=(), counts=()), None
    objective = what.checkpoint.config.get("objective", {})
    dropout = objective.get("label_dropout") or objective.get("condition_dropout")
    return about, None if "imported" in what.checkpoint.state else bool(dropout)


def _data(checkpoint: Checkpoint, cfg: SampleConfig, labels: Labels | None) -> Dataset | None:
    """The data of the classes sampled; None, with a word about it, if they are not here: samples need them not."""
    try:
        data = stored_data(checkpoint, cfg.trust, cfg.data)
    except SDEGenError as error:
        if cfg.data is not None:
            raise
        say(f"no comparison with data: {error}")
        return None
    part = data if labels is None else labels.part(data)
    if part is None:
        say("no comparison with data: fewer than two samples of this class are held out")
    return part


def _draw(
    target: Target,
    x: Tensor,
    data: Dataset | None,
    frames: Frames | None,
    labels: Labels | None,
    about: Description,
    form: str,
) -> None:
    if x.ndim < 4 and not pictures.has_matplotlib():
        say("matplotlib is not installed, so there are no plots; run pip install 'sde_gen[plot]'")
        return
    real = None if data is None else data.test
    columns = None if labels is None else columns_for(len(labels.values), min(len(x), _SHOWN))
    if about.columns:
        raw = {"samples": x} if real is None else {"samples": x, "data": real}
        drawn = {title: decoded(about.columns, about.transform.inverse(part).numpy()) for title, part in raw.items()}
        tables = {title: {column.name: values for column, values in rows} for title, rows in drawn.items()}
        picture = pictures.pairs(tables, {column.name: column.values for column in about.columns if column.values})
    else:
        picture = pictures.picture_of(x[:_SHOWN] if x.ndim > 3 else x, real, columns)
    pictures.save_image(picture, target.path(".png"))
    if frames is not None:
        frames.save(target.path(f"_animation.{form}"))


def _tell(report: Mapping[str, Any], target: Target) -> None:
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
    table(rows)
