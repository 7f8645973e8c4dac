-- The last statement of an installation and of an upgrade; unload.sql has noted what it
-- needs.
--
-- It brings attributes and privileges into the state that sql/security/access.sql
-- describes. It grants again what a database administrator had granted on a function
-- that was dropped, if there is a function with that signature again. It takes away
-- what default privileges have given to other roles on what is new: an installation
-- lets in the roles that it is told to, and no other.
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
            hint = 'Drop what depends on it, upgrade, and create it again.';
    end if;
    perform tocsin.secure(before => noted -> 'privileges');
end
$$;
