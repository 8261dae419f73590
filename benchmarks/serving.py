"""Throughput of ``lyrics serve`` with 1, 4 and 16 clients, against one request after the other without a server.

    python benchmarks/serving.py --out benchmarks/results/serving.json

Two loads: ``once``, where no image is shown twice, and ``talk``, where each is asked about four times, as by the turns
of a conversation. Each client sends its next request as soon as its last one is answered; answers are checked against
those of ``model.chat``, each with an image of its own. Two figures stand beside each other: requests a second, which
depends on what else the machine does, and the processor's time for a request, which does not depend on it as much. The
client's part of it is counted, too.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import itertools
import json
import platform
import statistics
import threading
import time
from pathlib import Path
from typing import Any

import lyrics

CLIENTS = (1, 4, 16)
#: Questions about each image.
LOADS = {"once": 1, "talk": 4}


def requests(count: int, each: int) -> list[tuple[Any, str]]:
    """Images of scenes, with ``each`` questions about each of them, in an order in which these stand apart."""
    scenes = count // each
    data: Any = lyrics.build_dataset("lyrics-vl/scenes", {"split": "test", "scenes": scenes, "task": "dialogue"})
    turns = [(data.picture(data[row]), data[row].turns) for row in range(scenes)]
    return [(image, of[number % len(of)].instruction) for number in range(each) for image, of in turns]


def body_of(image: Any, question: str) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    url = "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
    content = [{"type": "text", "text": question}, {"type": "image_url", "image_url": {"url": url}}]
    return json.dumps({"messages": [{"role": "user", "content": content}], "max_tokens": 64}).encode()


def measured(run: Any) -> dict[str, float]:
    """Wall-clock seconds and the processor's, of this whole process."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    return {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}


def clients(port: int, bodies: list[bytes], count: int) -> tuple[dict[str, float], list[str], list[float]]:
    """What so many clients were told, and how long each request took."""
    answers, times = [""] * len(bodies), [0.0] * len(bodies)
    numbers, lock = itertools.count(), threading.Lock()

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        while True:
            with lock:
                number = next(numbers)
            if number >= len(bodies):
                return
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", bodies[number], {"Content-Type": "application/json"})
            response = connection.getresponse()
            data = json.loads(response.read())
            assert response.status == 200, data
            times[number] = time.perf_counter() - began
            answers[number] = data["choices"][0]["message"]["content"]

    def run() -> None:
        threads = [threading.Thread(target=client) for _ in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return measured(run), answers, times


def measure(model: Any, name: str, asked: list[tuple[Any, str]], repeats: int) -> list[dict[str, Any]]:
    """A row for each number of clients, and one without a server."""
    import uvicorn

    from lyrics.workflows.serve.app import Serving, build_app
    from lyrics.workflows.serve.limits import Limits
    from lyrics.workflows.serve.worker import Worker

    bodies = [body_of(*one) for one in asked]
    wanted: list[str] = []

    def one_by_one() -> None:
        wanted[:] = [model.chat(image).ask(question, max_new_tokens=64).text for image, question in asked]

    def served(count: int) -> dict[str, float]:
        """A server of its own, which has seen nothing yet."""
        limits = Limits()
        app = build_app(Serving(Worker(model, limits), name, limits))
        server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning", ws="none"))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.05)
        found, answers, times = clients(server.servers[0].sockets[0].getsockname()[1], bodies, count)
        server.should_exit = True
        thread.join()
        wrong = sum(mine != theirs for mine, theirs in zip(answers, wanted, strict=True))
        assert not wrong, f"{wrong} answers are not those of one by one"
        quantiles = statistics.quantiles(times, n=20)
        return found | {"median_latency": statistics.median(times), "p95_latency": quantiles[-1]}

    one_by_one()  # what is compiled and allocated at first
    rows: dict[str, list[dict[str, float]]] = {}
    for _ in range(repeats):
        rows.setdefault("one by one", []).append(measured(one_by_one))
        for count in CLIENTS:
            rows.setdefault(f"{count} client{'s' * (count > 1)}", []).append(served(count))
    best = {name: min(found, key=lambda one: one["seconds"]) for name, found in rows.items()}
    least = {name: min(one["processor_seconds"] for one in found) for name, found in rows.items()}
    table = []
    for name, found in best.items():
        row = {
            "clients": name,
            "requests_per_second": round(len(asked) / found["seconds"], 2),
            "times_one_by_one": round(best["one by one"]["seconds"] / found["seconds"], 2),
            "processor_ms_per_request": round(1000 * least[name] / len(asked), 1),
            "processor_times_one_by_one": round(least["one by one"] / least[name], 2),
        }
        latency = {key: round(1000 * found[f"{key}_latency"]) for key in ("median", "p95") if f"{key}_latency" in found}
        table.append(row | {f"{key}_ms": value for key, value in latency.items()})
        print(table[-1], flush=True)
    return table


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lyrics-tiny")
    parser.add_argument("--requests", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    model = lyrics.load_model(options.model)
    loads = {}
    for load, each in LOADS.items():
        print(load, flush=True)
        loads[load] = measure(model, options.model, requests(options.requests, each), options.repeats)
    if options.out is not None:
        about = {
            "model": options.model,
            "requests": options.requests,
            "repeats": options.repeats,
            "threads": torch.get_num_threads(),
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
        }
        options.out.write_text(json.dumps({"about": about, "loads": loads}, indent=2) + "\n")


if __name__ == "__main__":
    main()
