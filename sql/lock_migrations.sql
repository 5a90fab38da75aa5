-- Holds off every other migrating instance until this transaction ends. Two `create table` at the same
-- moment fail even with `if not exists`; and a lock that is a row outlives the crash of its owner.
--
-- No parameters. The number is 'sysevent' in ASCII, read as one bigint.
select pg_advisory_xact_lock(8320808666158952052)
