-- The last statement of an installation and of an upgrade. It uses what unload.sql has
-- recorded.
--
-- It brings attributes and privileges into the state that sql/security/access.sql
-- describes. It restores the privileges that a database administrator had granted on a
-- dropped function, if a function with the same signature exists again. It revokes the
-- privileges that default privileges have given to other roles on new objects, because
-- an installation grants access only to the roles that it is given.
do $$
declare
    noted jsonb := current_setting('bell.upgrade')::jsonb;
    left_over text := (
        select k.key from jsonb_each_text(noted -> 'kept') k
            join pg_proc p on p.oid = to_regprocedure(k.key) and p.xmin::text = k.value limit 1);
begin
    if left_over is not null then
        raise exception using errcode = 'TC012',
            message = format('the upgrade drops function %s, and %s depends on it', left_over,
                             noted #>> array['dependents', left_over, '0']),
            detail = jsonb_build_object('objects', noted #> array['dependents', left_over])::text,
            hint = 'Drop the dependent objects, upgrade, and create them again.';
    end if;
    perform tocsin.secure(before => noted -> 'privileges');
end
$$;
