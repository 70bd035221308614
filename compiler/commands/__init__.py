"""The command line of the compiler: parse, call, print. What a command needs is imported when it runs."""

from compiler.commands.cache import cache
from compiler.commands.compile import compile_
from compiler.commands.formats import formats
from compiler.commands.sets import inspect, verify

COMMANDS = (compile_, inspect, verify, formats, cache)
