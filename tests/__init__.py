"""What the ladder promises, held to account. Run with `pytest`; no network and no GPU are needed."""
