"""After training: a checkpoint becomes a model to serve, or talks.

checkpoint.py  a checkpoint with its set and base model
merge.py       LoRA merged into the weights, and the proof that it predicts the same
merge_check.py every merged weight against those of base and adapter
tokenizer.py   the set's tokenizer and chat template as Transformers reads them
export.py      the Hugging Face folder
chat.py        a conversation in the model's chat template
serve.py       the same for clients of OpenAI's chat API
predict.py     replies to the rows of a set
"""
