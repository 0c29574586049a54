"""Data through the optional library `datasets`, from local files only."""

import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch

from sde_gen.data import hub
from sde_gen.errors import ConfigError, DataError, MissingInputError


def save(path: Path, columns: dict[str, list], schema: object = None) -> None:
    """A parquet file, written by pyarrow itself: `datasets.Dataset.from_dict` fails with some versions of it."""
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(columns, schema=schema), path)


def test_says_which_extra_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigError, match=r"pip install sde_gen\[hub\]"):
        hub("mnist")


@pytest.mark.filterwarnings("ignore")  # the library and its own dependencies warn at will
class TestWithDatasets:
    @pytest.fixture(autouse=True)
    def _offline(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)

    @pytest.fixture
    def table(self, tmp_path: Path) -> Path:
        rng = np.random.default_rng(0)
        path = tmp_path / "table.parquet"
        save(path, {"a": rng.random(20).tolist(), "b": rng.random(20).tolist(), "kind": ["x", "y"] * 10})
        return path

    def test_columns_of_numbers(self, table: Path) -> None:
        data = hub(table, label_column="kind", held_out=4)
        assert data.kind == "vector"
        assert data.train.shape == (16, 2)
        assert data.num_classes == 2
        assert hub(str(table)).num_classes == 0
        assert hub(table, column="a").shape == (1,)

    def test_parts(self, table: Path) -> None:
        data = hub(table, split="train[:15]", test_split="train[15:]")
        assert len(data.train) == 15
        assert len(data.test) == 5

    def test_columns_of_lists(self, tmp_path: Path) -> None:
        path = tmp_path / "lists.parquet"
        save(path, {"v": [[1.0, 2.0, 3.0], [4.0, 5.0, 7.0]], "n": [1, 2]})
        assert hub(path).shape == (3,)
        save(path, {"v": [[1.0, 2.0], [4.0]]})
        with pytest.raises(DataError, match="lists of numbers of one length"):
            hub(path)
        save(path, {"v": [[1.0, 2.0], [4.0, None]]})
        with pytest.raises(DataError, match="row 1, number 1 is missing"):
            hub(path)

    def test_images(self, tmp_path: Path) -> None:
        import datasets
        from PIL import Image

        pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
        features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
        encoded = []
        for image in map(Image.fromarray, pixels):
            image.save(stream := BytesIO(), format="PNG")
            encoded.append({"bytes": stream.getvalue(), "path": None})
        path = tmp_path / "images.parquet"
        save(path, {"image": encoded, "label": [0, 1, 0, 1, 0, 1]}, features.arrow_schema)
        data = hub(path, held_out=2)
        assert data.kind == "image"
        assert data.shape == (3, 5, 4)
        assert data.num_classes == 3
        found = data.transform.quantise(torch.cat([data.train, data.test])).permute(0, 2, 3, 1).byte().numpy()
        assert sorted(f.tobytes() for f in found) == sorted(p.tobytes() for p in pixels)
        assert hub(path, image_size=4, channels=1).shape == (1, 4, 4)

    def test_image_folder(self, tmp_path: Path) -> None:
        from PIL import Image

        for name in ("ant", "cat"):
            (tmp_path / "pictures" / name).mkdir(parents=True)
            for i in range(3):
                Image.new("L", (4, 4), 20 * i).save(tmp_path / "pictures" / name / f"{i}.png")
        data = hub(tmp_path / "pictures")
        assert data.shape == (1, 4, 4)
        assert data.num_classes == 2

    def test_refusals(self, table: Path, tmp_path: Path) -> None:
        for options, message in (
            ({"column": "c"}, "no column 'c'; the columns are a, b, kind"),
            ({"label_column": "c"}, "no column 'c'"),
            ({"split": "test"}, "split 'test'"),
            ({"image_size": 8}, "are for images"),
        ):
            with pytest.raises(ConfigError, match=message):
                hub(table, **options)
        broken = tmp_path / "broken.parquet"
        broken.write_bytes(b"PAR1 nonsense")
        with pytest.raises(DataError, match=r"broken.parquet: cannot be read"):
            hub(broken)
        (tmp_path / "data.xyz").write_text("x")
        with pytest.raises(ConfigError, match="must end in one of"):
            hub(tmp_path / "data.xyz")
        with pytest.raises(MissingInputError, match="no such file, folder or data set"):
            hub(str(tmp_path / "none"))
