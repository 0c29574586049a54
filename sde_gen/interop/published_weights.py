"""Weights of published networks under the names that the package's own networks of the same kind have."""

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, cat
from torch.nn import Module

from sde_gen.errors import CheckpointError, ConfigError
from sde_gen.networks import EDM2, DiT, NCSNpp

_DIT = {
    "t_embedder.mlp.0": "embedding.first", "t_embedder.mlp.2": "embedding.second",
    "y_embedder.embedding_table": "embedding.table", "x_embedder.proj": "stem", "final_layer.linear": "head",
    "final_layer.adaLN_modulation.1": "head_modulation",
}  # fmt: skip
_DIT_BLOCK = {"attn.qkv": "attention.qkv", "attn.proj": "attention.out", "mlp.fc1": "mlp_in", "mlp.fc2": "mlp_out",
              "adaLN_modulation.1": "modulation"}  # fmt: skip


def read_off(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """What the shapes of published weights say that a command cannot: channels, and the classes of DiT and EDM2."""
    first = next((tensor for tensor in weights.values() if tensor.dim() == 4), None)  # a convolution of the input
    last, labels = weights.get("out_conv.weight"), weights.get("emb_label.weight")  # of edm2, whose input has a one
    table = weights.get("y_embedder.embedding_table.weight")
    found = {} if first is None else {"channels": first.shape[1] if last is None else len(last)}
    classes = len(table) - 1 if table is not None else labels.shape[1] if labels is not None else 0
    return found | ({"num_classes": classes} if classes else {})


def ours(family: str, weights: Mapping[str, Tensor], network: Module) -> dict[str, Tensor] | None:
    """`weights` of a file of a family by the names of `network`; None: it is not the package's own of that family.

    Raises:
        ConfigError: it is told the noise level by other features.  CheckpointError: the weights are of another kind.
    """
    if family == "dit" and isinstance(network, DiT):
        found, told = dit(weights), ("adm",)
    elif family == "edm" and isinstance(network, EDM2):
        return edm2(weights, network)
    elif family in ("edm", "score_sde") and isinstance(network, NCSNpp):
        found, told = (edm if family == "edm" else score_sde)(weights, network), ("fourier", "ddpm")
    else:
        return None
    if network.embedding.kind not in told:
        choices = " or ".join(f"network.embedding={kind}" for kind in told)
        raise ConfigError(
            f"from={family}: a published network is told its noise level by other features; say {choices}"
        )
    return found


def averaged(family: str, values: Sequence[Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`weights` with averages in a row in place of those that were trained, in order.

    Raises:
        CheckpointError: another number of them, or another shape of one.
    """
    names = [name for name in weights if name not in ("sigmas", "all_modules.0.W")]
    if len(names) != len(values) or any(weights[n].shape != v.shape for n, v in zip(names, values, strict=True)):
        raise CheckpointError(f"from={family}: {len(values)} averages in a row do not fit {len(names)} weights")
    return {**weights, **dict(zip(names, values, strict=True))}


def dit(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of facebookresearch/DiT for `DiT(embedding="adm")`; the table of positions is computed, and left out.

    Raises:
        CheckpointError: a name that DiT does not have.
    """
    found = {}
    for name, tensor in weights.items():
        if name == "pos_embed":
            continue
        stem, _, last = name.rpartition(".")
        block = ""
        if stem.startswith("blocks."):
            _, number, stem = stem.split(".", 2)
            block = f"blocks.{number}."
        ours = (_DIT_BLOCK if block else _DIT).get(stem)
        if ours is None:
            raise CheckpointError(f"{name} is no weight of DiT, of which there are {', '.join([*_DIT, *_DIT_BLOCK])}")
        if name == "t_embedder.mlp.0.weight":  # cosines come first there
            tensor = tensor.roll(tensor.shape[1] // 2, 1)
        found[f"{block}{ours}.{last}"] = tensor.flatten(1) if name == "x_embedder.proj.weight" else tensor
    return found


_EDM_BLOCK = {"norm0": "norm_in", "conv0": "conv_in", "affine": "modulation", "norm1": "norm_out",
              "conv1": "conv_out", "skip": "skip", "norm2": "attention.norm", "qkv": "attention.qkv",
              "proj": "attention.out"}  # fmt: skip
_EDM = {"map_layer0": "embedding.first", "map_layer1": "embedding.second", "map_noise": "embedding"}
_EDM2 = {"emb_fourier.freqs": "embedding.frequencies", "emb_fourier.phases": "embedding.phases", "out_gain": "gain",
         "emb_noise.weight": "embedding.noise.weight", "emb_label.weight": "embedding.label.weight",
         "out_conv.weight": "head.weight"}  # fmt: skip
_EDM2_BLOCK = {"conv_res0": "conv_in", "emb_linear": "modulation", "conv_res1": "conv_out", "conv_skip": "skip",
               "attn_qkv": "qkv", "attn_proj": "out"}  # fmt: skip
_SONG_BLOCK = {"GroupNorm_0": "norm_in", "Conv_0": "conv_in", "Dense_0": "modulation", "GroupNorm_1": "norm_out",
               "Conv_1": "conv_out", "Conv_2": "skip"}  # fmt: skip


def edm(weights: Mapping[str, Tensor], network: NCSNpp) -> dict[str, Tensor]:
    """Weights of SongUNet of NVlabs/edm without labels, for an `NCSNpp` or `DDPMpp` of the same shape.

    Raises:
        CheckpointError: a name that it does not have, such as those of labels, which are embedded elsewhere there.
    """
    places = _places(weights)
    found = {}
    for name, tensor in weights.items():
        path = name.split(".")
        if path[-1] == "resample_filter":
            continue
        if path[0] in _EDM:
            last = "frequencies" if path[-1] == "freqs" else path[-1]
            found[f"{_EDM[path[0]]}.{last}"] = tensor
            continue
        ours = _part(path[1], path[0], places, network.blocks, network.out_of_each) if len(path) > 1 else None
        inner = path[2:-1]
        if ours is None or (inner and inner[0] not in _EDM_BLOCK):
            raise CheckpointError(f"{name} is no weight of a SongUNet without labels and augmentation")
        if inner[:1] == ["qkv"]:  # query, key and value of a channel lie side by side there
            tensor = _apart(tensor)
        found[".".join([ours, *(_EDM_BLOCK[key] for key in inner), path[-1]])] = tensor
    return found


def _apart(tensor: Tensor) -> Tensor:
    return tensor.unflatten(0, (-1, 3)).transpose(0, 1).flatten(0, 1)


def _places(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Resolution, such as 32x32, to level."""
    sides = {name.split(".")[1].partition("_")[0] for name in weights if name.startswith("enc.")}
    return {side: k for k, side in enumerate(sorted(sides, key=lambda side: -int(side.partition("x")[0])))}


def _part(name: str, half: str, places: Mapping[str, int], blocks: int, out_of_each: bool = False) -> str | None:
    """Our name of a part of a level of edm and edm2, such as enc 32x32_block0."""
    side, _, part = name.partition("_")
    level = places.get(side, 0)
    number = int(part.removeprefix("block")) if part.startswith("block") else None
    up = len(places) - 1 - level
    if half == "enc":
        known = {"conv": "stem", "down": f"shrink.{level - 1}", "aux_skip": f"into.{level - 1}",
                 "aux_residual": f"into.{level - 1}"}  # fmt: skip
        return known.get(part) if number is None else f"down.{level * blocks + number}"
    head = up if out_of_each else 0
    known = {"in0": "middle.0", "in1": "middle.1", "up": f"grow.{up - 1}", "aux_norm": f"norms.{head}",
             "aux_conv": f"heads.{head}"}  # fmt: skip
    return known.get(part) if number is None else f"up.{up * (blocks + 1) + number}"


def edm2(weights: Mapping[str, Tensor], network: EDM2) -> dict[str, Tensor]:
    """Weights of UNet of NVlabs/edm2 for an `EDM2` of the same shape; those of its uncertainty are left out.

    Raises:
        CheckpointError: a name that it does not have.
    """
    places, found = _places(weights), {}
    for name, tensor in weights.items():
        path = name.split(".")
        ours = _EDM2.get(name)
        if ours is None and path[0] in ("enc", "dec"):
            part = _part(path[1], path[0], places, network.blocks)
            part = None if part is None or (len(path) > 3 and path[2] not in _EDM2_BLOCK) else part
            ours = part and ".".join([part, *(_EDM2_BLOCK[key] for key in path[2:-1]), path[-1]])
            ours = ours and ours.replace("emb_gain", "gain")
        if ours is None:
            raise CheckpointError(f"{name} is no weight of the U-Net of edm2")
        found[ours] = _apart(tensor) if path[-2:-1] == ["attn_qkv"] else tensor
    return found


def score_sde(weights: Mapping[str, Tensor], network: NCSNpp) -> dict[str, Tensor]:
    """Weights of NCSNpp of score_sde_pytorch with BigGAN blocks, for an `NCSNpp` or `DDPMpp` of the same shape.

    There all parts are one list, in the order of the calculation.

    Raises:
        CheckpointError: it has not the parts that `network` has.
    """
    parts: dict[int, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        if name.startswith("all_modules."):
            _, number, rest = name.split(".", 2)
            parts.setdefault(int(number), {})[rest] = tensor
    names, found = list(_in_order(network)), {}
    if len(names) != len(parts):
        raise CheckpointError(f"there are {len(parts)} parts of a network of score_sde, and {len(names)} of "
                              f"{type(network).__name__} as it was built")  # fmt: skip
    for name, (_, part) in zip(names, sorted(parts.items()), strict=True):
        if "NIN_0.W" in part:  # attention, whose matrices lie the other way
            for kind, key in (("weight", "W"), ("bias", "b")):
                every = [part[f"NIN_{k}.{key}"] for k in range(4)]
                every = [m.T[:, :, None, None] if kind == "weight" else m for m in every]
                found[f"{name}.qkv.{kind}"], found[f"{name}.out.{kind}"] = cat(every[:3]), every[3]
                found[f"{name}.norm.{kind}"] = part[f"GroupNorm_0.{kind}"]
            continue
        for key, tensor in part.items():
            inner, _, last = key.rpartition(".")
            if key == "W":
                found[f"{name}.frequencies"] = tensor
            elif inner in _SONG_BLOCK and "GroupNorm_0.weight" in part:
                found[f"{name}.{_SONG_BLOCK[inner]}.{last}"] = tensor
            else:  # a layer, alone or wrapped
                found[f"{name}.{last}"] = tensor
    return found


def _in_order(network: NCSNpp) -> Iterator[str]:
    """Names of the parts of `network` as score_sde calls them."""
    yield from ["embedding"] if network.embedding.kind == "fourier" else []
    yield from ("embedding.first", "embedding.second", "stem")
    for index, block in enumerate(network.down):
        if index and index % network.blocks == 0:
            yield f"shrink.{index // network.blocks - 1}"
            yield from [f"into.{index // network.blocks - 1}"] if len(network.into) else []
        yield from _with_attention(f"down.{index}", block)
    yield from _with_attention("middle.0", network.middle[0])
    yield "middle.1"
    for index, block in enumerate(network.up):
        place, first = divmod(index, network.blocks + 1)
        if place and not first:
            yield f"grow.{place - 1}"
        yield from _with_attention(f"up.{index}", block)
        if first == network.blocks and (network.out_of_each or place == network.levels - 1):
            head = place if network.out_of_each else 0
            yield from (f"norms.{head}", f"heads.{head}")


def _with_attention(name: str, block: Module) -> Iterator[str]:
    yield name
    yield from [f"{name}.attention"] if isinstance(block.attention, Module) else []
