"""Codecs on disk: a folder with config.json and model.safetensors, one for all checkpoints of a run.

Nothing in such a folder is executed: classes must be the library's own or of a module that a person trusts.
"""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sde_gen.codecs.autoencoder import Autoencoder
from sde_gen.codecs.codec import Codec
from sde_gen.config.objects import build
from sde_gen.config.restore import check_size
from sde_gen.errors import CheckpointError, MissingInputError, SDEGenError
from sde_gen.files import make_folder, publish, write_json
from sde_gen.interop.diffusers.folders import CONFIG, fetched, read_json
from sde_gen.training import Checkpoint
from sde_gen.training.checkpoint import CODEC, has_interpolation, read_tensors, save_tensors
from sde_gen.training.state import load_weights

WEIGHTS = "model.safetensors"


def save_codec(codec: Codec, folder: str | os.PathLike[str]) -> Path:
    """Write a codec into `folder`, as plain data and safetensors, and return the folder.

    Raises:
        ConfigError: its module does not say what it is made of.  OutputError, WriteError: the folder cannot be written.
    """
    described = codec.described
    place = make_folder(Path(folder), "the folder of the codec")
    publish(place / WEIGHTS, lambda temporary: save_tensors(temporary, codec.module.state_dict()), "the codec")
    write_json(place / CONFIG, {"codec": described, "digest": codec.digest}, "the description of the codec")
    return place


def read_codec(path: str | os.PathLike[str], trust: Sequence[str] = ()) -> Codec:
    """The codec in a folder: of a run, of `save_codec`, of an autoencoder of diffusers or a pipeline with a vae.

    Args:
        path: the folder, or NAME/NAME on the Hugging Face hub.
        trust: modules of your own whose classes the folder may name.

    Raises:
        MissingInputError: nothing there.  CheckpointError: damaged, or it names a class that is not allowed.
    """
    folder = Path(path).expanduser()
    folder = folder if folder.is_dir() else fetched(str(path))
    place = next((inner for inner in (folder / CODEC, folder / "vae") if inner.is_dir()), folder)
    if not (place / CONFIG).is_file():
        raise MissingInputError(f"{folder} holds no {CONFIG} of a codec; give that of an AutoencoderKL, or of a run "
                                "that was trained on latents")  # fmt: skip
    config = read_json(place / CONFIG)
    if "codec" not in config:
        return Codec(Autoencoder.of_folder(place))
    node = config["codec"]
    if not isinstance(node, Mapping) or has_interpolation(node):
        raise CheckpointError(f"{place / CONFIG} does not describe a codec as plain data; save it again")
    tensors = read_tensors(place / WEIGHTS, "save the codec again")
    check_size(node, tensors, f"in {place}")
    try:
        module = build(node, trust=trust, where="codec", stored=True)
    except (CheckpointError, MissingInputError):
        raise
    except SDEGenError as error:
        raise CheckpointError(f"the codec in {place} is of no use: {error}") from error
    load_weights(module, tensors, place / WEIGHTS)
    return Codec(module)


def stored_codec(checkpoint: Checkpoint, trust: Sequence[str] = ()) -> Codec | None:
    """The codec of the latents that the network of a checkpoint was trained on; None: those are no latents.

    Raises:
        MissingInputError: it is not beside the checkpoint.  CheckpointError: damaged, or another one.
    """
    about = checkpoint.state.get("data")
    wanted = about.get("codec") if isinstance(about, Mapping) else None
    if not wanted:
        return None
    place = checkpoint.home / CODEC
    if not place.is_dir():
        raise MissingInputError(
            f"checkpoint {checkpoint.path} was trained on latents, and their codec is not at {place}; copy it there "
            "from the run it was trained in"
        )
    codec = read_codec(place, trust)
    if codec.digest != wanted:
        raise CheckpointError(f"the codec at {place} is not the one that checkpoint {checkpoint.path} was trained with")
    return codec


def keep_codec(codec: Codec, run: Path) -> None:
    """Write the codec of a run into its folder, unless it is there."""
    with suppress(SDEGenError):
        if read_json(run / CODEC / CONFIG).get("digest") == codec.digest and (run / CODEC / WEIGHTS).is_file():
            return
    save_codec(codec, run / CODEC)
