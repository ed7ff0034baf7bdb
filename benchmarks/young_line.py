"""How often the second model of a young line passes its gates, by what it is trained with.

The demo's setting without the service: 240 confirmed radiographs make a champion, 800 more a candidate; where that
fails, 400 more come, twice at most. Patients fall into the splits by a random key, the gates are the example
protocol's, each at the level that its ledger grants after the answers so far. A path names what the first, second and
third try are trained with; what several paths have in common is trained once.

    OMP_NUM_THREADS=1 python -m benchmarks.young_line [--keys 16] [--recipe equalise=false] [--south B] [--same-cases] \
        [--tolerance 0.03] [--alone] [--paths full auto auto,warm,full] [--results young.jsonl]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks.pneumonia import DATA, ROOT
from pipelines import chest_xrays, gates, network, predict, sealed_ledger, sites, train, xray_files
from pipelines.beside import Beside
from pipelines.comparison import Comparison, Opinion, Placement, Scored, Sealed, Tuned
from pipelines.manifest import split_of
from pipelines.protocol import Protocol, from_document, parse
from pipelines.types import Digest, GateReport, Strategy

SIZES = (240, 1040, 1440, 1840)
"""Confirmed cases of the line in each dataset version."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Line:
    """The confirmed cases of one line in the order of their coming, and where each patient fell."""

    cases: train.Cases
    splits: list[str]
    protocol: Protocol

    def part(self, split: str, *, version: int) -> train.Cases:
        """The cases of one split in a dataset version."""
        rows = [row for row in range(SIZES[version - 1]) if self.splits[row] == split]
        since = 1 + np.searchsorted(SIZES, rows, "right")
        every = self.cases
        return train.Cases(
            images=every.images[rows], labels=every.labels[rows], sites=every.sites[rows], label_since=since
        )


def line_of(xrays: chest_xrays.ChestXrays, *, key: int, protocol: Protocol, same_cases: bool, south: str) -> Line:
    """Deal a line's cases out of the official training split as the demo has them, or others for every key.

    The second hospital's radiographs are `south`'s of PneumoSites-6; A takes them as they are.
    """
    count = SIZES[-1]
    rows = xray_files.mixed(xrays.train_labels, count=count, seed=0 if same_cases else key)
    images = xrays.train_images[rows]
    theirs = np.random.default_rng([key, 1])
    images[SIZES[0] :] = sites.as_seen(images[SIZES[0] :], site=sites.SITES[south], rng=theirs)
    secret = f"key {key}".encode()
    return Line(
        cases=train.Cases(
            images=images[:, None].astype(np.float32) / 255.0,
            labels=xrays.train_labels[rows],
            sites=np.where(np.arange(count) < SIZES[0], "north", "south"),
            label_since=np.ones(count, dtype=np.int64),
        ),
        splits=[split_of(secret, f"patient:{row}", protocol.splits) for row in range(count)],
        protocol=protocol,
    )


def trained_on(line: Line, *, version: int, strategy: Strategy, champion: train.Trained | None, folder: Path) -> Any:
    """Train by one strategy on one version, from the champion of version 1 if there is one."""
    base, beside = None, None
    if champion is not None:
        data = network.save_weights(champion.module)
        (folder / "champion").write_bytes(data)
        files: dict[str, Any] = {"weights": folder / "champion", "weights_digest": network.digest_of_bytes(data)}
        architecture = network.from_document(champion.metadata["architecture"])
        base = train.Base(**files, architecture=architecture, dataset_number=1)
        beside = Beside(**files, metadata=champion.metadata)
    return train.fit(
        line.part("train", version=version),
        line.part("tune", version=version),
        protocol=line.protocol,
        strategy=strategy,
        seed=line.protocol.recipe.seed,
        base=base,
        beside=beside,
    )


def judged(
    line: Line, *, version: int, candidate: train.Trained, champion: train.Trained | None, answers: Sequence[bool]
) -> GateReport:
    """Hold a candidate against the champion at the level that is left after the `answers` so far."""
    rules = line.protocol.gates
    assert rules.sealed_test is not None, "the example protocol has a plan for its sealed test"
    plan = sealed_ledger.Plan(
        alpha=rules.alpha,
        success_weight=rules.sealed_test.success_weight,
        uses=rules.sealed_test.uses,
        recipe_share=rules.sealed_test.recipe_share,
    )
    sealed, tune = (line.part(split, version=version) for split in ("sealed_test", "tune"))
    comparison = Comparison(
        protocol=line.protocol,
        sealed=_answers(sealed),
        candidate=_scored(candidate, sealed),
        champion=None if champion is None else _scored(champion, sealed),
        tuned=None
        if champion is None
        else Tuned(cases=_answers(tune), candidate=_scored(candidate, tune), champion=_scored(champion, tune)),
        opinions=() if champion is None else _opinions(line, version=version, champion=champion),
        placements=tuple(
            Placement(image_digest=str(row), group=str(row), split=split)
            for row, split in enumerate(line.splits[: SIZES[version - 1]])
        ),
        use={"level": sealed_ledger.local_level(answers, alpha=plan.wallet("recipe"), plan=plan)},
    )
    return gates.decide(comparison, dataset_digest=Digest(f"version {version}"))


def tell_one(line: Line, *, key: int, paths: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Tell one line's story along every path: at which try it passed (None: never), what failed, and what it cost."""
    found: dict[str, Any] = {"key": key, "paths": {}}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        champion = trained_on(line, version=1, strategy="full", champion=None, folder=folder)
        first = judged(line, version=1, candidate=champion, champion=None, answers=())
        found["first"] = [row.name for row in first.results if row.verdict != "pass"]
        found["first_auroc"] = _auroc(first)
        answers = [first.verdict == "pass"]
        made: dict[tuple[int, str], train.Trained] = {}
        for path in paths:
            tries: list[dict[str, Any]] = []
            for version, strategy in enumerate(path, start=2):
                if (version, strategy) not in made:
                    made[version, strategy] = trained_on(
                        line, version=version, strategy=cast(Strategy, strategy), champion=champion, folder=folder
                    )
                candidate = made[version, strategy]
                paid = [one for one in tries if "screen" not in one["missed"]]
                before = [*answers, *[False] * len(paid)]
                report = judged(line, version=version, candidate=candidate, champion=champion, answers=before)
                better = next((row.difference for row in report.results if row.name == "improvement"), None)
                tries.append(
                    {
                        "strategy": strategy,
                        "missed": [row.name for row in report.results if row.verdict != "pass"],
                        "auroc": _auroc(report),
                        "gain": None if better is None else better.value,
                        "sample_gradients": candidate.metadata["sample_gradients"],
                        "seconds": candidate.metadata["seconds"],
                    }
                )
                if report.verdict == "pass":
                    break
            found["paths"][",".join(path)] = tries
    return found


def print_table(lines: Sequence[dict[str, Any]]) -> None:
    """Print how often each path passed at its first, second and third try, as Markdown."""
    sound = [line for line in lines if not line["first"]]
    print(f"\n{len(lines)} keys; in {len(sound)} the first model passed, and these count\n")
    print(
        "| path | passed at once | with 400 more | with 800 more | never | AUROC | gain of the first try | cost of it |"
    )
    print("|---|---|---|---|---|---|---|---|")
    before = np.mean([line["first_auroc"] for line in sound])
    for path in sound[0]["paths"] if sound else ():
        stories = [line["paths"][path] for line in sound]
        at = [len(tries) if not tries[-1]["missed"] else 0 for tries in stories]
        counts = [at.count(n) for n in (1, 2, 3, 0)]
        gain = np.mean([tries[0]["gain"] for tries in stories if tries[0]["gain"] is not None])
        cost = np.mean([tries[0]["sample_gradients"] for tries in stories])
        after = np.mean([tries[0]["auroc"] for tries in stories])
        print(f"| {path} | " + " | ".join(str(n) for n in counts), end=" ")
        print(f"| {before:.3f} to {after:.3f} | {gain:+.4f} | {cost:,.0f} |")
        missed = [name for tries in stories for name in tries[0]["missed"]]
        print(f"  first try missed: { ({name: missed.count(name) for name in sorted(set(missed))}) }", file=sys.stderr)


def main(arguments: list[str]) -> int:
    """Tell every line's story that is not in the results file yet, then print the table."""
    parser = argparse.ArgumentParser(description="How often the second model of a young line passes its gates")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--keys", type=int, default=16)
    parser.add_argument("--first-key", type=int, default=0)
    parser.add_argument("--tolerance", type=float, default=0.0, help="of harm at a site")
    parser.add_argument("--alone", action="store_true", help="thresholds by the rule alone, not beside the champion")
    parser.add_argument("--recipe", nargs="*", default=[], metavar="FIELD=VALUE", help="change the example's recipe")
    parser.add_argument("--south", choices=sites.SITES, default="B", help="whose machine the second hospital has")
    parser.add_argument("--same-cases", action="store_true", help="the demo's own cases for every key, not others")
    parser.add_argument("--paths", nargs="+", default=["full,full,full", "auto,auto,auto", "auto,warm,full"])
    parser.add_argument("--results", type=Path, default=Path("young.jsonl"))
    parser.add_argument("--pause-while", type=Path, help="tell no story while this file is there")
    options = parser.parse_args(arguments)
    xrays = chest_xrays.read(options.data.read_bytes(), source=str(options.data))
    document = parse((ROOT / "pipelines/protocols/cxr-pneumonia.yaml").read_text(encoding="utf-8")).document()
    changes = {name: json.loads(value) for name, value in (change.split("=", 1) for change in options.recipe)}
    document["gates"]["subgroups"]["tolerance"] = options.tolerance
    document["operating_point"]["beside_champion"] = not options.alone
    protocol = from_document({**document, "recipe": {**document["recipe"], **changes}, "data_quality": None})
    lines = []
    if options.results.exists():
        lines = [json.loads(text) for text in options.results.read_text(encoding="utf-8").splitlines()]
    setting = {"protocol": protocol.digest, "south": options.south, "same_cases": options.same_cases}
    told = [line for line in lines if line["setting"] == setting]
    wanted = range(options.first_key, options.first_key + options.keys)
    for key in sorted({*wanted} - {line["key"] for line in told}):
        while options.pause_while is not None and options.pause_while.exists():
            time.sleep(5.0)
        line = line_of(xrays, key=key, protocol=protocol, same_cases=options.same_cases, south=options.south)
        story = tell_one(line, key=key, paths=[path.split(",") for path in options.paths]) | {"setting": setting}
        told.append(story)
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(story) + "\n")
        print(json.dumps(story), file=sys.stderr, flush=True)
    print_table(told)
    return 0


def _auroc(report: GateReport) -> float | None:
    return next((row.candidate.value for row in report.results if row.name == "auroc" and row.candidate), None)


def _answers(cases: train.Cases) -> Sealed:
    return Sealed(labels=cases.labels, groups=np.arange(len(cases.labels)), traits={"site": cases.sites})


def _scored(trained: train.Trained, sealed: train.Cases) -> Scored:
    model = predict.Model(trained.module, trained.metadata)
    scores = model.scores(sealed.images)
    digest = Digest(network.digest_of_bytes(network.save_weights(trained.module)))
    return Scored(
        digest=digest, scores=scores, decided=model.decided(scores, sites=sealed.sites), threshold=model.threshold
    )


def _opinions(line: Line, *, version: int, champion: train.Trained) -> tuple[Opinion, ...]:
    """What the second hospital said of the cases that are new, beside the champion's decision."""
    model, classes = predict.Model(champion.module, champion.metadata), line.protocol.classes
    rows = slice(SIZES[version - 2], SIZES[version - 1])
    decided = model.decision(model.scores(line.cases.images[rows]), sites=line.cases.sites[rows])
    return tuple(
        Opinion(submitter="south", finding=classes[label], champion=said, others=None)
        for label, said in zip(line.cases.labels[rows].tolist(), decided, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
