"""A model on a benchmark: what is there, what comes out, and a report that says how it was measured."""

from videolm.evaluation.inventory import Inventory, SplitCheck, check_benchmark
from videolm.evaluation.report import Report, Result
from videolm.evaluation.retrieval import evaluate, retrieval_scores
from videolm.evaluation.twins import twin_accuracy
from videolm.evaluation.videos import locate_videos

__all__ = [
    "Inventory",
    "Report",
    "Result",
    "SplitCheck",
    "check_benchmark",
    "evaluate",
    "locate_videos",
    "retrieval_scores",
    "twin_accuracy",
]
