"""The rendered world: moving shapes with captions and questions, made from a seed."""

from videolm.datasets.synthetic.sheet import SheetRow, contact_sheet
from videolm.datasets.synthetic.words import VOCABULARY
from videolm.datasets.synthetic.world import (
    TwinPair,
    WorldVideo,
    plan_twins,
    plan_world,
    query_caption,
    read_twins,
    read_world,
    recall_ceiling,
    render_world,
    world_sheet,
)

__all__ = [
    "VOCABULARY",
    "SheetRow",
    "TwinPair",
    "WorldVideo",
    "contact_sheet",
    "plan_twins",
    "plan_world",
    "query_caption",
    "read_twins",
    "read_world",
    "recall_ceiling",
    "render_world",
    "world_sheet",
]
