"""`python -m sde_gen.import_weights`: tensors in, a checkpoint out, nothing executed."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import sde_gen as sg
from sde_gen.config import load_model
from sde_gen.training import read_checkpoint
from tests.commands.helpers import TINY, Command

MODEL = ("data=mixture", "data.n=64", "data.n_test=64", "network=mlp", "network.hidden=8", "network.layers=1")


def _weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(4)
    return dict(sg.MLP(2, hidden=8, layers=1).state_dict())


def _save(path: str, content: Any) -> None:
    if path.endswith(".safetensors"):
        save_file(content, path)
    else:
        torch.save(content, path)


@pytest.mark.parametrize(
    ("path", "wrap", "arguments"),
    [
        ("w.safetensors", lambda w: w, ()),
        ("w.pt", lambda w: w, ()),
        ("w.ckpt", lambda w: {"state": {"model": w}, "epoch": 3}, ("key=state.model",)),
        ("w.pth", lambda w: {f"module.{k}": v for k, v in w.items()}, ("strip=module.",)),
        ("w.bin", lambda w: {"a": {k: v * 0 for k, v in w.items()}, "b": w}, ("key=a", "ema_key=b")),
    ],
)
def test_weights_become_a_run(command: Command, path: str, wrap: Any, arguments: tuple[str, ...]) -> None:
    weights = _weights()
    _save(path, wrap(weights))
    result = command("import_weights", f"weights={path}", *MODEL, "run=a", *arguments)
    assert result.code == 0, result.err
    model = load_model("runs/a")
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.network.state_dict().items())
    folder = Path("runs/a/checkpoints/step_00000000")
    assert sorted(os.listdir(folder)) == [
        "config.json",
        "ema.safetensors",
        "manifest.json",
        "model.safetensors",
        "state.json",
    ]
    assert read_checkpoint(folder).state["imported"]["file"] == path
    sampled = command("sample", "run=a", "sampler=ddim", "sampler.steps=2", "num_samples=4", "metrics=false")
    assert sampled.code == 0, sampled.err


def _averaged() -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """What torch saves of an average, and the average."""
    network = sg.MLP(2, hidden=8, layers=1)
    average = torch.optim.swa_utils.AveragedModel(network)
    for _ in range(2):
        with torch.no_grad():
            for p in network.parameters():
                p.add_(torch.randn_like(p))
        average.update_parameters(network)
    return average.state_dict(), dict(average.module.state_dict())


@pytest.mark.parametrize("kind", ["torch", "ema-pytorch", "list"])
def test_averages_as_other_libraries_keep_them(command: Command, kind: str) -> None:
    whole, average = _averaged()
    last = _weights()
    trained = [average[name] for name, _ in sg.MLP(2, hidden=8, layers=1).named_parameters()]
    content, arguments = {
        "torch": (whole, ("strip=module.",)),
        "ema-pytorch": (
            {f"online_model.{k}": v for k, v in last.items()} | {f"ema_model.{k}": v for k, v in average.items()}
            | {"initted": torch.tensor(True), "step": torch.tensor(3)},
            ("strip=ema_model.",),
        ),
        "list": (
            {"model": {f"module.{k}": v for k, v in last.items()}, "ema": {"decay": 0.9, "shadow_params": trained}},
            ("key=model", "strip=module.", "ema_key=ema.shadow_params"),
        ),
    }[kind]  # fmt: skip
    torch.save(content, "w.pt")
    assert command("import_weights", "weights=w.pt", *MODEL, "run=a", *arguments).code == 0
    assert all(torch.equal(v, average[k]) for k, v in load_model("runs/a").network.state_dict().items())
    if kind == "list":
        found = load_model("runs/a", weights="model").network.state_dict()
        assert all(torch.equal(v, last[k]) for k, v in found.items())


def test_a_list_that_does_not_fit(command: Command) -> None:
    trained = [p.detach() for p in sg.MLP(2, hidden=8, layers=1).parameters()]
    for wrong, message in ((trained[:-1], "in a row"), ([*trained[:-1], torch.zeros(3)], "not (")):
        torch.save({"model": [{"a": _weights()}], "ema": wrong}, "w.pt")
        result = command("import_weights", "weights=w.pt", *MODEL, "run=a", "key=model.0.a", "ema_key=ema")
        assert result.code == 65
        assert message in result.err


def test_training_goes_on_from_imported_weights(command: Command) -> None:
    _save("w.pt", _weights())
    assert command("import_weights", "weights=w.pt", *MODEL, "run=a").code == 0
    result = command("train", "resume=a", *TINY[6:], "trainer.steps=3")
    assert result.code == 2, "the settings of training are part of the run too"
    result = command("train", "resume=a", "trainer.steps=3", "trainer.preview_samples=0", "device=cpu")
    assert result.code == 0, result.err
    assert read_checkpoint(Path("runs/a/checkpoints/step_00000003")).step == 3


class _Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, ("owned",))


@pytest.mark.parametrize("name", ["evil.pt", "evil.ckpt", "evil.safetensors", "evil.bin", "plain.pkl"])
def test_payloads_do_not_run(command: Command, name: str) -> None:
    content = {"model": _weights(), "x": _Payload()}
    if name == "plain.pkl":
        Path(name).write_bytes(pickle.dumps(content))
    else:
        torch.save(content, name)
    result = command("import_weights", f"weights={name}", *MODEL, "key=model", "run=a")
    assert result.code == 65, result.err
    assert result.err.startswith("error: ")
    assert "Traceback" not in result.err
    assert not Path("owned").exists()
    assert not Path("runs").exists()


def test_what_does_not_fit_is_refused_in_one_sentence(command: Command) -> None:
    weights = _weights()
    _save("w.pt", {"model": weights})
    (Path("junk.pt")).write_bytes(b"junk" * 100)
    cases = [
        (("weights=none.pt",), 66, "no file none.pt"),
        (("weights=junk.pt",), 65, "junk.pt"),
        (("weights=w.pt",), 65, "there are model; say where with key=NAME"),
        (("weights=w.pt", "key=ema"), 65, "has nothing at key=ema; there are model"),
        (("weights=w.pt", "key=model", "network.hidden=16"), 65, "do not fit"),
        (("weights=w.pt", "key=model", "strip=stem."), 65, "do not fit"),
        ((), 2, "weights"),
    ]
    for arguments, code, message in cases:
        result = command("import_weights", *MODEL, *arguments, "run=a")
        assert result.code == code, result.err
        assert message in result.err
        assert len(result.err.strip().splitlines()) == 1, result.err
        assert not Path("runs").exists()
    assert command("import_weights", *MODEL, "weights=w.pt", "key=model", "run=a").code == 0
    again = command("import_weights", *MODEL, "weights=w.pt", "key=model", "run=a")
    assert again.code == 73
    assert "has checkpoints already" in again.err


BRIEFLY = ("likelihood=none", "metrics=[energy_distance]", "sampler=ddim", "sampler.steps=2", "num_samples=32")


def test_evaluate_says_whether_an_imported_network_is_read_as_it_was_trained(command: Command) -> None:
    _save("w.pt", _weights())
    imported = command("import_weights", "weights=w.pt", *MODEL, "run=a")
    assert (imported.code, "no other reading that was tried fits" in imported.out) == (0, True), imported.err
    result = command("evaluate", "run=a", *BRIEFLY, "out=o")
    assert result.code == 0, result.err
    said = json.loads(Path("o/evaluation.json").read_text())["diagnosis"]
    assert "no other reading that was tried fits" in said  # its weights are random
    for words in (said, "half log-SNR", "error/linear", "noise error"):
        assert words in result.out


def test_evaluate_says_nothing_of_it_where_the_network_is_our_own(trained: Command) -> None:
    result = trained("evaluate", *BRIEFLY, "out=o")
    assert result.code == 0, result.err
    assert "diagnosis" not in json.loads(Path("o/evaluation.json").read_text())
