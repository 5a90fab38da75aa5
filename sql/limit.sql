-- Bounds the statement that follows in the same transaction.
--
-- $1 text  statement_timeout, in milliseconds: what its callers have left
--
-- A request whose deadline has passed is answered, so nothing of it may be done any more: the server
-- itself ends the statement by then. lock_timeout stays the session's: who shares a statement must
-- not wait for somebody's locked row, however little time is left.
select set_config('statement_timeout', $1::text, true)
