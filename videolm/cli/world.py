"""The rendered world, and the tour through it: `render`, `demo`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from videolm.cli.options import Format, OutputFormat, Quiet, Split, Verbose
from videolm.cli.output import print_json, print_table, reporting, say


def render(
    out: Annotated[Path, typer.Option(help="Folder for the world.")],
    videos: Annotated[
        int, typer.Option(min=8, help="Videos of all splits; an eighth of them is test.")
    ] = 400,
    seed: Annotated[int, typer.Option(min=0, help="Another seed is another world.")] = 0,
    split: Annotated[Split, typer.Option(help="Make the files of one split only.")] = Split.all,
    workers: Annotated[int, typer.Option(min=1, help="Processes that draw.")] = 2,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Make a world of moving shapes: mp4 files with captions and questions in MSR-VTT's formats."""
    with reporting(verbose):
        from tqdm import tqdm

        from videolm.datasets.synthetic import render_world, world_sheet

        with tqdm(desc="render", unit="video", disable=True if quiet else None) as bar:
            made = render_world(
                out,
                num_videos=videos,
                seed=seed,
                split=split.value,
                workers=workers,
                on_video=lambda _: bar.update(),
            )
        world_sheet(made[:24]).save(out / "contact_sheet.png")
        if not quiet:
            say(f"rendered {len(made)} videos into {out}, the first of them on {out / 'contact_sheet.png'}")


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the world, its index and the picture.")] = Path(
        "demo"
    ),
    format: OutputFormat = Format.table,
    verbose: Verbose = False,
) -> None:
    """Render a small world, index it with the model that ships, search it, caption and ask what was found."""
    with reporting(verbose):
        from videolm.demo import describe, run_demo

        found = run_demo(out)
        said = [asdict(one) | {"path": one.path.name} for one in describe(out, found)]
        columns = ("first hit is", "has a twin", "video", "score", "query")
        rows = [
            (
                "right" if answer.is_right else "wrong",
                "yes" if answer.is_twin else "",
                answer.hits[0].id,
                f"{answer.hits[0].score:.3f}",
                answer.query,
            )
            for answer in found
        ]
        if format is Format.json:
            print_json({"found": [dict(zip(columns, row, strict=True)) for row in rows], "said": said})
        else:
            print_table(columns, rows)
            if said:
                print_table(list(said[0]), [list(one.values()) for one in said])
        right = sum(answer.is_right for answer in found)
        say(f"{right} of {len(found)} queries found their video first; the hits are on {out / 'found.png'}")
        if said:
            right = sum(one["answer"] == one["right_answer"] for one in said)
            say(f"{right} of {len(said)} answers are right; captions and answers are on {out / 'said.png'}")
        else:
            say("this model has no heads for captions and answers, so that it says nothing of them")
