"""What measures and shows: the client, starting rungs, the demos' scenes and their display."""
