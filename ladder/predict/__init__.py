"""Small models that answer in a single pass: versions, schema, coalescing, cache, experiment, training."""
