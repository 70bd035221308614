"""Steps 1 to 4 for every unit: what the cache lacks is compiled, here or elsewhere; then all of it is loaded.

datasets -> plan.missing() -> tasks -> engine -> objects in the cache -> plan.load() -> compiled datasets
            cut, look up               run_unit

plan.py      the units of the datasets, and which of them the cache lacks
run.py       the plan run by an engine, and run again where a proof failed
task.py      what a unit is compiled with, and the name of its object
unit.py      one unit compiled: rows to conversations to columns to an object
warm.py      what a process does before its first unit
local.py     the engine on this machine: this process, or several
processes.py the processes of that engine, whose death is never waited for
ray.py       the engine on a Ray cluster
machines.py  what must be the same on every machine of a cluster
compiled.py  a dataset's objects, and what was counted while they were made
progress.py  how far a run is
sample.py    the units that a dry run compiles, and for how many others each stands
"""
