"""Weights of published networks under the names that the package's own networks of the same kind have."""

from collections.abc import Mapping

from torch import Tensor

from sde_gen.errors import CheckpointError

_DIT = {
    "t_embedder.mlp.0": "embedding.first", "t_embedder.mlp.2": "embedding.second",
    "y_embedder.embedding_table": "embedding.table", "x_embedder.proj": "stem", "final_layer.linear": "head",
    "final_layer.adaLN_modulation.1": "head_modulation",
}  # fmt: skip
_DIT_BLOCK = {"attn.qkv": "attention.qkv", "attn.proj": "attention.out", "mlp.fc1": "mlp_in", "mlp.fc2": "mlp_out",
              "adaLN_modulation.1": "modulation"}  # fmt: skip


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
