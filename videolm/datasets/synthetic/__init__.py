"""The rendered world: moving shapes with captions and questions, made from a seed."""

from videolm.datasets.synthetic.parsing import ParsedCaption, parse_caption
from videolm.datasets.synthetic.questions import QUESTION_TYPES, question_type
from videolm.datasets.synthetic.scoring import ATTRIBUTES, AttributeScores, attribute_scores
from videolm.datasets.synthetic.sheet import SheetRow, contact_sheet
from videolm.datasets.synthetic.words import VOCABULARY
from videolm.datasets.synthetic.world import (
    TwinPair,
    WorldVideo,
    plan_twins,
    plan_world,
    query_caption,
    read_scenes,
    read_twins,
    read_world,
    recall_ceiling,
    render_world,
    world_sheet,
)

__all__ = [
    "ATTRIBUTES",
    "QUESTION_TYPES",
    "VOCABULARY",
    "AttributeScores",
    "ParsedCaption",
    "SheetRow",
    "TwinPair",
    "WorldVideo",
    "attribute_scores",
    "contact_sheet",
    "parse_caption",
    "plan_twins",
    "plan_world",
    "query_caption",
    "question_type",
    "read_scenes",
    "read_twins",
    "read_world",
    "recall_ceiling",
    "render_world",
    "world_sheet",
]
