"""What a step sees depends on seed and step alone, grows harder, and brings twins together."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from videolm.training.batches import Stage, TrainingVideo, check_stages, draw_batch, level_at
from videolm.training.frames import pick_segment_random

# rows 0 and 1, 2 and 3, ... are twins; the last 20 rows have none
VIDEOS = [
    TrainingVideo((f"a {row}", f"b {row}"), difficulty=1 + row % 3, twin=row ^ 1 if row < 40 else None)
    for row in range(60)
]
SCHEDULE = {
    "seed": 5,
    "batch_size": 12,
    "num_steps": 100,
    "twin_share": 0.5,
    "num_frames": [Stage(0.0, 1), Stage(0.5, 8)],
    "difficulty": [Stage(0.0, 3)],
}


def test_a_step_is_a_function_of_seed_and_step():
    one, again = (draw_batch(VIDEOS, 7, **SCHEDULE) for _ in range(2))
    assert torch.equal(one.rows, again.rows)
    assert one.captions == again.captions
    assert torch.equal(torch.rand(3, generator=one.generator), torch.rand(3, generator=again.generator))
    assert not torch.equal(one.rows, draw_batch(VIDEOS, 8, **SCHEDULE).rows)
    assert not torch.equal(one.rows, draw_batch(VIDEOS, 7, **SCHEDULE | {"seed": 6}).rows)


@given(st.integers(0, 99), st.integers(2, 40), st.floats(0, 1))
def test_a_batch_is_full_without_repetition_and_holds_its_share_of_twins(step, batch_size, twin_share):
    batch = draw_batch(VIDEOS, step, **SCHEDULE | {"batch_size": batch_size, "twin_share": twin_share})
    rows = batch.rows.tolist()
    assert len(rows) == len(set(rows)) == batch_size
    paired = sum(VIDEOS[row].twin in rows for row in rows)
    assert paired >= 2 * (int(batch_size * twin_share) // 2)
    assert all(caption in VIDEOS[row].captions for row, caption in zip(rows, batch.captions, strict=True))


def test_hard_videos_wait_for_their_turn():
    easy = draw_batch(
        VIDEOS, 0, **SCHEDULE | {"difficulty": [Stage(0.0, 1), Stage(0.5, 3)], "twin_share": 0.0}
    )
    assert {VIDEOS[row].difficulty for row in easy.rows.tolist()} == {1}


def test_clips_grow_longer():
    assert [draw_batch(VIDEOS, step, **SCHEDULE).num_frames for step in (0, 49, 50, 99)] == [1, 1, 8, 8]
    assert level_at(0.3, [Stage(0.0, 1), Stage(0.3, 2), Stage(0.6, 3)]) == 2


def test_a_batch_larger_than_the_data_is_refused():
    with pytest.raises(ValueError, match=r"batch_size \(61\) is above the 60 videos"):
        draw_batch(VIDEOS, 0, **SCHEDULE | {"batch_size": 61})


def test_a_schedule_begins_at_the_start():
    with pytest.raises(ValueError, match=r"num_frames must have rising starts from 0.0, has \[0.5\]"):
        check_stages("num_frames", [Stage(0.5, 1)])


@given(st.integers(1, 40), st.integers(1, 40))
def test_one_frame_is_picked_from_each_segment(cached, num_frames):
    num_frames = min(cached, num_frames)
    generator = torch.Generator().manual_seed(0)
    picked = pick_segment_random(cached, num_frames=num_frames, batch=3, generator=generator)
    assert picked.shape == (3, num_frames)
    for segment in range(num_frames):
        low, high = segment * cached // num_frames, (segment + 1) * cached // num_frames
        assert ((picked[:, segment] >= low) & (picked[:, segment] < high)).all()


def test_more_frames_than_were_cached_are_refused():
    with pytest.raises(ValueError, match=r"num_frames \(9\) must be between 1 and the 8 cached"):
        pick_segment_random(8, num_frames=9, batch=1, generator=torch.Generator())
