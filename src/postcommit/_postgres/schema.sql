-- The tables of one queue, version 1. {schema} is replaced by the name of its schema.
-- Created by 'postcommit migrate URL', in one transaction.

create table {schema}.version (number int not null);
insert into {schema}.version values (1);

-- A drain that lives. Its claims end with its row.
create table {schema}.process (
    id uuid primary key,
    host text not null,
    pid int not null,
    started timestamptz not null default clock_timestamp(),
    -- The lease. A thread of its own renews it.
    beat timestamptz not null default clock_timestamp(),
    -- The last sign of life of the feeder. It may hang while the lease is renewed.
    alive timestamptz not null default clock_timestamp(),
    paused_since timestamptz,
    paused_until timestamptz,
    paused_reason text
) with (fillfactor = 50);

-- A transaction that votes. Its sender locks the row until it has finished, so a row
-- without a lock is in doubt.
create table {schema}.batch (
    id uuid primary key,
    voted timestamptz not null default clock_timestamp(),
    host text not null,
    pid int not null
);

create table {schema}.entry (
    id uuid primary key default gen_random_uuid(),
    state text not null default 'queued'
        check (state in ('prepared', 'queued', 'held', 'failed')),
    batch uuid references {schema}.batch,
    holder uuid references {schema}.process on delete set null,
    accepted timestamptz not null default clock_timestamp(),
    due timestamptz not null default clock_timestamp(),
    -- Whether it was tried, or put off, and waits until it is due.
    deferred boolean not null default false,
    -- Whether one INSERT has accepted it, which is repeated if its reply is lost.
    alone boolean not null default false,
    -- Terms of the sender: not sent before, not sent after, after all others.
    not_before timestamptz,
    expires timestamptz,
    bulk boolean not null default false,
    sender text not null,
    recipients text[] not null,
    attempts int not null default 0,
    uncertain int not null default 0,
    -- The uncertain attempts of each recipient, if they are not the same.
    doubts int[] not null default '{}',
    last_reply text not null default '',
    -- Why this is not an entry; then it is a dead letter.
    problem text not null default '',
    message_id text not null default '',
    message bytea not null,
    -- The last settlement. If its reply was lost, this shows that it took effect.
    settlement uuid,
    rank smallint generated always as (
        case when deferred then 2
             when bulk then case when not_before is null then 3 else 4 end
             when not_before is not null then 1 else 0 end) stored,
    check ((state = 'prepared') = (batch is not null)),
    check (holder is null or state = 'queued'),
    -- Only `due` decides when an entry is taken. The clock may have been put back before
    -- an entry was tried, so this says nothing about what was tried.
    constraint entry_not_before check (
        state = 'failed' or deferred or due >= not_before),
    -- Other times cannot be read by Python. In the year 9999 each of them can.
    constraint entry_times check (
        least(accepted, due, not_before, expires) >= '1970-01-01 00:00+00'
        and greatest(accepted, due, not_before, expires) < '9999-12-31 00:00+00'),
    constraint entry_numbers check (
        least(attempts, uncertain) >= 0 and greatest(attempts, uncertain) <= 1000000000)
) with (
    -- Each mail leaves two dead rows. A fraction of an empty table would never be
    -- reached.
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 10000
);

-- Without compression, its length is known without reading it.
alter table {schema}.entry alter message set storage external;

create index entry_due on {schema}.entry (rank, due)
    where state = 'queued' and holder is null;
create index entry_holder on {schema}.entry (holder) where holder is not null;
create index entry_batch on {schema}.entry (batch) where batch is not null;
create index entry_message_id on {schema}.entry (message_id);
create index entry_failed on {schema}.entry (due) where state in ('failed', 'held');

-- The entries alone in their transaction that were removed within the last minute. If
-- the reply to the INSERT of one was lost, this shows that it must not be repeated.
create table {schema}.removed (
    id uuid not null,
    at timestamptz not null default clock_timestamp()
);

-- A trigger, because entries are removed by many statements. As its owner, because they
-- are executed by roles that have no rights on the table.
create function {schema}.note_removed() returns trigger language plpgsql
security definer set search_path = pg_catalog as $$
begin
    insert into {schema}.removed (id) values (old.id);
    return null;
end $$;
revoke execute on function {schema}.note_removed() from public;
create trigger note_removed after delete on {schema}.entry for each row
    when (old.alone and old.accepted > clock_timestamp() - interval '1 minute')
    execute function {schema}.note_removed();

-- The next free slot of the rate limit of all processors: one row.
create table {schema}.pace (
    one boolean primary key default true check (one),
    ready timestamptz not null default clock_timestamp()
) with (fillfactor = 20);
insert into {schema}.pace default values;

-- Nothing is taken while it has a row.
create table {schema}.stopped (
    one boolean primary key default true check (one),
    who text not null,
    since timestamptz not null default clock_timestamp(),
    reason text not null
);
