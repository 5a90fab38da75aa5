"""What is asked: one module per endpoint, each with what it parses."""
