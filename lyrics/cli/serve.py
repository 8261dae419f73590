"""``lyrics serve``: a model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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


def serve(
    model: ModelOption = "lyrics-tiny",
    settings: SetOption = None,
    weights: WeightsOption = "pretrained",
    download: DownloadFlag = False,
    device: DeviceOption = None,
    dtype: DtypeOption = "float32",
    host: Annotated[str, typer.Option("--host", help="Where to listen; only this machine unless given.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8000,
    name: Annotated[str | None, typer.Option("--name", help="What clients call the model.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key", envvar="LYRICS_API_KEY", show_envvar=True, help="Asked of clients as a bearer token."
        ),
    ] = None,
    allow_image_url: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-image-url",
            metavar="HOST",
            help="Fetch images of this host by https; may be given several times. Nothing is fetched unless given.",
        ),
    ] = None,
    max_images: Annotated[int, typer.Option("--max-images", min=0, help="Images of one request.")] = 8,
    max_megapixels: Annotated[float, typer.Option("--max-megapixels", min=0.01, help="Of one image.")] = 24.0,
    max_body: Annotated[int, typer.Option("--max-body", min=1, metavar="MIB", help="Of one request.")] = 32,
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Tokens of one answer.")] = 1024,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds for a request, waiting included.")] = 120,
    queue: Annotated[int, typer.Option("--queue", min=1, help="Requests that may wait; then 429.")] = 64,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Answers that are written together.")] = 16,
    image_cache: Annotated[
        int,
        typer.Option("--image-cache", min=0, metavar="MIB", help="Of what was seen in images, should they come again."),
    ] = 256,
) -> None:
    """Serve a model in the form of OpenAI's chat completions, with boxes in and out, until Ctrl+C or SIGTERM.

    POST /v1/chat/completions, POST /v1/refine, GET /v1/models, /health, /metrics, /openapi.json.
    """
    from lyrics.workflows.serve.hosting import bound, check_hosts, check_installed, hosts_for, url_of
    from lyrics.workflows.serve.limits import Limits

    check_installed()
    check_hosts(allow_image_url or ())
    limits = Limits(
        body_bytes=max_body * 2**20,
        images=max_images,
        image_pixels=round(max_megapixels * 1_000_000),
        tokens=max_tokens,
        seconds=timeout,
        waiting=queue,
        batch=batch,
        seen_bytes=image_cache * 2**20,
    )
    names, listening = hosts_for(host, api_key), bound(host, port)
    print_text(f"loading {model} ...", error=True)
    opened = open_model(model, weights, settings, None, device, dtype, download=download)

    from lyrics.workflows.serve.app import Serving
    from lyrics.workflows.serve.fetching import Fetcher
    from lyrics.workflows.serve.server import run
    from lyrics.workflows.serve.worker import Worker

    called = name or (Path(model).resolve().name if Path(model).exists() else model)
    fetcher = Fetcher(allow_image_url or (), max_bytes=limits.body_bytes)
    serving = Serving(Worker(opened, limits), called, limits, fetcher, api_key, names)
    run(serving, listening, ready=lambda: print_text(f"serving {called} on {url_of(listening)}"))
