"""The command line of the trainer: parse, call, print. What a command needs is imported when it runs."""

from trainer.commands.tools import chat_command, doctor_command, export_command
from trainer.commands.train import train

COMMANDS = (train, export_command, chat_command, doctor_command)
