"""Arguments of a configuration's classes: those that the data fill, and those that are null."""

import inspect
import pydoc
import re
from collections.abc import Iterator
from typing import Any

from jsonargparse import Namespace
from pytorch_lightning import LightningDataModule
from pytorch_lightning.cli import LightningArgumentParser

from errors import UserError

LINKS = (
    ("vocabulary", "vocabulary"),
    ("vocabulary_size", "network.init_args.decoder.init_args.vocabulary_size"),
    ("vocabulary_size", "network.init_args.vocabulary_size"),
    ("class_names", "class_names"),
    ("class_count", "network.init_args.classes"),
    ("channels", "network.init_args.channels"),
    ("inputs", "network.init_args.inputs"),
    ("size", "network.init_args.size"),
    ("dimension", "network.init_args.dimension"),
    ("dimension", "dimension"),
    ("low", "low"),
    ("high", "high"),
    ("low", "network.init_args.low"),
    ("high", "network.init_args.high"),
)
"""Model arguments filled from the data module: its attribute → the model's argument.

A link applies if the data module has the attribute and the model's class has the argument. Each
run logs at its start which arguments were filled.
"""


def find_filled(model: Namespace, data: LightningDataModule) -> Iterator[str]:
    """Yield ``argument=value`` for each argument of the model that the data module fills.

    Raises:
        UserError: if neither the data nor the configuration has an argument that the model needs.
    """
    for source, target in LINKS:
        *parents, argument = target.replace("init_args.", "").split(".")
        node: Any = model
        for parent in parents:
            node = node.get("init_args", {}).get(parent) if node else None
        parameter = find_parameter(node, argument)
        if parameter is None:
            continue
        if hasattr(data, source):
            value = getattr(data, source)
            shown = f"={value}" if isinstance(value, int | str) else ""
            yield ".".join(("model", *parents, argument)) + shown
        elif parameter.default is parameter.empty and node.init_args.get(argument) is None:
            raise UserError(
                f"{node.class_path} needs {argument}, which {type(data).__name__} does not have: "
                "use a data module of the same task"
            )


def check_filled(model: Namespace, data: Namespace) -> None:
    """Check that the data fill what the model needs; for a model that could not be constructed.

    Raises:
        UserError: if not.
    """
    parser = LightningArgumentParser()
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    list(find_filled(model, parser.instantiate_classes(Namespace(data=data)).data))  # type: ignore[no-untyped-call]


def check_nulls(config: Namespace) -> None:
    """Check that no argument of a class is null whose type does not allow it.

    jsonargparse checks the type of every value but null.

    Raises:
        UserError: if one is; names its key.
    """
    filled = {f"model.init_args.{target}" for _, target in LINKS}
    for key, node in config.items(branches=True):
        if not isinstance(node, Namespace) or not isinstance(node.get("init_args"), Namespace):
            continue
        for name, value in vars(node.init_args).items():
            full = f"{key}.init_args.{name}"
            parameter = find_parameter(node, name)
            if value is not None or parameter is None or full in filled:
                continue
            is_typed = parameter.annotation is not parameter.empty
            is_nullable = parameter.default is None or NULLABLE.search(str(parameter.annotation))
            if is_typed and not is_nullable:
                raise UserError(f"{full} is null: give it a value, or leave it out")


NULLABLE = re.compile(r"\b(None|Optional|Any)\b")
"""What an annotation that allows null contains."""


def find_parameter(node: Any, name: str) -> inspect.Parameter | None:
    """Return an argument of the class that a node of a configuration names, or of a base class."""
    found = pydoc.locate(node.class_path) if node and "class_path" in node else None
    for base in inspect.getmro(found) if inspect.isclass(found) else ():
        constructor = vars(base).get("__init__")
        parameter = inspect.signature(constructor).parameters.get(name) if constructor else None
        if parameter is not None:
            return parameter
    return None
