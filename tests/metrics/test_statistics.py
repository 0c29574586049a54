"""Moments of features: the Fréchet distance of Gaussians, and files that others read and write."""

import os
import pickle
import pickletools

import numpy as np
import pytest
import torch

from sde_gen import metrics
from sde_gen.errors import DataError, MissingInputError
from sde_gen.metrics import Statistics


def _some(seed: int = 0, d: int = 3, features: str = "") -> Statistics:
    root = np.random.default_rng(seed).normal(size=(d, d))
    return Statistics(torch.tensor(np.arange(d) * 1.0), torch.from_numpy(root @ root.T), features)


def test_the_distance_of_gaussians_by_hand() -> None:
    """Commuting covariances: |m - n|^2 + sum (s - t)^2 over standard deviations along common axes."""
    turn = torch.linalg.qr(torch.from_numpy(np.random.default_rng(1).normal(size=(4, 4)))).Q
    s, t = torch.tensor([1.0, 2.0, 0.5, 0.0]).double(), torch.tensor([3.0, 2.0, 0.0, 1.5]).double()
    m, n = torch.tensor([1.0, 0.0, -2.0, 4.0]).double(), torch.tensor([0.0, 0.5, -2.0, 1.0]).double()
    a, b = (Statistics(mean, turn @ torch.diag(d**2) @ turn.T) for mean, d in ((m, s), (n, t)))
    expected = float((m - n).square().sum() + (s - t).square().sum())
    assert a.distance(b) == pytest.approx(expected, abs=1e-9)
    assert b.distance(a) == pytest.approx(expected, abs=1e-9)
    assert a.distance(a) == pytest.approx(0.0, abs=1e-9)


def test_the_distance_of_two_features_in_closed_form() -> None:
    """Of 2x2 matrices tr (S T)^(1/2) = sqrt(tr ST + 2 sqrt(det ST)), which need not commute."""
    a, b = _some(2, 2), _some(3, 2)
    product = a.covariance @ b.covariance
    across = (product.trace() + 2 * product.det().sqrt()).sqrt()
    assert a.distance(b) == pytest.approx(float((a.covariance + b.covariance).trace() - 2 * across), abs=1e-10)


def test_of_points_it_is_the_distance_of_the_points() -> None:
    x, y = (torch.from_numpy(np.random.default_rng(k).normal(size=(n, 5))) for k, n in ((0, 40), (1, 4)))
    found = Statistics.of(x, "mine")
    np.testing.assert_allclose(found.covariance.numpy(), np.cov(x.numpy(), rowvar=False), atol=1e-12)
    assert (found.features, found.count) == ("mine", 40)
    # Fewer points than features leave the covariance singular.
    assert found.distance(Statistics.of(y)) == pytest.approx(metrics.frechet_distance(x, y), rel=1e-7)


def test_files_come_back_and_those_of_others_are_read(tmp_path) -> None:
    mine = Statistics.of(torch.from_numpy(np.random.default_rng(0).normal(size=(9, 3))), "pixels")
    again = Statistics.read(mine.write(tmp_path / "own.npz"))
    assert torch.equal(again.mean, mine.mean)
    assert torch.equal(again.covariance, mine.covariance)
    assert (again.features, again.count) == ("pixels", 9)
    with np.load(tmp_path / "own.npz") as read:  # as pytorch-fid does
        mu, sigma = read["mu"][:], read["sigma"][:]
    np.savez(tmp_path / "fid.npz", mu=mu, sigma=sigma)
    np.savez(tmp_path / "adm.npz", mu=mu, sigma=sigma, mu_s=np.zeros(7), sigma_s=np.eye(7), arr_0=np.zeros(3, np.uint8))
    for name in ("fid", "adm"):
        found = Statistics.read(tmp_path / f"{name}.npz")
        assert (found.features, found.count) == ("", 0)
        assert found.distance(mine) == pytest.approx(0.0, abs=1e-9)


def test_what_is_not_comparable_is_refused(tmp_path) -> None:
    with pytest.raises(DataError, match="3 and 4 features do not compare"):
        _some().distance(_some(d=4))
    with pytest.raises(DataError, match="of pixels and of inception-v3 do not compare"):
        _some(features="pixels").distance(_some(features="inception-v3"))
    with pytest.raises(MissingInputError, match="reference_out="):
        Statistics.read(tmp_path / "none.npz")
    np.savez(tmp_path / "x.npz", x=np.zeros(3))
    np.savez(tmp_path / "objects.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "text.npz").write_text("mu")
    for name in ("x.npz", "objects.npz", "array.npy", "text.npz"):
        with pytest.raises(DataError, match="mu and sigma"):
            Statistics.read(tmp_path / name)
    for mean, covariance in (
        ([0.0], np.eye(2)), ([0.0, np.nan], np.eye(2)), ([0.0, 0.0], [[1.0, 0.5], [0.0, 1.0]]), ([], np.zeros((0, 0))),
    ):  # fmt: skip
        np.savez(tmp_path / "bad.npz", mu=mean, sigma=covariance)
        with pytest.raises(DataError, match="statistics"):
            Statistics.read(tmp_path / "bad.npz")
    with pytest.raises(DataError, match="at least 2"):
        Statistics.of(torch.zeros(1, 3))


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("old", [False, True], ids=["numpy2", "numpy1"])
def test_statistics_of_edm2_are_read_and_nothing_is_run(tmp_path, protocol: int, old: bool) -> None:
    a, b = _some(1, 3), _some(2, 4)
    entries = {name: {"mu": s.mean.numpy(), "sigma": np.asfortranarray(s.covariance.numpy())}
               for name, s in (("fid", a), ("fd_dinov2", b))}  # fmt: skip
    entries["fd_dinov2"]["sigma"] = entries["fd_dinov2"]["sigma"].astype(">f8")
    content = pickle.dumps(entries | {"num_images": np.int64(50)}, protocol)
    if old:  # names as numpy wrote them before its version 2; a length stands before each from protocol 4 on
        for part in (b"multiarray", b"numeric"):
            new, before = b"numpy._core." + part, b"numpy.core." + part
            content = content.replace(bytes([len(new)]) + new, bytes([len(before)]) + before).replace(new, before)
        content = _unframed(content)
    (tmp_path / "ref.pkl").write_bytes(content)
    for name, mine in (("", a), ("inception", a), ("dinov2", b), ("sde_gen.metrics.dinov2", b)):
        found = Statistics.read(tmp_path / "ref.pkl", name)
        assert torch.equal(found.mean, mine.mean)
        assert torch.equal(found.covariance, mine.covariance)


def _unframed(content: bytes) -> bytes:
    """A pickle without the lengths of its frames, which need not be there."""
    out, before = bytearray(), 0
    places = [place for code, _, place in pickletools.genops(content) if code.name == "FRAME"]
    for place in places:
        out += content[before:place]
        before = place + 9
    return bytes(out + content[before:])


class _Runs:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("was_run",)


@pytest.mark.parametrize(("held", "message"), [
    ({"fid": {"mu": _Runs(), "sigma": 1}}, r"it names .*mkdir, which no file of numbers needs"),
    ({"fid": {"mu": np.array([_Runs()])}}, "numpy dtype|mkdir"), ({"kid": {}}, "holds kid, and no fid"),
    ([1], "holds a list"), ({"fid": {"mu": np.zeros(3)}}, "no mu and sigma"),
    ({"fid": {"mu": np.zeros(3), "sigma": np.eye(4)}}, "statistics need"), (b"", "cannot be read"),
])  # fmt: skip
def test_a_pickle_of_anything_else(tmp_path, monkeypatch: pytest.MonkeyPatch, held: object, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    content = held if isinstance(held, bytes) else pickle.dumps(held)
    (tmp_path / "ref.pkl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        Statistics.read("ref.pkl")
    (tmp_path / "ref.pkl").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError):
        Statistics.read("ref.pkl")
    assert not (tmp_path / "was_run").exists()
