"""Which strategy keeps a model current: six hospitals arrive one after another, and every strategy meets them all.

After each arrival the champion is updated by the strategy and scored on the official test set as every site would have
taken it, also the sites still to come. Cost is in sample-gradients, as a share of those of `full` by the same recipe.
Each finished stream is one JSON line; what is already in the file is not run again.

    python -m benchmarks.stream --strategies full auto,example replay finetune --seeds 0 1 2 3 4 --results stream.jsonl
    python -m benchmarks.stream --strategies full,network=medium_cnn --orders ABCDEF CFADBE   # a recipe field changed
    python -m benchmarks.stream --track classes --orders ABCDE EDCBA [--npz FILE]     # classes arrive, not sites
    python -m benchmarks.stream --results stream.jsonl --strategies --charts docs/images    # runs nothing, draws
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks import charts, classes, forgetting, tracks
from benchmarks.pneumonia import DATA, ROOT
from pipelines import chest_xrays, network, predict, train
from pipelines.metrics import auroc
from pipelines.protocol import Protocol, from_document, parse
from pipelines.types import Strategy

PROTOCOL = ROOT / "pipelines" / "protocols" / "cxr-pneumonia.yaml"
MARK = {"gap": 1.0, "cost": 0.25, "worst": 0.936, "forgetting": 0.0, "monotone": -0.005, "unseen": 0.90}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """One finished stream: which it was, R (updates x sites), and what each update cost."""

    track: str
    variant: str
    """Strategy and changed recipe fields, as on the command line."""
    seed: int
    order: str
    protocol_digest: str
    first: list[int]
    """Update that brought the first cases of each site, counted from 0."""
    matrix: list[list[float]]
    sample_gradients: list[int]
    seconds: list[float]
    notes: list[list[str]]

    @property
    def summary(self) -> forgetting.Summary:
        """Its numbers."""
        return forgetting.summarise(np.array(self.matrix), first=self.first)

    @property
    def key(self) -> tuple[str, str, int, str, str]:
        """What makes it the same stream."""
        return self.track, self.variant, self.seed, self.order, self.protocol_digest


PLAIN = {
    "network": "small_cnn",
    "batch_size": 64,
    "learning_rate": 2e-3,
    "optimiser": "adamw",
    "equalise": False,
    "randomise": 0.0,
    "randomise_one_site": 0.0,
    "test_time_shifts": False,
}
"""What the strategies are compared by instead of the example's recipe; `example` in a variant keeps that."""


def protocol_of(variant: str) -> Protocol:
    """The example protocol with the variant's recipe: a strategy, then `,example` or `,field=value` for what changes.

    Every update is by that strategy: no anchors, and no escalation.
    """
    strategy, *changes = variant.split(",")
    document = parse(PROTOCOL.read_text(encoding="utf-8")).document()
    recipe = document["recipe"] | {"strategy": strategy, "anchor_growth": None, "escalation": ()}
    recipe |= {} if "example" in changes else PLAIN
    changed = (change.split("=", 1) for change in changes if change != "example")
    recipe |= {name: _value(text) for name, text in changed}
    return from_document({**document, "recipe": recipe})


def _value(text: str) -> Any:
    """A recipe's value as it was typed: JSON, or else a word that needs no quotes here."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def run(
    arrivals: Sequence[tracks.Arrival],
    *,
    protocol: Protocol,
    seed: int,
    tell: Callable[[str], None] = lambda _line: None,
) -> dict[str, Any]:
    """Update a model by the protocol's strategy at each arrival; returns R, costs, seconds and notes."""
    matrix, costs, seconds, notes = [], [], [], []
    visits = [arrival.site for arrival in arrivals]
    first = [visits.index(site) for site in dict.fromkeys(visits)]
    base: train.Base | None = None
    with tempfile.TemporaryDirectory() as directory:
        for number in range(1, len(arrivals) + 1):
            begun, today = time.monotonic(), arrivals[number - 1]
            trained = train.fit(
                tracks.joined([arrival.train for arrival in arrivals[:number]]),
                tracks.joined([arrival.tune for arrival in arrivals[:number]]),
                protocol=classes.growing(protocol, arrival=today),
                strategy=cast(Strategy, protocol.recipe.strategy),
                seed=seed + 1000 * number,
                base=base,
            )
            seconds.append(round(time.monotonic() - begun, 1))
            data = network.save_weights(trained.module)
            weights = Path(directory) / f"{number}.safetensors"
            weights.write_bytes(data)
            fisher = trained.state.get("fisher")
            (Path(directory) / "fisher").write_bytes(fisher or b"")
            base = train.Base(
                weights=weights,
                weights_digest=network.digest_of_bytes(data),
                architecture=network.from_document(trained.metadata["architecture"]),
                dataset_number=number,
                fisher=Path(directory) / "fisher" if fisher else None,
                fisher_digest=network.digest_of_bytes(fisher) if fisher else None,
            )
            score = _accuracy if today.classes else _score
            matrix.append([score(trained, arrivals[day].test) for day in first])
            costs.append(trained.metadata["sample_gradients"])
            notes.append(trained.metadata["notes"])
            tell(" ".join(f"{value:.3f}" for value in matrix[-1]) + f"   {seconds[-1]:.0f} s")
    return {"first": first, "matrix": matrix, "sample_gradients": costs, "seconds": seconds, "notes": notes}


def read(file: Path) -> list[Stream]:
    """The streams of a results file, none if it is not there; a line that a crash cut short is passed over."""
    if not file.exists():
        return []
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            found.append(Stream(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return found


def by_the_last_protocol(streams: Sequence[Stream]) -> list[Stream]:
    """Without those of a variant that were run by another protocol than its last: they are no repeats of the same."""
    last = {stream.variant: stream.protocol_digest for stream in streams}
    return [stream for stream in streams if stream.protocol_digest == last[stream.variant]]


def table(streams: Iterable[Stream], *, between: tuple[str, str] = ("finetune", "full")) -> list[dict[str, Any]]:
    """One row a variant: means over its streams, gaps and costs `between` naive and full of the same streams."""
    by_variant: dict[str, dict[tuple[str, int, str], Stream]] = {}
    for stream in streams:
        by_variant.setdefault(stream.variant, {})[stream.track, stream.seed, stream.order] = stream
    naive, full = (by_variant.get(variant, {}) for variant in between)
    rows = []
    for variant, mine in by_variant.items():
        row: dict[str, Any] = {"variant": variant, "streams": len(mine)}
        for name in forgetting.Summary.__dataclass_fields__:
            values = [getattr(stream.summary, name) for stream in mine.values()]
            row[name] = float(np.mean(values))
            row[f"{name}_sd"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        both = [key for key in mine if key in full]
        if both:
            row["cost"] = _share(mine, full, both, slice(None))
            row["last_cost"] = _share(mine, full, both, slice(-1, None))
        if both and all(key in naive for key in both):
            ends = [float(np.mean([kind[key].summary.acc for key in both])) for kind in (mine, naive, full)]
            row["gap"] = forgetting.gap_closed(ends[0], naive=ends[1], full=ends[2])
        rows.append(row)
    return sorted(rows, key=lambda row: row["acc"])


def main(arguments: list[str]) -> int:
    """Run what is not in the results file yet, then print the table."""
    options = _options(arguments)
    deal = _dealing(options)
    done = {stream.key for stream in read(options.results)}
    for seed in options.seeds:
        for order in options.orders:
            for variant in options.strategies:
                protocol = protocol_of(variant)
                key = options.track, variant, seed, order, protocol.digest
                if key in done:
                    continue
                _wait(options.pause_while)
                print(f"{options.track} {order} seed {seed}: {variant}", flush=True)
                arrivals = deal(seed, order)
                stream = Stream(
                    **dict(zip(("track", "variant", "seed", "order", "protocol_digest"), key, strict=True)),
                    **run(arrivals, protocol=protocol, seed=seed, tell=lambda line: print("  " + line, flush=True)),
                )
                with options.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(stream)) + "\n")
    every = [one for one in read(options.results) if one.track == options.track and one.order in options.orders]
    streams = by_the_last_protocol(every)
    if older := len(every) - len(streams):
        print(f"left out: {older} streams of {options.results} by an earlier protocol than the last of their variant")
    print_table(table(streams, between=tuple(options.between)))
    if options.charts is not None:
        shown = [stream for stream in streams if not options.strategies or stream.variant in options.strategies]
        draw(shown, options.charts, order=options.orders[0])
    return 0


def draw(streams: Iterable[Stream], folder: Path, *, order: str) -> None:
    """Write the pictures of the streams in one order: every strategy's progress, and what each one forgot."""
    by_variant: dict[str, list[forgetting.Matrix]] = {}
    first: dict[str, list[int]] = {}
    for stream in streams:
        if stream.order == order:
            by_variant.setdefault(stream.variant, []).append(np.array(stream.matrix))
            first[stream.variant] = stream.first
    folder.mkdir(parents=True, exist_ok=True)
    if not by_variant:
        raise SystemExit(f"there is no finished stream in the order {order} to draw")
    pictures = {"stream-every-batch": charts.every_batch(by_variant, order=order)}
    for variant, matrices in by_variant.items():
        name = variant.replace(",", "-").replace("=", "-")
        pictures[f"stream-forgetting-{name}"] = charts.forgetting_map(
            matrices, name=variant, order=order, first=first[variant]
        )
    for name, picture in pictures.items():
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print the rows as Markdown."""
    print("| strategy | streams | ACC | worst | F | BWT | unseen | AAA | M | cost % cumulative/last | gap closed % |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["variant"], str(row["streams"]), f"{row['acc']:.4f} ± {row['acc_sd']:.4f}"]
        cells += [f"{row[name]:.4f}" for name in ("worst", "forgetting", "bwt", "unseen", "aaa", "monotone")]
        cells.append(f"{row['cost']:.1%} / {row['last_cost']:.1%}" if "cost" in row else "")
        cells.append(f"{row['gap']:.0%}" if "gap" in row else "")
        print("| " + " | ".join(cells) + " |")


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Every strategy on the same stream of hospitals")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--npz", type=Path, help="for --track classes: a file in MedMNIST's form instead of digits")
    parser.add_argument("--track", choices=[*sorted(tracks.TRACKS), "classes"], default="six_sites")
    parser.add_argument("--strategies", nargs="*", default=["full", "warm", "replay", "finetune"])
    parser.add_argument(
        "--between", nargs=2, default=["finetune", "full"], metavar=("NAIVE", "FULL"), help="what gaps and costs are of"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--orders", nargs="+", default=["ABCDEF"])
    parser.add_argument("--results", type=Path, default=Path("stream.jsonl"))
    parser.add_argument(
        "--charts", type=Path, help="folder to draw pictures of these strategies into; of all without any"
    )
    parser.add_argument("--pause-while", type=Path, help="start no stream while this file is there")
    return parser.parse_args(arguments)


def _dealing(options: argparse.Namespace) -> Callable[[int, str], Sequence[tracks.Arrival]]:
    """Return what deals the chosen track's arrivals by seed and order."""
    if options.track == "classes":
        every = None if options.npz is None else classes.npz(options.npz)
        return lambda seed, order: classes.arrivals(every or classes.digits(seed=seed), order=order)
    xrays = chest_xrays.read(options.data.read_bytes(), source=str(options.data))
    return lambda seed, order: tracks.TRACKS[options.track](xrays, seed, order)


def _wait(file: Path | None) -> None:
    while file is not None and file.exists():
        time.sleep(5.0)


def _score(trained: train.Trained, test: train.Cases) -> float:
    scores = predict.Model(trained.module, trained.metadata).scores(test.images)
    return auroc(test.labels == 1, scores[:, 1].clip(0.0, 1.0))


def _accuracy(trained: train.Trained, test: train.Cases) -> float:
    """Share of the cases whose class is the likeliest; of a class that the model does not know, none."""
    decided = predict.Model(trained.module, trained.metadata).scores(test.images).argmax(axis=1)
    return float(np.mean(decided == test.labels))


def _share(
    mine: dict[tuple[str, int, str], Stream],
    full: dict[tuple[str, int, str], Stream],
    keys: list[tuple[str, int, str]],
    which: slice,
) -> float:
    spent = sum(sum(mine[key].sample_gradients[which]) for key in keys)
    return spent / sum(sum(full[key].sample_gradients[which]) for key in keys)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
