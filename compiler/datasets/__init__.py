"""Step 1, choose: names become datasets, and datasets become files.

--mix agent:1,chats#500  ->  catalogue  ->  files
                             a file, a card of the registry, or an entry of a dataset_info.json

catalogue.py     a name to a dataset
command_line.py  a dataset of the command line: format, kind and columns of its rows
dataset_info.py  an entry of a dataset_info.json, as LLaMA-Factory reads it
dataset.py       a dataset ready to be read: files, options, weights policy
given.py         the files of the command line: files, folders, patterns
piped.py         what is piped in, kept in the cache
files.py         the files of a dataset: one, or those of a folder
hub.py           datasets and tokenizers of the hubs: a local copy, or a download
chosen.py        all datasets of a compile, which are of one kind
"""
