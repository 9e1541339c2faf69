"""Walkthroughs, one a rung, and what runs them."""
