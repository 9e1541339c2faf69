"""Small models that answer in one pass: versions, wire format, coalescing, experiment, training."""
