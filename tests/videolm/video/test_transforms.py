import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.data import data_path
from videolm.video.transforms import (
    CLIP_STD,
    Preprocess,
    Resize,
    center_crop,
    pad_frames,
)

STD = torch.tensor(CLIP_STD).view(3, 1, 1)


def picture(height, width, seed=0):
    """Smooth waves with hard edges and some noise: what a resizing filter can get wrong."""
    rows, columns = np.mgrid[:height, :width]
    rng = np.random.default_rng(seed)
    wave = 128 + 90 * np.sin(columns / 5 + seed) * np.cos(rows / 7) + 60 * ((rows // 9 + columns // 11) % 2)
    frame = np.stack([wave, 255 - wave, wave[::-1]], axis=-1) + rng.normal(0, 4, (height, width, 3))
    return torch.from_numpy(frame.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("name", ["odd", "portrait", "tiny", "large", "exact", "panorama"])
def test_preprocess_equals_the_reference_values(name):
    with np.load(data_path("reference/preprocess.npz")) as reference:
        frame = torch.from_numpy(reference[f"in_{name}"])
        expected = torch.from_numpy(reference[f"out_{name}"])
    error = (Preprocess()(frame[None])[0] - expected).abs() * STD * 255
    assert error.max() <= 2.5
    assert error.mean() <= 0.05


@pytest.mark.parametrize("shape", [(97, 131), (131, 97), (60, 224), (225, 225), (480, 853), (33, 32)])
@pytest.mark.parametrize("image_size", [64, 224])
def test_preprocess_equals_transformers(shape, image_size):
    frame = picture(*shape)
    processor = CLIPImageProcessorPil(size={"shortest_edge": image_size}, crop_size=image_size)
    expected = torch.from_numpy(processor(frame.numpy(), return_tensors="np")["pixel_values"][0])
    error = (Preprocess(image_size=image_size)(frame[None])[0] - expected).abs() * STD * 255
    assert error.max() <= 2.5
    assert error.mean() <= 0.05


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("shape", [(97, 131), (131, 97), (60, 224), (225, 225), (480, 853), (33, 32)])
def test_square_preprocess_equals_the_siglip_processor(shape, interpolation):
    frame = picture(*shape)
    resample = {"bilinear": 2, "bicubic": 3}[interpolation]
    processor = SiglipImageProcessorPil(size={"height": 96, "width": 96}, resample=resample)
    # Rows first: Pillow 13 starts with the columns where the height shrinks more, and rounds otherwise there.
    rows_done = np.asarray(Image.fromarray(frame.numpy()).resize((96, shape[0]), resample))
    expected = torch.from_numpy(processor(rows_done, return_tensors="np")["pixel_values"][0])
    half = [0.5, 0.5, 0.5]
    ours = Preprocess(96, half, half, resize_mode="square", interpolation=interpolation)(frame[None])[0]
    error = (ours - expected).abs() * 0.5 * 255
    assert error.max() <= 2.5
    assert error.mean() <= 0.05


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["short_side", "square"])
@pytest.mark.parametrize("shape", [(97, 131), (360, 203)])
def test_preprocess_of_resized_frames_equals_preprocess_of_full_frames(shape, mode, interpolation):
    frames = torch.stack([picture(*shape, seed=seed) for seed in range(3)])
    preprocess = Preprocess(image_size=48, resize_mode=mode, interpolation=interpolation)
    resized = preprocess.resize(frames)
    assert resized.shape[1:3] == preprocess.resize.shape(*shape)
    assert torch.equal(preprocess(resized), preprocess(frames))


def test_frames_are_resized_each_on_its_own():
    frames = torch.stack([picture(90, 160, seed=seed) for seed in range(5)])
    one_by_one = torch.cat([Resize(32)(frame[None]) for frame in frames])
    assert torch.equal(Resize(32)(frames), one_by_one)


def test_frames_of_the_right_size_are_left_alone():
    frames = picture(48, 64)[None]
    assert Resize(48)(frames) is frames


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 640, (224, 298)), (640, 480, (298, 224)), (61, 501, (224, 1839)), (7, 7, (224, 224))],
)
def test_the_long_side_is_rounded_down(height, width, expected):
    assert Resize(224).shape(height, width) == expected


def test_the_crop_starts_at_half_the_rest_rounded_down():
    frames = torch.arange(7, dtype=torch.uint8).view(1, 7, 1, 1).expand(1, 7, 4, 3)
    assert center_crop(frames, 4)[0, :, 0, 0].tolist() == [1, 2, 3, 4]


def test_a_crop_larger_than_the_frame_is_refused():
    with pytest.raises(ValueError, match="4x7 are smaller than the crop of 5x5"):
        center_crop(torch.zeros(1, 7, 4, 3, dtype=torch.uint8), 5)


def test_preprocess_survives_json():
    preprocess = Preprocess(image_size=64, mean=[0.5, 0.4, 0.3], resize_mode="square")
    assert Resize(**json.loads(json.dumps(dataclasses.asdict(preprocess.resize)))) == preprocess.resize
    assert Preprocess(**json.loads(json.dumps(dataclasses.asdict(preprocess)))) == preprocess


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, r"image_size \(0\)"),
        ({"mean": [0.5, 0.5]}, "three numbers"),
        ({"std": [0.5, 0.0, 0.5]}, "std positive"),
    ],
    ids=str,
)
def test_preprocessing_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**arguments)


@pytest.mark.parametrize("arguments", [{"resize_mode": "stretch"}, {"interpolation": "nearest"}], ids=str)
def test_an_unknown_way_of_resizing_is_refused(arguments):
    # By the shape checker where it is switched on, by the class itself where it is not.
    with pytest.raises((ValueError, TypeError), match=next(iter(arguments.values()))):
        Preprocess(**arguments)


def test_pad_frames_fills_with_zeros_and_counts():
    clips = [torch.full((length, 2, 3), float(length)) for length in (3, 1, 2)]
    padded, lengths = pad_frames(clips)
    assert lengths.tolist() == [3, 1, 2]
    assert padded.shape == (3, 3, 2, 3)
    for row, clip in zip(padded, clips, strict=True):
        assert torch.equal(row[: len(clip)], clip)
        assert not row[len(clip) :].any()


def test_pad_frames_refuses_clips_that_do_not_fit_together():
    with pytest.raises(ValueError, match=r"\(1, 3\).*beside \(2, 2\)"):
        pad_frames([torch.zeros(2, 2), torch.zeros(1, 3)])
    with pytest.raises(ValueError, match="at least one"):
        pad_frames([])
