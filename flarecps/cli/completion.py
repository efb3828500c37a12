"""``flarecps completion``: a shell's script that completes commands, options and configs' names."""

from __future__ import annotations

from typing import Literal

SCRIPT = """_flarecps() {
    local current=${COMP_WORDS[COMP_CWORD]} words=
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="%(commands)s"
    elif [ "${COMP_WORDS[COMP_CWORD-1]}" = --config ]; then
        words="%(configs)s"
    else
        case ${COMP_WORDS[1]} in
%(cases)s
        esac
        case $current in -*) ;; *) words= ;; esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o default -F _flarecps flarecps
"""


def completion(shell: Literal["bash", "zsh"] = "bash", /) -> None:
    """Print a script that lets the shell complete flarecps's commands, options and configs' names.

    For good: eval "$(flarecps completion bash)" in ~/.bashrc, or eval "$(flarecps completion zsh)" in ~/.zshrc.

    Args:
        shell: bash or zsh
    """
    from flarecps.cli.configs import preset_names
    from flarecps.cli.main import COMMANDS

    cases = "\n".join(f'        {name}) words="{" ".join(options_of(name))}" ;;' for name in COMMANDS)
    filled = {"commands": " ".join(COMMANDS), "configs": " ".join(preset_names()), "cases": cases}
    print("autoload -U +X bashcompinit && bashcompinit\n" * (shell == "zsh") + SCRIPT % filled, end="")


def options_of(name: str) -> list[str]:
    """The options of a command, as one would type them; of one with actions, the actions."""
    from importlib import import_module

    from flarecps.cli.arguments import option_names
    from flarecps.cli.main import COMMANDS, LIGHTNING_COMMANDS
    from flarecps.cli.postprocess import ACTIONS
    from flarecps.cli.training_options import fit_option_names

    if name in LIGHTNING_COMMANDS:
        return fit_option_names()
    if name == "postprocess":
        return sorted({*ACTIONS, *(option for action in ACTIONS.values() for option in option_names(action))})
    return option_names(getattr(import_module(COMMANDS[name].module), COMMANDS[name].function))
