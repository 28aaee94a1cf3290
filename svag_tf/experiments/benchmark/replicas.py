"""Measures step time and bytes exchanged on several replicas.

A multilayer perceptron is trained on 1, 2 and 4 logical CPUs and in 2 processes of this
machine, which share its cores: this shows the cost of the exchange, not the gain from
more machines.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from svag_tf.experiments import machine
from svag_tf.experiments.benchmark.plots import save_replicas
from svag_tf.experiments.benchmark.serving import environment_of
from svag_tf.experiments.errors import ExperimentError
from svag_tf.experiments.files import writable_folder, write_json, write_text
from svag_tf.experiments.training.launch import environments
from svag_tf.optional import matplotlib, require

AGGREGATIONS = ("mean", "majority_vote")
SETUPS = (("devices", 1), ("devices", 2), ("devices", 4), ("processes", 2))
BATCH, WIDTH, LAYERS = 128, 1024, 3
STEPS, WARM_UP = 20, 3
QUICK = {"width": 64, "steps": 3}
QUICK_SETUPS = (SETUPS[0], SETUPS[-1])
TIMEOUT = 600


def setups(quick: bool) -> tuple[tuple[str, int], ...]:
    """Returns the replicas to measure: their kind and number."""
    return QUICK_SETUPS if quick else SETUPS


def wire_bytes(payload: float, n: int) -> float:
    """Returns the bytes that each of n replicas sends in a ring, for a payload."""
    return 2 * (n - 1) / n * payload


def benchmark_replicas(
    workdir: str | os.PathLike[str],
    quick: bool = False,
    command: str = "",
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measures and writes `replicas.json`, `replicas.md` and `replicas.png`.

    Args:
        workdir: folder for the results.
        quick: a small network and few steps, to try the command.
        command: the command line, for the report.
        report: called with each measurement.

    Returns:
        The content of `replicas.json`.
    """
    require(matplotlib)
    folder = writable_folder(workdir)
    width = QUICK["width"] if quick else WIDTH
    steps = QUICK["steps"] if quick else STEPS
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in AGGREGATIONS}
    for kind, n in setups(quick):
        for row in _measured(kind, n, width, steps):
            own = rows[row["aggregation"]]
            alone = own[0]["seconds"] if own else row["seconds"]
            own.append(row | {"efficiency": alone / (row["seconds"] * n)})
        report(_line([own[-1] for own in rows.values()]))
    results = {
        "command": command,
        "machine": machine.description(),
        "network": {"width": width, "layers": LAYERS, "batch": BATCH, "steps": steps},
        "measured": [row for own in rows.values() for row in own],
    }
    write_json(folder / "replicas.json", results)
    write_text(folder / "replicas.md", report_of(results))
    save_replicas(results, folder / "replicas.png")
    return results


def _line(rows: Sequence[dict[str, Any]]) -> str:
    times = (
        f"{_words(row['aggregation'])} {1e3 * row['seconds']:.1f} ms" for row in rows
    )
    return f"{_replicas(rows[0])}: {', '.join(times)}"


def _replicas(row: dict[str, Any]) -> str:
    one = {"devices": "device", "processes": "process"}[row["kind"]]
    return f"1 {one}" if row["replicas"] == 1 else f"{row['replicas']} {row['kind']}"


def _measured(kind: str, n: int, width: int, steps: int) -> list[dict[str, Any]]:
    """Runs the worker in new processes; returns the first one's measurements."""
    order = [kind, str(n), str(width), str(steps)]
    variables = environments(n) if kind == "processes" else [{}]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "svag_tf.experiments.benchmark.replicas", *order],
            env={**environment_of("tensorflow"), "CUDA_VISIBLE_DEVICES": "", **own},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in variables
    ]
    try:
        printed = [process.communicate(timeout=TIMEOUT) for process in processes]
    except subprocess.TimeoutExpired as error:
        raise ExperimentError(f"{n} {kind} took longer than {TIMEOUT} s.") from error
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, (_, errors) in zip(processes, printed):
        if process.returncode:
            last = "\n".join(errors.splitlines()[-10:])
            raise ExperimentError(f"{n} {kind}: a process failed:\n{last}")
    return json.loads(printed[0][0].splitlines()[-1])


def _work(kind: str, n: int, width: int, steps: int) -> list[dict[str, Any]]:
    """Trains on n replicas of this process, or as one of n processes."""
    from svag_tf.experiments.training.distributed import (
        mirrored_strategy,
        multi_worker_strategy,
    )

    processes = kind == "processes"
    strategy = multi_worker_strategy() if processes else mirrored_strategy(n)
    rows = []
    for aggregation in AGGREGATIONS:
        row = _trained(strategy, aggregation, width, steps)
        if not processes:
            row["loopback_bytes"] = None
        rows.append(row | {"aggregation": aggregation, "kind": kind, "replicas": n})
    return rows


def _trained(strategy: Any, aggregation: str, width: int, steps: int) -> dict[str, Any]:
    """Trains on the replicas of a strategy."""
    import keras
    import numpy as np
    import tensorflow as tf

    import svag_tf

    total = strategy.num_replicas_in_sync
    with strategy.scope():
        keras.utils.set_random_seed(0)
        layers = [keras.layers.Dense(width, "relu") for _ in range(LAYERS)]
        model = keras.Sequential([keras.Input((width,)), *layers])
        model.compile(svag_tf.SSD(1e-4, aggregation=aggregation), "mse")
        model.optimizer.build(model.trainable_variables)
    x = np.random.default_rng(0).normal(size=(BATCH, width)).astype(np.float32)

    def part(context: Any) -> Any:
        return tf.constant(np.split(x, total)[context.replica_id_in_sync_group])

    @tf.function
    def step(data: Any) -> Any:
        losses = strategy.run(model.train_step, args=((data, data),))["loss"]
        return strategy.reduce("MEAN", losses, axis=None)

    data = strategy.experimental_distribute_values_from_function(part)
    for _ in range(WARM_UP):
        step(data).numpy()
    seconds, sent = [], _loopback_bytes()
    for _ in range(steps):
        start = time.perf_counter()
        step(data).numpy()
        seconds.append(time.perf_counter() - start)
    sent = _loopback_bytes() - sent
    payload = model.optimizer.payload
    return {
        "seconds": statistics.median(seconds),
        "parameters": payload.parameters,
        "payload_bytes": payload.bytes,
        "sent_bytes": wire_bytes(payload.bytes, total),
        "loopback_bytes": sent / steps / total,
    }


def _loopback_bytes() -> int:
    """Returns the bytes that this machine has sent to itself; 0 if unknown."""
    try:
        for line in Path("/proc/net/dev").read_text().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == "lo":
                return int(numbers.split()[8])
    except OSError:
        pass
    return 0


def report_of(results: dict[str, Any]) -> str:
    """Formats the results as Markdown."""
    about, network = results["machine"], results["network"]
    lines = [
        "# Replicas: step time and bytes exchanged",
        "",
        f"`{results['command']}`",
        "",
        f"{about['cpu']}, {about['cores']} cores, {about['system']}; commit "
        f"{about['commit']}, {about['date']}.",
        "",
        "![Time, efficiency and bytes by replicas](replicas.png)",
        "",
        f"SSD on {network['layers']} dense layers of {network['width']}, a batch of "
        f"{network['batch']} in all, median of {network['steps']} steps. All replicas "
        "share the cores of one machine, and one replica uses them all: efficiency "
        "(time of one / (n times the time of n)) falls as 1/n even if the exchange "
        "were free. Payload is what each replica puts into the all-reduce; sent is "
        "that times 2 (n - 1)/n, and the last column what each process really sent, "
        "counted on the loopback interface (with TCP's headers and whatever else the "
        "machine sends itself).",
        "",
        "| replicas | aggregation | ms a step | efficiency | bits a parameter | "
        "payload, MB | sent, MB | counted, MB |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in results["measured"]:
        counted = row["loopback_bytes"]
        lines.append(
            f"| {_replicas(row)} | {_words(row['aggregation'])} "
            f"| {1e3 * row['seconds']:.1f} | {row['efficiency']:.2f} "
            f"| {8 * row['payload_bytes'] / row['parameters']:.2f} "
            f"| {row['payload_bytes'] / 1e6:.3f} | {row['sent_bytes'] / 1e6:.3f} "
            f"| {'' if counted is None else f'{counted / 1e6:.3f}'} |"
        )
    return "\n".join(lines) + "\n"


def _words(aggregation: str) -> str:
    return {"mean": "mean gradient", "majority_vote": "majority vote"}[aggregation]


def main(arguments: Sequence[str]) -> None:
    """Makes one measurement in this process and prints a line of JSON."""
    kind, n, width, steps = arguments
    print(json.dumps(_work(kind, int(n), int(width), int(steps))))


if __name__ == "__main__":
    main(sys.argv[1:])
