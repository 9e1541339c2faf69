"""What an engine is made of: its messages, the forward passes that it has run, the channel to its process."""
