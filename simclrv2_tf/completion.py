"""Completion of flags and of their values in bash and zsh, for the installed command ``simclrv2-tf``."""

import dataclasses

from simclrv2_tf.help import DESCRIPTIONS
from simclrv2_tf.settings.config import Config
from simclrv2_tf.settings.recipes import RECIPES

SHELLS = ("bash", "zsh")
OTHER_FLAGS = ("--help", "--helpfull", "--version", "--config=", "--flagfile=", "--quiet", "--v=", "--completion=")
ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
SCRIPT = """_simclrv2_tf() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} flag=${{COMP_WORDS[COMP_CWORD-1]}} values
  if [[ $word == "=" ]]; then word=""; elif [[ $flag == "=" ]]; then flag=${{COMP_WORDS[COMP_CWORD-2]}}; fi
  if [[ $word == --*=* ]]; then flag=${{word%%=*}}; word=${{word#*=}}; fi
  COMPREPLY=()
  if [[ $word == -* ]]; then
    compopt -o nospace 2>/dev/null
    COMPREPLY=($(compgen -W "{flags}" -- "$word"))
    return
  fi
  case $flag in
{cases}
    *) return;;
  esac
  COMPREPLY=($(compgen -W "$values" -- "$word"))
}}
complete -o default -F _simclrv2_tf simclrv2-tf"""


def completion_script(shell: str) -> str:
    """Returns a script for the shell to source. It names all flags, and the values of those that have choices."""
    choices = {"--mode": tuple(DESCRIPTIONS), "--recipe": ("auto", "official", "own_images", *RECIPES)}
    names = []
    for field in dataclasses.fields(Config):
        is_switch = isinstance(field.default, bool)
        names += [f"--{field.name}", f"--no{field.name}"] if is_switch else [f"--{field.name}="]
        if field.metadata["choices"]:
            choices.setdefault(f"--{field.name}", field.metadata["choices"])
    choices["--completion"] = SHELLS
    cases = "\n".join(f'    {name}) values="{" ".join(values)}";;' for name, values in choices.items())
    script = SCRIPT.format(flags=" ".join([*names, *OTHER_FLAGS]), cases=cases)
    return (ZSH if shell == "zsh" else "") + script
