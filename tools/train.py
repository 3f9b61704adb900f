"""Train a dual encoder from a recipe: `python tools/train.py configs/retrieval/synthetic_mini.yaml`."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import torch
import typer
from tqdm import tqdm

from videolm.datasets.annotations import Query
from videolm.datasets.synthetic import VOCABULARY, render_world
from videolm.encoders.presets import build_video_clip
from videolm.encoders.video_clip import VideoCLIP
from videolm.evaluation import evaluate, retrieval_scores, twin_accuracy
from videolm.pipeline import VideoLM, load
from videolm.recipes import Recipe, read_recipe
from videolm.text.tokenizer import Tokenizer, build_word_tokenizer
from videolm.training.data import TrainingSet, read_training_set
from videolm.training.loop import train
from videolm.types import Clip


def main(
    config: Annotated[Path, typer.Argument(help="A file of configs/.")],
    out: Annotated[Path | None, typer.Option(help="Default: runs/NAME.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="key.key=value of the recipe.")] = None,
    tensorboard: Annotated[bool, typer.Option(help="Event files beside log.jsonl.")] = False,
) -> None:
    """Train, or go on where a stopped run was. The model's folder is OUT/model."""
    recipe = read_recipe(config, override or ())
    folder = out or Path("runs") / recipe.name
    tokenizer = build_word_tokenizer(VOCABULARY, context_length=recipe.model.context_length)
    if tokenizer.vocab_size > recipe.model.vocab_size:
        raise typer.BadParameter(
            f"{config}: model.vocab_size ({recipe.model.vocab_size}) must be at least the {tokenizer.vocab_size} "
            "tokens of the world"
        )
    claim(folder, recipe)
    make_world(recipe)
    training = decode(recipe, "train", num_frames=recipe.data.cached_frames)
    # the very frames that the model looks at: of the denser ones no choice is the same for a video and its twin
    validation = decode(recipe, "val", num_frames=recipe.sampler.num_frames or recipe.data.cached_frames)
    torch.manual_seed(recipe.training.seed)
    model = build_video_clip(recipe.model).to("cuda" if torch.cuda.is_available() else "cpu")
    signals: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        # the step that is under way is finished and saved
        signal.signal(number, lambda caught, _: signals.append(caught))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{recipe.name}: {parameters:,} parameters, {len(training.ids):,} videos")
    train(
        model,
        tokenizer,
        training.videos,
        training.frames,
        recipe.training,
        preprocess=recipe.preprocessing,
        out=folder,
        validate=validator(validation, recipe, tokenizer),
        tensorboard=tensorboard,
        should_stop=lambda: bool(signals),
    )
    if signals:
        print(f"stopped; the same command goes on from {folder / 'checkpoint.pt'}")
        raise typer.Exit(130)
    # measured as it is stored, that is, with the weights rounded to float16
    assemble(model, tokenizer, recipe).save(folder / "model", dtype=torch.float16)
    report = evaluate(load(folder / "model"), recipe.data.folder)
    report.save(folder / "report")
    assemble(model, tokenizer, recipe, scores=report.scores()).save(folder / "model", dtype=torch.float16)
    print(report.markdown())
    print(f"the model is in {folder / 'model'}")


def make_world(recipe: Recipe) -> None:
    """Render what is missing of the recipe's world."""
    data = recipe.data
    with tqdm(total=data.num_videos, desc="render", unit="video", disable=None) as bar:
        render_world(data.folder, num_videos=data.num_videos, seed=data.seed, on_video=lambda _: bar.update())


def claim(folder: Path, recipe: Recipe) -> None:
    """Keep runs apart: a folder holds one recipe, and goes on with no other."""
    path, text = folder / "recipe.json", json.dumps(asdict(recipe), indent=2)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise typer.BadParameter(f"{folder} holds a run of another recipe (see {path}); choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def decode(recipe: Recipe, split: Literal["train", "val"], *, num_frames: int) -> TrainingSet:
    """A split with its frames, decoded on the first run; says what could not be read."""
    with tqdm(desc=f"decode {split}", unit="video", disable=None) as bar:
        training_set = read_training_set(
            recipe.data.folder,
            split=split,
            cached_frames=num_frames,
            image_size=recipe.preprocessing.image_size,
            on_video=lambda _: bar.update(),
        )
    for failure in training_set.failures:
        print(f"left out: {failure.path}: {failure.error}")
    return training_set


def assemble(
    model: VideoCLIP, tokenizer: Tokenizer, recipe: Recipe, *, scores: dict[str, float] | None = None
) -> VideoLM:
    """The network with all that makes files and sentences its inputs."""
    return VideoLM(
        model,
        shape=recipe.model,
        tokenizer=tokenizer,
        preprocess=recipe.preprocessing,
        sampler=recipe.sampler,
        name=recipe.name,
        trained=True,
        licence=recipe.licence,
        dtype=torch.float32,
        recipe=asdict(recipe),
        scores=scores,
        device=model.logit_scale.device,
    )


def validator(
    data: TrainingSet, recipe: Recipe, tokenizer: Tokenizer
) -> Callable[[VideoCLIP], dict[str, float]]:
    """Recall and twin accuracy on the cached frames of a split, of every video's first caption."""
    num_frames = data.frames.shape[1]
    clips = [
        Clip(frames, torch.arange(num_frames).double(), float(num_frames), video_id)
        for video_id, frames in zip(data.ids, data.frames, strict=True)
    ]
    queries = [Query(video.captions[0], i) for video, i in zip(data.videos, data.ids, strict=True)]
    row = {video_id: i for i, video_id in enumerate(data.ids)}

    def validate(model: VideoCLIP) -> dict[str, float]:
        assembled = assemble(model, tokenizer, recipe)
        videos = assembled.encode_videos(clips, batch_size=64, show_progress_bar=False)
        t2v, _ = retrieval_scores(assembled, videos, queries, row)
        twins = twin_accuracy(assembled, videos, data.twins, row)
        scores = {"r1": t2v.r1, "r5": t2v.r5} | {f"twins_{kind}": value for kind, value in twins.items()}
        print("validation: " + ", ".join(f"{name} {value:.1f}" for name, value in scores.items()), flush=True)
        return {f"val/{name}": value for name, value in scores.items()}

    return validate


if __name__ == "__main__":
    typer.run(main)
