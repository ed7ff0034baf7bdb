-- What to confirm next: a proposal, made anew at each ranking, and no part of the history.

CREATE TABLE worklists (
    line_id              bigint PRIMARY KEY REFERENCES lines,
    candidate_id         bigint REFERENCES candidates, -- the champion it asked; NULL: there was none
    protocol_id          bigint NOT NULL REFERENCES protocols,
    shares               jsonb NOT NULL,
    ranked               integer NOT NULL CHECK (ranked >= 0),
    left_out             integer NOT NULL CHECK (left_out >= 0), -- their image cannot be read
    last_case_id         bigint NOT NULL,
    last_confirmation_id bigint NOT NULL,
    ranked_at            timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE worklist_cases (
    case_id bigint PRIMARY KEY,
    line_id bigint NOT NULL,
    site    text NOT NULL,
    place   integer NOT NULL CHECK (place >= 1),
    arm     text NOT NULL CONSTRAINT worklist_cases_arm_is_known
            CHECK (arm IN ('blind', 'random', 'uncertain', 'diverse', 'unlike', 'coverage', 'disagreement')),
    reason  text NOT NULL,
    CONSTRAINT worklist_cases_are_of_the_cases_line FOREIGN KEY (case_id, line_id) REFERENCES cases (case_id, line_id),
    CONSTRAINT worklist_cases_one_per_place UNIQUE (line_id, place)
);
CREATE INDEX worklist_cases_by_site ON worklist_cases (line_id, site, place);
CREATE INDEX worklist_cases_by_arm ON worklist_cases (line_id, arm, place);
CREATE INDEX worklist_cases_by_site_and_arm ON worklist_cases (line_id, site, arm, place);

-- The lot of a case, uniform in [0, 1): nobody without the line's key can choose or foretell it. Below the protocol's
-- blind fraction a case is to be read without the model.
CREATE FUNCTION lot_of_case(key bytea, of_case bigint) RETURNS double precision LANGUAGE sql IMMUTABLE AS $$
    SELECT ('x' || encode(substr(sha256(key || 'lot of case'::bytea || int8send(of_case)), 1, 6), 'hex'))::bit(48)::bigint
           / 281474976710656.0::double precision
$$;

GRANT SELECT, INSERT, DELETE ON worklists, worklist_cases TO overread_app;
