-- Whoever owns the schema may drop a trigger; the service may not. It signs in as a member of overread_app, which may
-- add to the record, and change only what is not history. A table made later grants its own rights.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'overread_app') THEN
        CREATE ROLE overread_app NOLOGIN;
    END IF;
EXCEPTION
    WHEN duplicate_object OR unique_violation THEN NULL; -- another database of this server was quicker
    WHEN insufficient_privilege THEN
        RAISE EXCEPTION 'the role overread_app is missing, and % may not make it', current_user
            USING HINT = 'As an administrator of the server: CREATE ROLE overread_app NOLOGIN;';
END $$;

GRANT USAGE ON SCHEMA public TO overread_app;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO overread_app;
GRANT INSERT ON users, api_keys, lines, protocols, blobs, cases, confirmations, idempotency_keys, jobs,
    dataset_versions, runs, candidates, gate_reports, approvals, promotions, predictions, audit_events TO overread_app;
GRANT UPDATE (roles, disabled_at) ON users TO overread_app;
GRANT UPDATE (revoked_at) ON api_keys TO overread_app;
GRANT UPDATE ON jobs TO overread_app;
GRANT UPDATE (dataset_version_id, base_candidate_id, state, outcome, progress, history, finished_at) ON runs TO overread_app;
GRANT UPDATE (state, mlflow_model_version) ON candidates TO overread_app;
GRANT UPDATE (ended_at) ON promotions TO overread_app;
