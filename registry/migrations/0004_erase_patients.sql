-- Erasure (GDPR Art. 17). The rows that tell what happened stay; what makes them somebody's goes: the pseudonym, what was
-- said of the patient, and the bytes of the images. Only erase_patient() can do that, and it always leaves a row here.

CREATE TABLE erasures (
    erasure_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- SHA-256 of the pseudonym. It names nobody; it lets a restored backup be told whom to erase once more.
    patient_digest text NOT NULL CHECK (patient_digest ~ '^[0-9a-f]{64}$'),
    line           text REFERENCES lines (name), -- NULL: every line
    reason         text NOT NULL CONSTRAINT erasures_give_a_reason CHECK (length(trim(reason)) > 0),
    -- Cases sent later are not meant: whoever sends a patient again has asked them again.
    cases_until    timestamptz NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now()
);

-- What an erasure concerns: the cases themselves, and what was learned from them.
CREATE TABLE erasure_effects (
    erasure_id bigint NOT NULL REFERENCES erasures,
    subject    text NOT NULL CONSTRAINT erasure_effects_subject_is_known
               CHECK (subject IN ('case', 'dataset_version', 'run', 'candidate')),
    subject_id bigint NOT NULL,
    PRIMARY KEY (erasure_id, subject, subject_id)
);
CREATE INDEX erasure_effects_by_subject ON erasure_effects (subject, subject_id);

ALTER TABLE cases ADD COLUMN erasure_id bigint REFERENCES erasures;
ALTER TABLE cases ADD CONSTRAINT cases_erased_are_of_nobody CHECK (erasure_id IS NULL OR
    (patient IS NULL AND external_id IS NULL AND scanner IS NULL AND sex IS NULL AND age_band IS NULL AND attributes = '{}'));
CREATE INDEX cases_by_image ON cases (image_digest);
CREATE INDEX cases_by_patient ON cases (patient) WHERE patient IS NOT NULL;

-- The one way to take a case from its patient; runs with the owner's rights, which the service has not.
CREATE FUNCTION erase_patient(whom text, on_line text, why text, up_to timestamptz) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    erasure bigint;
    pseudonym text;
BEGIN
    LOCK TABLE runs IN SHARE ROW EXCLUSIVE MODE; -- no run may begin to read cases between here and the commit
    SELECT DISTINCT patient INTO pseudonym FROM cases
    WHERE patient IS NOT NULL AND encode(sha256(convert_to(patient, 'UTF8')), 'hex') = whom;
    INSERT INTO erasures (patient_digest, line, reason, cases_until) VALUES (whom, on_line, why, up_to)
    RETURNING erasures.erasure_id INTO erasure;
    WITH erased AS (
        UPDATE cases SET patient = NULL, external_id = NULL, scanner = NULL, sex = NULL, age_band = NULL,
            attributes = '{}', erasure_id = erasure
        FROM lines WHERE lines.line_id = cases.line_id AND cases.patient = pseudonym
            AND (on_line IS NULL OR lines.name = on_line) AND cases.created_at <= up_to
        RETURNING case_id)
    INSERT INTO erasure_effects SELECT erasure, 'case', case_id FROM erased;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'nobody to erase' USING ERRCODE = 'no_data_found';
    END IF;
    -- A version tells of every case that it considered, also of those that waited.
    INSERT INTO erasure_effects SELECT DISTINCT erasure, 'dataset_version', dataset_version_id
    FROM cases JOIN confirmations USING (case_id)
    JOIN dataset_versions ON dataset_versions.line_id = cases.line_id AND confirmation_id <= last_confirmation_id
    WHERE cases.erasure_id = erasure;
    INSERT INTO erasure_effects SELECT erasure, 'run', run_id FROM runs
    WHERE finished_at IS NULL AND CASE WHEN dataset_version_id IS NULL -- it may be reading them right now
        THEN line_id IN (SELECT cases.line_id FROM cases JOIN confirmations USING (case_id) WHERE cases.erasure_id = erasure)
        ELSE dataset_version_id IN (SELECT subject_id FROM erasure_effects effects
                                    WHERE effects.erasure_id = erasure AND subject = 'dataset_version') END;
    INSERT INTO erasure_effects WITH RECURSIVE learned (candidate_id) AS (
        SELECT candidate_id FROM candidates
        WHERE dataset_version_id IN (SELECT subject_id FROM erasure_effects effects
                                     WHERE effects.erasure_id = erasure AND subject = 'dataset_version')
        UNION -- what was trained on from such a model has learned from these cases too
        SELECT candidates.candidate_id FROM candidates JOIN runs USING (run_id)
        JOIN learned ON base_candidate_id = learned.candidate_id)
    SELECT erasure, 'candidate', candidate_id FROM learned;
    RETURN erasure;
END $$;
REVOKE EXECUTE ON FUNCTION erase_patient FROM PUBLIC;
GRANT EXECUTE ON FUNCTION erase_patient TO overread_app;
GRANT SELECT ON erasures, erasure_effects TO overread_app;

-- Is this stored file the image of erased cases, and of nothing else that is needed?
CREATE FUNCTION blob_is_erased(file_digest text) RETURNS boolean LANGUAGE sql STABLE AS $$
    SELECT EXISTS (SELECT FROM cases WHERE image_digest = file_digest AND erasure_id IS NOT NULL)
       AND NOT EXISTS (SELECT FROM cases WHERE image_digest = file_digest AND erasure_id IS NULL)
       AND NOT EXISTS (SELECT FROM candidates WHERE file_digest IN (weights_digest, metadata_digest))
$$;

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['erasures','erasure_effects'] LOOP
        EXECUTE format('CREATE TRIGGER %I BEFORE UPDATE OR DELETE ON %I FOR EACH ROW EXECUTE FUNCTION refuse_change()',
                       name || '_are_append_only', name);
        EXECUTE format('CREATE TRIGGER %I BEFORE TRUNCATE ON %I FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()',
                       name || '_are_not_truncated', name);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER %I', name, name || '_are_append_only');
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER %I', name, name || '_are_not_truncated');
    END LOOP;
END $$;
