"""Files in and out: folders, ranges, uploads, forms, logs."""
