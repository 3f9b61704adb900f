"""A model of ours as a folder of transformers, settings and tokenizer included."""

from __future__ import annotations

import os
from pathlib import Path

from videolm.encoders.weights import export_folder
from videolm.pipeline.processors import write_preprocess
from videolm.pipeline.video_lm import VideoLM, to_float32


def export_transformers(model: VideoLM, folder: str | os.PathLike[str]) -> None:
    """Write what `CLIPModel.from_pretrained` opens (`SiglipModel` for a siglip), and `load` as well.

    Weights, config, image processor and tokenizer. A model with a temporal module, an aggregator or a plan to
    reduce tokens is a ValueError: transformers has no place for them; so is one that was loaded to compute in less
    than float32.
    """
    folder = Path(folder)
    export_folder(folder, shape=model.shape, state=to_float32(model.state()))
    write_preprocess(folder, model.preprocess)
    if model.tokenizer is not None:
        model.tokenizer.save(folder)
