"""What a model writes, beside what the rows say.

generate.py  predictions for every reply of a split
metrics.py   BLEU, ROUGE, and the match of calls
"""
