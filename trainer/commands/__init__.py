"""The command line of the trainer: parse, call, print. What a command needs is imported when it runs.

train.py        cli train
export.py       cli export
chat.py         cli chat
serve.py        cli serve
predict.py      cli predict
follow.py       cli follow
safetensors.py  cli safetensors
doctor.py       cli doctor
options.py      the options of the commands that let a model write
libraries.py    whether the extras are installed, and how much their libraries print
"""

from trainer.commands.chat import chat_command
from trainer.commands.doctor import doctor_command
from trainer.commands.export import export_command
from trainer.commands.follow import follow_command
from trainer.commands.predict import predict_command
from trainer.commands.safetensors import safetensors_command
from trainer.commands.serve import serve_command
from trainer.commands.train import train

COMMANDS = (
    train, follow_command, export_command, chat_command, serve_command, predict_command, safetensors_command,
    doctor_command,
)  # fmt: skip
"""What cli.py adds to its own commands."""
