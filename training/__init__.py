"""How the bundled model was made: corpus, training and evaluation.

`python -m training.train` generates the text, trains the tokenizer and the model, and writes them
to `ladder/data/weights/`. `python -m training.evaluate` asks the model every question with a known answer.

- `glossary`: the terms of LLM serving that the model can explain
- `stories`: a small grammar of short stories
- `corpus`: the kinds of documents, and the mixture in which they are drawn
- `train`: tokenizer, packing, training loop, report
- `revise`: more training on the counts that the model gets wrong
- `evaluate`: exact accuracy, on questions from the training data and on held-out questions

The first three import only the standard library, so that tests can use them without loading torch.
"""
