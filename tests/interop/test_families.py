"""Networks of research codes: what is read of their files, and that a model of them says what they say."""

import math
import sys
import types
from pathlib import Path

import pytest
import torch

import sde_gen as sg
from sde_gen.interop.pickled import read_pickle
from sde_gen.interop.sniffing import family_of
from sde_gen.jobs.importing import run
from tests.interop.nets import states
from tests.interop.pickles import write_edm

X = states(4, 3)
LIST = "import_weights"


class Net(torch.nn.Module):
    """A network of (x, number)."""

    def __init__(self):
        super().__init__()
        self.fixed = torch.nn.Parameter(torch.full((3,), 0.1), requires_grad=False)
        self.weight = torch.nn.Parameter(torch.eye(3) * 0.7)

    def forward(self, x, t):
        return torch.tanh(x @ self.weight + self.fixed) * (1 + 0.001 * t[:, None])


class Dit(Net):
    """The same with labels."""

    def forward(self, x, t, y=None):
        return super().forward(x, t) + (0 if y is None else y[:, None].to(x.dtype))


def module():
    made = types.ModuleType("research_code")
    made.Net, made.Dit = Net, Dit
    return made


@pytest.fixture
def imported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "research_code", module())

    def do(origin, content, *more, cls="Net"):
        torch.save(content, tmp_path / "w.pt")
        arguments = [f"from={origin}:w.pt", "run=a", "trust=[research_code]", "data_shape=[3]", *more]
        config = sg.load_config(LIST, [*arguments, f"network._target_=research_code.{cls}"])
        run(config)
        return sg.load("runs/a", trust=["research_code"])

    return do


def weights(scale=1.0, prefix="module."):
    return {f"{prefix}{name}": tensor * scale for name, tensor in Net().state_dict().items()}


def averaged(scale=2.0):
    return [Net().weight.detach() * scale]


def net(scale=2.0):
    made = Net()
    made.load_state_dict({"fixed": made.fixed, "weight": made.weight.detach() * scale})
    return made


@pytest.mark.parametrize(("choice", "p"), [("vp", sg.VP()), ("subvp", sg.SubVP())])
def test_score_sde_with_averages_by_position(imported, choice, p):
    content = {"model": weights(), "ema": {"shadow_params": averaged()}, "step": 1}
    model = imported("score_sde", content, f"sde={choice}")
    t = torch.tensor(0.3, dtype=torch.float64)
    want = -net()(X, torch.full((4,), 0.3 * 999)) / float(p.sigma(t))
    torch.testing.assert_close(model(X, 0.3).score, want.detach(), rtol=2e-6, atol=1e-6)


def test_score_sde_ve(imported):
    model = imported("score_sde", {"model": weights(), "ema": {"shadow_params": averaged()}}, "sde=ve")
    sigma = float(sg.VE().sigma(torch.tensor(0.3, dtype=torch.float64)))
    torch.testing.assert_close(model(X, 0.3).score, net()(X, torch.full((4,), sigma)).detach(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("levels", [10, 50])
def test_ncsnv2_counts_its_levels_from_the_largest(imported, levels):
    content = [weights(), {}, 1, 2, {k.removeprefix("module."): v * 2 for k, v in weights().items()}]
    model = imported("ncsnv2", content, "sde=ncsn", f"sde.levels={levels}", "strip=")
    twice = Net()
    twice.load_state_dict({name: tensor * 2 for name, tensor in twice.state_dict().items()})
    want = twice(X, torch.full((4,), float(levels - 4))).detach()
    torch.testing.assert_close(model(X, 4 / levels).score, want, rtol=2e-6, atol=1e-6)


def test_the_table_of_denoising_diffusion_pytorch(imported):
    bars = torch.cos(torch.linspace(0.1, 1.5, 50, dtype=torch.float64)).square()
    inner = {**weights(prefix="model."), "betas": 1 - bars, "alphas_cumprod": bars}
    model = imported("ddp", {"model": inner, "ema": weights(2.0, "ema_model.model."), "step": 3})
    twice = Net()
    twice.load_state_dict({name: tensor * 2 for name, tensor in twice.state_dict().items()})
    want = twice(X, torch.full((4,), 19.0)).detach()
    torch.testing.assert_close(model.perturbation.alpha(model.perturbation.nodes).square(), bars, rtol=1e-12, atol=0)
    torch.testing.assert_close(model(X, 20 / 50).noise, want, rtol=2e-6, atol=1e-6)


def test_sit_counts_time_from_noise_to_data(imported):
    model = imported("sit", {"ema": weights(prefix="")}, "sde=flow")
    want = Net()(X, torch.full((4,), 0.7)).detach()  # x0 - eps
    torch.testing.assert_close(model(X, 0.3).denoised, X + 0.3 * want, rtol=2e-6, atol=1e-6)


def test_labels_by_their_name(imported):
    model = imported("dit", {"ema": weights(prefix="")}, "sde=ddpm", cls="Dit")
    label = torch.tensor([1, 2, 3, 4])
    torch.testing.assert_close(model(X, 0.5, label=label).noise - model(X, 0.5).noise,
                               label[:, None].float().expand(4, 3), rtol=0, atol=1e-5)  # fmt: skip


@pytest.mark.parametrize(
    ("origin", "content", "more", "message"),
    [
        ("score_sde", {"model": weights(), "ema": {"shadow_params": [torch.eye(3)] * 2}}, ["sde=vp"], "trains 1"),
        ("score_sde", {"model": weights(), "ema": {"shadow_params": [torch.eye(4)]}}, ["sde=vp"], "not \\(3, 3\\)"),
        ("ncsnv2", [weights(), {}], ["sde=vp"], "trained on sde=ncsn"),
        ("adm", weights(prefix=""), ["sde=vp"], "trained on a chain"),
        ("magic", weights(), [], "must be FORMAT:PATH with one of diffusers"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(imported, origin, content, more, message):
    with pytest.raises((sg.CheckpointError, sg.ConfigError), match=message):
        imported(origin, content, *more)


def test_sniffing_and_what_load_says(tmp_path):
    cases = {
        "score_sde": {"model": {}, "ema": {"shadow_params": []}, "optimizer": {}, "step": 1},
        "ncsnv2": [weights(), {}],
        "ddp": {"model": {"betas": torch.ones(3)}, "ema": {}, "version": "1"},
        "adm": {"input_blocks.0.0.weight": torch.ones(1), "time_embed.0.weight": torch.ones(1)},
        "dit": {"ema": {"x_embedder.proj.weight": torch.ones(1), "y_embedder.table.weight": torch.ones(1)}},
    }
    for family, content in cases.items():
        torch.save(content, tmp_path / "w.pt")
        assert family_of(tmp_path / "w.pt") == family
        with pytest.raises(sg.ConfigError, match=f"weights of {family}; make a run of it"):
            sg.load(tmp_path / "w.pt")


# -- pickles -----------------------------------------------------------------------------------------------------------


def test_a_pickle_of_edm_is_read_and_nothing_in_it_runs(tmp_path):
    weight = write_edm(tmp_path / "net.pkl", sigma_data=0.4)
    shell = read_pickle(tmp_path / "net.pkl")
    assert (shell.class_name, shell.arguments) == ("EDMPrecond", {"sigma_data": 0.4})
    assert shell.child("model").arguments == {"img_resolution": 8}
    assert torch.equal(shell.state_dict()["model.weight"], weight)
    assert family_of(tmp_path / "net.pkl") == "edm"


@pytest.mark.parametrize(
    ("name", "given", "p", "parameterization"),
    [
        ("EDMPrecond", {"sigma_data": 0.4}, sg.EDM(), sg.EDMPreconditioning(0.4)),
        ("VPPrecond", {"beta_d": 19.9, "beta_min": 0.1, "M": 1000}, sg.VP(0.1, 20.0),
         sg.NoisePrediction(sg.Convention(sg.VP(0.1, 20.0), "t", scale=999.0))),
        ("VEPrecond", {}, sg.VE(0.02, 100.0),
         sg.ScorePrediction(sg.Convention(sg.VE(0.02, 100.0), "log_sigma", offset=-math.log(2)))),
    ],
)  # fmt: skip
def test_preconditionings(tmp_path, name, given, p, parameterization):
    from sde_gen.interop.families import read

    write_edm(tmp_path / "net.pkl", name, **given)
    found = read("edm", tmp_path / "net.pkl", sg.VP(), sg.NoisePrediction())
    assert (found.process, found.parameterization) == (p, parameterization)


@pytest.mark.parametrize(
    ("name", "message"),
    [("CTPrecond", "CTPrecond, which is none of EDMPrecond"), ("iDDPMPrecond", "without its table of levels")],
)
def test_preconditionings_that_are_not_read(tmp_path, name, message):
    from sde_gen.interop.families import read

    write_edm(tmp_path / "net.pkl", name)
    with pytest.raises(sg.CheckpointError, match=message):
        read("edm", tmp_path / "net.pkl", sg.VP(), sg.NoisePrediction())


HOSTILE = {
    "posix.system": b"cposix\nsystem\n(S'touch owned'\ntR.",
    "os.system": b"cos\nsystem\n(S'touch owned'\ntR.",
    "builtins.eval": b'cbuiltins\neval\n(S\'open("owned","w")\'\ntR.',
    "builtins.getattr": b"cbuiltins\ngetattr\n(S'a'\nS'b'\ntR.",
    "subprocess.Popen": b"csubprocess\nPopen\n(S'touch owned'\ntR.",
    "torch.nn.modules.linear.Linear": b"ctorch.nn.modules.linear\nLinear\n(I3\nI3\ntR.",
    "torch.load": b"ctorch\nload\n(S'owned'\ntR.",
    "dotted": b"\x80\x04\x8c\x0bcollections\x8c\x20OrderedDict.__init__.__globals__\x93.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("net.pkl").write_bytes(HOSTILE[name])
    with pytest.raises(sg.CheckpointError, match="which no file of weights needs; nothing of it was run"):
        read_pickle(Path("net.pkl"))
    assert not Path("owned").exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"not a pickle", b"\x80\x04K\x01.", b"(" * 10_000])
def test_damaged_pickles(tmp_path, content):
    (tmp_path / "net.pkl").write_bytes(content)
    with pytest.raises(sg.CheckpointError, match=r"cannot be read|holds no network"):
        read_pickle(tmp_path / "net.pkl")


def test_without_diffusers_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(sg.MissingInputError, match=r"run pip install 'sde_gen\[diffusers\]'"):
        sg.interop.diffusers.Network("UNet2DModel", {})
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "UNet2DModel"]}')
    with pytest.raises(sg.MissingInputError, match=r"run pip install 'sde_gen\[diffusers\]'"):
        sg.load(tmp_path)
