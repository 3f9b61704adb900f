"""The readers of question answering: the real files where they are there, and small ones, right and wrong."""

import json
from collections import Counter

import pytest

from tests.data import data_path
from videolm.datasets import activitynet_qa, msrvtt_qa, msvd_qa, nextqa, tgif_qa
from videolm.datasets.question_catalog import QUESTION_BENCHMARKS
from videolm.datasets.questions import VideoQuestion

ROW = {
    "answer": "couch",
    "category_id": 14,
    "id": 158581,
    "question": "what do they sit on",
    "video_id": 6513,
}
CHOICE = {"candidates": ["red", "blue"], "answer_index": 1, "answer": "blue", "type": "color"}
NEXT = "video,frame_count,width,height,question,answer,qid,type"


def write_json(path, value):
    path.write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("name", "folder", "split"),
    [
        ("msrvtt-qa", "msrvtt_qa", "val"),
        ("msrvtt-qa", "msrvtt_qa", "test"),
        ("msvd-qa", "msvd_qa", "train"),
        ("msvd-qa", "msvd_qa", "val"),
        ("msvd-qa", "msvd_qa", "test"),
        ("nextqa", "nextqa", "val"),
        ("nextqa", "nextqa", "test"),
        ("nextoe", "nextoe", "val"),
        ("nextoe", "nextoe", "test"),
        ("activitynet-qa", "activitynet_qa", "val"),
        ("activitynet-qa", "activitynet_qa", "test"),
        ("tgif-frameqa", "tgif_qa", "test"),
        ("tgif-transition", "tgif_qa", "test"),
        ("tgif-action", "tgif_qa", "test"),
    ],
)
def test_the_real_split_has_its_published_size(name, folder, split):
    benchmark = QUESTION_BENCHMARKS[name]
    questions = benchmark.read(data_path(folder), split)
    size = benchmark.splits[split]
    assert len(questions) == len({question.id for question in questions}) == size.num_questions
    assert len({question.video_id for question in questions}) == size.num_videos


def test_the_real_types_are_those_of_the_papers():
    msrvtt = msrvtt_qa.read_split(data_path("msrvtt_qa"), "val", type_rule="first-word")
    assert Counter(question.type for question in msrvtt) == {
        "what": 8337,
        "who": 3439,
        "how": 344,
        "when": 106,
        "where": 52,
    }
    activitynet = activitynet_qa.read_split(data_path("activitynet_qa"), "test")
    assert Counter(question.type for question in activitynet)["yes/no"] == 2094
    frames = tgif_qa.read_frameqa(data_path("tgif_qa"), "test")
    assert Counter(question.type for question in frames) == {
        "object": 5586,
        "color": 3904,
        "number": 3148,
        "location": 1053,
    }


@pytest.mark.parametrize(("split", "equal", "right_twice"), [("val", 3, 0), ("test", 8, 2)])
def test_the_questions_of_nextqa_with_equal_candidates_are_kept(split, equal, right_twice):
    questions = nextqa.read_split(data_path("nextqa"), split)
    doubled = [question for question in questions if len(set(question.candidates)) < 5]
    assert len(doubled) == equal
    assert sum(question.candidates.count(question.answer) == 2 for question in doubled) == right_twice


def test_about_half_of_the_open_test_questions_have_a_second_answer():
    questions = nextqa.read_open_split(data_path("nextoe"), "test")
    assert sum(bool(question.other_answers) for question in questions) == 4632
    assert not any(q.other_answers for q in nextqa.read_open_split(data_path("nextoe"), "val"))


def test_msrvtt_qa_in_both_forms_is_the_same(tmp_path):
    write_json(tmp_path / "val_qa.json", [ROW])
    (tmp_path / "test.csv").write_text(
        "video,question,answer,qid,type\n6513,what do they sit on,couch,158581,14\n"
    )
    expected = [VideoQuestion("158581", "video6513", "what do they sit on", "couch", "what")]
    assert msrvtt_qa.read_split(tmp_path, "val") == expected
    assert msrvtt_qa.read_split(tmp_path, "test") == expected
    write_json(tmp_path / "test_qa.json", [ROW])
    with pytest.raises(ValueError, match=r"holds test_qa\.json and test\.csv"):
        msrvtt_qa.read_split(tmp_path, "test")


def test_a_row_with_candidates_and_a_type_keeps_them(tmp_path):
    write_json(tmp_path / "val_qa.json", [ROW | CHOICE])
    (question,) = msrvtt_qa.read_split(tmp_path, "val")
    assert (question.candidates, question.answer_index, question.type) == (("red", "blue"), 1, "color")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "has no questions"),
        ([ROW, ROW], "1 ids are there more than once: 158581"),
        ([ROW | {"video_id": "../7"}], r"video_id '\.\./7' must be a number"),
        ([ROW | {"video_id": True}], "video_id True must be a number"),
        ([ROW | {"question": " "}], "question 158581: question ' ' is no sentence"),
        ([ROW | {"answer": None}], "question 158581: answer None is no sentence"),
        ([ROW | {"type": 3}], "question 158581: type 3 must be a name"),
        ([{"id": 1}], "is not readable: KeyError: 'video_id'"),
        ([7], "is not readable: Type"),
        ([ROW | CHOICE | {"answer_index": 2}], "answer 2 must be a number from 0 to 1"),
        ([ROW | CHOICE | {"answer_index": -1}], "answer -1 must be a number from 0 to 1"),
        ([ROW | CHOICE | {"answer_index": 0}], "candidate 'red' is not the answer 'blue'"),
        ([ROW | CHOICE | {"candidates": "red"}], "candidates 'red' must be a list of texts"),
        ([ROW | {"candidates": ["couch"]}], "KeyError: 'answer_index'"),
    ],
)
def test_rows_of_msrvtt_qa_that_lie_are_errors_that_name_the_file(tmp_path, rows, message):
    write_json(tmp_path / "val_qa.json", rows)
    with pytest.raises(ValueError, match=rf"val_qa\.json.*{message}"):
        msrvtt_qa.read_split(tmp_path, "val")


def test_msvd_qa_takes_the_names_of_its_files_from_the_mapping(tmp_path):
    write_json(tmp_path / "test_qa.json", [ROW | {"video_id": 2}])
    (question,) = msvd_qa.read_split(tmp_path, "test")
    assert question.video_id == "vid2"
    (tmp_path / "youtube_mapping.txt").write_text("-a_1_2 vid1\nb_3_4 vid2\n")
    (question,) = msvd_qa.read_split(tmp_path, "test")
    assert question.video_id == "b_3_4"
    (tmp_path / "youtube_mapping.txt").write_text("-a_1_2 vid1\n")
    with pytest.raises(ValueError, match=r"youtube_mapping\.txt: 1 videos are not in it, the first is vid2"):
        msvd_qa.read_split(tmp_path, "test")


def test_nextqa_in_both_forms_with_the_second_answers(tmp_path):
    choices, opened = tmp_path / "mc", tmp_path / "oe"
    for folder in (choices, opened):
        folder.mkdir()
    (choices / "test.csv").write_text(f"{NEXT},a0,a1,a2,a3,a4\n41,9,6,4,why is it,3,6,CH,a,b,c,d,e\n")
    (opened / "test.csv").write_text(f"{NEXT}\n41,9,6,4,why is it,cold,6,CH\n41,9,6,4,where,sea,7,DL\n")
    write_json(opened / "add_reference_answer_test.json", {"41": {"6": "winter"}})
    (question,) = nextqa.read_split(choices, "test")
    assert (question.id, question.video_id, question.type) == ("41_6", "41", "CH")
    assert (question.answer, question.answer_index, len(question.candidates)) == ("d", 3, 5)
    first, second = nextqa.read_open_split(opened, "test")
    assert (first.answer, first.other_answers) == ("cold", ("winter",))
    assert (second.answer, second.other_answers) == ("sea", ())
    with pytest.raises(ValueError, match=r"it is multiple choice \(nextqa\), not open-ended \(nextoe\)"):
        nextqa.read_open_split(choices, "test")
    with pytest.raises(ValueError, match="no value in the column a0"):
        nextqa.read_split(opened, "test")
    write_json(opened / "add_reference_answer_test.json", {"41": {"9": "winter"}})
    with pytest.raises(ValueError, match="has no question 41_9, but a second answer to it"):
        nextqa.read_open_split(opened, "test")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("41,9,6,4,why,5,6,CH,a,b,c,d,e", "41_6: answer '5' must be a number from 0 to 4"),
        ("41,9,6,4,why,d,6,CH,a,b,c,d,e", "41_6: answer 'd' must be a number from 0 to 4"),
        ("41,9,6,4,why,0,6,XX,a,b,c,d,e", "question 6 of 41: type 'XX' must be one of CW, CH"),
        ("41,9,6,4,why,0,6,CH,,b,c,d,e", "41_6: answer '' is no sentence"),
        ("a/b,9,6,4,why,0,6,CH,a,b,c,d,e", "video id 'a/b' is not a plain name"),
    ],
)
def test_rows_of_nextqa_that_lie_are_errors(tmp_path, row, message):
    (tmp_path / "val.csv").write_text(f"{NEXT},a0,a1,a2,a3,a4\n{row}\n")
    with pytest.raises(ValueError, match=rf"val\.csv.*{message}"):
        nextqa.read_split(tmp_path, "val")


@pytest.mark.parametrize(
    ("asked", "answers", "message"),
    [
        ({"question_id": "v_a_2"}, {}, r"val_a\.json and val_q\.json .* 2 ids are in only one .* v_a_1"),
        ({}, {"type": 9}, r"val_a\.json, v_a_1: type 9 must be a number from 0 to 8"),
        ({}, {"type": "3"}, "type '3' must be a number"),
        ({"question_id": 1}, {}, "id 1 is no sentence"),
        ({"video_name": "/etc"}, {}, "video id 'v_/etc' is not a plain name"),
    ],
)
def test_activitynet_qa_joins_questions_and_answers_or_says_why_not(tmp_path, asked, answers, message):
    question = {"video_name": "a", "question": "is it wet", "question_id": "v_a_1"}
    answer = {"answer": "yes", "type": 3, "question_id": "v_a_1"}
    for rows, kind in ((question, "q"), (answer, "a")):
        write_json(tmp_path / f"val_{kind}.json", [rows])
    assert activitynet_qa.read_split(tmp_path, "val") == [
        VideoQuestion("v_a_1", "v_a", "is it wet", "yes", "yes/no")
    ]
    write_json(tmp_path / "val_q.json", [question | asked])
    write_json(tmp_path / "val_a.json", [answer | answers])
    with pytest.raises(ValueError, match=message):
        activitynet_qa.read_split(tmp_path, "val")


def test_the_published_files_of_tgif_qa_name_the_gif_and_the_type(tmp_path):
    (tmp_path / "Test_frameqa_question.csv").write_text(
        "gif_name\tquestion\tanswer\ttype\tvid_id\tkey\tdescription\n"
        "tumblr_a\twhere is it ?\tsea\t3\tFRAMEQA1\t5\tit is in the sea .\n"
    )
    (tmp_path / "Test_action_question.csv").write_text(
        "gif_name\tquestion\ta1\ta2\ta3\ta4\ta5\tanswer\tvid_id\tkey\n"
        "tumblr_b\tWhat does it do 4 times ?\tnod\trun\tsit\tjump\teat\t1\tACTION4\t26\n"
    )
    (tmp_path / "Test_count_question.csv").write_text(
        "gif_name\tquestion\tanswer\tvid_id\tkey\ntumblr_c\tHow many times does it nod ?\t3\tCOUNT1\t52\n"
    )
    (frame,) = tgif_qa.read_frameqa(tmp_path, "test")
    assert frame == VideoQuestion("FRAMEQA1", "tumblr_a", "where is it ?", "sea", "location")
    (action,) = tgif_qa.read_action(tmp_path, "test")
    assert (action.video_id, action.answer, action.answer_index, action.type) == (
        "tumblr_b",
        "run",
        1,
        "action",
    )
    (count,) = tgif_qa.read_count(tmp_path, "test")
    assert (count.answer, count.type, count.candidates) == ("3", "count", ())


def test_tgif_qa_has_four_tasks_no_validation_and_whole_counts(tmp_path):
    # the shape checker of the tests would refuse the names before the function does
    read = getattr(tgif_qa.read_split, "__wrapped__", tgif_qa.read_split)
    with pytest.raises(ValueError, match=r"split \('val'\) must be one of train, test"):
        read(tmp_path, "val", task="count")
    with pytest.raises(ValueError, match=r"task \('color'\) must be one of frameqa"):
        read(tmp_path, "test", task="color")
    with pytest.raises(FileNotFoundError, match="Train_count_question"):
        tgif_qa.read_count(tmp_path, "train")
    (tmp_path / "count_test.csv").write_text("video,question,answer,qid\n52,how many,many,COUNT1\n")
    with pytest.raises(ValueError, match="COUNT1: answer 'many' must be a whole number"):
        tgif_qa.read_count(tmp_path, "test")
    (tmp_path / "frameqa_test.csv").write_text("video,question,answer,qid,type\n52,what,cat,F1,4\n")
    with pytest.raises(ValueError, match="F1: type '4' must be a number from 0 to 3"):
        tgif_qa.read_frameqa(tmp_path, "test")
