"""The command line of the trainer: parse, call, print. What a command needs is imported when it runs.

train.py        cli train
export.py       cli export
chat.py         cli chat
predict.py      cli predict
follow.py       cli follow
safetensors.py  cli safetensors
doctor.py       cli doctor
libraries.py    whether the extra `train` is installed, and how much its libraries print
"""

from trainer.commands.chat import chat_command
from trainer.commands.doctor import doctor_command
from trainer.commands.export import export_command
from trainer.commands.follow import follow_command
from trainer.commands.predict import predict_command
from trainer.commands.safetensors import safetensors_command
from trainer.commands.train import train

COMMANDS = (
    train, follow_command, export_command, chat_command, predict_command, safetensors_command, doctor_command,
)  # fmt: skip
"""What cli.py adds to its own commands."""
