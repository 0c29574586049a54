"""Where samples go: a folder, and the beginning of each file's name."""

from pathlib import Path

from sde_gen.config.schema import SampleConfig
from sde_gen.errors import OutputError
from sde_gen.files import make_folder
from sde_gen.jobs.common import fresh_folder
from sde_gen.training import Checkpoint


class Target:
    """Where the results go: a folder, and the beginning of each file's name."""

    def __init__(self, folder: str | Path, stem: str) -> None:
        self.folder, self.stem = Path(folder), stem

    def parts(self) -> list[str]:
        """What the constructor takes, as text."""
        return [str(self.folder), self.stem]

    @classmethod
    def of(cls, cfg: SampleConfig, checkpoint: Checkpoint) -> "Target":
        """From out=, or a fresh folder in the run; made before anything is computed that would have no place."""
        if cfg.out is not None:
            out = Path(str(cfg.out)).expanduser()
            if out.suffix == ".npz":
                return cls(make_folder(out.parent, "the output folder"), out.stem)
            return cls(make_folder(out, "the output folder"), "samples")
        label = str(cfg.sampler.get("_target_", "sampler")).rpartition(".")[2].lower()
        return cls(fresh_folder(checkpoint, "sampled", label), "samples")

    def check_free(self) -> None:
        """Refuse to write over what is there.

        Raises:
            OutputError: naming the first file.
        """
        files = (self.path(".npz"), self.report, self.path(".png"), self.path(".csv"), self.path("_png"))
        there = [path for path in files if path.exists()]
        if there:
            raise OutputError(f"{there[0]} is there already; give another out=PATH, or overwrite=true to replace it")

    @property
    def report(self) -> Path:
        """Where the report goes."""
        return self.path(".json") if self.stem != "samples" else self.folder / "report.json"

    def path(self, ending: str) -> Path:
        """`samples.npz` for ".npz", `samples_animation.gif` for "_animation.gif" and so on."""
        return self.folder / f"{self.stem}{ending}"
