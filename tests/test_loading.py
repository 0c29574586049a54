"""`sg.load` and `sg.save`: any trained network from disk and to disk, in plain Python."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import sde_gen as sg
from sde_gen.data import mixture
from sde_gen.training import newest_checkpoint

DATA = mixture(n=50, n_test=20)
CONFIG = {
    "network": {"_target_": "sde_gen.networks.MLP", "features": 2, "hidden": 8, "layers": 1},
    "sde": {"_target_": "sde_gen.VE", "sigma_max": 10.0},
    "parameterization": {"_target_": "sde_gen.VPrediction"},
}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = sg.ScoreModel(sg.MLP(2, hidden=8, layers=1), sg.VE(sigma_max=10.0), sg.VPrediction())
    folder = tmp_path / "run"
    sg.Trainer(
        model, DATA, sg.DenoisingScoreMatching(), sg.TrainerSettings(steps=3, batch_size=8),
        checkpoints=folder / "checkpoints", config=CONFIG,
    ).train()  # fmt: skip
    return folder


def _same(a: sg.ScoreModel, b: sg.ScoreModel) -> bool:
    drawn = [sg.DDIM(steps=3)(model, (5, 2), seed=1).x for model in (a, b)]
    return torch.equal(*drawn)


def test_a_run_a_checkpoint_and_a_saved_folder_are_one_model(run: Path, tmp_path: Path) -> None:
    model = sg.load(run)
    found, _ = newest_checkpoint(run / "checkpoints")
    assert found is not None
    folder = sg.save(model, str(tmp_path / "saved"))
    for place in (str(run), run / "checkpoints", found.path, folder, str(folder)):
        loaded = sg.load(place)
        assert not loaded.training
        assert loaded.perturbation == sg.VE(sigma_max=10.0)
        assert loaded.parameterization == sg.VPrediction()
        assert (loaded.shape, loaded.classes, loaded.transform) == ((2,), (), DATA.transform)
        assert _same(loaded, model)
    assert not _same(sg.load(run, weights="model"), model)


@pytest.mark.parametrize(
    "network",
    [
        sg.MLP(3, hidden=8, layers=2, frequencies=1, dropout=0.1, num_classes=4, learned_variance=True),
        sg.UNet(3, width=8, multipliers=(1, 2), blocks=2, attention=[0], dropout=0.1, num_classes=2),
    ],
    ids=["MLP", "UNet"],
)
def test_every_network_of_ours_can_be_saved(network: torch.nn.Module, tmp_path: Path) -> None:
    model = sg.ScoreModel(network, sg.DDPM(steps=50, schedule="cosine"), sg.EDMPreconditioning(sigma_data=0.7))
    loaded = sg.load(sg.save(model, tmp_path))
    assert type(loaded.network) is type(network)
    assert loaded.network.arguments.keys() == network.arguments.keys()
    assert loaded.perturbation == model.perturbation
    assert loaded.parameterization == model.parameterization
    state, again = model.state_dict(), loaded.state_dict()
    assert state.keys() == again.keys()
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert (loaded.shape, loaded.classes, loaded.transform) == ((), (), None)


def test_a_model_under_another_formulation_stays_there(tmp_path: Path) -> None:
    model = sg.ScoreModel(sg.MLP(2, hidden=8, layers=1), sg.VP()).under(sg.VE())
    loaded = sg.load(sg.save(model, tmp_path))
    assert (loaded.trained_under, loaded.perturbation) == (sg.VP(), sg.VE())


def test_a_network_of_ones_own_is_loaded_by_who_trusts_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_saved_network.py").write_text(
        "from torch import nn\n\n\nclass Mine(nn.Module):\n    def __init__(self, width=3):\n"
        "        super().__init__()\n        self.arguments = {'width': width}\n"
        "        self.layer = nn.Linear(2, 2)\n\n"
        "    def forward(self, x, c_noise):\n        return self.layer(x)\n\n\n"
        "class Silent(Mine):\n    def __init__(self, depth):\n        super().__init__()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_saved_network as mine

    model = sg.ScoreModel(mine.Mine(5), sg.VP())
    folder = sg.save(model, tmp_path / "saved")
    with pytest.raises(sg.CheckpointError, match=r"my_saved_network\.Mine is not one of"):
        sg.load(folder)
    loaded = sg.load(folder, trust=["my_saved_network"])
    assert loaded.network.arguments == {"width": 5}
    assert _same(loaded, model.eval())
    for silent in (mine.Silent(2), torch.nn.Linear(2, 2), lambda x, c: x):
        with pytest.raises(sg.ConfigError, match="cannot be written down as plain data"):
            sg.save(sg.ScoreModel(silent, sg.VP()), tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": {"_target_": "os.mkdir", "path": "owned"}}, "not one of"),
        ({"sde": {"_target_": "sde_gen.VP", "beta_max": "${oc.env:HOME}"}}, "plain data"),
        ({"sde": {"_target_": "sde_gen.DDIM"}}, "of no use"),
        ({"network": None}, "no network"),
        ({"data": {"shape": "x"}}, "does not describe its data"),
    ],
)
def test_what_is_loaded_is_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = sg.save(sg.ScoreModel(sg.MLP(2, hidden=8, layers=1), sg.VP()), "saved")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(sg.CheckpointError, match=message):
        sg.load(folder)
    assert not Path("owned").exists()


def test_what_cannot_be_loaded_is_said_in_one_sentence(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file.pt").touch()
    folder = sg.save(sg.load(run), tmp_path / "saved")
    (folder / "model.safetensors").write_bytes(b"junk")
    cases = [
        (tmp_path / "none", sg.MissingInputError, "no folder"),
        (tmp_path / "file.pt", sg.ConfigError, "is a file; give the folder"),
        (tmp_path, sg.MissingInputError, "no checkpoint in"),
        (3, sg.ConfigError, "path must be the folder"),
        (folder, sg.CheckpointError, "damaged"),
    ]
    for place, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            sg.load(place)
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(sg.ConfigError, match="weights must be"):
        sg.load(run, weights="best")
    with pytest.raises(sg.ConfigError, match="must be a ScoreModel with a network"):
        sg.save(sg.MLP(2), tmp_path)


def test_neither_hydra_nor_omegaconf_is_needed(run: Path) -> None:
    code = (
        "import sys, sde_gen as sg\nsg.load(sys.argv[1])\n"
        "print([name for name in ('hydra', 'omegaconf') if name in sys.modules])"
    )
    root = Path(sg.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, str(run)], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
