"""What a configuration may name, with parameters and defaults, read from the source without importing it.

Defaults live in signatures: a file of a group states what differs. So that `sampler.eta=0.5` finds its place, and
`--help` shows every value without waiting for torch, signatures are read from the text, of which only what is asked for
is parsed.
"""

import ast
import math
import re
from functools import cache
from typing import Any, NamedTuple

from sde_gen.errors import ConfigError
from sde_gen.register import exports, homes, path_of

MISSING = "???"  # OmegaConf's mark of a value that has to be given

#: The groups: the rooms whose exports are their members, and what makes an export a member: a class that it is or comes
#: from, or "-> X" for a function that returns an X.
GROUPS = {
    "sde": (("perturbations",), ("Perturbation",)),
    "parameterization": (("parameterizations",), ("Parameterization",)),
    "convention": (("conventions",), ("Convention",)),
    "objective": (("objectives",), ("Objective", "DenoisingScoreMatching")),
    "sampler": (("samplers", "tuning"), ("Sampler",)),
    "corrector": (("samplers",), ("Corrector",)),
    "grid": (("samplers",), ("TimeGrid",)),
    "network": (("networks", "interop", "interop.diffusers"), ("Module",)),
    "features": (("metrics",), ("Features", "-> NetworkFeatures")),
    "data": (("data", "codecs"), ("-> Dataset",)),
    "codec": (("codecs",), ("Module",)),
    "guidance": (("guidance",), ("Extrapolated", "Bounded")),
}
#: Rooms whose members are named in the room, all others in `sde_gen`.
_NAMESPACES = ("networks", "interop", "interop.diffusers", "metrics", "data", "guidance", "codecs")
_AT_THE_MARGIN = re.compile(r"^(?=[A-Za-z_@])", re.MULTILINE)
_ABSTRACT = re.compile(r"\bABC\b|\bProtocol\b|abstractmethod|raise NotImplementedError$", re.MULTILINE)
#: Parameters that the program fills in: what follows from the data, and the model that is guided.
_FROM_DATA = {
    "network": {"channels", "features", "num_classes", "dimensions"},
    "objective": {"num_classes"},
    "guidance": {"model"},
    "data": {"trust"},
}


class Source(NamedTuple):
    """The text of a definition, and the module whose names it uses."""

    module: str
    text: str

    @property
    def node(self) -> Any:
        """The definition as a syntax tree."""
        return ast.parse(self.text).body[0]

    @property
    def bases(self) -> list[str]:
        """Names of what a class derives from, without their modules."""
        head = re.search(r"^class \w+\(([^:]*)\):", self.text, re.MULTILINE)
        return [part.strip().rpartition(".")[2] for part in head[1].split(",")] if head else []


@cache
def _names(module: str) -> dict[str, Source | tuple[str, str]]:
    """What a module defines at its top: the definitions, and (module, name) of what it imports."""
    path = path_of(module)
    if path is None:
        return {}
    with open(path, encoding="utf-8") as file:
        pieces = _AT_THE_MARGIN.split(file.read())
    found: dict[str, Source | tuple[str, str]] = {}
    text, quoted = "", False
    for piece in pieces:
        text = f"{text}{piece}"
        quoted ^= piece.count('"""') % 2 == 1
        if quoted or piece.startswith("@"):  # inside a text, or a decorator, which goes with what follows
            continue
        if imported := re.match(r"from ([\w.]+) import \(?([^)#]*)", text):
            pairs = [part.split() for part in imported[2].split(",") if part.split()]
            found |= {words[-1]: (imported[1], words[0]) for words in pairs}
        elif defined := re.match(r"(?:@.*\n)*(?:class |def )?(\w+)", text):
            found.setdefault(defined[1], Source(module, text))
        text = ""
    return found


def find(module: str, name: str) -> Source | None:
    """Where `name` of `module` is defined, through imports; None: outside the package."""
    found = _names(module).get(name) if module.partition(".")[0] == "sde_gen" else None
    return found if found is None or isinstance(found, Source) else find(*found)


@cache
def member(group: str, name: str) -> str | None:
    """The target of the class or function `name` of a group; None: the group has none."""
    rooms, kinds = GROUPS[group]
    for room in rooms:
        source = find(f"sde_gen.{room}", name) if name in exports(room) else None
        if source is not None and _belongs(name, source, kinds):
            return f"sde_gen.{room}.{name}" if room in _NAMESPACES else f"sde_gen.{name}"
    return None


@cache
def members(group: str) -> dict[str, str]:
    """Names of the classes and functions of a group, each with its target; bases to derive from are none."""
    names = [name for room in GROUPS[group][0] for name in exports(room)]
    return {name: target for name in names if (target := member(group, name))}


def group_of(target: str) -> str | None:
    """The group of a target; None: it is not one that a configuration may build without the user's word for it."""
    name = target.rpartition(".")[2]
    return next((group for group in GROUPS if member(group, name) == target), None)


def targets() -> frozenset[str]:
    """Every target of a group."""
    return frozenset(target for group in GROUPS for target in members(group).values())


def target_named(name: str) -> str | None:
    """The target of the class or function called `name`; None: there is none."""
    return next((target for group in GROUPS if (target := member(group, name))), None)


def _belongs(name: str, source: Source, kinds: tuple[str, ...]) -> bool:
    if not source.text.startswith(("class ", "@")):
        return any(f") {kind}:\n" in source.text for kind in kinds)
    return not _ABSTRACT.search(source.text) and not {name, *_ancestors(source)}.isdisjoint(kinds)


def _ancestors(source: Source) -> list[str]:
    found = []
    for base in source.bases:
        parent = find(source.module, base)
        found += [base, *(_ancestors(parent) if parent else ())]
    return found


def defaults(target: str) -> dict[str, Any]:
    """Parameters of a target or of a dataclass of settings, with their defaults as plain data.

    A default that is an object of the package is a node with a `_target_`, its own defaults in it; a parameter without
    a default has "???"; one that follows from the data is left out. Empty for what is not the package's own.

    Raises:
        ConfigError: a default that is no plain value, which a signature of the package may not have.
    """
    module, _, name = target.rpartition(".")
    source = find(homes().get(name, module) if module == "sde_gen" else module, name)
    if source is None:
        return {}
    left_out = _FROM_DATA.get(group_of(target) or "", ())
    return {
        name: MISSING if default is None else _value(source.module, default)
        for name, (source, default) in _parameters(source).items()
        if name not in left_out
    }


Parameters = dict[str, tuple[Source, "ast.expr | None"]]


def _parameters(source: Source) -> Parameters:
    node = source.node
    if isinstance(node, ast.FunctionDef):
        return _of_function(source, node.args)
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            return _of_function(source, item.args, skip=1)
    found: Parameters = {}
    for base in reversed(source.bases):
        parent = find(source.module, base)
        found |= _parameters(parent) if parent else {}
    if any("dataclass" in ast.dump(mark) for mark in node.decorator_list):
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.dump(item.annotation):
                _add_field(found, source, item)
    return found


def _of_function(source: Source, given: ast.arguments, skip: int = 0) -> Parameters:
    plain = [*given.posonlyargs, *given.args][skip:]
    values = [None] * (len(plain) - len(given.defaults)) + list(given.defaults) + list(given.kw_defaults)
    return {a.arg: (source, value) for a, value in zip([*plain, *given.kwonlyargs], values, strict=True)}


def _add_field(found: Parameters, source: Source, item: ast.AnnAssign) -> None:
    name, value = getattr(item.target, "id", ""), item.value
    if isinstance(value, ast.Call) and getattr(value.func, "attr", getattr(value.func, "id", "")) in (
        "field",
        "checked",
    ):
        given = {word.arg: word.value for word in value.keywords}
        if "init" in given and not ast.literal_eval(given["init"]):
            found.pop(name, None)
            return
        value = given.get("default", value.args[0] if value.args else None)
        if (factory := given.get("default_factory")) is not None:
            value = factory.body if isinstance(factory, ast.Lambda) else ast.Call(factory, [], [])
    found[name] = (source, value)


def _value(module: str, node: ast.expr) -> Any:
    """A default as plain data: numbers and their sums, text, lists, names of the module, and objects of the package."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.List | ast.Tuple):
        return [_value(module, item) for item in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        pairs = zip(node.keys, node.values, strict=True)
        return {_value(module, key): _value(module, value) for key, value in pairs if key is not None}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(module, node.operand)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        return _value(module, node.left) ** _value(module, node.right)
    if ast.unparse(node) == "math.inf":
        return math.inf
    if isinstance(node, ast.Name) and (named := find(module, node.id)) and hasattr(named.node, "value"):
        return _value(named.module, named.node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if node.func.id in ("dict", "list", "tuple") and not node.args:
            return {} if node.func.id == "dict" else []
        target = f"sde_gen.{node.func.id}"
        if group_of(target):
            own = defaults(target)
            given = dict(zip(own, node.args, strict=False)) | {word.arg: word.value for word in node.keywords}
            return {"_target_": target, **own} | {str(name): _value(module, item) for name, item in given.items()}
    raise ConfigError(f"{module}: the default {ast.unparse(node)} is no plain value; give one that is")
