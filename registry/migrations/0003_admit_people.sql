-- People sign in with a password, stay signed in for a while, and what they look at is written down.

-- What people chose, as argon2id only; who has no row signs in nowhere, and signs nothing.
CREATE TABLE passwords (
    user_id bigint PRIMARY KEY REFERENCES users,
    hash    text NOT NULL CONSTRAINT passwords_are_kept_as_argon2id CHECK (hash LIKE '$argon2id$%'),
    set_at  timestamptz NOT NULL DEFAULT now()
);

-- Those signed in now; a row goes with its session. Only the SHA-256 of the token in the browser's cookie is kept.
CREATE TABLE sessions (
    token_sha256 bytea PRIMARY KEY CONSTRAINT sessions_keep_only_a_hash CHECK (octet_length(token_sha256) = 32),
    user_id      bigint NOT NULL REFERENCES users,
    started_at   timestamptz NOT NULL DEFAULT now(), -- the password was given then
    last_used_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX sessions_by_user ON sessions (user_id);

-- Who looked at what, and what for. Append-only, and outside the audit chain, whose lock would make reads wait for
-- writes: an audit event reads:seal carries the digest of a range of these rows instead.
CREATE TABLE reads (
    read_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    user_id bigint NOT NULL REFERENCES users,
    action  text NOT NULL CHECK (action ~ '^[a-z_]+:[a-z_]+$'),
    line_id bigint REFERENCES lines,
    case_id bigint REFERENCES cases, -- NULL: a list, or an image that was not kept
    purpose text CONSTRAINT reads_purpose_is_short CHECK (length(purpose) BETWEEN 1 AND 200),
    details jsonb NOT NULL DEFAULT '{}'
);
CREATE INDEX reads_by_case ON reads (case_id, read_id);

-- Shared by those who add reads, so that whoever seals them can wait for all that have an id already. A trigger of the
-- statement runs before the row's id is taken.
CREATE FUNCTION join_the_readers() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext('reads'));
    RETURN NULL;
END $$;
CREATE TRIGGER reads_wait_for_a_seal BEFORE INSERT ON reads FOR EACH STATEMENT EXECUTE FUNCTION join_the_readers();
ALTER TABLE reads ENABLE ALWAYS TRIGGER reads_wait_for_a_seal;
CREATE TRIGGER reads_are_append_only BEFORE UPDATE OR DELETE ON reads FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER reads_are_not_truncated BEFORE TRUNCATE ON reads FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE reads ENABLE ALWAYS TRIGGER reads_are_append_only;
ALTER TABLE reads ENABLE ALWAYS TRIGGER reads_are_not_truncated;

GRANT SELECT, INSERT, UPDATE (hash, set_at) ON passwords TO overread_app;
GRANT SELECT, INSERT, UPDATE (last_used_at), DELETE ON sessions TO overread_app;
GRANT SELECT, INSERT ON reads TO overread_app;
