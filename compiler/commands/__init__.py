"""The command line of the compiler: parse, call, print. What a command needs is imported when it runs.

compile.py          cli compile
compile_options.py  its options, under the headings of its help
cores.py            how many workers there are where nobody says it
recipe.py           what it is asked, as a file or as a set remembers it
sets.py             cli inspect, cli verify
raw.py              cli inspect of rows that are not compiled
questions.py        cli why, cli diff, cli stats
convert.py          cli convert
html_report.py      cli report
browse.py           cli browse
formats.py          cli formats
cache.py            cli cache
dry_run.py          what cli compile --dry-run prints
report.py           what cli compile prints at its end
cache_report.py     what cli cache prints
terminal.py         results on stdout, progress on stderr
sections.py         help with headings
completion.py       completion in bash, zsh and fish
"""

from compiler.commands.browse import browse
from compiler.commands.cache import cache
from compiler.commands.compile import compile_
from compiler.commands.convert import convert_command
from compiler.commands.formats import formats
from compiler.commands.html_report import report_
from compiler.commands.questions import diff, stats, why
from compiler.commands.sets import inspect, verify

COMMANDS = (compile_, inspect, report_, browse, stats, why, diff, verify, convert_command, formats, cache)
