-- A plan is amended by people, and a champion is watched by what people say.

-- A registered protocol is replaced by an amendment alone, and an amendment counts once enough others have signed it.

CREATE TABLE amendments (
    amendment_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    line_id      bigint NOT NULL REFERENCES lines,
    protocol_id  bigint NOT NULL REFERENCES protocols, -- in force when it was proposed; it replaces this one or none
    document     jsonb NOT NULL,
    digest       text NOT NULL CHECK (digest ~ '^[0-9a-f]{64}$'),
    changes      jsonb NOT NULL, -- each clause that is another, in words, as those who sign were shown it
    reason       text NOT NULL CONSTRAINT amendments_give_a_reason CHECK (length(trim(reason)) > 0),
    proposed_by  bigint NOT NULL REFERENCES users,
    created_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX amendments_by_line ON amendments (line_id, amendment_id);

CREATE TABLE amendment_approvals (
    amendment_approval_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    amendment_id          bigint NOT NULL REFERENCES amendments,
    approver_id           bigint NOT NULL REFERENCES users,
    printed_name          text NOT NULL,
    decision              text NOT NULL CHECK (decision IN ('approve','reject')),
    meaning               text NOT NULL,
    reason                text NOT NULL CONSTRAINT amendment_approvals_give_a_reason CHECK (length(trim(reason)) > 0),
    bound_digest          text NOT NULL CHECK (bound_digest ~ '^[0-9a-f]{64}$'), -- over the protocol before and the one after
    created_at            timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT amendment_approvals_one_signature_per_person UNIQUE (amendment_id, approver_id)
);

ALTER TABLE protocols
    ADD COLUMN amendment_id bigint REFERENCES amendments CONSTRAINT protocols_one_per_amendment UNIQUE,
    ADD CONSTRAINT protocols_change_by_amendment CHECK ((version = 1) = (amendment_id IS NULL));

-- Whoever may add a protocol may not add one of their own making: it has to be the one that was signed, by as many as the
-- protocol before it asks for, none of them its proposer, and that protocol has to be the one in force still.
CREATE FUNCTION check_amendment() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    amended amendments;
    before protocols;
BEGIN
    SELECT * INTO amended FROM amendments WHERE amendment_id = NEW.amendment_id;
    SELECT * INTO before FROM protocols WHERE line_id = NEW.line_id ORDER BY version DESC LIMIT 1;
    IF (amended.line_id, amended.protocol_id, amended.digest, amended.document)
       IS DISTINCT FROM (NEW.line_id, before.protocol_id, NEW.digest, NEW.document) OR NEW.version <> before.version + 1 THEN
        RAISE EXCEPTION 'this is not the protocol that amendment % puts in the place of the one in force', NEW.amendment_id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'protocols_follow_the_one_that_was_amended';
    END IF;
    IF EXISTS (SELECT FROM amendment_approvals WHERE amendment_id = NEW.amendment_id AND decision = 'reject')
       OR (SELECT count(*) FROM amendment_approvals WHERE amendment_id = NEW.amendment_id AND approver_id <> amended.proposed_by)
          < (before.document #>> '{approvals,required}')::integer THEN
        RAISE EXCEPTION 'amendment % has too few signatures, or was rejected', NEW.amendment_id
            USING ERRCODE = 'integrity_constraint_violation', CONSTRAINT = 'protocols_are_amended_by_enough_people';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER protocols_are_amended BEFORE INSERT ON protocols
    FOR EACH ROW WHEN (NEW.version > 1) EXECUTE FUNCTION check_amendment();
ALTER TABLE protocols ENABLE ALWAYS TRIGGER protocols_are_amended;

-- What was seen of a champion in use, one row a look.
CREATE TABLE watches (
    watch_id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    line_id           bigint NOT NULL REFERENCES lines,
    candidate_id      bigint NOT NULL REFERENCES candidates, -- the champion
    protocol_id       bigint NOT NULL REFERENCES protocols,
    sample            integer NOT NULL CHECK (sample >= 0), -- mature cases to watch by
    n                 integer NOT NULL CHECK (n BETWEEN 0 AND sample), -- of these, confirmed before the model was seen
    errors            integer NOT NULL CHECK (errors BETWEEN 0 AND n),
    risk              double precision CHECK (risk BETWEEN 0 AND 1), -- NULL: n is 0
    lower_bound       double precision CHECK (lower_bound BETWEEN 0 AND 1),
    risk_limit        double precision CHECK (risk_limit BETWEEN 0 AND 1), -- NULL: the sealed test told nothing
    raised_at         integer CHECK (raised_at BETWEEN 1 AND n), -- after so many cases it was shown
    verified_share    double precision CHECK (verified_share BETWEEN 0 AND 1),
    weighted_risk     jsonb NOT NULL, -- confirmed cases standing for those that nobody read, or why that cannot be told
    mature_after_days double precision,
    verdict           text NOT NULL CONSTRAINT watches_verdict_is_known CHECK (verdict IN ('in_order','alarm','insufficient')),
    reason            text NOT NULL,
    cases_to_see      jsonb NOT NULL, -- the newest of which it was wrong
    shadow            jsonb, -- what was seen of the challenger on the same cases; NULL: there was none to follow
    created_at        timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX watches_by_line ON watches (line_id, watch_id);

GRANT SELECT, INSERT ON amendments, amendment_approvals, watches TO overread_app;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['amendments','amendment_approvals','watches'] LOOP
        EXECUTE format('CREATE TRIGGER %I BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION refuse_change()',
                       name || '_are_append_only', name);
        EXECUTE format('CREATE TRIGGER %I BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()',
                       name || '_are_not_truncated', name);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER %I', name, name || '_are_append_only');
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER %I', name, name || '_are_not_truncated');
    END LOOP;
END $$;
