"""`python -m sde_gen.sample`: what it finds, draws and reports."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import sde_gen as sg
from sde_gen.config import load_model
from sde_gen.config.restore import find_checkpoint
from sde_gen.jobs import sampling
from sde_gen.samplers import Samples
from sde_gen.streaming import BlockStore
from tests.commands.helpers import TINY, Command

QUICK = ("sampler=ddim", "sampler.steps=3", "num_samples=60")


def test_what_it_writes(trained: Command) -> None:
    result = trained("sample", *QUICK, "animation=true", "forward=true", "seed=4")
    assert result.code == 0, result.err
    assert result.err == ""
    assert "newest run: runs/tiny" in result.out
    (folder,) = Path("runs/tiny/sampled").iterdir()
    names = ["report.json", "samples.npz", "samples.png", "samples_animation.gif", "samples_forward.png"]
    assert sorted(os.listdir(folder)) == names
    with np.load(folder / "samples.npz", allow_pickle=False) as arrays:
        x, model_x = arrays["x"], arrays["model_x"]
    assert x.shape == model_x.shape == (60, 2)
    checkpoint, _ = find_checkpoint("runs/tiny")
    model = load_model(checkpoint)
    assert model.shape == (2,)
    np.testing.assert_allclose(x, model.transform.inverse(torch.from_numpy(model_x)).numpy())
    expected = sg.DDIM(steps=3)(model, (60, 2), seed=4).x
    np.testing.assert_allclose(model_x, expected.numpy(), rtol=1e-5, atol=1e-6)
    report = json.loads((folder / "report.json").read_text())
    assert report["nfe"] == 3
    assert report["seed"] == 4
    assert report["step"] == 4
    assert report["compared"] == [60, 64]
    for name in ("energy_distance", "sliced_wasserstein", "svm_accuracy"):
        assert report[name] > 0
        assert report[f"{name}_real"] > 0
    assert report["energy_distance_real"] < report["energy_distance"], "four steps teach little"
    with Image.open(folder / "samples_animation.gif") as animation:
        assert animation.n_frames == 4
    for line in ("network calls", "energy distance", "(two sets of real data:", "seconds", "held-out loss"):
        assert line in result.out


def test_an_adaptive_solver_is_animated_too(trained: Command) -> None:
    result = trained("sample", "sampler=ode", "num_samples=4", "metrics=false", "animation=true", "out=ode")
    assert result.code == 0, result.err
    with Image.open("ode/samples_animation.gif") as animation:
        assert animation.n_frames == 32


def test_an_animation_as_a_film(trained: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ("sample", *QUICK[:2], "num_samples=4", "metrics=false", "animation=mp4", "out=o")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "imageio_ffmpeg", None)
        refused = trained(*asked)
    assert (refused.code, Path("o").exists()) == (66, False)
    assert "run pip install 'sde_gen[video]'" in refused.err
    wrong = trained(*asked, "animation=avi")
    assert "must be true or false or one of gif, mp4" in wrong.err
    pytest.importorskip("imageio_ffmpeg")
    assert trained(*asked).code == 0
    assert sorted(os.listdir("o")) == ["report.json", "samples.npz", "samples.png", "samples_animation.mp4"]


def test_the_newest_run_a_named_one_and_a_path(trained: Command) -> None:
    assert trained("train", *TINY, "run=later", "trainer.steps=2").code == 0
    quick = (*QUICK[:2], "num_samples=2", "metrics=false")
    assert "newest run: runs/later" in trained("sample", *quick).out
    assert "runs/tiny/checkpoints/step_00000004" in trained("sample", *quick, "run=tiny").out
    for path in ("runs/tiny", "runs/tiny/checkpoints", "runs/tiny/checkpoints/step_00000004"):
        result = trained("sample", *quick, f"checkpoint={path}", "out=o", "overwrite=true")
        assert result.code == 0, result.err
        assert "checkpoint runs/tiny/checkpoints/step_00000004" in result.out
    assert len(os.listdir("runs/tiny/sampled")) == 1


@pytest.mark.parametrize(("out", "names"), [("o", ["report.json", "samples.npz", "samples.png"])])
def test_out_is_a_folder(trained: Command, out: str, names: list[str]) -> None:
    assert trained("sample", *QUICK, "num_samples=3", f"out={out}").code == 0
    assert sorted(os.listdir(out)) == names


def test_what_is_there_is_replaced_only_when_asked(trained: Command) -> None:
    for name in ("mine.npz", "mine.json", "mine.png"):
        Path(name).write_text("precious")
        refused = trained("sample", *QUICK, "num_samples=3", "metrics=false", "out=mine.npz")
        assert refused.code == 73
        assert f"{name} is there already; give another out=PATH, or overwrite=true" in refused.err
        assert sorted(os.listdir()) == sorted(["runs", name])
        Path(name).unlink()
    first = ("sample", *QUICK, "num_samples=3", "metrics=false", "out=o")
    assert trained(*first).code == 0
    before = Path("o/samples.npz").read_bytes()
    assert trained(*first, "seed=5").code == 73
    assert Path("o/samples.npz").read_bytes() == before
    assert trained(*first, "seed=5", "overwrite=true").code == 0
    assert Path("o/samples.npz").read_bytes() != before


def test_out_may_name_the_array(trained: Command) -> None:
    assert trained("sample", *QUICK, "num_samples=3", "out=deep/er/mine.npz").code == 0
    assert sorted(os.listdir("deep/er")) == ["mine.json", "mine.npz", "mine.png"]


def test_a_sweep_makes_one_folder_for_each_job(trained: Command) -> None:
    result = trained("sample", "-m", "sampler=ddim,heun", *QUICK[1:2], "num_samples=2", "out=o", "metrics=false")
    assert result.code == 0, result.err
    assert sorted(os.listdir("o")) == ["0", "1"]
    assert trained("sample", "-m", "sampler=ddim", "seed=1,2", *QUICK[1:2], "num_samples=2").code == 0
    assert len(os.listdir("runs/tiny/sampled")) == 2


@pytest.mark.parametrize("weights", ["ema", "model"])
def test_another_formulation_and_other_weights(trained: Command, weights: str) -> None:
    result = trained("sample", *QUICK, "sde=ve", f"weights={weights}", "out=o", "metrics=false")
    assert result.code == 0, result.err
    report = json.loads(Path("o/report.json").read_text())
    assert report["perturbation"].startswith("VE(")
    expected = sg.DDIM(steps=3)(load_model("runs/tiny", weights=weights).under(sg.VE()), (60, 2), seed=0).x
    with np.load("o/samples.npz") as arrays:
        np.testing.assert_allclose(arrays["model_x"], expected.numpy(), rtol=1e-4, atol=1e-5)


def test_images_have_a_grid_an_animation_and_a_strip(command: Command) -> None:
    network = ("network=unet", "network.width=8", "network.multipliers=[1]", "network.attention=[]", "network.blocks=1")
    assert command("train", "data=digits", *network, *TINY[6:], "trainer.steps=1", "run=a").code == 0
    result = command("sample", *QUICK[:2], "num_samples=4", "animation=true", "forward=true", "pngs=true", "out=o")
    assert result.code == 0, result.err
    assert sorted(os.listdir("o/samples_png")) == [f"00000{i}.png" for i in range(4)]
    with np.load("o/samples.npz") as arrays:
        assert arrays["x"].shape == (4, 1, 8, 8)
        np.testing.assert_allclose(arrays["x"], (arrays["model_x"] + 1) * 8, rtol=1e-5, atol=1e-4)
        with Image.open("o/samples_png/000002.png") as one:
            expected = np.clip((arrays["model_x"][2, 0] + 1) / 2, 0, 1) * 255
            assert np.abs(np.asarray(one, dtype=np.float64) - expected).max() <= 0.51
    with Image.open("o/samples.png") as picture:
        assert picture.size == ((2 * 9 + 1) * 32, (2 * 9 + 1) * 32)
    report = json.loads(Path("o/report.json").read_text())
    assert "svm_accuracy" not in report, "too few samples for a classifier"


def test_pngs_are_of_images(trained: Command) -> None:
    result = trained("sample", *QUICK, "pngs=true")
    assert (result.code, "pngs=true is for images" in result.err) == (2, True), result.err


def test_samples_need_the_data_no_more(command: Command) -> None:
    np.save("x.npy", np.random.default_rng(0).normal(size=(50, 2)))
    arguments = [a for a in TINY if not a.startswith("data")]
    assert command("train", "data=array_file", "data.path=x.npy", *arguments, "run=a").code == 0
    Path("x.npy").unlink()
    result = command("sample", *QUICK, "out=o")
    assert result.code == 0, result.err
    assert "no comparison with data" in result.out
    np.save("x.npy", np.random.default_rng(1).normal(size=(50, 2)))
    result = command("sample", *QUICK, "out=o2")
    assert "not what it was" in result.out
    assert "energy_distance" not in json.loads(Path("o/report.json").read_text())


def test_many_blocks_give_what_one_gives_and_go_on_after_a_signal(
    trained: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    import signal

    from sde_gen.streaming import BlockStore

    quick = (*QUICK[:2], "num_samples=50", "metrics=false", "seed=3")
    assert trained("sample", *quick, "out=one").code == 0
    written: list[int] = []
    armed = [True]
    write = BlockStore.write

    def spy(store: BlockStore, index: int, samples: sg.Samples) -> None:
        write(store, index, samples)
        written.append(index)
        if len(written) == 3 and armed:
            armed.clear()
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(BlockStore, "write", spy)
    stopped = trained("sample", *quick, "out=two", "chunk=8")
    assert stopped.code == 75, stopped.err
    assert "stopped by SIGTERM between blocks" in stopped.err
    assert "out=two to continue" in stopped.err
    assert written == [0, 1, 2]
    assert [name.startswith(".partial-samples-") for name in os.listdir("two")] == [True]
    other = trained("sample", *quick[:-1], "seed=4", "out=two", "chunk=25")
    assert other.code == 0, "another job in the same folder has blocks of its own"
    del written[:]
    assert trained("sample", *quick, "out=two", "chunk=8").code == 73, "whose samples are not replaced unasked"
    done = trained("sample", *quick, "out=two", "chunk=8", "overwrite=true")
    assert done.code == 0, done.err
    assert written == [3, 4, 5, 6]
    assert sorted(os.listdir("two")) == ["report.json", "samples.npz", "samples.png"]
    with np.load("one/samples.npz") as one, np.load("two/samples.npz") as two:
        for name in ("x", "model_x"):
            np.testing.assert_allclose(two[name], one[name], rtol=1e-5, atol=1e-6)
            assert two[name].dtype == one[name].dtype


def test_the_best_checkpoint(trained: Command) -> None:
    result = trained("sample", *QUICK[:2], "num_samples=2", "metrics=false", "best=true", "out=o")
    assert result.code == 0, result.err
    plain = ("run=plain", "trainer.keep_best=0", "trainer.eval_every=0", "trainer.max_seconds=null")
    assert trained("train", *TINY, *plain).code == 0
    state = Path("runs/plain/checkpoints/step_00000004/state.json")
    assert json.loads(state.read_text())["held_out_loss"] is not None, "the last step is always measured"


def test_labels_run_on_from_block_to_block(command: Command) -> None:
    assert command("train", *TINY, "run=c", "class_conditional=true").code == 0
    arguments = ("sampler=ddim", "sampler.steps=2", "num_samples=40", "metrics=false", "label=cycle")
    assert command("sample", *arguments, "out=a", "chunk=7").code == 0
    assert command("sample", *arguments, "out=b").code == 0
    with np.load("a/samples.npz") as a, np.load("b/samples.npz") as b:
        seen = np.flatnonzero(sg.data.mixture(n=64, n_test=64).description.counts)  # the classes that were trained
        assert len(seen) < 16
        np.testing.assert_array_equal(a["label"], np.resize(seen, 40))
        np.testing.assert_array_equal(b["label"], a["label"])
        np.testing.assert_allclose(a["x"], b["x"], rtol=1e-4, atol=1e-5)


def test_a_label_that_was_never_trained_is_not_the_default(command: Command) -> None:
    quick = ("sampler=ddim", "sampler.steps=2", "num_samples=20", "metrics=false")
    for dropout, run in (("0.0", "whole"), ("0.2", "dropped")):
        assert (
            command("train", *TINY, f"run={run}", "class_conditional=true", f"objective.label_dropout={dropout}").code
            == 0
        )
        for label in ("", "label=cycle", "label=none"):
            result = command("sample", *quick, f"run={run}", f"out={run}{label}", *filter(None, [label]))
            never = run == "whole" and label == "label=none"
            assert result.code == (2 if never else 0), result.err
            assert ("label_dropout" in result.err) == never
            assert ("classes in turn" in result.out) == (not label and run == "whole"), result.out
    x = {name: np.load(f"{name}/samples.npz")["x"] for name in
         ("whole", "wholelabel=cycle", "dropped", "droppedlabel=none", "droppedlabel=cycle")}  # fmt: skip
    np.testing.assert_array_equal(x["whole"], x["wholelabel=cycle"])
    np.testing.assert_array_equal(x["dropped"], x["droppedlabel=none"])
    assert (x["dropped"] != x["droppedlabel=cycle"]).any()


def test_pictures_and_distances_take_as_many_samples_as_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "_HEAD_NUMBERS", 60)
    monkeypatch.setattr(sampling, "_FEWEST", 8)
    monkeypatch.setattr(sampling, "_MOST", 32)
    for size, expected in ((1, 32), (4, 15), (20, 8)):
        store = BlockStore(tmp_path / f"{size}", {}, 50, (size,), 7)
        x = torch.arange(50.0)[:, None].expand(50, size)
        with store.open():
            for index in range(len(store)):
                first, count = store.rows(index)
                store.write(index, Samples(x[first : first + count], nfe=3 + index, seconds=0.5))
            head, nfe, seconds = sampling._summary(store)
        assert torch.equal(head, x[:expected])
        assert (nfe, seconds) == (10, 4.0)
