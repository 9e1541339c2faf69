"""How the bundled model was made: its corpus, its training and its examination.

`python -m training.train` generates the text, trains the tokenizer and the model, and writes them
to `ladder/data/weights/`; `python -m training.evaluate` asks the result every question whose answer is
known.

- `glossary`: the terms of LLM serving that the model can explain
- `stories`: a small grammar of short stories
- `corpus`: every kind of document, and the mixture in which they are drawn
- `train`: tokenizer, packing, the training loop, the report
- `revise`: practice of the counts that came out wrong
- `evaluate`: exact accuracy, on questions seen in training and on questions held out

The first three import nothing but the standard library, so a test can read them without loading
torch.
"""
