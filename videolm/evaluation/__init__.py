"""A model on a benchmark: what is there, what comes out, and a report that says how it was measured."""

from videolm.evaluation.answer_report import AnswerReport
from videolm.evaluation.benchmarks import evaluate
from videolm.evaluation.caption_report import CaptionReport
from videolm.evaluation.inventory import Inventory, SplitCheck, check_benchmark
from videolm.evaluation.report import Report
from videolm.evaluation.retrieval import retrieval_scores
from videolm.evaluation.retrieval_report import Result, RetrievalReport
from videolm.evaluation.twins import twin_accuracy
from videolm.evaluation.videos import locate_videos

__all__ = [
    "AnswerReport",
    "CaptionReport",
    "Inventory",
    "Report",
    "Result",
    "RetrievalReport",
    "SplitCheck",
    "check_benchmark",
    "evaluate",
    "locate_videos",
    "retrieval_scores",
    "twin_accuracy",
]
