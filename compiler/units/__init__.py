"""Steps 1 to 4 for every unit: it is taken from the cache or compiled, here or elsewhere; then all of it is at hand.

datasets -> plan.to_settle() -> engine.run(settle) -> plan.load() -> compiled datasets
            cut                 look up, or run_unit

plan.py      the units of the datasets, and what came of them
run.py       the plan run by an engine, and run again where a proof failed
task.py      what a unit is compiled with, the name of its object, and what an engine is
settle.py    one unit settled: its object looked up, or made
unit.py      one unit compiled: rows to conversations to columns to an object
asked.py     what processes load before their first unit, and prove meanwhile
engines.py   this process, until there is more to do than it should do alone
local.py     the engine on this machine: this process, or several
processes.py the processes of that engine, whose death is never waited for
ray.py       the engine on a Ray cluster
connect.py   the connection to it
machines.py  what must be the same on every machine of a cluster
compiled.py  a dataset's objects, and what was counted while they were made
progress.py  how far a run is
sample.py    the units that a dry run compiles, and for how many others each stands
"""
