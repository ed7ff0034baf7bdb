"""Photographs of every page after a demo, for the README and the docs.

    python -m tests.console.screenshots [--home DIR]     # without --home: plays the demo first, some two minutes

What a person would do is done: a case is read, the model asked, a heat map shown. Pictures have few colours, so that
none is larger than 150 kB.
"""

from __future__ import annotations

import argparse
import io
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from api.cli.demo import LINE
from api.cli.home import home_at, read_stack_file
from api.cli.links import make_link
from pipelines import images, network, synthetic, train
from pipelines.protocol import from_document
from pipelines.types import canonical_json
from pipelines.wording import as_read_today, differences
from registry import adjudications, amendments, audit, blobs, candidates, datasets, db, lines, runs, users
from tests import factories
from tests.pipelines.plates import DOCUMENT, drawn
from tests.waiting import until

FOLDER = Path(__file__).parents[2] / "docs" / "images"
PLAY = (sys.executable, "-m", "api.cli", "demo", "--keep", "--home")
LARGEST_BYTES = 400_000
PATIENCE_SECONDS = 3600.0
"""A demo takes some two minutes on a quiet machine, and ten times that on a busy one."""


@contextmanager
def demo(*command: str) -> Iterator[Path]:
    """Play the demo and keep it up; gives its home. However this ends, the demo has stopped then, and its home is gone.

    `command` is what plays it; its last argument will be the home.
    """
    with tempfile.TemporaryDirectory(prefix="ovr-") as folder, ExitStack() as after:
        home = Path(folder) / "demo"
        # A session of its own: Ctrl-C reaches us alone, and we stop it in order.
        process = after.enter_context(
            subprocess.Popen([*command, str(home)], stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
        after.callback(process.wait)  # for after Ctrl-C leaving it waits a quarter of a second
        after.callback(process.terminate)
        end = time.monotonic() + PATIENCE_SECONDS
        assert process.stderr is not None
        for line in process.stderr:
            sys.stderr.write(line)
            if "Ctrl-C stops it" in line:
                break
            if time.monotonic() > end:
                raise SystemExit(f"the demo was not over after {PATIENCE_SECONDS:.0f} s; try on a quiet machine")
        else:
            raise SystemExit("the demo broke off; see above")
        yield home


def leave(number: int, _frame: object) -> None:
    """Leave by the front door, so that the demo is stopped on the way."""
    raise SystemExit(128 + number)


class Camera:
    """Opens pages of a running service as one of its people, and keeps what they see."""

    def __init__(self, browser: Browser, home: Path) -> None:
        stack = read_stack_file(home_at(home))
        assert stack is not None
        assert stack.database_url is not None
        self.browser, self.url, self.database_url = browser, stack.api_url, stack.database_url
        self.blob_root = home_at(home).root / "blobs"

    def enter(self, name: str, *, height: int = 800, scheme: str = "light") -> Page:
        """Somebody's browser, signed in."""
        context = self.browser.new_context(
            base_url=self.url, viewport={"width": 1280, "height": height}, color_scheme=scheme
        )
        page = context.new_page()
        page.goto(make_link(database_url=self.database_url, api_url=self.url, name=name))
        page.get_by_role("button", name="Sign in as").click()
        page.wait_for_url("**/console")
        return page

    def shoot(self, page: Page, name: str, *, path: str | None = None, whole: bool = False) -> None:
        """Keep what a page shows."""
        if path is not None:
            page.goto(path)
        page.wait_for_load_state("networkidle")
        if page.locator("canvas").count():
            page.locator("canvas[data-drawn]").wait_for()
        self._keep(page.screenshot(full_page=whole), name)

    def shoot_part(self, page: Page, name: str, region: str, *, tallest: int = 700) -> None:
        """Keep the upper part of one region of a page, with all of its pictures."""
        part = page.get_by_role("region", name=region).first
        for place in range(part.get_by_role("img").count()):
            part.get_by_role("img").nth(place).scroll_into_view_if_needed()
        page.wait_for_load_state("networkidle")
        self._keep(part.screenshot(), name, tallest=tallest)

    def _keep(self, taken: bytes, name: str, *, tallest: int = 100_000) -> None:
        picture = Image.open(io.BytesIO(taken)).convert("RGB")
        picture = picture.crop((0, 0, picture.width, min(picture.height, tallest)))
        target = FOLDER / f"console-{name}.png"
        for colours in (256, 128, 64, 32):  # dithering keeps greys grey, and costs bytes
            picture.quantize(colours, dither=Image.Dither.FLOYDSTEINBERG).save(target, optimize=True)
            if target.stat().st_size <= LARGEST_BYTES:
                return
        raise SystemExit(f"{target} is larger than {LARGEST_BYTES} bytes")


def photograph(camera: Camera) -> None:
    """Walk through the console as each of the demo's people."""
    with db.connect(camera.database_url) as connection:
        line = lines.get_line(connection, LINE)
        made = candidates.list_candidates(connection, line.line_id)
        passed = next(one for one in made if one.state == "champion")
        failed = next(one for one in made if one.state == "gates_failed")
        version = datasets.list_versions(connection, line.line_id)[0].dataset_version_id
        run = runs.list_runs(connection, line.line_id)[0].run_id
        (first, *_) = adjudications.discordances(connection, line_id=line.line_id)
    at = f"/console/lines/{LINE}"

    clara = camera.enter("clara")
    camera.shoot(clara, "home")
    camera.shoot(clara, "worklist", path=f"{at}/worklist")
    clara.goto(f"{at}/worklist/next?reason=random")
    camera.shoot(clara, "case")
    clara.keyboard.press("p")
    clara.get_by_text("At its operating point").wait_for()
    camera.shoot(clara, "aided")
    clara.keyboard.press("a")
    clara.get_by_text("You answered").wait_for()
    clara.keyboard.press("h")
    clara.locator("canvas[data-heat]").wait_for()
    camera.shoot(clara, "answered")
    camera.shoot(clara, "mine", path="/console/mine")
    dark = camera.enter("clara", scheme="dark")
    dark.goto(f"{at}/worklist/next?place=5")
    camera.shoot(dark, "dark")
    photograph_several(camera)

    rita = camera.enter("rita")
    camera.shoot(rita, "discordances", path=f"{at}/discordances")
    camera.shoot(rita, "settle", path=f"/console/cases/{first.case_id}/settle")
    camera.shoot(rita, "line", path=at, whole=True)
    camera.shoot(rita, "dataset", path=f"/console/dataset-versions/{version}", whole=True)
    camera.shoot(rita, "run", path=f"/console/runs/{run}")
    camera.shoot(
        rita, "compare", path=f"{at}/compare?left={made[-1].candidate_id}&right={passed.candidate_id}", whole=True
    )

    rita.goto(f"/console/candidates/{passed.candidate_id}")
    rita.get_by_label("What do you think?").fill(
        "I looked at every case it loses: most are faint, and two readers differed over one of them."
    )
    rita.get_by_role("button", name="Say it as").click()
    anna = camera.enter("anna")
    anna.goto(f"/console/candidates/{passed.candidate_id}")
    anna.get_by_label("What do you think?").fill("So did I. The second hospital gains most, as we hoped.")
    anna.get_by_role("button", name="Say it as").click()
    camera.shoot_part(anna, "flips", "Cases that changed sides")
    camera.shoot_part(anna, "conversation", "Conversation")
    camera.shoot(anna, "candidate-top", path=f"/console/candidates/{passed.candidate_id}")
    camera.shoot(anna, "candidate", path=f"/console/candidates/{passed.candidate_id}", whole=True)
    camera.shoot(anna, "blocked", path=f"/console/candidates/{failed.candidate_id}", whole=True)
    camera.shoot(anna, "champions", path=f"{at}/champions")

    camera.shoot(anna, "amendment", path=f"/console/amendments/{propose_a_watch(camera)}", whole=True)
    camera.shoot(anna, "monitoring", path=f"{at}/monitoring")

    otto = camera.enter("otto")
    camera.shoot(otto, "operations", path="/console/operations")
    camera.shoot(otto, "sealed-test", path=f"{at}/sealed-test")
    camera.shoot(otto, "export", path=f"/console/export?candidate={passed.candidate_id}")
    camera.shoot(otto, "audit", path="/console/audit?action=promotion:&verify=true")


def photograph_several(camera: Camera) -> None:
    """Photograph how a case that may show several findings is answered."""
    case = a_plate_to_read(camera)
    clara = camera.enter("clara", height=1100)

    def told() -> int:
        clara.goto(case)
        clara.keyboard.press("p")
        clara.wait_for_load_state("networkidle")
        return clara.get_by_text("At the operating point of each finding").count()

    until(told, what="an answer of the champion")
    for key in "23":
        clara.keyboard.press(key)
    camera.shoot(clara, "several")


def a_plate_to_read(camera: Camera) -> str:
    """Make a line of several findings, with a champion that has learned them; returns the page of a case of it."""
    protocol = from_document({**DOCUMENT, "recipe": {"epochs": 12}})
    learned = train.fit(drawn(600, seed=0), drawn(200, seed=1), protocol=protocol, strategy="full", seed=0)
    weights = network.save_weights(learned.module)
    pictures, present = synthetic.plates(100, rng=np.random.default_rng(2), size=96)
    both = pictures[(present == [False, True, True]).all(axis=1)][0]
    with db.connect(camera.database_url) as connection:

        def kept(data: bytes) -> str:
            return blobs.put(connection, camera.blob_root, data, media_type="application/octet-stream")

        otto = users.by_name(connection, "otto")
        line = lines.create_line(
            connection, name=protocol.line, document=protocol.document(), digest=protocol.digest, actor=otto
        )
        made = candidates.record_candidate(
            connection,
            run_id=factories.training_run(connection, line).run_id,
            weights_digest=kept(weights),
            metadata_digest=kept(canonical_json(learned.metadata).encode()),
            metadata=learned.metadata,
        )
        factories.gate_report(connection, made)
        factories.signatures(connection, made, [factories.user(connection, "approver") for _ in range(2)])
        factories.promotion(connection, made)
        case = factories.case(connection, line, image_digest=kept(images.npy_bytes(both)), external_id="plate-0007")
        connection.commit()
    return f"/console/cases/{case.case_id}"


def propose_a_watch(camera: Camera) -> int:
    """Propose that the demo's champion be watched more closely, and more be forgiven; returns the amendment's id."""
    with db.connect(camera.database_url) as connection:
        line = lines.get_line(connection, LINE)
        now = lines.current_protocol(connection, line.line_id)
        auroc = {**now.document["gates"]["auroc"], "margin": 0.04}
        watch = {**now.document["monitoring"], "tolerance": 0.03}
        wished = {**now.document, "monitoring": watch, "gates": {**now.document["gates"], "auroc": auroc}}
        document = dict(as_read_today(wished))
        made = amendments.propose(
            connection,
            line_id=line.line_id,
            protocol_id=now.protocol_id,
            document=document,
            digest=audit.digest_of(document),
            changes=differences(now.document, document),
            reason="We want to be told sooner if it begins to err, and two hospitals have too few cases to show .03.",
            actor=users.by_name(connection, "otto"),
        )
        connection.commit()
    return made.amendment_id


def main(arguments: list[str]) -> int:
    """Photograph a demo that runs, or one of our own."""
    parser = argparse.ArgumentParser(description="photographs of the console")
    parser.add_argument("--home", type=Path, help="home of a demo that runs with --keep")
    options = parser.parse_args(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    program = shutil.which("chromium")
    if program is None:
        raise SystemExit("no Chromium: `make servers` installs it where it can")
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        if options.home:
            photograph(Camera(browser, options.home))
        else:
            with demo(*PLAY) as home:
                photograph(Camera(browser, home))
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
