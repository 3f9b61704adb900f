"""From video files to embeddings, side by side with the usual way, in one run.

    python tools/bench/pipeline.py compare FOLDER_OF_NATURAL_VIDEOS --csv tools/bench/results/pipeline.csv

Makes 30-second clips of 640x360 out of the sources, with a key frame every 12 and every 250 frames, and a ViT-B/32
with random weights that every way loads. Each way runs in a process of its own, in turn with the others, over all
clips in a row:

    usual       OpenCV seeks to a frame every second, Pillow prepares each, 12 are kept; transformers' CLIPModel in
                float32, one video after another
    decord      decord reads the same 12 frames; the rest as above
    exact       videolm, the same 12 frames
    keyframes   videolm, the key frames nearest to 12 uniform times

Printed: wall seconds a video, the ratio to the usual way of the same round, what each part takes when it runs alone,
peak memory with the worker processes (shared pages once), and the cosine to the usual way's embeddings.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from measuring import add_rows, device_name

WAYS = ("usual", "decord", "exact", "keyframes")
PARTS = ("decode", "prepare", "tower")
NUM_FRAMES = 12
SECONDS, FPS, WIDTH, HEIGHT = 30, 30, 640, 360
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def compare(
    sources: Annotated[Path, typer.Argument(help="Folder of natural videos.")],
    work: Annotated[Path, typer.Option(help="Folder for clips and weights.")] = Path("runs/bench"),
    videos: Annotated[int, typer.Option(min=1, help="Clips of each kind.")] = 16,
    rounds: Annotated[int, typer.Option(min=1)] = 3,
    gop: Annotated[list[int], typer.Option(help="Frames from key frame to key frame.")] = [12, 250],  # noqa: B006
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Add the rows to this file.")] = None,
) -> None:
    """Compare the ways from file to embedding."""
    make_model(work / "model")
    for distance in gop:
        clips = make_clips(sources, work / f"gop{distance}", gop=distance, num_videos=videos)
        runs: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way in WAYS:
                runs[way].append(run_apart(way, work / "model", clips))
        rows = [summarise(way, runs, gop=distance) for way in WAYS]
        print_rows(
            rows, f"{len(clips)} videos, a key frame every {distance} frames, median of {rounds} rounds"
        )
        if csv_file is not None:
            append(csv_file, rows)


@app.command()
def overhead(
    sources: Annotated[Path, typer.Argument(help="Folder of natural videos.")],
    work: Annotated[Path, typer.Option(help="Folder for the clips.")] = Path("runs/bench"),
    rounds: Annotated[int, typer.Option(min=1)] = 10,
    gop: Annotated[list[int], typer.Option(help="Frames from key frame to key frame.")] = [12, 250],  # noqa: B006
) -> None:
    """What decoding in a worker process costs beside decoding in this one: the best round of each counts."""
    from videolm.video.isolation import open_decoding
    from videolm.video.samplers import Sampler
    from videolm.video.transforms import Resize
    from videolm.video.worker import ClipRequest, read_clip

    torch.set_num_threads(1)
    request = ClipRequest(Sampler("segment_middle", num_frames=NUM_FRAMES), Resize(224))
    for distance in gop:
        clips = [
            str(path) for path in make_clips(sources, work / f"gop{distance}", gop=distance, num_videos=8)
        ]
        here, worker = [], []
        with open_decoding(request, workers=1) as decoding:
            for _ in range(rounds + 1):
                started = time.perf_counter()
                for path in clips:
                    read_clip(path, request)
                here.append(time.perf_counter() - started)
                started = time.perf_counter()
                for path in clips:
                    decoding.submit(path)
                for _ in clips:
                    decoding.next_clip()
                worker.append(time.perf_counter() - started)
        # the first round starts the worker
        milliseconds = [1000 * min(times[1:]) / len(clips) for times in (here, worker)]
        print(
            f"a key frame every {distance} frames: {milliseconds[0]:.1f} ms a clip here, {milliseconds[1]:.1f} in a "
            f"worker ({milliseconds[1] / milliseconds[0] - 1:+.1%})"
        )


def summarise(way: str, runs: dict[str, list[dict[str, Any]]], *, gop: int) -> dict[str, Any]:
    """One row of the table: medians over the rounds, ratios within a round."""
    ratios = [usual["wall"] / run["wall"] for usual, run in zip(runs["usual"], runs[way], strict=True)]
    usual, vectors = (np.array(runs[name][0]["vectors"]) for name in ("usual", way))
    cosine = (usual * vectors).sum(axis=1)
    numbers = {key: statistics.median(run[key] for run in runs[way]) for key in ("wall", *PARTS, "peak_mb")}
    return {
        "gop": gop,
        "way": way,
        "dtype": runs[way][0]["dtype"],
        "videos": len(vectors),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_min": round(min(ratios), 2),
        "ratio_max": round(max(ratios), 2),
        **{key: round(value, 4) for key, value in numbers.items()},
        "cosine_min": round(float(cosine.min()), 6),
        "cosine_mean": round(float(cosine.mean()), 6),
    }


def print_rows(rows: Sequence[dict[str, Any]], title: str) -> None:
    print(f"\n{title}; seconds a video, each part alone on all cores")
    columns = ("way", "dtype", "ratio", "ratio_min", "wall", *PARTS, "peak_mb", "cosine_min", "cosine_mean")
    print("".join(f"{column:>12}" for column in columns))
    for row in rows:
        print("".join(f"{row[column]:>12}" for column in columns))


def append(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Add the rows with machine, versions and date."""
    libraries = ("torch", "transformers", "av", "decord", "opencv-python-headless")
    where = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": device_name(torch.device("cpu")),
        **{name: version(name) for name in libraries},
    }
    add_rows(path, [row | where for row in rows])


# The material


def make_model(folder: Path) -> None:
    """A ViT-B/32 with random weights in transformers' layout."""
    if (folder / "config.json").exists():
        return
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    CLIPModel(CLIPConfig()).save_pretrained(folder)


def make_clips(sources: Path, folder: Path, *, gop: int, num_videos: int) -> list[Path]:
    """Clips of one size, rate and length; each starts elsewhere in one of the sources, played to and fro."""
    from videolm.video.writer import write_video

    files = [path for path in sorted(sources.iterdir()) if path.suffix in {".mp4", ".mkv", ".mov", ".webm"}]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:03d}.mp4" for number in range(num_videos)]
    usable: Iterator[Tensor] = (frames for path in cycle(files) if (frames := read_source(path)) is not None)
    for number, path in enumerate(paths):
        if path.exists():
            continue
        frames = next(usable)
        forth_and_back = torch.cat([frames, frames[1:-1].flip(0)])
        start = 17 * number % len(forth_and_back)
        played = islice(cycle(forth_and_back), start, start + SECONDS * FPS)
        write_video(path, played, fps=Fraction(FPS), crf=23, gop=gop)
        print(f"made {path}")
    return paths


def read_source(path: Path) -> Tensor | None:
    """Up to 8 s of a video at the size and rate of the clips; None if it is too small, too short or damaged."""
    from videolm.video.readers import VideoError, open_video

    try:
        with open_video(path) as reader:
            seconds = min(reader.info.duration_seconds, 8.0)
            fits = reader.info.width * HEIGHT >= WIDTH * reader.info.height and reader.info.height >= HEIGHT
            if seconds < 3 or not fits:
                return None
            times = reader.info.start_seconds + (torch.arange(int(seconds * FPS)) + 0.5) / FPS
            frames = reader.frames_at(times, size=HEIGHT).frames
    except VideoError:
        return None
    left = (frames.shape[2] - WIDTH) // 2
    return frames[:, :, left : left + WIDTH]


# One way in a process of its own


def run_apart(way: str, model: Path, clips: Sequence[Path]) -> dict[str, Any]:
    """What `one-way` prints, and the peak memory of it and its worker processes."""
    command = [sys.executable, __file__, "one-way", way, str(model), *map(str, clips)]
    peak = 0.0
    # into a file: nobody reads a pipe while the memory is watched
    with tempfile.TemporaryFile("w+") as printed:
        with subprocess.Popen(command, stdout=printed) as process:
            while process.poll() is None:
                peak = max(peak, memory_of_tree(process.pid))
                time.sleep(0.3)
        if process.returncode:
            raise RuntimeError(f"{' '.join(command[:5])} ended with {process.returncode}")
        printed.seek(0)
        result: dict[str, Any] = json.loads(printed.read().splitlines()[-1])
    return result | {"peak_mb": peak}


def memory_of_tree(pid: int) -> float:
    """MB; a page that several processes share counts once in all."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        # it has just ended
        return 0.0
    own = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("Pss:")), 0.0)
    return own + sum(memory_of_tree(int(child)) for child in children)


@app.command(hidden=True)
def one_way(way: str, model: Path, clips: list[Path]) -> None:
    """Encode all clips after a warm-up, and print what it took as a line of JSON."""
    run = videolm_way(way, model) if way in ("exact", "keyframes") else transformers_way(way, model)
    run.encode(clips[:2])
    before = time.perf_counter()
    vectors = run.encode(clips)
    wall = (time.perf_counter() - before) / len(clips)
    parts = {part: seconds / 4 for part, seconds in run.parts(clips[:4]).items()}
    print(json.dumps({"wall": wall, "dtype": run.dtype, **parts, "vectors": vectors.tolist()}))


class Run:
    """A way: `encode` does the whole; `parts` says how many seconds each part takes alone."""

    def __init__(
        self,
        *,
        read: Callable[[Path], Any],
        prepare: Callable[[Any], Tensor],
        tower: Callable[[Tensor], np.ndarray],
        dtype: str,
        encode: Callable[[Sequence[Path]], np.ndarray] | None = None,
    ) -> None:
        self.read, self.prepare, self.tower, self.dtype = read, prepare, tower, dtype
        self.encode = encode or self.one_after_another

    def one_after_another(self, clips: Sequence[Path]) -> np.ndarray:
        return np.concatenate([self.tower(self.prepare(self.read(path))[None]) for path in clips])

    def parts(self, clips: Sequence[Path]) -> dict[str, float]:
        times = [time.perf_counter()]
        read = [self.read(path) for path in clips]
        times.append(time.perf_counter())
        prepared = [self.prepare(pictures) for pictures in read]
        times.append(time.perf_counter())
        self.tower(torch.stack(prepared))
        times.append(time.perf_counter())
        return {part: end - start for part, start, end in zip(PARTS, times, times[1:], strict=False)}


def transformers_way(way: str, folder: Path) -> Run:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def tower(pixels: Tensor) -> np.ndarray:
        features = [model.get_image_features(pixel_values=clip).pooler_output for clip in pixels]
        frames = F.normalize(torch.stack(features), dim=-1)
        return F.normalize(frames.mean(dim=1), dim=-1).numpy()

    def prepare(pictures: Sequence[np.ndarray]) -> Tensor:
        prepared = [prepare_with_pillow(picture) for picture in pictures]
        return torch.from_numpy(np.stack([prepared[i] for i in kept(len(prepared))]))

    return Run(
        read=read_opencv if way == "usual" else read_decord, prepare=prepare, tower=tower, dtype="float32"
    )


def kept(count: int) -> list[int]:
    """Which of `count` frames, one a second, are looked at."""
    if count <= NUM_FRAMES:
        return list(range(count))
    return [i * (count - 1) // (NUM_FRAMES - 1) for i in range(NUM_FRAMES)]


def read_opencv(path: Path) -> list[np.ndarray]:
    """A frame a second, each by a seek."""
    import cv2

    capture = cv2.VideoCapture(str(path))
    fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    pictures = []
    for second in range(int(count / fps)):
        capture.set(cv2.CAP_PROP_POS_FRAMES, round(second * fps))
        is_read, picture = capture.read()
        if not is_read:
            raise ValueError(f"{path}: OpenCV gives no frame at {second} s")
        pictures.append(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB))
    return pictures


def read_decord(path: Path) -> list[np.ndarray]:
    """The frames that the usual way keeps."""
    import decord

    reader = decord.VideoReader(str(path))
    fps = reader.get_avg_fps()
    seconds = kept(int(len(reader) / fps))
    return list(reader.get_batch([round(second * fps) for second in seconds]).asnumpy())


def prepare_with_pillow(picture: np.ndarray) -> np.ndarray:
    """CLIP's preprocessing."""
    from PIL import Image

    from videolm.video.transforms import CLIP_MEAN, CLIP_STD

    image = Image.fromarray(picture)
    scale = 224 / min(image.size)
    image = image.resize((int(image.width * scale), int(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    pixels = np.asarray(image.crop((left, top, left + 224, top + 224)), dtype=np.float32) / 255
    normalised = (pixels - np.array(CLIP_MEAN, dtype=np.float32)) / np.array(CLIP_STD, dtype=np.float32)
    return np.ascontiguousarray(normalised.transpose(2, 0, 1))


def videolm_way(way: str, folder: Path) -> Run:
    import videolm
    from videolm.video.samplers import Sampler
    from videolm.video.worker import ClipRequest, read_clip

    model = videolm.load(folder)
    model.sampler = Sampler("one_fps_then_uniform" if way == "exact" else "keyframes", num_frames=NUM_FRAMES)
    request = ClipRequest(model.sampler, model.preprocess.resize)

    def read(path: Path) -> Any:
        clip = read_clip(path, request)
        if isinstance(clip, Exception):
            raise clip
        return clip

    @torch.inference_mode()
    def tower(pixels: Tensor) -> np.ndarray:
        return model.model.encode_video(pixels.to(model.dtype)).embedding.numpy()

    return Run(
        read=read,
        prepare=lambda clip: model.preprocess(clip.frames),
        tower=tower,
        dtype=str(model.dtype).removeprefix("torch."),
        encode=lambda clips: np.asarray(model.encode_videos(clips, show_progress_bar=False)),
    )


if __name__ == "__main__":
    app()
