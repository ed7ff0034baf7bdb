"""`overread demo`: the whole loop on real chest X-rays, told as it happens.

Everything it does goes through the doors a hospital would use: images and confirmed diagnoses over HTTP, the line's own
trigger starts the learning, two people sign, one transaction promotes. Then one submitter's labels arrive flipped, and
the same way is closed to them. Nothing here knows more than a client of the API could know, except that it makes the
users and their keys. Patients, hospitals and readers are simulated, and so is the machine of the
second hospital (`MACHINES` of the story); the radiographs and findings are what `pipelines.chest_xrays` found.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from api.cli.doors import StoryStopped, make_people
from api.cli.home import home_at
from api.cli.links import demo_links
from api.cli.stack import Stack
from api.cli.story import MORE_CASES, MORE_ROUNDS, Cycle, Story, Xray, find_xrays, in_words

LINE = "cxr-pneumonia"
PROTOCOL = Path(__file__).parents[2] / "pipelines" / "protocols" / "cxr-pneumonia.yaml"
FIRST_BATCH, GOOD_BATCH, POISONED_BATCH = 240, 800, 240
UNREAD, DIFFERING = 40, 3
XRAYS = FIRST_BATCH + GOOD_BATCH + POISONED_BATCH + UNREAD + DIFFERING
XRAYS += 2 * MORE_ROUNDS * MORE_CASES + 1  # the last one no model sees
MARK = "this-is-a-demo"  # only a home with this file in it is ever emptied
SETTINGS = {
    "OVERREAD_API_PORT": "0",
    "OVERREAD_INFERENCE_PORT": "0",
    "OVERREAD_MLFLOW_PORT": "0",
    "OVERREAD_TRIGGER_SECONDS": "1",
}


def closing_table(cycles: Sequence[Cycle], *, signed: Mapping[int, str]) -> Table:
    """What each model measured on the sealed test, and what became of it; `signed` maps candidate ids to signatures."""
    table = Table(title="What happened", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("model", "data", "n", "AUROC, sealed test", "gates", "decided", "outcome"):
        table.add_column(heading)
    for cycle in cycles:
        who = signed.get(cycle.candidate["candidate_id"])
        table.add_row(
            str(cycle.candidate["number"]),
            f"v{cycle.candidate['dataset_version']:04d}",
            str(cycle.auroc["n"]) if cycle.auroc else "",
            in_words(cycle.auroc),
            f"{len(cycle.results) - len(cycle.missed)} of {len(cycle.results)}",
            f"in {cycle.seconds_to_verdict:.0f} s",
            "[green]champion[/green]" if who else "[red]blocked[/red]",
        )
    for cycle in cycles:
        number, who = cycle.candidate["number"], signed.get(cycle.candidate["candidate_id"])
        why = f"signed by {who}" if who else f"stopped by {', '.join(row['name'] for row in cycle.missed)}"
        table.caption = f"{table.caption}\n" if table.caption else ""
        table.caption += f"model {number}: {why}"
    table.caption_justify = "left"
    return table


def demo(home: Path, *, keep: bool = False) -> int:
    """Run the story under `home` (emptied first); return the exit status."""
    screen = Console(stderr=True)
    begun = time.monotonic()
    if home.exists():
        if not (home / MARK).exists() and any(home.iterdir()):
            screen.print(f"{home} holds something that is not an earlier demo; choose another --home")
            return 2
        shutil.rmtree(home)
    home.mkdir(parents=True)
    (home / MARK).touch()
    try:
        xrays, source = find_xrays(home / "xrays", count=XRAYS)
        with Stack(
            home, SETTINGS | os.environ, report=lambda text: screen.print(f"   [dim]{text}[/dim]", highlight=False)
        ) as stack:
            return _tell(stack, screen, begun, xrays=xrays, source=source, keep=keep)
    except StoryStopped as stopped:
        screen.print(f"[red]The demo stopped:[/red] {stopped}", highlight=False)
        return 1


def _tell(stack: Stack, screen: Console, begun: float, *, xrays: Sequence[Xray], source: str, keep: bool) -> int:
    def chapter(title: str) -> None:
        screen.print(f"\n[bold]{title}[/bold]  [dim]{time.monotonic() - begun:.0f} s[/dim]", highlight=False)

    chapter("1  A question and its protocol")
    story = Story(stack, people=make_people(stack), xrays=xrays, screen=screen, line=LINE)
    story.say(source)
    story.create_line(PROTOCOL.read_text(encoding="utf-8"))

    chapter("2  The first confirmed diagnoses make the first model")
    cycles = story.learn_until_shown(FIRST_BATCH, "pacs-north")
    story.sign_and_promote(cycles[-1].candidate)
    story.show_prediction()

    joins = "joins" if xrays[0].at("south") == xrays[0].at("north") else "joins with another machine"
    chapter(f"3  A second hospital {joins}, and its confirmed diagnoses make a better model")
    story.show_prediction("south")
    cycles += story.learn_in_rounds(GOOD_BATCH, "pacs-south")
    if cycles[-1].passed:
        story.sign_and_promote(cycles[-1].candidate)
        story.show_prediction("south")
    else:
        story.say("[yellow]none was shown to be better and to harm nobody: model 1 stays champion[/yellow]")
        story.say("other patients fall into the sealed test each time; run it again to see a second model get in")

    chapter("4  A poisoned batch: a third hospital's labels arrive flipped")
    cycles.append(story.learn(story.confirm_batch(POISONED_BATCH, "pacs-east", flipped=True)))
    story.try_to_sign(cycles[-1].candidate)
    story.show_prediction()

    champion = story.doors["rita"].get(f"/v1/lines/{LINE}")["champion"]
    story.wait("MLflow's alias to follow", lambda: story.alias_follows(champion))
    story.say(f"MLflow agrees: models:/{LINE}@champion is model {champion['number']}")

    chapter("5  Work for people is left at the console")
    story.leave_work(unread=UNREAD, differing=DIFFERING)

    screen.print()
    screen.print(closing_table(cycles, signed=story.signatures()))
    screen.print(
        f"Done in {time.monotonic() - begun:.0f} s. Patients, hospitals and the second one's machine are simulated. "
        "Not a medical device.",
        highlight=False,
    )
    story.close()
    if keep:
        screen.print(
            f"\nStill running: console {stack.url}/console · API docs {stack.url}/docs · "
            f"MLflow {stack.environment['OVERREAD_MLFLOW_URL']} · "
            f"keys and passwords in {stack.home / 'demo-people.json'}",
            highlight=False,
        )
        for line in demo_links(home_at(stack.home)):
            screen.print(line, highlight=False, soft_wrap=True)
        screen.print("Ctrl-C stops it.", highlight=False)
        stack.wait()
    else:
        screen.print(
            f"To look around (console, API docs, MLflow): overread up --home {stack.home}, or run it with --keep.",
            highlight=False,
            soft_wrap=True,
        )
    return 0
