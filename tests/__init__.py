"""Tests, against a real PostgreSQL.

unit: no server at all; database: statements and connections; http: the service in this process;
process: the service as an operator runs it, and its servers stopped, killed and frozen; support:
what they share.
"""
