"""How models see: what each family takes of pictures and videos, and the tokens that stand for them.

eyes.py      what all families have in common
grid.py      a grid of patches of any size: the classes of Qwen2-VL and GLM-4.1V
clips.py     the videos of Qwen2-VL's class: frames to patches
film.py      a video file, read with PyAV
one_size.py  one size for all pictures: LLaVA and Gemma 3, CogAgent and GLM-4V
find.py      the eyes of a model, by its configuration; other families are refused by name

Image processors are those of Transformers that need no torchvision: pixels are then the same on every machine, as
torchvision's resize differs from Pillow's in the last bit.
"""
