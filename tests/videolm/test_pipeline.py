from __future__ import annotations

import inspect
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import videolm
from tests.data import data_path
from tests.tiny import TINY, WORDS, tiny_model, write_clip, write_folder, write_random_clip
from tests.videolm.video.traps import Trap
from videolm.pipeline import VideoLM, load, open_index
from videolm.pipeline.decoding import read_videos
from videolm.recipes import SpeakerRecipe, read_recipe
from videolm.search.extraction import NothingReadError
from videolm.types import Clip
from videolm.video import isolation
from videolm.video.processes import WorkerContext
from videolm.video.readers import VideoError, open_video
from videolm.video.worker import ClipRequest

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = ["a red circle moves", "blue", "a green circle"]


@pytest.fixture(scope="module")
def model() -> VideoLM:
    return tiny_model()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("videos"), num_videos=5)


@pytest.fixture(scope="module")
def paths(videos: Path) -> list[Path]:
    return sorted(videos.iterdir())


@pytest.fixture
def saved(model: VideoLM, tmp_path: Path) -> Path:
    model.save(tmp_path / "model")
    return tmp_path / "model"


def by_hand(model: VideoLM, path: Path, *, num_frames: int) -> np.ndarray:
    """The vector of one video without batches, threads or resizing on the way."""
    with open_video(path) as reader:
        n, duration = reader.info.num_frames, reader.info.duration_seconds
        shown = [(2 * i + 1) * n // (2 * num_frames) for i in range(num_frames)]
        clip = reader.frames_at([frame * duration / n for frame in shown])
    with torch.inference_mode():
        return model.model.encode_video(model.preprocess(clip.frames)[None]).embedding[0].numpy()


# encode_videos


def test_vectors_equal_those_made_one_by_one_in_order(model: VideoLM, paths: list[Path]) -> None:
    embeddings = model.encode_videos(paths, batch_size=2, workers=3)
    expected = [by_hand(model, path, num_frames=3) for path in paths]
    assert embeddings.ids == [str(path) for path in paths]
    np.testing.assert_allclose(embeddings.vectors, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(embeddings.vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(embeddings.pts_seconds, [[0.2, 0.6, 1.0]] * 5, atol=1e-6)
    np.testing.assert_allclose(embeddings.start, 0)
    np.testing.assert_allclose(embeddings.end, 1.2, atol=1e-6)
    assert embeddings.model == model.info
    assert embeddings.failures == []


@pytest.mark.parametrize("batch_size", [1, 4, 5, 100])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_and_workers_change_nothing(
    model: VideoLM, paths: list[Path], batch_size: int, workers: int
) -> None:
    expected = np.asarray(model.encode_videos(paths))
    actual = np.asarray(model.encode_videos(paths, batch_size=batch_size, workers=workers))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_num_frames_takes_the_place_of_the_models_own(model: VideoLM, paths: list[Path]) -> None:
    embeddings = model.encode_videos(paths[0], num_frames=6)
    assert len(embeddings.pts_seconds[0]) == 6
    np.testing.assert_allclose(embeddings.vectors[0], by_hand(model, paths[0], num_frames=6), atol=1e-5)


def test_a_path_a_string_a_clip_and_a_generator_are_all_videos(model: VideoLM, paths: list[Path]) -> None:
    with open_video(paths[0]) as reader:
        clip = reader.frames_at(model.sampler(reader.info))
    expected = np.asarray(model.encode_videos(paths[:1]))
    for video in (paths[0], str(paths[0]), clip, iter([paths[0]]), (path for path in paths[:1])):
        np.testing.assert_allclose(model.encode_videos(video).vectors, expected, atol=1e-6)
    assert model.encode_videos(clip).ids == [clip.source]


def test_clips_of_different_lengths_share_a_batch_without_touching(model: VideoLM) -> None:
    generator = torch.Generator().manual_seed(0)
    clips = [
        Clip(
            torch.randint(0, 256, (length, 16, 16, 3), dtype=torch.uint8, generator=generator),
            torch.arange(length, dtype=torch.float64),
            float(length),
            f"{length} frames",
        )
        for length in (1, 4, 2)
    ]
    together = np.asarray(model.encode_videos(clips))
    alone = [np.asarray(model.encode_videos(clip))[0] for clip in clips]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_tensors_are_given_on_request(model: VideoLM, paths: list[Path]) -> None:
    assert isinstance(model.encode_videos(paths, convert_to_tensor=True).vectors, torch.Tensor)
    assert isinstance(model.encode_texts("blue", convert_to_tensor=True).vectors, torch.Tensor)


def test_a_broken_video_raises_by_default_and_is_named_on_request(
    model: VideoLM, paths: list[Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video at all")
    mixed = [paths[0], broken, paths[1], tmp_path / "missing.mp4"]
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        model.encode_videos(mixed)
    embeddings = model.encode_videos(mixed, on_error="skip")
    assert embeddings.ids == [str(path) for path in paths[:2]]
    np.testing.assert_allclose(embeddings.vectors, model.encode_videos(paths[:2]).vectors, atol=1e-6)
    assert [(failure.path, failure.stage) for failure in embeddings.failures] == [
        (str(broken), "open"),
        (str(tmp_path / "missing.mp4"), "open"),
    ]
    assert embeddings.failures[0].backend in ("pyav", "auto")
    assert model.encode_videos([broken], on_error="skip").vectors.shape == (0, TINY.joint_dim)


def test_a_vector_that_is_not_finite_is_never_given_out(paths: list[Path]) -> None:
    broken = tiny_model()
    with torch.no_grad():
        broken.model.vision.projection.weight[0, 0] = torch.nan
        broken.model.text.projection.weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"the model gave a vector with NaN or infinity for .*00\.mp4"):
        broken.encode_videos(paths)
    failures = broken.encode_videos(paths, on_error="skip").failures
    assert {(failure.stage, failure.error) for failure in failures} == {
        ("encode", "the model gave a vector with NaN or infinity")
    }
    assert len(failures) == 5
    with pytest.raises(ValueError, match="NaN or infinity for 'blue'"):
        broken.encode_texts("blue")


def test_the_bar_counts_failures_and_is_shown_only_on_a_terminal_or_on_request(
    model: VideoLM, paths: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    videos = [*paths, tmp_path / "missing.mp4"]
    model.encode_videos(videos, on_error="skip")
    assert capsys.readouterr().err == ""
    model.encode_videos(videos, on_error="skip", show_progress_bar=True)
    shown = capsys.readouterr().err
    assert "6/6" in shown
    assert "video/s" in shown
    assert "failed=1" in shown


@pytest.mark.parametrize("name", ["batch_size", "num_frames"])
def test_counts_below_one_are_refused_by_name(model: VideoLM, paths: list[Path], name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} \(0\) must be at least 1"):
        model.encode_videos(paths, **{name: 0})


def test_a_mistake_in_on_error_is_refused(model: VideoLM, paths: list[Path]) -> None:
    # without the checks of types that these tests run with
    encode_videos = inspect.unwrap(VideoLM.encode_videos)
    with pytest.raises(ValueError, match="on_error \\('rasie'\\) must be 'raise' or 'skip'"):
        encode_videos(model, paths, on_error="rasie")


# Decoding


@pytest.mark.parametrize("seconds", [float("inf"), 1e19, 604_801.0])
def test_a_timeout_of_more_than_a_week_is_refused(model: VideoLM, paths: list[Path], seconds: float) -> None:
    with pytest.raises(ValueError, match=r"timeout_seconds \(.*\) must be at most 604,800, a week"):
        model.encode_videos(paths, timeout=seconds)


def test_a_large_batch_needs_no_descriptor_for_each_video(model: VideoLM, paths: list[Path]) -> None:
    most = before = len(os.listdir("/proc/self/fd"))

    def counted() -> Iterator[Path]:
        nonlocal most
        for number in range(200):
            most = max(most, len(os.listdir("/proc/self/fd")))
            yield paths[number % 5]

    assert len(model.encode_videos(counted(), batch_size=1024)) == 200
    assert most - before < 100


CHILD = """
import multiprocessing, sys
from tests.tiny import tiny_model

def encode(path):
    print(len(tiny_model().encode_videos(path)), flush=True)

def in_child(path, daemon):
    child = multiprocessing.get_context("fork").Process(target=encode, args=(path,), daemon=daemon)
    child.start()
    child.join()
    return child.exitcode

encode(sys.argv[1])
print([in_child(sys.argv[1], daemon) for daemon in (False, True)])
"""


def test_a_forked_child_has_workers_of_its_own_and_a_daemonic_one_says_why_not(paths: list[Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, paths[0]],
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["1", "1", "[0, 1]"], done.stderr
    assert "is a daemonic process" in done.stderr
    assert "workers=0" in done.stderr


def test_why_no_worker_could_be_started_is_the_cause_of_the_error(
    model: VideoLM, paths: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class NoProcesses(WorkerContext):
        def Process(self, *_: object, **__: object) -> None:  # type: ignore[override]  # noqa: N802
            raise OSError("no more processes")

    monkeypatch.setattr(isolation, "WorkerContext", NoProcesses)
    with pytest.raises(RuntimeError, match="decode workers end before they take a file") as refusal:
        model.encode_videos(paths)
    assert refusal.value.__cause__ is not None
    assert str(refusal.value.__cause__.__cause__) == "no more processes"


@pytest.mark.parametrize("workers", [0, 2])
def test_videos_are_taken_as_they_are_needed(model: VideoLM, paths: list[Path], workers: int) -> None:
    taken: list[int] = []

    def endless() -> Iterator[Path]:
        for number in itertools.count():
            taken.append(number)
            if number == 50:
                raise KeyboardInterrupt
            yield paths[number % 5]

    request = ClipRequest(model.sampler, model.preprocess.resize)
    found = read_videos(endless(), request, workers=workers, ahead=4, frame_cache=None)
    assert [name for name, _ in itertools.islice(found, 3)] == [str(path) for path in paths[:3]]
    found.close()
    assert len(taken) == 7


def test_a_file_that_hangs_or_crashes_harms_no_other(
    model: VideoLM, paths: list[Path], tmp_path: Path
) -> None:
    for name in ("segfault", "sleeps"):
        shutil.copy(paths[0], tmp_path / f"{name}.mp4")
    trapped = tiny_model()
    trapped.sampler = Trap("segment_middle", num_frames=3)
    videos = [paths[0], tmp_path / "segfault.mp4", paths[1], tmp_path / "sleeps.mp4", paths[2]]
    embeddings = trapped.encode_videos(videos, timeout=0.7, on_error="skip")
    assert embeddings.ids == [str(path) for path in paths[:3]]
    np.testing.assert_allclose(embeddings.vectors, model.encode_videos(paths[:3]).vectors, atol=1e-6)
    assert [(Path(failure.path).stem, failure.stage) for failure in embeddings.failures] == [
        ("segfault", "crash"),
        ("sleeps", "timeout"),
    ]
    with pytest.raises(VideoError, match=r"sleeps\.mp4: 0\.5 s allowed \(timeout_seconds\)"):
        trapped.encode_videos(videos[3], timeout=0.5)


def test_clips_files_and_failures_keep_their_order_in_full_batches(
    model: VideoLM, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_video(paths[2]) as reader:
        clip = reader.frames_at(model.sampler(reader.info))
    missing = tmp_path / "missing.mp4"
    sizes: list[int] = []
    vectors = VideoLM._vectors

    def note(self: VideoLM, clips: Sequence[Clip]) -> np.ndarray:
        sizes.append(len(clips))
        return vectors(self, clips)

    monkeypatch.setattr(VideoLM, "_vectors", note)
    videos = [missing, paths[0], missing, clip, paths[1], missing, paths[3], clip, missing]
    embeddings = model.encode_videos(videos, batch_size=2, on_error="skip")
    assert embeddings.ids == [str(path) for path in (paths[0], clip.source, paths[1], paths[3], clip.source)]
    assert len(embeddings.failures) == 4
    assert sizes == [2, 2, 1]
    expected = model.encode_videos([paths[n] for n in (0, 2, 1, 3, 2)]).vectors
    np.testing.assert_allclose(embeddings.vectors, expected, atol=1e-6)


# Frame cache


def test_cached_frames_give_the_same_vectors_without_decoding(
    model: VideoLM, paths: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = model.encode_videos(paths, frame_cache=tmp_path / "cache")
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == len(paths)
    monkeypatch.setattr("videolm.video.isolation.Workers.submit", raiser)
    for other in (model, tiny_model(seed=1)):
        again = other.encode_videos(paths, frame_cache=tmp_path / "cache")
        assert again.ids == first.ids
        np.testing.assert_array_equal(again.end, first.end)
        np.testing.assert_array_equal(again.pts_seconds, first.pts_seconds)
        same = np.allclose(np.asarray(again), np.asarray(first), atol=1e-6)
        assert same == (other is model)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "foreign"])
def test_a_damaged_entry_is_decoded_again_and_mended(
    model: VideoLM, paths: list[Path], tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = model.encode_videos(paths[:1], frame_cache=tmp_path)
    (entry,) = tmp_path.rglob("*.safetensors")
    whole = entry.read_bytes()
    content = {
        "cut": whole[:-1],
        "flipped": whole[:-200] + bytes([whole[-200] ^ 1]) + whole[-199:],
        "empty": b"",
        "foreign": b"no clip",
    }
    entry.write_bytes(content[damage])
    for _ in range(2):
        again = model.encode_videos(paths[:1], frame_cache=tmp_path)
        np.testing.assert_array_equal(again.vectors, expected.vectors)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [entry]
        monkeypatch.setattr("videolm.video.isolation.Workers.submit", raiser)


@pytest.mark.parametrize("change", ["file", "num_frames", "size", "decoder"])
def test_what_decides_the_frames_decides_the_entry(
    model: VideoLM, paths: list[Path], tmp_path: Path, change: str
) -> None:
    path = tmp_path / "a.mp4"
    shutil.copy(paths[0], path)
    model.encode_videos(path, frame_cache=tmp_path / "cache")
    settings: dict[str, Any] = {}
    other = model
    if change == "file":
        shutil.copy(paths[1], path)
        os.utime(path, ns=(1, 1))
    elif change == "size":
        other = tiny_model()
        other.preprocess = replace(model.preprocess, interpolation="bilinear")
    else:
        settings = {"num_frames": 2} if change == "num_frames" else {"decoder": "pyav"}
    again = other.encode_videos(path, frame_cache=tmp_path / "cache", **settings)
    assert len(list((tmp_path / "cache").rglob("*.safetensors"))) == 2
    np.testing.assert_array_equal(again.vectors, other.encode_videos(path, **settings).vectors)


def test_a_cache_that_cannot_be_written_is_an_error_that_names_it(
    model: VideoLM, paths: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match="cache"):
        model.encode_videos(paths, frame_cache=tmp_path / "cache")


def raiser(*_: object) -> None:
    raise AssertionError("nothing should be decoded")


# encode_texts and similarity


def test_texts_are_unit_vectors_whatever_the_batch(model: VideoLM) -> None:
    embeddings = model.encode_texts(SENTENCES)
    assert embeddings.ids == SENTENCES
    np.testing.assert_allclose(np.linalg.norm(embeddings.vectors, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(model.encode_texts(SENTENCES, batch_size=1), embeddings.vectors, atol=1e-6)
    np.testing.assert_allclose(model.encode_text(SENTENCES[1]), embeddings.vectors[1], atol=1e-6)
    assert model.encode_texts([]).vectors.shape == (0, TINY.joint_dim)


def test_similarity_is_the_cosine_with_a_row_for_each_text(model: VideoLM, paths: list[Path]) -> None:
    texts, encoded = model.encode_texts(SENTENCES), model.encode_videos(paths)
    scores = model.similarity(texts, encoded)
    assert scores.shape == (3, 5)
    np.testing.assert_allclose(scores, np.asarray(texts) @ np.asarray(encoded).T, atol=1e-6)


def test_similarity_with_another_models_vectors_is_refused(model: VideoLM, paths: list[Path]) -> None:
    other = tiny_model(seed=1, name="other")
    with pytest.raises(ValueError, match=r"was made by 'other' .* this is 'tiny'"):
        model.similarity(other.encode_texts("blue"), model.encode_videos(paths[0]))


# save and load


def test_a_saved_model_loads_as_the_same_model(model: VideoLM, saved: Path, paths: list[Path]) -> None:
    loaded = videolm.load(saved, device="cpu")
    assert loaded.info == model.info
    assert loaded.shape == model.shape
    np.testing.assert_array_equal(loaded.encode_videos(paths).vectors, model.encode_videos(paths).vectors)
    np.testing.assert_array_equal(loaded.encode_texts(SENTENCES), model.encode_texts(SENTENCES).vectors)


def test_a_model_saved_in_half_precision_is_half_as_large_and_nearly_the_same(
    model: VideoLM, saved: Path, paths: list[Path], tmp_path: Path
) -> None:
    model.save(tmp_path / "half", dtype=torch.float16)
    sizes = [(folder / "model.safetensors").stat().st_size for folder in (saved, tmp_path / "half")]
    assert sizes[1] < 0.7 * sizes[0]
    half = videolm.load(tmp_path / "half", device="cpu")
    assert next(half.model.parameters()).dtype == torch.float32
    cosines = (np.asarray(half.encode_videos(paths)) * np.asarray(model.encode_videos(paths))).sum(axis=1)
    assert cosines.min() > 0.9999
    # The hash is that of the weights and not of the file's precision.
    half.save(tmp_path / "again")
    assert videolm.load(tmp_path / "again", device="cpu").info == half.info


def test_a_folder_of_a_model_holds_no_pickle_and_nothing_unfinished(saved: Path) -> None:
    names = sorted(path.name for path in saved.iterdir())
    assert names == ["model.safetensors", "tokenizer.json", "videolm.json"]


def test_loading_draws_nothing_from_the_random_generator(saved: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    videolm.load(saved, device="cpu")
    assert torch.equal(torch.rand(1), expected)


def test_bfloat16_is_near_float32(saved: Path, paths: list[Path]) -> None:
    low = videolm.load(saved, device="cpu", dtype=torch.bfloat16)
    cosines = np.asarray(low.encode_videos(paths)) @ np.asarray(videolm.load(saved).encode_videos(paths)).T
    # bfloat16 keeps 8 bits, so a unit vector is off by about 2^-8 and its cosine by half of the square.
    assert np.diag(cosines).min() > 0.999


def test_a_model_without_trained_weights_says_so_and_does_not_index(videos: Path, tmp_path: Path) -> None:
    tiny_model(trained=False).save(tmp_path / "raw")
    with pytest.warns(UserWarning, match="tiny has untrained weights"):
        raw = videolm.load(tmp_path / "raw", device="cpu")
    assert not raw.trained
    assert "trained=False" in repr(raw)
    with pytest.raises(ValueError, match="allow_untrained=True"):
        raw.index(videos, tmp_path / "index")
    assert not (tmp_path / "index").exists()
    with pytest.warns(UserWarning, match="untrained"):
        allowed = videolm.load(tmp_path / "raw", device="cpu", allow_untrained=True)
    index = allowed.index(videos, tmp_path / "index")
    assert len(index) == 5
    assert index.model["trained"] is False


def test_weights_that_are_not_those_of_the_description_are_refused(saved: Path, tmp_path: Path) -> None:
    tiny_model(seed=1).save(tmp_path / "other")
    shutil.copy(tmp_path / "other/model.safetensors", saved)
    with pytest.raises(ValueError, match=r"model\.safetensors is not the file that videolm\.json describes"):
        videolm.load(saved)


def test_a_damaged_or_missing_file_of_a_model_is_named(saved: Path) -> None:
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"model\.safetensors is not readable"):
        videolm.load(saved)
    weights.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is not readable"):
        videolm.load(saved)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("format", 2, "has format 2, this version reads 1"),
        ("sampler", {"kind": "segment_middle", "num_frames": 0}, r"num_frames \(0\) must be at least 1"),
        ("shape", {"image_size": 16}, r"videolm\.json is not of this version"),
        ("sampler", None, "sampler missing"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(saved: Path, key: str, value, message: str) -> None:
    card = json.loads((saved / "videolm.json").read_text())
    card[key] = value
    if value is None:
        del card[key]
    (saved / "videolm.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=message):
        videolm.load(saved)


def test_a_name_that_is_no_model_is_an_error_that_says_what_is_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither 'mini', nor a folder, nor a hub id"):
        videolm.load("no such model")
    with pytest.raises(
        FileNotFoundError, match=r"is no model: it has no videolm\.json, and .* has no weights"
    ):
        videolm.load(tmp_path)
    save_file({"encoder.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"1 keys like encoder\.weight are no layout that is known here"):
        videolm.load(tmp_path)


def test_a_hub_id_that_cannot_be_had_offline_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"'nobody/nothing' is no folder here, and cannot be had"):
        videolm.load("nobody/nothing")


def test_the_models_that_ship_are_listed_by_their_files(
    saved: Path, model: VideoLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("videolm.pipeline.loading._ASSETS", saved.parent)
    shipped = videolm.list_models()[0]
    assert (shipped.name, shipped.weights_sha256) == (model.info.name, model.info.weights_sha256)
    assert shipped.scores == model.info.scores
    assert shipped.num_parameters == sum(tensor.numel() for tensor in model.model.state_dict().values())
    with pytest.raises(FileNotFoundError, match="the model that ships is not installed"):
        videolm.load()
    saved.rename(saved.parent / "mini")
    assert videolm.load(device="cpu").info == model.info


# CLIP folders of transformers


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_clip(
        tmp_path_factory.mktemp("clips") / "random-clip", tokenizer=data_path("vocab/hf")
    )


def test_vectors_equal_those_of_transformers_on_the_same_frames(clip_folder: Path, paths: list[Path]) -> None:
    from transformers import CLIPModel, CLIPTokenizerFast
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    ours = videolm.load(clip_folder, device="cpu")
    theirs = CLIPModel.from_pretrained(clip_folder).eval()
    size = {"shortest_edge": 32}
    processor = CLIPImageProcessorPil(size=size, crop_size={"height": 32, "width": 32})
    embeddings = ours.encode_videos(paths)
    for path, vector, times in zip(paths, np.asarray(embeddings), embeddings.pts_seconds, strict=True):
        with open_video(path) as reader:
            frames = reader.frames_at(times.tolist()).frames
        pixels = processor(list(frames.numpy()), return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            output = theirs.get_image_features(pixel_values=pixels)
        features = torch.nn.functional.normalize(getattr(output, "pooler_output", output), dim=-1)
        expected = torch.nn.functional.normalize(features.mean(dim=0), dim=0).numpy()
        assert float(vector @ expected) >= 0.9999
    tokens = CLIPTokenizerFast.from_pretrained(clip_folder)(SENTENCES, padding=True, return_tensors="pt")
    with torch.inference_mode():
        output = theirs.get_text_features(**tokens)
    expected = torch.nn.functional.normalize(getattr(output, "pooler_output", output), dim=-1)
    np.testing.assert_allclose(ours.encode_texts(SENTENCES).vectors, expected, atol=1e-5)


def test_a_clip_folder_counts_as_trained_and_has_clips_settings(clip_folder: Path) -> None:
    info = videolm.load(clip_folder, device="cpu").info
    assert (info.name, info.trained) == ("random-clip", True)
    assert info.sampler["kind"] == "segment_middle"
    assert info.sampler["num_frames"] == 12
    assert info.preprocessing["image_size"] == 32


def test_a_clip_folders_own_statistics_are_used(clip_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(clip_folder, tmp_path / "clip")
    (tmp_path / "clip/preprocessor_config.json").write_text(
        json.dumps({"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]})
    )
    assert videolm.load(tmp_path / "clip", device="cpu").info.preprocessing["mean"] == [0.5] * 3


def test_a_clip_folder_without_tokenizer_still_encodes_videos(
    clip_folder: Path, paths: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(clip_folder, tmp_path / "clip")
    (tmp_path / "clip/tokenizer.json").unlink()
    model = videolm.load(tmp_path / "clip", device="cpu")
    assert len(model.encode_videos(paths)) == 5
    with pytest.raises(ValueError, match=r"without a tokenizer: lay tokenizer\.json .* into .*clip"):
        model.encode_texts("a cat")


def test_a_clip_folder_saved_in_our_format_is_the_same_model(clip_folder: Path, tmp_path: Path) -> None:
    model = videolm.load(clip_folder, device="cpu")
    model.save(tmp_path / "ours")
    again = videolm.load(tmp_path / "ours", device="cpu")
    assert again.info == model.info
    np.testing.assert_array_equal(again.encode_texts(SENTENCES), model.encode_texts(SENTENCES).vectors)


def test_a_hub_id_is_downloaded_without_code_and_names_the_model(
    clip_folder: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str | None]] = []

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        assert not any("py" in pattern for pattern in allow_patterns)
        asked.append((name, revision))
        return str(clip_folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    model = videolm.load("somebody/clip", revision="v1", device="cpu")
    assert asked == [("somebody/clip", "v1")]
    assert model.info.name == "somebody/clip"
    model.index(videos, tmp_path / "index", num_frames=1)
    videolm.open_index(tmp_path / "index")
    assert asked[-1] == ("somebody/clip", "v1")


# index


def test_a_folder_is_indexed_and_found_by_what_the_model_says(
    saved: Path, videos: Path, tmp_path: Path
) -> None:
    model = videolm.load(saved, device="cpu")
    index = model.index(videos, tmp_path / "index")
    scores = model.similarity(
        model.encode_texts(SENTENCES[0]), model.encode_videos(sorted(videos.iterdir()))
    )[0]
    hits = index.search(SENTENCES[0], k=3)
    assert [hit.id for hit in hits] == [f"{row:02d}.mp4" for row in scores.topk(3).indices.tolist()]
    np.testing.assert_allclose([hit.score for hit in hits], scores.topk(3).values, atol=1e-6)
    assert hits[0].path == videos / hits[0].id
    assert hits[0].end == pytest.approx(1.2, abs=1e-6)


def test_an_index_opens_with_the_model_that_made_it(saved: Path, videos: Path, tmp_path: Path) -> None:
    made = videolm.load(saved, device="cpu").index(videos, tmp_path / "index")
    opened = videolm.open_index(tmp_path / "index")
    assert opened.search("a red circle") == made.search("a red circle")


def test_an_index_refuses_a_query_from_another_model(saved: Path, videos: Path, tmp_path: Path) -> None:
    videolm.load(saved, device="cpu").index(videos, tmp_path / "index")
    other = tiny_model(seed=1, name="other")
    with pytest.raises(ValueError, match=r"was made by 'tiny' \(weights \w{12}\), not by 'other'"):
        videolm.open_index(tmp_path / "index", other)
    with pytest.raises(ValueError, match=r"model is 'tiny' .* there and 'other'"):
        other.index(videos, tmp_path / "index")
    other.save(saved)
    with pytest.raises(ValueError, match="not by 'other'"):
        videolm.open_index(tmp_path / "index")


def test_an_index_of_a_model_in_no_file_needs_that_model(
    model: VideoLM, videos: Path, tmp_path: Path
) -> None:
    model.index(videos, tmp_path / "index")
    with pytest.raises(ValueError, match="'tiny', which is in no file; give model="):
        videolm.open_index(tmp_path / "index")
    assert videolm.open_index(tmp_path / "index", model).search("blue", k=1)


def test_without_out_the_index_lies_beside_the_folder(
    model: VideoLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "holiday", num_videos=1)
    assert model.index(tmp_path / "holiday").folder == tmp_path / "holiday.index"
    monkeypatch.chdir(tmp_path / "holiday")
    assert model.index(".").folder == tmp_path / "holiday.index"


def test_an_update_decodes_only_what_is_new(
    model: VideoLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "videos", num_videos=3)
    model.index(folder, tmp_path / "index")
    (folder / "00.mp4").unlink()
    write_clip(folder / "new.mp4", seed=9)
    opened: list[str] = []

    def note(path: Path, **settings: object) -> object:
        opened.append(Path(path).name)
        return open_video(path)

    monkeypatch.setattr("videolm.video.worker.open_video", note)
    assert model.index(folder, tmp_path / "index", workers=0).ids == ["01.mp4", "02.mp4", "new.mp4"]
    assert opened == ["new.mp4"]


def test_unknown_words_are_named_and_a_query_of_nothing_else_is_refused(
    model: VideoLM, videos: Path, tmp_path: Path
) -> None:
    assert "zebra" not in WORDS
    index = model.index(videos, tmp_path / "index")
    with pytest.warns(UserWarning, match="tiny does not know: zebra"):
        assert len(index.search("a red zebra", k=2)) == 2
    with pytest.raises(ValueError, match="knows no word of the query 'zebra!'"):
        index.search("zebra!")
    with pytest.raises(ValueError, match="the query is empty"):
        index.search("  ")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shape": {"activation": "gelu"}}, "activation ('quick_gelu' there, 'gelu' here)"),
        ({"preprocessing": {"mean": [0.0, 0.0, 0.0]}}, "mean ("),
    ],
    ids=["shape", "preprocessing"],
)
def test_an_index_refuses_the_same_weights_in_another_model(
    model: VideoLM, videos: Path, tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    model.save(tmp_path / "model")
    load(tmp_path / "model").index(videos, tmp_path / "index")
    card = json.loads((tmp_path / "model" / "videolm.json").read_text())
    for key, values in change.items():
        card[key] |= values
    (tmp_path / "model" / "videolm.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=re.escape(f"has the same weights but another {named}")):
        open_index(tmp_path / "index", load(tmp_path / "model"))
    with pytest.raises(ValueError, match=f"was made otherwise: {next(iter(change))}"):
        load(tmp_path / "model").index(videos, tmp_path / "index")


def test_an_emptied_folder_empties_its_index(model: VideoLM, videos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(videos, tmp_path / "videos")
    model.index(folder, tmp_path / "index")
    for path in folder.iterdir():
        path.unlink()
    with pytest.raises(NothingReadError, match="holds no video any more"):
        model.index(folder, tmp_path / "index")
    with pytest.raises(FileNotFoundError, match="is no index"):
        open_index(tmp_path / "index", model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_normalize": False}, "do_normalize is false"),
        ({"resample": 1}, "resample is 1"),
        ({"size": {"shortest_edge": 48}}, "size is"),
    ],
    ids=str,
)
def test_a_processor_that_is_not_followed_is_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    write_random_clip(tmp_path / "clip", tokenizer=data_path("vocab/hf"))
    (tmp_path / "clip" / "preprocessor_config.json").write_text(json.dumps(settings))
    with pytest.raises((ValueError, TypeError), match=message):
        load(tmp_path / "clip")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preprocessing": {"image_size": 32}}, "pictures of 32 pixels, the tower takes 16"),
        ({"sampler": {"kind": "segment_random"}}, "segment_random is for training"),
    ],
    ids=["size", "sampler"],
)
def test_a_card_that_contradicts_itself_is_refused_at_load(
    saved: Path, change: dict[str, Any], message: str
) -> None:
    card = json.loads((saved / "videolm.json").read_text())
    for key, values in change.items():
        card[key] |= values
    (saved / "videolm.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=message):
        load(saved)


def test_the_model_that_ships_is_small_hears_time_and_follows_its_configs() -> None:
    mini = load()
    captions = read_recipe(ROOT / "configs" / "captioning" / "synthetic_mini.yaml")
    assert isinstance(captions, SpeakerRecipe)
    towers = captions.towers
    assert towers is not None
    assert (mini.shape, mini.sampler, mini.preprocess) == (towers.model, towers.sampler, towers.preprocessing)
    told = dict(mini.info.recipe)
    assert told.pop("start") == {}
    assert mini.heads["captioning"].recipe == told
    # what could not be chosen yet when the towers were trained has the default of today
    told["training"] = {"kinds": [{"start": 0.0, "kinds": []}]} | told["training"]
    assert told == json.loads(json.dumps(asdict(captions)))
    path = ROOT / "configs" / "videoqa" / "synthetic_mini.yaml"
    answers = read_recipe(path, ["model=runs/mini/model"])
    assert mini.heads["videoqa"].recipe == json.loads(json.dumps(asdict(answers)))
    assert all(block.pre is not None for block in mini.model.vision.blocks)
    files = (ROOT / "videolm" / "assets" / "mini").iterdir()
    assert sum(path.stat().st_size for path in files) <= 24 * 1024**2
