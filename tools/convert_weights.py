"""Weights of another project as a folder of ours or of transformers: `python tools/convert_weights.py SRC DST`.

Reads all that `videolm.load` reads, and files too that hold more than tensors: their other objects are never made,
only named. For weights that do not say it, `--activation` tells what they were trained with.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import torch
import typer

from videolm.encoders.weights import read_weights
from videolm.pipeline.exporting import export_transformers
from videolm.pipeline.loading import of_weights


def main(
    source: Annotated[Path, typer.Argument(help="A file of weights, or its folder.")],
    target: Annotated[Path, typer.Argument(help="A folder that does not exist yet, or is empty.")],
    to: Annotated[Literal["videolm", "transformers"], typer.Option(help="Layout of TARGET.")] = "videolm",
    activation: Annotated[
        Literal["quick_gelu", "gelu"] | None,
        typer.Option(help="Where SOURCE does not say it. OpenAI's: quick_gelu; most of LAION's: gelu."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Default: the name of SOURCE.")] = None,
    licence: Annotated[str, typer.Option(help="Of the weights, for the description.")] = "unknown",
) -> None:
    """Convert weights, and say what was left out."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise SystemExit(f"error: {target} exists and is not empty; name a new folder")
    try:
        weights = read_weights(source, activation=activation, allow_objects=True)
        model = of_weights(
            weights,
            name=name or source.resolve().name,
            licence=licence,
            device="cpu",
            dtype=torch.float32,
            # not used here, only written again
            allow_untrained=True,
        )
        if to == "videolm":
            model.save(target)
        else:
            export_transformers(model, target)
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
    num_parameters = sum(tensor.numel() for tensor in weights.state.values())
    print(f"{weights.file}: {weights.layout}, {num_parameters:,} parameters")
    print(f"left out: {', '.join(weights.left_out) or 'nothing'}")
    if model.shape.has_text and model.tokenizer is None:
        print(f"no tokenizer beside the weights: lay one into {target} to encode texts")
    print(f"written: {target}")


if __name__ == "__main__":
    typer.run(main)
