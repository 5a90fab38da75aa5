-- Says which organization a caller belongs to.
--
-- $1 text  caller
--
-- Returns no row where there is no such user; else organization_id, null for a user without one. An
-- answer is out of date at once: what reads for the caller looks again.
select u.organization_id from users u where u.id = $1::text
