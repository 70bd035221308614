"""Models that came with code of their own, read as classes that Transformers has. That code is never run.

folder (config.json, *.safetensors in the original names)  ->  a native configuration, native names  ->  a native class

families.py   all families, and the one of a folder
family.py     what a family declares: its configuration, its parts under both names, its class
weights.py    a folder's tensors under native names, and back
chatglm.py    ChatGLM2, ChatGLM3 and GLM-4 as Glm
cogagent.py   GLM-4V and CogAgent: Glm with the eyes of eyes.py
qwen.py       the first Qwen as Qwen2
internlm2.py  InternLM2 as Llama
baichuan.py   Baichuan and Baichuan 2 with 7B parameters as Llama
"""
