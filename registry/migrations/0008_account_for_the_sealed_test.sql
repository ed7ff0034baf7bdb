-- The ledger of the sealed test: who was judged by it, against whom, and what it cost. A row is written before a score is
-- computed, so that a look which nobody lived to tell of is paid for too; the answer is the gate report that names it.
CREATE TABLE sealed_test_uses (
    sealed_test_use_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    line_id               bigint NOT NULL REFERENCES lines,
    epoch                 integer NOT NULL CHECK (epoch >= 1),
    after_version         integer NOT NULL CHECK (after_version >= 0), -- cases of this version and before were used up by earlier epochs
    wallet                text NOT NULL CONSTRAINT sealed_test_uses_wallet_is_known
                          CHECK (wallet IN ('recipe', 'adaptive', 'unlimited')),
    place                 integer NOT NULL CHECK (place >= 1), -- first, second, ... use of its wallet in this epoch
    candidate_id          bigint NOT NULL REFERENCES candidates,
    champion_candidate_id bigint REFERENCES candidates, -- NULL: held against the floors alone
    dataset_version_id    bigint NOT NULL REFERENCES dataset_versions,
    protocol_id           bigint NOT NULL REFERENCES protocols,
    wallet_before         double precision, -- NULL: the protocol says nothing of wear
    level                 double precision NOT NULL CHECK (level > 0 AND level < 0.5),
    wallet_after          double precision, -- what is left if it fails; if it passes, the level is handed on
    created_at            timestamptz NOT NULL DEFAULT now(),
    -- The answer to a question stands: a job that died and is repeated neither pays nor looks twice.
    CONSTRAINT sealed_test_uses_one_per_hypothesis UNIQUE NULLS NOT DISTINCT (candidate_id, champion_candidate_id, protocol_id),
    -- Two at once cannot spend the same level.
    CONSTRAINT sealed_test_uses_one_per_place UNIQUE (line_id, epoch, wallet, place),
    CONSTRAINT sealed_test_uses_pay_what_they_cost CHECK (CASE wallet
        WHEN 'unlimited' THEN wallet_before IS NULL AND wallet_after IS NULL
        ELSE wallet_before IS NOT NULL AND wallet_after IS NOT NULL
             AND wallet_after >= 0 AND wallet_after = wallet_before - level END)
);

-- The report that answers a use; NULL in reports from before there was a ledger.
ALTER TABLE gate_reports
    ADD COLUMN sealed_test_use_id bigint REFERENCES sealed_test_uses
        CONSTRAINT gate_reports_one_per_use_of_the_sealed_test UNIQUE;

CREATE TRIGGER sealed_test_uses_are_append_only BEFORE UPDATE OR DELETE ON sealed_test_uses
    FOR EACH ROW EXECUTE FUNCTION refuse_change();
CREATE TRIGGER sealed_test_uses_are_not_truncated BEFORE TRUNCATE ON sealed_test_uses
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
ALTER TABLE sealed_test_uses ENABLE ALWAYS TRIGGER sealed_test_uses_are_append_only;
ALTER TABLE sealed_test_uses ENABLE ALWAYS TRIGGER sealed_test_uses_are_not_truncated;

GRANT SELECT, INSERT ON sealed_test_uses TO overread_app;
