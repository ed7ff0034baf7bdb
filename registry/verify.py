"""Does the record still say what it said? Works out again all that can be worked out from database and files.

Each check reads everything of its kind and reports what it found; the first thing that is wrong is named, by id. It
believes no digest that it can compute, and changes nothing. Run them all in one transaction (REPEATABLE READ), so that
a service that goes on working meanwhile cannot look like damage.

What this cannot see is what nobody signed: the last minute of the trail, where the rows are gone with the events.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal, LiteralString

from registry import audit, blobs, checkpoints, reads
from registry.db import Connection, fetch_value
from registry.errors import NoteRefused
from registry.merkle import CompactRange, leaf_hash
from registry.notes import Checkpoint, Verifier
from registry.rows import BOUND, Bound

State = Literal["fine", "damaged", "skipped"]
Tell = Callable[[str, int], None]
"""Hears what is being checked, and how many are done."""

UNSIGNED_FOR = timedelta(minutes=15)
"""A trail older than this has a checkpoint, or somebody took them away."""
_TELL_EVERY = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found; `detail` names the first thing that is wrong, or says how much is right."""

    check: str
    state: State
    detail: str


def check_trail(conn: Connection, *, folder: Path, verifier: Verifier, tell: Tell) -> list[Finding]:
    """Work out the chain of the audit trail, and hold it against every checkpoint in `folder`."""
    signed, refused = _signed(folder, verifier, tell)
    waiting = list(reversed(signed))
    tree, digest, broken, rewritten, good = CompactRange(), audit.GENESIS, None, None, None
    for link in audit.chain(conn):
        if broken is None and not link.follows(tree.size, digest):
            broken = tree.size + 1, link
        digest = link.digest
        tree.append(leaf_hash(link.text.encode()))
        if waiting and waiting[-1].size == tree.size:
            checkpoint = waiting.pop()
            if tree.root() == checkpoint.root:
                good = checkpoint
            elif rewritten is None:
                rewritten = checkpoint
        if tree.size % _TELL_EVERY == 0:
            tell("events", tree.size)
    return [
        Finding(
            check="audit trail",
            state="damaged" if broken else "fine",
            detail=_says_broken(*broken) if broken else f"{tree.size} events, each chained to the one before",
        ),
        _against_checkpoints(
            tree.size, signed=signed, refused=refused, good=good, rewritten=rewritten, began=_began(conn), folder=folder
        ),
    ]


def check_rows(conn: Connection, *, tell: Tell) -> list[Finding]:
    """Hold every row that the trail vouches for against the newest event that names it."""
    return [_check_table(conn, bound, tell) for bound in BOUND.values()]


def check_reads(conn: Connection) -> Finding:
    """Hold the log of who looked at what against the seals in the trail; the last minute of it has none yet."""
    broken = reads.first_broken(conn)
    if broken is not None:
        detail = f"of reads {broken[0]} to {broken[1]}, which the trail has sealed, one was changed, added or taken out"
        return Finding(check="reads", state="damaged", detail=detail)
    count = fetch_value(conn, "SELECT count(*) FROM reads")
    return Finding(check="reads", state="fine", detail=f"{count} looks, as the trail has sealed them")


def check_blobs(conn: Connection, *, root: Path, tell: Tell) -> Finding:
    """Read every stored file, image or weights, and compare it with the digest it is named by."""
    wrong: list[tuple[str, str]] = []
    done = 0
    with conn.cursor() as cursor:
        for (digest,) in cursor.stream(
            "SELECT digest FROM blobs WHERE NOT blob_is_erased(digest) ORDER BY created_at, digest"
        ):
            done += 1
            if fault := _fault(blobs.path_of(root, digest), digest):
                wrong.append((digest, fault))
            if done % 100 == 0:
                tell("files", done)
    wrong += [(digest, "is not listed among the stored files") for (digest,) in conn.execute(_UNLISTED).fetchall()]
    if not wrong:
        return Finding(check="files", state="fine", detail=f"{done} images and weights have their digests")
    digest, fault = wrong[0]
    whose = fetch_value(conn, _WHOSE, {"digest": digest})
    return Finding(
        check="files",
        state="damaged",
        detail=f"{blobs.path_of(root, digest)}, {whose or 'of no case or candidate'}, {fault}{_and_more(len(wrong))}",
    )


def check_champions(conn: Connection) -> Finding:
    """One champion per line at most, an unbroken succession, and every candidate where its events put it."""
    for query, says in _CHAMPIONS:
        row = conn.execute(query).fetchone()
        if row is not None:
            return Finding(check="champions", state="damaged", detail=says.format(*row))
    count = fetch_value(conn, "SELECT count(*) FROM promotions WHERE ended_at IS NULL")
    changes = fetch_value(conn, "SELECT count(*) FROM promotions")
    return Finding(check="champions", state="fine", detail=f"{count} champions after {changes} changes of champion")


def check_sealed_tests(conn: Connection) -> Finding:
    """Each use of a sealed test was paid from what the use before it left, and no epoch looks at worn cases."""
    for query, says in ((_UNPAID, "was not paid from what the use before it left"), (_WORN, "looks at worn cases")):
        row = conn.execute(query).fetchone()
        if row is not None:
            return Finding(
                check="sealed tests", state="damaged", detail=f"sealed_test_uses/{row[1]} of line {row[0]} {says}"
            )
    count = fetch_value(conn, "SELECT count(*) FROM sealed_test_uses")
    return Finding(check="sealed tests", state="fine", detail=f"{count} uses, each paid for from what was left")


def check_protocols(conn: Connection) -> Finding:
    """Each protocol but a line's first is the one that enough people signed in the place of the one before it."""
    seen = 0
    for line, version, before, after, required, bound in conn.execute(_AMENDED).fetchall():
        seen += version > 1
        meant = audit.digest_of({"before": before, "after": after})
        if version > 1 and (required is None or bound.count(meant) != len(bound) or len(bound) < required):
            detail = f"version {version} of line {line} was not signed by as many as the version before it asks for"
            return Finding(check="amended protocols", state="damaged", detail=detail)
    return Finding(check="amended protocols", state="fine", detail=f"{seen} protocols amended, each by enough people")


_AMENDED: LiteralString = """
    SELECT name, version, lag(protocols.digest) OVER versions, protocols.digest,
        CASE WHEN amended.protocol_id = lag(protocols.protocol_id) OVER versions AND amended.digest = protocols.digest
            AND amended.document = protocols.document AND version = lag(version) OVER versions + 1
            THEN (lag(protocols.document) OVER versions #>> '{approvals,required}')::integer END,
        ARRAY(SELECT CASE decision WHEN 'approve' THEN bound_digest ELSE 'rejected' END FROM amendment_approvals signed
              WHERE signed.amendment_id = protocols.amendment_id AND approver_id <> proposed_by)
    FROM protocols JOIN lines USING (line_id) LEFT JOIN amendments amended USING (amendment_id)
    WINDOW versions AS (PARTITION BY protocols.line_id ORDER BY version) ORDER BY protocols.protocol_id"""
_UNPAID: LiteralString = """
    SELECT name, sealed_test_use_id FROM (
        SELECT uses.*, lag(place, 1, 0) OVER so_far + 1 AS next_place,
            lag(CASE WHEN verdict = 'pass' THEN level ELSE wallet_after END) OVER so_far AS remaining,
            (protocols.document #>> '{gates,alpha}')::float8 AS alpha
        FROM sealed_test_uses uses LEFT JOIN gate_reports USING (sealed_test_use_id)
        JOIN protocols ON protocols.protocol_id = uses.protocol_id
        WINDOW so_far AS (PARTITION BY uses.line_id, epoch, wallet ORDER BY place)
    ) chained JOIN lines USING (line_id)
    WHERE place <> next_place OR (place = 1 AND wallet_before > alpha) OR wallet_before <> remaining
    ORDER BY sealed_test_use_id LIMIT 1"""
_WORN: LiteralString = """
    SELECT name, uses.sealed_test_use_id FROM sealed_test_uses uses JOIN lines USING (line_id)
    WHERE EXISTS (SELECT FROM sealed_test_uses earlier JOIN dataset_versions USING (dataset_version_id)
                  WHERE earlier.line_id = uses.line_id AND earlier.epoch < uses.epoch AND number > uses.after_version)
    ORDER BY uses.sealed_test_use_id LIMIT 1"""
_UNLISTED: LiteralString = (
    "SELECT digest FROM (SELECT image_digest AS digest FROM cases UNION SELECT weights_digest FROM candidates"
    " UNION SELECT metadata_digest FROM candidates) named WHERE NOT EXISTS"
    " (SELECT FROM blobs WHERE blobs.digest = named.digest) ORDER BY digest"
)
_WHOSE: LiteralString = (
    "SELECT whose FROM (SELECT 0 AS rank, 'the image of case ' || case_id AS whose FROM cases"
    " WHERE image_digest = %(digest)s UNION ALL SELECT 1, 'the weights of candidate ' || number || ' of ' || name"
    " FROM candidates JOIN lines USING (line_id) WHERE weights_digest = %(digest)s UNION ALL"
    " SELECT 2, 'the metadata of candidate ' || number || ' of ' || name FROM candidates JOIN lines USING (line_id)"
    " WHERE metadata_digest = %(digest)s) named ORDER BY rank, whose LIMIT 1"
)
_TWO_CHAMPIONS: LiteralString = """
    SELECT name, count(*) FROM promotions JOIN lines USING (line_id)
    WHERE ended_at IS NULL GROUP BY name HAVING count(*) > 1 ORDER BY name LIMIT 1"""
_BROKEN_SUCCESSION: LiteralString = """
    SELECT name, promotion_id FROM (
        SELECT *, lead(promotion_id) OVER reigns AS next, lag(candidate_id) OVER reigns AS before
        FROM promotions WINDOW reigns AS (PARTITION BY line_id ORDER BY promotion_id)
    ) reigns JOIN lines USING (line_id)
    WHERE replaced_candidate_id IS DISTINCT FROM before OR (ended_at IS NULL) <> (next IS NULL)
    ORDER BY promotion_id LIMIT 1"""
_WRONG_STATE: LiteralString = """
    SELECT name, number, state, expected FROM (
        SELECT *, CASE
            WHEN EXISTS (SELECT FROM promotions WHERE candidate_id = this.candidate_id AND ended_at IS NULL)
                THEN 'champion'
            WHEN EXISTS (SELECT FROM promotions WHERE candidate_id = this.candidate_id) THEN 'retired'
            WHEN EXISTS (SELECT FROM approvals WHERE candidate_id = this.candidate_id AND decision = 'reject')
                THEN 'rejected'
            ELSE coalesce(
                (SELECT CASE verdict WHEN 'pass' THEN 'gates_passed' ELSE 'gates_failed' END
                 FROM gate_reports WHERE candidate_id = this.candidate_id ORDER BY gate_report_id DESC LIMIT 1),
                'trained')
            END AS expected FROM candidates this
    ) judged JOIN lines USING (line_id) WHERE state <> expected ORDER BY candidate_id LIMIT 1"""
_WRONG_WEIGHTS: LiteralString = """
    SELECT prediction_id, number FROM predictions JOIN candidates USING (candidate_id)
    WHERE predictions.weights_digest <> candidates.weights_digest ORDER BY prediction_id LIMIT 1"""
_CHAMPIONS: tuple[tuple[LiteralString, str], ...] = (
    (_TWO_CHAMPIONS, "line {0} has {1} champions"),
    (_BROKEN_SUCCESSION, "promotions/{1} of line {0} does not follow the one before it, or ended without a successor"),
    (_WRONG_STATE, "candidate {1} of line {0} says {2}; by its gate report, signatures and promotions it is {3}"),
    (_WRONG_WEIGHTS, "predictions/{0} names weights that candidate {1} does not have"),
)


def _check_table(conn: Connection, bound: Bound, tell: Tell) -> Finding:
    query: LiteralString = (
        "WITH said AS (SELECT DISTINCT ON (details ->> 'row') split_part(details ->> 'row', '/', 2)::bigint AS id,"
        " details ->> 'new_digest' AS digest, audit_event_id FROM audit_events"
        " WHERE details ->> 'row' ~ %s ORDER BY details ->> 'row', audit_event_id DESC)"
        " SELECT coalesce(said.id, bound." + bound.key + ") AS number, bound." + bound.key + ", " + bound.text + ","
        " said.digest, said.audit_event_id FROM " + bound.table + " bound"
        " FULL JOIN said ON said.id = bound." + bound.key + " ORDER BY number"
    )
    wrong, first, done = 0, "", 0
    with conn.cursor() as cursor:
        for number, there, text, digest, event_id in cursor.stream(query, (f"^{bound.table}/[0-9]{{1,18}}$",)):
            done += 1
            fault = None
            if event_id is None:
                fault = "is told of by no audit event"
            elif there is None:
                fault = f"is gone; audit event {event_id} tells of it"
            elif hashlib.sha256(text.encode()).hexdigest() != digest:
                fault = f"is not what audit event {event_id} recorded"
            if fault and not wrong:
                first = f"{bound.table}/{number} {fault}"
            wrong += fault is not None
            if done % _TELL_EVERY == 0:
                tell(bound.table.replace("_", " "), done)
    name = bound.table.replace("_", " ")
    if wrong:
        return Finding(check=name, state="damaged", detail=first + _and_more(wrong))
    return Finding(check=name, state="fine", detail=f"{done} rows as their audit events recorded them")


def _signed(folder: Path, verifier: Verifier, tell: Tell) -> tuple[list[Checkpoint], list[str]]:
    """Part the checkpoints of a folder, oldest first, from the reasons why others are refused."""
    good, refused = [], []
    for done, file in enumerate(checkpoints.files(folder), start=1):
        try:
            good.append(checkpoints.read(file, verifier))
        except NoteRefused as refusal:
            refused.append(str(refusal))
        if done % 1000 == 0:
            tell("checkpoints", done)
    return good, refused


def _against_checkpoints(
    size: int,
    *,
    signed: Sequence[Checkpoint],
    refused: Sequence[str],
    good: Checkpoint | None,
    rewritten: Checkpoint | None,
    began: timedelta,
    folder: Path,
) -> Finding:
    def found(state: State, detail: str) -> Finding:
        return Finding(check="checkpoints", state=state, detail=detail)

    if signed and signed[-1].size > size:
        return found("damaged", checkpoints.missing(size, signed[-1]))
    if rewritten is not None:
        start = good.size + 1 if good is not None and good.size < rewritten.size else 1
        when = f"{rewritten.at:%Y-%m-%d %H:%M:%SZ}"
        detail = f"of events {start}..{rewritten.size} at least one is not what checkpoint {rewritten.size} of {when}"
        return found("damaged", f"{detail} was signed for, though the chain may look whole")
    if refused:
        return found("damaged", refused[0] + _and_more(len(refused)))
    if not signed and began > UNSIGNED_FOR:
        return found("damaged", f"there is none in {folder}, though the trail is older than {UNSIGNED_FOR}")
    if not signed:
        return found("skipped", f"there is none in {folder} yet; a cut-off end of the trail could not show")
    newest = signed[-1]
    detail = f"{len(signed)} signed, the newest over {newest.size} of {size} events at {newest.at:%Y-%m-%d %H:%M:%SZ}"
    return found("fine", detail)


def _began(conn: Connection) -> timedelta:
    """For how long there has been a trail."""
    age = fetch_value(conn, "SELECT clock_timestamp() - min(at) FROM audit_events")
    return age if isinstance(age, timedelta) else timedelta()


def _says_broken(expected: int, link: audit.Link) -> str:
    if link.audit_event_id != expected:
        return f"event {expected} is missing: event {link.audit_event_id} comes in its place"
    return f"event {expected} is not what was written: its digest, or the one it names, does not fit"


def _fault(path: Path, digest: str) -> str | None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == digest else "was altered: its bytes have another digest"


def _and_more(wrong: int) -> str:
    return f" (and {wrong - 1} more)" if wrong > 1 else ""
