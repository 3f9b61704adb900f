from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
import warnings
from ast import literal_eval
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.data import data_path
from tests.tiny import speaking_model, tiny_model, tiny_speaker, write_clip
from videolm.heads.presets import ConnectorShape, build_speaker
from videolm.heads.videoqa import EmbeddedCandidates
from videolm.pipeline import VideoLM, answers, spans
from videolm.pipeline.speaking import Speaker
from videolm.types import Answer, Caption, Clip, Failure, VideoTokens
from videolm.video import isolation
from videolm.video.readers import VideoError, open_video
from videolm.video.samplers import segment_middle
from videolm.video.worker import ClipRequest
from videolm.video.writer import write_video

TWO = ["green", "blue circle"]


@pytest.fixture(scope="module")
def model() -> VideoLM:
    return speaking_model()


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [write_clip(folder / f"{seed}.mp4", seed=seed, num_frames=30) for seed in range(4)]


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bad") / "random.mp4"
    path.write_bytes(bytes(range(256)) * 8)
    return path


def clip_of(path: Path, *, num_frames: int = 3) -> Clip:
    with open_video(path) as reader:
        return reader.frames_at(segment_middle(reader.info, num_frames=num_frames))


def noise(num_frames: int, *, seed: int) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (num_frames, 16, 16, 3), dtype=torch.uint8, generator=generator)
    return Clip(frames, torch.arange(num_frames, dtype=torch.float64) / 3, num_frames / 3, f"noise {seed}")


def by_hand(model: VideoLM, path: Path) -> str:
    """The greedy caption of a file, with one forward a token and no cache."""
    speaker, clip = model.heads["captioning"], clip_of(path)
    with torch.inference_mode():
        video = model.model.encode_video(
            model.preprocess(clip.frames)[None], pts_seconds=clip.pts_seconds[None].float()
        )
        prefix = speaker.head.prefix(video)
        ids = torch.tensor([[3]])
        for _ in range(6):
            logits = speaker.head(prefix, ids, torch.ones_like(ids, dtype=torch.bool))
            ids = torch.cat([ids, logits[:, -1:].argmax(dim=2)], dim=1)
    return speaker.tokenizer.decode(ids[:, 1:])[0]


def count_frames_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Fills with the path and the number of frames of every request that this process decodes."""
    read: list[tuple[str, int]] = []
    original = isolation.read_clip

    def counted(path: str, request: ClipRequest) -> Clip | VideoError:
        clip = original(path, request)
        read.append((path, len(clip.frames) if isinstance(clip, Clip) else 0))
        return clip

    monkeypatch.setattr(isolation, "read_clip", counted)
    return read


# caption


def test_a_caption_is_the_greedy_text_of_the_trained_frames(model: VideoLM, paths: list[Path]) -> None:
    for path in paths:
        expected = Caption(by_hand(model, path), 0.0, 6.0, str(path), num_tokens=15)
        assert replace(model.caption(path), end=6.0) == expected
    assert len({model.caption(path).text for path in paths}) > 1


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_a_batch_equals_single_captions(
    model: VideoLM, paths: list[Path], batch_size: int, num_beams: int
) -> None:
    together = model.caption(paths, batch_size=batch_size, num_beams=num_beams)
    assert together == [model.caption(path, num_beams=num_beams) for path in paths]


def test_a_path_a_clip_and_a_generator_are_all_videos(model: VideoLM, paths: list[Path]) -> None:
    expected = model.caption(paths[0])
    assert model.caption(clip_of(paths[0])).text == expected.text
    assert model.caption(str(paths[0])) == expected
    assert model.caption(path for path in paths[:1]) == [expected]
    assert model.caption([]) == []


def test_a_bfloat16_model_speaks(paths: list[Path]) -> None:
    small = tiny_model()
    made = VideoLM(
        small.model,
        shape=small.shape,
        tokenizer=small.tokenizer,
        preprocess=small.preprocess,
        sampler=small.sampler,
        name="tiny",
        trained=True,
        heads={"captioning": tiny_speaker(model=small, num_queries=2, prefix_attention="full")},
        device="cpu",
        dtype=torch.bfloat16,
    )
    assert made.heads["captioning"].head.lm.dtype == torch.bfloat16
    made.heads["videoqa"] = made.heads["captioning"]
    exact = speaking_model(num_queries=2, prefix_attention="full")
    exact.heads["videoqa"] = exact.heads["captioning"]
    scores = [
        [one.answer(path, "a circle", candidates=[*TWO, "moves a"]).scores for path in paths]
        for one in (made, exact)
    ]
    rounded, true = torch.tensor(scores)
    # they are apart by more than what rounding does
    assert float((rounded - true).abs().max()) < 0.15 < float(true.std(dim=1).min())


def test_a_video_with_fewer_frames_than_asked_is_read_frame_by_frame_too(tmp_path: Path) -> None:
    model = speaking_model(num_queries=2, per_frame=True)
    paths = [write_clip(tmp_path / f"{n}.mp4", seed=n, num_frames=n) for n in (1, 2, 6)]
    assert model.caption(paths) == [model.caption(path) for path in paths]


def with_connector(model: VideoLM, connector: ConnectorShape) -> VideoLM:
    """The model with another random connector before its language models."""
    for name, speaker in list(model.heads.items()):
        shape = replace(speaker.shape, connector=connector)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            head = build_speaker(shape, token_width=16, text_width=8)
        model.add_head(name, Speaker(head, speaker.tokenizer, shape))
    return model


@pytest.mark.parametrize(
    "connector",
    [
        ConnectorShape(num_queries=3, depth=1, query_width=16, num_heads=2, per_frame=True),
        ConnectorShape(num_queries=3, depth=1, query_width=16, num_heads=2, reads_question=True),
        ConnectorShape(kind="merging", depth=1, query_width=16, num_heads=2, merged=1, per_frame=True),
        ConnectorShape(kind="qformer", num_queries=2, depth=1, query_width=16, num_heads=2),
    ],
    ids=["per-frame", "question", "merging", "qformer"],
)
@pytest.mark.parametrize("budget", [None, 9, 15])
@pytest.mark.parametrize("lengths", [(3, 2), (1, 3), (5, 7, 1)], ids=str)
def test_clips_of_a_batch_are_read_as_if_alone(
    connector: ConnectorShape, budget: int | None, lengths: tuple[int, ...]
) -> None:
    model = with_connector(speaking_model(), connector)
    clips = [noise(length, seed=seed) for seed, length in enumerate(lengths)]
    questions = ["red", "a circle moves", "blue"][: len(clips)]
    single = [model.caption(clip, budget=budget, on_error="skip") for clip in clips]
    assert model.caption(clips, budget=budget, on_error="skip") == single
    answers = model.answer(clips, questions, candidates=TWO, budget=budget, on_error="skip")
    for clip, question, answer in zip(clips, questions, answers, strict=True):
        alone = model.answer(clip, question, candidates=TWO, budget=budget, on_error="skip")
        assert type(answer) is type(alone)
        if isinstance(alone, Answer):
            assert answer.scores == pytest.approx(alone.scores, abs=1e-4)


def test_frames_tokens_and_words_can_be_chosen(model: VideoLM, paths: list[Path]) -> None:
    assert model.caption(paths[0], num_frames=2).num_tokens == 10
    # in chunks of the three that the model was made for
    assert model.caption(paths[0], num_frames=8).num_tokens == 40
    within = model.caption(paths[0], budget=9)
    assert (within.num_tokens, within.reduce) == (9, "tome:r=2")
    assert len(model.caption(paths[1], max_new_tokens=1).text.split()) <= 1


def test_a_prompt_is_what_the_caption_goes_on_from(model: VideoLM, paths: list[Path]) -> None:
    texts = {prompt: model.caption(paths[1], prompt=prompt).text for prompt in ("", "a red", "blue")}
    assert texts[""] == model.caption(paths[1]).text
    assert len(set(texts.values())) > 1
    with pytest.warns(UserWarning, match="tiny does not know: zebra"):
        model.caption(paths[1], prompt="a zebra")


def test_a_connector_that_reads_the_question_is_given_it(paths: list[Path]) -> None:
    model = speaking_model(reads_question=True, num_queries=4)
    assert isinstance(model.caption(paths[0]), Caption)
    together = model.answer(paths[0], ["red", "a circle moves"], candidates=TWO)
    single = [model.answer(paths[0], question, candidates=TWO) for question in ("red", "a circle moves")]
    for one, other in zip(together, single, strict=True):
        assert one.scores == pytest.approx(other.scores, abs=1e-4)
    speaker, [video] = model.heads["videoqa"], [model._eyes.tokens([clip_of(paths[0])])[0]]
    [expected], [of_others] = (
        speaker.log_likelihood(video, ["a circle moves"], model._encode_words([words]), [TWO])
        for words in ("a circle moves", "")
    )
    assert together[1].scores == pytest.approx(expected, abs=1e-4)
    assert together[1].scores != pytest.approx(of_others, abs=1e-2)
    for question in ("a circle moves?", "a circle moves ?"):
        assert model.answer(paths[0], question, candidates=TWO).scores == single[1].scores


# windows and segments


def test_every_window_has_the_caption_of_its_part(model: VideoLM, paths: list[Path]) -> None:
    found = model.caption(paths[:2], window=2)
    assert [[(c.start, c.end) for c in row] for row in found] == [[(0, 2), (2, 4), (4, 6)]] * 2
    for path, row in zip(paths, found, strict=False):
        with open_video(path) as reader:
            for i, caption in enumerate(row):
                clip = reader.frames_at(2 * i + (torch.arange(3) + 0.5) * 2 / 3)
                assert caption.text == model.caption(clip).text
    assert model.caption(paths[0], window=2) == found[0]


def test_windows_of_a_clip_hold_its_own_frames(model: VideoLM, paths: list[Path]) -> None:
    clip = clip_of(paths[0], num_frames=12)
    clip = replace(clip, duration_seconds=6.0)
    found = model.caption(clip, window=3)
    assert [(c.start, c.end, c.num_tokens) for c in found] == [(0, 3, 30), (3, 6, 30)]


def test_what_is_held_does_not_grow_with_the_number_of_windows(
    model: VideoLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_clip(tmp_path / "long.mp4", num_frames=400)
    monkeypatch.setattr(spans, "_FRAMES_AT_ONCE", 12)
    read = count_frames_read(monkeypatch)
    found = model.caption(path, window=1, workers=0, batch_size=4)
    assert len(found) == 80
    # one to know how long it is
    assert [num_frames for _, num_frames in read] == [1, *[12] * 20]


def test_segments_are_captioned_with_start_and_end(model: VideoLM, tmp_path: Path) -> None:
    pictures = np.zeros((2, 24, 32, 3), dtype=np.uint8)
    pictures[0, ..., 1], pictures[1, ..., 2] = 255, 255
    write_video(tmp_path / "cut.mp4", np.repeat(pictures, [10, 15], axis=0), fps=Fraction(5))
    found = model.caption(tmp_path / "cut.mp4", segments="auto")
    assert [(round(c.start, 2), round(c.end, 2)) for c in found] == [(0, 1.7), (1.7, 5)]
    with open_video(tmp_path / "cut.mp4") as reader:
        for caption in found:
            seconds = caption.start + (torch.arange(3) + 0.5) / 3 * (caption.end - caption.start)
            assert caption.text == model.caption(reader.frames_at(seconds)).text
        clip = reader.frames_at(torch.arange(10) / 2)
    of_clip = model.caption(replace(clip, duration_seconds=5.0), segments="auto")
    assert [(c.start, c.end, c.num_tokens) for c in of_clip] == [(0, 1.7, 20), (1.7, 5, 30)]


# stream


@pytest.mark.parametrize("which", range(4))
def test_the_pieces_of_a_stream_are_the_caption(model: VideoLM, paths: list[Path], which: int) -> None:
    assert "".join(model.caption_stream(paths[which])) == model.caption(paths[which]).text
    pieces = list(model.caption_stream(paths[1]))
    assert len(pieces) == len(model.caption(paths[1]).text.split())
    answer = model.answer(paths[which], "a red circle").text
    assert "".join(model.answer_stream(paths[which], "a red circle")) == answer


def test_closing_a_stream_ends_the_writing(model: VideoLM, paths: list[Path]) -> None:
    before = model.caption(paths[1]).text
    num_steps = 0

    def step(*_: Any) -> None:
        nonlocal num_steps
        num_steps += 1
        # whoever reads is there first
        time.sleep(0.02)

    hook = model.heads["captioning"].head.lm.register_forward_hook(step)
    list(model.caption_stream(paths[1], max_new_tokens=60))
    num_whole, num_steps = num_steps, 0
    stream = model.caption_stream(paths[1], max_new_tokens=60)
    assert isinstance(stream, Iterator)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    hook.remove()
    assert num_steps <= num_whole / 2
    assert not [thread for thread in threading.enumerate() if thread.name == "videolm-stream"]
    assert model.caption(paths[1]).text == before


def test_an_error_in_the_writing_thread_is_raised_here(
    model: VideoLM, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of words")

    monkeypatch.setattr(type(model.heads["captioning"].head), "generate", fail)
    with pytest.raises(RuntimeError, match="out of words"):
        list(model.caption_stream(paths[0]))


def test_a_stream_checks_its_arguments_at_once(model: VideoLM) -> None:
    with pytest.raises(ValueError, match=r"max_new_tokens \(0\) must be at least 1"):
        model.caption_stream("a.mp4", max_new_tokens=0)
    with pytest.raises(ValueError, match=r"the question \(' '\) has no word"):
        model.answer_stream("a.mp4", " ")


# answer


def test_without_candidates_an_answer_is_written(model: VideoLM, paths: list[Path]) -> None:
    answer = model.answer(paths[1], "a red circle")
    assert (answer.method, answer.candidates, answer.scores, answer.probabilities) == ("generate", (), (), ())
    assert (answer.question, answer.source, answer.num_tokens) == ("a red circle", str(paths[1]), 15)


def test_a_question_mark_that_the_model_does_not_know_makes_no_difference(
    model: VideoLM, paths: list[Path]
) -> None:
    plain = model.answer(paths[1], "a red circle", candidates=TWO)
    assert model.answer(paths[1], "a red circle ?", candidates=TWO).scores == plain.scores
    shape = replace(model.heads["videoqa"].shape, question_template="q: {question}? a:")
    speaker = replace(model.heads["videoqa"], shape=shape)
    assert (
        speaker.question_prompt("what moves?") == speaker.question_prompt("what moves") == "q: what moves? a:"
    )


def test_the_likeliest_candidate_is_the_answer(model: VideoLM, paths: list[Path]) -> None:
    answer = model.answer(paths[0], "a red circle", candidates=TWO)
    assert answer.method == "likelihood"
    assert answer.text == TWO[answer.scores.index(max(answer.scores))]
    assert sum(answer.probabilities) == pytest.approx(1)
    turned = model.answer(paths[0], "a red circle", candidates=TWO[::-1])
    assert turned.scores == pytest.approx(answer.scores[::-1], abs=1e-4)


def test_answers_of_lists_equal_single_ones(model: VideoLM, paths: list[Path]) -> None:
    questions = ["red", "a circle moves", "blue", "green"]
    choices = [TWO, ["a", "red", "moves"], TWO, ["red", "blue"]]
    together = model.answer(paths, questions, candidates=choices, batch_size=3)
    for one, path, question, row in zip(together, paths, questions, choices, strict=True):
        single = model.answer(path, question, candidates=row)
        assert replace(one, scores=(), probabilities=()) == replace(single, scores=(), probabilities=())
        assert one.scores == pytest.approx(single.scores, abs=1e-4)
    written = model.answer(paths, questions, batch_size=4)
    assert written == [model.answer(path, asked) for path, asked in zip(paths, questions, strict=True)]
    # prompts of other lengths beside it change nothing, other prompts do
    assert len({model.answer(paths[1], asked).text for asked in questions}) > 1


def test_a_video_of_several_questions_is_decoded_once(
    model: VideoLM, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read = count_frames_read(monkeypatch)
    rows = [paths[0], paths[0], paths[1]]
    found = model.answer(rows, ["red", "blue", "red"], workers=0)
    assert [path for path, _ in read] == [str(paths[0]), str(paths[1])]
    assert [answer.question for answer in found] == ["red", "blue", "red"]
    assert [answer.source for answer in found] == [str(path) for path in rows]


def test_a_model_without_that_head_compares_sentences_and_says_so(paths: list[Path]) -> None:
    model, template = tiny_model(), "{question} {candidate}"
    answer = model.answer(paths[0], "a circle", candidates=["red", "blue"], template=template)
    assert answer.method == "similarity"
    texts = model.encode_texts(["a circle red", "a circle blue"])
    cosine = model.similarity(texts, model.encode_videos(paths[0]))[:, 0]
    scale = float(model.model.logit_scale.detach().exp())
    assert answer.scores == pytest.approx((scale * cosine).tolist(), rel=1e-4)
    with pytest.raises(ValueError, match=r"template \('the \{question\}'\) must hold \{candidate\}"):
        model.answer(paths[0], "a circle", candidates=["red", "blue"], template="the {question}")
    # of eight tokens the candidates are behind the end
    with pytest.raises(ValueError, match="are not told apart behind 'a red circle moves a red circle'"):
        model.answer(
            paths[0], "a red circle moves a red circle", candidates=["red", "blue"], template=template
        )


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        (["red"], r"candidates \(\['red'\]\) must be two texts at least"),
        ([], r"candidates \(\[\]\) must be two texts at least"),
        (["red", " "], r"number 1 \(from 0\) is empty"),
        (["red", "red "], "must differ"),
        (["zebra", "lion"], "'zebra' and 'lion' are the same words to this model"),
    ],
    ids=["one", "none", "empty", "equal", "unknown"],
)
def test_a_wrong_list_of_candidates_is_refused(
    model: VideoLM, paths: list[Path], candidates: list[str], message: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=message):
            model.answer(paths[0], "a red circle", candidates=candidates)


def test_candidates_are_a_list(model: VideoLM) -> None:
    with pytest.raises(TypeError, match=r"candidates must be a list of texts, got one str; pass \['red'"):
        answers.pair_up(["a.mp4"], "red", "red")
    for place, rows in enumerate([["ab", TWO], [TWO, "ab"]]):
        with pytest.raises(TypeError, match=rf"candidates\[{place}\] \('ab'\) must be a list of texts"):
            answers.pair_up(["a.mp4"], ["red", "blue"], rows)
    with pytest.raises(TypeError, match=r"candidates\[1\] \(None\)|Type-check error"):
        answers.pair_up(["a.mp4"], ["red", "blue"], [TWO, None])  # type: ignore[list-item]


def test_candidates_of_similarity_are_on_the_device_of_the_video(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EmbeddedCandidates] = []

    def score(self: Any, video: Any, question: None, candidates: EmbeddedCandidates) -> torch.Tensor:
        seen.append(candidates)
        return torch.zeros(1, 2)

    monkeypatch.setattr(answers.SimilarityQA, "score", score)
    video = VideoTokens(
        **{
            name: torch.zeros(1, *size, dtype=torch.bool if name == "mask" else None, device="meta")
            for name, size in {
                "tokens": (5, 4), "mask": (5,), "sizes": (5,), "pts_seconds": (5,), "embedding": (8,),
            }.items()
        }
    )  # fmt: skip
    reply = answers.by_similarity(
        lambda texts: torch.zeros(len(texts), 8), torch.zeros(()), template="{question} {candidate}"
    )
    reply(video, [answers.Asked("red", ("a", "b"))])
    assert (seen[0].mask.device.type, seen[0].embedding.device.type) == ("meta", "meta")


def test_what_is_asked_must_fit_what_is_shown(model: VideoLM, paths: list[Path]) -> None:
    for question in ("  ", "?", "¿ ?!"):
        with pytest.raises(ValueError, match=r"the question \('.*'\) has no word; ask what the video shows"):
            model.answer(paths[0], question)
    with pytest.raises(ValueError, match="4 videos but 2 questions; give as many, or one of either"):
        model.answer(paths, ["red", "blue"])
    with pytest.raises(ValueError, match="4 questions but 2 lists of candidates"):
        model.answer(paths, ["red"] * 4, candidates=[TWO, TWO])
    with pytest.warns(UserWarning, match="tiny does not know: lion zebra"):
        model.answer(paths[0], "a zebra", candidates=["red", "lion"])


# errors


def test_a_model_without_heads_says_how_to_get_them(paths: list[Path]) -> None:
    model = tiny_model()
    with pytest.raises(ValueError, match=r"tiny cannot caption: it has no captioning head; `videolm models`"):
        model.caption(paths[0])
    with pytest.raises(ValueError, match=r"cannot answer questions without candidates: it has no videoqa"):
        model.answer(paths[0], "red")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, r"window \(0\) must be a number of seconds above 0"),
        ({"window": 2.0, "segments": "auto"}, r"window \(2.0\) and segments \('auto'\) cannot both be"),
        ({"num_beams": 0}, r"num_beams \(0\) must be at least 1"),
        ({"budget": 0}, r"budget \(0\) must be at least 1"),
        ({"budget": 2}, r"budget \(2\) is too small: of 3 frames tome:r=2 leaves 9 tokens"),
    ],
    ids=["window", "both", "beams", "budget", "small-budget"],
)
def test_a_wrong_argument_is_refused(
    model: VideoLM, paths: list[Path], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.caption(paths[0], **arguments)


def test_a_video_too_long_for_the_language_model_names_the_ways_out(paths: list[Path]) -> None:
    model = speaking_model(num_places=32)
    assert isinstance(model.caption(paths[0]), Caption)
    with pytest.raises(ValueError, match=r"32 places, but the video takes 60 of them.*budget=.*window="):
        model.caption(paths[0], num_frames=12)
    assert model.caption(paths[0], num_frames=6, budget=18).num_tokens == 18


def test_a_bad_video_is_raised_or_stands_in_its_place(model: VideoLM, paths: list[Path], bad: Path) -> None:
    with pytest.raises(VideoError, match=r"random\.mp4"):
        model.caption([paths[0], bad])
    good = model.caption(paths[:2])
    found = model.caption([paths[0], bad, paths[1]], on_error="skip")
    assert [found[0], found[2]] == good
    assert isinstance(found[1], Failure)
    assert (found[1].path, found[1].stage) == (str(bad), "open")
    windows = model.caption([bad, paths[0]], window=3.0, on_error="skip")
    assert [type(row[0]) for row in windows] == [Failure, Caption]
    asked = model.answer([bad, bad, paths[0]], ["red", "blue", "red"], on_error="skip")
    assert [type(answer) for answer in asked] == [Failure, Failure, Answer]


def test_a_clip_without_a_frame_is_refused(model: VideoLM) -> None:
    empty = Clip(
        torch.zeros(0, 16, 16, 3, dtype=torch.uint8), torch.zeros(0, dtype=torch.float64), 1.0, "empty"
    )
    for arguments in ({}, {"window": 1.0}, {"segments": "auto"}):
        with pytest.raises(ValueError, match="empty is a clip without a frame; give one that has some"):
            model.caption(empty, **arguments)
    with pytest.raises(ValueError, match="empty is a clip without a frame"):
        model.answer(empty, "red")


def test_numbers_that_are_none_are_a_failure_of_their_clip(paths: list[Path]) -> None:
    model = speaking_model()
    good = clip_of(paths[0])
    dark = replace(good, frames=torch.zeros_like(good.frames), source="dark")
    # a tower that overflows on a black picture
    model.model.vision.register_forward_pre_hook(
        lambda _, args: (args[0].masked_fill(args[0].amax(dim=(1, 2, 3, 4), keepdim=True) < -1, torch.inf),)
    )
    found = model.caption([good, dark], on_error="skip")
    assert found[0] == model.caption(good)
    assert isinstance(found[1], Failure)
    assert "NaN" in found[1].error
    with pytest.raises(ValueError, match="dark: the model gave a vector with NaN or infinity"):
        model.caption([good, dark])


@pytest.mark.parametrize("where", ["head", "connector"])
def test_numbers_of_the_language_model_that_are_none_are_no_answer(paths: list[Path], where: str) -> None:
    model = speaking_model()
    for speaker in model.heads.values():
        weight = speaker.head.lm.lm_head.weight if where == "head" else speaker.head.connector.out.weight
        with torch.no_grad():
            weight[5] = torch.nan
    calls = [
        lambda **options: model.caption(paths[:1], **options)[0],
        lambda **options: model.caption(paths[:1], num_beams=3, **options)[0],
        lambda **options: model.answer(paths[:1], "red", **options)[0],
        lambda **options: model.answer(paths[:1], "red", candidates=TWO, **options)[0],
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"0\.mp4: the language model, .* gave NaN or infinity"):
            call()
        failure = call(on_error="skip")
        assert isinstance(failure, Failure)
        assert (failure.stage, failure.start, round(failure.end or 0, 3)) == ("encode", 0.0, 6.0)
    with pytest.raises(ValueError, match="gave NaN or infinity"):
        list(model.caption_stream(paths[0]))


def test_what_one_clip_has_too_much_of_is_a_failure_of_that_clip(paths: list[Path]) -> None:
    long, short = noise(12, seed=1), noise(3, seed=2)
    model = speaking_model(num_places=32)
    for arguments, message in (({}, "has 32 places"), ({"budget": 12}, "is too small: of 12 frames")):
        found = model.caption([short, long, short], on_error="skip", **arguments)
        assert found[0] == found[2] == model.caption(short, **arguments)
        assert isinstance(found[1], Failure)
        assert message in found[1].error
        assert model.answer([long, short], "red", on_error="skip", **arguments)[1] == model.answer(
            short, "red", **arguments
        )
        with pytest.raises(ValueError, match=f"noise 1: .*{message}"):
            model.caption([short, long], **arguments)


@pytest.mark.parametrize("name", ["pts_seconds", "start_seconds", "duration_seconds"])
def test_a_clip_without_finite_times_is_refused(model: VideoLM, name: str) -> None:
    clip = noise(3, seed=1)
    nan = torch.full((3,), torch.nan, dtype=torch.float64) if name == "pts_seconds" else float("nan")
    wrong = replace(clip, source="wrong", **{name: nan})
    for arguments in ({}, {"window": 1.0}, {"segments": "auto"}):
        with pytest.raises(ValueError, match="wrong is a clip whose pts_seconds, start_seconds or duration"):
            model.caption(wrong, **arguments)
        found = model.caption([wrong, clip], on_error="skip", **arguments)
        assert len(found) == 2
        first = found[0] if not arguments else found[0][0]
        assert isinstance(first, Failure)
        assert first.start is None


def test_in_a_request_that_fails_the_spans_that_can_be_read_are(
    model: VideoLM, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = isolation.read_clip

    def damaged(path: str, request: ClipRequest) -> Clip | VideoError:
        spans = getattr(request.sampler, "spans", ())
        if any(start <= 2.5 < end for start, end in spans):
            return VideoError(path, "decode", "a hole", "pyav")
        return original(path, request)

    expected = model.caption(paths[0], window=1, workers=0)
    monkeypatch.setattr(isolation, "read_clip", damaged)
    for at_once in (128, 6, 3):
        monkeypatch.setattr(spans, "_FRAMES_AT_ONCE", at_once)
        found = model.caption(paths[0], window=1, workers=0, on_error="skip")
        assert [*found[:2], *found[3:]] == [*expected[:2], *expected[3:]]
        assert found[2] == Failure(str(paths[0]), "decode", "a hole", "pyav", 2.0, 3.0)


def test_of_a_damaged_file_the_windows_before_the_damage_are_captioned(
    model: VideoLM, tmp_path: Path
) -> None:
    content = bytearray(data_path("clips/pour_coffee.mp4").read_bytes())
    first, last = len(content) * 6 // 10, len(content) * 7 // 10
    content[first:last] = np.random.default_rng(0).bytes(last - first)
    (tmp_path / "damaged.mp4").write_bytes(content)
    found = model.caption(tmp_path / "damaged.mp4", window=1, on_error="skip", max_new_tokens=1)
    assert [type(one) for one in found] == [Caption] * 5 + [Failure] * 5
    assert [(one.start, one.end) for one in found[:9]] == [(i, i + 1) for i in range(9)]


def test_a_large_batch_is_not_decoded_ahead_as_a_whole(model: VideoLM, paths: list[Path]) -> None:
    taken = 0

    def endless() -> Iterator[Path]:
        nonlocal taken
        while True:
            taken += 1
            yield paths[0]

    request = ClipRequest(model.sampler)
    with closing(spans.read_whole(endless(), request, workers=0, batch_size=1000)) as pieces:
        next(pieces)
    assert taken <= 66


def test_results_are_given_as_they_come(model: VideoLM, paths: list[Path], bad: Path) -> None:
    came: list[Any] = []
    found = model.caption([paths[0], bad, paths[1]], on_error="skip", on_caption=came.append)
    assert came == found
    came.clear()
    rows = model.caption(iter(paths[:2]), window=3.0, on_caption=came.append)
    assert came == [caption for row in rows for caption in row]


def test_a_warning_points_to_whom_called(tmp_path: Path) -> None:
    # without the checks of shapes, which stand between caller and called
    script = tmp_path / "calls.py"
    script.write_text("""
import warnings
from pathlib import Path
import torch
from tests.tiny import speaking_model, tiny_model
from videolm.types import Clip
clip = Clip(torch.zeros(3, 16, 16, 3, dtype=torch.uint8), torch.arange(3, dtype=torch.float64), 3.0, "clip")
model, two = speaking_model(), {"candidates": ["red", "blue"], "template": "{candidate} {question}"}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model.caption(clip, prompt="zebra")
    model.caption_stream(clip, prompt="zebra")
    model.answer(clip, "zebra")
    model.answer_stream(clip, "zebra")
    tiny_model().answer(clip, "zebra", **two)
print([(Path(warning.filename).name, warning.lineno) for warning in caught])
""")
    found = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert literal_eval(found.stdout) == [("calls.py", line) for line in range(11, 16)]
