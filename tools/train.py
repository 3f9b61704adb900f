"""Train from a recipe: `python tools/train.py configs/retrieval/synthetic_mini.yaml`.

A dual encoder, or, where the recipe has a `head`, a speaker on the towers of a model that is there already.
"""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from torch import nn
from tqdm import tqdm
from transformers import AutoTokenizer

from videolm.datasets.annotations import Query, exists
from videolm.datasets.msrvtt import Split
from videolm.datasets.msrvtt_qa import read_split as read_questions
from videolm.datasets.protocol import protocol_of
from videolm.datasets.synthetic import VOCABULARY, attribute_scores, read_scenes, render_world
from videolm.encoders.presets import CLIPShape, build_video_clip
from videolm.encoders.video_clip import VideoCLIP
from videolm.evaluation import evaluate, retrieval_scores, twin_accuracy
from videolm.heads.captioning import PrefixLM
from videolm.heads.presets import SpeakerShape, build_speaker, with_config
from videolm.pipeline import VideoLM, load
from videolm.pipeline.speaking import Speaker
from videolm.recipes import Recipe, SpeakerRecipe, Task, WorldData, read_recipe
from videolm.text.prompts import PromptTokenizer
from videolm.text.tokenizer import Tokenizer, build_word_tokenizer
from videolm.training.data import TrainingSet, read_training_set
from videolm.training.naming import NamedAnswer, Naming, train_naming
from videolm.training.retrieval import train
from videolm.training.speaking import Lesson, train_speaker
from videolm.types import Clip
from videolm.video.transforms import Preprocess

BENCHMARKS = {"captioning": "msrvtt-captions", "videoqa": "msrvtt-qa"}


def main(
    config: Annotated[Path, typer.Argument(help="A file of configs/.")],
    out: Annotated[Path | None, typer.Option(help="Default: runs/NAME.")] = None,
    override: Annotated[list[str] | None, typer.Option("--set", help="key.key=value of the recipe.")] = None,
    tensorboard: Annotated[bool, typer.Option(help="Event files beside log.jsonl.")] = False,
) -> None:
    """Train, or go on where a stopped run was. The model's folder is OUT/model."""
    recipe = read_recipe(config, override or ())
    folder = out or Path("runs") / recipe.name
    run = dual_encoder if isinstance(recipe, Recipe) else speaker
    print(run(recipe, folder, tensorboard).markdown())
    print(f"the model is in {folder / 'model'}")


@contextmanager
def stopping(folder: Path) -> Generator[Callable[[], bool], None, None]:
    """While steps are made, Ctrl-C ends the run with the step under way finished and saved; elsewhere at once."""
    signals: list[int] = []
    before = {
        number: signal.signal(number, lambda caught, _: signals.append(caught))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield lambda: bool(signals)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if signals:
        print(f"stopped; the same command goes on from {folder / 'checkpoint.pt'}")
        raise typer.Exit(130)


def dual_encoder(recipe: Recipe, folder: Path, tensorboard: bool) -> Any:
    """Train a tower of videos and one of texts; the report."""
    tokenizer = world_tokenizer(recipe.model)
    claim(folder, asdict(recipe))
    make_world(recipe.data)
    training = decode(recipe.data, recipe.preprocessing, "train", num_frames=recipe.data.cached_frames)
    # the very frames that the model looks at: of the denser ones no choice is the same for a video and its twin
    num_frames = recipe.sampler.num_frames or recipe.data.cached_frames
    validation = decode(recipe.data, recipe.preprocessing, "val", num_frames=num_frames)
    torch.manual_seed(recipe.training.seed)
    model = build_video_clip(recipe.model).to("cuda" if torch.cuda.is_available() else "cpu")
    print(f"{recipe.name}: {count_parameters(model):,} parameters, {len(training.ids):,} videos")
    learn_names(model, recipe.naming, recipe.data, training, recipe.preprocessing, folder)
    with stopping(folder) as should_stop:
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
            should_stop=should_stop,
        )
    # measured as it is stored, that is, with the weights rounded to float16
    assemble(model, tokenizer, recipe).save(folder / "model", dtype=torch.float16)
    report = evaluate(load(folder / "model"), recipe.data.folder)
    report.save(folder / "report")
    assemble(model, tokenizer, recipe, scores=report.scores()).save(folder / "model", dtype=torch.float16)
    return report


def speaker(recipe: SpeakerRecipe, folder: Path, tensorboard: bool) -> Any:
    """Train a head that speaks on a model's towers; the report."""
    data = recipe.data
    torch.manual_seed(recipe.training.seed)
    model = start(recipe)
    # with the weights that it starts from: a head that goes on must not find other towers
    claim(folder, asdict(recipe) | {"weights_sha256": model.info.weights_sha256})
    make_world(data)
    training = decode(data, model.preprocess, recipe.split, num_frames=data.cached_frames)
    head = build_speaker(
        recipe.head, token_width=model.shape.vision_width, text_width=model.shape.joint_dim
    ).to(model.device)
    if recipe.head_from is not None:
        go_on_from(head, model, recipe.head_from)
    words, shape = prompt_tokenizer(model, recipe.head), with_config(recipe.head)
    made = Speaker(head, words, shape, recipe=asdict(recipe))
    lessons = write_lessons(recipe.task, recipe, made, training, "train")
    questions: list[Lesson] = []
    if recipe.training.questions_per_video:
        questions = write_lessons("videoqa", recipe, made, training, "train")
    refuse_unknown_words(made, [*lessons, *questions])
    print(f"{recipe.name}: {count_parameters(head):,} parameters, {len(lessons) + len(questions):,} texts")
    if recipe.towers is not None:
        learn_names(model.model, recipe.towers.naming, data, training, model.preprocess, folder)
    with stopping(folder) as should_stop:
        train_speaker(
            head,
            model.model,
            lessons,
            training.frames,
            recipe.training,
            prompt_tokenizer=words,
            text_tokenizer=model.tokenizer,
            twins={row: video.twin for row, video in enumerate(training.videos) if video.twin is not None},
            preprocess=model.preprocess,
            out=folder,
            questions=questions,
            validate=listener(model, made, recipe) if is_world(data) else None,
            tensorboard=tensorboard,
            should_stop=should_stop,
        )
    # measured as it is stored, that is, with the weights rounded to float16
    spoken = speaking(model, made, recipe)
    spoken.save(folder / "model", dtype=torch.float16)
    stored = load(folder / "model")
    protocol = protocol_of(BENCHMARKS[recipe.task], split=recipe.test_split)
    report = evaluate(stored, data.folder, protocol=protocol)
    report.save(folder / "report")
    scores = model.info.scores
    if recipe.training.trains_towers:
        found = evaluate(stored, data.folder, protocol=protocol_of("msrvtt"))
        found.save(folder / "report_retrieval")
        print(found.markdown())
        scores = found.scores()
    made = replace(made, scores=report.scores())
    speaking(model, made, recipe, scores=scores).save(folder / "model", dtype=torch.float16)
    return report


def learn_names(
    model: VideoCLIP,
    stages: Sequence[Naming],
    data: WorldData,
    training: TrainingSet,
    preprocess: Preprocess,
    folder: Path,
) -> None:
    """The image tower learns the answers to the questions about the videos, one stage after the other."""
    if not stages:
        return
    row = {video_id: i for i, video_id in enumerate(training.ids)}
    answers = [
        NamedAnswer(row[q.video_id], q.type, q.answer, q.question)
        for q in read_questions(data.folder, "train")
        if q.video_id in row
    ]
    for number, stage in enumerate(stages):
        with stopping(folder) as should_stop:
            train_naming(
                model.vision,
                answers,
                training.frames,
                stage,
                preprocess=preprocess,
                out=folder / f"naming{number}",
                should_stop=should_stop,
            )


def go_on_from(head: PrefixLM, model: VideoLM, task: str) -> None:
    """Give a new head the weights of one that the model has."""
    if task not in model.heads:
        raise typer.BadParameter(
            f"head_from ({task!r}) is no head of {model.info.name}: {sorted(model.heads)}"
        )
    try:
        head.load_state_dict(model.heads[task].head.state_dict())
    except RuntimeError as error:
        raise typer.BadParameter(f"head_from ({task!r}) has another shape than head: {error}") from error


def start(recipe: SpeakerRecipe) -> VideoLM:
    """The towers that a recipe names, or new ones."""
    if recipe.model is not None:
        return load(recipe.model, dtype=torch.float32)
    assert recipe.towers is not None
    towers = recipe.towers
    return VideoLM(
        build_video_clip(towers.model),
        shape=towers.model,
        tokenizer=world_tokenizer(towers.model),
        preprocess=towers.preprocessing,
        sampler=towers.sampler,
        name=recipe.name,
        trained=False,
        licence=towers.licence,
        dtype=torch.float32,
    )


def world_tokenizer(shape: CLIPShape) -> Tokenizer:
    """The words of the world; an error where the text tower has no room for them."""
    tokenizer = build_word_tokenizer(VOCABULARY, context_length=shape.context_length)
    if tokenizer.vocab_size > shape.vocab_size:
        raise typer.BadParameter(
            f"model.vocab_size ({shape.vocab_size}) must be at least the {tokenizer.vocab_size} tokens of the world"
        )
    return tokenizer


def speaking(
    model: VideoLM, made: Speaker, recipe: SpeakerRecipe, *, scores: dict[str, Any] | None = None
) -> VideoLM:
    """The model with its new head; with the others too, unless their towers are no longer what they learned from.

    Towers that learned have the name and the recipe of this run, with that of their start inside.
    """
    info, learned = model.info, recipe.training.trains_towers
    return VideoLM(
        model.model,
        shape=model.shape,
        tokenizer=model.tokenizer,
        preprocess=model.preprocess,
        sampler=model.sampler,
        name=recipe.name if learned else info.name,
        trained=True,
        licence=info.licence,
        dtype=torch.float32,
        recipe=asdict(recipe) | {"start": info.recipe} if learned else info.recipe,
        scores=scores,
        device=model.device,
        heads=({} if learned else model.heads) | {recipe.task: made},
    )


def refuse_unknown_words(made: Speaker, lessons: Sequence[Lesson]) -> None:
    """A head would learn to say the unknown token; raises ValueError that names the words, the most frequent first."""
    texts = Counter(text for lesson in lessons for text in (lesson.prompt, lesson.target))
    unknown: Counter[str] = Counter()
    for text, count in texts.items():
        unknown.update(dict.fromkeys(made.tokenizer.unknown_words(text), count))
    if unknown:
        words = ", ".join(repr(word) for word, _ in unknown.most_common(10))
        raise ValueError(
            f"{len(unknown)} words are not in the vocabulary, {words} among them: train the towers with a vocabulary "
            "that has them, or give the head a language model with its own (head.lm.name)"
        )


def prompt_tokenizer(model: VideoLM, shape: SpeakerShape) -> PromptTokenizer:
    """The vocabulary of the language model: its own where it has a name, else the text tower's."""
    if "name" not in shape.lm:
        return model.prompt_tokenizer(shape)
    return PromptTokenizer(
        AutoTokenizer.from_pretrained(shape.lm["name"]).backend_tokenizer,
        start_token_id=shape.start_token_id,
        eos_token_id=shape.eos_token_id,
        pad_token_id=shape.pad_token_id,
    )


def is_world(data: WorldData) -> bool:
    return (Path(data.folder) / "world.json").exists()


def make_world(data: WorldData) -> None:
    """Render what is missing of a recipe's world; a folder with an annotation of another kind is left alone."""
    if not is_world(data) and exists(Path(data.folder) / "MSRVTT_data.json"):
        return
    with tqdm(total=data.num_videos, desc="render", unit="video", disable=None) as bar:
        render_world(data.folder, num_videos=data.num_videos, seed=data.seed, on_video=lambda _: bar.update())


def claim(folder: Path, recipe: dict[str, Any]) -> None:
    """Keep runs apart: a folder holds one recipe, and goes on with no other."""
    path, text = folder / "recipe.json", json.dumps(recipe, indent=2)
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise typer.BadParameter(f"{folder} holds a run of another recipe (see {path}); choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def decode(data: WorldData, preprocess: Preprocess, split: Split, *, num_frames: int) -> TrainingSet:
    """A split with its frames, decoded on the first run; says what could not be read."""
    with tqdm(desc=f"decode {split}", unit="video", disable=None) as bar:
        training_set = read_training_set(
            data.folder,
            split=split,
            cached_frames=num_frames,
            image_size=preprocess.image_size,
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
        device=model.scale.device,
    )


def write_lessons(
    task: Task, recipe: SpeakerRecipe, made: Speaker, data: TrainingSet, split: Literal["train", "val"]
) -> list[Lesson]:
    """What a speaker learns of the videos of a split: every caption, or every question with its answer."""
    row = {video_id: i for i, video_id in enumerate(data.ids)}
    if task == "captioning":
        prompt = recipe.head.caption_prompt
        return [
            Lesson(row[v], prompt, text, question=prompt, difficulty=video.difficulty)
            for v, video in zip(data.ids, data.videos, strict=True)
            for text in video.captions
        ]
    return [
        Lesson(
            row[q.video_id],
            made.question_prompt(q.question),
            q.answer,
            q.type,
            made.clean(q.question),
            data.videos[row[q.video_id]].difficulty,
        )
        for q in read_questions(recipe.data.folder, split)
        if q.video_id in row
    ]


def listener(model: VideoLM, made: Speaker, recipe: SpeakerRecipe) -> Callable[[nn.Module], dict[str, float]]:
    """What a speaker gets right of the validation videos of a world: claims of captions, or answers by kind."""
    num_frames = recipe.training.num_frames[-1].value
    data = decode(recipe.data, model.preprocess, "val", num_frames=num_frames)
    lessons = write_lessons(recipe.task, recipe, made, data, "val")
    scenes = read_scenes(recipe.data.folder, "val")
    if recipe.task == "captioning":
        lessons = [next(lesson for lesson in lessons if lesson.row == row) for row in range(len(data.ids))]

    def validate(_: nn.Module) -> dict[str, float]:
        model.model.eval()
        said = [
            text for first in range(0, len(lessons), 128) for text in listen(lessons[first : first + 128])
        ]
        if recipe.task == "captioning":
            counts = attribute_scores(dict(zip(data.ids, said, strict=True)), scenes)
            parts = ((counts.all, ""), (counts.by_things.get(1, {}), ", one thing"))
            recalls = {
                f"{name}{suffix}": rows[name].recall
                for rows, suffix in parts
                for name in ("colour", "shape", "motion", "order")
                if name in rows
            }
            scores = {name: 100 * recall for name, recall in recalls.items() if recall is not None}
        else:
            right: dict[str, list[bool]] = {}
            for lesson, text in zip(lessons, said, strict=True):
                for kind in (lesson.kind, "all"):
                    right.setdefault(kind, []).append(text == lesson.target)
            scores = {kind: 100 * sum(rows) / len(rows) for kind, rows in sorted(right.items())}
        print("validation: " + ", ".join(f"{name} {value:.1f}" for name, value in scores.items()), flush=True)
        return {f"val/{name}": value for name, value in scores.items()}

    def listen(part: Sequence[Lesson]) -> list[str]:
        frames = data.frames[torch.tensor([lesson.row for lesson in part])]
        pixels = model.preprocess(frames.flatten(0, 1).to(model.device))
        times = torch.arange(float(num_frames), device=model.device).expand(len(part), -1)
        video = model.model.encode_video(pixels.view(*frames.shape[:2], *pixels.shape[1:]), pts_seconds=times)
        words = None
        if made.reads_question and model.tokenizer is not None:
            ids, mask = model.tokenizer([lesson.question for lesson in part])
            words = model.model.encode_text(ids.to(model.device), mask.to(model.device))
        return made.write(video, [lesson.prompt for lesson in part], words, num_beams=1)

    return validate


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


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
