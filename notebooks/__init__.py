"""One walkthrough per rung, and the program that runs them."""
