-- What the console needs: people of a demo come in by a link, a reader may say why, a line can be made to wait.

-- A link signs one person in, once, and soon runs out; a row goes with its use. Only the SHA-256 of its token is kept.
CREATE TABLE sign_in_links (
    token_sha256 bytea PRIMARY KEY CONSTRAINT sign_in_links_keep_only_a_hash CHECK (octet_length(token_sha256) = 32),
    user_id      bigint NOT NULL REFERENCES users,
    expires_at   timestamptz NOT NULL
);
GRANT SELECT, INSERT, DELETE ON sign_in_links TO overread_app;

-- A session that began with a link is no proof of a password: it signs nothing without one.
ALTER TABLE sessions ADD COLUMN password_given boolean NOT NULL DEFAULT true;

-- A confirmation may carry a note of its reader; a retraction and an adjudication still have to say why.
ALTER TABLE confirmations DROP CONSTRAINT confirmations_overrule_with_a_reason,
    ADD CONSTRAINT confirmations_overrule_with_a_reason
        CHECK (CASE WHEN reason IS NULL THEN kind = 'confirmation' ELSE length(trim(reason)) > 0 END);

-- What one person has said, newest first.
CREATE INDEX confirmations_by_submitter ON confirmations (submitted_by, confirmation_id);

-- A line that is paused starts no run by itself; who paused it and why is in the audit trail.
ALTER TABLE lines ADD COLUMN paused_at timestamptz;
GRANT UPDATE (paused_at) ON lines TO overread_app;
