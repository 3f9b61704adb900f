from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import videolm

ROOT = Path(__file__).resolve().parents[2]


def parameters(function: object) -> list[str]:
    """Names in their order; those after "*" are given by name only."""
    names: list[str] = []
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in names:
            names.append("*")
        names.append(name)
    return [name for name in names if name != "self"]


_DECODING = "workers decoder timeout"
_READING = "workers decoder timeout frame_cache"
_RUNNING = "retry_failed overwrite max_failures show_progress_bar"


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (videolm.load, "name * device dtype revision reduce allow_untrained"),
        (videolm.open_index, "folder model"),
        (videolm.list_models, ""),
        (videolm.open_video, "path * decoder limits square_pixels"),
        (
            videolm.VideoLM.encode_videos,
            f"videos * num_frames sampler batch_size convert_to_tensor show_progress_bar {_READING} on_error",
        ),
        (videolm.VideoLM.encode_texts, "texts * batch_size convert_to_tensor"),
        (videolm.VideoLM.similarity, "texts videos"),
        (videolm.VideoLM.index, f"folder out * num_frames sampler batch_size {_READING} {_RUNNING}"),
        (
            videolm.VideoLM.extract,
            f"source out * num_frames sampler batch_size {_READING} shard {_RUNNING} finish",
        ),
        (
            videolm.VideoLM.caption,
            "videos * prompt num_beams max_new_tokens num_frames sampler window segments budget batch_size "
            f"{_DECODING} on_error on_caption",
        ),
        (
            videolm.VideoLM.caption_stream,
            f"video * prompt max_new_tokens num_frames sampler budget {_DECODING}",
        ),
        (
            videolm.VideoLM.answer,
            "videos questions * candidates template num_beams max_new_tokens num_frames sampler budget batch_size "
            f"{_DECODING} on_error",
        ),
        (
            videolm.VideoLM.answer_stream,
            f"video question * max_new_tokens num_frames sampler budget {_DECODING}",
        ),
        (videolm.VideoLM.add_head, "name speaker"),
        (videolm.Caption, "text start end source num_tokens reduce"),
        (
            videolm.Answer,
            "text question source method num_tokens candidates scores probabilities reduce",
        ),
        (videolm.VideoLM.save, "folder * dtype"),
        (videolm.Index.search, "text * vector k"),
        (videolm.Hit, "id path score start end"),
        (videolm.Failure, "path stage error backend start end"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_public_signatures_are_as_documented(function: object, expected: str) -> None:
    assert parameters(function) == expected.split()


def test_the_package_gives_these_names_and_no_others() -> None:
    assert sorted(videolm.__all__) == [
        "Answer",
        "Caption",
        "Clip",
        "Embeddings",
        "Failure",
        "Hit",
        "Index",
        "ModelInfo",
        "VideoInfo",
        "VideoLM",
        "list_models",
        "load",
        "open_index",
        "open_video",
    ]
    for name in videolm.__all__:
        assert getattr(videolm, name).__name__ == name


def test_an_unknown_name_is_an_error_that_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'lod'; it has .*load"):
        videolm.lod  # noqa: B018


def test_importing_the_package_imports_neither_torch_nor_a_decoder() -> None:
    code = "import sys, videolm; sys.exit(', '.join({'torch', 'av', 'decord'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.strip() == ""
