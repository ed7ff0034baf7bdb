-- From many confirmations to one answer. A retraction ("this should never have been said") and an adjudication are rows of
-- confirmations too: one sequence of ids, one rule of superseding, one order of commits. So every change to what stands
-- about a case is a row with a greater confirmation_id.
ALTER TABLE confirmations
    ADD COLUMN kind text NOT NULL DEFAULT 'confirmation' CONSTRAINT confirmations_kind_is_known
        CHECK (kind IN ('confirmation','retraction','adjudication')),
    ADD COLUMN reason text,
    ALTER COLUMN finding DROP NOT NULL,
    -- Only an adjudication may have a finding or none: the case cannot be answered.
    ADD CONSTRAINT confirmations_have_a_finding_unless_retracted
        CHECK (kind = 'adjudication' OR (finding IS NULL) = (kind = 'retraction')),
    ADD CONSTRAINT confirmations_overrule_with_a_reason
        CHECK (CASE kind WHEN 'confirmation' THEN reason IS NULL ELSE coalesce(length(trim(reason)), 0) > 0 END),
    ADD CONSTRAINT confirmations_retract_one_row CHECK (kind <> 'retraction' OR supersedes IS NOT NULL),
    -- It decides over what others said; what they said stays.
    ADD CONSTRAINT confirmations_adjudicate_beside_the_others CHECK (kind <> 'adjudication' OR supersedes IS NULL);

-- The cases that wait for an adjudication now. All of it follows from confirmations and the line's newest protocol; it is
-- kept so that the queue need not read the settled cases, and nobody but follow_discordances() writes it.
CREATE TABLE discordances (
    case_id bigint PRIMARY KEY,
    line_id bigint NOT NULL,
    since   bigint NOT NULL -- the confirmation with which it began
);
CREATE INDEX discordances_by_line ON discordances (line_id, since);
GRANT SELECT ON discordances TO overread_app;

-- The same rule as pipelines/reference_standard.py: among what stands and is of an accepted AI exposure, the newest
-- adjudication decides until stronger evidence contradicts it; without one, the latest vote of each reader at the strongest
-- tier. Two different votes there are a discordance, also where the majority settles the case meanwhile.
CREATE FUNCTION follow_discordances(concerned bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH said AS MATERIALIZED (
        SELECT this.*, array_position(ARRAY['report_text','single_read','consensus','follow_up','pathology'], evidence) AS rank
        FROM unnest(concerned) AS asked (case_id)
        CROSS JOIN LATERAL (SELECT * FROM confirmations WHERE confirmations.case_id = asked.case_id OFFSET 0) this
        CROSS JOIN LATERAL (SELECT document #> '{reference_standard,exposures}' AS exposures FROM protocols
                            WHERE protocols.line_id = this.line_id ORDER BY version DESC LIMIT 1) rule
        WHERE kind <> 'retraction' AND (exposures IS NULL OR exposures ? ai_exposure)
          AND NOT EXISTS (SELECT FROM confirmations later WHERE later.supersedes = this.confirmation_id)
    ), decided AS MATERIALIZED (
        SELECT DISTINCT ON (case_id) * FROM said WHERE kind = 'adjudication' ORDER BY case_id, confirmation_id DESC
    ), votes AS (
        SELECT DISTINCT ON (case_id, submitted_by, reader) *
        FROM (SELECT *, max(rank) OVER (PARTITION BY case_id) AS strongest FROM said WHERE kind = 'confirmation') ranked
        WHERE rank = strongest ORDER BY case_id, submitted_by, reader, confirmation_id DESC
    ), waiting AS MATERIALIZED (
        SELECT case_id FROM votes WHERE NOT EXISTS (SELECT FROM decided WHERE decided.case_id = votes.case_id)
        GROUP BY case_id HAVING count(DISTINCT finding) > 1
        UNION
        SELECT case_id FROM said JOIN decided USING (case_id)
        WHERE said.kind = 'confirmation' AND said.confirmation_id > decided.confirmation_id
          AND said.rank > decided.rank AND said.finding IS DISTINCT FROM decided.finding
    ), settled AS (
        DELETE FROM discordances
        WHERE case_id = ANY(concerned) AND NOT EXISTS (SELECT FROM waiting WHERE waiting.case_id = discordances.case_id)
    )
    INSERT INTO discordances (case_id, line_id, since)
    SELECT case_id, line_id, max(confirmation_id) FROM said JOIN waiting USING (case_id) GROUP BY case_id, line_id
    ON CONFLICT ON CONSTRAINT discordances_pkey DO NOTHING;
END $$;
REVOKE EXECUTE ON FUNCTION follow_discordances FROM PUBLIC;

-- A case of which every row says the same neither is discordant nor was; most cases have one row.
CREATE FUNCTION follow_confirmations() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE
    concerned bigint[];
BEGIN
    SELECT array_agg(DISTINCT added.case_id) INTO concerned FROM added CROSS JOIN LATERAL
        (SELECT FROM confirmations other WHERE other.case_id = added.case_id
         AND other.finding IS DISTINCT FROM added.finding LIMIT 1) others;
    IF concerned IS NOT NULL THEN
        PERFORM follow_discordances(concerned);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER confirmations_are_followed AFTER INSERT ON confirmations
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION follow_confirmations();

-- A new protocol may accept other AI exposures.
CREATE FUNCTION follow_protocol() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM follow_discordances(ARRAY(
        SELECT case_id FROM confirmations WHERE line_id = NEW.line_id GROUP BY case_id HAVING count(*) > 1));
    RETURN NULL;
END $$;
CREATE TRIGGER protocols_are_followed AFTER INSERT ON protocols
    FOR EACH ROW WHEN (NEW.version > 1) EXECUTE FUNCTION follow_protocol();

SELECT follow_discordances(ARRAY(SELECT case_id FROM confirmations GROUP BY case_id HAVING count(*) > 1));
