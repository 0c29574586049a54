"""`python -m sde_gen.evaluate`: what it computes, writes and refuses."""

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sde_gen as sg
import sde_gen.likelihood
from sde_gen.config import load_model
from sde_gen.config.restore import find_checkpoint, stored_data
from sde_gen.evaluation.moments import Reference
from sde_gen.metrics import METRICS, summary
from tests.commands.helpers import TINY, Command

QUICK = ("sampler=ddim", "sampler.steps=3", "num_samples=60")
FILES = ["evaluation.csv", "evaluation.json", "evaluation.npz", "evaluation.png"]


def test_distances_of_samples_that_it_draws(trained: Command) -> None:
    result = trained("evaluate", *QUICK, "likelihood=none", "seed=4", "chunk=25")
    assert result.code == 0, result.err
    assert result.err == ""
    assert "newest run: runs/tiny" in result.out
    (folder,) = Path("runs/tiny/evaluated").iterdir()
    assert folder.name.endswith("_step4")
    assert sorted(os.listdir(folder)) == FILES
    report = json.loads((folder / "evaluation.json").read_text())
    assert (report["nfe"], report["num_samples"], report["seed"], report["likelihood"]) == (3, 60, 4, {})
    checkpoint, _ = find_checkpoint("runs/tiny")
    data = stored_data(checkpoint)
    x = sg.DDIM(steps=3)(load_model(checkpoint), (60, 2), seed=4).x
    with np.load(folder / "evaluation.npz", allow_pickle=False) as arrays:
        np.testing.assert_allclose(arrays["model_x"], x.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(arrays["x"], data.transform.inverse(x).numpy(), rtol=1e-5, atol=1e-5)
    expected = summary(x, data.test, data.train, seed=4)
    assert [m["name"] for m in report["metrics"]] == list(METRICS)
    for got, wanted in zip(report["metrics"], expected, strict=True):
        assert got["value"] == pytest.approx(wanted.value, rel=1e-4, abs=1e-6), got["name"]
        assert got["real_against_real"] == pytest.approx(wanted.real_against_real, rel=1e-6, abs=1e-9)
    with (folder / "evaluation.csv").open(newline="") as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == list(METRICS)
    with Image.open(folder / "evaluation.png") as picture:
        assert picture.width == 1000
    for line in ("energy distance", "(real data:", "classifier accuracy", "written to"):
        assert line in result.out


@pytest.mark.parametrize("sde", ["vp", "ve"])
def test_likelihood_of_the_held_out_data(trained: Command, sde: str) -> None:
    under = () if sde == "vp" else (f"sde={sde}",)
    result = trained("evaluate", *under, "metrics=[]", "nll.samples=20", "nll.steps=30", "seed=5", "out=o")
    assert result.code == 0, result.err
    assert result.err == ""
    report = json.loads(Path("o/evaluation.json").read_text())["likelihood"]["ode"]
    checkpoint, _ = find_checkpoint("runs/tiny")
    data, model = stored_data(checkpoint), load_model(checkpoint)
    with np.load("o/evaluation.npz") as arrays:
        indices, log_prob = arrays["ode_index"], arrays["ode_log_prob"]
        assert "x" not in arrays
    assert len(set(indices)) == 20
    expected = sg.log_likelihood(
        model if sde == "vp" else model.under(sg.VE()), data.test[indices], steps=30, seed=5, transform=data.transform
    )
    np.testing.assert_allclose(log_prob, expected.log_prob.numpy(), rtol=1e-4, atol=1e-4)
    mean, error = expected.mean()
    assert (report["nll"], report["nll_error"]) == pytest.approx((-mean, error), rel=1e-4)
    assert report["bits_per_dim"] == pytest.approx(expected.mean_bits_per_dim()[0], rel=1e-4)
    assert report["exact_nll"] < report["nll"], "four steps teach little"
    assert report["nfe"] == 30
    with Path("o/evaluation.csv").open(newline="") as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == ["nll_ode", "bits_per_dim_ode"]
    assert "NLL by the ODE, nats" in result.out


def test_a_budget_that_no_sample_keeps_is_70(trained: Command) -> None:
    result = trained("evaluate", "metrics=[]", "nll.samples=3", "nll.steps=null", "nll.max_nfe=8", "out=o")
    assert result.code == 70
    assert len(result.err.strip().splitlines()) == 1
    assert os.listdir("o") == []


def test_both_likelihoods_of_a_chain_with_labels(command: Command) -> None:
    assert command("train", *TINY, "sde=ddpm", "sde.steps=100", "run=a", "class_conditional=true").code == 0
    result = command("evaluate", "likelihood=both", "metrics=[]", "nll.samples=20", "nll.steps=30", "out=o")
    assert result.code == 0, result.err
    assert result.out.count("it interpolates in lambda") == 1
    with np.load("o/evaluation.npz") as arrays:
        assert (arrays["vlb_index"] == arrays["ode_index"]).all()
        assert arrays["vlb_terms"].shape == arrays["vlb_times"].shape == (100,)
        terms = arrays["vlb_terms"].sum()
    report = json.loads(Path("o/evaluation.json").read_text())["likelihood"]
    assert list(report) == ["ode", "vlb"]
    assert 0 < terms < report["vlb"]["nll"]


def test_samples_that_were_drawn_before(trained: Command) -> None:
    assert trained("sample", *QUICK, "out=drawn", "metrics=false", "seed=4").code == 0
    result = trained("evaluate", "samples=drawn", "likelihood=none", "out=b", "metrics=[energy_distance]")
    assert result.code == 0, result.err
    assert "sampling" not in result.out
    report = json.loads(Path("b/evaluation.json").read_text())
    assert (report["num_samples"], report["samples"]) == (60, "drawn")
    data = stored_data(find_checkpoint("runs/tiny")[0])
    with np.load("drawn/samples.npz") as arrays:
        (expected,) = summary(arrays["model_x"], data.test, data.train, metrics=["energy_distance"])
    assert report["metrics"][0]["value"] == pytest.approx(expected.value)


def test_another_formulation(trained: Command) -> None:
    result = trained("evaluate", *QUICK, "likelihood=none", "sde=ve", "metrics=[mmd]", "out=o")
    assert result.code == 0, result.err
    report = json.loads(Path("o/evaluation.json").read_text())
    assert report["perturbation"].startswith("VE(")
    assert report["trained_under"].startswith("VP(")
    expected = sg.DDIM(steps=3)(load_model("runs/tiny").under(sg.VE()), (60, 2), seed=0).x
    with np.load("o/evaluation.npz") as arrays:
        np.testing.assert_allclose(arrays["model_x"], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_a_network_with_labels_is_given_those_of_the_held_out_data(command: Command) -> None:
    assert command("train", *TINY, "run=a", "class_conditional=true").code == 0
    result = command("evaluate", *QUICK, "likelihood=none", "metrics=[mmd]", "chunk=25", "out=o")
    assert result.code == 0, result.err
    checkpoint, _ = find_checkpoint("runs/a")
    labels = stored_data(checkpoint).test_labels
    assert labels is not None
    expected = sg.DDIM(steps=3)(load_model(checkpoint), (60, 2), seed=0, condition={"label": labels[:60]}).x
    with np.load("o/evaluation.npz") as arrays:
        np.testing.assert_allclose(arrays["model_x"], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_images_and_features_of_ones_own(command: Command) -> None:
    network = ("network=unet", "network.width=8", "network.multipliers=[1]", "network.attention=[]", "network.blocks=1")
    assert command("train", "data=digits", *network, *TINY[6:], "trainer.steps=1", "run=a").code == 0
    Path("mine_xyz.py").write_text("def make(n: int):\n    return lambda images: images.flatten(1)[:, :n]\n")
    mine = ("features=network", "features.module={_target_: mine_xyz.make, n: 9}", "features.name=corner")
    metrics = "metrics=[frechet_distance,energy_distance]"
    arguments = (*QUICK[:2], "num_samples=8", "likelihood=none", "out=o", metrics, *mine)
    refused = command("evaluate", *arguments)
    assert refused.code == 2
    assert "add trust=[mine_xyz]" in refused.err
    result = command("evaluate", *arguments, "trust=[mine_xyz]")
    assert result.code == 0, result.err
    assert "Fréchet distance (corner)" in result.out
    assert sorted(os.listdir("o")) == FILES


def test_a_sweep_makes_one_folder_for_each_job(trained: Command) -> None:
    result = trained("evaluate", "-m", "sampler=ddim,heun", *QUICK[1:], "likelihood=none", "metrics=[mmd]", "out=o")
    assert result.code == 0, result.err
    assert sorted(os.listdir("o")) == ["0", "1"]


ERRORS = [
    (["likelihood=exact"], 2, "one of ode, vlb, both, none"),
    (["likelihood=none", "metrics=[]"], 2, "leave nothing to do"),
    (["metrics=[mmdd]"], 2, "metrics=mmdd is not a metric (did you mean mmd?)"),
    (["num_samples=4"], 2, "num_samples=4 is too few for c2st, which needs 5"),
    (["num_samples=0"], 2, "num_samples must be a whole number, at least 1, got 0"),
    (["compared=1"], 2, "compared must be a whole number, at least 2, got 1"),
    (["timeout=0"], 2, "timeout must be a finite number in (0, 1e+06), got 0.0"),
    (["nll.probes=0"], 2, "nll: probes must be a whole number, at least 1, got 0"),
    (["nll.rtol=0"], 2, "nll: rtol must be a finite number in (0, 1), got 0.0"),
    (["nll.divergence=trace"], 2, "one of auto, exact, hutchinson"),
    (["nll.stepz=3"], 2, "did you mean nll.steps?"),
    (["features=resnet"], 2, "choose one of dinov2, efficientnet-lite0, inception, network, pixels"),
    (["protocol=fid-50k", "num_samples=100"], 2, "draws 50,000 samples, not 100"),
    (["protocol=fid-50k", "features=pixels"], 2, "looks at features=inception"),
    (["reference_out=stats.pkl"], 2, "must be a file that ends in .npz"),
    (["reference=none.npz", "metrics=[]", "likelihood=none", "num_samples=4"], 66, "no statistics at none.npz"),
    (["features=network"], 2, "features.module is missing"),
    (["run=a", "checkpoint=b"], 2, "not both"),
    (["seed=-1"], 2, "seed"),
    (["run=none"], 66, "no such folder"),
    ([], 66, "train one first"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), ERRORS, ids=lambda v: str(v)[:40])
def test_bad_input(command: Command, arguments: list[str], code: int, message: str) -> None:
    result = command("evaluate", *arguments)
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert result.code == code
    assert os.listdir() == []


def test_samples_that_cannot_be_used(trained: Command) -> None:
    np.save("shape.npy", np.zeros((3, 5)))
    result = trained("evaluate", "samples=shape.npy", "out=o")
    assert result.code == 65
    assert "must be numbers of shape (N, 2), got float64 (3, 5)" in result.err
    assert not Path("o").exists()


def test_data_that_changed_and_a_place_that_cannot_be_written(command: Command) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(60, 2)))
    arguments = [a for a in TINY if not a.startswith("data")]
    assert command("train", "data=array_file", "data.path=x.npy", *arguments, "run=a").code == 0
    Path("file").write_text("")
    result = command("evaluate", "out=file/x")
    assert result.code == 73
    assert "cannot create the output folder" in result.err
    np.save("x.npy", np.random.default_rng(1).normal(size=(60, 2)))
    result = command("evaluate")
    assert result.code == 65
    assert "is not what it was when the network was trained" in result.err


def test_stored_statistics_of_the_data_and_the_distance_from_them(trained: Command) -> None:
    done = trained("evaluate", "run=tiny", "likelihood=none", "metrics=[]", "reference_out=stats.npz")
    assert done.code == 0, done.err
    assert "statistics of pixels of 64 training samples written to stats.npz" in done.out
    data = stored_data(find_checkpoint("runs/tiny")[0])
    stored = sg.metrics.Statistics.read("stats.npz")
    np.testing.assert_allclose(stored.mean.numpy(), data.train.double().mean(0).numpy())
    quick = ("evaluate", "run=tiny", *QUICK, "likelihood=none", "metrics=[]")
    done = trained(*quick, "reference=stats.npz", "out=a")
    assert done.code == 0, done.err
    assert "FD-pixels from stats.npz" in done.out
    found = json.loads(Path("a/evaluation.json").read_text())["frechet"]
    with np.load("a/evaluation.npz") as arrays:
        expected = sg.metrics.frechet_distance(arrays["model_x"], data.train)
    assert found["value"] == pytest.approx(expected, rel=1e-6)
    assert (found["n"], found["reference_count"], found["name"]) == (60, 64, "frechet_distance_reference")
    with Path("a/evaluation.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert (row["title"], float(row["value"])) == ("FD-pixels from stats.npz", found["value"])
    np.savez("other.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    done = trained(*quick, "reference=other.npz", "out=b")
    assert done.code != 0
    assert "statistics of 2 and 2048 features do not compare" in done.err


def test_only_a_protocol_is_called_fid() -> None:
    """Other features under the name of Inception's: name and number of samples decide what a number is called."""
    data = sg.data.mixture(n=8, n_test=8)

    class Named(sg.metrics.Features):
        def __init__(self, name: str) -> None:
            self.name = name

        def __call__(self, x):
            return x.double()

    x = torch.randn(50_000, 2, generator=torch.Generator().manual_seed(0))
    for name, n, title in (("inception-v3", 50_000, "FID-50k"), ("inception-v3", 49_999, "FD-inception-v3"),
                           ("other", 50_000, "FD-other")):  # fmt: skip
        found = Reference(protocol="fid-50k").compared(x[:n], data, Named(name))
        assert found["title"] == f"{title} from the training data"
        assert (found["name"] == "fid_50k") == (title == "FID-50k")
    assert Reference().compared(x, data, Named("inception-v3"))["title"].startswith("FD-inception-v3")
