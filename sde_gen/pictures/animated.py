"""Pictures one after the other: a GIF by Pillow, or an MP4 by the ffmpeg that imageio-ffmpeg brings."""

import subprocess
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sde_gen.errors import ConfigError, MissingInputError
from sde_gen.files import publish

if TYPE_CHECKING:
    from PIL.Image import Image

_RATE = 30  # pictures a second in an MP4: few players like less


def save_animation(frames: Sequence["Image"], path: Path, seconds: float = 4.0) -> Path:
    """An animation of `seconds`, the last frame held for one second more: `.gif`, looping, or `.mp4`, H.264.

    Args:
        frames: of one size.
        path: ends in .gif or .mp4.
        seconds: how long it takes.

    Raises:
        ConfigError: no frames, or another ending.
        MissingInputError: an MP4 without imageio-ffmpeg.
        WriteError, OutputError: it could not be written.
    """
    if not frames:
        raise ConfigError("an animation needs at least one frame")
    if path.suffix == ".mp4":
        program = ffmpeg()
        return publish(path, lambda temporary: _mp4(program, frames, temporary, seconds), "the animation")
    if path.suffix != ".gif":
        raise ConfigError(f"an animation must end in .gif or .mp4, got {path.name}")
    each = max(20, round(1000 * seconds / len(frames)))
    times = [each] * (len(frames) - 1) + [1000]
    shades = [frame.convert("P") for frame in frames]
    return publish(
        path,
        lambda temporary: shades[0].save(
            temporary, format="GIF", save_all=True, append_images=shades[1:], duration=times, loop=0
        ),
        "the animation",
    )


def ffmpeg() -> str:
    """The program that writes MP4.

    Raises:
        MissingInputError: it is not installed.
    """
    try:
        return import_module("imageio_ffmpeg").get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        raise MissingInputError(
            "an MP4 needs imageio-ffmpeg, which is not installed; run pip install 'sde_gen[video]', or ask for a GIF "
            "(animation=true)"
        ) from None


def _mp4(program: str, frames: Sequence["Image"], path: Path, seconds: float) -> None:
    width, height = frames[0].size
    given = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", f"{len(frames) / seconds:.6f}"]
    # H.264 as all players read it has colours at half the resolution, hence even sides.
    filters = f"fps={_RATE},tpad=stop_mode=clone:stop_duration=1,pad=ceil(iw/2)*2:ceil(ih/2)*2"
    wanted = ["-vf", filters, "-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart"]
    done = subprocess.run(
        [program, "-y", "-v", "error", *given, "-i", "-", *wanted, str(path.absolute())],
        input=b"".join(frame.convert("RGB").tobytes() for frame in frames),
        capture_output=True,
        check=False,
    )
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip().rpartition("\n")[2] or f"{program} failed")
