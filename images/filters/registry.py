"""What filters there are, and with which parameters. A filter is a function with `@picture_filter`."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from PIL import Image

Function = Callable[..., Image.Image]
_TYPES = {float: "number", int: "integer", bool: "boolean", str: "string"}


class Refused(Exception):
    """A picture or a parameter that nothing can be done with; the message says why."""


@dataclass(frozen=True, slots=True)
class Range:
    """What a parameter may be, and what it is for."""

    least: float
    most: float
    what: str = ""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a filter. `default` is what it is when nobody says."""

    name: str
    type: type
    default: Any
    range: Range | None

    def schema(self) -> dict[str, Any]:
        """Return its JSON Schema."""
        found: dict[str, Any] = {"type": _TYPES[self.type], "default": self.default}
        if self.range is not None:
            found |= {"minimum": self.range.least, "maximum": self.range.most}
            found |= {"description": self.range.what} if self.range.what else {}
        return found

    def checked(self, value: Any) -> Any:
        """Return *value* as the filter takes it.

        Raises:
            Refused: it is of another type, or out of range.
        """
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        is_fit = is_number if self.type is float else type(value) is self.type
        if not is_fit:
            raise Refused(f"{self.name}: {value!r} is no {_TYPES[self.type]}")
        if self.range is not None and not self.range.least <= value <= self.range.most:
            raise Refused(f"{self.name}: {value!r} is not between {self.range.least:g} and {self.range.most:g}")
        return self.type(value)


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter by its name. It takes pictures of the modes L, LA, RGB and RGBA, and returns one of these."""

    name: str
    what: str
    function: Function
    parameters: tuple[Parameter, ...]

    def __call__(self, picture: Image.Image, params: Mapping[str, Any]) -> Image.Image:
        """Return what the filter makes of *picture*; of *params* it takes those that are its own.

        Raises:
            Refused: a parameter does not fit.
        """
        return self.function(
            picture, **{one.name: one.checked(params[one.name]) for one in self.parameters if one.name in params}
        )


FILTERS: dict[str, Filter] = {}


def picture_filter(function: Function) -> Function:
    """Make a filter of a function: its name, first line and keyword parameters are the filter's."""
    parameters = [_parameter(one) for one in list(inspect.signature(function, eval_str=True).parameters.values())[1:]]
    what = (inspect.getdoc(function) or "").partition("\n")[0]
    FILTERS[function.__name__] = Filter(function.__name__, what, function, tuple(parameters))
    return function


def found(params: Mapping[str, Any]) -> Filter:
    """Return the filter that *params* name.

    Raises:
        Refused: there is none, or a parameter is none of any filter.
    """
    name = params.get("filter")
    if not isinstance(name, str) or name not in FILTERS:
        raise Refused(f"filter: there is no {name!r}; there are {', '.join(FILTERS)}")
    known = {"filter"} | {one.name for each in FILTERS.values() for one in each.parameters}
    if unknown := sorted(set(params) - known):
        raise Refused(f"{unknown[0]}: no filter has this parameter")
    return FILTERS[name]


def schema() -> dict[str, Any]:
    """Return the JSON Schema of all that may be asked for."""
    names: dict[str, Any] = {
        "type": "string",
        "enum": list(FILTERS),
        "description": "; ".join(f"{one.name}: {one.what}" for one in FILTERS.values()),
    }
    parameters = {one.name: one.schema() for each in FILTERS.values() for one in each.parameters}
    return {
        "type": "object",
        "properties": {"filter": names} | parameters,
        "required": ["filter"],
        "additionalProperties": False,
    }


def _parameter(one: inspect.Parameter) -> Parameter:
    if get_origin(one.annotation) is Annotated:
        type_, *more = get_args(one.annotation)
        return Parameter(one.name, type_, one.default, next((each for each in more if isinstance(each, Range)), None))
    return Parameter(one.name, one.annotation, one.default, None)
