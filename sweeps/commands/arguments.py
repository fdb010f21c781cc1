"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

File = Annotated[Path, typer.Argument(help="The sweep's YAML file.", show_default=False)]
Name = Annotated[str, typer.Argument(help="The sweep's name.", show_default=False)]
Number = Annotated[int, typer.Argument(help="The trial's number.", show_default=False, min=0)]
Numbers = Annotated[list[int] | None, typer.Argument(help="The trials' numbers.", show_default=False, min=0)]
Storage = Annotated[Path, typer.Option("--storage", help="Folder that holds the sweeps.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Replace a value of the file; repeatable.")
]
Total = Annotated[int | None, typer.Option("--trials", min=1, help="Trials in total.", show_default=False)]
Address = Annotated[str | None, typer.Option("--address", help="Ray cluster to join; without it, a local one.")]
Scale = Annotated[
    Literal["smoke"] | None,
    typer.Option("--scale", help="Shrink the file to a test of its code path: seconds, no data, no weights."),
]
RUNS = Path("runs")
