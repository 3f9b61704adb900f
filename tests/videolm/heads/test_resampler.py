"""What a language model reads of a video: of any number of frames, merged or not, alone or in a batch."""

from dataclasses import replace

import pytest
import torch

from tests.videolm.heads.speaking import TEXT_WIDTH, question, resampler, rows_of, video
from videolm.heads.resampler import frames_of, relative_times


@pytest.fixture(autouse=True)
def _same_numbers_every_run() -> None:
    torch.manual_seed(0)


def made(**settings):
    connector = resampler(**settings).eval()
    with torch.no_grad():
        for parameter in connector.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return connector


KINDS = {
    "linear": {"num_queries": 0},
    "mlp": {"num_queries": 0, "mlp_width": 24},
    "queries": {},
    "per_frame": {"per_frame": True},
    "maxima": {"maxima": True},
    "maxima_and_all": {"maxima": True, "num_queries": 0},
    "question": {"question_width": TEXT_WIDTH},
    "question_per_frame": {"question_width": TEXT_WIDTH, "per_frame": True},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_a_video_of_a_batch_gets_what_it_gets_alone(settings):
    connector = made(**settings)
    videos, asked = video(3, lengths=[4, 2, 1]), question(3, lengths=[6, 2, 4])
    asked = asked if "question_width" in settings else None
    together = connector(videos, asked)
    for row, frames in enumerate([4, 2, 1]):
        alone = rows_of(videos, slice(row, row + 1))
        alone = replace(alone, **{n: v[:, : 3 * frames] for n, v in vars(alone).items() if n != "embedding"})
        words = None
        if asked is not None:
            words = rows_of(asked, slice(row, row + 1))
            length = int(words.mask.sum())
            words = replace(words, tokens=words.tokens[:, :length], mask=words.mask[:, :length])
        expected = connector(alone, words)
        real = together.mask[row]
        assert int(real.sum()) == expected.embeds.shape[1]
        torch.testing.assert_close(together.embeds[row, real], expected.embeds[0], atol=1e-5, rtol=1e-5)
        assert together.embeds[row].isfinite().all()


def test_maxima_are_those_of_each_frame_and_stand_first():
    connector, clip = made(maxima=True, num_queries=0, max_frames=0), video(2, frames=3, tokens=4)
    prefix = connector(clip)
    frames = connector.norm(clip.tokens).unflatten(1, (3, 4))
    torch.testing.assert_close(prefix.embeds[:, :3], connector.best(frames.amax(dim=2)))
    torch.testing.assert_close(prefix.embeds[:, 3:], connector.out(frames.flatten(1, 2)))


def test_a_token_of_size_s_counts_as_s_equal_tokens():
    connector = made(max_frames=0)
    apart = video(1, frames=1, tokens=6)
    apart.tokens[:, 3:6] = apart.tokens[:, 2:3]
    merged = replace(
        apart,
        tokens=apart.tokens[:, :3],
        mask=apart.mask[:, :3],
        sizes=torch.tensor([[1.0, 1.0, 4.0]]),
        pts_seconds=apart.pts_seconds[:, :3],
    )
    torch.testing.assert_close(connector(merged).embeds, connector(apart).embeds, atol=1e-5, rtol=1e-5)
    unsized = replace(merged, sizes=torch.ones(1, 3))
    assert not torch.allclose(connector(unsized).embeds, connector(apart).embeds, atol=1e-3)


def test_the_order_of_tokens_matters_only_through_their_times():
    connector = made()
    clip = video(1)
    order = torch.randperm(12)
    shuffled = replace(clip, **{n: v[:, order] for n, v in vars(clip).items() if n != "embedding"})
    torch.testing.assert_close(connector(shuffled).embeds, connector(clip).embeds, atol=1e-5, rtol=1e-5)
    backwards = replace(clip, pts_seconds=3 - clip.pts_seconds)
    assert not torch.allclose(connector(backwards).embeds, connector(clip).embeds, atol=1e-3)


def test_time_is_the_place_in_the_clip_whatever_its_speed_and_frames():
    table = made(num_queries=0).time
    rows = table(replace(video(1), tokens=torch.zeros(1, 12, 16)))[0, ::3]
    torch.testing.assert_close(rows, table.table)
    slow = replace(video(1), tokens=torch.zeros(1, 12, 16))
    torch.testing.assert_close(table(replace(slow, pts_seconds=90 + 7 * slow.pts_seconds))[0, ::3], rows)
    # seven frames on four rows: every second one lies half way
    long = table(replace(video(1, frames=7), tokens=torch.zeros(1, 21, 16)))[0, ::3]
    torch.testing.assert_close(long[::2], rows)
    torch.testing.assert_close(long[1], rows[:2].mean(dim=0))
    assert relative_times(video(1, frames=1)).eq(0).all()


def test_a_frame_sees_its_own_tokens_only():
    connector = made(per_frame=True, max_frames=0)
    clip = video(1)
    changed = replace(clip, tokens=clip.tokens.clone())
    changed.tokens[:, 3:6] += 1
    same = (connector(changed).embeds == connector(clip).embeds).all(dim=-1).view(4, 5)
    assert same.all(dim=1).tolist() == [True, False, True, True]


def test_missing_times_and_joined_frames_are_refused():
    clip = video(1)
    for settings in ({}, {"per_frame": True, "max_frames": 0}):
        with pytest.raises(ValueError, match="give pts_seconds to encode_video"):
            made(**settings)(replace(clip, pts_seconds=torch.full_like(clip.pts_seconds, torch.nan)))
    joined = replace(clip, pts_seconds=clip.pts_seconds.roll(1, dims=1))
    with pytest.raises(ValueError, match=r"a reduction plan has joined frames.*such as tome:r=1"):
        frames_of(joined)
    # no time comes back, but one lies between two frames
    between = torch.tensor([[0.0, 0, 0, 0, 0.5, 0.5, 0.5, 1, 1, 1, 1, 1]])
    with pytest.raises(ValueError, match="joined frames"):
        frames_of(replace(clip, pts_seconds=between, sizes=torch.full((1, 12), 2.0)))


def test_frames_are_runs_of_one_time_with_as_many_tokens_as_they_have():
    clip = replace(video(2), pts_seconds=(torch.arange(12) // 3).float().expand(2, -1).clone())
    clip.pts_seconds[0, 5] = 2.0
    clip.mask[1, 0] = clip.mask[1, 9:] = False
    found = frames_of(clip)
    rows = found.places.masked_fill(~found.mask, -1).tolist()
    assert [[[place for place in frame if place >= 0] for frame in clip] for clip in rows] == [
        [[0, 1, 2], [3, 4], [5, 6, 7, 8], [9, 10, 11]],
        [[1, 2], [3, 4, 5], [6, 7, 8], []],
    ]
    assert torch.equal(found.gather(clip.tokens)[found.mask][:3], clip.tokens[0, :3])


@pytest.mark.parametrize("settings", [{}, {"question_width": TEXT_WIDTH}], ids=["plain", "question"])
def test_frames_of_unequal_numbers_of_tokens_are_read_alike_in_any_batch(settings):
    """As drop_repeats leaves them, and repeated times."""
    connector = made(per_frame=True, max_frames=0, **settings)
    asked = question(3) if settings else None
    times = [
        [0.0] * 6 + [1.0] * 6,
        [0.0] * 4 + [1.0] * 4 + [2.0] * 4,
        [0.0] * 5 + [1.0] * 2 + [2.0] + [0.0] * 4,
    ]
    videos = replace(video(3), pts_seconds=torch.tensor(times))
    videos.mask[2, 8:] = False
    together = connector(videos, asked)
    assert together.mask.sum(dim=1).tolist() == [10, 15, 15]
    for row in range(3):
        alone = rows_of(videos, slice(row, row + 1))
        length = int(alone.mask.sum())
        alone = replace(alone, **{n: v[:, :length] for n, v in vars(alone).items() if n != "embedding"})
        words = None if asked is None else rows_of(asked, slice(row, row + 1))
        torch.testing.assert_close(
            together.embeds[row : row + 1][together.mask[row : row + 1]],
            connector(alone, words).embeds[0],
            atol=1e-5,
            rtol=1e-5,
        )


def test_a_question_is_for_a_connector_that_reads_it():
    with pytest.raises(ValueError, match="question is given, but this connector was made without"):
        made()(video(), question())
    with pytest.raises(ValueError, match="question is missing"):
        made(question_width=TEXT_WIDTH)(video())
    with pytest.raises(ValueError, match=r"num_queries \(0\) must be above 0"):
        resampler(num_queries=0, per_frame=True)
    with pytest.raises(ValueError, match=r"query_width \(30\) must be a multiple of num_heads \(4\)"):
        resampler(query_width=30)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_every_weight_learns(settings):
    connector = made(**settings)
    prefix = connector(video(), question() if "question_width" in settings else None)
    prefix.embeds.square().sum().backward()
    for name, parameter in connector.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
