-- Raise an error with an SQLSTATE of Tocsin. The message is a sentence for people,
-- DETAIL has the values for programs as JSON, and HINT says what to do.
--
--   TC001 QueueNotFound {queue}
--   TC002 QueueAlreadyExists {queue}
--   TC003 PayloadTooLarge {actual, maximum, index}
--   TC004 WorkerNotFound {worker_id}
--   TC005 StateTransitionError {worker_id, from, to, code, reason}
--   TC006 WorkerStopped {worker_id, from, to, code, reason}
--   TC007 PendingMessages {worker_id, count}
--   TC008 the process was declared dead {process_id}
--   TC009 PayloadInvalid {path, reason, index}
--   TC010 QueueNotEmpty {queue, workers, messages}
--   TC011 QueueBusy {queue}
--   TC012 DependentObjects {objects}
--   TC014 KeyTaken {ids}
--   TC015 MessageNotWaiting {message_id, state}
--   TC016 MessageNotFound {message_id, key}
--   TC017 SchemaNewer or SchemaOutdated {schema, found, serves, known}
--   TC022 a value out of its range {argument}
--   TC023 RoleNotFound {role}
--   TC030 PermissionDenied {role}
--   TC040 KeyConflict {key, message_id, task}
--   TC041 TaskUnknown {task}
--   TC043 FlowNotFound {flow_id}
--   TC046 ScheduleNotFound {schedule}
--   TC047 LimitNotFound {limit}
create or replace function tocsin._raise_error(code text, message text, detail jsonb,
                                               hint text default '') returns void
language plpgsql
as $$
begin
    raise exception using errcode = code, message = message, detail = detail::text, hint = hint;
end
$$;
