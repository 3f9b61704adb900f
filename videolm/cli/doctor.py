"""`doctor`: what is installed and what works here."""

from __future__ import annotations

import videolm
from videolm.cli.options import Format, OutputFormat, Verbose
from videolm.cli.output import print_mapping, reporting


def doctor(format: OutputFormat = Format.table, verbose: Verbose = False) -> None:
    """Say what is installed, which decoders work, and where models run."""
    with reporting(verbose):
        import torch

        from videolm.pipeline.video_lm import describe_environment, pick_device
        from videolm_kernels.backend import choose_backend

        device = pick_device("auto")
        choice = choose_backend("temporal_attention", backend="auto", device=device)
        print_mapping(
            {
                "videolm": videolm.__version__,
                **describe_environment(device),
                "dtype": str(torch.float32),
                "kernels": {"temporal_attention": f"{choice.backend} ({choice.reason})"},
            },
            format,
        )
