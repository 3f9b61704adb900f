"""The temporal slot: what lets the frames of a clip see each other inside the image tower.

Each is a hook of a tower (see `blocks.Block`, and `embed` of `clip.ImageTower`). With `zero_init` divided attention,
soft attention and joint attention compute at the start what CLIP does; a message and a shift change it at once. The
order of the frames is heard by divided and joint attention and by the shift; soft attention and messages have no
position in time.
"""

from videolm.encoders.temporal.divided import DividedTemporal
from videolm.encoders.temporal.joint import JointEmbed
from videolm.encoders.temporal.message import DropMessage, MessageToken
from videolm.encoders.temporal.position import time_position_of
from videolm.encoders.temporal.shift import TokenShift
from videolm.encoders.temporal.soft_attentive import SoftAttentive

__all__ = [
    "DividedTemporal",
    "DropMessage",
    "JointEmbed",
    "MessageToken",
    "SoftAttentive",
    "TokenShift",
    "time_position_of",
]
