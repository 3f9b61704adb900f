"""A position in time for clips of any length."""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def time_position_of(
    table: Float[Tensor, "max_frames width"], *, num_frames: int, lengths: Int[Tensor, " batch"] | None
) -> Float[Tensor, "... frames width"]:
    """Rows of `table` for each frame of a clip, (T, D), or (B, T, D) with `lengths`.

    Linear interpolation over the clip as in `torch.nn.functional.interpolate(align_corners=False)`: a clip of
    max_frames frames gets the table itself, one frame gets its middle. Frames after the end get its last row.
    """
    frame = torch.arange(num_frames, device=table.device)
    num_rows, last = len(table), len(table) - 1
    step = num_rows / num_frames if lengths is None else num_rows / lengths.clamp(min=1)[:, None]
    place = ((frame + 0.5) * step - 0.5).clamp(0, last)
    below = place.floor()
    above_share = (place - below).unsqueeze(-1).to(table.dtype)
    below = below.long()
    return table[below] * (1 - above_share) + table[(below + 1).clamp(max=last)] * above_share
