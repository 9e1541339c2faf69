"""The language model: weights in, logits out; text to tokens and back."""
