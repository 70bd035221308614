"""The command line of the trainer: parse, call, print. What a command needs is imported when it runs."""

from trainer.commands.chat import chat_command
from trainer.commands.doctor import doctor_command
from trainer.commands.export import export_command
from trainer.commands.train import train

COMMANDS = (train, export_command, chat_command, doctor_command)
"""What cli.py adds to its own commands."""
