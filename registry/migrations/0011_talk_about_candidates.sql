-- What people say to each other about a candidate, before and after somebody signs: kept for ever, as signatures are.
CREATE TABLE comments (
    comment_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    candidate_id bigint NOT NULL REFERENCES candidates,
    author_id    bigint NOT NULL REFERENCES users,
    printed_name text NOT NULL,
    text         text NOT NULL CONSTRAINT comments_say_something CHECK (length(trim(text)) BETWEEN 1 AND 2000),
    asks_id      bigint REFERENCES users, -- whom the author asks to sign; NULL: nobody
    created_at   timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX comments_by_candidate ON comments (candidate_id, comment_id);
CREATE INDEX comments_by_asked ON comments (asks_id, candidate_id) WHERE asks_id IS NOT NULL;

CREATE TRIGGER comments_are_append_only BEFORE UPDATE OR DELETE ON comments
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER comments_are_not_truncated BEFORE TRUNCATE ON comments
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE comments ENABLE ALWAYS TRIGGER comments_are_append_only;
ALTER TABLE comments ENABLE ALWAYS TRIGGER comments_are_not_truncated;

GRANT SELECT, INSERT ON comments TO overread_app;

-- A reader who was shown what a model says may reject it without saying what it is instead. That is no diagnosis: the case
-- waits on, and nothing is learnt from it but how often readers reject.
CREATE TABLE rejections (
    rejection_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    prediction_id bigint NOT NULL REFERENCES predictions,
    case_id       bigint NOT NULL REFERENCES cases,
    user_id       bigint NOT NULL REFERENCES users,
    reason        text CONSTRAINT rejections_say_something CHECK (length(trim(reason)) > 0), -- NULL: they gave none
    created_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT rejections_one_per_person UNIQUE (prediction_id, user_id)
);
CREATE INDEX rejections_by_case ON rejections (case_id, rejection_id);

CREATE TRIGGER rejections_are_append_only BEFORE UPDATE OR DELETE ON rejections
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER rejections_are_not_truncated BEFORE TRUNCATE ON rejections
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE rejections ENABLE ALWAYS TRIGGER rejections_are_append_only;
ALTER TABLE rejections ENABLE ALWAYS TRIGGER rejections_are_not_truncated;

GRANT SELECT, INSERT ON rejections TO overread_app;
