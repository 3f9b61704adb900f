"""The rendered world: moving shapes with captions and questions, made from a seed."""

from videolm.datasets.synthetic.sheet import SheetRow, contact_sheet
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
    world_words,
)

__all__ = [
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
    "world_words",
]
