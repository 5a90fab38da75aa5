"""How read state is kept."""
