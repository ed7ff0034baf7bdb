-- The record of Overread. Rules live here; a constraint's name states its rule, and Python matches that name.
-- Tables that tell what happened are append-only: see refuse_change() at the end.

CREATE TABLE users (
    user_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL CONSTRAINT users_name_is_taken UNIQUE
                 CONSTRAINT users_name_is_short_and_plain CHECK (name ~ '^[a-z0-9][a-z0-9._@-]{0,79}$'),
    printed_name text NOT NULL,
    roles        text[] NOT NULL
                 CONSTRAINT users_have_known_roles CHECK (roles <@ ARRAY['submitter','reviewer','approver','operator','auditor']),
    created_at   timestamptz NOT NULL DEFAULT now(),
    disabled_at  timestamptz
);

-- Only the SHA-256 of a key's secret is kept; the secret is shown once, when the key is made.
CREATE TABLE api_keys (
    api_key_id    text PRIMARY KEY,
    user_id       bigint NOT NULL REFERENCES users,
    secret_sha256 bytea NOT NULL CONSTRAINT api_keys_keep_only_a_hash CHECK (octet_length(secret_sha256) = 32),
    created_at    timestamptz NOT NULL DEFAULT now(),
    revoked_at    timestamptz
);

CREATE TABLE lines (
    line_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL CONSTRAINT lines_name_is_taken UNIQUE,
    -- Keys the hash that assigns patients to splits; it never leaves the service.
    split_key  bytea NOT NULL CONSTRAINT lines_split_key_is_256_bits CHECK (octet_length(split_key) = 32),
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE protocols (
    protocol_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    line_id     bigint NOT NULL REFERENCES lines,
    version     integer NOT NULL CHECK (version >= 1),
    document    jsonb NOT NULL,
    digest      text NOT NULL CHECK (digest ~ '^[0-9a-f]{64}$'),
    created_by  bigint NOT NULL REFERENCES users,
    created_at  timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT protocols_one_row_per_version UNIQUE (line_id, version)
);

-- Content-addressed files under the blob root; a row is written only after its bytes are safely on disk.
CREATE TABLE blobs (
    digest     text PRIMARY KEY CHECK (digest ~ '^[0-9a-f]{64}$'),
    size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
    media_type text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE cases (
    case_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    line_id      bigint NOT NULL REFERENCES lines,
    external_id  text,
    image_digest text NOT NULL REFERENCES blobs,
    patient      text, -- keyed hash of what the submitter sent; NULL: unknown
    site         text NOT NULL,
    scanner      text,
    sex          text CONSTRAINT cases_sex_is_known CHECK (sex IN ('female', 'male', 'other')),
    age_band     text CONSTRAINT cases_age_band_is_a_range CHECK (age_band ~ '^(\d{1,3}-\d{1,3}|\d{1,3}\+)$'),
    attributes   jsonb NOT NULL DEFAULT '{}',
    submitted_by bigint NOT NULL REFERENCES users,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT cases_external_id_is_taken UNIQUE (line_id, submitted_by, external_id),
    UNIQUE (case_id, line_id)
);
CREATE INDEX cases_by_line ON cases (line_id, case_id);

-- Append-only. A correction is a new row that names the row it supersedes.
CREATE TABLE confirmations (
    confirmation_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    case_id         bigint NOT NULL,
    line_id         bigint NOT NULL, -- the case's
    finding         text NOT NULL,
    evidence        text NOT NULL CONSTRAINT confirmations_evidence_is_known
                    CHECK (evidence IN ('report_text','single_read','consensus','follow_up','pathology')),
    ai_exposure     text NOT NULL CONSTRAINT confirmations_ai_exposure_is_known
                    CHECK (ai_exposure IN ('blind','aided','unknown')),
    reader          text NOT NULL,
    confirmed_at    timestamptz NOT NULL,
    submitted_by    bigint NOT NULL REFERENCES users,
    -- One step only: a confirmation that was superseded already cannot be superseded again.
    supersedes      bigint CONSTRAINT confirmations_superseded_once UNIQUE,
    created_at      timestamptz NOT NULL DEFAULT now(),
    UNIQUE (confirmation_id, case_id),
    CONSTRAINT confirmations_are_of_the_cases_line FOREIGN KEY (case_id, line_id) REFERENCES cases (case_id, line_id),
    CONSTRAINT confirmations_supersede_within_their_case
        FOREIGN KEY (supersedes, case_id) REFERENCES confirmations (confirmation_id, case_id),
    CONSTRAINT confirmations_not_from_the_future CHECK (confirmed_at <= created_at + interval '1 day')
);
CREATE INDEX confirmations_by_case ON confirmations (case_id);
CREATE INDEX confirmations_by_line ON confirmations (line_id, confirmation_id);

-- The response to each state-changing request that carried an Idempotency-Key, per principal.
CREATE TABLE idempotency_keys (
    user_id         bigint NOT NULL REFERENCES users,
    key             text NOT NULL CHECK (length(key) BETWEEN 1 AND 200),
    request_digest  text NOT NULL,
    response_status integer NOT NULL,
    response_body   jsonb NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (user_id, key)
);

-- All work. The row owns the work; the broker only carries a nudge (job_id). Outbox: sent_at IS NULL.
CREATE TABLE jobs (
    job_id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind             text NOT NULL,
    line_id          bigint REFERENCES lines,
    payload          jsonb NOT NULL DEFAULT '{}',
    -- Two jobs with the same key are never unfinished together.
    unique_key       text,
    state            text NOT NULL DEFAULT 'queued'
                     CONSTRAINT jobs_state_is_known CHECK (state IN ('queued','running','succeeded','failed','cancelled')),
    attempts         integer NOT NULL DEFAULT 0,
    maximum_attempts integer NOT NULL DEFAULT 3 CHECK (maximum_attempts >= 1),
    fence            bigint NOT NULL DEFAULT 0, -- grows with each claim; a stale holder updates 0 rows
    lease_owner      text,
    lease_expires_at timestamptz,
    run_after        timestamptz NOT NULL DEFAULT now(),
    sent_at          timestamptz,
    progress         jsonb NOT NULL DEFAULT '{}',
    cancel_requested boolean NOT NULL DEFAULT false,
    error            text,
    created_at       timestamptz NOT NULL DEFAULT now(),
    started_at       timestamptz,
    finished_at      timestamptz,
    CONSTRAINT jobs_running_has_a_lease CHECK ((state = 'running') = (lease_owner IS NOT NULL)),
    CONSTRAINT jobs_attempts_within_the_cap CHECK (attempts <= maximum_attempts)
);
CREATE UNIQUE INDEX jobs_one_unfinished_per_key ON jobs (unique_key) WHERE state IN ('queued', 'running');
CREATE INDEX jobs_unsent ON jobs (job_id) WHERE state = 'queued' AND sent_at IS NULL;
CREATE INDEX jobs_leased ON jobs (lease_expires_at) WHERE state = 'running';

CREATE TABLE dataset_versions (
    dataset_version_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    line_id              bigint NOT NULL REFERENCES lines,
    number               integer NOT NULL CHECK (number >= 1),
    protocol_id          bigint NOT NULL REFERENCES protocols,
    digest               text NOT NULL CHECK (digest ~ '^[0-9a-f]{64}$'),
    git_tag              text NOT NULL,
    git_commit           text NOT NULL,
    manifest             jsonb NOT NULL,
    submitter_shares     jsonb NOT NULL, -- user name -> share of the labels new in this version
    waiting              jsonb NOT NULL, -- reason -> count
    last_confirmation_id bigint NOT NULL, -- every confirmation up to this one was considered
    created_at           timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT dataset_versions_one_row_per_number UNIQUE (line_id, number)
);

CREATE TABLE runs (
    run_id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    line_id            bigint NOT NULL REFERENCES lines,
    protocol_id        bigint NOT NULL REFERENCES protocols,
    strategy           text NOT NULL,
    seed               bigint NOT NULL,
    requested_by       bigint REFERENCES users, -- NULL: the protocol's own trigger
    reason             text NOT NULL,
    dataset_version_id bigint REFERENCES dataset_versions, -- known once frozen
    base_candidate_id  bigint, -- the champion it started from; NULL: from nothing
    state              text NOT NULL DEFAULT 'freezing' CONSTRAINT runs_state_is_known
                       CHECK (state IN ('freezing','training','gating','finished','refused','failed','cancelled')),
    outcome            text, -- in words, when it ended without a candidate
    progress           jsonb NOT NULL DEFAULT '{}',
    history            jsonb NOT NULL DEFAULT '[]',
    created_at         timestamptz NOT NULL DEFAULT now(),
    finished_at        timestamptz
);
-- A line learns one step at a time.
CREATE UNIQUE INDEX runs_one_unfinished_per_line ON runs (line_id) WHERE state IN ('freezing', 'training', 'gating');

CREATE TABLE candidates (
    candidate_id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    line_id              bigint NOT NULL REFERENCES lines,
    number               integer NOT NULL,
    run_id               bigint NOT NULL REFERENCES runs CONSTRAINT candidates_one_per_run UNIQUE,
    dataset_version_id   bigint NOT NULL REFERENCES dataset_versions,
    protocol_id          bigint NOT NULL REFERENCES protocols,
    weights_digest       text NOT NULL REFERENCES blobs,
    metadata_digest      text NOT NULL REFERENCES blobs,
    metadata             jsonb NOT NULL, -- architecture, operating point, temperature, recipe
    state                text NOT NULL DEFAULT 'trained' CONSTRAINT candidates_state_is_known
                         CHECK (state IN ('trained','gates_passed','gates_failed','rejected','champion','retired')),
    mlflow_model_version text, -- set by the mirror
    created_at           timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT candidates_one_row_per_number UNIQUE (line_id, number)
);
ALTER TABLE runs ADD CONSTRAINT runs_base_is_a_candidate FOREIGN KEY (base_candidate_id) REFERENCES candidates;

CREATE TABLE gate_reports (
    gate_report_id        bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    candidate_id          bigint NOT NULL REFERENCES candidates,
    champion_candidate_id bigint REFERENCES candidates, -- NULL: the line had no champion
    dataset_version_id    bigint NOT NULL REFERENCES dataset_versions,
    protocol_id           bigint NOT NULL REFERENCES protocols,
    verdict               text NOT NULL CHECK (verdict IN ('pass','fail','insufficient')),
    document              jsonb NOT NULL,
    text                  text NOT NULL,
    digest                text NOT NULL CHECK (digest ~ '^[0-9a-f]{64}$'),
    created_at            timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX gate_reports_by_candidate ON gate_reports (candidate_id, gate_report_id);

-- A signature: who, when, what it means, and the digest of exactly what was signed (21 CFR Part 11 §11.50, §11.70).
CREATE TABLE approvals (
    approval_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    candidate_id   bigint NOT NULL REFERENCES candidates,
    gate_report_id bigint NOT NULL REFERENCES gate_reports,
    approver_id    bigint NOT NULL REFERENCES users,
    printed_name   text NOT NULL,
    decision       text NOT NULL CHECK (decision IN ('approve','reject')),
    meaning        text NOT NULL,
    reason         text NOT NULL CONSTRAINT approvals_give_a_reason CHECK (length(trim(reason)) > 0),
    bound_digest   text NOT NULL CHECK (bound_digest ~ '^[0-9a-f]{64}$'),
    created_at     timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT approvals_one_signature_per_person UNIQUE (gate_report_id, approver_id)
);

-- Who was champion, from when to when.
CREATE TABLE promotions (
    promotion_id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    line_id               bigint NOT NULL REFERENCES lines,
    candidate_id          bigint NOT NULL REFERENCES candidates,
    kind                  text NOT NULL CHECK (kind IN ('promotion','roll_back')),
    replaced_candidate_id bigint REFERENCES candidates,
    gate_report_id        bigint REFERENCES gate_reports, -- NULL for a roll back
    bound_digest          text, -- what the approvals were bound to; NULL for a roll back
    reason                text NOT NULL,
    promoted_by           bigint NOT NULL REFERENCES users,
    promoted_at           timestamptz NOT NULL DEFAULT now(),
    ended_at              timestamptz,
    CONSTRAINT promotions_name_their_evidence
        CHECK (kind = 'roll_back' OR (gate_report_id IS NOT NULL AND bound_digest IS NOT NULL))
);
-- Never two champions: check-then-insert under READ COMMITTED makes them, this index cannot.
CREATE UNIQUE INDEX promotions_one_champion_per_line ON promotions (line_id) WHERE ended_at IS NULL;

CREATE TABLE predictions (
    prediction_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    line_id         bigint NOT NULL REFERENCES lines,
    case_id         bigint REFERENCES cases, -- NULL: an image that was not kept
    candidate_id    bigint NOT NULL REFERENCES candidates,
    weights_digest  text NOT NULL,
    image_digest    text NOT NULL,
    scores          jsonb NOT NULL, -- class -> probability
    decision        text NOT NULL,
    threshold       double precision,
    shown           boolean NOT NULL, -- was it given to a person?
    latency_seconds double precision NOT NULL CHECK (latency_seconds >= 0),
    requested_by    bigint NOT NULL REFERENCES users,
    created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX predictions_by_case ON predictions (case_id);

-- Each event carries the digest of the one before it, so that a rewritten or missing row shows.
CREATE TABLE audit_events (
    audit_event_id  bigint PRIMARY KEY,
    at              timestamptz NOT NULL,
    actor           text NOT NULL,
    action          text NOT NULL CHECK (action ~ '^[a-z_]+:[a-z_]+$'),
    subject         text NOT NULL,
    details         jsonb NOT NULL,
    previous_digest text NOT NULL,
    digest          text NOT NULL
);

CREATE FUNCTION chain_audit_event() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    last record;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('audit_events')); -- one writer at a time, until commit
    SELECT audit_event_id, digest INTO last FROM audit_events ORDER BY audit_event_id DESC LIMIT 1;
    NEW.audit_event_id := coalesce(last.audit_event_id, 0) + 1;
    NEW.at := clock_timestamp();
    NEW.previous_digest := coalesce(last.digest, repeat('0', 64));
    NEW.digest := encode(sha256(convert_to(concat_ws(E'\x1f',
        NEW.audit_event_id, to_char(NEW.at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
        NEW.actor, NEW.action, NEW.subject, NEW.details::text, NEW.previous_digest), 'UTF8')), 'hex');
    RETURN NEW;
END $$;
CREATE TRIGGER audit_events_are_chained BEFORE INSERT ON audit_events FOR EACH ROW EXECUTE FUNCTION chain_audit_event();
ALTER TABLE audit_events ENABLE ALWAYS TRIGGER audit_events_are_chained;

-- A nudge for the relay and for the inference process; nothing depends on its arrival.
CREATE FUNCTION notify_of_row() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify(TG_ARGV[0], '');
    RETURN NULL;
END $$;
CREATE TRIGGER jobs_wake_the_relay AFTER INSERT ON jobs FOR EACH STATEMENT EXECUTE FUNCTION notify_of_row('overread_jobs');
CREATE TRIGGER promotions_wake_inference AFTER INSERT ON promotions
    FOR EACH STATEMENT EXECUTE FUNCTION notify_of_row('overread_promotions');

-- Append-only: neither row by row, nor by TRUNCATE, nor with session_replication_role = replica.
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
END $$;
DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['protocols','confirmations','gate_reports','approvals','predictions','audit_events','dataset_versions'] LOOP
        EXECUTE format('CREATE TRIGGER %I BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION refuse_change()',
                       name || '_are_append_only', name);
        EXECUTE format('CREATE TRIGGER %I BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()',
                       name || '_are_not_truncated', name);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER %I', name, name || '_are_append_only');
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER %I', name, name || '_are_not_truncated');
    END LOOP;
END $$;
