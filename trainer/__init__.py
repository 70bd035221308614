"""The trainer: a set becomes a checkpoint. It tokenizes nothing, and knows of the compiler only what `schemas/` says.

set   -> data    batches          --+
                                    +-> objectives  -> run                -> use
model -> models  what is trained  --+   losses         steps, checkpoints    export, chat

train.py     a run, from its plan to its last checkpoint: start reading here
device.py    cuda, npu or cpu, alone or as one of several processes: the only file that knows devices
doctor.py    what a machine has and lacks for training
progress.py  a line now and then while nothing else is printed
config/      what a run is asked to do
data/        rows of a set to batches
models/      a model loaded, and what of it is trained
objectives/  losses, one file each
run/         a run: plan, steps, checkpoints, logs
predict/     what a model writes, and its scores
use/         export and chat
commands/    the command line
"""
# finetune-data-compiler: by this name cli.py knows its own packages.
