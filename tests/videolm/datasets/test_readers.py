"""The other benchmarks: their real files where they are there, and tiny files of the same shape."""

import json

import pytest

from tests.data import data_path
from videolm.datasets import activitynet, didemo, lsmdc, msvd, vatex
from videolm.datasets.annotations import queries_of


@pytest.mark.parametrize(
    ("split", "num_videos", "num_captions"),
    [("train", 1200, 48_774), ("val", 100, 4_290), ("test", 670, 27_763)],
)
def test_real_msvd_has_its_published_size(split, num_videos, num_captions):
    videos = msvd.read_split(data_path("msvd"), split)
    assert (len(videos), len(queries_of(videos))) == (num_videos, num_captions)
    assert {video.id for video in videos}.isdisjoint({"vid1", "vid1301"})


@pytest.mark.parametrize(("split", "num_videos", "num_moments"), [("val", 1065, 4180), ("test", 1004, 4021)])
def test_real_didemo_has_its_published_size(split, num_videos, num_moments):
    path = data_path("didemo")
    videos = didemo.read_split(path, split)
    assert len(videos) == len(queries_of(videos)) == num_videos
    words = sum(len(video.captions[0].split()) for video in videos)
    assert 6 < words / num_moments < 10


def test_real_activitynet_has_a_paragraph_for_each_of_4917_videos():
    videos = activitynet.read_split(data_path("activitynet_captions"), "val_1")
    assert len(videos) == len(queries_of(videos)) == 4917
    assert videos[0].captions == (
        "A weight lifting tutorial is given. The coach helps the guy in red with the proper body placement and "
        "lifting technique.",
    )


def test_msvd_in_its_json_form(tmp_path):
    (tmp_path / "captions_msvd.json").write_text(json.dumps({"-a_1_2": ["x", "y"], "b": ["z"]}))
    (tmp_path / "test_list.txt").write_text("-a_1_2\n")
    (tmp_path / "train_list.txt").write_text("b\nc\nd\n")
    (video,) = msvd.read_split(tmp_path, "test")
    assert (video.id, video.captions) == ("-a_1_2", ("x", "y"))
    with pytest.raises(ValueError, match=r"train_list\.txt: video c has no caption .* and 1 more"):
        msvd.read_split(tmp_path, "train")


def test_msvd_in_its_sentence_form_is_named_by_its_files(tmp_path):
    (tmp_path / "youtube_2id.txt").write_text("-a_1_2 vid1\nb_3_4 vid2\n")
    sentences = tmp_path / "msvd_sents_val_lc_nopunc.txt"
    sentences.write_text("vid1\tx\nvid2\tz\nvid1\ty\n")
    assert [(v.id, v.captions) for v in msvd.read_split(tmp_path, "val")] == [
        ("-a_1_2", ("x", "y")),
        ("b_3_4", ("z",)),
    ]
    sentences.write_text("vid1\tx\nvid3\tz\n")
    with pytest.raises(ValueError, match=r"line 2: 'vid3' is not in youtube_2id\.txt"):
        msvd.read_split(tmp_path, "val")
    sentences.write_text("vid1\n")
    with pytest.raises(ValueError, match=r"line 1: caption '' is no sentence"):
        msvd.read_split(tmp_path, "val")


def test_a_pickle_is_not_opened(tmp_path):
    (tmp_path / "raw-captions.pkl").write_bytes(b"cos\nsystem\n(S'touch /tmp/x'\ntR.")
    with pytest.raises(ValueError, match=r"raw-captions\.pkl is a pickle, which can run code"):
        msvd.read_split(tmp_path, "test")


def test_didemo_joins_the_moments_of_a_video_under_both_of_its_endings(tmp_path):
    moments = [
        {"video": "1@N0_2_a.mov", "description": "one. "},
        {"video": "3@N0_4_b.", "description": "other"},
        {"video": "1@N0_2_a.mp4", "description": " two"},
    ]
    (tmp_path / "train_data.json").write_text(json.dumps(moments))
    assert [(v.id, v.captions) for v in didemo.read_split(tmp_path, "train")] == [
        ("1@N0_2_a", ("one. two",)),
        ("3@N0_4_b", ("other",)),
    ]


def test_lsmdc_reads_six_columns_between_tabs(tmp_path):
    path = tmp_path / "LSMDC16_challenge_1000_publictect.csv"
    line = '0001_X_00.00.51.926-00.00.54.129\t1\t2\t1\t2\tSOMEONE says "no", and goes.\n'
    path.write_text(line)
    (clip,) = lsmdc.read_split(tmp_path, "test")
    assert (clip.id, clip.captions) == (
        "0001_X_00.00.51.926-00.00.54.129",
        ('SOMEONE says "no", and goes.',),
    )
    path.write_text(line + line)
    with pytest.raises(ValueError, match="1 ids are there more than once"):
        lsmdc.read_split(tmp_path, "test")
    path.write_text(line + "a\tb\n")
    with pytest.raises(ValueError, match="line 2: 2 columns, expected 6"):
        lsmdc.read_split(tmp_path, "test")


def test_vatex_takes_the_english_captions_and_its_halves_from_lists(tmp_path):
    videos = [{"videoID": f"v{i}_1_11", "enCap": [f"{i}a", f"{i}b"], "chCap": ["x"]} for i in range(3)]
    (tmp_path / "vatex_validation_v1.0.json").write_text(json.dumps(videos))
    (tmp_path / "test_list.txt").write_text("v2_1_11\nv0_1_11\n")
    assert len(queries_of(vatex.read_split(tmp_path, "val"))) == 6
    assert [(v.id, v.captions) for v in vatex.read_split(tmp_path, "test-1500")] == [
        ("v2_1_11", ("2a", "2b")),
        ("v0_1_11", ("0a", "0b")),
    ]


def test_vatex_ids_that_are_there_twice_are_named(tmp_path):
    videos = [{"videoID": "v", "enCap": ["a"]}] * 2
    (tmp_path / "vatex_training_v1.0.json").write_text(json.dumps(videos))
    with pytest.raises(ValueError, match="1 ids are there more than once: v"):
        vatex.read_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("module", "split", "name"),
    [
        (didemo, "test", "test_data.json"),
        (activitynet, "val_1", "val_1.json"),
        (vatex, "test", "vatex_public_test_english_v1.1.json"),
    ],
    ids=["didemo", "activitynet", "vatex"],
)
@pytest.mark.parametrize("text", ["[1]", '{"a": 1}', "3", "null", '[{"video": 3}]'])
def test_json_of_another_shape_is_an_error_that_names_the_file(tmp_path, module, split, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        module.read_split(tmp_path, split)


@pytest.mark.parametrize("module", [msvd, didemo, activitynet, lsmdc, vatex])
def test_an_unknown_split_names_the_known_ones(module, tmp_path):
    read = getattr(module.read_split, "__wrapped__", module.read_split)
    with pytest.raises(ValueError, match=r"split \('dev'\) must be one of train, val"):
        read(tmp_path, "dev")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"val_1\.json"):
        activitynet.read_split(tmp_path, "val_1")
