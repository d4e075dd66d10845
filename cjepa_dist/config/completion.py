"""Completion in a shell: the scripts, and the arguments that a command takes.

    TAB ──script──> cjepa __complete INDEX WORDS ──> one candidate a line
                                                     none: the shell completes files

A command's schema is read from its source, not imported: most commands import torch, in seconds.
"""

from __future__ import annotations

import ast
import functools

from cjepa_dist.config import locate
from cjepa_dist.errors import UserError

BASH = """\
# eval "$(cjepa completion bash)" in ~/.bashrc
_cjepa() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    COMPREPLY=()
    if [[ $current == "=" ]]; then  # bash splits key=value into three words
        current=""
    elif [[ $previous != "=" ]]; then
        mapfile -t COMPREPLY < <(
            "${COMP_WORDS[0]}" __complete "$COMP_CWORD" "${COMP_WORDS[@]:1}" 2>/dev/null
        )
        if [[ ${COMPREPLY[*]} == *= ]]; then compopt -o nospace; fi
    fi
    if [[ -z ${COMPREPLY[*]} ]]; then
        mapfile -t COMPREPLY < <(compgen -f -- "$current")
        compopt -o filenames
    fi
}
complete -F _cjepa cjepa
"""

ZSH = """\
# eval "$(cjepa completion zsh)" in ~/.zshrc, after compinit
_cjepa() {
    local -a replies keys others
    if [[ ${words[CURRENT]} == *=* ]]; then
        compset -P '*='
        _files
        return
    fi
    replies=("${(@f)$(${words[1]} __complete $((CURRENT - 1)) "${(@)words[2,-1]}" 2>/dev/null)}")
    keys=(${(M)replies:#*=})
    others=(${replies:#*=})
    if (( ${#keys} + ${#others} == 0 )); then
        _files
    else
        compadd -S '' -- $keys
        compadd -- $others
    fi
}
compdef _cjepa cjepa
"""

SHELLS = ("bash", "zsh")


def script(arguments: list[str]) -> str:
    """The completion script for a shell. Raises UserError for a shell that has none."""
    if len(arguments) != 1 or arguments[0] not in (*SHELLS, "-h", "--help"):
        raise UserError(f"usage: cjepa completion {'|'.join(SHELLS)}")
    if arguments[0].startswith("-"):
        return f"usage: cjepa completion {'|'.join(SHELLS)}"
    return (BASH if arguments[0] == "bash" else ZSH).rstrip()


def arguments(module: str) -> list[str]:
    """The configs of a command, by name, and the keys of its schema, each with `=`."""
    tree = parse(module)
    found = []
    for node in ast.walk(tree) if tree else ():  # launch(Schema, main)
        if isinstance(node, ast.Call) and dotted(node.func).endswith("launch") and node.args:
            schema = dotted(node.args[0])
            if kind := locate.KIND_OF_SCHEMA.get(schema.rpartition(".")[2]):
                found += locate.config_names(kind)
            found += [f"{key}=" for key in keys(module, schema)]
    return list(dict.fromkeys(found))  # a subclass may declare a field again


def keys(module: str, schema: str, prefix: str = "") -> list[str]:
    """The dotted keys of a schema that `module` defines or imports; [] where it does neither."""
    tree = parse(module)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == schema:
            found = [key for base in node.bases for key in keys(module, dotted(base), prefix)]
            for field in node.body:
                if isinstance(field, ast.AnnAssign):
                    name = prefix + dotted(field.target)
                    found += keys(module, dotted(field.annotation), f"{name}.") or [name]
            return found
        if isinstance(node, ast.ImportFrom):
            names = [alias.name for alias in node.names]
            imported, _, attribute = schema.partition(".")
            if imported in names and attribute:  # from PACKAGE import MODULE
                return keys(f"{node.module}.{imported}", attribute, prefix)
            if imported in names:
                return keys(str(node.module), imported, prefix)
    return []


def dotted(node: ast.expr) -> str:
    """`module.Schema` as text; empty for what is no name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@functools.cache
def parse(module: str) -> ast.Module | None:
    """The source of one of the project's modules; None for any other module."""
    top, *rest = module.split(".")
    folder = locate.PACKAGE if top == locate.PACKAGE.name else locate.project_root() / top
    path = folder.joinpath(*rest)
    for file in (path.with_suffix(".py"), path / "__main__.py"):
        if module and file.is_file():
            return ast.parse(file.read_text(encoding="utf-8"))
    return None
