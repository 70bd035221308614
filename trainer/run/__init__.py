"""One run: planned, checked, stepped, saved, watched.

plan.py         steps and order, known before a weight is loaded
checks.py       what set, model and configuration must be for each other
shuffle.py      how many shards are shuffled together
report.py       what `--dry-run` prints, and likely mistakes
sanity.py       the first sequence, token by token
attention.py    what computes attention, and why
throughput.py   tokens, arithmetic and memory, for the log
profile.py      the profiler of torch over some steps
probe.py        a pack's loss against its examples' losses, and logits in chunks against whole ones
deepspeed.py    the model in DeepSpeed
reference.py    the reference of a model that training changes: scored before the first step
step.py         one step: sum of weighted losses over sum of weights
schedule.py     the learning rate of a step
evaluate.py     losses on the validation split
checkpoints.py  checkpoints, complete once their mark is written
unpickle.py     the state of DeepSpeed, read with nothing in it run
resume.py       where a run goes on, and whether it is still the same run
output.py       the output folder: locked, and what a replaced run leaves in it
best.py         the best evaluation, and when to stop early
stop.py         SIGTERM
estimate.py     the memory of a run, from numbers alone
sizes.py        what that estimate needs to know of a plan
memory.py       running out of memory, as one message
peers.py        the end of another process of the run, as a message
readme.py       what a checkpoint is, for people
log.py          log.jsonl, the screen, loss.png, trackers
"""
