"""``lyrics demo``: a page on which a model shows what it sees."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from lyrics.cli._model import (
    DeviceOption,
    DownloadFlag,
    DtypeOption,
    ModelOption,
    WeightsOption,
    open_model,
)
from lyrics.cli._output import SetOption, print_text


def demo(
    model: ModelOption = "lyrics-tiny",
    settings: SetOption = None,
    weights: WeightsOption = "pretrained",
    download: DownloadFlag = False,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    host: Annotated[str, typer.Option("--host", help="Where to listen; only this machine unless given.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 7860,
    detector: Annotated[
        list[str] | None, typer.Option("--detector", help="Another detector to choose on the page; several times.")
    ] = None,
    segmenter: Annotated[
        list[str] | None, typer.Option("--segmenter", help="Another segmenter to choose on the page; several times.")
    ] = None,
) -> None:
    """A page on which a model shows what it sees, and answers: drop an image, draw a box, ask.

    Whoever reaches the page may choose parts, for everybody: it is for this machine, unless --host says otherwise.
    """
    from lyrics.workflows.serve.hosting import bound, check_installed, hosts_for

    check_installed(["gradio"], "demo")
    hosts_for(host, None)
    bound(host, port).close()
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    print_text(f"loading {model} ...", error=True)
    opened = open_model(model, weights, settings, None, device, dtype, download=download)

    from lyrics.cli._overrides import parse_overrides
    from lyrics.workflows.demo.page import build_page, launch
    from lyrics.workflows.demo.parts import Parts
    from lyrics.workflows.demo.scenes import scenes
    from lyrics.workflows.demo.waiting import wait_for_signal
    from lyrics.workflows.serve.worker import Worker

    def load(overrides: Any) -> Any:
        if not overrides:
            return opened
        from lyrics.core.dtypes import dtype_name
        from lyrics.core.loading import load_model

        return load_model(
            model,
            overrides={**parse_overrides(settings), **overrides},
            weights=weights,
            downloads=download or None,
            device=device,
            dtype=dtype_name(dtype),
        )

    worker = Worker(opened)
    worker.start()
    try:
        parts = Parts(worker, load, {"detector": tuple(detector or ()), "segmenter": tuple(segmenter or ())})
        page = build_page(worker, parts, model, scenes())
        print_text(f"showing {model} on {launch(page, host, port)}")
        wait_for_signal()
        page.close(verbose=False)
    finally:
        worker.stop()
